//! Counts cases, goes on after a failed one, and tells the numbers even when the test framework keeps output to itself.

use std::io::Write;

/// What went wrong, for a human.
pub type Failure = String;

/// The cases of one table. Call [`Tally::finish`] at the end: it tells the numbers and panics if a case failed.
#[derive(Debug)]
pub struct Tally {
    table: String,
    passed_count: usize,
    skipped_count: usize,
    failures: Vec<(String, Failure)>,
    finished: bool,
}

impl Tally {
    /// A table without cases yet.
    #[must_use]
    pub fn new(table: &str) -> Self {
        Self { table: table.to_owned(), passed_count: 0, skipped_count: 0, failures: Vec::new(), finished: false }
    }

    /// Runs a case and remembers how it ended.
    pub fn case(&mut self, name: &str, run: impl FnOnce() -> Result<(), Failure>) {
        self.record(name, run());
    }

    /// Remembers how a case ended.
    pub fn record(&mut self, name: &str, outcome: Result<(), Failure>) {
        match outcome {
            Ok(()) => self.passed_count += 1,
            Err(failure) => self.failures.push((name.to_owned(), failure)),
        }
    }

    /// Counts a case that cannot run here, and says so.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped_count += 1;
        tell(&format!("skipped: {name}: {reason}"));
    }

    /// Tells how many cases there were and fails the test if one failed.
    ///
    /// # Panics
    /// When a case failed: the text has all of them by name.
    pub fn finish(mut self) {
        self.finished = true;
        let Self { table, passed_count, skipped_count, failures, .. } = &self;
        let failed_count = failures.len();
        let case_count = passed_count + failed_count;
        tell(&format!("{table}: cases: {case_count}, failed: {failed_count}, skipped: {skipped_count}"));
        if failures.is_empty() {
            return;
        }
        let mut report = format!("{failed_count} of {case_count} cases of {table} failed");
        for (name, failure) in failures {
            report.push_str("\n\nFAILED: ");
            report.push_str(name);
            for line in failure.lines() {
                report.push_str("\n    ");
                report.push_str(line);
            }
        }
        panic!("{report}");
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let failures_are_told = self.finished || std::thread::panicking();
        assert!(failures_are_told, "the table {} was not finished: its failures would be lost", self.table);
    }
}

/// Writes past the capture of `libtest`, which swallows the printing macros of tests that pass.
fn tell(line: &str) {
    let mut standard_error = std::io::stderr().lock();
    let _ = writeln!(standard_error, "{line}");
}
