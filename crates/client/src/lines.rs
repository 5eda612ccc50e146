//! Lines and sentinels out of received bytes: one search at memory speed, a bound on what is kept. It reads nothing
//! itself: [`Lines::space`] says where bytes go, [`Lines::received`] how many came.

use std::ops::Range;
use std::time::Duration;

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
    /// Longest time that `sync` takes while other things than its reply come. Silence has a limit of its own.
    pub sync_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reply_bytes: 128 << 20, discarded_bytes: 512 << 20, sync_time: Duration::from_secs(300) }
    }
}

/// More came without an end than the limit allows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// What was met on the way to a sentinel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// The sentinel: the next line begins behind it.
    Sentinel,
    /// A complete line that stands before it.
    Line(Range<usize>),
    /// Neither so far: receive more.
    Nothing,
}

/// Received bytes that were not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Wholly initialised; what was received and not yet taken stands at `unread`.
    buffer: Vec<u8>,
    unread: Range<usize>,
    /// How much of `unread` is known to hold no line end.
    searched: usize,
}

impl Lines {
    /// Where the next line without its end stands, or nothing while it is not complete.
    pub(crate) fn next(&mut self, limit_bytes: usize) -> Result<Option<Range<usize>>, TooLong> {
        let unread = &self.buffer[self.unread.clone()];
        let Some(found) = memchr::memchr(b'\n', &unread[self.searched..]) else {
            self.searched = unread.len();
            return if self.searched > limit_bytes { Err(TooLong) } else { Ok(None) };
        };
        let line = self.unread.start..self.unread.start + self.searched + found;
        self.unread.start = line.end + 1;
        self.searched = 0;
        Ok(Some(line))
    }

    /// The bytes of a line, until more is received.
    pub(crate) fn line(&self, line: Range<usize>) -> &[u8] {
        &self.buffer[line]
    }

    /// Throws away up to and including the next line end or sentinel. `discarded_bytes` grows by what was thrown away.
    pub(crate) fn skip(&mut self, discarded_bytes: &mut usize) -> Met {
        let unread = &self.buffer[self.unread.clone()];
        self.searched = 0;
        if let Some(end) = memchr::memchr2(SENTINEL, b'\n', unread) {
            let line = self.unread.start..self.unread.start + end;
            let met = if unread[end] == SENTINEL { Met::Sentinel } else { Met::Line(line) };
            // The end counts too: a stream of nothing but ends would go on for ever.
            *discarded_bytes += end + 1;
            self.unread.start += end + 1;
            return met;
        }
        // A long piece without an end is the rest of a large old reply: not worth keeping.
        if unread.len() > READ_BYTES {
            *discarded_bytes += unread.len();
            self.unread = 0..0;
        }
        Met::Nothing
    }

    /// Where the next bytes are to be written; never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.unread.is_empty() {
            self.unread = 0..0;
            self.searched = 0;
        } else if self.unread.start >= READ_BYTES {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.buffer.len() < self.unread.end + READ_BYTES {
            // Doubling keeps the copies of a large reply few.
            let wanted = (self.unread.end + READ_BYTES).max(self.buffer.len() * 2);
            self.buffer.resize(wanted, 0);
        }
        &mut self.buffer[self.unread.end..]
    }

    /// Says how many bytes of the space were filled.
    pub(crate) fn received(&mut self, size: usize) {
        self.unread.end = (self.unread.end + size).min(self.buffer.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(lines: &mut Lines, bytes: &[u8]) {
        lines.space()[..bytes.len()].copy_from_slice(bytes);
        lines.received(bytes.len());
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        for size in [1, 2, 3, 100] {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for piece in b"one\n\ntwo\nrest".chunks(size) {
                receive(&mut lines, piece);
                while let Some(line) = lines.next(100).unwrap() {
                    seen.push(String::from_utf8(lines.line(line).to_vec()).unwrap());
                }
            }
            assert_eq!(seen, ["one", "", "two"]);
        }
    }

    #[test]
    fn a_line_over_the_limit_is_refused_and_not_kept_growing() {
        let mut lines = Lines::default();
        let refused = (0..1000).find(|_| {
            receive(&mut lines, &[b'x'; 1000]);
            lines.next(5000) == Err(TooLong)
        });
        assert_eq!(refused, Some(5));
        assert!(lines.buffer.len() <= 2 * READ_BYTES);
    }

    #[test]
    fn everything_before_the_sentinel_is_thrown_away_in_bounded_memory() {
        let mut bytes = vec![b'x'; 10 * READ_BYTES];
        bytes.extend(b"\nold reply\n\xffnew\n");
        let mut lines = Lines::default();
        let (mut discarded_bytes, mut old, mut is_delimited) = (0, Vec::new(), false);
        for piece in bytes.chunks(100_000) {
            receive(&mut lines, piece);
            while !is_delimited {
                match lines.skip(&mut discarded_bytes) {
                    Met::Nothing => break,
                    Met::Line(line) => old = lines.line(line).to_vec(),
                    Met::Sentinel => is_delimited = true,
                }
            }
        }
        let new = lines.next(100).unwrap().expect("a line");
        assert_eq!(lines.line(new), b"new");
        assert_eq!(old, b"old reply");
        assert_eq!(discarded_bytes, 10 * READ_BYTES + b"\nold reply\n\xff".len());
        assert!(lines.buffer.len() <= 4 * READ_BYTES, "{}", lines.buffer.len());
    }
}
