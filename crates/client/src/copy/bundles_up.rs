//! A tree of the host to the guest in archives, where the guest has tar.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::bundle::{Bundle, SMALL_BYTES};
use super::data_map::has_holes;
use super::download::{local, sum_up};
use super::place::flags;
use super::tree::{CHANGED, TreeReport};
use super::tree_scripts::{BEGIN_UP, END, MISSING, MODES, PUT};
use super::upload::is_same;
use super::{CopyOptions, OnProgress, Progress, explain, hex, is_stop, names, stopped};
use crate::agent::Agent;
use crate::error::Error;
use crate::transport::Transport;

/// Arguments of one call together: far below what a kernel takes.
pub(super) const ARGUMENT_BYTES: usize = 48 << 10;

/// Something in a tree of the host.
struct Entry {
    /// Below the top.
    name: Vec<u8>,
    path: PathBuf,
    there: Metadata,
}

/// Where archives are unpacked.
struct Stage {
    /// The directory that is copied to.
    top: String,
    /// One in it, which nobody else enters.
    directory: String,
    is_gnu: bool,
    /// Whether the top was made.
    is_new: bool,
}

/// How far a tree is.
struct Counts {
    copied: u64,
    total: u64,
}

impl<T: Transport> Agent<T> {
    /// `None` if the guest has no tar.
    pub(super) fn upload_in_bundles(
        &mut self,
        host: &Path,
        guest: &str,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Option<TreeReport>, Error> {
        let act = format!("copy {} to {guest} in the guest", host.display());
        let Some(stage) = self.begin_upload(guest, &act)? else { return Ok(None) };
        let copied = self.upload_staged(host, &stage, options, &act, on_progress);
        match copied {
            // What is left then is hidden, and nobody's but its owner's.
            Err(error) if error.needs_sync() => Err(error),
            copied => {
                let ended = self.run_script(END, &[&stage.directory], &act);
                let report = copied.map_err(|error| explain(error, &act, None, false))?;
                ended?;
                Ok(Some(report))
            }
        }
    }

    fn begin_upload(&mut self, guest: &str, act: &str) -> Result<Option<Stage>, Error> {
        let name = names::own_text("tree");
        let Some(said) = self.run_script(BEGIN_UP, &[guest, &name], act)? else { return Ok(None) };
        let Some(said) = said.strip_suffix(b"\n").and_then(|said| std::str::from_utf8(said).ok()) else {
            return Ok(None);
        };
        let mut lines = said.splitn(3, '\n');
        let (tar, made, top) = (lines.next(), lines.next(), lines.next());
        let (Some(tar), Some(made), Some(top)) = (tar, made, top) else { return Ok(None) };
        let directory = format!("{}/{name}", top.trim_end_matches('/'));
        Ok(Some(Stage { top: top.to_owned(), directory, is_gnu: tar == "gnu", is_new: made == "new" }))
    }

    fn upload_staged(
        &mut self,
        host: &Path,
        stage: &Stage,
        options: CopyOptions,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let mut report = TreeReport::default();
        let (top, entries) = walk(host, &mut report).map_err(|source| local(act, source))?;
        let total = entries.iter().filter(|entry| entry.is_small()).map(|entry| entry.there.len()).sum();
        let mut counts = Counts { copied: 0, total };
        let sums = if options.resume && !stage.is_new {
            self.sums_of(&entries, stage, counts.total, act, on_progress)?
        } else {
            HashMap::new()
        };
        let narrow = self.narrow_directories(&top, &entries, stage, options, act)?;
        let mut bundle = Bundle::default();
        report.directories = 1;
        for entry in entries.iter().filter(|entry| !entry.is_large()) {
            let mode = entry.there.mode() & 0o777;
            if entry.there.is_dir() {
                // So that what is in it can be put there; the rest of its mode comes at the end.
                bundle.directory(&entry.name, if options.keep_mode { mode | 0o700 } else { 0o777 });
                report.directories += 1;
            } else if entry.there.is_symlink() {
                let target = unless_gone(fs::read_link(&entry.path)).map_err(|source| entry.unread(&source))?;
                let Some(target) = target else {
                    report.skipped.push((entry.path.clone(), CHANGED.to_owned()));
                    continue;
                };
                bundle.link(&entry.name, target.as_os_str().as_bytes());
                report.links += 1;
            } else {
                let content = match entry.content() {
                    Ok(Some(content)) => content,
                    Ok(None) => {
                        report.skipped.push((entry.path.clone(), CHANGED.to_owned()));
                        continue;
                    }
                    // One that may not be read is no reason to leave out the others.
                    Err(source) => {
                        report.skipped.push((entry.path.clone(), source.to_string()));
                        continue;
                    }
                };
                report.files += 1;
                report.bytes += content.len() as u64;
                if sums.get(&entry.name).is_some_and(|sum| *sum == hex(Sha256::new_with_prefix(&content))) {
                    counts.copied += content.len() as u64;
                    continue;
                }
                bundle.file(&entry.name, if options.keep_mode { mode } else { 0o666 }, &content);
            }
            if bundle.is_full() {
                self.put(stage, std::mem::take(&mut bundle), options, act, &mut counts, on_progress)?;
            }
        }
        if bundle.entries > 0 {
            self.put(stage, bundle, options, act, &mut counts, on_progress)?;
        }
        for entry in entries.iter().filter(|entry| entry.is_large()) {
            let Ok(name) = std::str::from_utf8(&entry.name) else {
                report.skipped.push((
                    entry.path.clone(),
                    "its name is not UTF-8, and the protocol carries no other of a large file".to_owned(),
                ));
                continue;
            };
            let there = unless_gone(entry.path.symlink_metadata()).map_err(|source| entry.unread(&source))?;
            if !there.is_some_and(|there| there.is_file()) {
                report.skipped.push((entry.path.clone(), CHANGED.to_owned()));
                continue;
            }
            if let Some(sum) = sums.get(&entry.name) {
                let mut here = Sha256::new();
                let file = File::open(&entry.path).map_err(|source| entry.unread(&source))?;
                sum_up(&mut file.take(entry.there.len()), &mut here).map_err(|source| entry.unread(&source))?;
                if *sum == hex(here) {
                    report.files += 1;
                    report.bytes += entry.there.len();
                    continue;
                }
            }
            let place = format!("{}/{name}", stage.top.trim_end_matches('/'));
            match self.upload(&entry.path, &place, options, on_progress) {
                Ok(copied) => {
                    report.files += 1;
                    report.bytes += copied.bytes;
                }
                Err(Error::Changed { .. }) => report.skipped.push((entry.path.clone(), CHANGED.to_owned())),
                Err(Error::Local { source, .. }) if !is_stop(&source) => {
                    report.skipped.push((entry.path.clone(), source.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        // The innermost first: who may not enter a directory cannot change what is in it.
        for modes in chunks(narrow.iter().rev().flat_map(|(mode, name)| [mode.as_str(), name.as_str()])) {
            self.run_script(MODES, &[&[stage.top.as_str()], modes.as_slice()].concat(), act)?;
        }
        Ok(report)
    }

    /// Sends an archive, has it unpacked, and puts what is in it in its place.
    fn put(
        &mut self,
        stage: &Stage,
        bundle: Bundle,
        options: CopyOptions,
        act: &str,
        counts: &mut Counts,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        let archive = bundle.finish();
        let path = format!("{}/a", stage.directory);
        let (mut sent, before) = (0, counts.copied);
        let handle = self.open(&path, "w")?;
        let written = self.write_all_of(handle, act, &mut |buffer| {
            // An archive is somewhat larger than what is in it.
            let copied_bytes = counts.total.min(before + sent as u64);
            let progress = Progress { path: &stage.top, copied_bytes, total_bytes: counts.total };
            if on_progress(progress).is_break() {
                return Err(stopped());
            }
            let size = buffer.len().min(archive.len() - sent);
            buffer[..size].copy_from_slice(&archive[sent..sent + size]);
            sent += size;
            Ok(size)
        });
        self.close_after(handle, written)?;
        counts.copied = counts.total.min(before + archive.len() as u64);
        let bytes = archive.len() as u64;
        let progress = Progress { path: &stage.top, copied_bytes: counts.copied, total_bytes: counts.total };
        if options.verify
            && self.guest_sha256(&path, bytes, progress, on_progress)? != Some(hex(Sha256::new_with_prefix(&archive)))
        {
            let detail = "the archive in which its files travel is another one there, or the guest has no sha256sum";
            return Err(Error::Mismatch { path: stage.top.clone(), detail: detail.to_owned() });
        }
        let flags: &[&str] = if stage.is_gnu {
            &["--no-same-owner", "--no-same-permissions", "-m", "--delay-directory-restore"]
        } else {
            &["-o", "--no-same-permissions", "-m"]
        };
        let arguments = [&[stage.directory.as_str(), &stage.top], flags].concat();
        self.run_script_within(self.patience().tree, PUT, &arguments, act).map(|_| ())
    }

    /// The sums of what is there already, by name.
    fn sums_of(
        &mut self,
        entries: &[Entry],
        stage: &Stage,
        total_bytes: u64,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<HashMap<Vec<u8>, String>, Error> {
        let progress = Progress { path: &stage.top, copied_bytes: 0, total_bytes };
        let mut go_on = || on_progress(progress).is_continue();
        let files = entries.iter().filter(|entry| entry.there.is_file());
        let names: Vec<String> = files.filter_map(|entry| String::from_utf8(entry.name.clone()).ok()).collect();
        self.guest_sums(&stage.top, names.iter().map(String::as_str), act, &mut go_on)
    }

    /// The directories that this copy makes and that take no files of their owner's, with their modes.
    fn narrow_directories(
        &mut self,
        top: &Metadata,
        entries: &[Entry],
        stage: &Stage,
        options: CopyOptions,
        act: &str,
    ) -> Result<Vec<(String, String)>, Error> {
        let mut narrow = Vec::new();
        if !options.keep_mode {
            return Ok(narrow);
        }
        if stage.is_new {
            narrow.push((format!("{:o}", top.mode() & 0o777), ".".to_owned()));
        }
        let directories = entries.iter().filter(|entry| entry.there.is_dir() && entry.there.mode() & 0o700 != 0o700);
        let directories: Vec<(String, String)> = directories
            .filter_map(|entry| {
                let name = std::str::from_utf8(&entry.name).ok()?;
                Some((format!("{:o}", entry.there.mode() & 0o777), format!("./{name}")))
            })
            .collect();
        let mut from = 0;
        for names in chunks(directories.iter().map(|(_, name)| name.as_str())) {
            let arguments = [&[stage.top.as_str()], names.as_slice()].concat();
            let said = self.run_script(MISSING, &arguments, act)?.unwrap_or_default();
            let missing = String::from_utf8_lossy(&said);
            let places = missing.lines().filter_map(|line| line.parse::<usize>().ok());
            narrow.extend(places.filter_map(|place| directories.get(from + place - 1).cloned()));
            from += names.len();
        }
        Ok(narrow)
    }
}

impl Entry {
    fn is_large(&self) -> bool {
        self.there.is_file() && !self.is_small()
    }

    /// What has holes goes alone as well, so that it keeps them.
    fn is_small(&self) -> bool {
        let has_holes = has_holes(self.there.len(), self.there.blocks() * 512);
        self.there.is_file() && self.there.len() <= SMALL_BYTES && !has_holes
    }

    /// `None` if it is gone, or changes while it is read.
    fn content(&self) -> io::Result<Option<Vec<u8>>> {
        let read = || -> io::Result<Option<Vec<u8>>> {
            let flags = flags(OFlags::NONBLOCK | OFlags::NOFOLLOW);
            let file = File::options().read(true).custom_flags(flags).open(&self.path)?;
            // It may have grown since it was listed.
            let before = file.metadata()?;
            if !before.is_file() {
                return Ok(None);
            }
            let mut content = Vec::new();
            (&file).take(SMALL_BYTES + 1).read_to_end(&mut content)?;
            let is_whole = content.len() as u64 == before.len() && is_same(&before, &file.metadata()?);
            Ok(is_whole.then_some(content))
        };
        Ok(unless_gone(read())?.flatten())
    }

    fn unread(&self, source: &io::Error) -> Error {
        local(&format!("read {}", self.path.display()), io::Error::new(source.kind(), source.to_string()))
    }
}

fn unless_gone<V>(found: io::Result<V>) -> io::Result<Option<V>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// All that is below a directory, each directory before what is in it; devices and their like are left out.
fn walk(top: &Path, report: &mut TreeReport) -> io::Result<(Metadata, Vec<Entry>)> {
    let mut entries = Vec::new();
    let mut waiting = vec![(top.to_owned(), Vec::new())];
    while let Some((directory, name)) = waiting.pop() {
        let inside = fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<fs::DirEntry>>>);
        let mut inside = match inside {
            // The directory itself is made, and what is in it is left out.
            Err(error) if directory.as_path() != top => {
                report.skipped.push((directory, format!("what is in it cannot be read: {error}")));
                continue;
            }
            inside => inside?,
        };
        inside.sort_by_key(fs::DirEntry::file_name);
        for entry in inside {
            let path = entry.path();
            let there = match unless_gone(entry.metadata()) {
                Ok(Some(there)) => there,
                Ok(None) => {
                    report.skipped.push((path, CHANGED.to_owned()));
                    continue;
                }
                // As in a directory that may be listed and not entered.
                Err(error) => {
                    report.skipped.push((path, error.to_string()));
                    continue;
                }
            };
            let mut name: Vec<u8> = if name.is_empty() { Vec::new() } else { [name.as_slice(), b"/"].concat() };
            name.extend(entry.file_name().into_vec());
            if there.is_dir() {
                waiting.push((path.clone(), name.clone()));
            } else if !there.is_file() && !there.is_symlink() {
                report.skipped.push((path, "it is a device, a socket or a FIFO".to_owned()));
                continue;
            }
            entries.push(Entry { name, path, there });
        }
    }
    Ok((top.metadata()?, entries))
}

/// As many as go as arguments at once.
pub(super) fn chunks<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Vec<&'a str>> {
    let mut chunks = vec![Vec::new()];
    let mut bytes = 0;
    for (place, text) in texts.enumerate() {
        bytes += text.len() + 8;
        // Pairs stay together.
        if bytes > ARGUMENT_BYTES && place % 2 == 0 {
            chunks.push(Vec::new());
            bytes = text.len() + 8;
        }
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(text);
        }
    }
    chunks.retain(|chunk: &Vec<&str>| !chunk.is_empty());
    chunks
}
