//! The limits and the lock that all clients share.

pub mod abandoned_commands;
pub mod exclusive_lock;
pub mod memory_budget;
