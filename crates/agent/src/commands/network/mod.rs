//! guest-network-get-interfaces, guest-network-get-route.
//!
//! Both only read. What the kernel tells is bounded before it becomes a reply; nothing here waits for the network.

#[cfg(target_os = "linux")]
pub mod linux;

use qga_protocol::network::{GetInterfaces, GetRoute, NetworkInterface, NetworkRoute};

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetInterfaces, GetRoute];

impl Run for GetInterfaces {
    fn run(self, _call: &Call<'_>) -> Result<Outcome<Vec<NetworkInterface>>, Error> {
        Ok(os::interfaces()?.into())
    }
}

impl Run for GetRoute {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Vec<NetworkRoute>>, Error> {
        Ok(os::routes(&call.agent.root)?.into())
    }
}
