//! A command's failure: what its client reads.

use std::fmt::Display;
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

/// The system's text for an error, as strerror(3) has it: clients match it, so without the number that std appends.
pub fn cause_text(cause: &io::Error) -> String {
    let text = cause.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
