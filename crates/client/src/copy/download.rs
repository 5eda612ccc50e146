//! A file from the guest to the host.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Copied, CopyOptions, OnProgress, PARTIAL, Progress, explain, hex, stopped};
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
        let partial = Partial::beside(host)?;
        let act = format!("copy {guest} from the guest to {}", host.display());
        let copied = self.download_to(&partial.path, guest, &original, options, &act, on_progress);
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
                && partial.path.metadata().is_ok_and(|partial| partial.len() > 0);
            if !is_kept {
                // There may be none; and an error of the removal would hide the first one.
                let _ = fs::remove_file(&partial.path);
            }
            explain(error, &act, is_kept.then(|| partial.path.display().to_string()))
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
        partial: &Path,
        guest: &str,
        original: &Original,
        options: CopyOptions,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let mut hash = Sha256::new();
        let resumed_at = if options.resume { self.resumable(partial, guest, original.size, &mut hash)? } else { None };
        let mut file = open_partial(partial, resumed_at.is_some()).map_err(|source| local(act, source))?;
        let resumed_at = resumed_at.unwrap_or(0);

        let handle = self.open(guest, "r")?;
        let mut copied_bytes = resumed_at;
        let result = match resumed_at {
            0 => Ok(0),
            position => self.seek(handle, SeekFrom::Start(position)),
        };
        let result = result.and_then(|_| {
            self.read_to_end(handle, act, &mut |bytes| {
                file.write_all(bytes)?;
                if options.verify {
                    hash.update(bytes);
                }
                copied_bytes += bytes.len() as u64;
                let progress = Progress { path: guest, copied_bytes, total_bytes: original.size.max(copied_bytes) };
                if on_progress(progress).is_break() { Err(stopped()) } else { Ok(()) }
            })
        });
        self.close_after(handle, result)?;
        drop(file);

        if let Some(stamp) = &original.stamp {
            let is_same = self.stat_file(guest, true)?.stamp == *stamp;
            // Files that the kernel makes up, as those of /proc, say that they are empty.
            if !is_same || (original.size > 0 && copied_bytes != original.size) {
                return Err(Error::Changed { path: guest.to_owned() });
            }
        }
        let sha256 = if options.verify { Some(self.compare(guest, partial, copied_bytes, hash)?) } else { None };
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

    /// How much of a partial file is the start of the guest's file. `hash` takes it in.
    fn resumable(&mut self, partial: &Path, guest: &str, size: u64, hash: &mut Sha256) -> Result<Option<u64>, Error> {
        let Ok(mut file) = open_partial(partial, true) else { return Ok(None) };
        let Ok(bytes) = file.seek(SeekFrom::End(0)).and_then(|bytes| file.rewind().map(|()| bytes)) else {
            return Ok(None);
        };
        if bytes == 0 || bytes > size {
            return Ok(None);
        }
        let there = self.guest_sha256(guest, bytes)?;
        let mut so_far = Sha256::new();
        if sum_up(&mut file, &mut so_far).is_err() || there != Some(hex(so_far.clone())) {
            return Ok(None);
        }
        *hash = so_far;
        Ok(Some(bytes))
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

/// Opens a partial file of our own, never what a link leads to.
fn open_partial(path: &Path, exists: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    if exists {
        return options.append(true).open(path);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    options.write(true).create_new(true).mode(0o600).open(path)
}

pub(super) fn local(act: &str, source: io::Error) -> Error {
    Error::Local { act: act.to_owned(), source }
}

/// The file that becomes the copy.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(host: &Path) -> Result<Self, Error> {
        let refuse = |cause: &str| {
            local(&format!("copy to {}", host.display()), io::Error::new(io::ErrorKind::InvalidInput, cause.to_owned()))
        };
        if host.is_dir() {
            return Err(refuse("it is a directory"));
        }
        let name = host.file_name().ok_or_else(|| refuse("it has no file name"))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(PARTIAL);
        Ok(Self { path: host.with_file_name(partial) })
    }

    /// Gives the whole file its permissions and its name.
    fn complete(&self, host: &Path, mode: Option<u32>) -> io::Result<()> {
        let mode = mode.unwrap_or_else(mode_of_a_new_file);
        fs::set_permissions(&self.path, Permissions::from_mode(mode & 0o777))?;
        fs::rename(&self.path, host)
    }
}

/// Read without changing it, which other threads would notice.
fn mode_of_a_new_file() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    0o666 & !mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}
