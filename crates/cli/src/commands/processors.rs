//! `qga cpus` and `qga memory`: what the guest has of them, and switching parts on and off.

use qga_protocol::command::Open;
use qga_protocol::cpu::{GetVcpus, LogicalProcessor, SetVcpus};
use qga_protocol::memory::{
    GetMemoryBlockInfo, GetMemoryBlocks, MemoryBlock, MemoryBlockResponseType, SetMemoryBlocks,
};
use serde::Serialize;

use super::guest::{self, Memory};
use super::info::show::usage;
use crate::arguments::Switch;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::output::table::{Cell, Table};
use crate::output::{FAINT, GOOD, Page, Show, WARNING, styled, units};
use crate::visit::{Visit, optional};

fn table_of(processors: &[LogicalProcessor]) -> Table {
    let mut table = Table::new(&["cpu", "state", ""]);
    for processor in processors {
        let fixed = if processor.can_offline == Some(false) { "always on" } else { "" };
        table.row(vec![Cell::number(processor.logical_id), state(processor.online), Cell::text(fixed).in_style(FAINT)]);
    }
    table
}

fn state(is_online: bool) -> Cell {
    if is_online { Cell::text("online").in_style(GOOD) } else { Cell::text("offline").in_style(WARNING) }
}

pub fn processors(options: &Switch, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let mut wanted: Vec<LogicalProcessor> = options
        .changes()
        .map(|(number, online)| LogicalProcessor {
            logical_id: i64::try_from(number).unwrap_or(i64::MAX),
            online,
            can_offline: None,
        })
        .collect();
    // The agent stops at the first that fails and tells why only if it stands first in the list.
    while !wanted.is_empty() {
        let done = agent.call(&SetVcpus { vcpus: wanted.clone() })?;
        let done = usize::try_from(done).unwrap_or(0).min(wanted.len());
        if done == 0 {
            return Err(Failure::told(Code::FailedInGuest, "the agent changed no processor and does not say why", ""));
        }
        wanted.drain(..done);
    }
    let mut processors = agent.call(&GetVcpus {})?;
    processors.sort_by_key(|processor| processor.logical_id);
    visit.page.report_as(&processors, |processors| table_of(processors))
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MemoryState {
    memory: Option<Memory>,
    block_bytes: Option<u64>,
    blocks: Option<Vec<MemoryBlock>>,
}

impl Show for MemoryState {
    fn show(&self, page: &mut Page) -> Result<()> {
        if !page.is_for_people() {
            return self.table().show(page);
        }
        if let Some(memory) = self.memory {
            page.line(format!("used    {}", usage(memory.used_bytes(), memory.total_bytes)))?;
            if memory.swap_total_bytes > 0 {
                page.line(format!("swap    {}", usage(memory.swap_used_bytes(), memory.swap_total_bytes)))?;
            }
        }
        if let (Some(blocks), Some(size)) = (&self.blocks, self.block_bytes) {
            let offline: Vec<u64> = blocks.iter().filter(|block| !block.online).map(|block| block.phys_index).collect();
            let text = format!("{} of {} each", blocks.len(), units::bytes(size));
            let off = if offline.is_empty() {
                styled(FAINT, "all online")
            } else {
                styled(WARNING, format!("offline: {}", ranges(&offline)))
            };
            page.line(format!("blocks  {text}, {off}"))?;
        }
        if self.memory.is_none() && self.blocks.is_none() {
            page.note("the guest tells nothing of its memory");
        }
        Ok(())
    }
}

impl MemoryState {
    /// For a pipe: a name and a number in each line.
    fn table(&self) -> Table {
        let mut table = Table::new(&["what", "number"]);
        let mut row = |name: &str, number: u64| table.row(vec![Cell::text(name), Cell::text(number.to_string())]);
        if let Some(memory) = self.memory {
            row("total-bytes", memory.total_bytes);
            row("available-bytes", memory.available_bytes);
            row("used-bytes", memory.used_bytes());
            row("swap-total-bytes", memory.swap_total_bytes);
            row("swap-free-bytes", memory.swap_free_bytes);
        }
        if let (Some(blocks), Some(size)) = (&self.blocks, self.block_bytes) {
            row("block-bytes", size);
            row("blocks", blocks.len() as u64);
            row("blocks-online", blocks.iter().filter(|block| block.online).count() as u64);
        }
        table
    }
}

/// `1,4-7` for sorted numbers.
fn ranges(numbers: &[u64]) -> String {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let text =
        parts.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    text.collect::<Vec<_>>().join(",")
}

pub fn memory(options: &Switch, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    if options.is_change() {
        let wanted =
            options.changes().map(|(phys_index, online)| MemoryBlock { phys_index, online, can_offline: None });
        let responses = agent.call(&SetMemoryBlocks { mem_blks: wanted.collect() })?;
        let failed = responses.iter().filter(|response| response.response != MemoryBlockResponseType::Success);
        let failed: Vec<String> = failed
            .map(|response| {
                let why = match &response.response {
                    Open::Known(MemoryBlockResponseType::NotFound) => "there is none",
                    Open::Known(MemoryBlockResponseType::OperationNotSupported) => "it cannot be switched",
                    Open::Known(_) => "the kernel refused",
                    Open::Other(other) => other.as_str(),
                };
                let number = response.error_code.map(|code| format!(" (error {code})")).unwrap_or_default();
                format!("block {}: {why}{number}", response.phys_index)
            })
            .collect();
        if !failed.is_empty() {
            return Err(Failure::told(Code::FailedInGuest, failed.join("; "), "'qga memory --json' lists the blocks."));
        }
    }
    let mut blocks = optional(agent.call(&GetMemoryBlocks {}))?.filter(|blocks| !blocks.is_empty());
    if let Some(blocks) = &mut blocks {
        blocks.sort_by_key(|block| block.phys_index);
    }
    let block_bytes = optional(agent.call(&GetMemoryBlockInfo {}))?.map(|info| info.size);
    visit.page.report(&MemoryState { memory: guest::memory(&mut agent)?, block_bytes, blocks })
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_written_as_ranges() {
        assert_eq!(super::ranges(&[1, 4, 5, 6, 9]), "1,4-6,9");
        assert_eq!(super::ranges(&[]), "");
    }
}
