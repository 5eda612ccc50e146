//! The commands, a module for each family, and the list of all of them: `guest-info`, the block and allow lists and
//! sessions read it.

pub mod accounts;
mod cpu;
pub mod exec;
pub mod file;
pub mod fsfreeze;
mod identity;
mod memory;
pub mod network;
mod power;
mod session;
pub mod storage;
pub mod time;

use std::sync::LazyLock;

use crate::dispatch::handler::Entry;

/// Each family's commands, in the protocol's order.
const FAMILIES: &[&[Entry]] = &[
    session::ENTRIES,
    file::ENTRIES,
    exec::ENTRIES,
    fsfreeze::ENTRIES,
    storage::ENTRIES,
    network::ENTRIES,
    cpu::ENTRIES,
    memory::ENTRIES,
    power::ENTRIES,
    time::ENTRIES,
    identity::ENTRIES,
    accounts::ENTRIES,
];

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
        let mut entries: Vec<&'static Entry> = FAMILIES.iter().copied().flatten().collect();
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
    FAMILIES.iter().copied().flatten().find(|entry| entry.info.name == name)
}

#[cfg(test)]
mod tests {
    use super::{ORDER, entries, find};

    #[test]
    fn the_commands_are_those_of_this_system() {
        let here = |info: &&qga_protocol::Info| info.rules.platforms.linux;
        let mut wanted: Vec<&str> = qga_protocol::commands().filter(here).map(|info| info.name).collect();
        let mut served: Vec<&str> = entries().map(|entry| entry.info.name).collect();
        wanted.sort_unstable();
        served.sort_unstable();
        assert_eq!(served, wanted);
    }

    #[test]
    fn commands_come_in_the_originals_order_and_none_is_left_out() {
        let names: Vec<&str> = entries().map(|entry| entry.info.name).collect();
        assert_eq!(names[..ORDER.len()], *ORDER);
        assert!(names.iter().all(|name| find(name).is_some_and(|entry| entry.info.name == *name)));
        let in_families: usize = super::FAMILIES.iter().map(|family| family.len()).sum();
        assert_eq!(names.len(), in_families);
    }
}
