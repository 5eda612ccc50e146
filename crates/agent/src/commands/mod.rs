//! The commands, a module for each family. [`FAMILIES`] is what the registry serves.

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

use crate::dispatch::handler::Entry;

/// Each family's commands, in the protocol's order.
pub const FAMILIES: &[&[Entry]] = &[
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
