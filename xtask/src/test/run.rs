//! Runs a program for a level: shows what it prints and counts what it reports.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Counts;

/// How long to wait for more output of a program that has ended: a process that it left behind may hold the pipe.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// A program that prints nothing for so long hangs. The longest honest silence is a cold release build.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// What a run left.
pub struct Ran {
    /// Whether the program ended well.
    pub success: bool,
    /// What its lines reported.
    pub counts: Counts,
}

/// Runs `command`; what it prints is shown and read.
pub fn run(command: &mut Command) -> Result<Ran> {
    if crate::style::colours() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let program = command.get_program().display().to_string();
    // One pipe for both streams keeps their lines in order.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let errors = writer.try_clone().context("cannot share a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // The command holds the pipe's other end until it is told to use something else.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut report = Report::default();
    let mut status = None;
    let mut last_line = Instant::now();
    loop {
        match lines.recv_timeout(AFTERWARDS) {
            Ok(line) => {
                last_line = Instant::now();
                println!("{line}");
                report.add(&line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) if status.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) if last_line.elapsed() > SILENCE => {
                println!("{program} has printed nothing for {}: ended", crate::style::duration(SILENCE));
                end_with_children(child.id());
                break;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                status = child.try_wait().with_context(|| format!("cannot ask after {program}"))?;
            }
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    if !report.failed.is_empty() {
        // Between them and the end may stand pages of others that passed.
        println!("failed: {}", report.failed.join(", "));
    }
    Ok(Ran { success: status.success(), counts: report.counts() })
}

/// Ends a process and those it started. cargo alone would leave its test running.
fn end_with_children(process: u32) {
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    if let Some(pid) = rustix::process::Pid::from_raw(process.cast_signed()) {
        // One that has ended meanwhile is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    children.split_whitespace().filter_map(|child| child.parse().ok()).for_each(end_with_children);
}

/// What the lines of a test program say.
#[derive(Debug, Default)]
struct Report {
    /// libtest's `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
    tests: Counts,
    /// The compliance suite's `session: cases: 17, failed: 0, skipped: 0`.
    cases: Counts,
    /// Tests that are tables of such cases, which would be counted twice.
    tables: Counts,
    /// The tests that failed, by name.
    failed: Vec<String>,
}

impl Report {
    fn add(&mut self, line: &str) {
        let line = without_colours(line);
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failed.push(name.to_owned());
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |what: &str| {
                let part = result.split(';').find_map(|part| part.trim().strip_suffix(what));
                part.and_then(|part| part.trim().rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
            };
            let (passed, failed, skipped) = (number("passed"), number("failed"), number("ignored"));
            self.tests += Counts { passed, failed, skipped, ..Counts::default() };
        } else if let Some((_, numbers)) = line.split_once(": cases: ") {
            let mut numbers = numbers.split(", ").map(|part| part.rsplit(' ').next()?.trim().parse::<u64>().ok());
            let mut next = || numbers.next().flatten();
            if let (Some(cases), Some(failed), Some(skipped)) = (next(), next(), next()) {
                self.cases += Counts { passed: cases.saturating_sub(failed), failed, skipped, ..Counts::default() };
                self.tables += Counts::single(failed == 0);
            }
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = self.cases;
        counts += Counts {
            passed: self.tests.passed.saturating_sub(self.tables.passed),
            failed: self.tests.failed.saturating_sub(self.tables.failed),
            skipped: self.tests.skipped,
            ..Counts::default()
        };
        counts
    }
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

    fn check(lines: &str, passed: u64, failed: u64, skipped: u64) {
        let mut report = Report::default();
        lines.lines().for_each(|line| report.add(line));
        assert_eq!(report.counts(), Counts { passed, failed, skipped, ..Counts::default() }, "{lines}");
    }

    #[test]
    fn reports_are_read_and_other_lines_are_not() {
        check("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.02s", 3, 0, 1);
        check("test result: \x1b[31mFAILED\x1b[0m. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", 3, 2, 0);
        check("running 3 tests, which passed, failed, skipped\ntest a ... ok", 0, 0, 0);
    }

    #[test]
    fn a_table_counts_by_its_cases_and_not_once_more_as_a_test() {
        check(
            "session: cases: 17, failed: 0, skipped: 2\ntest b ... limits: cases: 5, failed: 1, skipped: 0\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            17 + 4 + 1,
            1,
            2,
        );
    }

    #[test]
    fn a_process_left_behind_does_not_hold_the_run_up() {
        let ran = run(Command::new("sh").args(["-c", "sleep 20 & echo 'x: cases: 2, failed: 0, skipped: 0'"]));
        assert_eq!(ran.expect("sh runs").counts.passed, 2);
    }
}
