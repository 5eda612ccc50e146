//! Reading and writing the guest's files: `guest-file-*`.
//!
//! A file is opened once, used through its handle by any client, and closed. Handles are numbers that are not given
//! out twice, not even after a restart of the agent.

use serde::{Deserialize, Serialize};

use crate::args::{self, Branches};
use crate::base64::{self, Base64, Base64Text};
use crate::command::{Command, Family, Nothing, Type, Wire};
use crate::{command, enumeration, object};

/// The family's commands.
pub const FAMILY: Family =
    Family { name: "file", commands: &[Open::INFO, Close::INFO, Read::INFO, Write::INFO, Seek::INFO, Flush::INFO] };

command! {
    "guest-file-open", since "0.15.0", reply i64,
    /// Opens a file and returns a handle to it.
    ///
    /// Opening never waits: a FIFO or a device that has nothing to give is opened all the same. A file that a mode
    /// creates gets the permissions 0666 less the agent's umask.
    ///
    /// Errors: a mode that is none of fopen(3)'s, and whatever open(2) reports.
    pub struct Open {
        /// Path in the guest; a relative one starts at the agent's working directory, `/` for a daemon.
        path: String,
        /// As fopen(3): `r`, `w`, `a`, each with `+` and `b` in any order; `r` if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<String>,
    }
}

command! {
    "guest-file-close", since "0.15.0", reply Nothing,
    /// Closes a file. The handle is gone afterwards, whether or not an error is reported.
    ///
    /// Errors: an unknown handle; what close(2) reports.
    pub struct Close {
        /// From [`Open`].
        handle: i64,
    }
}

command! {
    "guest-file-read", since "0.15.0", reply FileRead,
    /// Reads from a file's current position.
    ///
    /// Errors: an unknown handle; a count below 0 or above 48 MiB (50331648 bytes); what read(2) reports if it reports
    /// it before the first byte. An error after that ends the reply with what was read; the next call reports it.
    pub struct Read {
        /// From [`Open`].
        handle: i64,
        /// Most bytes to return, 0 to 50331648; 4096 if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<i64>,
    }
}

object! {
    /// What [`Read`] returns.
    pub struct FileRead as "GuestFileRead" {
        /// Bytes read, before encoding.
        count: i64,
        /// The bytes.
        buf_b64: Base64,
        /// Whether the end of the file was met. A read that takes exactly the rest does not meet it.
        eof: bool,
    }
}

command! {
    "guest-file-write", since "0.15.0", reply FileWrite, rules { secret: &["buf-b64"] },
    /// Writes to a file at its current position, or at its end in an append mode.
    ///
    /// The bytes have left the agent when the reply comes; `guest-file-flush` has nothing left to do.
    ///
    /// Errors: an unknown handle; text that is not base64 (nothing is written then); a count below 0 or above the
    /// number of bytes given; what write(2) reports, with the number of bytes written before.
    pub struct Write<'a> {
        /// From [`Open`].
        handle: i64,
        /// What to write, in base64 that may contain newlines.
        #[serde(borrow)]
        buf_b64: Base64Text<'a>,
        /// Bytes of `buf-b64`, once decoded, to write; all if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        count: Option<i64>,
    }
}

object! {
    /// What [`Write`] returns.
    pub struct FileWrite as "GuestFileWrite" {
        /// Bytes written.
        count: i64,
        /// Always false; kept for its clients.
        eof: bool,
    }
}

command! {
    "guest-file-seek", since "0.15.0", reply FileSeek,
    /// Moves a file's current position, as lseek(2).
    ///
    /// Errors: an unknown handle; a whence that is none; what lseek(2) reports (before the start, not seekable).
    pub struct Seek {
        /// From [`Open`].
        handle: i64,
        /// Bytes, negative towards the start.
        offset: i64,
        /// From where.
        whence: Whence,
    }
}

enumeration! {
    /// Names for lseek(2)'s reference points.
    pub enum SeekFrom as "QGASeek" {
        /// The start of the file.
        Set,
        /// The current position.
        Cur,
        /// The end of the file.
        End,
    }
}

/// From where [`Seek`] counts: a name (since 2.6) or the number that older clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Whence {
    /// 0, 1 or 2 for set, cur, end; any other is refused by the command.
    Number(i64),
    /// The name.
    Name(SeekFrom),
}

impl Wire for Whence {
    const TYPE: Type = Type::Named("GuestFileWhence");
}

impl<'de> Deserialize<'de> for Whence {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        args::alternate(
            deserializer,
            "GuestFileWhence",
            Branches::default()
                .integer(Self::Number)
                .name(&["set", "cur", "end"], |index| Self::Name([SeekFrom::Set, SeekFrom::Cur, SeekFrom::End][index])),
        )
    }
}

object! {
    /// What [`Seek`] returns.
    pub struct FileSeek as "GuestFileSeek" {
        /// The new position in bytes from the start.
        position: i64,
        /// Always false; kept for its clients.
        eof: bool,
    }
}

command! {
    "guest-file-flush", since "0.15.0", reply Nothing,
    /// Answers when everything written through the handle has been handed to the kernel, which is always so.
    ///
    /// It is not fsync(2). Errors: an unknown handle.
    pub struct Flush {
        /// From [`Open`].
        handle: i64,
    }
}

/// Writes the reply of [`Read`] piece by piece, for data that should not exist whole in memory.
///
/// ```
/// use qga_protocol::file::ReadReply;
/// let mut result = Vec::new();
/// ReadReply::begin(&mut result);
/// ReadReply::data(&mut result, b"abc");
/// ReadReply::data(&mut result, b"d");
/// ReadReply::end(&mut result, 4, true);
/// assert_eq!(result, br#"{"buf-b64": "YWJjZA==", "count": 4, "eof": true}"#);
/// ```
#[derive(Debug)]
pub struct ReadReply;

impl ReadReply {
    /// What comes before the data.
    pub fn begin(line: &mut Vec<u8>) {
        line.extend_from_slice(b"{\"buf-b64\": \"");
    }

    /// Some of the data. The length of all pieces but the last must be a multiple of three.
    pub fn data(line: &mut Vec<u8>, data: &[u8]) {
        base64::append(line, data);
    }

    /// What comes after the data: how many bytes it was, and whether the end of the file was met.
    pub fn end(line: &mut Vec<u8>, count: usize, eof: bool) {
        line.extend_from_slice(format!("\", \"count\": {count}, \"eof\": {eof}}}").as_bytes());
    }
}
