//! The list of commands that this agent serves, and how each is run.
//!
//! A family's module implements [`Run`] for its commands and lists them with [`family!`]; this module joins the lists.
//! `guest-info`, the block and allow lists and dispatch read the result.

use qga_protocol::message::Request;
use qga_protocol::{Command, Info};

use crate::commands;
use crate::dispatch::Call;
use crate::error::Error;
use crate::outlet::Answer;

/// What serving a command means.
pub trait Run: Command + Sized {
    /// Does it. Cross-cutting steps (log, lists, frozen state, locks, panics) are dispatch's.
    fn run(self, call: &Call<'_>) -> Result<Outcome<Self::Reply>, Error>;
}

/// What a command leaves to be sent.
pub enum Outcome<Reply> {
    /// The result.
    Reply(Reply),
    /// A result too large to exist whole: writes itself.
    Stream(Box<dyn Stream>),
}

impl<Reply> From<Reply> for Outcome<Reply> {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// A result that is produced while it is sent.
pub trait Stream: Send {
    /// Sends all of it. Nothing can be reported any more: what fails on the way ends the result early.
    fn send(self: Box<Self>, answer: Answer<'_>, call: &Call<'_>);
}

/// A command in the registry.
pub struct Entry {
    /// What the protocol says of it.
    pub info: &'static Info,
    /// Parses the arguments, runs the command and sends its result; an error is left to dispatch.
    pub serve: fn(&Request, &Call<'_>, Answer<'_>) -> Result<(), Error>,
}

/// Makes a family's list of entries from its commands' types.
macro_rules! family {
    ($($command:ty),+ $(,)?) => {
        &[$($crate::registry::Entry {
            info: &<$command as qga_protocol::Command>::INFO,
            serve: |request, call, answer| {
                let command: $command = request.arguments()?;
                let _held = call.hold_machine(&<$command as qga_protocol::Command>::INFO)?;
                answer.send($crate::registry::Run::run(command, call)?, call);
                Ok(())
            },
        }),+]
    };
}
pub(crate) use family;

/// Every command that this agent serves, in the order in which `-b help` prints them.
pub fn entries() -> impl DoubleEndedIterator<Item = &'static Entry> {
    commands::FAMILIES.iter().flat_map(|family| family.iter())
}

/// The entry for a command's name.
pub fn find(name: &str) -> Option<&'static Entry> {
    entries().find(|entry| entry.info.name == name)
}
