//! The rules of a conversation without its bytes' way: requests to be sent, replies out of what was received, and the
//! way back to order when something was left over. It does no I/O, so that blocking and asynchronous clients share it.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use memchr::memmem;
use qga_protocol::Command;
use qga_protocol::session::SyncDelimited;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{AgentError, Error};
use crate::lines::{Limits, Lines, Met, SENTINEL, TooLong};

pub(crate) const SYNC: &str = SyncDelimited::INFO.name;

/// Which reply belongs to which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket of a transport that carries one request at a time.
    pub(crate) const ONLY: Self = Self(0);
}

/// Whether the agent returns the `id` of a request with its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Echo {
    /// Not known before the first sync: no id is sent.
    Unknown,
    /// It does: a reply with another id is somebody else's.
    Yes,
    /// It does not, or refuses a request that has one: replies are taken in the order of the requests.
    No,
}

#[derive(Debug)]
struct Syncing {
    number: i64,
    begun: Instant,
    allowance_bytes: usize,
    /// The sentinel was met; the next line is the answer to this sync or to an older one.
    is_delimited: bool,
}

impl Syncing {
    /// Takes bytes off the allowance.
    fn discard(&mut self, bytes: usize, limits: Limits) -> Result<(), Error> {
        let left = self.allowance_bytes.checked_sub(bytes);
        self.allowance_bytes = left.ok_or_else(|| too_long(SYNC, limits.discarded_bytes))?;
        Ok(())
    }
}

/// One client's side of a conversation with an agent, without I/O.
///
/// The driver sends what [`outgoing`](Self::outgoing) holds, writes what it receives into [`space`](Self::space), and
/// asks [`poll_reply`](Self::poll_reply) or [`poll_sync`](Self::poll_sync) after each.
///
/// ```
/// use qga_client::{Conversation, Ticket};
///
/// let mut conversation = Conversation::default();
/// let ticket = conversation.request("guest-ping", None::<()>)?;
/// assert_eq!(conversation.outgoing(), b"{\"execute\":\"guest-ping\"}\n");
/// conversation.sent(conversation.outgoing().len());
///
/// let reply = b"{\"return\": {}}\n";
/// conversation.space()[..reply.len()].copy_from_slice(reply);
/// conversation.received(reply.len());
/// let line = conversation.poll_reply("guest-ping", Some(ticket))?.expect("a whole line came");
/// assert_eq!(conversation.line(line), b"{\"return\": {}}");
/// # Ok::<(), qga_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Conversation {
    lines: Lines,
    outgoing: Vec<u8>,
    sent: usize,
    limits: Limits,
    echo: Echo,
    next_id: u64,
    /// The requests whose replies have not come, oldest first.
    awaited: VecDeque<u64>,
    syncing: Option<Syncing>,
    /// Bytes of other clients' replies since the last sync.
    foreign_bytes: usize,
}

impl Default for Conversation {
    fn default() -> Self {
        Self {
            lines: Lines::default(),
            outgoing: Vec::new(),
            sent: 0,
            limits: Limits::default(),
            echo: Echo::Unknown,
            // Somebody else on the same channel would count from 1 as well.
            next_id: u64::from(random_number() as u32) << 16,
            awaited: VecDeque::new(),
            syncing: None,
            foreign_bytes: 0,
        }
    }
}

#[derive(Serialize)]
struct Request<'a, A> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<A>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

/// A reply of either kind.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Reply<T> {
    #[serde(rename = "return")]
    success: Option<T>,
    error: Option<AgentError>,
    #[serde(default)]
    id: Option<Value>,
}

impl Conversation {
    /// Changes how much is taken from the agent before giving up.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Puts a request behind those that wait to be sent.
    pub fn request<A: Serialize>(&mut self, command: &str, arguments: Option<A>) -> Result<Ticket, Error> {
        let (ticket, id) = self.ticket();
        let before = self.outgoing.len();
        if let Err(source) = serde_json::to_writer(&mut self.outgoing, &Request { execute: command, arguments, id }) {
            self.outgoing.truncate(before);
            return Err(Error::Request { command: command.to_owned(), source });
        }
        self.outgoing.push(b'\n');
        self.awaited.push_back(ticket.0);
        Ok(ticket)
    }

    /// As [`request`](Self::request), with arguments that are appended as JSON text: large ones need no copy.
    pub fn request_with(
        &mut self,
        command: &str,
        arguments: impl FnOnce(&mut Vec<u8>) -> Result<(), serde_json::Error>,
    ) -> Result<Ticket, Error> {
        let (ticket, id) = self.ticket();
        let before = self.outgoing.len();
        self.outgoing.extend_from_slice(b"{\"execute\":\"");
        self.outgoing.extend_from_slice(command.as_bytes());
        self.outgoing.extend_from_slice(b"\",\"arguments\":");
        if let Err(source) = arguments(&mut self.outgoing) {
            self.outgoing.truncate(before);
            return Err(Error::Request { command: command.to_owned(), source });
        }
        if let Some(id) = id {
            self.outgoing.extend_from_slice(format!(",\"id\":{id}").as_bytes());
        }
        self.outgoing.extend_from_slice(b"}\n");
        self.awaited.push_back(ticket.0);
        Ok(ticket)
    }

    /// Puts bytes and a line end behind what waits to be sent, as they are.
    pub fn raw_line(&mut self, line: &[u8]) {
        self.outgoing.extend_from_slice(line);
        self.outgoing.push(b'\n');
    }

    /// What is to be sent.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        &self.outgoing[self.sent..]
    }

    /// Says how many bytes of [`outgoing`](Self::outgoing) were sent.
    pub fn sent(&mut self, size: usize) {
        self.sent = (self.sent + size).min(self.outgoing.len());
        if self.sent == self.outgoing.len() {
            self.outgoing.clear();
            self.sent = 0;
        }
    }

    /// Where received bytes are to be written; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.lines.space()
    }

    /// Says how many bytes of [`space`](Self::space) were filled.
    pub fn received(&mut self, size: usize) {
        self.lines.received(size);
    }

    /// How many requests were put that have had no reply.
    #[must_use]
    pub fn awaited(&self) -> usize {
        self.awaited.len()
    }

    /// The longest reply that is taken, in bytes.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The next line, whatever it is; nothing while it is not complete.
    pub fn poll_line(&mut self, act: &str) -> Result<Option<Range<usize>>, Error> {
        let limit_bytes = self.limits.reply_bytes;
        self.lines.next(limit_bytes).map_err(|TooLong| too_long(act, limit_bytes))
    }

    /// The reply to the request of a ticket, to the oldest one without a ticket; nothing while it is not complete.
    ///
    /// Replies to older requests are passed over, and so are those that bear somebody else's id.
    pub fn poll_reply(&mut self, command: &str, ticket: Option<Ticket>) -> Result<Option<Range<usize>>, Error> {
        loop {
            let Some(line) = self.poll_line(command)? else { return Ok(None) };
            let wanted = ticket.map(|ticket| ticket.0).or_else(|| self.awaited.front().copied());
            let (Some(wanted), Echo::Yes) = (wanted, self.echo) else {
                self.awaited.pop_front();
                return Ok(Some(line));
            };
            let bytes = self.lines.line(line.clone());
            let is_ours = match id_of(bytes) {
                Some(id) if id == wanted => true,
                Some(id) => {
                    // One of our own that nobody asks for any more, or somebody else's.
                    self.awaited.retain(|&awaited| awaited != id);
                    false
                }
                // An agent that cannot read a request cannot know its id either.
                None => !is_success_without_id(bytes),
            };
            if is_ours {
                while self.awaited.pop_front().is_some_and(|awaited| awaited != wanted) {}
                return Ok(Some(line));
            }
            self.foreign_bytes += line.len();
            if self.foreign_bytes > self.limits.discarded_bytes {
                return Err(too_long(command, self.limits.discarded_bytes));
            }
        }
    }

    /// The bytes of a line that [`poll_reply`](Self::poll_reply) found.
    #[must_use]
    pub fn line(&self, line: Range<usize>) -> &[u8] {
        self.lines.line(line)
    }

    /// Begins to bring both sides to the same point, whatever was sent or left unread before: the agent drops a half
    /// request, this side drops every reply that is older than the answer to a fresh random number.
    pub fn begin_sync(&mut self) {
        let number = random_number();
        self.awaited.clear();
        self.foreign_bytes = 0;
        // What was half sent is dropped by the agent; what was not sent at all is no longer wanted.
        self.outgoing.clear();
        self.sent = 0;
        self.syncing = Some(Syncing {
            number,
            begun: Instant::now(),
            allowance_bytes: self.limits.discarded_bytes,
            is_delimited: false,
        });
        self.put_sync(number, self.echo != Echo::No);
    }

    /// Whether the sync that was begun has been answered. Send [`outgoing`](Self::outgoing) again before receiving more:
    /// an old agent is asked a second time.
    pub fn poll_sync(&mut self) -> Result<bool, Error> {
        let Some(mut syncing) = self.syncing.take() else { return Ok(true) };
        let is_late = syncing.begun.elapsed() > self.limits.sync_time;
        loop {
            if !syncing.is_delimited {
                let mut discarded_bytes = 0;
                let met = self.lines.skip(&mut discarded_bytes);
                syncing.discard(discarded_bytes, self.limits)?;
                match met {
                    Met::Sentinel => syncing.is_delimited = true,
                    Met::Nothing => return self.wait_for_sync(syncing, is_late),
                    Met::Line(line) => match refusal_of_sync(self.lines.line(line)) {
                        None => {}
                        Some(Refusal::Command(error)) => {
                            return Err(Error::Agent { command: SYNC.to_owned(), error });
                        }
                        Some(Refusal::Id) if self.echo == Echo::No => {}
                        Some(Refusal::Id) => {
                            self.echo = Echo::No;
                            self.put_sync(syncing.number, false);
                        }
                    },
                }
                continue;
            }
            let Some(line) = self.poll_line(SYNC)? else { return self.wait_for_sync(syncing, is_late) };
            syncing.discard(line.len() + 1, self.limits)?;
            // The answer to an older sync may come first; its number is another one.
            syncing.is_delimited = false;
            if let Ok(reply) = serde_json::from_slice::<Reply<i64>>(self.lines.line(line))
                && reply.success == Some(syncing.number)
            {
                self.echo = if reply.id.is_some() { Echo::Yes } else { Echo::No };
                return Ok(true);
            }
        }
    }

    /// What was received holds no answer yet.
    fn wait_for_sync(&mut self, syncing: Syncing, is_late: bool) -> Result<bool, Error> {
        if is_late {
            let problem = format!("for {} s other things came instead", self.limits.sync_time.as_secs_f64());
            return Err(Error::reply(SYNC, problem, b""));
        }
        self.syncing = Some(syncing);
        Ok(false)
    }

    fn put_sync(&mut self, number: i64, with_id: bool) {
        self.outgoing.push(SENTINEL);
        let id = with_id.then_some(self.next_id);
        let request = match id {
            Some(id) => format!("{{\"execute\":\"{SYNC}\",\"arguments\":{{\"id\":{number}}},\"id\":{id}}}\n"),
            None => format!("{{\"execute\":\"{SYNC}\",\"arguments\":{{\"id\":{number}}}}}\n"),
        };
        self.outgoing.extend_from_slice(request.as_bytes());
    }

    fn ticket(&mut self) -> (Ticket, Option<u64>) {
        self.next_id += 1;
        (Ticket(self.next_id), (self.echo == Echo::Yes).then_some(self.next_id))
    }
}

/// Makes a result of a reply line.
pub(crate) fn parse_reply<'a, T: Deserialize<'a>>(command: &str, line: &'a [u8]) -> Result<T, Error> {
    // An agent that answered guest-sync-delimited before has put its sentinel in front; it says nothing here.
    let line = line.strip_prefix(&[SENTINEL]).unwrap_or(line);
    let reply: Reply<T> = serde_json::from_slice(line).map_err(|problem| Error::reply(command, problem, line))?;
    match (reply.success, reply.error) {
        (Some(success), None) => Ok(success),
        (_, Some(error)) => Err(Error::Agent { command: command.to_owned(), error }),
        (None, None) => Err(Error::reply(command, "it has neither \"return\" nor \"error\"", line)),
    }
}

fn too_long(command: &str, limit_bytes: usize) -> Error {
    Error::TooLong { command: command.to_owned(), limit_bytes: limit_bytes as u64 }
}

/// The id of a reply. Agents put it first or last, so that a large reply need not be searched.
fn id_of(line: &[u8]) -> Option<u64> {
    const SHORT_BYTES: usize = 4096;
    let digits_at_the_end = || {
        let body = line.trim_ascii_end().strip_suffix(b"}")?;
        let digits = body.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (before, digits) = body.split_at(body.len() - digits);
        before.trim_ascii_end().ends_with(b"\"id\":").then_some(digits)
    };
    let digits_at_the_start = || {
        let body = line.strip_prefix(b"{")?.trim_ascii_start().strip_prefix(b"\"id\":")?.trim_ascii_start();
        Some(&body[..body.iter().take_while(|byte| byte.is_ascii_digit()).count()])
    };
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse().ok();
    if let Some(id) = digits_at_the_end().or_else(digits_at_the_start) {
        return number(id);
    }
    if line.len() > SHORT_BYTES {
        return None;
    }
    serde_json::from_slice::<Value>(line).ok()?.get("id")?.as_u64()
}

/// Whether somebody's request without an id is answered here; ours had one.
fn is_success_without_id(line: &[u8]) -> bool {
    memmem::find(&line[..line.len().min(64)], b"\"return\"").is_some()
}

enum Refusal {
    /// The agent does not serve the command.
    Command(AgentError),
    /// It serves no request that has an `id`: before 4.0 the agent knew of none.
    Id,
}

/// An agent that refuses the command sends no sentinel; waiting for one would last until the time-out.
fn refusal_of_sync(line: &[u8]) -> Option<Refusal> {
    const LONGEST_REFUSAL_BYTES: usize = 4096;
    if line.len() > LONGEST_REFUSAL_BYTES {
        return None;
    }
    let error = serde_json::from_slice::<Reply<Value>>(line).ok()?.error?;
    if error.desc.contains("'id' is unexpected") {
        return Some(Refusal::Id);
    }
    let is_refused = error.class.starts_with("Command") && error.desc.contains(SYNC);
    is_refused.then_some(Refusal::Command(error))
}

/// A number that no older sync of anybody has used: 63 random bits, so that it is positive in every reader.
pub(crate) fn random_number() -> i64 {
    use std::hash::{BuildHasher, Hasher};
    // Each RandomState has keys of its own; the hash of nothing under random keys is a random number.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 1) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(conversation: &mut Conversation, bytes: &[u8]) {
        conversation.space()[..bytes.len()].copy_from_slice(bytes);
        conversation.received(bytes.len());
    }

    fn take_outgoing(conversation: &mut Conversation) -> Value {
        let sent = conversation.outgoing().to_vec();
        conversation.sent(sent.len());
        serde_json::from_slice(sent.strip_prefix(&[SENTINEL]).unwrap_or(&sent)).expect("a request")
    }

    fn synchronised(echoes: bool) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.begin_sync();
        let request = take_outgoing(&mut conversation);
        let (number, id) = (&request["arguments"]["id"], &request["id"]);
        let id = if echoes { format!(", \"id\": {id}") } else { String::new() };
        receive(&mut conversation, &[&[SENTINEL], format!("{{\"return\": {number}{id}}}\n").as_bytes()].concat());
        assert!(conversation.poll_sync().unwrap());
        conversation
    }

    #[test]
    fn an_id_is_sent_where_it_comes_back() {
        for echoes in [true, false] {
            let mut conversation = synchronised(echoes);
            conversation.request("guest-ping", None::<()>).unwrap();
            assert_eq!(take_outgoing(&mut conversation).get("id").is_some(), echoes);
        }
    }

    #[test]
    fn somebody_elses_reply_is_passed_over() {
        let mut conversation = synchronised(true);
        let ticket = conversation.request("guest-ping", None::<()>).unwrap();
        let id = take_outgoing(&mut conversation)["id"].clone();
        receive(&mut conversation, b"{\"return\": {\"pid\": 3}}\n{\"return\": {}, \"id\": 5}\n");
        receive(&mut conversation, b"{\"return\": {}, \"id\": \"x\"}\n");
        assert_eq!(conversation.poll_reply("guest-ping", Some(ticket)).unwrap(), None);
        let ours = format!("{{\"return\": {{}}, \"id\": {id}}}");
        receive(&mut conversation, format!("{ours}\n").as_bytes());
        let line = conversation.poll_reply("guest-ping", Some(ticket)).unwrap().expect("a reply");
        assert_eq!(conversation.line(line), ours.as_bytes());
        assert_eq!(conversation.awaited(), 0);
    }

    #[test]
    fn a_request_without_an_answer_does_not_shift_the_next() {
        let mut conversation = synchronised(true);
        conversation.request("guest-shutdown", None::<()>).unwrap();
        conversation.sent(usize::MAX);
        let ticket = conversation.request("guest-ping", None::<()>).unwrap();
        let id = take_outgoing(&mut conversation)["id"].clone();
        receive(&mut conversation, format!("{{\"return\": {{}}, \"id\": {id}}}\n").as_bytes());
        assert!(conversation.poll_reply("guest-ping", Some(ticket)).unwrap().is_some());
        assert_eq!(conversation.awaited(), 0);
    }

    #[test]
    fn an_agent_that_refuses_ids_is_asked_without() {
        let mut conversation = Conversation::default();
        conversation.begin_sync();
        assert!(take_outgoing(&mut conversation).get("id").is_some());
        let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"QMP input member 'id' is unexpected\"}}\n";
        receive(&mut conversation, refusal.as_bytes());
        assert!(!conversation.poll_sync().unwrap());
        let again = take_outgoing(&mut conversation);
        assert_eq!(again.get("id"), None);
        let reply = format!("\u{FF}{{\"return\": {}}}\n", again["arguments"]["id"]);
        let reply: Vec<u8> = reply.chars().map(|character| character as u8).collect();
        receive(&mut conversation, &reply);
        assert!(conversation.poll_sync().unwrap());
    }

    #[test]
    fn the_id_is_found_wherever_it_stands() {
        let check = |line: &str, id| assert_eq!(id_of(line.as_bytes()), id, "{line}");
        check("{\"return\": {}, \"id\": 12}", Some(12));
        check("{\"return\": {}, \"id\":12 }\r", Some(12));
        check("{\"id\": 7, \"error\": {}}", Some(7));
        check("{\"return\": {}, \"id\": 9, \"timestamp\": {}}", Some(9));
        check("{\"return\": {\"id\": 5}}", None);
        check("{\"return\": {}, \"id\": \"x\"}", None);
        check("garbage", None);
    }
}
