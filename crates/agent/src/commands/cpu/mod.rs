//! guest-get-vcpus, guest-get-cpustats, guest-get-load.

#[cfg(target_os = "linux")]
mod linux;

use qga_protocol::cpu::{CpuStats, GetCpuStats, GetLoad, GetVcpus, LoadAverage, LogicalProcessor};

use self::linux as os;
use crate::dispatch::Call;
use crate::error::Error;
use crate::registry::{Entry, Outcome, Run, family};

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetVcpus, GetCpuStats, GetLoad];

impl Run for GetVcpus {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<LogicalProcessor>>, Error> {
        Ok(os::processors(&call.agent.root)?.into())
    }
}

impl Run for GetCpuStats {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<CpuStats>>, Error> {
        Ok(os::processor_times(&call.agent.root)?.into())
    }
}

impl Run for GetLoad {
    fn run(self, _call: &Call<'_>) -> Result<Outcome<LoadAverage>, Error> {
        Ok(os::load_average().into())
    }
}
