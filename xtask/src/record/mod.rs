//! `cargo xtask record`: makes a recorded machine out of a live one, so that a wrong reply there becomes a test here.
//!
//! A script for the shell ([`SCRIPT`]) copies a fixed list of files, on this machine or on one that has nothing but a
//! shell. What it copied is reduced to what commands read ([`files`]), secrets in it are replaced ([`scrub`]), and the
//! rest is written as a text ([`text`]).
//!
//! **A command reads a further file**: its path in the script and in `files::is_wanted`.

mod files;
mod logins;
mod scrub;
mod text;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::files::{Content, Files};
use self::scrub::Kind;
use crate::{build, style};

/// Copies the files of a machine that the agent reads.
const SCRIPT: &str = include_str!("collect.sh");
/// Where recordings are.
const TREES: &str = "crates/agent/tests/trees";
/// What a recording can answer.
const COMMANDS: [&str; 10] = [
    "guest-get-cpustats",
    "guest-get-disks",
    "guest-get-diskstats",
    "guest-get-fsinfo",
    "guest-get-host-name",
    "guest-get-memory-block-info",
    "guest-get-memory-blocks",
    "guest-get-osinfo",
    "guest-get-users",
    "guest-get-vcpus",
];
/// Its reply changes with the season where the zone has one.
const SEASONAL: &str = "guest-get-timezone";

struct Options {
    name: Option<String>,
    keep_names: bool,
    from: Option<PathBuf>,
    to: Option<PathBuf>,
    script: bool,
}

fn options(arguments: &[String]) -> Result<Options> {
    use lexopt::prelude::*;
    let mut options = Options { name: None, keep_names: false, from: None, to: None, script: false };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("keep-names") => options.keep_names = true,
            Long("from") => options.from = Some(parser.value()?.into()),
            Long("to") => options.to = Some(parser.value()?.into()),
            Long("script") => options.script = true,
            Value(name) if options.name.is_none() => options.name = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// `cargo xtask record`.
pub fn main(arguments: &[String]) -> Result<()> {
    let options = options(arguments)?;
    if options.script {
        print!("{SCRIPT}");
        return Ok(());
    }
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let collected = match &options.from {
        Some(given) => given.clone(),
        None => collect(scratch.path(), None)?,
    };
    let recording = Recording::of(&collected, options.keep_names)?;
    let name = options.name.unwrap_or_else(|| recording.default_name());
    let directory = options.to.unwrap_or_else(|| build::workspace().join(TREES));
    recording.save(&directory, &name)?;
    Ok(())
}

/// Lets the script copy the files of a machine below a directory; returns where.
fn collect(scratch: &Path, root: Option<&Path>) -> Result<PathBuf> {
    let (script, collected) = (scratch.join("collect.sh"), scratch.join("machine"));
    fs::write(&script, SCRIPT).with_context(|| format!("cannot write '{}'", script.display()))?;
    let output = Command::new("sh").arg(&script).arg(&collected).args(root).output().context("cannot start sh")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("cannot collect the machine's files: sh ended with {}: {}", output.status, said.trim());
    }
    for line in said.lines().filter(|line| line.starts_with("not readable")) {
        println!("{}", style::warning(line));
    }
    Ok(collected)
}

/// A machine as it is going to be written.
struct Recording {
    files: Files,
    replaced: BTreeMap<Kind, usize>,
    left_out: usize,
    names_are_real: bool,
}

impl Recording {
    fn of(collected: &Path, keep_names: bool) -> Result<Self> {
        let (files, left_out) = files::read(collected)?;
        if files.is_empty() {
            bail!("'{}' has no files of a machine: was it made by the script?", collected.display());
        }
        let (files, replaced) = if keep_names { (files, BTreeMap::new()) } else { scrub::scrubbed(&files) };
        Ok(Self { files, replaced, left_out, names_are_real: keep_names })
    }

    fn text(&self, path: &str) -> Option<String> {
        match self.files.get(path)? {
            Content::File(bytes) => Some(String::from_utf8_lossy(bytes).trim().to_owned()),
            _ => None,
        }
    }

    fn os_release(&self, name: &str) -> Option<String> {
        let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| self.text(path))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches(['"', '\'']).to_owned())
    }

    /// The distribution and its version.
    fn default_name(&self) -> String {
        let words = ["ID", "VERSION_ID"].map(|name| self.os_release(name).unwrap_or_default());
        let name: String =
            words.join("-").chars().map(|sign| if sign.is_ascii_alphanumeric() { sign } else { '-' }).collect();
        let name = name.trim_matches('-').to_lowercase();
        if name.is_empty() { "machine".to_owned() } else { name }
    }

    /// What was replaced, in words.
    fn replacements(&self) -> String {
        if self.names_are_real {
            return "nothing: it has the machine's real names".to_owned();
        }
        let counted = self.replaced.iter().map(|(kind, count)| {
            let (one, many) = kind.words();
            format!("{count} {}", if *count == 1 { one } else { many })
        });
        let all: Vec<String> = counted.collect();
        if all.is_empty() { "nothing, as nothing was found that tells whose it is".to_owned() } else { all.join(", ") }
    }

    fn written(&self) -> (String, Vec<String>) {
        let system = self.os_release("PRETTY_NAME").unwrap_or_else(|| "A machine".to_owned());
        let kernel =
            self.text("/proc/sys/kernel/osrelease").map_or_else(String::new, |kernel| format!(", kernel {kernel}"));
        let comment = format!("{system}{kernel}, recorded. Replaced: {}.\n", self.replacements());
        text::written(&comment, &self.files)
    }

    /// Whether the offset of the machine's zone is the same all year.
    fn has_no_seasons(&self) -> bool {
        let zones = self.files.iter().filter(|(path, _)| path.contains("/zoneinfo/") || path.ends_with("/localtime"));
        let mut files =
            zones.filter_map(|(_, content)| if let Content::File(bytes) = content { Some(bytes) } else { None });
        files.all(|bytes| {
            !bytes.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default().contains(&b',')
        })
    }

    fn save(&self, directory: &Path, name: &str) -> Result<()> {
        if name.is_empty() || !name.chars().all(|sign| sign.is_ascii_alphanumeric() || "-_.".contains(sign)) {
            bail!("'{name}' is no name for a recording: take letters, digits and dashes");
        }
        let (tree, json) = (directory.join(format!("{name}.tree")), directory.join(format!("{name}.json")));
        for path in [&tree, &json] {
            if path.exists() {
                bail!("cannot write '{}': it exists; give another NAME", path.display());
            }
        }
        let (text, inexpressible) = self.written();
        for path in inexpressible {
            println!("{}", style::warning(&format!("left out, as a recording cannot express the name: {path:?}")));
        }
        let seasonal = self.has_no_seasons().then_some(&SEASONAL);
        let mut commands: Vec<&str> = COMMANDS.iter().chain(seasonal).copied().collect();
        commands.sort_unstable();
        let requests: Vec<String> = commands.iter().map(|command| format!("  \"{command}\": null")).collect();
        fs::write(&tree, text).with_context(|| format!("cannot write '{}'", tree.display()))?;
        fs::write(&json, format!("{{\n{}\n}}\n", requests.join(",\n")))
            .with_context(|| format!("cannot write '{}'", json.display()))?;
        let count = self.files.values().filter(|content| **content != Content::Directory).count();
        println!("recorded {count} files and links to '{}'", tree.display());
        println!("replaced {}", self.replacements());
        if self.left_out > 0 {
            println!("left out {} files that no command reads", self.left_out);
        }
        println!(
            "\nLook through it before you show it to anybody: mount points, names of volumes and the time zone stay as they \
             are.\n\n{}\n  {}\n  then read '{}' and write into it by hand what would be right",
            style::heading("next, for the replies that the agent gives now:"),
            style::bold("UPDATE_EXPECT=1 cargo test -p qga-agent --test recorded"),
            json.display(),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
