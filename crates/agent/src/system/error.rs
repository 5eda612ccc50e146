//! What fails: a command, whose client reads why, and the start of the agent.

use std::fmt::{self, Display};
use std::io;

use qga_protocol::message::ErrorClass;

/// A failure, on its way to a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What clients branch on.
    pub class: ErrorClass,
    /// The act, the object and the cause, as one text.
    pub desc: String,
}

impl Error {
    /// Any failure but an unknown or disabled command.
    pub fn new(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }

    /// The command is unknown or disabled.
    pub fn command_not_found(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }

    /// What was tried, and why the system did not let it happen: `failed to open file '/x': No such file or directory`.
    pub fn io(act: impl Display, cause: &io::Error) -> Self {
        Self::new(format!("{act}: {}", cause_text(cause)))
    }
}

impl From<qga_protocol::args::Error> for Error {
    fn from(error: qga_protocol::args::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<qga_protocol::base64::Base64Error> for Error {
    fn from(error: qga_protocol::base64::Base64Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Why the agent cannot start: shown on stderr as `qemu-ga: text`, exit code 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// Names the act, the object and the cause, on one line.
    pub text: String,
}

impl StartFailure {
    /// From its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// From an act (`cannot open the log file /x`) and the system's reason.
    pub fn of(act: impl Display, error: &io::Error) -> Self {
        Self { text: format!("{act}: {}", cause_text(error)) }
    }
}

impl Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StartFailure {}

/// The system's text for an error, as strerror(3) has it: clients match it, so without the number that std appends.
pub fn cause_text(cause: &io::Error) -> String {
    let text = cause.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
