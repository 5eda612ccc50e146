//! What is kept of a program's output, within limits.
//!
//! While the program runs it is kept in a file that has no name (a memfd), because another process can have that
//! too: what has come so far is not lost with the agent. What comes at the program's end only is kept in plain memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::MemfdFlags;

use super::child::Exit;

/// Most bytes kept of one stream of one program; the rest is read and dropped.
pub const STREAM_BYTES_MAX: usize = 16 << 20;
/// Most bytes kept of all programs together.
pub const OUTPUT_BYTES_MAX: usize = 128 << 20;
/// A result that nobody has fetched for this long makes room if room is needed.
pub const RESULT_AGE: Duration = Duration::from_hours(1);
/// Bytes taken from a pipe in one go: what a pipe holds.
pub const PIPE_BYTES: usize = 64 << 10;

/// What a client is told of a program.
#[derive(Debug)]
pub enum Status {
    /// It has not ended.
    Running,
    /// It has: how, if that could be learned, and what was kept of its output.
    Ended(Option<Exit>, [Output; 2]),
}

/// What was kept of a stream.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// Where all of it is, once others may have it.
    file: Option<File>,
    length: usize,
    truncated: bool,
}

impl Output {
    /// What another process has kept in a file.
    pub fn of_file(file: OwnedFd, truncated: bool) -> io::Result<Self> {
        let file = File::from(file);
        let stored = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let length = stored.min(STREAM_BYTES_MAX);
        Ok(Self { bytes: Vec::new(), file: Some(file), length, truncated: truncated || length < stored })
    }

    /// Looks how much is in the file: another process may have written there.
    pub fn measure(&mut self) {
        if let Some(stored) = self.file.as_ref().and_then(|file| file.metadata().ok()) {
            self.length = usize::try_from(stored.len()).unwrap_or(usize::MAX).min(STREAM_BYTES_MAX);
        }
    }

    /// How many bytes are kept.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether more came than is kept.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Notes that more came than is kept.
    pub fn set_truncated(&mut self) {
        self.truncated = true;
    }

    /// Keeps bytes up to the limit and to `room`; returns how many.
    pub fn keep(&mut self, bytes: &[u8], room: usize) -> usize {
        let wanted = bytes.len().min(room).min(STREAM_BYTES_MAX - self.length);
        let kept = if let Some(file) = &self.file {
            write(file, &bytes[..wanted], self.length)
        } else {
            self.bytes.extend_from_slice(&bytes[..wanted]);
            wanted
        };
        self.length += kept;
        self.truncated |= kept < bytes.len();
        kept
    }

    /// The file, for another process; all that is kept goes there from now on.
    pub fn shared(&mut self) -> io::Result<BorrowedFd<'_>> {
        if self.file.is_none() {
            let file = File::from(rustix::fs::memfd_create(c"output", MemfdFlags::CLOEXEC)?);
            file.write_all_at(&self.bytes, 0)?;
            self.bytes = Vec::new();
            self.file = Some(file);
        }
        self.file().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(File::as_fd)
    }

    /// Nothing more will come: gives back memory that was held for that, and the descriptor.
    ///
    /// # Errors
    /// Of reading the file, which stays then.
    pub fn close(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            self.bytes = read(file, self.length)?;
            self.file = None;
        }
        self.bytes.shrink_to_fit();
        Ok(())
    }

    /// Some of it from an offset on, as much as there is and fits; returns how much.
    ///
    /// # Errors
    /// Of reading the file.
    pub fn read_at(&self, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
        let count = buffer.len().min(self.length.saturating_sub(offset));
        match &self.file {
            Some(file) => file.read_exact_at(&mut buffer[..count], offset as u64)?,
            None => buffer[..count].copy_from_slice(&self.bytes[offset..offset + count]),
        }
        Ok(count)
    }

    /// All of it.
    #[cfg(test)]
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        match &self.file {
            Some(file) => read(file, self.length),
            None => Ok(self.bytes),
        }
    }
}

fn read(file: &File, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes as much as the system has memory for.
fn write(file: &File, mut bytes: &[u8], mut offset: usize) -> usize {
    let begin = offset;
    while !bytes.is_empty() {
        match file.write_at(bytes, offset as u64) {
            Ok(0) => break,
            Ok(count) => {
                offset += count;
                bytes = &bytes[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::warn!("no memory for a program's output: {error}");
                break;
            }
        }
    }
    offset - begin
}

#[cfg(test)]
mod tests {
    use super::{Output, STREAM_BYTES_MAX};

    #[test]
    fn exactly_the_limit_is_not_truncated_and_more_is() {
        let mut output = Output::default();
        assert_eq!(output.keep(&vec![1; STREAM_BYTES_MAX], usize::MAX), STREAM_BYTES_MAX);
        assert!(!output.is_truncated());
        assert_eq!(output.keep(b"x", usize::MAX), 0);
        assert!(output.is_truncated());
        let mut short_of_room = Output::default();
        assert_eq!(short_of_room.keep(b"abc", 2), 2);
        assert!(short_of_room.is_truncated());
    }

    #[test]
    fn another_process_finds_what_came_before_and_after_the_sharing() {
        let mut output = Output::default();
        output.keep(b"before ", 100);
        let theirs = output.shared().unwrap().try_clone_to_owned().unwrap();
        output.keep(b"after", 100);
        let theirs = Output::of_file(theirs, false).unwrap();
        assert_eq!((theirs.len(), theirs.is_truncated()), (12, false));
        assert_eq!(theirs.into_bytes().unwrap(), b"before after");
        output.close().unwrap();
        assert!(output.file().is_none());
        assert_eq!(output.into_bytes().unwrap(), b"before after");
    }
}
