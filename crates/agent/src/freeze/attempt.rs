//! One freeze at work, step by step. Dropped before its end, it undoes what it has done.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::freezer::{Freezer, Hold};
use super::journal::Journal;
use super::linux::apply::{self, Freeze};
use super::linux::guardian::{Deadline, Guardian};
use super::linux::plan::{self, Choice};
use super::linux::prepare::{self, Found, Opened, ROUNDS_MAX};
use super::linux::state_file::{self, Marker};
use super::linux::{meeting, record, thawed_early};
use super::machine::{FREEZE, FreezeStep, HookState, Phase};
use super::recovery::new_id;
use crate::system::error::{Error, cause_text};
use crate::system::log::audit;
use crate::system::mounts;
use crate::system::root::Root;

/// How long choosing may take: it looks at files and at the names that the host has sent.
const CHOICE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a freeze may be at work before the guardian ends it: longer than the agent gives it.
const WORK_PATIENCE: Duration = Duration::from_secs(75);
/// Descriptors that the agent needs for everything else: 256 handles, five for each of 128 programs with pipes, 64 clients
/// and their threads, and some of its own. A thaw takes one too, and must not lack it.
const OTHER_DESCRIPTORS: u64 = 1536;
/// Descriptors that a file system takes: its own, and those of the sockets that it waits in.
const DESCRIPTORS_EACH: u64 = 3;

/// A freeze at work.
pub struct Attempt<'a> {
    freezer: &'a Arc<Freezer>,
    root: &'a Root,
    is_wanted: &'a dyn Fn() -> bool,
    /// What is to be undone.
    pub(super) hold: Hold,
    is_done: bool,
}

impl<'a> Attempt<'a> {
    /// One that has done nothing yet.
    pub fn new(freezer: &'a Arc<Freezer>, root: &'a Root, is_wanted: &'a dyn Fn() -> bool) -> Self {
        Self { freezer, root, is_wanted, hold: Hold::default(), is_done: false }
    }

    /// Freezes. What is frozen is in `hold`.
    pub fn run(&mut self, names: Option<&[String]>) -> Result<(), Error> {
        let (freezer, settings) = (self.freezer, &self.freezer.settings);
        let is_wanted = self.is_wanted;
        let watch = || {
            freezer.is_called_off()?;
            still_wanted(is_wanted)
        };
        let (root, only) = (self.root.clone(), names.map(<[String]>::to_vec));
        let choose = move || {
            let mounts = mounts::all(&root)?;
            Ok::<_, Error>(plan::choose(&root, &mounts, only.as_deref(), &plan::ask_for_backing_device))
        };
        let Choice { steps, left_out } =
            prepare::in_time("choose file systems to freeze", CHOICE_PATIENCE, &watch, choose)??;
        for (path, reason) in left_out {
            audit(format_args!("freeze: {}: left out: {reason}", path.display()));
        }
        make_room(steps.len() as u64 * DESCRIPTORS_EACH);
        // Nothing stands still during the longest part: writing out what is dirty.
        let Found { opened, hidden, gone } = prepare::open(steps, &watch)?;
        for path in gone {
            audit(format_args!("freeze: {}: left out: it was unmounted meanwhile", path.display()));
        }
        for path in hidden {
            log::warn!("freeze: {}: left out: something else is mounted over it", path.display());
        }
        prepare::write_out(&opened, ROUNDS_MAX, &watch)?;
        let planned = settings.hooks.planned(self.root);
        self.hold.frozen_at = state_file::now();
        self.hold.deadline = settings.timeout.map(|timeout| self.hold.frozen_at + timeout);
        if opened.is_empty() && planned.is_empty() {
            return settings.hooks.freeze(self.root, &self.hold.journal, &|| false).1;
        }
        for step in FREEZE {
            match step {
                FreezeStep::WriteMarker => self.write_marker(&opened, planned.clone())?,
                FreezeStep::CallHooks => {
                    let (ran, told) = settings.hooks.freeze(self.root, &self.hold.journal, &|| watch().is_err());
                    self.hold.ran = ran;
                    told?;
                    if !self.hold.ran.paths().is_empty() {
                        // They have written out what they had in memory.
                        prepare::write_out(&opened, 1, &watch)?;
                    }
                    if opened.is_empty() {
                        return Ok(());
                    }
                }
                FreezeStep::StartGuardian => self.start_guardian(&opened)?,
                FreezeStep::MarkFrozen => {
                    self.hold.journal.set_phase(Phase::Frozen)?;
                    // What was told of an earlier freeze is of no interest to a host that has begun another one.
                    let _ = std::fs::remove_file(thawed_early(&settings.marker));
                }
                FreezeStep::Freeze => {
                    freezer.close();
                    let Freeze { frozen, late, outcome } = apply::freeze(&opened, &watch);
                    self.hold.frozen = frozen;
                    self.hold.late = late;
                    outcome?;
                }
                // By the freezer, once it is known that somebody still waits for the freeze.
                FreezeStep::Confirm => {}
            }
        }
        Ok(())
    }

    fn start_guardian(&mut self, opened: &[Opened]) -> Result<(), Error> {
        let marker = &self.freezer.settings.marker;
        self.hold.opened = opened.to_vec();
        let at_work = Deadline::AtWork(state_file::now() + WORK_PATIENCE);
        let guardian = Guardian::start(&self.hold.id, opened, at_work, marker, Some(&meeting(marker)));
        let guardian = guardian.map_err(|error| Error::io("failed to start the guardian of the freeze", &error))?;
        self.hold.guardian = Some(guardian);
        Ok(())
    }

    /// Everything is frozen: from here on it is the freezer's.
    pub fn finish(mut self) -> Hold {
        self.is_done = true;
        std::mem::take(&mut self.hold)
    }

    /// Writes the state file. Without it nobody would know of the freeze after this agent was killed.
    fn write_marker(&mut self, opened: &[Opened], planned: Vec<PathBuf>) -> Result<(), Error> {
        let settings = &self.freezer.settings;
        self.hold.id = new_id();
        let marker = Marker {
            boot_id: state_file::boot_id(&Root::host()),
            id: self.hold.id.clone(),
            phase: Phase::Hooks,
            frozen_at: self.hold.frozen_at,
            deadline: self.hold.deadline,
            mounts: opened.iter().map(|opened| (opened.device, opened.name.clone())).collect(),
            hooks: planned.into_iter().map(|hook| (hook, HookState::Planned)).collect(),
            script: settings.hooks.script().map(PathBuf::from),
            hook_patience: settings.hooks.patience_each(),
        };
        let file = marker.create(&settings.marker).map_err(|error| {
            Error::new(format!(
                "nothing was frozen: the state file '{}' cannot be written: {}. Without it nobody would know of the freeze \
                 if this agent was killed (make room there, or name another state directory with -t)",
                settings.marker.display(),
                cause_text(&error)
            ))
        })?;
        self.hold.journal = Arc::new(Journal::of(&marker, file, record(&settings.marker)));
        Ok(())
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Err(error) = self.freezer.undo(self.root, std::mem::take(&mut self.hold), Phase::Thawed) {
            log::warn!("thaw after a freeze that was given up: {}", error.desc);
        }
    }
}

/// An error if nobody waits for the freeze any more.
pub fn still_wanted(is_wanted: &dyn Fn() -> bool) -> Result<(), Error> {
    let unwanted = || Error::new("the freeze was given up, because nobody waits for it any more");
    if is_wanted() { Ok(()) } else { Err(unwanted()) }
}

/// Raises the limit of open files if these many more could pass it; programs that are started later inherit that.
fn make_room(files: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = files + OTHER_DESCRIPTORS;
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let wanted = maximum.map_or(needed, |maximum| needed.min(maximum));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        log::warn!("the limit of open files cannot be raised to {wanted}: {error}");
    }
}
