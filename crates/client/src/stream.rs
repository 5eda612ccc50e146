//! A conversation over a stream that blocks.

use std::fmt;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::conversation::{Conversation, SYNC, Ticket};
use crate::error::Error;
use crate::lines::Limits;
use crate::patience::Patience;
use crate::transport::{Arguments, Capacity, Transport};

/// How long a connection by socket waits.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a place in the queue of an agent that serves one client at a time.
    pub connect: Duration,
    /// For the next bytes of a reply, and for room to send more of a request; a transfer that moves never times out.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), silence: Duration::from_secs(60) }
    }
}

/// The time-outs of a stream are set by a function of its type.
type SetSilence<S> = fn(&mut S, Duration) -> io::Result<()>;

/// The transport over any stream that is connected to an agent.
pub struct Stream<S: Read + Write> {
    bytes: S,
    conversation: Conversation,
    silence: Option<Duration>,
    set_silence: Option<SetSilence<S>>,
    target: Option<String>,
    farewell: Duration,
    deadline: Option<Instant>,
    /// Says that nobody waits any longer for an agent that is silent.
    is_over: Option<fn() -> bool>,
}

/// How often somebody who may give up is asked.
const LOOK: Duration = Duration::from_millis(100);

impl<S: Read + Write> fmt::Debug for Stream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("target", &self.target).field("silence", &self.silence).finish_non_exhaustive()
    }
}

impl<S: Read + Write> Stream<S> {
    /// Takes a stream that is connected to an agent. It waits as long as its own time-outs say.
    pub fn new(stream: S) -> Self {
        Self {
            bytes: stream,
            conversation: Conversation::default(),
            silence: None,
            set_silence: None,
            target: None,
            farewell: Patience::default().farewell,
            deadline: None,
            is_over: None,
        }
    }

    /// Takes a stream whose time-outs can be set.
    pub(crate) fn with_silence(stream: S, silence: Duration, set_silence: SetSilence<S>) -> io::Result<Self> {
        let mut this = Self::new(stream);
        set_silence(&mut this.bytes, silence)?;
        this.silence = Some(silence);
        this.set_silence = Some(set_silence);
        Ok(this)
    }

    /// Says which unix socket it is, so that silence can be explained by another client that holds it.
    pub(crate) fn named(mut self, socket: String) -> Self {
        self.target = Some(socket);
        self
    }

    pub(crate) fn stream(&self) -> &S {
        &self.bytes
    }

    pub(crate) fn send_line(&mut self, act: &str, line: &[u8]) -> Result<(), Error> {
        self.conversation.raw_line(line);
        self.flush(act)
    }

    pub(crate) fn receive_line(&mut self, act: &str) -> Result<&[u8], Error> {
        loop {
            if let Some(line) = self.conversation.poll_line(act)? {
                return Ok(self.conversation.line(line));
            }
            self.receive_more(act)?;
        }
    }

    /// Leaves the stream no more time than there is until the deadline.
    fn keep_to_deadline(&mut self, command: &str) -> Result<(), Error> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Late { command: command.to_owned() });
        }
        let Some(set_silence) = self.set_silence else { return Ok(()) };
        let left = if self.is_over.is_some() { left.min(LOOK) } else { left };
        let silence = self.silence.map_or(left, |silence| silence.min(left)).max(Duration::from_millis(1));
        let act = || format!("set the time-out to {} s", silence.as_secs_f64());
        set_silence(&mut self.bytes, silence).map_err(|source| Error::Local { act: act(), source })
    }

    /// A time-out at the deadline is the deadline's.
    fn or_late(&self, command: &str, error: Error) -> Error {
        match error {
            Error::TimedOut { .. } if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                Error::Late { command: command.to_owned() }
            }
            error => error,
        }
    }

    /// Sets the stream's time-outs to what is wanted now.
    fn set_timeouts(&mut self) -> io::Result<()> {
        let (Some(set_silence), Some(silence)) = (self.set_silence, self.silence) else { return Ok(()) };
        set_silence(&mut self.bytes, if self.is_over.is_some() { silence.min(LOOK) } else { silence })
    }

    /// Whether a wait that ended without anything goes on: the time-out was that of a look.
    fn waits_on(&self, command: &str, error: &io::Error, since: Instant) -> Result<bool, Error> {
        let (Some(is_over), Some(silence)) = (self.is_over, self.silence) else { return Ok(false) };
        if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            return Ok(false);
        }
        if is_over() {
            return Err(Error::GivenUp { command: command.to_owned() });
        }
        Ok(since.elapsed() < silence)
    }

    fn flush(&mut self, command: &str) -> Result<(), Error> {
        let mut since = Instant::now();
        while !self.conversation.outgoing().is_empty() {
            self.keep_to_deadline(command)?;
            match self.bytes.write(self.conversation.outgoing()) {
                Ok(0) => return Err(Error::Closed { command: command.to_owned() }),
                Ok(size) => {
                    self.conversation.sent(size);
                    since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.waits_on(command, &error, since)? => {}
                Err(error) => return Err(self.or_late(command, Error::send(command, error, self.silence))),
            }
        }
        self.bytes.flush().map_err(|source| Error::send(command, source, self.silence))
    }

    fn receive_more(&mut self, command: &str) -> Result<(), Error> {
        let since = Instant::now();
        loop {
            self.keep_to_deadline(command)?;
            match self.bytes.read(self.conversation.space()) {
                Ok(0) => return Err(Error::Closed { command: command.to_owned() }),
                Ok(size) => {
                    self.conversation.received(size);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.waits_on(command, &error, since)? => {}
                Err(error) => return Err(self.or_late(command, Error::receive(command, error, self.silence))),
            }
        }
    }

    /// A port that serves one client at a time lets the others connect and answers none of them.
    fn explained(&self, error: Error) -> Error {
        let Some(socket) = self.target.as_deref() else { return error };
        if !matches!(error, Error::TimedOut { .. }) {
            return error;
        }
        match crate::socket::clients(socket.as_ref()) {
            Some(clients) if clients > 1 => Error::Unreachable {
                target: socket.to_owned(),
                kind: crate::Kind::Held,
                cause: format!("{error}, and another client is connected to the same socket"),
            },
            _ => error,
        }
    }
}

impl<S: Read + Write> Transport for Stream<S> {
    fn sync(&mut self) -> Result<(), Error> {
        self.conversation.begin_sync();
        loop {
            self.flush(SYNC)?;
            if self.conversation.poll_sync()? {
                return Ok(());
            }
            if self.conversation.outgoing().is_empty() {
                self.receive_more(SYNC).map_err(|error| self.explained(error))?;
            }
        }
    }

    fn start(&mut self, command: &str, arguments: Option<Arguments<'_>>) -> Result<Ticket, Error> {
        let ticket = match arguments {
            None => self.conversation.request(command, None::<()>)?,
            Some(write) => self.conversation.request_with(command, write)?,
        };
        self.flush(command)?;
        Ok(ticket)
    }

    fn receive(&mut self, command: &str, ticket: Option<Ticket>) -> Result<&[u8], Error> {
        loop {
            if let Some(line) = self.conversation.poll_reply(command, ticket)? {
                return Ok(self.conversation.line(line));
            }
            self.receive_more(command)?;
        }
    }

    fn set_silence(&mut self, silence: Duration) -> Result<(), Error> {
        if self.set_silence.is_none() {
            return Ok(());
        }
        self.silence = Some(silence);
        self.set_timeouts()
            .map_err(|source| Error::Local { act: format!("set the time-out to {} s", silence.as_secs_f64()), source })
    }

    fn silence(&self) -> Option<Duration> {
        self.silence
    }

    fn give_up_when(&mut self, is_over: Option<fn() -> bool>) {
        self.is_over = is_over;
        // A stream that refuses its time-outs keeps those that it has: then only those end a wait.
        let _ = self.set_timeouts();
    }

    fn set_patience(&mut self, patience: &Patience) {
        self.farewell = patience.farewell;
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
        if let (None, Some(silence), Some(set_silence)) = (deadline, self.silence, self.set_silence) {
            // It has worked before, and a stream on which it does not work any more has ended.
            let _ = set_silence(&mut self.bytes, silence);
        }
    }

    fn set_limits(&mut self, limits: Limits) {
        self.conversation.set_limits(limits);
    }

    fn capacity(&self) -> Capacity {
        Capacity { requests_in_flight: 4, read_bytes: 1 << 20, write_bytes: 1 << 20 }
    }
}

impl<S: Read + Write> Drop for Stream<S> {
    /// QEMU's agent ends when a client leaves with a reply unread, so what is still due is waited for, for a moment.
    fn drop(&mut self) {
        if self.set_silence.is_none() {
            return;
        }
        // No time at all would be none without an end.
        let moment = self.farewell.max(Duration::from_millis(1));
        (self.is_over, self.silence) = (None, Some(moment));
        if self.conversation.awaited() == 0 || self.set_timeouts().is_err() {
            return;
        }
        self.deadline = Some(Instant::now() + moment);
        while self.conversation.awaited() > 0 && self.receive("the end", None).is_ok() {}
    }
}
