//! The original agent, which every comparison needs: finds it or installs its package.
//!
//! Debian's own release may hold an older one, so it is taken from the backports. Where those are is derived from the
//! entry that the machine's apt is configured with.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::packages;

/// The oldest level that the comparisons are written for.
const LEVEL: (u32, u32) = (10, 0);
const INSTALLED: &str = "/usr/sbin/qemu-ga";
const PACKAGE: &str = "qemu-guest-agent";
const BACKPORTS_ENTRY: &str = "/etc/apt/sources.list.d/qga-backports.sources";

/// The original agent. The error says why there is none.
pub fn original_agent() -> Result<PathBuf> {
    let path = PathBuf::from(INSTALLED);
    if level(&path).is_some_and(|level| level >= LEVEL) {
        return Ok(path);
    }
    install()
        .with_context(|| format!("the original agent ({PACKAGE} {}.{} or later) is not there", LEVEL.0, LEVEL.1))?;
    match level(&path) {
        Some(level) if level >= LEVEL => Ok(path),
        Some((major, minor)) => bail!("{PACKAGE} is of level {major}.{minor}; {}.{} is needed", LEVEL.0, LEVEL.1),
        None => bail!("{PACKAGE} is installed, but {INSTALLED} does not run"),
    }
}

fn install() -> Result<()> {
    packages::install(&[PACKAGE], backports()?.as_deref())
}

/// The name of the part of Debian's archive with newer programs, made known to apt where it was not; nothing on other
/// systems.
pub fn backports() -> Result<Option<String>> {
    // Two at once would write the entry twice.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let os_release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let field = |name: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    if field("ID") != "debian" {
        return Ok(None);
    }
    let release = field("VERSION_CODENAME");
    let backports = format!("{release}-backports");
    if packages::is_installed("apt-get") && rustix::process::geteuid().is_root() && !is_configured(&backports) {
        let entry = sources().iter().find_map(|text| backports_entry(text, &release));
        let entry = entry.with_context(|| format!("apt's configuration has no entry for {release}"))?;
        fs::write(BACKPORTS_ENTRY, entry).with_context(|| format!("cannot write {BACKPORTS_ENTRY}"))?;
    }
    Ok(Some(backports))
}

/// The texts of apt's configured sources.
fn sources() -> Vec<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
}

fn is_configured(suite: &str) -> bool {
    sources().iter().flat_map(|text| text.lines()).any(|line| !line.starts_with('#') && line.contains(suite))
}

/// The release's own entry with the backports in its place, whichever of the two formats it is written in.
fn backports_entry(text: &str, release: &str) -> Option<String> {
    for line in text.lines().filter_map(|line| line.strip_prefix("deb ")) {
        let options = line.find(']').map_or(0, |end| end + 1);
        let words: Vec<&str> = line[options..].split_whitespace().collect();
        if let [uri, suite, ..] = words[..]
            && suite == release
        {
            let keyring = line[..options].split([' ', '[', ']']).find_map(|option| option.strip_prefix("signed-by="));
            let signed_by = keyring.map_or(String::new(), |keyring| format!("Signed-By: {keyring}\n"));
            return Some(format!(
                "Types: deb\nURIs: {uri}\nSuites: {release}-backports\nComponents: main\n{signed_by}"
            ));
        }
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let is_suites =
        |line: &str| line.strip_prefix("Suites:").is_some_and(|s| s.split_whitespace().any(|s| s == release));
    let stanza = lines.split(|line| line.trim().is_empty()).find(|stanza| stanza.iter().any(|line| is_suites(line)))?;
    let backports = format!("Suites: {release}-backports");
    let entry: Vec<&str> = stanza.iter().map(|line| if is_suites(line) { &backports } else { *line }).collect();
    Some(entry.join("\n") + "\n")
}

/// The level that the program says it has.
fn level(agent: &Path) -> Option<(u32, u32)> {
    let output = std::process::Command::new(agent).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split_whitespace().last()?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::backports_entry;

    #[test]
    fn the_entry_is_derived_from_either_format() {
        let expected = "Types: deb\nURIs: http://a/d\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k\n";
        let lines =
            "# mine\ndeb http://s/d bookworm-security main\ndeb [arch=amd64 signed-by=/k] http://a/d bookworm main\n";
        assert_eq!(backports_entry(lines, "bookworm").as_deref(), Some(expected));
        let stanzas = "Types: deb\nURIs: http://s/d\nSuites: bookworm-security\n\nTypes: deb\n# here\nURIs: http://a/d\n\
                       Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k\n";
        assert_eq!(backports_entry(stanzas, "bookworm").as_deref(), Some(expected));
        assert_eq!(backports_entry("deb-src http://a/d bookworm main\n", "bookworm"), None);
    }
}
