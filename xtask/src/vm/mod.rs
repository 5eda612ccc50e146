//! `cargo xtask vm`: the cases that need a real kernel, a real distribution and real ports.
//!
//! Boots one guest ([`guest::Guest`]) with the original agent and ours side by side and runs all cases
//! ([`cases::ALL`]) in it one after the other. A case that leaves the guest unusable for the next one is none of them;
//! a new case is a function in a file of `cases/` and a line in the list there. Other commands boot a guest of their
//! own with [`guest::Guest::boot`].
//!
//! The image is built from Debian packages by [`image`] and kept outside the repository. Where that cannot be done,
//! all cases are skipped, which is printed and counted.

mod apt;
mod cases;
pub mod conversation;
mod difference;
mod disk;
mod frozen;
pub mod guest;
mod image;
pub mod machine;
mod progress;
mod stage;
pub mod stall;

use crate::{build, style};
use anyhow::{Context as _, Result, bail};
use cases::Case;
use guest::{Boot, Guest};
use std::fmt;
use std::io::Write as _;
use std::time::Instant;

/// Why something could not be tested here; an error that is no failure.
#[derive(Debug)]
pub struct Skipped(pub String);

impl Skipped {
    fn because(reason: &str) -> anyhow::Error {
        anyhow::Error::new(Self(reason.into()))
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// How the cases ended.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of cases that passed.
    pub passed: usize,
    /// Names of the cases that failed.
    pub failed: Vec<String>,
    /// Names of the cases that could not run, and why.
    pub skipped: Vec<(String, String)>,
}

/// What the command line asks for.
#[derive(Debug, Default)]
struct Options {
    names: Vec<String>,
    list: bool,
    shell: bool,
    keep: bool,
}

/// The command: prints each case and the summary; an error when a case failed.
pub fn main(arguments: &[String]) -> Result<()> {
    let report = run(arguments)?;
    if !report.failed.is_empty() {
        bail!("failed in the virtual machine: {}", report.failed.join(", "));
    }
    Ok(())
}

/// Like [`main`], for callers that count.
pub fn run(arguments: &[String]) -> Result<Report> {
    let options = parse(arguments)?;
    let wanted =
        |case: &&Case| options.names.is_empty() || options.names.iter().any(|name| case.name.contains(name.as_str()));
    let chosen: Vec<&Case> = cases::ALL.iter().flat_map(|family| family.iter()).filter(wanted).collect();
    if options.list {
        for case in chosen {
            println!("{}", case.name);
        }
        return Ok(Report::default());
    }
    if chosen.is_empty() {
        bail!("no case has {} in its name; `cargo xtask vm --list` shows all", options.names.join(" or "));
    }
    let boot = Boot { our_agent: build::agent_binary()?, hardware: machine::Hardware::default() };
    let mut guest = match Guest::boot(&boot) {
        Ok(guest) => guest,
        Err(error) => return skip_all(&chosen, error),
    };
    let mut report = Report::default();
    if !options.shell {
        for case in chosen {
            run_case(case, &mut guest, &mut report);
        }
        let (passed, failed, skipped) = (report.passed, report.failed.len(), report.skipped.len());
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    if options.shell || options.keep {
        wait_for_user(&mut guest)?;
    }
    Ok(report)
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options::default();
    for argument in arguments {
        match argument.as_str() {
            "--list" => options.list = true,
            "--shell" => options.shell = true,
            "--keep" => options.keep = true,
            option if option.starts_with('-') => {
                bail!("cargo xtask vm knows no {option}; it takes names of cases, --list, --shell and --keep")
            }
            name => options.names.push(name.into()),
        }
    }
    Ok(options)
}

/// A host that cannot run the guest skips its cases; any other error stays one.
fn skip_all(chosen: &[&Case], error: anyhow::Error) -> Result<Report> {
    let Skipped(reason) = error.downcast::<Skipped>()?;
    println!("{}: virtual machine: {reason}", style::warning("skipped"));
    println!("0 passed, 0 failed, {} skipped", chosen.len());
    let skipped = chosen.iter().map(|case| (case.name.into(), reason.clone())).collect();
    Ok(Report { skipped, ..Report::default() })
}

fn run_case(case: &Case, guest: &mut Guest, report: &mut Report) {
    print!("{} ... ", case.name);
    // Only matters to those who watch.
    let _ = std::io::stdout().flush();
    let started = Instant::now();
    let result = (case.run)(guest);
    let cleared = guest.clear_away();
    let result = result.and_then(|()| cleared.context("clearing away"));
    let time = style::duration(started.elapsed());
    match result {
        Ok(()) => {
            report.passed += 1;
            println!("{} ({time})", style::good("ok"));
        }
        Err(error) => match error.downcast::<Skipped>() {
            Ok(Skipped(reason)) => {
                println!("{}: {reason}", style::warning("skipped"));
                report.skipped.push((case.name.into(), reason));
            }
            Err(error) => {
                println!("{} ({time})\n{error:#}\n{}", style::bad("FAILED"), guest.evidence());
                report.failed.push(case.name.into());
                guest.repair();
            }
        },
    }
    for note in guest.take_notes() {
        println!("    {}", style::faint(&note));
    }
}

/// Leaves the guest to the user until Enter; without a terminal, until it or this program is ended.
fn wait_for_user(guest: &mut Guest) -> Result<()> {
    let folder = guest.folder().display();
    println!(
        "the guest is in {folder}\n\
         console, logged in as root:  socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{folder}/console   (leave by Ctrl-])\n\
         our agent:                   socat - UNIX-CONNECT:{folder}/ours\n\
         the original:                socat - UNIX-CONNECT:{folder}/original\n\
         second serial port:          socat - UNIX-CONNECT:{folder}/serial\n\
                  Enter ends it."
    );
    let mut line = String::new();
    if std::io::stdin().read_line(&mut line)? == 0 {
        while !guest.machine().has_ended()? {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::cases;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_cases_have_the_same_name() {
        let names: Vec<&str> = cases::ALL.iter().flat_map(|family| family.iter()).map(|case| case.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn an_unknown_option_is_an_error_that_names_the_known_ones() {
        let error = super::run(&["--shel".to_owned()]).expect_err("there is no such option").to_string();
        assert!(error.contains("--shel;") && error.contains("--shell"), "{error}");
    }
}
