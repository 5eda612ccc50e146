//! The limits and the lock that all clients share.

pub mod abandoned_commands;
pub mod exclusive_lock;
pub mod memory_budget;

use std::time::Duration;

/// What one wait under a limit of time lasts. A longer time is waited for in ticks, and a tick counts as no more than this
/// however long it was: a pause of the machine is to cost one of them only.
pub const TICK: Duration = Duration::from_millis(50);
