//! What several commands ask a guest: small files of its `/proc`, which system it is.

use std::io;

use qga_client::AnyAgent;
use qga_protocol::identity::{GetOsInfo, OsInfo};
use serde::Serialize;

use crate::failure::Result;
use crate::visit::optional;

/// Longest file of `/proc` that is read here.
const LONGEST_BYTES: usize = 1 << 20;

/// A small file of the guest; nothing if it is not there or may not be read. One that never ends is an error.
pub fn small_file(agent: &mut AnyAgent, path: &str) -> Result<Option<String>> {
    let Some(handle) = optional(agent.open(path, "r"))? else { return Ok(None) };
    let mut content = Vec::new();
    let read = agent.read_to_end(handle, &format!("read {path} of the guest"), &mut |bytes| {
        if content.len() + bytes.len() > LONGEST_BYTES {
            return Err(io::Error::other(format!("it is longer than {LONGEST_BYTES} bytes")));
        }
        content.extend_from_slice(bytes);
        Ok(())
    });
    if !matches!(&read, Err(error) if error.needs_sync()) {
        optional(agent.close(handle))?;
    }
    let is_read = optional(read)?.is_some();
    Ok(is_read.then(|| String::from_utf8_lossy(&content).into_owned()))
}

/// Which system it is; nothing if it does not say.
pub fn system(agent: &mut AnyAgent) -> Result<Option<OsInfo>> {
    optional(agent.call(&GetOsInfo {}))
}

/// Whether the guest is a Windows.
pub fn is_windows(system: Option<&OsInfo>) -> bool {
    system.and_then(|system| system.id.as_deref()) == Some("mswindows")
}

/// A Linux guest's memory, from `/proc/meminfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Memory {
    pub total_bytes: u64,
    /// What programs could get without swapping.
    pub available_bytes: u64,
    pub swap_total_bytes: u64,
    pub swap_free_bytes: u64,
}

impl Memory {
    pub fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.available_bytes)
    }

    pub fn swap_used_bytes(&self) -> u64 {
        self.swap_total_bytes.saturating_sub(self.swap_free_bytes)
    }
}

pub fn memory(agent: &mut AnyAgent) -> Result<Option<Memory>> {
    Ok(small_file(agent, "/proc/meminfo")?.as_deref().and_then(parse_memory))
}

/// How long a Linux guest has been up, in seconds.
pub fn uptime(agent: &mut AnyAgent) -> Result<Option<f64>> {
    let text = small_file(agent, "/proc/uptime")?;
    Ok(text.and_then(|text| text.split_ascii_whitespace().next()?.parse().ok()))
}

fn parse_memory(text: &str) -> Option<Memory> {
    let value = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory {
        total_bytes: value("MemTotal")?,
        // Before Linux 3.14 there is none.
        available_bytes: value("MemAvailable").or_else(|| Some(value("MemFree")? + value("Cached")?))?,
        swap_total_bytes: value("SwapTotal").unwrap_or(0),
        swap_free_bytes: value("SwapFree").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_any_linux() {
        let text = "MemTotal:       1000 kB\nMemFree:  100 kB\nMemAvailable:   400 kB\nCached: 200 kB\nSwapTotal: 8 kB\nSwapFree: 3 kB\n";
        let memory = parse_memory(text).unwrap();
        assert_eq!((memory.used_bytes(), memory.swap_used_bytes()), (600 * 1024, 5 * 1024));
        let old = parse_memory("MemTotal: 1000 kB\nMemFree: 100 kB\nCached: 200 kB\n").unwrap();
        assert_eq!(old.available_bytes, 300 * 1024);
        assert_eq!(parse_memory("nothing"), None);
    }
}
