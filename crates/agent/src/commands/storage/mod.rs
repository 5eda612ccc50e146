//! guest-get-fsinfo, guest-get-disks, guest-get-diskstats.
//!
//! What is mounted, on which disk, and where the host finds that disk. Nothing here changes anything.

#[cfg(target_os = "linux")]
mod linux;

use qga_protocol::storage::{DiskInfo, DiskStatsInfo, FilesystemInfo, GetDiskStats, GetDisks, GetFsInfo};

use self::linux as os;
use crate::dispatch::Call;
use crate::error::Error;
use crate::registry::{Entry, Outcome, Run, family};

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetFsInfo, GetDisks, GetDiskStats];

impl Run for GetFsInfo {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<FilesystemInfo>>, Error> {
        Ok(os::filesystems(&call.agent.root)?.into())
    }
}

impl Run for GetDisks {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<DiskInfo>>, Error> {
        Ok(os::disks(&call.agent.root)?.into())
    }
}

impl Run for GetDiskStats {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<DiskStatsInfo>>, Error> {
        Ok(os::disk_stats(&call.agent.root)?.into())
    }
}
