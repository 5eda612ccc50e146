//! How a command is run: what a family's module implements for each of its commands.
//!
//! The module lists its commands with [`family!`]; `commands` joins the lists.

use qga_protocol::message::Request;
use qga_protocol::{Command, Info};

use crate::agent::Agent;
use crate::dispatch::Call;
use crate::dispatch::answer::Answer;
use crate::system::error::Error;
use crate::system::root;

/// What serving a command means.
pub trait Run: Command + Sized {
    /// Does it. Cross-cutting steps (log, lists, frozen state, locks, panics) are dispatch's.
    fn run(self, call: &Call<'_>) -> Result<Outcome<Self::Reply>, Error>;

    /// Whether this request cannot wait for anything. Asked only of a command whose rules say so in general.
    fn is_immediate(_request: &Request, _agent: &Agent) -> bool {
        true
    }
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
    /// See [`Run::is_immediate`].
    pub is_immediate: fn(&Request, &Agent) -> bool,
}

impl Entry {
    /// Whether it may run on the thread that reads.
    pub fn is_immediate(&self, request: &Request, agent: &Agent) -> bool {
        self.info.rules.immediate && (self.is_immediate)(request, agent)
    }
}

/// Runs a command. One that only looks, as its name says, has seen all there is, or fails; what another one has done stays
/// done.
pub fn run<Asked: Run>(command: Asked, call: &Call<'_>) -> Result<Outcome<Asked::Reply>, Error> {
    if Asked::INFO.name.contains("-get-") { root::complete(|| command.run(call)) } else { command.run(call) }
}

/// Makes a family's list of entries from its commands' types.
macro_rules! family {
    ($($command:ty),+ $(,)?) => {
        &[$($crate::dispatch::handler::Entry {
            info: &<$command as qga_protocol::Command>::INFO,
            serve: |request, call, answer| {
                let command: $command = request.arguments()?;
                let _held = call.hold_machine(&<$command as qga_protocol::Command>::INFO)?;
                answer.send($crate::dispatch::handler::run(command, call)?, call);
                Ok(())
            },
            is_immediate: <$command as $crate::dispatch::handler::Run>::is_immediate,
        }),+]
    };
}
pub(crate) use family;
