//! `cargo xtask vm`: the cases that need a real kernel, a real distribution and real ports.
//!
//! Boots one guest ([`guest::Guest`]) with the original agent and ours side by side and runs all cases
//! ([`cases::ALL`]) in it one after the other. A case that leaves the guest unusable for the next one is none of them;
//! a new case is a function in a file of `cases/` and a line in the list there. Then libvirt boots a guest of its own
//! ([`libvirt::Domain`]) for [`cases::OF_LIBVIRT`]. Other commands boot a guest of their own with
//! [`guest::Guest::boot`].
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
mod libvirt;
pub mod machine;
mod progress;
mod stage;
pub mod stall;

use crate::{build, style};
use anyhow::{Context as _, Result, bail};
use cases::Case;
use guest::{Boot, Guest};
use libvirt::Domain;
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

/// Where cases run: what the runner wants of it between them.
trait Place {
    /// Undoes what the case left.
    fn clear_away(&mut self) -> Result<()>;
    /// What can be told after a failure.
    fn evidence(&mut self) -> String;
    /// Makes the next case possible after a failure.
    fn repair(&mut self);
    /// What the case had to say.
    fn take_notes(&mut self) -> Vec<String>;
}

/// Both kinds of places have these by themselves; what cases see of a place is more.
macro_rules! place {
    ($($kind:ty),+) => {$(
        impl Place for $kind {
            fn clear_away(&mut self) -> Result<()> {
                Self::clear_away(self)
            }
            fn evidence(&mut self) -> String {
                Self::evidence(self)
            }
            fn repair(&mut self) {
                Self::repair(self);
            }
            fn take_notes(&mut self) -> Vec<String> {
                Self::take_notes(self)
            }
        }
    )+};
}
place!(Guest, Domain);

/// Like [`main`], for callers that count.
pub fn run(arguments: &[String]) -> Result<Report> {
    let options = parse(arguments)?;
    let is_wanted = |name: &str| options.names.is_empty() || options.names.iter().any(|part| name.contains(part));
    let in_guest: Vec<&Case> =
        cases::ALL.iter().flat_map(|family| family.iter()).filter(|case| is_wanted(case.name)).collect();
    let in_domain: Vec<&Case<Domain>> = cases::OF_LIBVIRT.iter().filter(|case| is_wanted(case.name)).collect();
    if options.list {
        for name in in_guest.iter().map(|case| case.name).chain(in_domain.iter().map(|case| case.name)) {
            println!("{name}");
        }
        return Ok(Report::default());
    }
    if in_guest.is_empty() && in_domain.is_empty() {
        bail!("no case has {} in its name; `cargo xtask vm --list` shows all", options.names.join(" or "));
    }
    let our_agent = build::agent_binary()?;
    let mut report = Report::default();
    if !in_guest.is_empty() || options.shell || options.keep {
        let boot = Boot { our_agent: our_agent.clone(), hardware: machine::Hardware::default() };
        match Guest::boot(&boot) {
            Ok(mut guest) => {
                if !options.shell {
                    run_cases(&in_guest, &mut guest, &mut report);
                }
                if options.shell || options.keep {
                    wait_for_user(&mut guest)?;
                }
            }
            Err(error) => skip_all(&in_guest, error, &mut report)?,
        }
    }
    if !in_domain.is_empty() && !options.shell {
        match Domain::start(&our_agent) {
            Ok(mut domain) => run_cases(&in_domain, &mut domain, &mut report),
            Err(error) => skip_all(&in_domain, error, &mut report)?,
        }
    }
    if !options.shell {
        let (passed, failed, skipped) = (report.passed, report.failed.len(), report.skipped.len());
        println!("{passed} passed, {failed} failed, {skipped} skipped");
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

/// A host that cannot run a guest skips its cases; any other error stays one.
fn skip_all<P>(chosen: &[&Case<P>], error: anyhow::Error, report: &mut Report) -> Result<()> {
    let Skipped(reason) = error.downcast::<Skipped>()?;
    println!("{}: cases in a virtual machine ({}): {reason}", style::warning("skipped"), chosen.len());
    report.skipped.extend(chosen.iter().map(|case| (case.name.into(), reason.clone())));
    Ok(())
}

fn run_cases<P: Place>(chosen: &[&Case<P>], place: &mut P, report: &mut Report) {
    for case in chosen {
        run_case(case, place, report);
    }
}

fn run_case<P: Place>(case: &Case<P>, guest: &mut P, report: &mut Report) {
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
        let in_guest = cases::ALL.iter().flat_map(|family| family.iter()).map(|case| case.name);
        let names: Vec<&str> = in_guest.chain(cases::OF_LIBVIRT.iter().map(|case| case.name)).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn an_unknown_option_is_an_error_that_names_the_known_ones() {
        let error = super::run(&["--shel".to_owned()]).expect_err("there is no such option").to_string();
        assert!(error.contains("--shel;") && error.contains("--shell"), "{error}");
    }
}
