//! `cargo xtask fuzz`: random input for as long as you like. The targets and their corpus stand in `fuzz/`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::launch::Agent;
use crate::{build, original, packages, style};

/// A target, what it feeds, and the words that it may combine.
struct Target {
    name: &'static str,
    feeds: &'static str,
    dictionary: &'static str,
}

const fn target(name: &'static str, feeds: &'static str, dictionary: &'static str) -> Target {
    Target { name, feeds, dictionary }
}

/// Words of the protocol.
const PROTOCOL: &str = "fuzz/dictionary";
/// Words of the system's files.
const SYSTEM: &str = "fuzz/dictionary-system";

const TARGETS: &[Target] = &[
    target("decoder", "the decoder of messages", PROTOCOL),
    target("request", "the arguments of every command", PROTOCOL),
    target("differential", "the original and ours, which must agree", PROTOCOL),
    target("mounts", "/proc/self/mountinfo", SYSTEM),
    target("devices", "sysfs and udev's records of block devices, /proc/diskstats", SYSTEM),
    target("processors", "/proc/stat, processors and memory blocks in sysfs", SYSTEM),
    target("identity", "os-release, the host name, utmp, logind's sessions", SYSTEM),
    target("zones", "zone files and values of TZ", SYSTEM),
    target("netlink", "answers of the kernel's routing socket, /proc/net/ipv6_route", SYSTEM),
    target("smart", "the health page of NVM Express disks", SYSTEM),
    target("accounts", "passwd and authorized_keys", SYSTEM),
    target("settings", "the configuration file and the state file", SYSTEM),
];
/// The compiler that has the sanitizers and the coverage that libFuzzer follows.
const TOOLCHAIN: &str = "+nightly";

/// Whatever the fuzzer makes up, it can do no harm with these.
const HARMLESS: &str = "--allow-rpcs=guest-ping,guest-sync,guest-sync-delimited,guest-info";

struct Options {
    seconds: u64,
    targets: Vec<&'static Target>,
    list: bool,
}

fn options(arguments: &[String]) -> Result<Options> {
    use lexopt::prelude::*;
    let mut options = Options { seconds: 60, targets: Vec::new(), list: false };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seconds") => options.seconds = parser.value()?.parse()?,
            Long("list") => options.list = true,
            Value(name) => {
                let known = TARGETS.iter().find(|target| name == target.name).with_context(|| {
                    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                    format!("no target {}; there are: {}", name.display(), names.join(", "))
                })?;
                options.targets.push(known);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if options.targets.is_empty() {
        options.targets = TARGETS.iter().collect();
    }
    Ok(options)
}

/// `cargo xtask fuzz`: each target has the same time.
pub fn main(arguments: &[String]) -> Result<()> {
    let options = options(arguments)?;
    if options.list {
        for target in &options.targets {
            println!("{:<13} {}", target.name, target.feeds);
        }
        return Ok(());
    }
    require_cargo_fuzz()?;
    let seconds = options.seconds.max(1);
    for target in options.targets {
        println!("\n{}", style::heading(&format!("== {}: {}, {seconds} s", target.name, target.feeds)));
        if target.name != "differential" {
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

fn fuzz(command: &mut Command, target: &Target, seconds: u64) -> Result<()> {
    let Target { name, dictionary, .. } = target;
    // New inputs go to a folder that is not kept; what is worth keeping is added to the corpus by hand, small.
    let found = build::workspace().join("fuzz/target/found").join(name);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
    let kept = PathBuf::from("fuzz/corpus").join(name);
    command
        .current_dir(build::workspace())
        // The toolchain that runs us would win over the one asked for.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .args([TOOLCHAIN, "fuzz", "run", name])
        .args([found, kept])
        .args(["--", &format!("-max_total_time={seconds}"), "-max_len=65536", "-timeout=20", "-rss_limit_mb=1024"])
        .arg(format!("-dict={dictionary}"))
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
        bail!("{name}: cargo fuzz ended with {status}; an input that it found is in fuzz/artifacts/{name}");
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

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use crate::build;

    #[test]
    fn every_target_is_run_and_has_something_to_begin_with() {
        let manifest = std::fs::read_to_string(build::workspace().join("fuzz/Cargo.toml")).expect("the targets");
        let built: Vec<&str> =
            manifest.split("path = \"targets/").skip(1).filter_map(|rest| rest.split('.').next()).collect();
        let run: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(built, run);
        for target in TARGETS {
            let corpus = build::workspace().join("fuzz/corpus").join(target.name);
            assert!(std::fs::read_dir(&corpus).is_ok_and(|mut inputs| inputs.next().is_some()), "{}", corpus.display());
            assert!(build::workspace().join(target.dictionary).is_file(), "{}", target.dictionary);
        }
    }
}
