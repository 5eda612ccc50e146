//! guest-get-vcpus, guest-set-vcpus, guest-get-cpustats, guest-get-load.

#[cfg(target_os = "linux")]
mod linux;

use qga_protocol::cpu::{CpuStats, GetCpuStats, GetLoad, GetVcpus, LoadAverage, LogicalProcessor, SetVcpus};

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetVcpus, SetVcpus, GetCpuStats, GetLoad];

impl Run for GetVcpus {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<LogicalProcessor>>, Error> {
        Ok(os::processors(&call.agent.root)?.into())
    }
}

impl Run for SetVcpus {
    fn run(self, call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        let (done, error) = os::switch_processors(&call.agent.root, &self.vcpus);
        match error {
            Some(error) if done == 0 => return Err(error),
            // The count is all that the reply has room for.
            Some(error) => {
                log::warn!("guest-set-vcpus did {done} of {} processors: {}", self.vcpus.len(), error.desc);
            }
            None => {}
        }
        Ok(i64::try_from(done).unwrap_or(i64::MAX).into())
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
