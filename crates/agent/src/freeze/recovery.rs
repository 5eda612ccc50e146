//! What an earlier agent has left: file systems that it froze, a guardian, hooks that wait for their `thaw`, an early end
//! that is to be told. Only the owner of the state directory looks for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::freezer::{Hold, Settings};
use super::hooks::{Hooks, Ran};
use super::journal::Journal;
use super::linux::guardian::{Deadline, Guardian, Met, TakenOver};
use super::linux::prepare::{self, Opened, in_time};
use super::linux::state_file::{self, Found, Marker, MarkerFile};
use super::linux::{apply, meeting, plan, record, thawed_early};
use super::machine::{self, HookState, Phase, Recovery, Why};
use super::record as hook_record;
use crate::system::error::Error;
use crate::system::mounts;
use crate::system::root::Root;

/// How long a new agent may take to open again what an earlier one has frozen.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a new agent waits for a byte to be written to the state file.
const NOTE_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks again after something has changed.
const LOOKS_MAX: usize = 5;

/// What was found.
#[derive(Default)]
pub struct Inherited {
    /// What is frozen.
    pub hold: Option<Hold>,
    /// It ends at once, as nobody relies on it.
    pub ends_now: Option<Phase>,
    /// What is to be told to the host.
    pub told: Option<String>,
    /// State files whose hooks may wait for their `thaw`, and whether each is removed afterwards.
    pub left: Vec<(PathBuf, bool)>,
}

/// An identity that no other freeze of this boot has; all are equally long, so that one can take another's place.
pub fn new_id() -> String {
    format!("{:020}-{:010}", state_file::now().as_nanos(), std::process::id())
}

/// Looks at what is there until nothing changes any more.
pub fn inherit(root: &Root, settings: &Settings) -> Inherited {
    let mut inherited = Inherited::default();
    let path = &settings.marker;
    for _ in 0..LOOKS_MAX {
        let met = Guardian::meet(&meeting(path));
        let found = state_file::look(root, path);
        if found == Found::Stale {
            log::warn!(
                "'{}' is from before the last start of the machine, nothing is frozen any more: it was removed",
                path.display()
            );
            let _ = std::fs::remove_file(path);
            continue;
        }
        if found == Found::Unknown && !matches!(met, Met::Guardian(_)) {
            inherited.hold = Some(Hold {
                frozen_at: state_file::now(),
                deadline: settings.timeout.map(|timeout| state_file::now() + timeout),
                is_unknown: true,
                ..Hold::default()
            });
            break;
        }
        let known = match &found {
            Found::Ours(marker) => Some(marker),
            _ => None,
        };
        // Written by an agent of an earlier version while only hooks waited.
        let is_hooks_alone = |marker: &Marker| marker.id.is_empty() && marker.mounts.is_empty();
        let phase = |marker: &Marker| if is_hooks_alone(marker) { Phase::Hooks } else { marker.phase };
        let guardian_id = match &met {
            Met::Guardian(taken) => Some(taken.id.clone()),
            Met::Ended => continue,
            Met::Nobody => None,
        };
        match machine::recover(known.map(|marker| (marker.id.as_str(), phase(marker))), guardian_id.as_deref()) {
            Recovery::Nothing => break,
            Recovery::TakeOver => {
                if let Met::Guardian(taken) = met {
                    inherited.hold = Some(Hold::taken_over(root, settings, taken));
                }
                break;
            }
            Recovery::Dismiss => {
                if let Met::Guardian(taken) = met {
                    taken.guardian.release();
                }
            }
            Recovery::Reopen => {
                let (hold, is_frozen) = Hold::opened_again(root, settings);
                inherited.ends_now = (!is_frozen).then_some(Phase::Early(Why::Killed));
                inherited.hold = hold;
                break;
            }
            Recovery::FinishHooks => {
                inherited.left.push((path.clone(), true));
                break;
            }
            Recovery::FinishEarly => {
                if let Err(error) = std::fs::rename(path, thawed_early(path)) {
                    log::warn!("cannot rename '{}': {error}", path.display());
                    break;
                }
            }
        }
    }
    let early = thawed_early(path);
    match state_file::look(root, &early) {
        Found::Ours(marker) => {
            inherited.told = Some(early_text(marker.frozen_at, why_of(marker.phase)));
            inherited.left.push((early, false));
        }
        Found::Stale => drop(std::fs::remove_file(&early)),
        Found::Nothing | Found::Unknown => {}
    }
    inherited
}

fn why_of(phase: Phase) -> Why {
    match phase {
        Phase::Early(why) => why,
        _ => Why::Killed,
    }
}

/// What the host is told of a freeze that it has not ended itself.
pub fn early_text(frozen_at: Duration, why: Why) -> String {
    format!(
        "the file systems were thawed before guest-fsfreeze-thaw was called, because {}, in a freeze that began {} s \
         ago: what was copied after that is not consistent",
        why.text(),
        state_file::now().saturating_sub(frozen_at).as_secs()
    )
}

impl Hold {
    /// What an earlier agent has frozen, from its guardian.
    fn taken_over(root: &Root, settings: &Settings, taken: TakenOver) -> Self {
        let TakenOver { guardian, opened, deadline, .. } = taken;
        let deadline = match deadline {
            Deadline::Frozen(deadline) => deadline,
            Deadline::AtWork(at) => Some(at),
        };
        let mut hold =
            Self { opened: opened.clone(), frozen: opened, guardian: Some(guardian), deadline, ..Self::default() };
        if let Some((marker, file)) = Marker::open(&settings.marker) {
            hold.take_notes(settings, &marker, file);
        } else {
            // Somebody has removed the state file. All hooks get a `thaw`, as which of them have run is not known.
            log::warn!("'{}' is gone, and a freeze is not over: it goes on", settings.marker.display());
            hold.frozen_at = state_file::now();
            hold.ran = Ran::of(settings.hooks.planned(root));
        }
        hold
    }

    fn take_notes(&mut self, settings: &Settings, marker: &Marker, file: MarkerFile) {
        self.frozen_at = marker.frozen_at;
        self.ran = owed(&marker.hooks);
        self.journal = Arc::new(Journal::of(marker, file, record(&settings.marker)));
    }

    /// What the state file names, opened anew; and whether any of it is frozen.
    fn opened_again(root: &Root, settings: &Settings) -> (Option<Self>, bool) {
        let Some((marker, file)) = Marker::open(&settings.marker) else { return (None, false) };
        let mut hold = Self { deadline: marker.deadline, id: new_id(), ..Self::default() };
        hold.take_notes(settings, &marker, file);
        match opened_again(root, &marker) {
            Ok(opened) => (hold.frozen, hold.opened) = (opened.clone(), opened),
            Err(error) => {
                // It is tried once more when it is to be thawed.
                log::warn!("what an earlier agent has frozen cannot be opened: {}", error.desc);
                hold.is_unknown = true;
            }
        }
        // From here on it is another freeze: a guardian that did not answer must not end it. Writing may wait for what is
        // frozen.
        let (journal, id) = (Arc::clone(&hold.journal), hold.id.clone());
        let noted = in_time("note the identity of the freeze", NOTE_PATIENCE, &|| Ok(()), move || journal.set_id(&id));
        if let Err(error) = noted.and_then(|noted| noted) {
            log::warn!("{}", error.desc);
            hold.id.clone_from(&marker.id);
        }
        // Before the kernel is asked, which is done by freezing for a moment: if this agent is killed then, the guardian
        // thaws. A deadline that has passed is the agent's to keep. Without a meeting point: making that could wait for
        // what is frozen.
        let deadline = Deadline::Frozen(marker.deadline.map(|deadline| deadline.max(state_file::now())));
        match Guardian::start(&hold.id, &hold.opened, deadline, &settings.marker, None) {
            Ok(guardian) => hold.guardian = Some(guardian),
            Err(error) => log::warn!("nobody thaws what is frozen if this agent is killed: no guardian: {error}"),
        }
        let is_frozen = hold.is_unknown || apply::is_any_frozen(&hold.opened);
        (Some(hold), is_frozen)
    }
}

/// What a state file names, opened by its device: it may be mounted elsewhere by now.
fn opened_again(root: &Root, marker: &Marker) -> Result<Vec<Opened>, Error> {
    let mounts = mounts::all(root)?;
    let mut steps = plan::choose(root, &mounts, None, &plan::unasked).steps;
    // The order of the freeze.
    steps.retain(|step| marker.mounts.iter().any(|(device, _)| *device == step.device));
    steps.sort_by_key(|step| marker.mounts.iter().position(|(device, _)| *device == step.device));
    for (device, name) in &marker.mounts {
        if !steps.iter().any(|step| step.device == *device) {
            log::warn!("{} was frozen by an earlier agent and is mounted nowhere any more", name.display());
        }
    }
    Ok(open_each(steps))
}

/// Every file system that could be frozen, opened.
pub fn all_opened(root: &Root) -> Result<Vec<Opened>, Error> {
    if !root.is_host() {
        return Ok(Vec::new());
    }
    Ok(open_each(plan::choose(root, &mounts::all(root)?, None, &plan::unasked).steps))
}

/// Opens what can be opened: one that cannot must not keep the others frozen.
fn open_each(steps: Vec<plan::Step>) -> Vec<Opened> {
    let started = Instant::now();
    let watch = || if started.elapsed() < OPEN_PATIENCE { Ok(()) } else { Err(Error::new("it does not open")) };
    let open = |step: plan::Step| match prepare::open(vec![step.clone()], &watch) {
        Ok(found) if !found.opened.is_empty() => found.opened,
        Ok(_) => {
            log::warn!("thaw: {}: something else is mounted over it", step.name().display());
            Vec::new()
        }
        Err(error) => {
            log::warn!("thaw: {}", error.desc);
            Vec::new()
        }
    };
    steps.into_iter().flat_map(open).collect()
}

/// The hooks that get a `thaw`, in the order of their `freeze`.
fn owed(hooks: &[(PathBuf, HookState)]) -> Ran {
    Ran::of(hooks.iter().filter(|(_, state)| *state == HookState::Freeze).map(|(hook, _)| hook.clone()).collect())
}

/// Calls the hooks that an agent before this one has left without their `thaw`, when the one that still runs has ended;
/// then removes the state file, if it is not needed any more.
pub fn finish_hooks(path: &Path, state_file: &Path, is_removed: bool) {
    let Some((marker, file)) = Marker::open(state_file) else { return };
    let record = record(path);
    let told = hook_record::wait(&record, marker.hook_patience);
    if told == hook_record::Told::Runs {
        log::warn!("a hook of an agent that was killed does not end within {} s", marker.hook_patience.as_secs());
        hook_record::kill(&record);
    }
    let hooks = Hooks::new(marker.script.clone(), None, marker.hook_patience);
    let journal = Journal::of(&marker, file, record.clone());
    let mut left = marker.hooks;
    for (hook, state) in &mut left {
        *state = state.settled(told);
        if let Err(error) = journal.set_hook(hook, *state) {
            log::warn!("fsfreeze hook '{}': {}", hook.display(), error.desc);
        }
    }
    if let Err(error) = hooks.thaw(&Root::host(), &journal, owed(&left)) {
        log::warn!("thaw: {}", error.desc);
    }
    let _ = std::fs::remove_file(record);
    if is_removed {
        let _ = std::fs::remove_file(state_file);
    }
}
