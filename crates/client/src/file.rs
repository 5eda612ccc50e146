//! Whole files to and from the guest, in pieces.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use serde::Deserialize;
use serde_json::json;

use crate::connection::Connection;
use crate::error::Error;

/// Bytes of a file in one message. In base64 they are 5.3 MiB, well below the 10 MiB at which libvirt drops a reply.
pub const PIECE_BYTES: usize = 4 << 20;

#[derive(Deserialize)]
struct ReadReply<'a> {
    count: usize,
    #[serde(rename = "buf-b64", borrow)]
    bytes: Cow<'a, str>,
    eof: bool,
}

#[derive(Deserialize)]
struct WriteReply {
    count: usize,
}

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
        let mut decoded = Vec::new();
        let mut copy = || {
            let mut copied = 0;
            loop {
                let eof = self.read_piece(handle, PIECE_BYTES, &mut decoded)?;
                target
                    .write_all(&decoded)
                    .map_err(|source| Error::Local { act: format!("copy {path} from the guest"), source })?;
                copied += decoded.len() as u64;
                if eof {
                    return Ok(copied);
                }
                if decoded.is_empty() {
                    let problem = "neither bytes nor the end of the file came: it has nothing to give now";
                    return Err(Error::reply("guest-file-read", problem, path.as_bytes()));
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
        let reply = self.call_raw("guest-file-open", json!({ "path": path, "mode": mode }))?;
        reply.as_i64().ok_or_else(|| Error::reply("guest-file-open", "no handle", reply.to_string().as_bytes()))
    }

    /// Closes a handle.
    pub fn close(&mut self, handle: i64) -> Result<(), Error> {
        self.call_raw("guest-file-close", json!({ "handle": handle })).map(|_| ())
    }

    /// Reads up to `count` bytes into `decoded`, replacing what it held. Returns whether the end was met.
    pub fn read_piece(&mut self, handle: i64, count: usize, decoded: &mut Vec<u8>) -> Result<bool, Error> {
        const COMMAND: &str = "guest-file-read";
        self.send_with(COMMAND, |request| {
            request.extend_from_slice(format!("{{\"handle\":{handle},\"count\":{count}}}").as_bytes());
        })?;
        let reply: ReadReply<'_> = self.receive_borrowed(COMMAND)?;
        decoded.clear();
        base64_simd::STANDARD
            .decode_append(reply.bytes.as_bytes(), decoded)
            .map_err(|problem| Error::reply(COMMAND, problem, reply.bytes.as_bytes()))?;
        if decoded.len() != reply.count {
            let problem = format!("it says {} bytes and carries {}", reply.count, decoded.len());
            return Err(Error::reply(COMMAND, problem, reply.bytes.as_bytes()));
        }
        Ok(reply.eof)
    }

    /// Writes all of `bytes` at the handle's position.
    pub fn write_piece(&mut self, handle: i64, mut bytes: &[u8]) -> Result<(), Error> {
        const COMMAND: &str = "guest-file-write";
        while !bytes.is_empty() {
            self.send_with(COMMAND, |request| {
                request.extend_from_slice(format!("{{\"handle\":{handle},\"buf-b64\":\"").as_bytes());
                base64_simd::STANDARD.encode_append(bytes, request);
                request.extend_from_slice(b"\"}");
            })?;
            let reply: WriteReply = self.receive_reply(COMMAND)?;
            if reply.count == 0 || reply.count > bytes.len() {
                let problem = format!("{} of {} bytes were written", reply.count, bytes.len());
                return Err(Error::reply(COMMAND, problem, b""));
            }
            bytes = &bytes[reply.count..];
        }
        Ok(())
    }

    /// Closes the handle whatever happened; the first error is the one to report.
    fn close_after<T>(&mut self, handle: i64, result: Result<T, Error>) -> Result<T, Error> {
        let closed = match &result {
            // Without an order on the line there is nothing to close through.
            Err(error) if error.agent().is_none() => Ok(()),
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
