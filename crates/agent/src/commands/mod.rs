//! The commands, a module for each family. [`FAMILIES`] is what the registry serves.

pub mod exec;
pub mod file;
mod session;

use crate::registry::Entry;

/// Each family's commands, in the protocol's order.
pub const FAMILIES: &[&[Entry]] = &[session::ENTRIES, file::ENTRIES, exec::ENTRIES];
