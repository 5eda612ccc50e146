//! Lines and sentinels out of a stream: large reads, one search at memory speed, a bound on what is kept.

use std::io::{self, Read};
use std::ops::Range;

/// The byte that marks the reply to `guest-sync-delimited` and resets an agent's parser.
pub(crate) const SENTINEL: u8 = 0xFF;

/// Bytes asked for at once.
const READ_BYTES: usize = 256 * 1024;

/// How much a [`Connection`](crate::Connection) takes from an agent before it gives up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest reply. The largest honest one, a file read of 48 MiB, takes 64 MiB.
    pub reply_bytes: usize,
    /// Most bytes that `sync` throws away on its way to the reply.
    pub discarded_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reply_bytes: 128 << 20, discarded_bytes: 512 << 20 }
    }
}

/// Why no line came.
#[derive(Debug)]
pub(crate) enum NoLine {
    Closed,
    TooLong,
    Stream(io::Error),
}

/// The receiving half of a connection.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Wholly initialised; what was received and not yet taken stands at `unread`.
    buffer: Vec<u8>,
    unread: Range<usize>,
}

impl Lines {
    /// The next line without its end. It stays valid until the next call.
    pub(crate) fn next(&mut self, stream: &mut impl Read, limit_bytes: usize) -> Result<&[u8], NoLine> {
        let mut searched = 0;
        loop {
            let unread = &self.buffer[self.unread.clone()];
            if let Some(found) = memchr::memchr(b'\n', &unread[searched..]) {
                let line = self.unread.start..self.unread.start + searched + found;
                self.unread.start = line.end + 1;
                return Ok(&self.buffer[line]);
            }
            searched = unread.len();
            if searched > limit_bytes {
                return Err(NoLine::TooLong);
            }
            self.read_more(stream)?;
        }
    }

    /// Throws everything away up to and including the sentinel. Each complete line on the way is shown to `look` first.
    /// Returns the number of bytes thrown away.
    pub(crate) fn skip_to_sentinel<E>(
        &mut self,
        stream: &mut impl Read,
        limit_bytes: usize,
        mut look: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, Skip<E>> {
        let mut discarded = 0;
        loop {
            let unread = &self.buffer[self.unread.clone()];
            match memchr::memchr2(SENTINEL, b'\n', unread) {
                Some(end) => {
                    discarded += end;
                    let is_sentinel = unread[end] == SENTINEL;
                    let looked = if is_sentinel { Ok(()) } else { look(&unread[..end]) };
                    self.unread.start += end + 1;
                    looked.map_err(Skip::Stopped)?;
                    if is_sentinel {
                        return Ok(discarded);
                    }
                }
                // A long piece without an end is the rest of a large old reply: not worth keeping.
                None if unread.len() > READ_BYTES => {
                    discarded += unread.len();
                    self.unread = 0..0;
                }
                None => self.read_more(stream).map_err(Skip::NoLine)?,
            }
            if discarded > limit_bytes {
                return Err(Skip::NoLine(NoLine::TooLong));
            }
        }
    }

    fn read_more(&mut self, stream: &mut impl Read) -> Result<(), NoLine> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.unread.start >= READ_BYTES {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.buffer.len() < self.unread.end + READ_BYTES {
            // Doubling keeps the copies of a large reply few.
            let wanted = (self.unread.end + READ_BYTES).max(self.buffer.len() * 2);
            self.buffer.resize(wanted, 0);
        }
        loop {
            match stream.read(&mut self.buffer[self.unread.end..]) {
                Ok(0) => return Err(NoLine::Closed),
                Ok(received) => {
                    self.unread.end += received;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NoLine::Stream(error)),
            }
        }
    }
}

/// Why the search for a sentinel ended without one.
#[derive(Debug)]
pub(crate) enum Skip<E> {
    NoLine(NoLine),
    Stopped(E),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of a fixed size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let size = self.1.min(self.0.len()).min(buffer.len());
            buffer[..size].copy_from_slice(&self.0[..size]);
            self.0 = &self.0[size..];
            Ok(size)
        }
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        for piece in [1, 2, 3, 100] {
            let mut stream = Pieces(b"one\n\ntwo\nrest", piece);
            let mut lines = Lines::default();
            assert_eq!(lines.next(&mut stream, 100).unwrap(), b"one");
            assert_eq!(lines.next(&mut stream, 100).unwrap(), b"");
            assert_eq!(lines.next(&mut stream, 100).unwrap(), b"two");
            assert!(matches!(lines.next(&mut stream, 100), Err(NoLine::Closed)));
        }
    }

    #[test]
    fn a_line_over_the_limit_is_refused_and_not_kept_growing() {
        let endless = vec![b'x'; 4 * READ_BYTES];
        let mut lines = Lines::default();
        assert!(matches!(lines.next(&mut Pieces(&endless, 1000), 5000), Err(NoLine::TooLong)));
        assert!(lines.buffer.len() <= 2 * READ_BYTES);
    }

    #[test]
    fn everything_before_the_sentinel_is_thrown_away_in_bounded_memory() {
        let mut bytes = vec![b'x'; 10 * READ_BYTES];
        bytes.extend(b"\nold reply\n\xffnew\n");
        let mut stream = Pieces(&bytes, 100_000);
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        lines
            .skip_to_sentinel(&mut stream, usize::MAX, |line| {
                seen.push(line.len());
                Ok::<(), ()>(())
            })
            .unwrap();
        assert_eq!(lines.next(&mut stream, 100).unwrap(), b"new");
        assert_eq!(seen.last(), Some(&b"old reply".len()));
        assert!(lines.buffer.len() <= 4 * READ_BYTES, "{}", lines.buffer.len());
    }
}
