//! A file from the guest to the host.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::data_map::DataMap;
use super::holes::{Run, Sparse};
use super::partial::Partial;
use super::place::{Destination, Place, flags};
use super::source::{MOST_OF_AN_UNSIZED_FILE, Patient};
use super::{Copied, CopyOptions, OnProgress, Progress, explain, hex, stopped};
use crate::agent::Agent;
use crate::error::Error;
use crate::guest_files::{FileKind, GuestFile};
use crate::kind::Kind;
use crate::transport::Transport;

/// What is known of the file in the guest before it is copied.
pub(super) struct Original {
    pub(super) size: u64,
    pub(super) mode: Option<u32>,
    pub(super) stamp: Option<String>,
    /// Where it has data, if that is known.
    pub(super) map: Option<DataMap>,
}

impl<T: Transport> Agent<T> {
    /// Copies a file of the guest to a path of the host. A file that is there gets the new content when all of it has
    /// come, and keeps what else it has; links are followed, devices and FIFOs are written to.
    pub fn download(
        &mut self,
        guest: &str,
        host: &Path,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let looked_at = self.look_at(guest, on_progress);
        let original =
            looked_at.map_err(|error| explain(error, &format!("copy {guest} from the guest"), None, false))?;
        let act = format!("copy {guest} from the guest to {}", host.display());
        match Destination::of(host).map_err(|source| local(&act, source))? {
            Destination::File(place) => self.download_at(guest, &original, &place, options, &act, on_progress),
            Destination::Through(path) => {
                let mut go_on =
                    || on_progress(Progress { path: guest, copied_bytes: 0, total_bytes: original.size }).is_continue();
                let file = open_through(&path, &mut go_on).map_err(|source| local(&act, source));
                let copied = file.and_then(|file| self.download_through(guest, &original, &file, &act, on_progress));
                copied.map_err(|error| explain(error, &act, None, false))
            }
        }
    }

    /// Copies a file of the guest to what is open on the host: a pipe, a terminal. What has come when it fails stays there.
    pub fn download_into(&mut self, guest: &str, file: &File, on_progress: OnProgress<'_>) -> Result<Copied, Error> {
        let looked_at = self.look_at(guest, on_progress);
        let original =
            looked_at.map_err(|error| explain(error, &format!("copy {guest} from the guest"), None, false))?;
        let act = format!("copy {guest} from the guest");
        let copied = self.download_through(guest, &original, file, &act, on_progress);
        copied.map_err(|error| explain(error, &act, None, false))
    }

    pub(super) fn download_at(
        &mut self,
        guest: &str,
        original: &Original,
        place: &Place,
        options: CopyOptions,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let source = options.resume.then_some(guest);
        let partial = Partial::beside(place, source).map_err(|source| local(act, source))?;
        let copied = self.download_to(&partial, guest, original, options, act, on_progress);
        let copied = copied.and_then(|copied| {
            let mode = original.mode.filter(|_| options.keep_mode);
            partial.complete(place, mode).map_err(|source| local(act, source))?;
            Ok(copied)
        });
        copied.map_err(|error| {
            let is_wrong = matches!(error, Error::Changed { .. } | Error::Mismatch { .. });
            let is_full = error.kind() == Kind::HostFull;
            let is_kept = options.resume && !is_wrong && !is_full && partial.is_worth_keeping();
            if !is_kept {
                partial.remove();
            }
            explain(error, act, is_kept.then(|| partial.at.shown.display().to_string()), options.resume)
        })
    }

    /// A guest without `stat` (Windows), or whose agent starts no programs, tells the size alone.
    fn look_at(&mut self, guest: &str, on_progress: OnProgress<'_>) -> Result<Original, Error> {
        let file: GuestFile = match self.stat_file(guest, true) {
            Ok(file) => file,
            Err(Error::Agent { .. }) => {
                let handle = self.open(guest, "r")?;
                let size = self.seek(handle, SeekFrom::End(0));
                let size = self.close_after(handle, size)?;
                return Ok(Original { size, mode: None, stamp: None, map: None });
            }
            Err(error) => return Err(error),
        };
        if file.kind != FileKind::File {
            let what = if file.kind == FileKind::Directory { "a directory" } else { "no regular file" };
            return Err(Error::Guest { act: format!("copy {guest} from the guest"), cause: format!("it is {what}") });
        }
        let map = self.data_map(guest, &file, &format!("copy {guest} from the guest"), on_progress)?;
        Ok(Original { size: file.size, mode: Some(file.mode), stamp: Some(file.stamp), map })
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
        let resumed_at =
            if options.resume { self.resumable(file, guest, original.size, &mut hash, on_progress)? } else { 0 };
        if !partial.is_direct {
            file.set_len(resumed_at).map_err(|source| local(act, source))?;
        }
        let mut sparse = Sparse::new(file, resumed_at);
        let copied_bytes = self.read_original(guest, original, resumed_at, act, on_progress, &mut |run| {
            if options.verify {
                each_piece(&run, &mut |bytes| {
                    hash.update(bytes);
                    Ok(())
                })?;
            }
            match run {
                _ if partial.is_direct => each_piece(&run, &mut |bytes| file.write_all(bytes)),
                Run::Data(bytes) => sparse.write(bytes),
                Run::Zeros(zeros) => {
                    sparse.pass_over(zeros);
                    Ok(())
                }
            }
        })?;
        if !partial.is_direct {
            sparse.finish().map_err(|source| local(act, source))?;
        }
        if let Some(stamp) = &original.stamp
            && self.stat_file(guest, true)?.stamp != *stamp
        {
            return Err(Error::Changed { path: guest.to_owned() });
        }
        let shown = &partial.at.shown;
        let sha256 =
            if options.verify { Some(self.compare(guest, shown, copied_bytes, hash, on_progress)?) } else { None };
        Ok(Copied { bytes: copied_bytes, resumed_at, sha256 })
    }

    fn download_through(
        &mut self,
        guest: &str,
        original: &Original,
        file: &File,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let is_wanted = std::cell::Cell::new(true);
        let mut heard = |progress: Progress<'_>| {
            let answer = on_progress(progress);
            is_wanted.set(answer.is_continue());
            answer
        };
        let mut go_on = || is_wanted.get();
        let mut patient = Patient { file, go_on: &mut go_on };
        let bytes = self.read_original(guest, original, 0, act, &mut heard, &mut |run| {
            each_piece(&run, &mut |bytes| patient.write_all(bytes))
        })?;
        Ok(Copied { bytes, resumed_at: 0, sha256: None })
    }

    /// Hands on a file's bytes from a position to its end: as many as it has said. Returns its size.
    fn read_original(
        &mut self,
        guest: &str,
        original: &Original,
        from: u64,
        act: &str,
        on_progress: OnProgress<'_>,
        take: TakeRun<'_>,
    ) -> Result<u64, Error> {
        let handle = self.open(guest, "r")?;
        if let Some(map) = &original.map {
            let read = self.read_mapped(handle, guest, original.size, map, from, act, on_progress, take);
            return self.close_after(handle, read);
        }
        let mut copied_bytes = from;
        // Files that the kernel makes up, as those of /proc, say that they are empty.
        let is_sized = original.size > 0;
        let most = if is_sized { original.size } else { MOST_OF_AN_UNSIZED_FILE };
        let moved = if from == 0 { Ok(0) } else { self.seek(handle, SeekFrom::Start(from)) };
        let result = moved.and_then(|_| {
            self.read_to_end(handle, act, &mut |bytes| {
                copied_bytes += bytes.len() as u64;
                // Else a file that grows as fast as it is read would fill the host's disk.
                if copied_bytes > most {
                    return Err(stopped());
                }
                take(Run::Data(bytes))?;
                let progress = Progress { path: guest, copied_bytes, total_bytes: original.size.max(copied_bytes) };
                if on_progress(progress).is_break() { Err(stopped()) } else { Ok(()) }
            })
        });
        match self.close_after(handle, result) {
            Err(error) if copied_bytes <= most || error.needs_sync() => return Err(error),
            Ok(_) if copied_bytes == original.size || !is_sized => return Ok(copied_bytes),
            _ if is_sized => {}
            _ => {
                let cause = format!("it says that it is empty, and has no end after {} GiB", most >> 30);
                return Err(Error::Guest { act: act.to_owned(), cause });
            }
        }
        Err(Error::Changed { path: guest.to_owned() })
    }

    /// As [`read_original`](Self::read_original), of a file of which only these parts have data. That it has not changed
    /// meanwhile is for the caller to see.
    #[expect(clippy::too_many_arguments, reason = "all of one transfer")]
    fn read_mapped(
        &mut self,
        handle: i64,
        guest: &str,
        size: u64,
        map: &DataMap,
        from: u64,
        act: &str,
        on_progress: OnProgress<'_>,
        take: TakeRun<'_>,
    ) -> Result<u64, Error> {
        let mut at = from;
        let piece_bytes = self.capacity().read_bytes as u64;
        let mut hear = |copied_bytes| {
            let progress = Progress { path: guest, copied_bytes, total_bytes: size };
            if on_progress(progress).is_break() { Err(local(act, stopped())) } else { Ok(()) }
        };
        for &(start, bytes) in map.iter().filter(|(start, bytes)| start + bytes > from) {
            let end = start + bytes;
            at = pass_over(at, start, act, &mut hear, take)?;
            self.seek(handle, SeekFrom::Start(at))?;
            while at < end {
                let piece = self.read_piece(handle, (end - at).min(piece_bytes) as usize)?;
                let data = &piece.buf_b64.0;
                if data.is_empty() || data.len() as u64 > end - at {
                    return Err(Error::Changed { path: guest.to_owned() });
                }
                take(Run::Data(data)).map_err(|source| local(act, source))?;
                at += data.len() as u64;
                hear(at)?;
            }
        }
        pass_over(at, size, act, &mut hear, take)
    }

    fn compare(
        &mut self,
        guest: &str,
        partial: &Path,
        bytes: u64,
        hash: Sha256,
        on_progress: OnProgress<'_>,
    ) -> Result<String, Error> {
        let here = hex(hash);
        let progress = Progress { path: guest, copied_bytes: bytes, total_bytes: bytes };
        match self.guest_sha256(guest, bytes, progress, on_progress)? {
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
    fn resumable(
        &mut self,
        mut file: &File,
        guest: &str,
        size: u64,
        hash: &mut Sha256,
        on_progress: OnProgress<'_>,
    ) -> Result<u64, Error> {
        let Ok(bytes) = file.metadata().map(|file| file.len()) else { return Ok(0) };
        if bytes == 0 || bytes > size {
            return Ok(0);
        }
        let there =
            self.guest_sha256(guest, bytes, Progress { path: guest, copied_bytes: 0, total_bytes: size }, on_progress)?;
        let mut so_far = Sha256::new();
        let mut go_on = || on_progress(Progress { path: guest, copied_bytes: 0, total_bytes: size }).is_continue();
        let summed = file.seek(SeekFrom::Start(0)).and_then(|_| sum_up_while(&mut file, &mut so_far, &mut go_on));
        if let Err(error) = summed.as_ref()
            && super::is_stop(error)
        {
            return Err(local(&format!("copy {guest} from the guest"), stopped()));
        }
        if summed.is_err() || there != Some(hex(so_far.clone())) {
            return Ok(0);
        }
        *hash = so_far;
        Ok(bytes)
    }
}

/// Takes what a file holds.
type TakeRun<'a> = &'a mut dyn FnMut(Run<'_>) -> io::Result<()>;

/// As many zeros are passed over at once: in between the caller is asked whether to go on.
const MOST_ZEROS: u64 = 64 << 20;

/// Hands on the zeros of a hole; returns where it ends.
fn pass_over(
    mut at: u64,
    end: u64,
    act: &str,
    hear: &mut dyn FnMut(u64) -> Result<(), Error>,
    take: TakeRun<'_>,
) -> Result<u64, Error> {
    while at < end {
        let zeros = (end - at).min(MOST_ZEROS);
        take(Run::Zeros(zeros as usize)).map_err(|source| local(act, source))?;
        at += zeros;
        hear(at)?;
    }
    Ok(at)
}

/// The bytes of a run, piece by piece.
fn each_piece(run: &Run<'_>, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    match run {
        Run::Data(bytes) => take(bytes),
        Run::Zeros(zeros) => {
            let mut left = *zeros;
            while left > 0 {
                let size = left.min(ZEROS.len());
                take(&ZEROS[..size])?;
                left -= size;
            }
            Ok(())
        }
    }
}

/// Opens what is no regular file for writing. A FIFO without a reader is waited for as long as `go_on` says.
fn open_through(path: &Path, go_on: &mut dyn FnMut() -> bool) -> io::Result<File> {
    const PAUSE: Duration = Duration::from_millis(50);
    // What stood there may have given way to a file: none is made, and one that is there is emptied, as cp does.
    let is_fifo = path.metadata()?.file_type().is_fifo();
    let extra = if is_fifo { OFlags::NONBLOCK } else { OFlags::TRUNC };
    loop {
        let opened = File::options().write(true).custom_flags(flags(extra | OFlags::NOCTTY)).open(path);
        match opened {
            Err(error) if is_fifo && Errno::from_io_error(&error) == Some(Errno::NXIO) => {
                if !go_on() {
                    return Err(stopped());
                }
                thread::sleep(PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Takes all that a reader gives.
pub(super) fn sum_up(reader: &mut impl Read, hash: &mut Sha256) -> io::Result<u64> {
    sum_up_while(reader, hash, &mut || true)
}

/// As [`sum_up`], and asks after each piece whether to go on.
pub(super) fn sum_up_while(
    reader: &mut impl Read,
    hash: &mut Sha256,
    go_on: &mut dyn FnMut() -> bool,
) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let size = crate::file::read_full(reader, &mut buffer)?;
        if size == 0 {
            return Ok(bytes);
        }
        hash.update(&buffer[..size]);
        bytes += size as u64;
        if !go_on() {
            return Err(stopped());
        }
    }
}

pub(crate) fn local(act: &str, source: io::Error) -> Error {
    Error::Local { act: act.to_owned(), source }
}
