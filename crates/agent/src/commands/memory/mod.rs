//! guest-get-memory-blocks, guest-set-memory-blocks, guest-get-memory-block-info.

#[cfg(target_os = "linux")]
mod linux;

use qga_protocol::memory::{
    GetMemoryBlockInfo, GetMemoryBlocks, MemoryBlock, MemoryBlockInfo, MemoryBlockResponse, SetMemoryBlocks,
};

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetMemoryBlocks, SetMemoryBlocks, GetMemoryBlockInfo];

impl Run for GetMemoryBlocks {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<MemoryBlock>>, Error> {
        Ok(os::blocks(&call.agent.root)?.into())
    }
}

impl Run for SetMemoryBlocks {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<MemoryBlockResponse>>, Error> {
        let switch = |block: &MemoryBlock| os::switch_block(&call.agent.root, block.phys_index, block.online);
        Ok(self.mem_blks.iter().map(switch).collect::<Vec<_>>().into())
    }
}

impl Run for GetMemoryBlockInfo {
    fn run(self, call: &Call<'_>) -> Result<Outcome<MemoryBlockInfo>, Error> {
        Ok(MemoryBlockInfo { size: os::block_bytes(&call.agent.root)? }.into())
    }
}
