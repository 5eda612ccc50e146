//! The way in from one client: its bytes as whole messages. The counterpart of the [outlet](crate::transport::line_writer).

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use qga_protocol::stream::{Decoder, Event};

use crate::limits::memory_budget::Hold;
use crate::transport::Link;

/// Bytes read in one go.
const READ_BYTES: usize = 64 << 10;
/// Half a message this large must go on, because it takes from what all clients share.
const LARGE_MESSAGE_BYTES: usize = 1 << 20;
/// How often it is looked at while it stands still, and how long from one look to the next. Many looks, because a pause of
/// the machine can be as long as it likes and is to cost one of them only.
const MESSAGE_LOOKS: u32 = 30;
const MESSAGE_LOOK: Duration = Duration::from_secs(1);

/// What a client sends.
pub struct Intake {
    link: Arc<Link>,
    decoder: Decoder,
    /// What the half message in the decoder takes of the agent's budget.
    held: Hold,
    buffer: Vec<u8>,
    /// The part of the buffer that the decoder has not seen.
    unread: Range<usize>,
}

/// What came of waiting.
pub enum Arrival {
    /// A message.
    Message(Event),
    /// Nothing, for the time that was given.
    Nothing,
    /// The client has stopped sending or is gone; or it cannot be read from, and why.
    End(io::Result<()>),
}

impl Intake {
    /// What comes through this link, after `first`, which was read of it already.
    pub fn new(link: &Arc<Link>, held: Hold, first: &[u8]) -> Self {
        let mut buffer = vec![0; READ_BYTES.max(first.len())];
        buffer[..first.len()].copy_from_slice(first);
        Self { link: Arc::clone(link), decoder: Decoder::default(), held, buffer, unread: 0..first.len() }
    }

    /// The next message; waits for it, for ever or as long as it is told.
    pub fn next(&mut self, limit: Option<Duration>) -> Arrival {
        loop {
            if let Some(event) = self.decode() {
                return Arrival::Message(event);
            }
            let is_large = self.decoder.buffered_bytes() >= LARGE_MESSAGE_BYTES;
            let is_still = || matches!(self.link.is_readable_within(MESSAGE_LOOK), Ok(false));
            if is_large && (0..MESSAGE_LOOKS).all(|_| is_still()) {
                return self.drop_half_message("a large request did not go on for too long: it was dropped");
            }
            if limit.is_some_and(|limit| matches!(self.link.is_readable_within(limit), Ok(false))) {
                return Arrival::Nothing;
            }
            match self.link.read(&mut self.buffer) {
                Ok(0) => return Arrival::End(Ok(())),
                Ok(count) => self.unread = 0..count,
                Err(error) => return Arrival::End(Err(error)),
            }
            self.link.note_activity();
        }
    }

    /// A message of what has been read.
    fn decode(&mut self) -> Option<Event> {
        if self.unread.is_empty() {
            return None;
        }
        let mut bytes = &self.buffer[self.unread.clone()];
        let event = self.decoder.next(&mut bytes);
        self.unread.start = self.unread.end - bytes.len();
        // Also after a whole message, which takes from the budget what it held as a half one.
        let fits = self.held.resize(self.decoder.buffered_bytes());
        if event.is_some() || fits {
            return event;
        }
        let refused = self.decoder.refuse("the agent holds too much of unfinished requests: this one was dropped");
        self.held.resize(0);
        Some(refused)
    }

    fn drop_half_message(&mut self, why: &str) -> Arrival {
        let event = self.decoder.refuse(why);
        self.held.resize(0);
        Arrival::Message(event)
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrival, Intake};
    use crate::limits::memory_budget::Budget;
    use crate::transport::Link;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    #[test]
    fn a_whole_message_holds_nothing_of_the_budget_any_more() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let budget = Budget::default();
        let mut intake = Intake::new(&Arc::new(Link::from(guest)), budget.hold(), b"");
        // Without an end of line: nothing comes after it.
        let request = format!(r#"{{"execute": "guest-ping", "arguments": {{"x": "{}"}}}}"#, "a".repeat(4 << 20));
        let sent = std::thread::spawn(move || host.write_all(request.as_bytes()).map(|()| host));
        assert!(matches!(intake.next(None), Arrival::Message(_)));
        let _host = sent.join().unwrap().unwrap();
        assert!(budget.hold_of(192 << 20).is_some(), "it is still held");
    }
}
