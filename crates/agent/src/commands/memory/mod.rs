//! guest-get-memory-blocks, guest-get-memory-block-info.

#[cfg(target_os = "linux")]
mod linux;

use qga_protocol::memory::{GetMemoryBlockInfo, GetMemoryBlocks, MemoryBlock, MemoryBlockInfo};

use self::linux as os;
use crate::dispatch::Call;
use crate::error::Error;
use crate::registry::{Entry, Outcome, Run, family};

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetMemoryBlocks, GetMemoryBlockInfo];

impl Run for GetMemoryBlocks {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<MemoryBlock>>, Error> {
        Ok(os::blocks(&call.agent.root)?.into())
    }
}

impl Run for GetMemoryBlockInfo {
    fn run(self, call: &Call<'_>) -> Result<Outcome<MemoryBlockInfo>, Error> {
        Ok(MemoryBlockInfo { size: os::block_bytes(&call.agent.root)? }.into())
    }
}
