//! What is frozen, shared by all clients, and everything that ends it: a thaw from the host, an error, the deadline, the
//! agent's own end. Only one freeze or thaw is at work at a time; a thaw that comes while a freeze is at work and does
//! not get on calls it off.
//!
//! From the first file system on that is frozen the agent writes to no disk: the log is held, memory is locked, and
//! all commands are refused but those that need no disk. A guardian, started before, thaws if this process cannot.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::mm::MlockAllFlags;

use super::hooks::{Hooks, Ran};
use super::linux::choice::{self, Choice};
use super::linux::guardian::Guardian;
use super::linux::holding::{self, Freeze};
use super::linux::marker::{self, Found, Marker};
use super::linux::opening::{self, Opened};
use super::linux::{meeting, thawed_early};
use crate::error::{Error, cause_text};
use crate::linux::mounts;
use crate::log::audit;
use crate::root::Root;

/// A freeze that gets on may go on this long after a thaw has come in: then the thaw follows, as both were wanted.
const THAW_GRACE: Duration = Duration::from_secs(2);
/// How long a thaw waits for a freeze to be called off, or for another thaw.
const TURN_PATIENCE: Duration = Duration::from_secs(300);

/// How freezing is done here.
#[derive(Debug)]
pub struct Settings {
    /// The file that says that something is frozen.
    pub marker: PathBuf,
    /// After how long the agent thaws by itself; `None` for never.
    pub timeout: Option<Duration>,
    /// Who is told before and after.
    pub hooks: Hooks,
}

impl Settings {
    /// For a recorded machine, where nothing can be frozen.
    pub fn of_recorded(marker: PathBuf) -> Self {
        Self { marker, timeout: None, hooks: Hooks::new(None, None, Duration::ZERO) }
    }
}

/// What is frozen.
pub struct Freezer {
    settings: Settings,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether a file system may be frozen: commands that need a disk are refused.
    is_frozen: AtomicBool,
    /// The agent is about to end.
    is_ending: AtomicBool,
}

struct State {
    phase: Phase,
    /// A thaw waits for the freeze at work, since then.
    thaw_wished_at: Option<Instant>,
    /// The last freeze ended without a thaw from the host; told once.
    ended_early: Option<String>,
    /// What could not be thawed: tried again with the next thaw.
    leftovers: Vec<Opened>,
    /// Freezes so far, so that a deadline knows its own.
    generation: u64,
}

enum Phase {
    Thawed,
    Freezing,
    Frozen(Hold),
    Thawing,
}

/// All that a thaw has to undo.
#[derive(Default)]
struct Hold {
    frozen: Vec<Opened>,
    ran: Ran,
    guardian: Option<Guardian>,
    frozen_at: Duration,
    deadline: Option<Duration>,
    /// Frozen by an agent that has not told what: all file systems are to be thawed, as often as it takes.
    is_unknown: bool,
}

impl Freezer {
    /// With what an earlier agent of this boot has left frozen.
    pub fn new(settings: Settings, root: &Root) -> Arc<Self> {
        let phase = match marker::look(root, &settings.marker) {
            Found::Nothing => Phase::Thawed,
            Found::Stale => {
                log::warn!(
                    "'{}' is from before the last start of the machine, nothing is frozen any more: it was removed",
                    settings.marker.display()
                );
                let _ = std::fs::remove_file(&settings.marker);
                Phase::Thawed
            }
            Found::Unknown => Phase::Frozen(Hold {
                frozen_at: marker::now(),
                deadline: settings.timeout.map(|timeout| marker::now() + timeout),
                is_unknown: true,
                ..Hold::default()
            }),
            Found::Ours(marker) => Phase::Frozen(Hold::resumed(&settings, marker)),
        };
        let ended_early = match marker::look(root, &thawed_early(&settings.marker)) {
            Found::Ours(marker) => {
                let _ = std::fs::remove_file(thawed_early(&settings.marker));
                Some(early_text(marker.frozen_at, "the agent was killed"))
            }
            _ => None,
        };
        let is_frozen = matches!(phase, Phase::Frozen(_));
        let state = State { phase, thaw_wished_at: None, ended_early, leftovers: Vec::new(), generation: 1 };
        let freezer = Arc::new(Self {
            settings,
            state: Mutex::new(state),
            changed: Condvar::new(),
            is_frozen: AtomicBool::new(is_frozen),
            is_ending: AtomicBool::new(false),
        });
        if is_frozen {
            freezer.close();
            freezer.watch_deadline(root, 1);
        }
        freezer
    }

    /// Whether the agent holds file systems frozen.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Relaxed)
    }

    /// A thaw has come in and waits for its turn: a freeze that does not get on is called off for it.
    pub fn note_thaw_wish(&self) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Freezing) {
            state.thaw_wished_at.get_or_insert_with(Instant::now);
        }
    }

    /// Freezes all file systems, or those that the names lead to; tells how many.
    pub fn freeze(self: &Arc<Self>, root: &Root, names: Option<&[String]>) -> Result<i64, Error> {
        if !root.is_host() {
            return Err(Error::new("a recorded machine cannot be frozen"));
        }
        let generation = {
            let mut state = self.lock();
            match state.phase {
                Phase::Thawed => {}
                Phase::Freezing | Phase::Thawing => return Err(Error::new("a freeze or a thaw is still at work")),
                Phase::Frozen(_) => return Err(Error::new("the file systems are frozen already")),
            }
            state.phase = Phase::Freezing;
            state.thaw_wished_at = None;
            state.generation += 1;
            state.generation
        };
        // Whatever happens from here on, an error or a panic: dropping it undoes all.
        let mut attempt = Attempt { freezer: self, root, hold: Hold::default() };
        attempt.run(names)?;
        let count = attempt.hold.frozen.len();
        if count == 0 {
            return Ok(0);
        }
        let hold = std::mem::take(&mut attempt.hold);
        std::mem::forget(attempt);
        let mut state = self.lock();
        state.phase = Phase::Frozen(hold);
        state.ended_early = None;
        drop(state);
        self.changed.notify_all();
        self.watch_deadline(root, generation);
        Ok(count as i64)
    }

    /// Thaws on the host's word; tells how many file systems were frozen until now.
    pub fn thaw_for_host(&self, root: &Root) -> Result<i64, Error> {
        self.note_thaw_wish();
        let hold = self.begin_thaw(|_| true)?;
        let Some(hold) = hold else {
            // Nothing is frozen. What went wrong before is told once.
            let (leftovers, ended_early) = {
                let mut state = self.lock();
                (std::mem::take(&mut state.leftovers), state.ended_early.take())
            };
            let again = self.thaw_leftovers(leftovers)?;
            return ended_early.map_or(Ok(again), |text| Err(Error::new(text)));
        };
        self.undo(root, hold)
    }

    /// Ends everything before the agent ends.
    pub fn end(&self, root: &Root) {
        self.is_ending.store(true, Ordering::Relaxed);
        match self.begin_thaw(|_| true) {
            Ok(None) => {}
            Ok(Some(hold)) => {
                log::warn!("the agent ends: what is frozen is thawed before");
                if let Err(error) = self.undo(root, hold) {
                    log::warn!("thaw: {}", error.desc);
                }
            }
            Err(error) => log::warn!("thaw: {}", error.desc),
        }
    }

    /// Starts the thread that thaws at the deadline.
    fn watch_deadline(self: &Arc<Self>, root: &Root, generation: u64) {
        let deadline = match &self.lock().phase {
            Phase::Frozen(hold) => hold.deadline,
            _ => None,
        };
        let Some(deadline) = deadline else { return };
        let (freezer, root) = (Arc::clone(self), root.clone());
        let started = opening::start_thread(move || freezer.thaw_at(&root, deadline, generation));
        if let Err(error) = started {
            log::warn!("the guardian alone watches over the freeze: {}", error.desc);
        }
    }

    fn thaw_at(&self, root: &Root, deadline: Duration, generation: u64) {
        let mut state = self.lock();
        while state.generation == generation && matches!(state.phase, Phase::Frozen(_)) {
            let Some(left) = deadline.checked_sub(marker::now()).filter(|left| !left.is_zero()) else { break };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let Ok(Some(hold)) = self.begin_thaw(|state| state.generation == generation) else { return };
        let text = early_text(hold.frozen_at, "fsfreeze-timeout was over");
        log::warn!("{text}");
        self.lock().ended_early = Some(text);
        if let Err(error) = self.undo(root, hold) {
            log::warn!("thaw: {}", error.desc);
        }
    }

    /// Waits until no freeze or thaw is at work, then takes what is frozen, if anything is and it is still wanted.
    fn begin_thaw(&self, is_wanted: impl Fn(&State) -> bool) -> Result<Option<Hold>, Error> {
        let started = Instant::now();
        let mut state = self.lock();
        while matches!(state.phase, Phase::Freezing | Phase::Thawing) {
            let Some(left) = TURN_PATIENCE.checked_sub(started.elapsed()) else {
                return Err(Error::new(format!(
                    "guest-fsfreeze-thaw was not started: a freeze or a thaw has been at work for more than {} s",
                    TURN_PATIENCE.as_secs()
                )));
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if !is_wanted(&state) {
            return Ok(None);
        }
        match std::mem::replace(&mut state.phase, Phase::Thawing) {
            Phase::Frozen(hold) => Ok(Some(hold)),
            other => {
                state.phase = other;
                Ok(None)
            }
        }
    }

    /// Thaws and tells everybody. The phase is `Freezing` or `Thawing` before and `Thawed` afterwards.
    fn undo(&self, root: &Root, hold: Hold) -> Result<i64, Error> {
        let Hold { mut frozen, ran, guardian, is_unknown, .. } = hold;
        let mut problem = None;
        if is_unknown {
            match all_opened(root) {
                Ok(opened) => frozen = opened,
                Err(error) => problem = Some(error),
            }
        }
        let names_of = |opened: &[Opened]| {
            opened.iter().map(|opened| opened.name.display().to_string()).collect::<Vec<_>>().join(", ")
        };
        let thawed = holding::thaw(frozen, is_unknown);
        if let Some(guardian) = guardian {
            guardian.release();
        }
        let marker = &self.settings.marker;
        for leftover in [marker.clone(), meeting(marker), thawed_early(marker)] {
            if let Err(error) = std::fs::remove_file(&leftover)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("cannot remove '{}': {}", leftover.display(), cause_text(&error));
            }
        }
        self.open();
        audit(format_args!("thaw: {} file systems thawed", thawed.count));
        if !thawed.lost.is_empty() && !is_unknown {
            log::warn!(
                "thaw: {}: thawed before by somebody else, what the host has copied since then is not consistent",
                names_of(&thawed.lost)
            );
        }
        if let Some((opened, cause)) = thawed.failed.first() {
            let name = opened.name.display();
            problem = problem.or_else(|| {
                Some(Error::new(format!(
                    "failed to thaw {name}: {cause} ({} file systems were thawed, {} were not)",
                    thawed.count,
                    thawed.failed.len()
                )))
            });
        }
        let told = self.settings.hooks.thaw(root, ran);
        let mut state = self.lock();
        state.leftovers.extend(thawed.failed.into_iter().map(|(opened, _)| opened));
        state.phase = Phase::Thawed;
        state.thaw_wished_at = None;
        drop(state);
        self.changed.notify_all();
        match problem {
            Some(error) => Err(error),
            None => told.map(|()| thawed.count as i64),
        }
    }

    fn thaw_leftovers(&self, leftovers: Vec<Opened>) -> Result<i64, Error> {
        let thawed = holding::thaw(leftovers, false);
        let failed = thawed.failed.first().map(|(opened, cause)| {
            Error::new(format!("failed to thaw {}: {cause}, though it was tried again", opened.name.display()))
        });
        self.lock().leftovers.extend(thawed.failed.into_iter().map(|(opened, _)| opened));
        failed.map_or(Ok(thawed.count as i64), Err)
    }

    /// From here on nothing may write: something is about to be frozen.
    fn close(&self) {
        self.is_frozen.store(true, Ordering::Relaxed);
        crate::log::hold(true);
        // What is locked is not paged out, and need not be paged in while a disk does not answer.
        if let Err(error) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
            log::info!("memory cannot be locked: {error}");
        }
    }

    /// Everything is thawed: writing is allowed again.
    fn open(&self) {
        let _ = rustix::mm::munlockall();
        self.is_frozen.store(false, Ordering::Relaxed);
        crate::log::hold(false);
    }

    /// Why a freeze at work should stop.
    fn is_called_off(&self) -> Result<(), Error> {
        if self.is_ending.load(Ordering::Relaxed) {
            return Err(Error::new("the freeze was given up, because the agent ends; everything is thawed"));
        }
        match self.lock().thaw_wished_at {
            Some(since) if since.elapsed() > THAW_GRACE => {
                Err(Error::new("the freeze was given up for a guest-fsfreeze-thaw; everything is thawed"))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A freeze at work. Dropped, it undoes what it has done.
struct Attempt<'a> {
    freezer: &'a Arc<Freezer>,
    root: &'a Root,
    hold: Hold,
}

impl Attempt<'_> {
    fn run(&mut self, names: Option<&[String]>) -> Result<(), Error> {
        let (freezer, settings) = (self.freezer, &self.freezer.settings);
        let watch = || freezer.is_called_off();
        let Choice { steps, left_out } = choice::choose(self.root, &mounts::all(self.root)?, names);
        for (path, reason) in left_out {
            audit(format_args!("freeze: {}: left out: {reason}", path.display()));
        }
        // Nothing stands still during the longest part: writing out what is dirty.
        let (opened, hidden) = opening::open(steps, &watch)?;
        for path in hidden {
            log::warn!("freeze: {}: left out: something else is mounted over it", path.display());
        }
        opening::write_out(&opened, &watch)?;
        if opened.is_empty() {
            return Ok(());
        }
        let (ran, told) = settings.hooks.freeze(self.root, &|| watch().is_err());
        self.hold.ran = ran;
        told?;
        if !self.hold.ran.paths().is_empty() {
            // They have written out what they had in memory.
            opening::write_out(&opened, &watch)?;
        }
        self.hold.frozen_at = marker::now();
        self.hold.deadline = settings.timeout.map(|timeout| self.hold.frozen_at + timeout);
        let guardian = Guardian::start(&opened, self.hold.deadline, &settings.marker, Some(&meeting(&settings.marker)));
        let guardian = guardian.map_err(|error| Error::io("failed to start the guardian of the freeze", &error))?;
        self.hold.guardian = Some(guardian);
        let marker = Marker {
            boot_id: marker::boot_id(self.root),
            frozen_at: self.hold.frozen_at,
            deadline: self.hold.deadline,
            mounts: opened.iter().map(|opened| opened.name.clone()).collect(),
            hooks: self.hold.ran.paths().to_vec(),
        };
        if let Err(error) = marker.write(&settings.marker) {
            log::warn!("cannot write '{}': {}", settings.marker.display(), cause_text(&error));
        }
        freezer.close();
        let Freeze { frozen, late, outcome } = holding::freeze(&opened, &watch);
        self.hold.frozen = frozen;
        if let Some((late, has_ended)) = late {
            self.guard_late(late, has_ended);
        }
        outcome
    }

    /// A file system whose freeze was given up may become frozen much later. The thread that waits for that thaws it; a
    /// guardian of its own does if this process is killed before.
    fn guard_late(&self, late: Opened, has_ended: Receiver<()>) {
        let name = late.name.display().to_string();
        let guarded = Guardian::start(&[late], None, &self.freezer.settings.marker, None)
            .map_err(|error| Error::io("no guardian", &error))
            .and_then(|guardian| {
                opening::start_thread(move || {
                    let _ = has_ended.recv();
                    guardian.release();
                })
            });
        if let Err(error) = guarded {
            log::warn!("nobody but this process guards {name}, which may become frozen later: {}", error.desc);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.freezer.undo(self.root, std::mem::take(&mut self.hold)) {
            log::warn!("thaw after a freeze that was given up: {}", error.desc);
        }
    }
}

impl Hold {
    /// What an earlier agent has frozen: from its guardian, or opened anew.
    fn resumed(settings: &Settings, marker: Marker) -> Self {
        let meeting = meeting(&settings.marker);
        let taken_over = Guardian::take_over(&meeting).map(|(guardian, frozen)| (Some(guardian), frozen));
        let (guardian, frozen) = taken_over.unwrap_or_else(|_| {
            let open = |name: PathBuf| {
                let file = std::fs::File::open(&name).ok()?;
                Some(Opened { name, file: Arc::new(file) })
            };
            let frozen: Vec<Opened> = marker.mounts.into_iter().filter_map(open).collect();
            (Guardian::start(&frozen, marker.deadline, &settings.marker, Some(&meeting)).ok(), frozen)
        });
        Self {
            frozen,
            ran: Ran::of(marker.hooks),
            guardian,
            frozen_at: marker.frozen_at,
            deadline: marker.deadline,
            is_unknown: false,
        }
    }
}

/// Every file system that could be frozen, opened.
fn all_opened(root: &Root) -> Result<Vec<Opened>, Error> {
    if !root.is_host() {
        return Ok(Vec::new());
    }
    let mut steps = choice::choose(root, &mounts::all(root)?, None).steps;
    let mut opened = Vec::new();
    for step in steps.drain(..) {
        // One that cannot be opened must not keep the others frozen.
        if let Ok((found, _)) = opening::open(vec![step], &|| Ok(())) {
            opened.extend(found);
        }
    }
    Ok(opened)
}

/// What the host is told of a freeze that it has not ended itself.
fn early_text(frozen_at: Duration, why: &str) -> String {
    format!(
        "the file systems were thawed before guest-fsfreeze-thaw was called, {} s after the freeze began, because {why}: \
         what was copied after that is not consistent",
        marker::now().saturating_sub(frozen_at).as_secs()
    )
}
