//! Threads that may block.

/// The stack of a thread of the agent: recursion is bounded and large data is on the heap.
pub const STACK_BYTES: usize = 256 << 10;
