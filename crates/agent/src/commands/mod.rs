//! The commands, a module for each family. [`FAMILIES`] is what the registry serves.

mod accounts;
mod cpu;
pub mod exec;
pub mod file;
mod identity;
mod memory;
mod network;
mod session;
mod storage;
mod time;

use crate::registry::Entry;

/// Each family's commands, in the protocol's order.
pub const FAMILIES: &[&[Entry]] = &[
    session::ENTRIES,
    file::ENTRIES,
    exec::ENTRIES,
    storage::ENTRIES,
    network::ENTRIES,
    cpu::ENTRIES,
    memory::ENTRIES,
    time::ENTRIES,
    identity::ENTRIES,
    accounts::ENTRIES,
];
