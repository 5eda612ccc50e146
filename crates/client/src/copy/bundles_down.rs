//! A tree of the guest to the host in archives, where the guest has tar.
//!
//! What is put on the host is what the guest has listed before, in the directories that it has listed; a name that is in
//! an archive and was not asked for, or comes twice, is left out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::below::Below;
use super::bundle::{FULL_BYTES, OVERHEAD_BYTES, Packed, SMALL_BYTES, unpack};
use super::bundles_up::chunks;
use super::data_map::has_holes;
use super::download::local;
use super::holes::Sparse;
use super::partial::Partial;
use super::tree::Download;
use super::tree_scripts::{BEGIN_DOWN, END, PACK, SUMS};
use super::{CopyOptions, OnProgress, Progress, explain, hex, names, stopped};
use crate::agent::Agent;
use crate::error::Error;
use crate::guest_files::{FileKind, GuestFile};
use crate::transport::Transport;

use sha2::{Digest, Sha256};

/// A file of the guest's list, and where it goes below the directory.
pub(super) struct Listed<'a> {
    pub(super) file: &'a GuestFile,
    pub(super) place: PathBuf,
}

/// Where archives are made in the guest.
pub(super) struct Packing {
    directory: String,
    is_gnu: bool,
}

/// What is wanted of the guest next, and how large it will be.
#[derive(Default)]
pub(super) struct Wanted<'a> {
    files: Vec<Listed<'a>>,
    bytes: u64,
}

impl<'a> Wanted<'a> {
    pub(super) fn push(&mut self, listed: Listed<'a>) {
        /// Longest target of a link. The guest says the sizes, and need not mean well.
        const LINK_BYTES: u64 = 4096;
        let most = if listed.file.kind == FileKind::Link { LINK_BYTES } else { SMALL_BYTES };
        let name = listed.file.path.len();
        self.bytes += listed.file.size.min(most).next_multiple_of(512) + OVERHEAD_BYTES + 3 * name as u64;
        self.files.push(listed);
    }

    pub(super) fn is_full(&self) -> bool {
        /// Most names in one archive.
        const MOST: usize = 8192;
        self.bytes >= FULL_BYTES as u64 || self.files.len() >= MOST
    }
}

/// What came of a tree beside the files: links, which are made last, so that no file is written through one.
pub(super) type Links = Vec<(PathBuf, Vec<u8>)>;

impl Packing {
    /// Whether a file can travel in an archive.
    pub(super) fn takes(&self, file: &GuestFile) -> bool {
        // What has holes comes alone, so that they do not travel.
        let is_small = match file.kind {
            FileKind::File if has_holes(file.size, file.allocated_bytes) => false,
            FileKind::File => file.size <= SMALL_BYTES && (self.is_gnu || file.links == 1),
            FileKind::Link => true,
            _ => false,
        };
        is_small && (self.is_gnu || file.path_text().is_ok())
    }
}

impl<T: Transport> Agent<T> {
    /// `None` if the guest has no tar, or no place for archives.
    pub(super) fn begin_packing(&mut self, act: &str) -> Result<Option<Packing>, Error> {
        let Some(said) = self.run_script(BEGIN_DOWN, &[&names::own_text("tree")], act)? else { return Ok(None) };
        let said = String::from_utf8_lossy(&said).into_owned();
        let Some((tar, directory)) = said.split_once('\n') else { return Ok(None) };
        let packing = Packing { directory: directory.to_owned(), is_gnu: tar == "gnu" };
        Ok(Some(packing).filter(|packing| !packing.directory.is_empty()))
    }

    pub(super) fn end_packing(&mut self, packing: &Packing, act: &str) -> Result<(), Error> {
        self.run_script(END, &[&packing.directory], act).map(|_| ())
    }

    /// Fetches files in one archive and puts them in their places. If the archive may not be whole, or cannot be made,
    /// each file comes for itself, and so does what is missing in it or has another size than the list says.
    pub(super) fn fetch(
        &mut self,
        packing: &Packing,
        tree: &mut Download<'_>,
        wanted: Wanted<'_>,
        below: &mut Below,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        if wanted.files.is_empty() {
            return Ok(());
        }
        let (guest, options, act) = (tree.guest, tree.options, tree.act);
        let bytes = wanted.bytes;
        let mut missing: HashMap<Vec<u8>, Listed<'_>> = HashMap::new();
        for listed in wanted.files {
            missing.insert(listed.place.as_os_str().as_bytes().to_vec(), listed);
        }
        let packed = self.pack(packing, guest, &missing, act).and_then(|complaints| {
            if complaints.is_empty() { self.read_archive(packing, bytes, options, act, on_progress) } else { Ok(None) }
        });
        let archive = match packed {
            Ok(archive) => archive.unwrap_or_default(),
            // What keeps the archive away need not keep the files away: a full /tmp.
            Err(error @ (Error::Guest { .. } | Error::Agent { .. })) if !error.needs_sync() => Vec::new(),
            Err(error) => return Err(error),
        };
        let Download { report, links, .. } = tree;
        let mut again = Vec::new();
        let mode = |file: &GuestFile| Some(file.mode).filter(|_| options.keep_mode);
        let mut put = |name: &[u8], packed: Packed| {
            let shown = PathBuf::from(OsStr::from_bytes(name));
            let Some(listed) = missing.remove(name) else {
                report.skipped.push((shown, "the guest sends it unasked, or twice".to_owned()));
                return Ok(());
            };
            match packed {
                Packed::File(content) if content.len() as u64 != listed.file.size => again.push(listed),
                Packed::File(content) if listed.file.kind == FileKind::File => {
                    match put_file(below, &listed.place, &content, mode(listed.file)) {
                        Ok(()) => {
                            report.files += 1;
                            report.bytes += content.len() as u64;
                        }
                        Err(source) if source.kind() == io::ErrorKind::InvalidInput => {
                            report.skipped.push((shown, source.to_string()));
                        }
                        Err(source) => return Err(local(&format!("write {}", listed.place.display()), source)),
                    }
                }
                Packed::Link(target) if listed.file.kind == FileKind::Link => links.push((listed.place, target)),
                _ => report.skipped.push((shown, "it has become something else meanwhile".to_owned())),
            }
            Ok(())
        };
        if !archive.is_empty()
            && let Err(source) = unpack(&archive, &mut put)?
        {
            return Err(Error::Guest {
                act: act.to_owned(),
                cause: format!("its archive is not understood: {source}"),
            });
        }
        again.extend(missing.into_values());
        self.fetch_each(tree, again, below, on_progress)
    }

    /// Has the archive made. Returns what tar says of files that it could not take.
    fn pack(
        &mut self,
        packing: &Packing,
        guest: &str,
        wanted: &HashMap<Vec<u8>, Listed<'_>>,
        act: &str,
    ) -> Result<String, Error> {
        let names: Vec<Vec<u8>> = wanted.keys().map(|name| [b"./", name.as_slice()].concat()).collect();
        let mut arguments = vec![packing.directory.clone(), guest.to_owned()];
        if packing.is_gnu {
            let list = format!("{}/n", packing.directory);
            self.write_file(
                &list,
                &names.iter().flat_map(|name| [name.as_slice(), b"\0"].concat()).collect::<Vec<u8>>(),
            )?;
            arguments.extend(["gnu".to_owned()]);
        } else {
            arguments.push("other".to_owned());
            arguments.extend(names.iter().map(|name| String::from_utf8_lossy(name).into_owned()));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = self.run_script_within(self.patience().tree, PACK, &arguments, act)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }

    /// Reads the archive; `None` if it is larger than the files in it may have made it.
    fn read_archive(
        &mut self,
        packing: &Packing,
        expected: u64,
        options: CopyOptions,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<Option<Vec<u8>>, Error> {
        /// Files grow while they are copied, but not all of them by so much.
        const GROWTH: u64 = 4 << 20;
        let path = format!("{}/a", packing.directory);
        let most = expected + GROWTH;
        let (mut archive, mut is_too_large) = (Vec::new(), false);
        let handle = self.open(&path, "r")?;
        let read = self.read_to_end(handle, act, &mut |bytes| {
            archive.extend_from_slice(bytes);
            is_too_large = archive.len() as u64 > most;
            if is_too_large {
                return Err(io::Error::other("the guest sends more than it has listed"));
            }
            let copied_bytes = expected.min(archive.len() as u64);
            let progress = Progress { path: act, copied_bytes, total_bytes: expected };
            if on_progress(progress).is_break() { Err(stopped()) } else { Ok(()) }
        });
        match self.close_after(handle, read) {
            Err(error) if is_too_large && !error.needs_sync() => return Ok(None),
            read => read?,
        };
        let bytes = archive.len() as u64;
        let progress = Progress { path: act, copied_bytes: expected, total_bytes: expected };
        if options.verify
            && self.guest_sha256(&path, bytes, progress, on_progress)? != Some(hex(Sha256::new_with_prefix(&archive)))
        {
            let detail = "the archive in which its files travel is another one there, or the guest has no sha256sum";
            return Err(Error::Mismatch { path: act.to_owned(), detail: detail.to_owned() });
        }
        Ok(Some(archive))
    }

    /// The SHA-256 sums of files below a directory of the guest, by name; those that are not there are left out.
    pub(super) fn guest_sums<'a>(
        &mut self,
        top: &str,
        names: impl Iterator<Item = &'a str>,
        act: &str,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<HashMap<Vec<u8>, String>, Error> {
        let mut sums = HashMap::new();
        for names in chunks(names) {
            let arguments = [&[top], names.as_slice()].concat();
            let said = self.run_script_while(self.patience().tree, SUMS, &arguments, act, go_on)?;
            let said = said.unwrap_or_default();
            // A name with a line end is written otherwise; its file is copied once more.
            for line in said.split(|&byte| byte == b'\n').filter(|line| line.len() > 66) {
                let (sum, name) = line.split_at(64);
                if sum.iter().all(u8::is_ascii_hexdigit) {
                    sums.insert(name[2..].to_vec(), String::from_utf8_lossy(sum).into_owned());
                }
            }
        }
        Ok(sums)
    }
}

fn put_file(below: &mut Below, place: &Path, content: &[u8], mode: Option<u32>) -> io::Result<()> {
    let place = below.place(place)?;
    let partial = Partial::beside(&place, None)?;
    let put = || {
        let mut sparse = Sparse::new(&partial.file, 0);
        sparse.write(content)?;
        sparse.finish()?;
        partial.complete_quickly(&place, mode)
    };
    put().inspect_err(|_| partial.remove())
}

/// Says what a broken-off tree is.
pub(super) fn explain_tree(error: Error, act: &str) -> Error {
    explain(error, act, None, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_a_guest_makes_up_costs_nothing() {
        for kind in [FileKind::Link, FileKind::File] {
            for size in [100 << 30, 1 << 62, u64::MAX] {
                let file = GuestFile {
                    path: b"/x".to_vec(),
                    kind,
                    size,
                    mode: 0o777,
                    owner: String::new(),
                    group: String::new(),
                    modified_seconds: 0,
                    links: 1,
                    allocated_bytes: size,
                    stamp: String::new(),
                };
                let mut wanted = Wanted::default();
                while !wanted.is_full() {
                    wanted.push(Listed { file: &file, place: PathBuf::from("x") });
                }
                assert!(wanted.bytes < 2 * FULL_BYTES as u64, "{} bytes", wanted.bytes);
                assert!(wanted.files.len() > 1);
            }
        }
    }
}
