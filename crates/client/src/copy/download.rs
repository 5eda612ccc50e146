//! A file from the guest to the host.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::partial::Partial;
use super::{Copied, CopyOptions, OnProgress, Progress, explain, hex, stopped};
use crate::agent::Agent;
use crate::error::Error;
use crate::guest_files::{FileKind, GuestFile};
use crate::kind::Kind;
use crate::transport::Transport;

/// What is known of the file in the guest before it is copied.
struct Original {
    size: u64,
    mode: Option<u32>,
    stamp: Option<String>,
}

impl<T: Transport> Agent<T> {
    /// Copies a file of the guest to a path of the host; a file that is there is replaced when the copy is whole.
    pub fn download(
        &mut self,
        guest: &str,
        host: &Path,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let original = self.look_at(guest)?;
        let act = format!("copy {guest} from the guest to {}", host.display());
        let partial = Partial::beside(host).map_err(|source| local(&act, source))?;
        let copied = self.download_to(&partial, guest, &original, options, &act, on_progress);
        let copied = copied.and_then(|copied| {
            partial
                .complete(host, original.mode.filter(|_| options.keep_mode))
                .map_err(|source| local(&act, source))?;
            Ok(copied)
        });
        copied.map_err(|error| {
            let is_wrong = matches!(error, Error::Changed { .. } | Error::Mismatch { .. });
            let is_full = error.kind() == Kind::HostFull;
            let is_kept = options.resume
                && !is_wrong
                && !is_full
                && partial.file.metadata().is_ok_and(|partial| partial.len() > 0);
            if !is_kept {
                partial.remove();
            }
            explain(error, &act, is_kept.then(|| partial.path.display().to_string()), options.resume)
        })
    }

    /// A guest without `stat` (Windows), or whose agent starts no programs, tells the size alone.
    fn look_at(&mut self, guest: &str) -> Result<Original, Error> {
        let file: GuestFile = match self.stat_file(guest, true) {
            Ok(file) => file,
            Err(Error::Agent { .. }) => {
                let handle = self.open(guest, "r")?;
                let size = self.seek(handle, SeekFrom::End(0));
                let size = self.close_after(handle, size)?;
                return Ok(Original { size, mode: None, stamp: None });
            }
            Err(error) => return Err(error),
        };
        if file.kind != FileKind::File {
            let what = if file.kind == FileKind::Directory { "a directory" } else { "no regular file" };
            return Err(Error::Guest { act: format!("copy {guest} from the guest"), cause: format!("it is {what}") });
        }
        Ok(Original { size: file.size, mode: Some(file.mode), stamp: Some(file.stamp) })
    }

    fn download_to(
        &mut self,
        partial: &Partial,
        guest: &str,
        original: &Original,
        options: CopyOptions,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let mut hash = Sha256::new();
        let mut file = &partial.file;
        let resumed_at = if options.resume { self.resumable(file, guest, original.size, &mut hash)? } else { 0 };
        file.set_len(resumed_at)
            .and_then(|()| file.seek(SeekFrom::Start(resumed_at)))
            .map_err(|source| local(act, source))?;

        let handle = self.open(guest, "r")?;
        let mut copied_bytes = resumed_at;
        // Files that the kernel makes up, as those of /proc, say that they are empty.
        let is_too_long = |bytes: u64| original.size > 0 && bytes > original.size;
        let result = match resumed_at {
            0 => Ok(0),
            position => self.seek(handle, SeekFrom::Start(position)),
        };
        let result = result.and_then(|_| {
            self.read_to_end(handle, act, &mut |bytes| {
                // Else a file that grows as fast as it is read would fill the host's disk.
                if is_too_long(copied_bytes + bytes.len() as u64) {
                    copied_bytes += bytes.len() as u64;
                    return Err(stopped());
                }
                file.write_all(bytes)?;
                if options.verify {
                    hash.update(bytes);
                }
                copied_bytes += bytes.len() as u64;
                let progress = Progress { path: guest, copied_bytes, total_bytes: original.size.max(copied_bytes) };
                if on_progress(progress).is_break() { Err(stopped()) } else { Ok(()) }
            })
        });
        let changed = || Error::Changed { path: guest.to_owned() };
        match self.close_after(handle, result) {
            Err(error) if !is_too_long(copied_bytes) || error.needs_sync() => return Err(error),
            Err(_) => return Err(changed()),
            Ok(_) => {}
        }
        if original.size > 0 && copied_bytes != original.size {
            return Err(changed());
        }
        if let Some(stamp) = &original.stamp
            && self.stat_file(guest, true)?.stamp != *stamp
        {
            return Err(changed());
        }
        let sha256 = if options.verify { Some(self.compare(guest, &partial.path, copied_bytes, hash)?) } else { None };
        Ok(Copied { bytes: copied_bytes, resumed_at, sha256 })
    }

    fn compare(&mut self, guest: &str, partial: &Path, bytes: u64, hash: Sha256) -> Result<String, Error> {
        let here = hex(hash);
        match self.guest_sha256(guest, bytes)? {
            Some(there) if there == here => Ok(here),
            Some(there) => Err(Error::Mismatch {
                path: partial.display().to_string(),
                detail: format!("its SHA-256 is {here}, in the guest {there}"),
            }),
            None => Err(Error::Guest {
                act: format!("compare {guest} with its copy"),
                cause: "the guest has no sha256sum".to_owned(),
            }),
        }
    }

    /// How much of a partial file is the start of the guest's file: all or nothing. `hash` takes it in.
    fn resumable(&mut self, mut file: &File, guest: &str, size: u64, hash: &mut Sha256) -> Result<u64, Error> {
        let Ok(bytes) = file.metadata().map(|file| file.len()) else { return Ok(0) };
        if bytes == 0 || bytes > size {
            return Ok(0);
        }
        let there = self.guest_sha256(guest, bytes)?;
        let mut so_far = Sha256::new();
        if sum_up(&mut file, &mut so_far).is_err() || there != Some(hex(so_far.clone())) {
            return Ok(0);
        }
        *hash = so_far;
        Ok(bytes)
    }
}

/// Takes all that a reader gives.
pub(super) fn sum_up(reader: &mut impl Read, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let size = crate::file::read_full(reader, &mut buffer)?;
        if size == 0 {
            return Ok(bytes);
        }
        hash.update(&buffer[..size]);
        bytes += size as u64;
    }
}

pub(super) fn local(act: &str, source: io::Error) -> Error {
    Error::Local { act: act.to_owned(), source }
}
