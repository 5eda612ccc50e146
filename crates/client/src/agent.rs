//! Calls: a command's type or name in, its result out.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use qga_protocol::Command;
use qga_protocol::session::{AgentInfo, GetInfo, Ping};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::connect::ConnectOptions;
use crate::conversation::{Ticket, parse_reply};
use crate::error::Error;
use crate::kind::Kind;
use crate::lines::Limits;
use crate::patience::Patience;
use crate::socket;
use crate::stream::{Stream, Timeouts};
use crate::target::Target;
use crate::transport::{Capacity, Transport};

/// An agent and the way to it: calls, and tasks that take several calls.
#[derive(Debug)]
pub struct Agent<T> {
    transport: T,
    info: Option<AgentInfo>,
    patience: Patience,
}

/// What was seen after a command whose success is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// It was answered all the same, as a success.
    Answered,
    /// The connection has ended, or whoever runs the machine says that it no longer runs.
    Gone,
    /// Nothing: neither an error nor an end.
    Silent,
}

/// A connection to an agent over a stream.
pub type Connection<S> = Agent<Stream<S>>;

/// An agent behind whatever a [`Target`] names.
pub type AnyAgent = Agent<Box<dyn Transport + Send>>;

impl AnyAgent {
    /// Connects to a target and brings both sides to the same point, so that the next call can be made.
    ///
    /// ```no_run
    /// use qga_client::{Agent, Timeouts};
    ///
    /// let mut agent = Agent::connect(&"libvirt:web-1".parse()?, Timeouts::default())?;
    /// println!("{}", agent.info()?.version);
    /// # Ok::<(), qga_client::Error>(())
    /// ```
    pub fn connect(target: &Target, options: impl Into<ConnectOptions>) -> Result<Self, Error> {
        let mut agent = Self::over(target.connect(options)?);
        agent.sync()?;
        Ok(agent)
    }

    /// As [`connect`](Self::connect), and both this and all calls that follow are over by `deadline`, also if the agent
    /// is never silent. [`set_deadline`](Self::set_deadline) changes that.
    pub fn connect_by(target: &Target, options: impl Into<ConnectOptions>, deadline: Instant) -> Result<Self, Error> {
        let mut options = options.into();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        options.timeouts.connect = options.timeouts.connect.min(left);
        let mut agent = Self::over(target.connect(options)?);
        agent.set_deadline(Some(deadline));
        agent.sync()?;
        Ok(agent)
    }
}

impl Connection<UnixStream> {
    /// Connects to a unix socket with the default [`Timeouts`].
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::unix_with(path, Timeouts::default())
    }

    /// Connects to a unix socket.
    pub fn unix_with(path: impl AsRef<Path>, options: impl Into<ConnectOptions>) -> Result<Self, Error> {
        socket::unix(path.as_ref(), options.into()).map(Self::over)
    }
}

impl<S: Read + Write> Connection<S> {
    /// Takes a stream that is connected to an agent.
    pub fn new(stream: S) -> Self {
        Self::over(Stream::new(stream))
    }

    /// Changes how much is taken from the agent before giving up.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        Transport::set_limits(&mut self.transport, limits);
        self
    }

    /// The stream itself.
    pub fn stream(&self) -> &S {
        self.transport.stream()
    }

    /// Sends bytes as they are, with a line end after them. `act` names them in an error.
    pub fn send_line(&mut self, act: &str, line: &[u8]) -> Result<(), Error> {
        self.transport.send_line(act, line)
    }

    /// Receives one line, without its end. `act` names in an error what it was to answer.
    pub fn receive_line(&mut self, act: &str) -> Result<&[u8], Error> {
        self.transport.receive_line(act)
    }
}

impl<T: Transport> Agent<T> {
    /// Takes a way to an agent.
    pub fn over(transport: T) -> Self {
        Self { transport, info: None, patience: Patience::default() }
    }

    /// Changes how long tasks wait for the guest.
    pub fn set_patience(&mut self, patience: Patience) {
        self.transport.set_patience(&patience);
        self.patience = patience;
    }

    /// How long tasks wait for the guest.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Brings both sides to the same point, whatever was sent or left unread before: the agent drops a half request,
    /// this side drops every reply that is older than the answer to a fresh random number.
    ///
    /// To be called first on a new connection and after an error that [needs it](Error::needs_sync).
    pub fn sync(&mut self) -> Result<(), Error> {
        self.transport.sync()
    }

    /// Changes how long the agent may be silent. A stream without time-outs of its own is left as it is.
    pub fn set_silence(&mut self, silence: Duration) -> Result<(), Error> {
        self.transport.set_silence(silence)
    }

    /// Sets a moment by which every call is over, also if the agent always says a little and never enough; nothing takes
    /// it away. A call that it ends gives [`Error::Late`].
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.transport.set_deadline(deadline);
    }

    /// Changes how much is taken from the agent before giving up.
    pub fn set_limits(&mut self, limits: Limits) {
        self.transport.set_limits(limits);
    }

    /// How long the agent may be silent, if the transport knows.
    pub fn silence(&self) -> Option<Duration> {
        self.transport.silence()
    }

    /// From now on `is_over` is asked some ten times a second while the agent is silent; when it says so, waiting ends with
    /// [`Error::GivenUp`], after which a [`sync`](Self::sync) must come before the next call.
    pub fn give_up_when(&mut self, is_over: fn() -> bool) {
        self.transport.give_up_when(Some(is_over));
    }

    pub(crate) fn stop_giving_up(&mut self) {
        self.transport.give_up_when(None);
    }

    /// Calls a command by its type.
    pub fn call<C>(&mut self, command: &C) -> Result<C::Reply, Error>
    where
        C: Command,
        C::Reply: DeserializeOwned,
    {
        let ticket = self.start_typed(command)?;
        parse_reply(C::INFO.name, self.receive_for(C::INFO.name, ticket)?)
    }

    /// Calls a command by its name. `Value::Null` sends no arguments.
    pub fn call_raw(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let ticket = self.start_raw(command, arguments)?;
        parse_reply(command, self.receive_for(command, ticket)?)
    }

    /// As [`call_raw`](Self::call_raw), and the result is the agent's own text of it, however large: nothing is made of it.
    pub fn call_text(&mut self, command: &str, arguments: Value) -> Result<&RawValue, Error> {
        let ticket = self.start_raw(command, arguments)?;
        parse_reply(command, self.receive_for(command, ticket)?)
    }

    /// Calls a command whose success is not answered (shutdown, suspend), and tells what was seen of it: an error that
    /// comes within `patience` is returned. The agent is asked for a sign of life before: one that hangs would be as silent
    /// as one that obeys. A [`set_silence`](Self::set_silence) and a
    /// [`sync`](Self::sync) must come before the next call, and a deadline that was set is gone.
    pub fn call_unanswered(
        &mut self,
        command: &str,
        arguments: Value,
        patience: Duration,
    ) -> Result<Unanswered, Error> {
        match self.call(&Ping {}) {
            Ok(_) => {}
            // A list may forbid even that, and to say so is a sign of life.
            Err(error) if error.agent().is_some() => {}
            Err(error) => return Err(error),
        }
        self.transport.set_silence(patience)?;
        self.transport.set_deadline(Instant::now().checked_add(patience));
        let said = self.call_raw(command, arguments);
        self.transport.set_deadline(None);
        match said {
            Ok(_) => Ok(Unanswered::Answered),
            Err(Error::Closed { .. } | Error::Receive { .. }) => Ok(Unanswered::Gone),
            Err(Error::TimedOut { .. } | Error::Late { .. }) => Ok(Unanswered::Silent),
            Err(Error::Unreachable { kind: Kind::NotRunning | Kind::Suspended, .. }) => Ok(Unanswered::Gone),
            Err(error) => Err(error),
        }
    }

    /// Sends a command and does not wait for the answer: for several at once. Every answer that is due is taken by
    /// [`receive_reply`](Self::receive_reply), in order.
    pub fn start(&mut self, command: &str, arguments: Value) -> Result<(), Error> {
        self.start_raw(command, arguments).map(|_| ())
    }

    /// Receives the answer to a command that was started before.
    pub fn receive_reply<R: DeserializeOwned>(&mut self, command: &str) -> Result<R, Error> {
        parse_reply(command, self.transport.receive(command, None)?)
    }

    /// What the agent says of itself. It is asked once.
    pub fn info(&mut self) -> Result<&AgentInfo, Error> {
        if self.info.is_none() {
            self.info = Some(self.call(&GetInfo {})?);
        }
        self.info.as_ref().ok_or_else(|| Error::reply(GetInfo::INFO.name, "there is none", b""))
    }

    /// Whether the agent has a command and would serve it now. An agent that does not tell its commands (before 1.1, or
    /// one that may not say) is taken to have it.
    pub fn serves(&mut self, command: &str) -> Result<bool, Error> {
        match self.info() {
            Ok(info) if info.supported_commands.is_empty() => Ok(true),
            Ok(info) => Ok(info.supported_commands.iter().any(|known| known.name == command && known.enabled)),
            Err(Error::Agent { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// How much the way to the agent carries at once.
    pub fn capacity(&self) -> Capacity {
        self.transport.capacity()
    }

    pub(crate) fn start_typed<C: Command>(&mut self, command: &C) -> Result<Ticket, Error> {
        let write = |text: &mut Vec<u8>| serde_json::to_writer(text, command);
        self.transport.start(C::INFO.name, (!C::INFO.arguments.is_empty()).then_some(&write))
    }

    fn start_raw(&mut self, command: &str, arguments: Value) -> Result<Ticket, Error> {
        match arguments {
            Value::Null => self.transport.start(command, None),
            arguments => self.start_with(command, &|text| serde_json::to_writer(text, &arguments)),
        }
    }

    pub(crate) fn start_with(
        &mut self,
        command: &str,
        arguments: &dyn Fn(&mut Vec<u8>) -> Result<(), serde_json::Error>,
    ) -> Result<Ticket, Error> {
        self.transport.start(command, Some(arguments))
    }

    pub(crate) fn receive_for(&mut self, command: &str, ticket: Ticket) -> Result<&[u8], Error> {
        self.transport.receive(command, Some(ticket))
    }
}
