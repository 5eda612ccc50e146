//! What each level does.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::run::{self, Ran};
use super::{Counts, Outcome, links, texts};
use crate::build::{agent_binary, cargo, workspace};
use crate::original::original_agent;

/// The crate whose tests need an agent to be named.
const SUITE: &str = "qga-compliance";
/// The crates of the host's side: their tests talk to an agent too.
const HOST_SIDE: [&str; 2] = ["qga-client", "qga-cli"];

pub fn format() -> Outcome {
    tool("rustfmt", "fmt", &["--all", "--check"])
}

pub fn lints() -> Outcome {
    let clippy = |scope: &[&str]| {
        let arguments = [scope, &["--all-targets", "--quiet", "--", "--deny", "warnings"]].concat();
        tool("clippy", "clippy", &arguments)
    };
    let mut counts = match clippy(&["--workspace"]) {
        Outcome::Ran(counts) => counts,
        other => return other,
    };
    // A workspace of its own, so nothing else would tell that a target does not compile any more.
    let more: [(&str, Outcome); 4] = [
        ("the fuzz targets", fuzz_targets(clippy)),
        // Nothing else in the workspace wants it.
        ("the client's feature tokio", clippy(&["-p", "qga-client", "--features", "tokio"])),
        ("the scripts that are shipped", texts::shell_scripts()),
        ("the spelling", texts::spelling()),
    ];
    for (what, outcome) in more {
        match outcome {
            Outcome::Ran(others) => counts += others,
            Outcome::Skipped(reason) => {
                println!("{what}: not looked at: {reason}");
                counts.skipped += 1;
            }
            Outcome::Broken(reason) => return Outcome::Broken(format!("{what}: {reason}")),
        }
    }
    Outcome::Ran(counts)
}

/// The fuzz targets: the fuzzer that they are linked with is C++.
fn fuzz_targets(clippy: impl Fn(&[&str]) -> Outcome) -> Outcome {
    if !Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Outcome::Skipped("they need a C++ compiler (Debian: apt install g++)".to_owned());
    }
    clippy(&["--manifest-path", "fuzz/Cargo.toml"])
}

pub fn unit() -> Outcome {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    for elsewhere in HOST_SIDE.into_iter().chain([SUITE]) {
        command.args(["--exclude", elsewhere]);
    }
    tests(&mut command)
}

pub fn host_original() -> Outcome {
    match original_agent() {
        Ok(path) => tests(host_side().env("AGENT_UNDER_TEST", path).env("AGENT_KIND", "original")),
        Err(reason) => Outcome::Skipped(format!("{reason:#}")),
    }
}

pub fn host_ours() -> Outcome {
    with_ours(|path| tests(host_side().env("AGENT_UNDER_TEST", path).env("AGENT_KIND", "ours")))
}

pub fn original() -> Outcome {
    match original_agent() {
        Ok(path) => tests(suite().env("AGENT_UNDER_TEST", path).env("AGENT_KIND", "original")),
        Err(reason) => Outcome::Skipped(format!("{reason:#}")),
    }
}

pub fn ours() -> Outcome {
    with_ours(|path| tests(suite().env("AGENT_UNDER_TEST", path).env("AGENT_KIND", "ours").env("QGA_OURS", path)))
}

pub fn differential() -> Outcome {
    match original_agent() {
        Ok(peer) => with_ours(|path| {
            let mut command = suite();
            command.env("AGENT_UNDER_TEST", path).env("AGENT_KIND", "ours").env("QGA_OURS", path);
            tests(command.env("AGENT_PEER", peer))
        }),
        Err(reason) => Outcome::Skipped(format!("{reason:#}")),
    }
}

pub fn vm(deadline: Instant) -> Outcome {
    match crate::vm::run(&[], Some(deadline)) {
        Ok(report) => match report.skipped.first() {
            Some((_, reason)) if report.passed == 0 && report.failed.is_empty() && report.not_run.is_empty() => {
                Outcome::Skipped(reason.clone())
            }
            _ => Outcome::Ran(Counts {
                passed: report.passed as u64,
                failed: report.failed.len() as u64,
                skipped: report.skipped.len() as u64,
                unstable: report.unstable.len() as u64,
                not_run: report.not_run.len() as u64,
            }),
        },
        Err(error) => Outcome::Broken(format!("{error:#}")),
    }
}

pub fn docs() -> Outcome {
    let mut command = cargo();
    command.env("RUSTDOCFLAGS", "--deny warnings").args(["doc", "--workspace", "--no-deps", "--quiet"]);
    let built = match run::run(&mut command) {
        Ok(ran) => Counts::single(ran.success),
        Err(error) => return Outcome::Broken(format!("{error:#}")),
    };
    match links::check(workspace()) {
        Ok((checked, broken)) => {
            for problem in &broken {
                println!("{problem}");
            }
            println!("{checked} links checked, {} lead nowhere", broken.len());
            let mut counts = built;
            counts += Counts::single(broken.is_empty());
            Outcome::Ran(counts)
        }
        Err(error) => Outcome::Broken(format!("{error:#}")),
    }
}

fn suite() -> Command {
    let mut command = cargo();
    // Names that a developer has set for one suite must not lead this one astray.
    command.env_remove("AGENT_PEER").args(["test", "--package", SUITE, "--no-fail-fast", "--", "--nocapture"]);
    command
}

fn host_side() -> Command {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast", "--features", "qga-client/tokio"]);
    for package in HOST_SIDE {
        command.args(["--package", package]);
    }
    command
}

fn with_ours(run: impl FnOnce(&Path) -> Outcome) -> Outcome {
    match agent_binary() {
        Ok(path) => run(&path),
        Err(error) => Outcome::Broken(format!("{error:#}")),
    }
}

/// A part of the toolchain that may not be installed.
fn tool(component: &str, subcommand: &str, arguments: &[&str]) -> Outcome {
    if !cargo().args([subcommand, "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Outcome::Skipped(format!("{component} is not installed: rustup component add {component}"));
    }
    match run::run(cargo().arg(subcommand).args(arguments)) {
        Ok(ran) => Outcome::Ran(Counts::single(ran.success)),
        Err(error) => Outcome::Broken(format!("{error:#}")),
    }
}

fn tests(command: &mut Command) -> Outcome {
    judge(run::run(command))
}

fn judge(ran: Result<Ran>) -> Outcome {
    match ran {
        Err(error) => Outcome::Broken(format!("{error:#}")),
        Ok(Ran { success: false, counts: Counts { failed: 0, .. } }) => {
            Outcome::Broken("it ended with an error before it could count its failures".to_owned())
        }
        // Nothing ran and nothing says why: that proves nothing.
        Ok(Ran { counts: Counts { passed: 0, failed: 0, .. }, .. }) => Outcome::Broken("it ran no test".to_owned()),
        Ok(ran) => Outcome::Ran(ran.counts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(success: bool, passed: u64, failed: u64, expected: &str) {
        let ran = Ran { success, counts: Counts { passed, failed, ..Counts::default() } };
        assert_eq!(format!("{:?}", judge(Ok(ran))).split(['(', ' ']).next(), Some(expected));
    }

    #[test]
    fn a_level_passes_only_when_something_was_proved() {
        check(true, 3, 0, "Ran");
        check(false, 3, 1, "Ran");
        check(false, 3, 0, "Broken");
        check(true, 0, 0, "Broken");
    }
}
