//! Gets Debian packages: onto the host (QEMU, debootstrap) and as files for the guest (its kernel, the original
//! agent).
//!
//! Where packages come from is read from the host's own apt configuration, and the backports entry is derived from
//! it. The files for the guest are fetched with private apt directories, so that the host's sources stay as they are.

use super::Skipped;
use super::progress;
use crate::packages;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The archive that the host is configured to use for its own release.
#[derive(Debug, PartialEq, Eq)]
pub struct Archive {
    /// The address as configured.
    pub uri: String,
    /// The release's name, such as `bookworm`.
    pub release: String,
    /// Keyring file, if the entry names one.
    signed_by: Option<String>,
}

impl Archive {
    /// Reads the host's configuration; without a Debian host there is no guest.
    pub fn of_host() -> Result<Self> {
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |name: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        if field("ID") != "debian" {
            return Err(Skipped::because("the guest is made from the packages of a Debian host, and this is none"));
        }
        let release = field("VERSION_CODENAME");
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        files.sort();
        files
            .iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "list" || extension == "sources"))
            .find_map(|file| Self::parse(&fs::read_to_string(file).ok()?, &release))
            .ok_or_else(|| Skipped::because(&format!("/etc/apt names no archive for {release}")))
    }

    /// Finds the entry for `release` in a sources file of either format.
    fn parse(text: &str, release: &str) -> Option<Self> {
        let found = |uri: &str, signed_by: Option<&str>| {
            Some(Self { uri: uri.into(), release: release.into(), signed_by: signed_by.map(Into::into) })
        };
        for line in text.lines().filter_map(|line| line.strip_prefix("deb ")) {
            let (options, entry) = match line.trim().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((options, entry)) => (options, entry),
                None => ("", line),
            };
            let mut words = entry.split_whitespace();
            if let (Some(uri), Some(suite)) = (words.next(), words.next())
                && suite == release
            {
                return found(uri, options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")));
            }
        }
        let without_comments: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for stanza in without_comments.join("\n").split("\n\n") {
            let field = |name: &str| {
                let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap_or_default().trim()
            };
            if field("Suites").split_whitespace().any(|suite| suite == release)
                && field("Types").split_whitespace().any(|kind| kind == "deb")
            {
                let signed_by = field("Signed-By");
                return found(
                    field("URIs").split_whitespace().next()?,
                    Some(signed_by).filter(|keyring| !keyring.is_empty()),
                );
            }
        }
        None
    }

    fn sources(&self) -> String {
        let signed_by = self.signed_by.as_ref().map_or(String::new(), |keyring| format!("Signed-By: {keyring}\n"));
        let entry =
            |suite: &str| format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{signed_by}\n", self.uri);
        entry(&self.release) + &entry(&format!("{}-backports", self.release))
    }
}

/// Installs what is missing of `wanted` (program, package) on the host; says why it cannot.
pub fn install_on_host(wanted: &[(&str, &str)]) -> Result<()> {
    let missing = wanted.iter().filter(|(program, _)| !packages::is_installed(program));
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    packages::install(&missing, None).map_err(|error| Skipped::because(&format!("{error:#}")))
}

/// apt with lists and sources of its own in a folder: the host's configuration stays untouched.
pub struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    /// Sets the folder up and reads the package lists.
    pub fn new(folder: &Path, archive: &Archive, log: &Path) -> Result<Self> {
        for name in ["sources", "lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(folder.join("sources/guest.sources"), archive.sources())?;
        let apt = Self { folder: folder.to_owned() };
        progress::run("reading the package lists", apt.command("apt-get").args(["-q", "update"]), log)
            .map_err(|error| Skipped::because(&format!("cannot read the package lists: {error:#}")))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for setting in [
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={folder}/sources"),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            // The download's own user cannot enter root's cache folder; apt says so at length otherwise.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }

    /// Downloads a package, from the backports if asked to, unpacks it into `target` and returns the names of the
    /// libraries it needs.
    pub fn unpack(
        &self,
        package: &str,
        from_backports: Option<&Archive>,
        target: &Path,
        log: &Path,
    ) -> Result<Vec<String>> {
        let folder = self.folder.join("packages");
        let mut download = self.command("apt-get");
        download.current_dir(&folder).args(["-q", "download"]);
        if let Some(archive) = from_backports {
            download.args(["-t", &format!("{}-backports", archive.release)]);
        }
        progress::run(&format!("downloading {package}"), download.arg(package), log)
            .map_err(|error| Skipped::because(&format!("cannot download {package}: {error:#}")))?;
        let prefix = format!("{package}_");
        let file = fs::read_dir(&folder)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
            .with_context(|| format!("apt-get downloaded no {package}"))?;
        progress::output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(target))?;
        let depends = progress::output(Command::new("dpkg-deb").arg("-f").arg(&file).arg("Depends"))?;
        fs::remove_file(&file)?;
        let names = depends.split(',').filter_map(|entry| entry.split_whitespace().next());
        Ok(names.filter(|name| name.starts_with("lib")).map(Into::into).collect())
    }

    /// The package that a meta package stands for, such as the kernel's current version.
    pub fn first_dependency(&self, package: &str) -> Result<String> {
        let text = progress::output(self.command("apt-cache").args(["depends", package]))?;
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Depends:"))
            .map(|name| name.trim().to_owned())
            .ok_or_else(|| Skipped::because(&format!("apt knows no {package}")))
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    fn check(text: &str, uri: &str, signed_by: Option<&str>) {
        let expected = Archive { uri: uri.into(), release: "bookworm".into(), signed_by: signed_by.map(Into::into) };
        assert_eq!(Archive::parse(text, "bookworm"), Some(expected));
    }

    #[test]
    fn the_archive_of_the_release_is_found_in_both_formats() {
        check("deb http://a/debian bookworm main contrib\n", "http://a/debian", None);
        check(
            "deb http://s/security bookworm-security main\ndeb [arch=amd64 signed-by=/k] http://a/debian bookworm main",
            "http://a/debian",
            Some("/k"),
        );
        check(
            "Types: deb\nURIs: http://s/x\nSuites: bookworm-security\n\nTypes: deb\n# old\nURIs: http://a/d http://b/d\n\
             Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k\n",
            "http://a/d",
            Some("/k"),
        );
        assert_eq!(Archive::parse("deb-src http://a/debian bookworm main\n", "bookworm"), None);
    }
}
