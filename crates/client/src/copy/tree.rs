//! Directories with all that is in them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::below::Below;
use super::bundles_down::{Links, Listed, Packing, Wanted, explain_tree};
use super::download::{Original, local, sum_up_while};
use super::{CopyOptions, OnProgress, Progress, hex, is_stop};
use crate::agent::Agent;
use crate::error::Error;
use crate::guest_files::{FileKind, GuestFile};
use crate::transport::Transport;

/// Why a file of the host is left out that was changed or removed.
pub(super) const CHANGED: &str = "it has changed while it was copied, or is gone";

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
    /// Copies a directory of the guest into a directory of the host, which is made if it is not there, and keeps its
    /// permissions if it is. Files that are there get the new content, links that are there are never followed, except for the
    /// outermost. Small files come in archives where the guest has tar. The first error ends the copy.
    pub fn download_tree(
        &mut self,
        guest: &str,
        host: &Path,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let act = format!("copy {guest} from the guest to {}", host.display());
        let top = self.stat_file(guest, true)?;
        let progress = Progress { path: guest, copied_bytes: 0, total_bytes: 0 };
        let listed = self.list_while(guest, true, &mut || on_progress(progress).is_continue());
        let entries = listed.map_err(|error| explain_tree(error, &act))?;
        let packing = self.begin_packing(&act)?;
        let mut tree = Download { guest, top, options, act: &act, report: TreeReport::default(), links: Vec::new() };
        let copied = self.download_entries(&mut tree, &entries, packing.as_ref(), host, on_progress);
        match (&copied, packing) {
            (Err(error), _) if error.needs_sync() => {}
            (_, Some(packing)) => {
                let ended = self.end_packing(&packing, &act);
                if copied.is_ok() {
                    ended?;
                }
            }
            _ => {}
        }
        copied.map_err(|error| explain_tree(error, &act))?;
        Ok(tree.report)
    }

    fn download_entries(
        &mut self,
        tree: &mut Download<'_>,
        entries: &[GuestFile],
        packing: Option<&Packing>,
        host: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        let mut made = Vec::new();
        let is_new = make_top(host)?;
        let mut below = Below::new(host).map_err(|source| local(tree.act, source))?;
        let (mut small, mut large) = (Vec::new(), Vec::new());
        // The guest need not name a directory before what is in it, nor need it be one on the host.
        let mut checked = HashSet::from([PathBuf::new()]);
        tree.report.directories = 1;
        for entry in entries {
            let Some(place) = place_below(&entry.path, tree.guest) else {
                tree.report.skip(entry, "its name leads out of the directory");
                continue;
            };
            if !place.parent().is_some_and(|parent| checked.contains(parent)) {
                tree.report.skip(entry, "the guest does not say that it is in a directory, or that one was left out");
                continue;
            }
            match entry.kind {
                FileKind::Directory => match below.make_directory(&place) {
                    Ok(is_new) => {
                        made.extend(is_new.then(|| (place.clone(), entry.mode)));
                        checked.insert(place);
                        tree.report.directories += 1;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                        tree.report.skip(entry, "what is there on the host is no directory");
                    }
                    Err(source) => return Err(local(&format!("make the directory {}", place.display()), source)),
                },
                FileKind::File | FileKind::Link => {
                    let is_packed = packing.is_some_and(|packing| packing.takes(entry));
                    let listed = Listed { file: entry, place };
                    if is_packed { small.push(listed) } else { large.push(listed) }
                }
                _ => tree.report.skip(entry, "it is a device, a socket or a FIFO"),
            }
        }
        if tree.options.resume {
            self.leave_out_the_same(tree, &mut below, &mut small, on_progress)?;
            self.leave_out_the_same(tree, &mut below, &mut large, on_progress)?;
        }
        if let Some(packing) = packing {
            let mut wanted = Wanted::default();
            let small = small.into_iter().map(Some).chain([None]);
            for listed in small {
                let is_last = listed.is_none();
                if let Some(listed) = listed {
                    wanted.push(listed);
                }
                if is_last || wanted.is_full() {
                    self.fetch(packing, tree, std::mem::take(&mut wanted), &mut below, on_progress)?;
                }
            }
        }
        self.fetch_each(tree, large, &mut below, on_progress)?;
        // Last, so that no file is written through one.
        for (place, target) in std::mem::take(&mut tree.links) {
            match below.make_link(&place, OsStr::from_bytes(&target)) {
                Ok(()) => tree.report.links += 1,
                Err(source) => tree.report.skipped.push((place, format!("the link cannot be made: {source}"))),
            }
        }
        // The innermost first: a directory without the right to enter it lets nobody change what is in it.
        for (place, mode) in made.iter().rev().filter(|_| tree.options.keep_mode) {
            let set = below.set_mode(place, *mode);
            set.map_err(|source| local(&format!("set the permissions of {}", place.display()), source))?;
        }
        if is_new && tree.options.keep_mode {
            let permissions = fs::Permissions::from_mode(super::attributes::less_umask(tree.top.mode));
            fs::set_permissions(host, permissions)
                .map_err(|source| local(&format!("set the permissions of {}", host.display()), source))?;
        }
        Ok(())
    }

    /// Fetches files and links one after the other. What is gone or changes while it is copied is left out.
    pub(super) fn fetch_each(
        &mut self,
        tree: &mut Download<'_>,
        listed: Vec<Listed<'_>>,
        below: &mut Below,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        for Listed { file, place } in listed {
            let Ok(path) = file.path_text() else {
                tree.report.skip(file, "its name is not UTF-8, and the protocol carries text only");
                continue;
            };
            if file.kind == FileKind::Link {
                match self.read_link(path) {
                    Ok(target) => tree.links.push((place, target)),
                    Err(Error::Guest { cause, .. }) => tree.report.skip(file, &cause),
                    Err(error) => return Err(error),
                }
                continue;
            }
            self.fetch_file(tree, file, path, &place, below, on_progress)?;
        }
        Ok(())
    }

    fn fetch_file(
        &mut self,
        tree: &mut Download<'_>,
        file: &GuestFile,
        path: &str,
        place: &Path,
        below: &mut Below,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        let act = format!("copy {path} from the guest to {}", place.display());
        // The list may be hours old.
        let now = match self.stat_file(path, false) {
            Ok(now) if now.kind == FileKind::File => now,
            Ok(_) => {
                tree.report.skip(file, "it has become something else meanwhile");
                return Ok(());
            }
            Err(Error::Guest { cause, .. }) => {
                tree.report.skip(file, &cause);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let place = match below.place(place) {
            Ok(place) => place,
            Err(source) if source.kind() == io::ErrorKind::InvalidInput => {
                tree.report.skip(file, &source.to_string());
                return Ok(());
            }
            Err(source) => return Err(local(&act, source)),
        };
        let map = self.data_map(path, &now, &act, on_progress)?;
        let original = Original { size: now.size, mode: Some(now.mode), stamp: Some(now.stamp), map };
        match self.download_at(path, &original, &place, tree.options, &act, on_progress) {
            Ok(copied) => {
                tree.report.files += 1;
                tree.report.bytes += copied.bytes;
            }
            Err(Error::Changed { .. }) => {
                tree.report.skip(file, "it has changed while it was copied, or has less in it than its size says");
            }
            // One that may not be read, say.
            Err(error @ Error::Agent { .. }) if !error.needs_sync() => tree.report.skip(file, &error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What is there on the host with the same content need not come again.
    fn leave_out_the_same(
        &mut self,
        tree: &mut Download<'_>,
        below: &mut Below,
        listed: &mut Vec<Listed<'_>>,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        let total_bytes = listed.iter().map(|listed| listed.file.size).fold(0, u64::saturating_add);
        let progress = Progress { path: tree.guest, copied_bytes: 0, total_bytes };
        let mut go_on = || on_progress(progress).is_continue();
        let mut here = HashMap::new();
        for file in listed.iter().filter(|listed| listed.file.kind == FileKind::File) {
            let there = below.place(&file.place).and_then(|place| place.open_there(OFlags::RDONLY));
            let (Ok(Some(there)), Some(name)) = (there, file.place.to_str()) else { continue };
            let is_candidate = there.metadata().is_ok_and(|there| there.len() == file.file.size);
            let mut sum = Sha256::new();
            match sum_up_while(&mut there.take(if is_candidate { u64::MAX } else { 0 }), &mut sum, &mut go_on) {
                Ok(_) if is_candidate => {
                    here.insert(name.to_owned(), hex(sum));
                }
                Err(source) if is_stop(&source) => return Err(local(tree.act, source)),
                _ => {}
            }
        }
        let sums = self.guest_sums(tree.guest, here.keys().map(String::as_str), tree.act, &mut go_on)?;
        listed.retain(|listed| {
            let name = listed.place.to_str().unwrap_or_default();
            let is_same = here.get(name).is_some_and(|here| sums.get(name.as_bytes()) == Some(here));
            if is_same {
                tree.report.files += 1;
                tree.report.bytes += listed.file.size;
            }
            !is_same
        });
        Ok(())
    }

    /// Copies a directory of the host into a directory of the guest, which is made if it is not there, and keeps its
    /// permissions if it is. Files that are there get the new content. Small files go in archives where the guest has tar.
    /// The first error ends the copy.
    pub fn upload_tree(
        &mut self,
        host: &Path,
        guest: &str,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        if let Some(report) = self.upload_in_bundles(host, guest, options, on_progress)? {
            return Ok(report);
        }
        let mut report = TreeReport::default();
        let mut directories = Vec::new();
        let mut waiting = vec![(host.to_owned(), guest.trim_end_matches('/').to_owned())];
        while let Some((here, there)) = waiting.pop() {
            let act = format!("copy {} to the guest", here.display());
            let metadata = here.metadata().map_err(|source| local(&act, source))?;
            let is_there = self.stat_file(&there, true).is_ok_and(|there| there.kind == FileKind::Directory);
            if !is_there {
                self.run_tool("mkdir", &["-p", "--", &there], &format!("make the directory {there} in the guest"))?;
                // As those of new files: less the umask, which only a shell would tell.
                directories.push((there.clone(), super::attributes::less_umask(metadata.permissions().mode())));
            }
            report.directories += 1;
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
                    match self.upload(&path, &place, options, on_progress) {
                        Ok(copied) => {
                            report.bytes += copied.bytes;
                            report.files += 1;
                        }
                        Err(Error::Changed { .. }) => report.skipped.push((path, CHANGED.to_owned())),
                        Err(Error::Local { source, .. }) if !is_stop(&source) => {
                            report.skipped.push((path, source.to_string()));
                        }
                        Err(error) => return Err(error),
                    }
                } else if kind.is_symlink() {
                    self.upload_link(&path, &place, &mut report)?;
                } else {
                    report.skipped.push((path, "it is a device, a socket or a FIFO".to_owned()));
                }
            }
        }
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

/// A tree on its way to the host.
pub(super) struct Download<'a> {
    pub(super) guest: &'a str,
    top: GuestFile,
    pub(super) options: CopyOptions,
    pub(super) act: &'a str,
    pub(super) report: TreeReport,
    pub(super) links: Links,
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

/// Makes the outermost directory where none is, and says whether it did.
fn make_top(host: &Path) -> Result<bool, Error> {
    match fs::create_dir(host) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && host.is_dir() => Ok(false),
        made => made.map(|()| true).map_err(|source| local(&format!("make the directory {}", host.display()), source)),
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
