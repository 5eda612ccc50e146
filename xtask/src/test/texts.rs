//! Texts that no compiler reads: the shell scripts that are shipped, and the spelling of documents and comments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Counts, Outcome, run};
use crate::build::workspace;
use crate::packages;

/// Where scripts are that a distribution ships, and those of the project itself.
const SCRIPTS: [&str; 3] = ["packaging", ".ci", "xtask/src/record"];

/// What is read for its spelling: documents, and sources with their comments. Tests have wrong words on purpose.
const SPELT: [&str; 16] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs",
    "packaging",
    "fuzz/targets",
    "crates/agent/src",
    "crates/cli/src",
    "crates/client/src",
    "crates/compliance/src",
    "crates/protocol/src",
    "crates/scripted/src",
    "crates/sys/src",
    "xtask/src",
];

/// Words that the list of usual mistakes has and that are none here.
const RIGHT: &str = "crate,crypted,ist,nd,nin,hel,mut,ser,statics";

/// All shell scripts, by shellcheck.
pub fn shell_scripts() -> Outcome {
    let mut scripts = Vec::new();
    for place in SCRIPTS {
        let before = scripts.len();
        collect_scripts(&workspace().join(place), &mut scripts);
        if scripts.len() == before {
            return Outcome::Broken(format!("there is no shell script in {place}"));
        }
    }
    check("shellcheck", &[], &scripts)
}

/// All documents and the comments of the sources, by codespell.
pub fn spelling() -> Outcome {
    let places: Vec<PathBuf> = SPELT.iter().map(|place| workspace().join(place)).collect();
    if let Some(missing) = places.iter().find(|place| !place.exists()) {
        return Outcome::Broken(format!("{} is not there", missing.display()));
    }
    check("codespell", &["--quiet-level", "3", "--ignore-words-list", RIGHT, "--skip", "*.svg,*.json"], &places)
}

/// Runs a program of Debian over files; it is installed first where that is possible.
fn check(program: &str, options: &[&str], files: &[PathBuf]) -> Outcome {
    if !packages::is_installed(program)
        && let Err(error) = packages::install(&[program], None)
    {
        return Outcome::Skipped(format!("{error:#}"));
    }
    match run::run(Command::new(program).args(options).args(files)) {
        Ok(ran) => Outcome::Ran(Counts::single(ran.success)),
        Err(error) => Outcome::Broken(format!("{error:#}")),
    }
}

/// Files whose first line says that a shell runs them.
fn collect_scripts(directory: &Path, scripts: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_scripts(&path, scripts);
        } else if is_script(&path) {
            scripts.push(path);
        }
    }
}

fn is_script(path: &Path) -> bool {
    let text = fs::read(path).unwrap_or_default();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first).into_owned();
    let mut words = first.strip_prefix("#!").unwrap_or_default().split_whitespace();
    words.any(|word| ["sh", "bash"].contains(&word.rsplit('/').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{collect_scripts, is_script};
    use crate::build::workspace;

    #[test]
    fn every_hook_is_a_script_and_a_unit_is_none() {
        let mut scripts = Vec::new();
        collect_scripts(&workspace().join("packaging"), &mut scripts);
        assert!(
            scripts.iter().filter(|path| path.parent().is_some_and(|folder| folder.ends_with("hooks"))).count() >= 3
        );
        assert!(!is_script(&workspace().join("packaging/systemd/qemu-guest-agent.service")));
    }
}
