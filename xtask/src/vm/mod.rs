//! `cargo xtask vm`: the cases that need a real kernel, a real distribution and real ports.
//!
//! Runs guests ([`guest::Guest`]), all from one [`snapshot`], each with the original agent and ours side by side, and runs all cases
//! ([`cases::ALL`]) in them, see [`mod@run`]. A case leaves the guest usable for the next one; a new case is a function in a
//! file of `cases/` and a line in the list there. libvirt boots a guest of its own ([`libvirt::Domain`]) for
//! [`cases::OF_LIBVIRT`]. Other commands boot a guest of their own with [`guest::Guest::boot`].
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
mod pace;
mod progress;
mod run;
mod snapshot;
mod stage;
pub mod stall;

use crate::build;
use anyhow::{Context as _, Result, bail};
use cases::Case;
use guest::Guest;
use libvirt::Domain;
use run::{Place as _, Report, Work};
use std::fmt;
use std::fs;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;
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

/// The file in the workspace that has the names of [`left_over`].
const LEFT_OVER: &str = "target/vm-not-run";

/// What the command line asks for.
#[derive(Debug, Default)]
struct Options {
    names: Vec<String>,
    list: bool,
    shell: bool,
    keep: bool,
    guests: Option<usize>,
}

/// The command: prints each case and the summary; an error when a case failed.
pub fn main(arguments: &[String]) -> Result<()> {
    let report = run(arguments, None)?;
    if !report.failed.is_empty() {
        bail!("failed in the virtual machine: {}", report.failed.join(", "));
    }
    Ok(())
}

/// Like [`main`], for callers that count; no case is begun after the deadline.
pub fn run(arguments: &[String], deadline: Option<Instant>) -> Result<Report> {
    let options = parse(arguments)?;
    let is_wanted = |name: &str| options.names.is_empty() || options.names.iter().any(|part| name.contains(part));
    let mut in_guest: Vec<&Case> =
        cases::ALL.iter().flat_map(|family| family.iter()).filter(|case| is_wanted(case.name)).collect();
    let mut in_domain: Vec<&Case<Domain>> = cases::OF_LIBVIRT.iter().filter(|case| is_wanted(case.name)).collect();
    if options.list {
        for name in in_guest.iter().map(|case| case.name).chain(in_domain.iter().map(|case| case.name)) {
            println!("{name}");
        }
        return Ok(Report::default());
    }
    let left_over = left_over();
    let was_left_over = |name: &str| left_over.lines().any(|line| line == name);
    in_guest.sort_by_key(|case| !was_left_over(case.name));
    in_domain.sort_by_key(|case| !was_left_over(case.name));
    let our_agent = build::agent_binary()?;
    if options.shell {
        wait_for_user(&mut Guest::start(&our_agent)?)?;
        return Ok(Report::default());
    }
    let count = in_guest.len() + in_domain.len();
    if count == 0 {
        bail!("no case has {} in its name; `cargo xtask vm --list` shows all", options.names.join(" or "));
    }
    let guests = if options.keep { 1 } else { options.guests.unwrap_or_else(guests_at_once).min(count) };
    let (started, report) = (Instant::now(), Mutex::default());
    let in_domain = Work::new(in_domain, &our_agent, deadline);
    let in_guest = Work::new(in_guest, &our_agent, deadline);
    let last = thread::scope(|scope| {
        // The cases of the domain, where there is but one, are somebody's first.
        let serve = || {
            drop(in_domain.run(&report));
            in_guest.run(&report)
        };
        let others: Vec<_> = (1..guests).map(|_| scope.spawn(|| drop(in_guest.run(&report)))).collect();
        let last = serve();
        drop(others);
        last
    });
    let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.print(started.elapsed());
    println!("{}", snapshot::summary());
    if options.names.is_empty() {
        note_left_over(&report.not_run);
    }
    if options.keep {
        wait_for_user(&mut last.map_or_else(|| Guest::start(&our_agent), Ok)?)?;
    }
    Ok(report)
}

/// Installs and builds what is missing, so that nobody has to wait for it later. Whoever needs it says why it is not there.
pub fn prepare() {
    let _ = image::Image::prepare();
    let _ = libvirt::prepare_host();
}

/// The names of the cases that the last whole run had no time for: they are the first of the next one.
fn left_over() -> String {
    fs::read_to_string(build::workspace().join(LEFT_OVER)).unwrap_or_default()
}

fn note_left_over(names: &[String]) {
    let noted = fs::write(build::workspace().join(LEFT_OVER), names.join("\n"));
    if let Err(error) = noted {
        println!("vm: the next run cannot begin with what this one left over: {LEFT_OVER}: {error}");
    }
}

/// A guest waits more than it computes.
fn guests_at_once() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get) + 1
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--guests" => {
                let count = arguments.next().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
                options.guests = Some(count.context("--guests takes how many guests run at once")?);
            }
            "--list" => options.list = true,
            "--shell" => options.shell = true,
            "--keep" => options.keep = true,
            option if option.starts_with('-') => {
                bail!("cargo xtask vm knows no {option}; it takes names of cases, --guests, --list, --shell and --keep")
            }
            name => options.names.push(name.into()),
        }
    }
    Ok(options)
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
            thread::sleep(std::time::Duration::from_millis(500));
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
        let error = super::run(&["--shel".to_owned()], None).expect_err("there is no such option").to_string();
        assert!(error.contains("--shel;") && error.contains("--shell"), "{error}");
    }
}
