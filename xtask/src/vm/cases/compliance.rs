//! The compliance suite through the ports: the same bytes as over a unix socket, by a real device.

use super::Case;
use crate::build;
use crate::vm::guest::Guest;
use crate::vm::progress;
use anyhow::{Context as _, Result, ensure};
use std::fs::File;
use std::path::Path;

pub const CASES: &[Case] = &[
    Case { name: "compliance_of_the_original_through_its_port", run: original },
    Case { name: "compliance_of_ours_through_its_port", run: ours },
];

fn original(guest: &mut Guest) -> Result<()> {
    guest.talk_to_original()?;
    suite(guest, &guest.original_agent(), "original")
}

fn ours(guest: &mut Guest) -> Result<()> {
    guest.talk_to_ours()?;
    suite(guest, &guest.our_agent(), "ours")
}

fn suite(guest: &mut Guest, socket: &Path, kind: &str) -> Result<()> {
    let log = guest.folder().join(format!("compliance-{kind}.log"));
    let output = File::create(&log)?;
    let status = build::cargo()
        .args(["test", "--package", "qga-compliance", "--no-fail-fast"])
        .env("AGENT_UNDER_TEST", format!("socket:{}", socket.display()))
        .env("AGENT_KIND", kind)
        .env_remove("AGENT_PEER")
        // The port has room for one client at a time.
        .env("RUST_TEST_THREADS", "1")
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let count = |name: &str| -> u64 {
        let numbers = text
            .split(name)
            .skip(1)
            .filter_map(|rest| rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok());
        numbers.sum()
    };
    let (cases, failed, skipped) = (count(": cases:"), count(", failed:"), count(", skipped:"));
    guest.note(format!("{cases} cases, {failed} failed, {skipped} that need an agent of their own"));
    ensure!(status.success(), "{}", failures(&text).unwrap_or_else(|| progress::tail(&log, 60)));
    ensure!(cases > 0, "the suite ran no case:\n{}", progress::tail(&log, 20));
    Ok(())
}

/// What the suite says of its failed cases, without the rest of its output.
fn failures(text: &str) -> Option<String> {
    const LINES_OF_ONE: usize = 6;
    let lines: Vec<&str> = text.lines().collect();
    let begins = (0..lines.len()).filter(|&number| lines[number].starts_with("FAILED: "));
    let found: Vec<String> = begins
        .map(|number| lines[number..].iter().take(LINES_OF_ONE).take_while(|line| !line.is_empty()).copied().collect())
        .map(|lines: Vec<&str>| lines.join("\n"))
        .collect();
    (!found.is_empty()).then(|| found.join("\n"))
}
