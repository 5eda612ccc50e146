//! guest-shutdown, guest-suspend-disk, guest-suspend-ram, guest-suspend-hybrid.
//!
//! Each tries one way after the other until one works; the error of a command tells them all. What would end or pause
//! the machine goes through [`os::ThisMachine`], which can be had on the machine that the agent runs on alone.

#[cfg(target_os = "linux")]
mod linux;

use qga_protocol::command::Nothing;
use qga_protocol::power::{Shutdown, SuspendDisk, SuspendHybrid, SuspendRam};

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![Shutdown, SuspendDisk, SuspendRam, SuspendHybrid];

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Without power.
    PowerDown,
    /// With power, doing nothing.
    Halt,
    /// With a new start.
    Reboot,
}

impl End {
    /// The mode of guest-shutdown.
    fn parse(mode: Option<&str>) -> Result<Self, Error> {
        match mode {
            None | Some("powerdown") => Ok(Self::PowerDown),
            Some("halt") => Ok(Self::Halt),
            Some("reboot") => Ok(Self::Reboot),
            // The bracket is missing in the original's text too.
            Some(_) => Err(Error::new("mode is invalid (valid values are: halt|powerdown|reboot")),
        }
    }
}

/// Where the machine's memory is while it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// On the disk, without power.
    Disk,
    /// Where it is.
    Ram,
    /// In both places.
    Hybrid,
}

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

#[cfg(test)]
mod tests {
    use super::End;

    #[test]
    fn a_mode_that_is_none_is_refused_in_the_originals_words() {
        assert_eq!(End::parse(None).unwrap(), End::PowerDown);
        assert_eq!(End::parse(Some("powerdown")).unwrap(), End::PowerDown);
        assert_eq!(End::parse(Some("halt")).unwrap(), End::Halt);
        assert_eq!(End::parse(Some("reboot")).unwrap(), End::Reboot);
        for mode in ["", "Halt", "halt ", "poweroff"] {
            let error = End::parse(Some(mode)).unwrap_err();
            assert_eq!(error.desc, "mode is invalid (valid values are: halt|powerdown|reboot");
        }
    }
}
