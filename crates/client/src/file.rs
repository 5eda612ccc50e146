//! Files of the guest through their handles, and whole files, in pieces.
//!
//! Several pieces are under way at once where the transport takes several requests; no reply is left unread, because
//! QEMU's agent ends when a client leaves one behind.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use qga_protocol::base64::Base64Text;
use qga_protocol::{Command, file};
use serde::Deserialize;

use crate::agent::Agent;
use crate::conversation::{Ticket, parse_reply};
use crate::error::Error;
use crate::transport::Transport;

/// Most bytes of a file in one message. In base64 they are 5.3 MiB, well below the 10 MiB at which libvirt drops a reply.
pub const PIECE_BYTES: usize = 4 << 20;

pub(crate) const READ: &str = file::Read::INFO.name;
pub(crate) const WRITE: &str = file::Write::INFO.name;

/// Writes under way at once. QEMU's agent loses requests that come over a virtio-serial port while it works on a long
/// one: of two with 1 MiB each the second is never answered.
const WRITES_IN_FLIGHT: usize = 1;

/// The reply to a read, whose data is still text inside the received line.
#[derive(Deserialize)]
struct Piece<'a> {
    count: i64,
    #[serde(rename = "buf-b64", borrow)]
    data: Base64Text<'a>,
    eof: bool,
}

/// Takes bytes as they come; its error ends the transfer.
pub type Take<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// Puts bytes into a buffer and says how many; none ends the transfer well, an error ends it badly.
pub type Give<'a> = &'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>;

/// Why a piece could not be handed on.
enum Refused {
    Encoding(qga_protocol::base64::Base64Error),
    Taker(io::Error),
}

impl From<qga_protocol::base64::Base64Error> for Refused {
    fn from(error: qga_protocol::base64::Base64Error) -> Self {
        Self::Encoding(error)
    }
}

impl<T: Transport> Agent<T> {
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
        let act = format!("copy {path} from the guest");
        let copied = self.read_to_end(handle, &act, &mut |bytes| target.write_all(bytes));
        self.close_after(handle, copied)
    }

    /// Copies a reader's bytes to a file in the guest; one that exists is replaced. Returns the number of bytes.
    pub fn copy_to_guest(&mut self, path: &str, source: &mut impl Read) -> Result<u64, Error> {
        let handle = self.open(path, "w")?;
        let act = format!("copy to {path} in the guest");
        let copied = self.write_all_of(handle, &act, &mut |buffer| read_full(source, buffer));
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

    /// Moves a handle's position, and returns the new one in bytes from the start.
    pub fn seek(&mut self, handle: i64, to: io::SeekFrom) -> Result<u64, Error> {
        let (offset, whence) = match to {
            io::SeekFrom::Start(offset) => (offset as i64, file::SeekFrom::Set),
            io::SeekFrom::Current(offset) => (offset, file::SeekFrom::Cur),
            io::SeekFrom::End(offset) => (offset, file::SeekFrom::End),
        };
        let moved = self.call(&file::Seek { handle, offset, whence: file::Whence::Name(whence) })?;
        Ok(moved.position as u64)
    }

    /// Reads up to `count` bytes at the handle's position.
    pub fn read_piece(&mut self, handle: i64, count: usize) -> Result<file::FileRead, Error> {
        let piece = self.call(&file::Read { handle, count: Some(count as i64) })?;
        let carried = piece.buf_b64.0.len();
        if carried as i64 != piece.count {
            return Err(short_of(carried, piece.count));
        }
        Ok(piece)
    }

    /// Writes all of `bytes` at the handle's position.
    pub fn write_piece(&mut self, handle: i64, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let ticket = self.start_write(handle, &bytes[..bytes.len().min(PIECE_BYTES)])?;
            let written = self.finish_write(ticket, bytes.len())?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Reads from the handle's position to the end of the file, and hands the bytes to `take` as they come. Returns
    /// their number. `act` names in an error what `take` was about.
    pub fn read_to_end(&mut self, handle: i64, act: &str, take: Take<'_>) -> Result<u64, Error> {
        let capacity = self.capacity();
        let request = file::Read { handle, count: Some(capacity.read_bytes as i64) };
        let mut under_way: VecDeque<Ticket> = VecDeque::new();
        let (mut copied, mut is_at_end, mut failed) = (0, false, None);
        loop {
            // The first piece tells whether there is more: a small file costs one request.
            let wanted = if copied == 0 { 1 } else { capacity.requests_in_flight };
            while failed.is_none() && !is_at_end && under_way.len() < wanted {
                under_way.push_back(self.start_typed(&request)?);
            }
            let Some(ticket) = under_way.pop_front() else { break };
            let received = self.finish_read(ticket, act, if failed.is_some() || is_at_end { None } else { Some(take) });
            match received {
                Ok(_) if failed.is_some() || is_at_end => {}
                Ok((0, false)) => {
                    let problem = "neither bytes nor the end of the file came: it has nothing to give now";
                    failed = Some(Error::reply(READ, problem, b""));
                }
                Ok((size, eof)) => {
                    copied += size as u64;
                    is_at_end = eof;
                }
                // Nothing more will come.
                Err(error) if error.needs_sync() && !matches!(error, Error::Reply { .. }) => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(copied), Err)
    }

    /// Writes at the handle's position what `give` puts into the buffers that it gets, until it puts nothing. Returns
    /// the number of bytes. `act` names in an error what `give` was about.
    pub fn write_all_of(&mut self, handle: i64, act: &str, give: Give<'_>) -> Result<u64, Error> {
        let capacity = self.capacity();
        let in_flight = capacity.requests_in_flight.min(WRITES_IN_FLIGHT);
        let mut piece = vec![0; capacity.write_bytes];
        let mut under_way: VecDeque<(Ticket, usize)> = VecDeque::new();
        let (mut copied, mut is_at_end, mut failed) = (0, false, None);
        loop {
            while failed.is_none() && !is_at_end && under_way.len() < in_flight {
                match give(&mut piece) {
                    Ok(0) => is_at_end = true,
                    Ok(size) => under_way.push_back((self.start_write(handle, &piece[..size])?, size)),
                    Err(source) => failed = Some(Error::Local { act: act.to_owned(), source }),
                }
                // One at a time where one is all that goes.
                if in_flight == 1 {
                    break;
                }
            }
            let Some((ticket, size)) = under_way.pop_front() else {
                if failed.is_some() || is_at_end {
                    break;
                }
                continue;
            };
            match self.finish_write(ticket, size) {
                Ok(written) if written == size => copied += size as u64,
                Ok(written) if under_way.is_empty() && failed.is_none() => {
                    copied += written as u64;
                    let rest = &piece[written..size];
                    match self.write_piece(handle, rest) {
                        Ok(()) => copied += rest.len() as u64,
                        Err(error) => return Err(error),
                    }
                }
                // What was sent behind it has been written in the wrong place.
                Ok(written) => {
                    let problem = format!("{written} of {size} bytes were written");
                    failed = failed.or(Some(Error::Guest { act: act.to_owned(), cause: problem }));
                }
                Err(error) if error.needs_sync() && !matches!(error, Error::Reply { .. }) => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(copied), Err)
    }

    /// Hands on what a read brought: its size and whether it met the end of the file.
    fn finish_read(&mut self, ticket: Ticket, act: &str, take: Option<Take<'_>>) -> Result<(usize, bool), Error> {
        read_reply(self.receive_for(READ, ticket)?, act, take)
    }

    fn start_write(&mut self, handle: i64, bytes: &[u8]) -> Result<Ticket, Error> {
        self.start_with(WRITE, &|text| {
            write_arguments(text, handle, bytes);
            Ok(())
        })
    }

    /// How many bytes were written: some, and not more than were sent.
    fn finish_write(&mut self, ticket: Ticket, size: usize) -> Result<usize, Error> {
        write_reply(self.receive_for(WRITE, ticket)?, size)
    }

    /// Closes the handle whatever happened; the first error is the one to report.
    pub(crate) fn close_after<R>(&mut self, handle: i64, result: Result<R, Error>) -> Result<R, Error> {
        let closed = match &result {
            // A reply may be under way still, and would be taken for the answer to this.
            Err(error) if error.needs_sync() => Ok(()),
            _ => self.close(handle),
        };
        let value = result?;
        closed.map(|()| value)
    }
}

/// Hands on what the reply to a read carries: its size and whether it met the end of the file. Nothing is taken from it
/// without `take`.
pub(crate) fn read_reply(line: &[u8], act: &str, take: Option<Take<'_>>) -> Result<(usize, bool), Error> {
    let piece: Piece<'_> = parse_reply(READ, line)?;
    let Some(take) = take else { return Ok((0, false)) };
    let mut carried = 0;
    let taken = piece.data.for_each_piece(|bytes| {
        carried += bytes.len();
        take(bytes).map_err(Refused::Taker)
    });
    match taken {
        Ok(()) if carried as i64 != piece.count => Err(short_of(carried, piece.count)),
        Ok(()) => Ok((carried, piece.eof)),
        Err(Refused::Encoding(problem)) => Err(Error::reply(READ, problem, b"")),
        Err(Refused::Taker(source)) => Err(Error::Local { act: act.to_owned(), source }),
    }
}

/// Appends the arguments of a write: the data is encoded where it is sent from.
pub(crate) fn write_arguments(text: &mut Vec<u8>, handle: i64, bytes: &[u8]) {
    text.extend_from_slice(format!("{{\"handle\":{handle},\"buf-b64\":\"").as_bytes());
    let start = text.len();
    text.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let _encoded = base64_simd::STANDARD.encode(bytes, base64_simd::Out::from_slice(&mut text[start..]));
    text.extend_from_slice(b"\"}");
}

/// How many bytes were written: some, and not more than were sent.
pub(crate) fn write_reply(line: &[u8], size: usize) -> Result<usize, Error> {
    let reply: file::FileWrite = parse_reply(WRITE, line)?;
    let written = usize::try_from(reply.count).ok().filter(|&written| written > 0 && written <= size);
    written.ok_or_else(|| Error::reply(WRITE, format!("{} of {size} bytes were written", reply.count), b""))
}

fn short_of(carried: usize, count: i64) -> Error {
    Error::reply(READ, format!("it says {count} bytes and carries {carried}"), b"")
}

/// Reads until the buffer is full or the reader ends.
pub(crate) fn read_full(source: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
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
