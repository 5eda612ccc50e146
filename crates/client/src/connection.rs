//! One connection: a request line out, a reply line in, and the way back to order when something was left over.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use memchr::memmem;
use qga_protocol::Command;
use qga_protocol::session::SyncDelimited;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{AgentError, Error};
use crate::lines::{Limits, Lines, NoLine, SENTINEL, Skip};

const SYNC: &str = SyncDelimited::INFO.name;

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

/// A connection to an agent over any stream.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    lines: Lines,
    /// The request being written; kept so that a call allocates nothing once warm.
    request: Vec<u8>,
    limits: Limits,
    silence: Option<Duration>,
}

impl Connection<UnixStream> {
    /// Connects to a unix socket with the default [`Timeouts`].
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::unix_with(path, Timeouts::default())
    }

    /// Connects to a unix socket.
    pub fn unix_with(path: impl AsRef<Path>, timeouts: Timeouts) -> Result<Self, Error> {
        let path = path.as_ref();
        let prepare = || {
            let stream = connect_unix(path, timeouts.connect)?;
            stream.set_read_timeout(Some(timeouts.silence))?;
            stream.set_write_timeout(Some(timeouts.silence))?;
            Ok(stream)
        };
        let stream = prepare().map_err(|source| Error::Connect { path: path.display().to_string(), source })?;
        let mut connection = Self::new(stream);
        connection.silence = Some(timeouts.silence);
        Ok(connection)
    }

    /// Changes how long the agent may be silent.
    pub fn set_silence(&mut self, silence: Duration) -> Result<(), Error> {
        let set = |stream: &UnixStream| {
            stream.set_read_timeout(Some(silence))?;
            stream.set_write_timeout(Some(silence))
        };
        set(&self.stream).map_err(|source| Error::Local {
            act: format!("set the time-out to {} s", silence.as_secs_f64()),
            source,
        })?;
        self.silence = Some(silence);
        Ok(())
    }
}

/// A blocking connect has no time-out of its own and would wait for ever for a place in the listener's queue.
fn connect_unix(path: &Path, wait: Duration) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

    let address = SocketAddrUnix::new(path)?;
    let deadline = Instant::now() + wait;
    let mut pause = Duration::from_micros(100);
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(rustix::io::Errno::AGAIN) => {
                let text = format!("its queue was full for {} s: another client holds the agent", wait.as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[derive(Serialize)]
struct Request<'a, A> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<A>,
}

/// A reply of either kind. An `id` is ignored: replies come in the order of the requests.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Reply<T> {
    #[serde(rename = "return")]
    success: Option<T>,
    error: Option<AgentError>,
}

impl<S: Read + Write> Connection<S> {
    /// Takes a stream that is connected to an agent.
    pub fn new(stream: S) -> Self {
        Self { stream, lines: Lines::default(), request: Vec::new(), limits: Limits::default(), silence: None }
    }

    /// Changes how much is taken from the agent before giving up.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The stream itself.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Brings both sides to the same point, whatever was sent or left unread before: the agent drops a half request,
    /// this side drops every reply that is older than the answer to a fresh random number.
    ///
    /// To be called first on a new connection and after an error that [needs it](Error::needs_sync).
    pub fn sync(&mut self) -> Result<(), Error> {
        let id = random_id();
        self.write_request(SYNC, Some(SyncDelimited { id }))?;
        self.request.insert(0, SENTINEL);
        self.send_request(SYNC)?;

        let mut allowance = self.limits.discarded_bytes;
        loop {
            let discarded = self.lines.skip_to_sentinel(&mut self.stream, allowance, refusal_of_sync);
            allowance -= discarded
                .map_err(|problem| match problem {
                    Skip::NoLine(NoLine::TooLong) => {
                        Error::TooLong { command: SYNC.to_owned(), limit_bytes: self.limits.discarded_bytes as u64 }
                    }
                    Skip::NoLine(problem) => no_line(SYNC, problem, self.limits.reply_bytes, self.silence),
                    Skip::Stopped(error) => Error::Agent { command: SYNC.to_owned(), error },
                })?
                .min(allowance);
            // The answer to an older sync may come first; its number is another one.
            let line = self.receive_line(SYNC)?;
            let reply: Result<Reply<i64>, _> = serde_json::from_slice(line);
            if reply.is_ok_and(|reply| reply.success == Some(id)) {
                return Ok(());
            }
        }
    }

    /// Calls a command by its type.
    pub fn call<C>(&mut self, command: &C) -> Result<C::Reply, Error>
    where
        C: Command,
        C::Reply: DeserializeOwned,
    {
        let name = C::INFO.name;
        let arguments = (!C::INFO.arguments.is_empty()).then_some(command);
        self.write_request(name, arguments)?;
        self.send_request(name)?;
        self.receive_reply(name)
    }

    /// Calls a command by its name. `Value::Null` sends no arguments.
    pub fn call_raw(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.start(command, arguments)?;
        self.receive_reply(command)
    }

    /// Sends a command and does not wait for the answer: for those that answer nothing on success (shutdown, suspend),
    /// and for several at once. Every answer that is due is taken by [`Connection::receive_reply`], in order.
    pub fn start(&mut self, command: &str, arguments: Value) -> Result<(), Error> {
        self.write_request(command, (!arguments.is_null()).then_some(arguments))?;
        self.send_request(command)
    }

    /// Receives the answer to a command that was started before.
    pub fn receive_reply<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, Error> {
        parse_reply(command, self.receive_line(command)?)
    }

    /// Sends bytes as they are, with a line end after them. `act` names them in an error.
    pub fn send_line(&mut self, act: &str, line: &[u8]) -> Result<(), Error> {
        self.request.clear();
        self.request.extend_from_slice(line);
        self.request.push(b'\n');
        self.send_request(act)
    }

    /// Receives one line, without its end. `act` names in an error what it was to answer.
    pub fn receive_line(&mut self, act: &str) -> Result<&[u8], Error> {
        let (limit, silence) = (self.limits.reply_bytes, self.silence);
        self.lines.next(&mut self.stream, limit).map_err(|problem| no_line(act, problem, limit, silence))
    }

    fn write_request<A: Serialize>(&mut self, execute: &str, arguments: Option<A>) -> Result<(), Error> {
        self.request.clear();
        serde_json::to_writer(&mut self.request, &Request { execute, arguments })
            .map_err(|source| Error::Request { command: execute.to_owned(), source })?;
        self.request.push(b'\n');
        Ok(())
    }

    fn send_request(&mut self, command: &str) -> Result<(), Error> {
        let sent = self.stream.write_all(&self.request).and_then(|()| self.stream.flush());
        sent.map_err(|source| Error::send(command, source, self.silence))
    }
}

fn no_line(command: &str, problem: NoLine, limit_bytes: usize, silence: Option<Duration>) -> Error {
    match problem {
        NoLine::Closed => Error::Closed { command: command.to_owned() },
        NoLine::TooLong => Error::TooLong { command: command.to_owned(), limit_bytes: limit_bytes as u64 },
        NoLine::Stream(source) => Error::receive(command, source, silence),
    }
}

fn parse_reply<'a, T: Deserialize<'a>>(command: &str, line: &'a [u8]) -> Result<T, Error> {
    // An agent that answered guest-sync-delimited before has put its sentinel in front; it says nothing here.
    let line = line.strip_prefix(&[SENTINEL]).unwrap_or(line);
    let reply: Reply<T> = serde_json::from_slice(line).map_err(|problem| Error::reply(command, problem, line))?;
    match (reply.success, reply.error) {
        (Some(success), None) => Ok(success),
        (_, Some(error)) => Err(Error::Agent { command: command.to_owned(), error }),
        (None, None) => Err(Error::reply(command, "it has neither \"return\" nor \"error\"", line)),
    }
}

/// An agent that refuses the command sends no sentinel; waiting for one would last until the time-out.
fn refusal_of_sync(line: &[u8]) -> Result<(), AgentError> {
    const LONGEST_REFUSAL_BYTES: usize = 4096;
    if line.len() > LONGEST_REFUSAL_BYTES || memmem::find(line, SYNC.as_bytes()).is_none() {
        return Ok(());
    }
    match serde_json::from_slice::<Reply<Value>>(line) {
        Ok(Reply { error: Some(error), .. }) if error.class.starts_with("Command") => Err(error),
        _ => Ok(()),
    }
}

/// A number that no older sync of anybody has used: 63 random bits, so that it is positive in every reader.
fn random_id() -> i64 {
    use std::hash::{BuildHasher, Hasher};
    // Each RandomState has keys of its own; the hash of nothing under random keys is a random number.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random >> 1) as i64
}
