//! What can go wrong between a host and an agent. Every text names the act, the object and the cause; [`Error::kind`]
//! says what a caller can do about it.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::Deserialize;

use crate::kind::Kind;

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
    /// A text names no target.
    Target {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The socket, port or device could not be reached.
    Connect {
        /// Path of the socket, or the target.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// What stands between this side and the agent says why it is not reached: libvirt, or a hypervisor's socket.
    Unreachable {
        /// The target.
        target: String,
        /// Which of the reasons it is.
        kind: Kind,
        /// The reason in the words of who gave it.
        cause: String,
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
    /// The whole answer had not come by the [deadline](crate::Agent::set_deadline).
    Late {
        /// What the reply was to answer.
        command: String,
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
    /// A program in the guest that a task needed has failed.
    Guest {
        /// What was done: `rename /tmp/.x.qga-partial to /tmp/x in the guest`.
        act: String,
        /// What the program said.
        cause: String,
    },
    /// Freezing failed, and so did thawing afterwards: the guest's file systems may be frozen.
    StillFrozen {
        /// Why it was not frozen in order.
        source: Box<Error>,
        /// Why it could not be thawed.
        thaw: Box<Error>,
    },
    /// A file was changed while it was copied; the copy was thrown away.
    Changed {
        /// The file that changed.
        path: String,
    },
    /// The copy is not what was copied; it was thrown away.
    Mismatch {
        /// The copy.
        path: String,
        /// What was compared.
        detail: String,
    },
    /// The caller did not want to wait any longer for an agent that was silent.
    GivenUp {
        /// The command that was not answered.
        command: String,
    },
    /// The way to the agent was lost while a program ran that could not be ended any more.
    LeftRunning {
        /// What was lost.
        source: Box<Error>,
        /// The program's number in the guest.
        pid: i64,
    },
    /// The caller's function asked for an end.
    Stopped {
        /// What was stopped.
        act: String,
        /// A partial file that is left for the next try to go on from.
        kept: Option<String>,
    },
    /// A task stopped half-way and left a partial file.
    Interrupted {
        /// What ended it.
        source: Box<Error>,
        /// The partial file.
        kept: String,
        /// Whether a copy that [resumes](crate::CopyOptions::resume) goes on from it. If not, the connection was lost before
        /// it could be removed.
        is_resumable: bool,
    },
}

impl Error {
    /// The agent's own error, where it is one: to branch on its class.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentError> {
        match self {
            Self::Agent { error, .. } => Some(error),
            Self::Interrupted { source, .. } | Self::StillFrozen { source, .. } => source.agent(),
            _ => None,
        }
    }

    /// Whether [`sync`](crate::Agent::sync) must come before the next call: the two sides no longer agree on what was
    /// answered.
    #[must_use]
    pub fn needs_sync(&self) -> bool {
        match self {
            Self::Send { .. }
            | Self::Receive { .. }
            | Self::Closed { .. }
            | Self::TimedOut { .. }
            | Self::Late { .. }
            | Self::TooLong { .. }
            | Self::GivenUp { .. }
            | Self::LeftRunning { .. }
            | Self::Reply { .. } => true,
            Self::Interrupted { source, .. } | Self::StillFrozen { source, .. } => source.needs_sync(),
            _ => false,
        }
    }

    /// What kind of failure it is: for exit codes, and for advice on what to do next.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Target { .. } => Kind::BadTarget,
            Self::Connect { source, .. } => Kind::of_connect(source),
            Self::Unreachable { kind, .. } => *kind,
            Self::Send { .. } | Self::Receive { .. } | Self::Closed { .. } => Kind::ConnectionLost,
            Self::TimedOut { .. } | Self::Late { .. } => Kind::NoAnswer,
            Self::TooLong { .. } | Self::Reply { .. } => Kind::NotUnderstood,
            Self::Agent { error, .. } => Kind::of_agent(error),
            Self::Request { .. } => Kind::BadRequest,
            Self::Local { source, .. } if source.kind() == io::ErrorKind::StorageFull => Kind::HostFull,
            Self::Local { .. } => Kind::Host,
            Self::Guest { cause, .. } if is_full(cause) => Kind::GuestFull,
            Self::Guest { cause, .. } if cause.contains("No such file or directory") => Kind::NoSuchFile,
            Self::Guest { .. } => Kind::Guest,
            Self::Changed { .. } => Kind::Changed,
            Self::Mismatch { .. } => Kind::Mismatch,
            Self::Stopped { .. } | Self::GivenUp { .. } => Kind::Stopped,
            Self::LeftRunning { source, .. } | Self::Interrupted { source, .. } | Self::StillFrozen { source, .. } => {
                source.kind()
            }
        }
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

pub(crate) fn is_full(cause: &str) -> bool {
    cause.contains("No space left on device") || cause.contains("Disk quota exceeded")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target { text, problem } => write!(f, "{text:?} names no target: {problem}"),
            Self::Connect { path, source } => write!(f, "cannot connect to {path}: {source}"),
            Self::Unreachable { target, cause, .. } => write!(f, "cannot reach the agent of {target}: {cause}"),
            Self::Send { command, source } => write!(f, "cannot send {command}: {source}"),
            Self::Receive { command, source } => write!(f, "cannot receive the reply to {command}: {source}"),
            Self::Closed { command } => write!(f, "the agent closed the connection before it answered {command}"),
            Self::TimedOut { command, after } => {
                write!(f, "no answer to {command}: the agent was silent for {} s", after.as_secs_f64())
            }
            Self::Late { command } => write!(f, "the answer to {command} was not complete in time"),
            Self::TooLong { command, limit_bytes } => {
                write!(f, "the reply to {command} is longer than the limit of {limit_bytes} bytes")
            }
            Self::Reply { command, problem, excerpt } => {
                write!(f, "the reply to {command} is not understood: {problem}; it begins {excerpt:?}")
            }
            Self::Agent { command, error } => write!(f, "{command} failed in the guest: {}", error.desc),
            Self::Request { command, source } => write!(f, "cannot write the request {command}: {source}"),
            Self::Local { act, source } => write!(f, "cannot {act}: {source}"),
            Self::Guest { act, cause } => write!(f, "cannot {act}: {cause}"),
            Self::StillFrozen { source, thaw } => {
                write!(f, "{source}; the file systems may still be frozen, since thawing failed too: {thaw}")
            }
            Self::Changed { path } => write!(f, "{path} was changed while it was copied; nothing was kept"),
            Self::Mismatch { path, detail } => write!(f, "{path} is not what was copied: {detail}; nothing was kept"),
            Self::GivenUp { command } => write!(f, "stopped while the agent was silent: no answer to {command}"),
            Self::LeftRunning { source, pid } => {
                write!(f, "{source}; the program may still run in the guest, as process {pid}")
            }
            Self::Stopped { act, kept: None } => write!(f, "stopped: {act}"),
            Self::Stopped { act, kept: Some(kept) } => write!(f, "stopped: {act}; what came so far is kept as {kept}"),
            Self::Interrupted { source, kept, is_resumable: true } => {
                write!(f, "{source}; what came so far is kept as {kept}, from which a copy that resumes goes on")
            }
            Self::Interrupted { source, kept, is_resumable: false } => {
                write!(
                    f,
                    "{source}; it could not be removed any more: {kept} holds a part of the copy, and nothing needs it"
                )
            }
        }
    }
}

impl std::error::Error for Error {
    // The texts above hold the cause already; a `source` too would print it twice.
}
