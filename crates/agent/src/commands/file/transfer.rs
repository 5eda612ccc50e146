//! Bytes between files and messages, piece by piece: neither a 48 MiB read nor its reply ever exists whole.

use std::os::fd::OwnedFd;

use qga_protocol::base64::{Base64Error, Base64Text};
use qga_protocol::file::{FileRead, ReadReply};
use rustix::io::Errno;

use crate::dispatch::Call;
use crate::dispatch::answer::Answer;
use crate::dispatch::handler::{Outcome, Stream};
use crate::process::open_files::Taken;
use crate::system::error::Error;

/// Bytes read from a file in one go. A multiple of three, so that its base64 needs no padding before the end.
const PIECE_BYTES: usize = 96 << 10;

/// Reads up to `count` bytes. What fails before the first byte is an error; what fails later ends the reply.
pub fn read(file: Taken, count: usize) -> Result<Outcome<FileRead>, Error> {
    let mut piece = vec![0; count.min(PIECE_BYTES)];
    let first = fill(&file, &mut piece);
    if let (0, Some(End::Failed(cause))) = (first.length, first.end) {
        return Err(Error::io("failed to read file", &cause.into()));
    }
    Ok(Outcome::Stream(Box::new(FileStream { file, count, piece, first })))
}

/// Why a piece was not filled.
#[derive(Clone, Copy)]
enum End {
    File,
    Failed(Errno),
}

struct Filled {
    length: usize,
    end: Option<End>,
}

/// Reads until the piece is full, the file ends or reading fails.
fn fill(file: &OwnedFd, piece: &mut [u8]) -> Filled {
    let mut length = 0;
    while length < piece.len() {
        match rustix::io::read(file, &mut piece[length..]) {
            Ok(0) => return Filled { length, end: Some(End::File) },
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(cause) => return Filled { length, end: Some(End::Failed(cause)) },
        }
    }
    Filled { length, end: None }
}

/// The reply of a read, made while it is sent.
struct FileStream {
    file: Taken,
    count: usize,
    piece: Vec<u8>,
    first: Filled,
}

impl Stream for FileStream {
    fn send(self: Box<Self>, mut answer: Answer<'_>, call: &Call<'_>) {
        let Self { file, count, mut piece, first: mut filled } = *self;
        answer.piece().reserve(piece.len() / 3 * 4 + 128);
        answer.begin_line();
        ReadReply::begin(answer.piece());
        let mut total = 0;
        loop {
            total += filled.length;
            call.note_progress();
            ReadReply::data(answer.piece(), &piece[..filled.length]);
            if filled.end.is_some() || total == count {
                break;
            }
            if !answer.send_piece() {
                return;
            }
            let wanted = piece.len().min(count - total);
            filled = fill(&file, &mut piece[..wanted]);
        }
        if let Some(End::Failed(cause)) = filled.end {
            log::warn!("a read ended after {total} bytes: {cause}");
        }
        ReadReply::end(answer.piece(), total, matches!(filled.end, Some(End::File)));
        answer.end_line();
    }
}

/// Why writing stopped.
enum Stop {
    Text(Base64Error),
    Failed(Errno),
    Done,
}

impl From<Base64Error> for Stop {
    fn from(error: Base64Error) -> Self {
        Self::Text(error)
    }
}

/// Writes the first `count` bytes of what the text stands for.
pub fn write(file: &OwnedFd, text: &Base64Text<'_>, count: usize, call: &Call<'_>) -> Result<(), Error> {
    let mut written = 0;
    let stopped = text.for_each_piece(|piece| {
        let mut piece = &piece[..piece.len().min(count - written)];
        while !piece.is_empty() {
            match rustix::io::write(file, piece) {
                Ok(count) => {
                    written += count;
                    piece = &piece[count..];
                    call.note_progress();
                }
                Err(Errno::INTR) => {}
                Err(cause) => return Err(Stop::Failed(cause)),
            }
        }
        if written == count { Err(Stop::Done) } else { Ok(()) }
    });
    match stopped {
        Ok(()) | Err(Stop::Done) => Ok(()),
        Err(Stop::Text(error)) => Err(error.into()),
        Err(Stop::Failed(cause)) => {
            let error = Error::io("failed to write to file", &cause.into());
            match written {
                0 => Err(error),
                _ => Err(Error::new(format!("{} ({written} of {count} bytes were written)", error.desc))),
            }
        }
    }
}
