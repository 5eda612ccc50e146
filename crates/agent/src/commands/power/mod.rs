//! guest-shutdown, guest-suspend-disk, guest-suspend-ram, guest-suspend-hybrid.
//!
//! Each tries one way after the other until one works; the error of a command tells them all. What would end or pause
//! the machine goes through [`os::ThisMachine`], which can be had on the machine that the agent runs on alone.

#[cfg(target_os = "linux")]
mod linux;
mod target_state;

use qga_protocol::command::Nothing;
use qga_protocol::power::{Shutdown, SuspendDisk, SuspendHybrid, SuspendRam};

use self::linux as os;
use self::target_state::{End, Sleep};
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![Shutdown, SuspendDisk, SuspendRam, SuspendHybrid];

impl Run for Shutdown {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        let end = End::parse(self.mode.as_deref())?;
        os::end(&os::ThisMachine::of(&call.agent.root)?, end)?;
        Ok(Nothing {}.into())
    }
}

impl Run for SuspendDisk {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        sleep(call, Sleep::Disk)
    }
}

impl Run for SuspendRam {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        sleep(call, Sleep::Ram)
    }
}

impl Run for SuspendHybrid {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        sleep(call, Sleep::Hybrid)
    }
}

/// Returns when the machine is awake again.
fn sleep(call: &Call<'_>, sleep: Sleep) -> Result<Outcome<Nothing>, Error> {
    os::sleep(&os::ThisMachine::of(&call.agent.root)?, sleep)?;
    Ok(Nothing {}.into())
}
