//! A guest's counters at one moment, for `top` and `metrics`. What a guest does not tell is absent.

use std::time::Instant;

use qga_client::AnyAgent;
use qga_protocol::cpu::{CpuStats, GetCpuStats, GetLoad, LinuxCpuStats, LoadAverage};
use qga_protocol::network::{GetInterfaces, NetworkInterface};
use qga_protocol::storage::{DiskStatsInfo, FilesystemInfo, GetDiskStats, GetFsInfo};

use super::guest::{self, Memory};
use crate::failure::Result;
use crate::visit::optional;

/// The counters.
#[derive(Debug, Clone)]
pub struct Sample {
    pub taken: Instant,
    pub uptime_seconds: Option<f64>,
    pub load: Option<LoadAverage>,
    pub processors: Option<Vec<LinuxCpuStats>>,
    pub memory: Option<Memory>,
    pub disks: Option<Vec<DiskStatsInfo>>,
    pub interfaces: Option<Vec<NetworkInterface>>,
    pub file_systems: Option<Vec<FilesystemInfo>>,
}

pub fn take(agent: &mut AnyAgent) -> Result<Sample> {
    let processors = optional(agent.call(&GetCpuStats {}))?;
    Ok(Sample {
        taken: Instant::now(),
        uptime_seconds: guest::uptime(agent)?,
        load: optional(agent.call(&GetLoad {}))?,
        processors: processors.map(|all| all.into_iter().filter_map(linux).collect()),
        memory: guest::memory(agent)?,
        disks: optional(agent.call(&GetDiskStats {}))?,
        interfaces: optional(agent.call(&GetInterfaces {}))?,
        file_systems: optional(agent.call(&GetFsInfo {}))?,
    })
}

fn linux(processor: CpuStats) -> Option<LinuxCpuStats> {
    match processor {
        CpuStats::Linux(processor) => Some(processor),
        CpuStats::Other => None,
    }
}

/// The modes of a processor's time with their names, in milliseconds since the guest's start. `user` holds `guest`.
pub fn modes(processor: &LinuxCpuStats) -> [(&'static str, u64); 8] {
    [
        ("user", processor.user),
        ("nice", processor.nice),
        ("system", processor.system),
        ("idle", processor.idle),
        ("iowait", processor.iowait.unwrap_or(0)),
        ("irq", processor.irq.unwrap_or(0)),
        ("softirq", processor.softirq.unwrap_or(0)),
        ("steal", processor.steal.unwrap_or(0)),
    ]
}

/// Whether a block device is one that data goes to and not a part or a detour: a partition, a loop, a RAM disk.
pub fn is_whole_disk(disk: &DiskStatsInfo, all: &[DiskStatsInfo]) -> bool {
    const DETOURS: [&str; 4] = ["loop", "ram", "zram", "sr"];
    let name = disk.name.as_str();
    if DETOURS.iter().any(|detour| name.starts_with(detour)) {
        return false;
    }
    // sda1 is a part of sda, nvme0n1p1 of nvme0n1.
    !all.iter().any(|other| {
        name.strip_prefix(other.name.as_str()).is_some_and(|rest| {
            let rest = if other.name.ends_with(|last: char| last.is_ascii_digit()) {
                rest.strip_prefix('p').unwrap_or_default()
            } else {
                rest
            };
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn partitions_are_told_from_disks() {
        let disk = |name: &str| -> DiskStatsInfo {
            serde_json::from_value(json!({ "name": name, "major": 8, "minor": 0, "stats": {} })).unwrap()
        };
        let all: Vec<DiskStatsInfo> =
            ["sda", "sda1", "nvme0n1", "nvme0n1p2", "nvme0n10", "loop0", "dm-0", "dm-01", "vdaa"].map(disk).into();
        let whole: Vec<&str> =
            all.iter().filter(|disk| is_whole_disk(disk, &all)).map(|disk| disk.name.as_str()).collect();
        assert_eq!(whole, ["sda", "nvme0n1", "nvme0n10", "dm-0", "dm-01", "vdaa"]);
    }
}
