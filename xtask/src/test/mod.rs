//! `cargo xtask test`: every proof of the project, level by level.
//!
//! A level that fails does not stop the next one. A level that cannot run here says why and is counted as skipped. The
//! guest's image is built while the first levels run.
//! Adding a level: its function and its line in [`LEVELS`].

mod levels;
mod links;
mod run;
mod texts;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::style;

/// How many proofs held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    /// Of those that passed, how many did so at a second try only.
    pub unstable: u64,
    /// Not begun, because the time was over: they prove nothing, and are neither skipped nor failed.
    pub not_run: u64,
}

impl Counts {
    /// A level that is one proof.
    fn single(success: bool) -> Self {
        Self { passed: success.into(), failed: (!success).into(), ..Self::default() }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.unstable += other.unstable;
        self.not_run += other.not_run;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)?;
        for (count, what) in
            [(self.unstable, "passed at the second try only"), (self.not_run, "NOT RUN, the time was over")]
        {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// How a level ended.
#[derive(Debug)]
pub enum Outcome {
    /// It ran. Failed if it counts a failure.
    Ran(Counts),
    /// It did not run, and why.
    Skipped(String),
    /// It could not be judged, and why: counts as a failure.
    Broken(String),
}

impl Outcome {
    fn counts(&self) -> Counts {
        match self {
            Self::Ran(counts) => *counts,
            Self::Skipped(_) => Counts { skipped: 1, ..Counts::default() },
            Self::Broken(_) => Counts { failed: 1, ..Counts::default() },
        }
    }
}

/// A level of proof.
struct Level {
    name: &'static str,
    proves: &'static str,
    /// Begins nothing that takes long after the time it is given.
    run: fn(Instant) -> Outcome,
}

/// After this time no further case is begun in a guest: everything is to end within an hour, on a slow machine too.
const TIME_FOR_ALL: Duration = Duration::from_secs(50 * 60);

const LEVELS: &[Level] = &[
    Level { name: "format", proves: "the code is laid out by rustfmt", run: |_| levels::format() },
    Level { name: "lints", proves: "clippy, shellcheck and codespell find nothing", run: |_| levels::lints() },
    Level {
        name: "unit",
        proves: "parsing and choosing are right; the examples in the docs run",
        run: |_| levels::unit(),
    },
    Level { name: "original", proves: "the compliance suite describes the original", run: |_| levels::original() },
    Level { name: "ours", proves: "our agent gives the answers of the suite", run: |_| levels::ours() },
    Level { name: "differential", proves: "both agents, asked at once, answer alike", run: |_| levels::differential() },
    Level {
        name: "host-original",
        proves: "client and command line work with the original",
        run: |_| levels::host_original(),
    },
    Level { name: "host-ours", proves: "client and command line work with our agent", run: |_| levels::host_ours() },
    Level { name: "docs", proves: "the documentation builds and its links lead somewhere", run: |_| levels::docs() },
    // Last, because it takes whatever time is left.
    Level { name: "vm", proves: "a real guest: ports, units, reboots", run: levels::vm },
];

struct Options {
    without_vm: bool,
    only: Vec<String>,
}

fn options(arguments: &[String]) -> Result<Options> {
    use lexopt::prelude::*;
    let mut options = Options { without_vm: false, only: Vec::new() };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("no-vm") => options.without_vm = true,
            Long("level") => {
                let name = parser.value()?.string()?;
                if !LEVELS.iter().any(|level| level.name == name) {
                    let names: Vec<&str> = LEVELS.iter().map(|level| level.name).collect();
                    bail!("there is no level {name:?}; there are: {}", names.join(", "));
                }
                options.only.push(name);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// `cargo xtask test`.
pub fn main(arguments: &[String]) -> Result<()> {
    let options = options(arguments)?;
    let is_wanted = |level: &&Level| options.only.is_empty() || options.only.iter().any(|name| name == level.name);
    let deadline = Instant::now() + TIME_FOR_ALL;
    if !options.without_vm && LEVELS.iter().filter(is_wanted).any(|level| level.name == "vm") {
        std::thread::spawn(crate::vm::prepare);
    }
    let mut results = Vec::new();
    for level in LEVELS.iter().filter(is_wanted) {
        println!("\n{}", style::heading(&format!("== {}: {}", level.name, level.proves)));
        let started = Instant::now();
        let outcome = if level.name == "vm" && options.without_vm {
            Outcome::Skipped("left out by --no-vm".to_owned())
        } else {
            (level.run)(deadline)
        };
        let duration = started.elapsed();
        println!("{}: {} in {}", level.name, verdict(&outcome), style::duration(duration));
        results.push((level.name, outcome, duration));
    }
    println!("\n{}", table(&results));
    let mut total = Counts::default();
    for (_, outcome, _) in &results {
        total += outcome.counts();
    }
    println!("{total}");
    if total.failed > 0 {
        // The table has said what failed.
        std::process::exit(1);
    }
    Ok(())
}

/// `cargo xtask docs-check`.
pub fn check_links(_arguments: &[String]) -> Result<()> {
    let (checked, broken) = links::check(crate::build::workspace())?;
    for problem in &broken {
        println!("{problem}");
    }
    if !broken.is_empty() {
        bail!("{} of {checked} links lead nowhere", broken.len());
    }
    println!("{checked} links lead somewhere");
    Ok(())
}

fn verdict(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Ran(counts) if counts.failed > 0 => style::bad("FAILED"),
        Outcome::Ran(_) => style::good("passed"),
        Outcome::Skipped(_) => style::warning("skipped"),
        Outcome::Broken(_) => style::bad("FAILED"),
    }
}

fn table(results: &[(&str, Outcome, Duration)]) -> String {
    use std::fmt::Write as _;
    let mut text = style::bold(&format!("{:<14}{:<10}{:>12}  {}", "level", "result", "duration", "what"));
    text.push('\n');
    for (name, outcome, duration) in results {
        let what = match outcome {
            Outcome::Ran(counts) => counts.to_string(),
            Outcome::Skipped(reason) | Outcome::Broken(reason) => reason.clone(),
        };
        // Padding comes before colouring, whose bytes have no width.
        let plain = match outcome {
            Outcome::Ran(Counts { failed: 0, .. }) => "passed",
            Outcome::Skipped(_) => "skipped",
            _ => "FAILED",
        };
        let result = verdict(outcome).replace(plain, &format!("{plain:<10}"));
        let _ = writeln!(text, "{name:<14}{result}{:>12}  {what}", style::duration(*duration));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_and_the_sum_count_every_kind_of_outcome() {
        let results = [
            ("unit", Outcome::Ran(Counts { passed: 7, skipped: 1, ..Counts::default() }), Duration::from_secs(3)),
            ("vm", Outcome::Skipped("not root".to_owned()), Duration::ZERO),
            ("docs", Outcome::Broken("no cargo".to_owned()), Duration::ZERO),
        ];
        let text = table(&results);
        assert!(text.contains("unit          passed           3.0 s  7 passed, 0 failed, 1 skipped"), "{text}");
        let mut total = Counts::default();
        for (_, outcome, _) in &results {
            total += outcome.counts();
        }
        assert_eq!(total.to_string(), "7 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_level_that_is_none_is_refused_by_name() {
        let error = options(&["--level".to_owned(), "units".to_owned()]).err().expect("no such level");
        assert!(error.to_string().contains("\"units\""));
    }
}
