//! What leads to an agent: requests in, reply lines out.

use std::fmt;
use std::time::{Duration, Instant};

use crate::conversation::Ticket;
use crate::error::Error;
use crate::lines::Limits;
use crate::patience::Patience;

/// Writes the arguments of a request as JSON text, an object, behind what the buffer holds.
pub type Arguments<'a> = &'a dyn Fn(&mut Vec<u8>) -> Result<(), serde_json::Error>;

/// How much a transport carries at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Requests that may be sent before the first reply is received.
    pub requests_in_flight: usize,
    /// Bytes of a file to ask for in one request.
    pub read_bytes: usize,
    /// Bytes of a file or of a program's input to send in one request.
    pub write_bytes: usize,
}

/// A way to an agent. [`Stream`](crate::Stream) is one over bytes, [`Virsh`](crate::Virsh) one through libvirt; an
/// [`Agent`](crate::Agent) makes calls and tasks of it.
pub trait Transport: fmt::Debug {
    /// Brings both sides to the same point; see [`Agent::sync`](crate::Agent::sync).
    fn sync(&mut self) -> Result<(), Error>;

    /// Sends a request.
    fn start(&mut self, command: &str, arguments: Option<Arguments<'_>>) -> Result<Ticket, Error>;

    /// Receives the reply line of a request, of the oldest unanswered one without a ticket.
    fn receive(&mut self, command: &str, ticket: Option<Ticket>) -> Result<&[u8], Error>;

    /// Changes how long the agent may be silent.
    fn set_silence(&mut self, silence: Duration) -> Result<(), Error>;

    /// How long the agent may be silent, if that is known.
    fn silence(&self) -> Option<Duration> {
        None
    }

    /// From now on `is_over` is asked some ten times a second while the agent is silent; when it says so, waiting ends with
    /// [`Error::GivenUp`]. A transport that cannot need not care.
    fn give_up_when(&mut self, _is_over: Option<fn() -> bool>) {}

    /// Changes how long the transport itself waits for what is no reply; one that never does need not care.
    fn set_patience(&mut self, _patience: &Patience) {}

    /// Sets a moment after which nothing is waited for any more, whatever still moves; nothing takes it away. One that
    /// cannot tell the time need not care.
    fn set_deadline(&mut self, _deadline: Option<Instant>) {}

    /// Changes how much is taken from the agent before giving up.
    fn set_limits(&mut self, _limits: Limits) {}

    /// How much goes at once.
    fn capacity(&self) -> Capacity;
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn sync(&mut self) -> Result<(), Error> {
        (**self).sync()
    }

    fn start(&mut self, command: &str, arguments: Option<Arguments<'_>>) -> Result<Ticket, Error> {
        (**self).start(command, arguments)
    }

    fn receive(&mut self, command: &str, ticket: Option<Ticket>) -> Result<&[u8], Error> {
        (**self).receive(command, ticket)
    }

    fn set_silence(&mut self, silence: Duration) -> Result<(), Error> {
        (**self).set_silence(silence)
    }

    fn silence(&self) -> Option<Duration> {
        (**self).silence()
    }

    fn give_up_when(&mut self, is_over: Option<fn() -> bool>) {
        (**self).give_up_when(is_over);
    }

    fn set_patience(&mut self, patience: &Patience) {
        (**self).set_patience(patience);
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        (**self).set_deadline(deadline);
    }

    fn set_limits(&mut self, limits: Limits) {
        (**self).set_limits(limits);
    }

    fn capacity(&self) -> Capacity {
        (**self).capacity()
    }
}
