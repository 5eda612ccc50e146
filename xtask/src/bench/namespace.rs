//! Namespaces for one measurement: what is made in them goes with them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, unshare};

use super::table::Row;
use crate::{packages, style};

/// Does `work` in a thread that has left the machine's namespaces, with every program that it starts. Where that is not
/// possible, or one of the programs is not there, says why and gives no rows.
pub fn within(
    namespaces: CloneFlags,
    programs: &[&str],
    work: impl FnOnce() -> Result<Vec<Row>> + Send,
) -> Result<Vec<Row>> {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !packages::is_installed(program)).collect();
    if !missing.is_empty() {
        return Ok(left_out(&format!("{} not installed", missing.join(", "))));
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| match unshare(namespaces) {
            Ok(()) => work(),
            Err(error) => Ok(left_out(&format!("no namespace: {error}"))),
        });
        thread.join().unwrap_or_else(|_| Err(anyhow!("the measurement panicked")))
    })
}

/// Says why a growth is not measured.
pub fn left_out(reason: &str) -> Vec<Row> {
    eprintln!("{}", style::warning(&format!("left out: {reason}")));
    Vec::new()
}

/// Keeps mounts that are made from now on from the rest of the machine.
pub fn hide_mounts() -> Result<()> {
    run("mount", &["--make-rprivate", "/"])
}

/// Mounts a file system of memory.
pub fn mount_memory(place: &Path) -> Result<()> {
    run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "bench".as_ref(), place])
}

/// Shows one place at another.
pub fn bind(from: &Path, to: &Path) -> Result<()> {
    run("mount", &["--bind".as_ref(), from, to])
}

/// Runs a program that has to succeed.
pub fn run(program: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<()> {
    output(program, arguments).map(drop)
}

/// The text that a program which has to succeed writes.
pub fn output(program: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
