//! guest-get-osinfo, guest-get-host-name, guest-get-users.

mod assignments;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod logins;

use qga_protocol::identity::{GetHostName, GetOsInfo, GetUsers, HostName, OsInfo, User};

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetOsInfo, GetHostName, GetUsers];

impl Run for GetOsInfo {
    fn run(self, call: &Call<'_>) -> Result<Outcome<OsInfo>, Error> {
        Ok(os::system(&call.agent.root, std::env::var_os("QGA_OS_RELEASE").as_deref()).into())
    }
}

impl Run for GetHostName {
    fn run(self, call: &Call<'_>) -> Result<Outcome<HostName>, Error> {
        Ok(HostName { host_name: os::host_name(&call.agent.root)? }.into())
    }
}

impl Run for GetUsers {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<User>>, Error> {
        Ok(os::users(&call.agent.root)?.into())
    }
}
