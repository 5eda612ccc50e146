//! What all clients share: the policy, the open files, the programs, the locks and the limits.

use std::sync::Arc;

use qga_protocol::Info;

use crate::freeze::Freezer;
use crate::limits::abandoned_commands::Stuck;
use crate::limits::exclusive_lock::Exclusive;
use crate::limits::memory_budget::Budget;
use crate::process::client_programs::Programs;
use crate::process::open_files::Files;
use crate::startup::policy::Policy;
use crate::system::root::Root;
use crate::system::state_directory::State;

/// The agent.
pub struct Agent {
    /// Which commands are allowed.
    pub policy: Policy,
    /// Files open for clients.
    pub files: Files,
    /// Programs started for clients.
    pub programs: Programs,
    /// The machine that it runs on.
    pub root: Root,
    /// What is frozen, and what ends it.
    pub freezer: Arc<Freezer>,
    /// Held by a command that changes the machine.
    pub exclusive: Exclusive,
    /// What requests may hold of memory.
    pub budget: Budget,
    /// Commands that run and could hang.
    pub stuck: Stuck,
    /// Those of them that end a freeze.
    pub stuck_ways_out: Stuck,
}

impl Agent {
    /// An agent with nothing open.
    pub fn new(policy: Policy, state: State, programs: Programs, freezer: Arc<Freezer>) -> Self {
        let budget = programs.budget();
        Self {
            policy,
            files: Files::new(state),
            programs,
            root: Root::host(),
            freezer,
            exclusive: Exclusive::default(),
            budget,
            stuck: Stuck::default(),
            stuck_ways_out: Stuck::default(),
        }
    }

    /// Why a command may not run now; `None` if it may.
    pub fn why_not(&self, info: &Info) -> Option<&'static str> {
        if self.freezer.is_frozen() {
            // The lists cannot keep a frozen machine from being thawed.
            return (!info.rules.while_frozen).then_some("file systems are frozen");
        }
        (!self.policy.allows(info.name)).then(|| self.policy.why_not(info.name))
    }
}
