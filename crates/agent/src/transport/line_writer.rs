//! The way out to one client: whole replies, in order, from one speaker at a time.
//!
//! All that is written to a link is written here: by a session's reader and its workers, and on a port also by what a
//! session of a former host has left behind. A worker that was given up on keeps running, but its [`ReplyWriter`] is
//! silenced: what it writes from then on is dropped. If that happens in the middle of a line, the line is ended before
//! anybody else writes, so that what follows stands alone.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use qga_protocol::message::{self, ErrorClass, Id, Refusal};

use super::link::Link;
use crate::system::error::cause_text;

/// Serves one client until it is gone. Gets its way out, and what was read of it already; returns why it is gone, if it did
/// not just leave.
pub type ServeClient = dyn Fn(&Arc<LineWriter>, &[u8]) -> io::Result<()> + Send + Sync;

/// One client's end for writing.
pub struct LineWriter {
    link: Arc<Link>,
    state: Mutex<State>,
    /// What is said comes back.
    has_echo: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The last byte that is out is in the middle of a line.
    unfinished: bool,
}

/// The right to speak, until silenced.
pub struct ReplyWriter {
    line_writer: Arc<LineWriter>,
    silenced: Arc<AtomicBool>,
    /// Silenced because the client has stopped waiting, though it is still there.
    given_up: AtomicBool,
    /// Writing failed: the client is gone.
    unheard: AtomicBool,
    /// A write is under way.
    speaking: AtomicBool,
    /// How often the command that speaks has got on.
    steps: AtomicU64,
}

impl LineWriter {
    /// Where it leads.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The way out through `link`: one for each, so that no two lines get mixed.
    pub fn new(link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self { link, state: Mutex::default(), has_echo: AtomicBool::new(false) })
    }

    /// A new reply writer.
    pub fn reply_writer(self: &Arc<Self>) -> ReplyWriter {
        ReplyWriter {
            line_writer: Arc::clone(self),
            silenced: Arc::default(),
            given_up: AtomicBool::new(false),
            unheard: AtomicBool::new(false),
            speaking: AtomicBool::new(false),
            steps: AtomicU64::new(0),
        }
    }
}

impl ReplyWriter {
    /// Another reply writer on the same way out.
    pub fn sibling(&self) -> ReplyWriter {
        self.line_writer.reply_writer()
    }

    /// Takes the right to speak away for good.
    pub fn silence(&self) {
        self.silenced.store(true, Ordering::Release);
    }

    /// Whether it was taken away.
    pub fn is_silenced(&self) -> bool {
        self.silenced.load(Ordering::Acquire)
    }

    /// Whether it was taken away, for somebody who wants to know later too.
    pub fn silenced(&self) -> &Arc<AtomicBool> {
        &self.silenced
    }

    /// Takes the right to speak away, because the client does not wait for what is said.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.silence();
    }

    /// Whether the client has stopped waiting, though it is still there.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Whether a write is under way: then what comes next is up to the client.
    pub fn is_speaking(&self) -> bool {
        self.speaking.load(Ordering::Relaxed)
    }

    /// Notes that a reply has come in, and tells of the first one.
    pub fn note_echo(&self) {
        if self.line_writer.has_echo.swap(true, Ordering::Relaxed) {
            log::debug!("a reply has come in: not answered");
            return;
        }
        log::warn!(
            "a reply has come in from the host, where requests should come from: if it is the agent's own, the other end \
             of the line gives back what it gets (a terminal with echo: `stty -echo raw` there). Replies are not answered"
        );
    }

    /// Says whether the client waits for an answer.
    pub fn set_busy(&self, is_busy: bool) {
        self.line_writer.link.set_busy(is_busy);
    }

    /// Notes that the command which speaks is getting on.
    pub fn note_progress(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was noted.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Writes some of a line, from its beginning or from where it was. False if nobody hears it: the rest need not be made.
    fn write(&self, bytes: &[u8], begins: bool) -> bool {
        let mut state = self.line_writer.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_silenced() || self.unheard.load(Ordering::Relaxed) {
            return false;
        }
        let is_unfinished = state.unfinished;
        self.speaking.store(true, Ordering::Relaxed);
        let mut write = |bytes: &[u8]| {
            let (count, ended) = self.line_writer.link.write_all(bytes, &|| !self.is_silenced());
            // Also of what failed or was called off half-way.
            if let Some(last) = bytes[..count].last() {
                state.unfinished = *last != b'\n';
            }
            ended
        };
        // Somebody stopped in the middle of a line.
        let written = if begins && is_unfinished { write(b"\n") } else { Ok(()) }.and_then(|()| write(bytes));
        self.speaking.store(false, Ordering::Relaxed);
        if let Err(error) = written {
            log::info!("a reply was not delivered: {}", cause_text(&error));
            self.unheard.store(true, Ordering::Relaxed);
            return false;
        }
        self.note_progress();
        true
    }

    /// Sends the reply of a command that has failed. False if nobody hears it.
    pub fn send_error(&self, class: ErrorClass, desc: &str, id: Option<Id<'_>>) -> bool {
        let mut pieces = Pieces::new(self);
        message::write_error(&mut pieces, class, desc, id).is_ok() && pieces.end()
    }

    /// Sends the reply to what is no request, or cannot be served. False if nobody hears it.
    pub fn send_refusal(&self, refusal: &Refusal) -> bool {
        let mut pieces = Pieces::new(self);
        refusal.write(&mut pieces).is_ok() && pieces.end()
    }
}

/// A line that is sent while it is written, so that it never exists whole if it is long.
pub struct Pieces<'a> {
    replies: &'a ReplyWriter,
    piece: Vec<u8>,
    begun: bool,
}

impl<'a> Pieces<'a> {
    /// Bytes that are sent in one go.
    const BYTES: usize = 64 << 10;

    /// A line of which nothing is written yet.
    pub fn new(replies: &'a ReplyWriter) -> Self {
        Self { replies, piece: Vec::new(), begun: false }
    }

    /// What is written and not sent yet.
    pub fn piece(&mut self) -> &mut Vec<u8> {
        &mut self.piece
    }

    /// Sends what is written. False if nobody hears it: the rest need not be made.
    pub fn send(&mut self) -> bool {
        let heard = self.replies.write(&self.piece, !self.begun);
        self.begun = true;
        self.piece.clear();
        heard
    }

    /// Sends the rest. The line's end is written by then.
    pub fn end(mut self) -> bool {
        self.send()
    }
}

impl io::Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(Self::BYTES);
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() >= Self::BYTES && !self.send() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{LineWriter, Pieces, ReplyWriter};
    use crate::transport::Link;
    use qga_protocol::message;
    use serde::Serialize;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Duration;

    /// Sends a result as a whole.
    fn send(replies: &ReplyWriter, result: &impl Serialize) -> bool {
        let mut line = Pieces::new(replies);
        message::write_success(&mut line, result, None).is_ok() && line.end()
    }

    #[test]
    fn a_reply_that_is_called_off_half_way_spoils_no_other() {
        const LONG: usize = 8 << 20;
        let (mut host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let first = Arc::new(LineWriter::new(Arc::new(Link::port(guest.into()))).reply_writer());
        let second = first.sibling();
        let speaker = Arc::clone(&first);
        let said = std::thread::spawn(move || send(&speaker, &"x".repeat(LONG)));
        // Some of it is out, and the rest does not fit into what lies between the two ends.
        host.read_exact(&mut [0; 1]).unwrap();
        first.silence();
        host.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut heard = 0;
        while !said.is_finished() {
            heard += host.read(&mut [0; 4096]).unwrap_or(0);
        }
        assert!(!said.join().unwrap() && heard < LONG, "it was not called off");
        let told = std::thread::spawn(move || send(&second, &7));
        host.set_read_timeout(None).unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"{\"return\": 7}\n") {
            let mut byte = [0];
            host.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        assert!(told.join().unwrap());
        assert!(text.ends_with(b"\n{\"return\": 7}\n"), "it is glued to half a line");
    }

    #[test]
    fn a_reply_of_which_nothing_got_out_leaves_no_empty_line() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let first = LineWriter::new(Arc::new(Link::port(guest.into()))).reply_writer();
        let second = first.sibling();
        first.silence();
        assert!(!send(&first, &1));
        assert!(send(&second, &2));
        drop((first, second));
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"return\": 2}\n");
    }
}
