//! Runs a program for a level: shows what it prints and counts what it reports.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Counts;

/// What a run left.
pub struct Ran {
    /// Whether the program ended well.
    pub success: bool,
    /// What its lines reported.
    pub counts: Counts,
}

/// Runs `command`; its standard output is shown and read, its errors are shown.
pub fn run(command: &mut Command) -> Result<Ran> {
    if crate::style::colours() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let program = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let output = child.stdout.take().expect("asked for above");
    let mut counts = Counts::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("cannot read the output of {program}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts += report(&line);
    }
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    Ok(Ran { success: status.success(), counts })
}

/// What a line says: libtest's `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, or the compliance suite's
/// `skipped: NAME: reason`.
fn report(line: &str) -> Counts {
    let line = without_colours(line);
    let mut counts = Counts::default();
    let number =
        |text: &str, what: &str| text.trim().strip_suffix(what)?.trim().rsplit(' ').next()?.parse::<u64>().ok();
    if let Some(result) = line.strip_prefix("test result: ") {
        for part in result.split(';') {
            counts.passed += number(part, "passed").unwrap_or(0);
            counts.failed += number(part, "failed").unwrap_or(0);
            counts.skipped += number(part, "ignored").unwrap_or(0);
        }
    } else if line.strip_prefix("skipped: ").is_some_and(|rest| rest.contains(": ")) {
        counts.skipped = 1;
    }
    counts
}

/// The text without the escape sequences that colour it.
fn without_colours(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\x1b') {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, passed: u64, failed: u64, skipped: u64) {
        assert_eq!(report(line), Counts { passed, failed, skipped }, "{line}");
    }

    #[test]
    fn reports_are_read_and_other_lines_are_not() {
        check("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.02s", 3, 0, 1);
        check("test result: \x1b[31mFAILED\x1b[0m. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", 3, 2, 0);
        check("skipped: starts_by_socket: the agent runs already", 0, 0, 1);
        check("running 3 tests, which passed, failed, skipped", 0, 0, 0);
        check("test a ... ok", 0, 0, 0);
    }
}
