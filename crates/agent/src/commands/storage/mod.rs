//! guest-fstrim, guest-get-fsinfo, guest-get-disks, guest-get-diskstats.
//!
//! What is mounted, on which disk, and where the host finds that disk. Only trimming changes something, and that not in
//! what a file system holds.

#[cfg(target_os = "linux")]
pub mod linux;

use qga_protocol::storage::{
    DiskInfo, DiskStatsInfo, FilesystemInfo, GetDiskStats, GetDisks, GetFsInfo, Trim, TrimReport,
};

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![Trim, GetFsInfo, GetDisks, GetDiskStats];

impl Run for Trim {
    fn run(self, call: &Call<'_>) -> Result<Outcome<TrimReport>, Error> {
        // A negative number is a very large one, as in the original.
        let minimum_bytes = self.minimum.unwrap_or(0).cast_unsigned();
        Ok(os::trim(&call.agent.root, minimum_bytes, || call.note_progress())?.into())
    }
}

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
