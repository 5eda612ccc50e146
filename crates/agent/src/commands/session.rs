//! guest-sync, guest-sync-delimited, guest-ping, guest-info.

use qga_protocol::Nothing;
use qga_protocol::session::{AgentInfo, CommandInfo, GetInfo, Ping, Sync, SyncDelimited};

use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;
use crate::system::log::audit;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![SyncDelimited, Sync, Ping, GetInfo];

/// Numbers that clients compare: the level of the protocol, then our patch.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Run for SyncDelimited {
    fn run(self, _call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        Ok(self.id.into())
    }
}

impl Run for Sync {
    fn run(self, _call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        Ok(self.id.into())
    }
}

impl Run for Ping {
    fn run(self, _call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        audit(format_args!("guest-ping called"));
        Ok(Nothing {}.into())
    }
}

impl Run for GetInfo {
    fn run(self, call: &Call<'_>) -> Result<Outcome<AgentInfo>, Error> {
        let command = |entry: &Entry| CommandInfo {
            name: entry.info.name.to_owned(),
            enabled: call.agent.why_not(entry.info).is_none(),
            success_response: entry.info.rules.success_response,
        };
        // The original lists them last first.
        let supported_commands = super::entries().rev().map(command).collect();
        Ok(AgentInfo { version: VERSION.to_owned(), supported_commands }.into())
    }
}
