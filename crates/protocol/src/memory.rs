//! The guest's memory in blocks that can be switched off: `guest-get-memory-blocks`, `guest-set-memory-blocks`,
//! `guest-get-memory-block-info`, on Linux alone.
//!
//! The family switches blocks off and on inside the guest; plugging memory is the host's business. How much memory is
//! in use is not told.

use crate::command::{Command, Family, Open, Platforms};
use crate::{command, enumeration, object};

/// The family's commands.
pub const FAMILY: Family =
    Family { name: "memory", commands: &[GetMemoryBlocks::INFO, SetMemoryBlocks::INFO, GetMemoryBlockInfo::INFO] };

command! {
    "guest-get-memory-blocks", since "2.3", reply Vec<MemoryBlock>, rules { platforms: Platforms::LINUX },
    /// Lists the guest's memory blocks, in the order of the kernel's directory of them. `guest-get-memory-block-info`
    /// tells their size.
    ///
    /// The list is empty if the kernel cannot switch memory.
    ///
    /// Errors: a block whose state cannot be read.
    pub struct GetMemoryBlocks {}
}

command! {
    "guest-set-memory-blocks", since "2.3", reply Vec<MemoryBlockResponse>,
    rules { exclusive: true, platforms: Platforms::LINUX },
    /// Switches memory blocks on and off, one after the other in the order of the list, and returns a result for each.
    ///
    /// A block that fails does not end it, nor is it an error of the command. Switching a block off can take long: its
    /// content has to be moved.
    pub struct SetMemoryBlocks {
        /// The blocks to change; those that are not in the list keep their state.
        mem_blks: Vec<MemoryBlock>,
    }
}

object! {
    /// A block of the guest's memory.
    pub struct MemoryBlock as "GuestMemoryBlock" {
        /// The block's number: it starts at the physical address of this times the size of a block.
        phys_index: u64,
        /// Whether it is, or is to be, switched on.
        online: bool,
        /// Whether it can be switched off, as far as the kernel tells: current kernels say so of every block. Always
        /// sent by `guest-get-memory-blocks`, ignored by `guest-set-memory-blocks`.
        #[serde(skip_serializing_if = "Option::is_none")]
        can_offline: Option<bool>,
    }
}

object! {
    /// What became of a block in `guest-set-memory-blocks`.
    pub struct MemoryBlockResponse as "GuestMemoryBlockResponse" {
        /// The block's number.
        phys_index: u64,
        /// The result.
        response: Open<MemoryBlockResponseType>,
        /// The kernel's error number, if the result is no success.
        #[serde(skip_serializing_if = "Option::is_none")]
        error_code: Option<i64>,
    }
}

enumeration! {
    /// The result for a block in `guest-set-memory-blocks`.
    pub enum MemoryBlockResponseType as "GuestMemoryBlockResponseType" {
        /// It has the wanted state.
        Success,
        /// There is no such block.
        NotFound,
        /// The guest cannot switch memory, or not this block.
        OperationNotSupported,
        /// The kernel refused; see `error-code`.
        OperationFailed,
    }
}

command! {
    "guest-get-memory-block-info", since "2.3", reply MemoryBlockInfo, rules { platforms: Platforms::LINUX },
    /// Returns what all memory blocks have in common: their size.
    ///
    /// Errors: a kernel that cannot switch memory.
    pub struct GetMemoryBlockInfo {}
}

object! {
    /// What `guest-get-memory-block-info` returns.
    pub struct MemoryBlockInfo as "GuestMemoryBlockInfo" {
        /// The size of a block in bytes, 128 MiB on most machines.
        size: u64,
    }
}
