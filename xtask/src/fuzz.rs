//! `cargo xtask fuzz`: random input for as long as you like. The targets and their corpus stand in `fuzz/`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::launch::Agent;
use crate::{build, original, packages, style};

const TARGETS: &[&str] = &["decoder", "request", "differential"];
/// The compiler that has the sanitizers and the coverage that libFuzzer follows.
const TOOLCHAIN: &str = "+nightly";

/// Whatever the fuzzer makes up, it can do no harm with these.
const HARMLESS: &str = "--allow-rpcs=guest-ping,guest-sync,guest-sync-delimited,guest-info";

struct Options {
    seconds: u64,
    targets: Vec<&'static str>,
}

fn options(arguments: &[String]) -> Result<Options> {
    use lexopt::prelude::*;
    let mut options = Options { seconds: 60, targets: Vec::new() };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seconds") => options.seconds = parser.value()?.parse()?,
            Value(name) => {
                let known = TARGETS.iter().find(|target| name == **target);
                let known = known
                    .with_context(|| format!("no target {}; there are: {}", name.display(), TARGETS.join(", ")))?;
                options.targets.push(known);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.to_vec();
    }
    Ok(options)
}

/// `cargo xtask fuzz`: the time is divided among the targets.
pub fn main(arguments: &[String]) -> Result<()> {
    let options = options(arguments)?;
    require_cargo_fuzz()?;
    let seconds = (options.seconds / options.targets.len() as u64).max(1);
    for target in options.targets {
        println!("\n{}", style::heading(&format!("== {target}, {seconds} s")));
        if target != "differential" {
            fuzz(&mut Command::new("cargo"), target, seconds)?;
            continue;
        }
        let original = match original::original_agent() {
            Ok(path) => Agent::start(&path, &[HARMLESS])?,
            Err(reason) => {
                println!("{}: {reason:#}", style::warning("skipped"));
                continue;
            }
        };
        let ours = Agent::start(&build::agent_binary()?, &[HARMLESS])?;
        let mut command = Command::new("cargo");
        command.env("FUZZ_ORIGINAL", original.socket()).env("FUZZ_OURS", ours.socket());
        fuzz(&mut command, target, seconds)?;
    }
    Ok(())
}

fn fuzz(command: &mut Command, target: &str, seconds: u64) -> Result<()> {
    // New inputs go to a folder that is not kept; what is worth keeping is added to the corpus by hand, small.
    let found = build::workspace().join("fuzz/target/found").join(target);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
    let kept = PathBuf::from("fuzz/corpus").join(target);
    command
        .current_dir(build::workspace())
        // The toolchain that runs us would win over the one asked for.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .args([TOOLCHAIN, "fuzz", "run", target])
        .args([found, kept])
        .args(["--", &format!("-max_total_time={seconds}"), "-max_len=65536", "-timeout=20", "-rss_limit_mb=1024"])
        .arg("-dict=fuzz/dictionary")
        .arg("-print_final_stats=1");
    let mut process = command.stderr(Stdio::piped()).spawn().context("cannot start cargo fuzz")?;
    let output = process.stderr.take().context("cargo fuzz has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cannot read the output of cargo fuzz")?).into_owned();
        if is_news(&line) {
            println!("{line}");
        }
    }
    let status = process.wait().context("cannot wait for cargo fuzz")?;
    if !status.success() {
        bail!("{target}: cargo fuzz ended with {status}; an input that it found is in fuzz/artifacts/{target}");
    }
    Ok(())
}

/// libFuzzer tells every new input and in the end every word it learned; what remains is worth reading.
fn is_news(line: &str) -> bool {
    let is_an_input = line.starts_with('#') && !line.contains("pulse");
    let is_a_word = line.starts_with('"') || line.contains("# Uses:") || line.contains("NEW_FUNC");
    !is_an_input && !is_a_word
}

fn require_cargo_fuzz() -> Result<()> {
    let nightly = Command::new("rustc").arg(TOOLCHAIN).arg("-V").env_remove("RUSTUP_TOOLCHAIN").output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        bail!("fuzzing needs the nightly compiler: rustup toolchain install nightly --profile minimal");
    }
    if Command::new("cargo").args(["fuzz", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    if !packages::is_installed("c++") {
        packages::install(&["g++"], None)?;
    }
    println!("installing cargo-fuzz");
    let status = build::cargo().args(["install", "--locked", "cargo-fuzz"]).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo-fuzz does not install: cargo ended with {status}");
    }
    Ok(())
}
