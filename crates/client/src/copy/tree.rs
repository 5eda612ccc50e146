//! Directories with all that is in them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::download::local;
use super::{CopyOptions, OnProgress};
use crate::agent::Agent;
use crate::error::Error;
use crate::guest_files::{FileKind, GuestFile};
use crate::transport::Transport;

/// What was copied of a tree.
#[derive(Debug, Default)]
pub struct TreeReport {
    /// Regular files.
    pub files: u64,
    /// Directories, the outermost included.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// What was left out, and why: devices, sockets, names that are not UTF-8.
    pub skipped: Vec<(PathBuf, String)>,
}

impl<T: Transport> Agent<T> {
    /// Copies a directory of the guest into a directory of the host, which is made if it is not there. Files that are
    /// there are replaced one by one; the first error ends the copy.
    pub fn download_tree(
        &mut self,
        guest: &str,
        host: &Path,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let top = self.stat_file(guest, true)?;
        let entries = self.list_directory(guest, true)?;
        let mut report = TreeReport::default();
        let mut directories = vec![(host.to_owned(), top.mode)];
        let mut links = Vec::new();
        make_directory(host)?;
        // A directory that an earlier copy brought as a link leads anywhere; and the guest need not name it again.
        let mut checked = HashSet::from([host.to_owned()]);
        for entry in &entries {
            let Some(place) = place_below(&entry.path, guest) else {
                report.skip(entry, "its name leads out of the directory");
                continue;
            };
            let place = host.join(place);
            if !place.parent().is_some_and(|parent| checked.contains(parent)) {
                report.skip(entry, "the guest does not say that it is in a directory");
                continue;
            }
            let Ok(path) = entry.path_text() else {
                report.skip(entry, "its name is not UTF-8, and the protocol carries text only");
                continue;
            };
            match entry.kind {
                FileKind::Directory => {
                    make_directory(&place)?;
                    checked.insert(place.clone());
                    directories.push((place, entry.mode));
                }
                FileKind::File => {
                    report.bytes += self.download(path, &place, options, on_progress)?.bytes;
                    report.files += 1;
                }
                FileKind::Link => links.push((path, place)),
                FileKind::Other => report.skip(entry, "it is a device, a socket or a FIFO"),
            }
        }
        // Last, so that no file is written through one.
        for (path, place) in links {
            let target = self.read_link(path)?;
            make_link(OsStr::from_bytes(&target), &place)
                .map_err(|source| local(&format!("make the link {}", place.display()), source))?;
            report.links += 1;
        }
        report.directories = directories.len() as u64;
        // The innermost first: a directory without the right to write takes no more files.
        for (place, mode) in directories.iter().rev().filter(|_| options.keep_mode) {
            fs::set_permissions(place, fs::Permissions::from_mode(mode & 0o777))
                .map_err(|source| local(&format!("set the permissions of {}", place.display()), source))?;
        }
        Ok(report)
    }

    /// Copies a directory of the host into a directory of the guest, which is made if it is not there. Files that are
    /// there are replaced one by one; the first error ends the copy.
    pub fn upload_tree(
        &mut self,
        host: &Path,
        guest: &str,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let mut report = TreeReport::default();
        let mut directories = Vec::new();
        let mut waiting = vec![(host.to_owned(), guest.trim_end_matches('/').to_owned())];
        while let Some((here, there)) = waiting.pop() {
            let act = format!("copy {} to the guest", here.display());
            let metadata = here.metadata().map_err(|source| local(&act, source))?;
            self.run_tool("mkdir", &["-p", "--", &there], &format!("make the directory {there} in the guest"))?;
            directories.push((there.clone(), metadata.permissions().mode() & 0o777));
            let mut entries: Vec<fs::DirEntry> = fs::read_dir(&here)
                .and_then(Iterator::collect::<io::Result<Vec<fs::DirEntry>>>)
                .map_err(|source| local(&act, source))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = entry.path();
                let Some(place) = entry.file_name().to_str().map(|name| format!("{there}/{name}")) else {
                    report.skipped.push((path, "its name is not UTF-8, and the protocol carries text only".to_owned()));
                    continue;
                };
                let kind = entry.file_type().map_err(|source| local(&act, source))?;
                if kind.is_dir() {
                    waiting.push((path, place));
                } else if kind.is_file() {
                    report.bytes += self.upload(&path, &place, options, on_progress)?.bytes;
                    report.files += 1;
                } else if kind.is_symlink() {
                    self.upload_link(&path, &place, &mut report)?;
                } else {
                    report.skipped.push((path, "it is a device, a socket or a FIFO".to_owned()));
                }
            }
        }
        report.directories = directories.len() as u64;
        for (there, mode) in directories.iter().rev().filter(|_| options.keep_mode) {
            let act = format!("set the permissions of {there} in the guest");
            self.run_tool("chmod", &[&format!("{mode:o}"), "--", there], &act)?;
        }
        Ok(report)
    }

    fn upload_link(&mut self, path: &Path, place: &str, report: &mut TreeReport) -> Result<(), Error> {
        let target = fs::read_link(path).map_err(|source| local(&format!("read {}", path.display()), source))?;
        let Some(target) = target.to_str() else {
            report.skipped.push((path.to_owned(), "it leads to a name that is not UTF-8".to_owned()));
            return Ok(());
        };
        let act = format!("make the link {place} in the guest");
        // Without -n a link that is there and leads to a directory would get the new one inside.
        self.run_tool("ln", &["-s", "-f", "-n", "--", target, place], &act)?;
        report.links += 1;
        Ok(())
    }
}

impl TreeReport {
    fn skip(&mut self, entry: &GuestFile, why: &str) {
        self.skipped.push((PathBuf::from(OsStr::from_bytes(&entry.path)), why.to_owned()));
    }
}

/// The path below the directory. The guest says the names, and need not mean well.
fn place_below(path: &[u8], directory: &str) -> Option<PathBuf> {
    let directory = directory.trim_end_matches('/');
    let normal =
        |path: &Path| -> Vec<u8> { path.components().collect::<PathBuf>().into_os_string().as_bytes().to_vec() };
    let (path, directory) = (normal(Path::new(OsStr::from_bytes(path))), normal(Path::new(directory)));
    let rest = path.strip_prefix(directory.as_slice())?;
    let rest = Path::new(OsStr::from_bytes(rest.strip_prefix(b"/").unwrap_or(rest)));
    let is_below = rest.components().all(|part| matches!(part, Component::Normal(_))) && rest.components().count() > 0;
    is_below.then(|| rest.to_owned())
}

/// Makes a directory where none is; what a link leads to does not count as one, except for the outermost.
fn make_directory(place: &Path) -> Result<(), Error> {
    let act = || format!("make the directory {}", place.display());
    match fs::create_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let is_directory = fs::symlink_metadata(place).is_ok_and(|metadata| metadata.is_dir());
            if is_directory { Ok(()) } else { Err(local(&act(), error)) }
        }
        made => made.map_err(|source| local(&act(), source)),
    }
}

fn make_link(target: &OsStr, place: &Path) -> io::Result<()> {
    match symlink(target, place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(place)?;
            symlink(target, place)
        }
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(place_below(path.as_bytes(), "/a/b/"), expected.map(PathBuf::from), "{path}");
        };
        check("/a/b/c", Some("c"));
        check("/a/b//c/d", Some("c/d"));
        check("/a/b/./c", Some("c"));
        check("/a/b/../c", None);
        check("/a/b/c/../../../etc/passwd", None);
        check("/etc/passwd", None);
        check("/a/b", None);
    }
}
