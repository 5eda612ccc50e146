//! The way in from one client: its bytes as whole messages. The counterpart of the
//! [line writer](crate::transport::line_writer).

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use qga_protocol::message::Refusal;
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
pub struct Reader {
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
    /// A message, and what it holds of the agent's memory.
    Message(Event, Hold),
    /// Nothing, for the time that was given.
    Nothing,
    /// The client has stopped sending or is gone; or it cannot be read from, and why.
    End(io::Result<()>),
}

impl Reader {
    /// What comes through this link, after `first`, which was read of it already.
    pub fn new(link: &Arc<Link>, held: Hold, first: &[u8]) -> Self {
        let mut buffer = vec![0; READ_BYTES.max(first.len())];
        buffer[..first.len()].copy_from_slice(first);
        Self { link: Arc::clone(link), decoder: Decoder::default(), held, buffer, unread: 0..first.len() }
    }

    /// The next message; waits for it, for ever or as long as it is told.
    pub fn next(&mut self, limit: Option<Duration>) -> Arrival {
        loop {
            if let Some((event, hold)) = self.decode() {
                return Arrival::Message(event, hold);
            }
            let is_large = self.decoder.buffered_bytes() >= LARGE_MESSAGE_BYTES;
            let is_still = || matches!(self.link.is_readable_within(MESSAGE_LOOK), Ok(false));
            if is_large && (0..MESSAGE_LOOKS).all(|_| is_still()) {
                let (event, hold) =
                    self.drop_half_message("a large request did not go on for too long: it was dropped");
                return Arrival::Message(event, hold);
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

    /// A message of what has been read, and its hold.
    fn decode(&mut self) -> Option<(Event, Hold)> {
        if self.unread.is_empty() {
            return None;
        }
        let mut bytes = &self.buffer[self.unread.clone()];
        let event = self.decoder.next(&mut bytes);
        self.unread.start = self.unread.end - bytes.len();
        // A whole message keeps what it held as a half one: nobody else can take it in between.
        let mut hold = event.is_some().then(|| self.held.split_off());
        let fits = match (&event, &mut hold) {
            (Some(Event::Request(request)), Some(hold)) => hold.resize(request.cost_bytes()),
            (Some(Event::Refused(refusal)), Some(hold)) => hold.resize(refusal.cost_bytes()),
            _ => self.held.resize(self.decoder.cost_bytes()),
        };
        match (event, hold) {
            (Some(Event::Request(request)), Some(hold)) if !fits => {
                let desc = "the agent has no memory for this request beside what it holds for clients already: it was not \
                            begun, ask again later or send less";
                Some(refused(Refusal::of_request(desc, request), hold))
            }
            (Some(Event::Refused(refusal)), Some(hold)) if !fits => Some(refused(refusal, hold)),
            (Some(event), Some(hold)) => Some((event, hold)),
            _ if fits => None,
            _ => {
                let why = "the agent has no memory for the rest of this request beside what it holds for clients already: it was \
                           dropped, ask again later or send less";
                Some(self.drop_half_message(why))
            }
        }
    }

    fn drop_half_message(&mut self, why: &str) -> (Event, Hold) {
        let event = self.decoder.refuse(why);
        self.held.resize(0);
        (event, self.held.split_off())
    }
}

/// A refusal with what it holds until it is sent. An `id` that there is no memory for is not sent back.
fn refused(mut refusal: Refusal, mut hold: Hold) -> (Event, Hold) {
    if !hold.resize(refusal.cost_bytes()) {
        refusal = refusal.without_id();
        hold.resize(refusal.cost_bytes());
    }
    (Event::Refused(refusal), hold)
}

#[cfg(test)]
mod tests {
    use super::{Arrival, Reader};
    use crate::limits::memory_budget::{Budget, TOTAL_BYTES_MAX};
    use crate::transport::Link;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    #[test]
    fn a_whole_message_holds_its_part_of_the_budget_until_it_is_dropped() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let budget = Budget::default();
        let mut reader = Reader::new(&Arc::new(Link::from(guest)), budget.hold(), b"");
        // Without an end of line: nothing comes after it.
        let request = format!(r#"{{"execute": "guest-ping", "arguments": {{"x": "{}"}}}}"#, "a".repeat(4 << 20));
        let sent = std::thread::spawn(move || host.write_all(request.as_bytes()).map(|()| host));
        let arrival = reader.next(None);
        assert!(matches!(arrival, Arrival::Message(..)));
        let _host = sent.join().unwrap().unwrap();
        assert!(budget.hold_of(TOTAL_BYTES_MAX - (4 << 20)).is_none(), "it is not held");
        drop(arrival);
        assert!(budget.hold_of(TOTAL_BYTES_MAX).is_some(), "it is still held");
    }
}
