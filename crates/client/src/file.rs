//! Whole files to and from the guest, in pieces.

use std::io::{self, Read, Write};

use qga_protocol::base64::Base64Text;
use qga_protocol::{Command, file};

use crate::connection::Connection;
use crate::error::Error;

/// Bytes of a file in one message. In base64 they are 5.3 MiB, well below the 10 MiB at which libvirt drops a reply.
pub const PIECE_BYTES: usize = 4 << 20;

impl<S: Read + Write> Connection<S> {
    /// Reads a whole file of the guest into memory.
    pub fn read_file(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        self.copy_from_guest(path, &mut content)?;
        Ok(content)
    }

    /// Writes a whole file in the guest; one that exists is replaced.
    pub fn write_file(&mut self, path: &str, mut content: &[u8]) -> Result<(), Error> {
        self.copy_to_guest(path, &mut content).map(|_| ())
    }

    /// Copies a file of the guest to a writer. Returns the number of bytes.
    pub fn copy_from_guest(&mut self, path: &str, target: &mut impl Write) -> Result<u64, Error> {
        let handle = self.open(path, "r")?;
        let mut copy = || {
            let mut copied = 0;
            loop {
                let piece = self.read_piece(handle, PIECE_BYTES)?;
                target
                    .write_all(&piece.buf_b64.0)
                    .map_err(|source| Error::Local { act: format!("copy {path} from the guest"), source })?;
                copied += piece.buf_b64.0.len() as u64;
                if piece.eof {
                    return Ok(copied);
                }
                if piece.buf_b64.0.is_empty() {
                    let problem = "neither bytes nor the end of the file came: it has nothing to give now";
                    return Err(Error::reply(file::Read::INFO.name, problem, path.as_bytes()));
                }
            }
        };
        let copied = copy();
        self.close_after(handle, copied)
    }

    /// Copies a reader's bytes to a file in the guest; one that exists is replaced. Returns the number of bytes.
    pub fn copy_to_guest(&mut self, path: &str, source: &mut impl Read) -> Result<u64, Error> {
        let handle = self.open(path, "w")?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut copy = || {
            let mut copied = 0;
            loop {
                let size = read_full(source, &mut piece)
                    .map_err(|source| Error::Local { act: format!("copy to {path} in the guest"), source })?;
                if size == 0 {
                    return Ok(copied);
                }
                self.write_piece(handle, &piece[..size])?;
                copied += size as u64;
            }
        };
        let copied = copy();
        self.close_after(handle, copied)
    }

    /// Opens a file in the guest and returns its handle. `mode` is one of fopen(3)'s.
    pub fn open(&mut self, path: &str, mode: &str) -> Result<i64, Error> {
        self.call(&file::Open { path: path.to_owned(), mode: Some(mode.to_owned()) })
    }

    /// Closes a handle.
    pub fn close(&mut self, handle: i64) -> Result<(), Error> {
        self.call(&file::Close { handle }).map(|_| ())
    }

    /// Reads up to `count` bytes at the handle's position.
    pub fn read_piece(&mut self, handle: i64, count: usize) -> Result<file::FileRead, Error> {
        let piece = self.call(&file::Read { handle, count: Some(count as i64) })?;
        let carried = piece.buf_b64.0.len();
        if carried as i64 != piece.count {
            let problem = format!("it says {} bytes and carries {carried}", piece.count);
            return Err(Error::reply(file::Read::INFO.name, problem, b""));
        }
        Ok(piece)
    }

    /// Writes all of `bytes` at the handle's position.
    pub fn write_piece(&mut self, handle: i64, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let command = file::Write { handle, buf_b64: Base64Text::encode(bytes), count: None };
            let written = self.call(&command)?.count;
            let taken = usize::try_from(written).ok().filter(|&count| count > 0);
            let Some(rest) = taken.and_then(|count| bytes.get(count..)) else {
                let problem = format!("{written} of {} bytes were written", bytes.len());
                return Err(Error::reply(file::Write::INFO.name, problem, b""));
            };
            bytes = rest;
        }
        Ok(())
    }

    /// Closes the handle whatever happened; the first error is the one to report.
    fn close_after<T>(&mut self, handle: i64, result: Result<T, Error>) -> Result<T, Error> {
        let closed = match &result {
            // A reply may be under way still, and would be taken for the answer to this.
            Err(error) if error.needs_sync() => Ok(()),
            _ => self.close(handle),
        };
        let value = result?;
        closed.map(|()| value)
    }
}

/// Reads until the buffer is full or the reader ends.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(size) => filled += size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
