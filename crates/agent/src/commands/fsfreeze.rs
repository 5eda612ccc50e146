//! guest-fsfreeze-status, guest-fsfreeze-freeze, guest-fsfreeze-freeze-list, guest-fsfreeze-thaw.
//!
//! The commands alone: what is frozen and who ends it is [`crate::freeze`]'s business.

use qga_protocol::fsfreeze::{Freeze, FreezeList, FreezeStatus, Status, Thaw};

use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;
use crate::system::log::audit;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![Status, Freeze, FreezeList, Thaw];

impl Run for Status {
    fn run(self, call: &Call<'_>) -> Result<Outcome<FreezeStatus>, Error> {
        let is_frozen = call.agent.freezer.is_frozen() || call.agent.freezer.is_frozen_by_other(&call.agent.root);
        Ok(if is_frozen { FreezeStatus::Frozen } else { FreezeStatus::Thawed }.into())
    }
}

impl Run for Freeze {
    fn run(self, call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        audit(format_args!("guest-fsfreeze called"));
        Ok(call.agent.freezer.freeze(&call.agent.root, None, &|| call.is_wanted())?.into())
    }
}

impl Run for FreezeList {
    fn run(self, call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        audit(format_args!("guest-fsfreeze called for {} mount points", self.mountpoints.as_ref().map_or(0, Vec::len)));
        Ok(call.agent.freezer.freeze(&call.agent.root, self.mountpoints.as_deref(), &|| call.is_wanted())?.into())
    }
}

impl Run for Thaw {
    fn run(self, call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        audit(format_args!("guest-fsfreeze-thaw called"));
        Ok(call.agent.freezer.thaw_for_host(&call.agent.root)?.into())
    }
}
