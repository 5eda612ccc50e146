//! What can go wrong between a host and an agent. Every text names the act, the object and the cause.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::Deserialize;

/// An error that the agent itself reported.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AgentError {
    /// `CommandNotFound` for an unknown or disabled command, `GenericError` for nearly all else.
    pub class: String,
    /// The cause in words.
    pub desc: String,
}

/// Why a call did not give a result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be reached.
    Connect {
        /// Path of the socket.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The request could not be sent.
    Send {
        /// What was to be sent.
        command: String,
        /// What the stream said.
        source: io::Error,
    },
    /// The reply could not be received.
    Receive {
        /// What the reply was to answer.
        command: String,
        /// What the stream said.
        source: io::Error,
    },
    /// The other side closed the connection before the reply was complete.
    Closed {
        /// What the reply was to answer.
        command: String,
    },
    /// Nothing came, or nothing could be sent, for this long.
    TimedOut {
        /// What the reply was to answer.
        command: String,
        /// The stream's time-out.
        after: Duration,
    },
    /// The reply is longer than [`Limits`](crate::Limits) allow. The connection is of no more use before a `sync`.
    TooLong {
        /// What the reply was to answer.
        command: String,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// What came is no reply of the protocol.
    Reply {
        /// What the reply was to answer.
        command: String,
        /// What is wrong with it.
        problem: String,
        /// The start of what came.
        excerpt: String,
    },
    /// The agent answered with an error.
    Agent {
        /// What it answered.
        command: String,
        /// The answer.
        error: AgentError,
    },
    /// The request could not be put into a message.
    Request {
        /// What was to be sent.
        command: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// Reading or writing on the host's side of a transfer failed.
    Local {
        /// What was done, with the guest's path: `copy /etc/hosts from the guest`.
        act: String,
        /// What the host's side said.
        source: io::Error,
    },
}

impl Error {
    /// The agent's own error, where it is one: to branch on its class.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentError> {
        if let Self::Agent { error, .. } = self { Some(error) } else { None }
    }

    /// Whether [`sync`](crate::Connection::sync) must come before the next call: the two sides no longer agree on what
    /// was answered.
    #[must_use]
    pub fn needs_sync(&self) -> bool {
        !matches!(self, Self::Agent { .. } | Self::Local { .. } | Self::Request { .. })
    }

    /// Turns an error of the stream into ours; a time-out of the socket becomes [`Error::TimedOut`].
    pub(crate) fn receive(command: &str, source: io::Error, after: Option<Duration>) -> Self {
        let command = command.to_owned();
        match (source.kind(), after) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(after)) => Self::TimedOut { command, after },
            _ => Self::Receive { command, source },
        }
    }

    /// As [`Error::receive`], for the way there.
    pub(crate) fn send(command: &str, source: io::Error, after: Option<Duration>) -> Self {
        let command = command.to_owned();
        match (source.kind(), after) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(after)) => Self::TimedOut { command, after },
            _ => Self::Send { command, source },
        }
    }

    /// A line that is no reply, with its start for the reader.
    pub(crate) fn reply(command: &str, problem: impl fmt::Display, line: &[u8]) -> Self {
        const EXCERPT_BYTES: usize = 200;
        let mut excerpt = String::from_utf8_lossy(&line[..line.len().min(EXCERPT_BYTES)]).into_owned();
        if line.len() > EXCERPT_BYTES {
            excerpt.push_str("...");
        }
        Self::Reply { command: command.to_owned(), problem: problem.to_string(), excerpt }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { path, source } => write!(f, "cannot connect to {path}: {source}"),
            Self::Send { command, source } => write!(f, "cannot send {command}: {source}"),
            Self::Receive { command, source } => write!(f, "cannot receive the reply to {command}: {source}"),
            Self::Closed { command } => write!(f, "the agent closed the connection before it answered {command}"),
            Self::TimedOut { command, after } => {
                write!(f, "no answer to {command}: the agent was silent for {} s", after.as_secs_f64())
            }
            Self::TooLong { command, limit_bytes } => {
                write!(f, "the reply to {command} is longer than the limit of {limit_bytes} bytes")
            }
            Self::Reply { command, problem, excerpt } => {
                write!(f, "the reply to {command} is not understood: {problem}; it begins {excerpt:?}")
            }
            Self::Agent { command, error } => write!(f, "{command} failed in the guest: {}", error.desc),
            Self::Request { command, source } => write!(f, "cannot write the request {command}: {source}"),
            Self::Local { act, source } => write!(f, "cannot {act}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    // The texts above hold the cause already; a `source` too would print it twice.
}
