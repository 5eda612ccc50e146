//! What is copied to a guest: a file of the host, or what comes through a FIFO or a device.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;

use super::place::flags;

/// How often the caller is asked whether to wait on.
const LOOK: Duration = Duration::from_millis(100);

/// Files that the kernel makes up say that they are empty. This much of one is taken: enough for all that are known, and
/// an end for those that have none.
pub(crate) const MOST_OF_AN_UNSIZED_FILE: u64 = 1 << 30;

/// Something open for reading.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    /// Of a regular file that says its size.
    pub(super) sized: Option<Metadata>,
    /// Mode of a regular file, to be given to its copy.
    pub(super) mode: Option<u32>,
    /// Most bytes that are taken, where the size says nothing.
    pub(super) most_bytes: u64,
}

impl Source {
    /// Opens a file. A FIFO without a writer is no reason to wait here.
    pub(super) fn open(host: &Path) -> io::Result<Self> {
        let file = File::options().read(true).custom_flags(flags(OFlags::NONBLOCK | OFlags::NOCTTY)).open(host)?;
        Self::of(file)
    }

    pub(super) fn of(file: File) -> io::Result<Self> {
        let there = file.metadata()?;
        if there.is_dir() {
            return Err(super::place::refusal("it is a directory"));
        }
        let is_file = there.is_file();
        let mode = is_file.then(|| there.mode());
        // What comes through a FIFO or from a device ends when its writer ends it, or the caller.
        let most_bytes = if is_file { MOST_OF_AN_UNSIZED_FILE } else { u64::MAX };
        let is_sized = is_file && (there.len() > 0 || is_empty(&file));
        Ok(Self { sized: is_sized.then_some(there), file, mode, most_bytes })
    }

    /// Whether reading it may have to be waited for.
    pub(super) fn may_wait(&self) -> bool {
        self.file.metadata().is_ok_and(|there| !there.is_file() && !there.file_type().is_block_device())
    }
}

/// Whether a file that says that it is empty can be believed.
fn is_empty(file: &File) -> bool {
    let mut byte = [0];
    matches!(std::os::unix::fs::FileExt::read_at(file, &mut byte, 0), Ok(0))
}

/// Reads or writes what may have to be waited for, and asks `go_on` meanwhile; `false` ends it with
/// [`stopped`](super::stopped).
pub(super) struct Patient<'a> {
    pub(super) file: &'a File,
    pub(super) go_on: &'a mut dyn FnMut() -> bool,
}

impl Patient<'_> {
    fn wait_for(&mut self, events: PollFlags) -> io::Result<()> {
        loop {
            let mut waited = [PollFd::new(self.file, events)];
            let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
            match poll(&mut waited, Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if !(self.go_on)() {
                return Err(super::stopped());
            }
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait_for(PollFlags::IN)?;
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait_for(PollFlags::OUT)?;
            match self.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
