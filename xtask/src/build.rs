//! Builds the agent as it is shipped: one static file that runs in any guest of this architecture.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace")
}

/// The cargo that runs us, at the workspace's folder.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// `cargo xtask build`: prints where the agent is.
pub fn main(_arguments: &[String]) -> Result<()> {
    println!("{}", agent_binary()?.display());
    Ok(())
}

/// Our agent: the one that `QGA_OURS` names, else built now.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("QGA_OURS") {
        let path = std::fs::canonicalize(&given)
            .with_context(|| format!("cannot use the agent that QGA_OURS names, {}", given.display()))?;
        return Ok(path);
    }
    let triple = host_triple()?;
    // The flag cannot stand in .cargo/config.toml: without an explicit target it would reach procedural macros too,
    // which cannot be static.
    let flags = format!("target.{triple}.rustflags=[\"-C\",\"target-feature=+crt-static\"]");
    let output = cargo()
        .args(["build", "--release", "--package", "qga-agent", "--bin", "qemu-ga", "--target", &triple])
        .args(["--message-format", "json-render-diagnostics", "--config", &flags])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo to build the agent")?;
    if !output.status.success() {
        bail!("the agent does not build: cargo ended with {}", output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout), "qemu-ga").context("cargo built no program called qemu-ga")
}

/// The command line `qga`: the one that `QGA_COMMAND_LINE` names, else built now, quickly rather than small.
pub fn command_line_binary() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("QGA_COMMAND_LINE") {
        let path = std::fs::canonicalize(&given)
            .with_context(|| format!("cannot use the program that QGA_COMMAND_LINE names, {}", given.display()))?;
        return Ok(path);
    }
    let output = cargo()
        .args(["build", "--package", "qga-cli", "--bin", "qga", "--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo to build qga")?;
    if !output.status.success() {
        bail!("qga does not build: cargo ended with {}", output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout), "qga").context("cargo built no program called qga")
}

/// The path of the built program among cargo's messages, one JSON object a line.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot start rustc to ask for the host's name")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let triple = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.context("rustc -vV names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"qga_protocol"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"qemu-ga"},"executable":"/t/release/qemu-ga"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(super::executable(messages, "qemu-ga"), Some(PathBuf::from("/t/release/qemu-ga")));
    }
}
