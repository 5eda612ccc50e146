//! The list of commands that this agent serves, and how each is run.
//!
//! A family's module implements [`Run`] for its commands and lists them with [`family!`]; this module joins the lists.
//! `guest-info`, the block and allow lists and dispatch read the result.

use std::sync::LazyLock;

use qga_protocol::message::Request;
use qga_protocol::{Command, Info};

use crate::commands;
use crate::dispatch::Call;
use crate::system::error::Error;
use crate::system::root;
use crate::transport::line_writer::Answer;

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
        }),+]
    };
}
pub(crate) use family;

/// The order in which the original prints its commands; what it does not have follows.
const ORDER: &[&str] = &[
    "guest-sync-delimited",
    "guest-sync",
    "guest-ping",
    "guest-get-time",
    "guest-set-time",
    "guest-info",
    "guest-shutdown",
    "guest-file-open",
    "guest-file-close",
    "guest-file-read",
    "guest-file-write",
    "guest-file-seek",
    "guest-file-flush",
    "guest-fsfreeze-status",
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-fsfreeze-thaw",
    "guest-fstrim",
    "guest-suspend-disk",
    "guest-suspend-ram",
    "guest-suspend-hybrid",
    "guest-network-get-interfaces",
    "guest-get-vcpus",
    "guest-set-vcpus",
    "guest-get-disks",
    "guest-get-fsinfo",
    "guest-set-user-password",
    "guest-get-memory-blocks",
    "guest-set-memory-blocks",
    "guest-get-memory-block-info",
    "guest-exec-status",
    "guest-exec",
    "guest-get-host-name",
    "guest-get-users",
    "guest-get-timezone",
    "guest-get-osinfo",
    "guest-ssh-get-authorized-keys",
    "guest-ssh-add-authorized-keys",
    "guest-ssh-remove-authorized-keys",
    "guest-get-diskstats",
    "guest-get-cpustats",
    "guest-get-load",
    "guest-network-get-route",
];

/// Every command that this agent serves, in the order in which `-b help` prints them.
pub fn entries() -> impl DoubleEndedIterator<Item = &'static Entry> {
    static ENTRIES: LazyLock<Vec<&'static Entry>> = LazyLock::new(|| {
        let mut entries: Vec<&'static Entry> = commands::FAMILIES.iter().copied().flatten().collect();
        entries.sort_by_key(|entry| place(entry.info.name));
        entries
    });
    ENTRIES.iter().copied()
}

fn place(name: &str) -> usize {
    ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len())
}

/// The entry for a command's name.
pub fn find(name: &str) -> Option<&'static Entry> {
    commands::FAMILIES.iter().copied().flatten().find(|entry| entry.info.name == name)
}

#[cfg(test)]
mod tests {
    use super::{ORDER, entries, find};

    #[test]
    fn commands_come_in_the_originals_order_and_none_is_left_out() {
        let names: Vec<&str> = entries().map(|entry| entry.info.name).collect();
        assert_eq!(names[..ORDER.len()], *ORDER);
        assert!(names.iter().all(|name| find(name).is_some_and(|entry| entry.info.name == *name)));
        let in_families: usize = crate::commands::FAMILIES.iter().map(|family| family.len()).sum();
        assert_eq!(names.len(), in_families);
    }
}
