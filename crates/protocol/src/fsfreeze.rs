//! Holding the file systems still while the host takes a snapshot: `guest-fsfreeze-*`.
//!
//! Between freeze and thaw every write in the guest waits, so that the disks hold a consistent state. The agent then
//! serves `guest-ping`, `guest-sync`, `guest-sync-delimited`, `guest-info`, `guest-fsfreeze-status` and
//! `guest-fsfreeze-thaw`; it refuses everything else, for it must not wait on a write of its own.
//!
//! The family takes no snapshot and leaves out `guest-fstrim`, which is in `storage.rs`.

use crate::command::{Command, Family};
use crate::{command, enumeration};

/// The family's commands.
pub const FAMILY: Family =
    Family { name: "fsfreeze", commands: &[Status::INFO, Freeze::INFO, FreezeList::INFO, Thaw::INFO] };

command! {
    "guest-fsfreeze-status", since "0.15.0", reply FreezeStatus, rules { while_frozen: true, immediate: true },
    /// Tells whether the agent holds file systems frozen.
    ///
    /// It reports the agent's own freeze. A file system frozen by another program does not count.
    pub struct Status {}
}

enumeration! {
    /// What `guest-fsfreeze-status` returns.
    pub enum FreezeStatus as "GuestFsfreezeStatus" {
        /// No file system is frozen by the agent.
        Thawed,
        /// Frozen: only the commands that a frozen agent serves are enabled.
        Frozen,
    }
}

command! {
    "guest-fsfreeze-freeze", since "0.15.0", reply i64, rules { exclusive: true },
    /// Freezes all local file systems and returns how many it froze.
    ///
    /// On Linux these are the mounted ones with a block device beneath, each once: those that lie on files of others
    /// first, then the last mounted first. Those that cannot be frozen by their nature and those that are already frozen
    /// are passed over and not counted; the log says so. What is dirty is written out before anything stands still.
    /// On Windows the Volume Shadow Copy Service holds the writes of all fixed volumes, which it does for 10 seconds at
    /// most. The hooks, if there are any, are run with `freeze` before.
    ///
    /// After a 0 or an error nothing is frozen. A freeze ends by itself after `fsfreeze-timeout` seconds, 3600 if the
    /// configuration says nothing else.
    ///
    /// Errors: a hook that fails or takes too long; a mount point that cannot be opened; file systems that do not come to
    /// rest within 60 seconds; a `guest-fsfreeze-thaw` that calls it off; what the kernel or the shadow copy service
    /// reports.
    pub struct Freeze {}
}

command! {
    "guest-fsfreeze-freeze-list", since "2.2", reply i64, rules { exclusive: true },
    /// Freezes the listed file systems and returns how many it froze. Otherwise as `guest-fsfreeze-freeze`.
    ///
    /// A name leads to its file system however it is written: with a slash at its end, through a symbolic link, by a
    /// bind mount or a subvolume. Names that lead to none are passed over on Linux, and the log says so; on Windows one
    /// makes the whole freeze fail.
    pub struct FreezeList {
        /// Mount points, as `guest-get-fsinfo` reports them; on Windows volume roots (`C:\`). All file systems if
        /// absent. An empty list is none on Linux, all on Windows.
        #[serde(skip_serializing_if = "Option::is_none")]
        mountpoints: Option<Vec<String>>,
    }
}

command! {
    "guest-fsfreeze-thaw", since "0.15.0", reply i64, rules { while_frozen: true, ends_freeze: true },
    /// Thaws all frozen file systems and returns how many it thawed.
    ///
    /// What the agent has frozen is thawed, and nothing that others have. A thaw while nothing is frozen is no error and
    /// returns 0. A freeze that is still at work and does not get on is called off. The hooks that were run with `freeze`
    /// are run with `thaw` afterwards, in reverse order. The allow and block lists cannot keep a frozen agent from being
    /// thawed.
    ///
    /// Errors: a hook that fails, though everything is thawed; a file system that cannot be thawed, by name; once, that
    /// the freeze had ended before: by its time limit, or because the agent was killed. On Windows also a snapshot that
    /// was not finished within 10 seconds. In the last three cases what the host has copied is not consistent.
    pub struct Thaw {}
}
