//! Runs host programs that take long, and says meanwhile that they are alive.

use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a long step prints a line.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Runs `command` to its end, its output in `log`, and prints `what` and every ten seconds the log's last line.
pub fn run(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    println!("vm: {what}");
    let started = Instant::now();
    let output = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let program = command.get_program().to_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut next_line = SIGN_OF_LIFE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() >= next_line {
            next_line += SIGN_OF_LIFE;
            println!("vm:   {} s: {}", started.elapsed().as_secs(), tail(log, 1).trim());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("{} ended with {status}:\n{}", program.display(), tail(log, 15));
    }
    Ok(())
}

/// Runs `command` to its end and returns what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", program.display(), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last `count` lines of a text file; nothing if it cannot be read.
pub fn tail(path: &Path, count: usize) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
