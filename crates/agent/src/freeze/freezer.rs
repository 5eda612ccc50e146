//! What is frozen, shared by all clients, and everything that ends it: a thaw from the host, an error, the deadline, the
//! agent's own end. Only one freeze or thaw is at work at a time; a thaw that comes while a freeze is at work and does
//! not get on calls it off.
//!
//! From the first file system on that is frozen the agent writes to no disk: the log is held, memory is locked, and
//! all commands are refused but those that need no disk. A guardian, started before, thaws if this process cannot.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::mm::MlockAllFlags;

use super::attempt::{Attempt, still_wanted};
use super::hooks::{Hooks, Ran};
use super::journal::{Journal, mark_ended};
use super::linux::apply::Thawed;
use super::linux::guardian::Guardian;
use super::linux::prepare::{self, Opened};
use super::linux::state_file::{self, Found};
use super::linux::{self, apply, meeting, thawed_early};
use super::machine::{self, THAW, ThawStep, Why};
use super::ownership::{self, Ownership};
use super::recovery::{Inherited, all_opened, early_text, finish_hooks, inherit};
use crate::system::error::{Error, cause_text};
use crate::system::log::audit;
use crate::system::root::Root;

/// A freeze that gets on may go on this long after a thaw has come in: then the thaw follows, as both were wanted.
const THAW_GRACE: Duration = Duration::from_secs(2);
/// How long a thaw waits for a freeze to be called off, or for another thaw.
const TURN_PATIENCE: Duration = Duration::from_secs(300);
/// Why no other freeze begins: of what could not be thawed, and of what the kernel has not done with.
const STILL_FROZEN: &str = "is still frozen from before: the kernel does not thaw it, and is asked again every 5 s";
const NOT_FROZEN_YET: &str =
    "is still held by a freeze that was given up: its disk does not answer, and it is thawed as soon as it does";

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
    pub(super) settings: Settings,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether a file system may be frozen: commands that need a disk are refused.
    is_frozen: AtomicBool,
    /// The agent is about to end.
    is_ending: AtomicBool,
    /// What could not be thawed and is tried again, or may become frozen yet; and which of both.
    stubborn: Arc<Mutex<Vec<(PathBuf, &'static str)>>>,
    /// None while the state directory is another agent's.
    ownership: Mutex<Option<Ownership>>,
}

struct State {
    phase: Phase,
    /// A thaw waits for the freeze at work, since then.
    thaw_wished_at: Option<Instant>,
    /// The last freeze ended without a thaw from the host; told once.
    ended_early: Option<String>,
    /// Freezes so far, so that a deadline knows its own.
    generation: u64,
}

enum Phase {
    Thawed,
    Freezing,
    Frozen(Box<Hold>),
    Thawing,
}

/// All that a thaw has to undo.
#[derive(Default)]
pub(super) struct Hold {
    pub frozen: Vec<Opened>,
    /// What may become frozen yet, and when its thread is done with it.
    pub late: Option<(Opened, Receiver<()>)>,
    /// All that the guardian was given.
    pub opened: Vec<Opened>,
    pub guardian: Option<Guardian>,
    pub ran: Ran,
    /// The freeze's identity.
    pub id: String,
    /// The state file.
    pub journal: Arc<Journal>,
    pub frozen_at: Duration,
    pub deadline: Option<Duration>,
    /// Frozen by an agent that has not told what: all file systems are to be thawed, as often as it takes.
    pub is_unknown: bool,
}

impl Freezer {
    /// With what an earlier agent of this boot has left, if the state directory is this agent's. If it is another one's,
    /// this agent serves all the same, and freezes nothing.
    pub fn new(settings: Settings, root: &Root) -> Arc<Self> {
        let state = State { phase: Phase::Thawed, thaw_wished_at: None, ended_early: None, generation: 1 };
        let freezer = Arc::new(Self {
            settings,
            state: Mutex::new(state),
            changed: Condvar::new(),
            is_frozen: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
            stubborn: Arc::default(),
            ownership: Mutex::new(None),
        });
        if let Err(error) = freezer.own(root) {
            log::warn!("guest-fsfreeze-freeze will be refused: {}", error.desc);
            let (later, root) = (Arc::clone(&freezer), root.clone());
            let _ =
                prepare::start_thread(move || ownership::retry(|| later.own(&root).map(|()| later.settle()).is_ok()));
        }
        freezer
    }

    /// Makes sure that the state directory is this agent's; takes over what is left there when it becomes so.
    fn own(self: &Arc<Self>, root: &Root) -> Result<(), Error> {
        let lock_file = linux::ownership(&self.settings.marker);
        let mut ownership = lock(&self.ownership);
        if ownership.is_some() {
            return Ok(());
        }
        *ownership =
            Some(Ownership::take(&lock_file, &self.settings.marker).map_err(|refused| refused.error(&lock_file))?);
        let Inherited { hold, ends_now, told, left } = inherit(root, &self.settings);
        let mut state = self.lock();
        state.ended_early = told;
        let generation = state.generation;
        match (hold, ends_now) {
            (Some(hold), None) => {
                state.phase = Phase::Frozen(Box::new(hold));
                drop(state);
                self.close();
                self.watch_deadline(root, generation);
                return Ok(());
            }
            (hold, _) if hold.is_some() || !left.is_empty() => {
                // Nothing is frozen, and no freeze begins before the hooks have had their `thaw`. They take their time:
                // the agent answers meanwhile.
                state.phase = Phase::Thawing;
                drop(state);
                let (freezer, root) = (Arc::clone(self), root.clone());
                let ending = hold.zip(ends_now);
                let started = prepare::start_thread(move || freezer.finish(&root, ending, &left));
                if let Err(error) = started {
                    log::warn!("hooks wait for their thaw: {}", error.desc);
                    self.lock().phase = Phase::Thawed;
                }
            }
            (_, _) => {}
        }
        Ok(())
    }

    /// Ends what nobody relies on, and calls the hooks that were left by agents before this one.
    fn finish(&self, root: &Root, ending: Option<(Hold, machine::Phase)>, left: &[(PathBuf, bool)]) {
        /// Whatever happens, freezes go on afterwards.
        struct Thawed<'a>(&'a Freezer);
        impl Drop for Thawed<'_> {
            fn drop(&mut self) {
                self.0.lock().phase = Phase::Thawed;
                self.0.changed.notify_all();
            }
        }
        let _thawed = Thawed(self);
        if let Some((hold, how)) = ending
            && let Err(error) = self.undo_steps(root, hold, how)
        {
            log::warn!("thaw: {}", error.desc);
        }
        for (state_file, is_removed) in left {
            finish_hooks(&self.settings.marker, state_file, *is_removed);
        }
    }

    /// Whether another agent holds file systems frozen by the state directory: looked up, as it says nothing to this one.
    pub fn is_frozen_by_other(&self, root: &Root) -> bool {
        // Never waited for: who has it may be running hooks, and the status is answered at any time. What that one finds is
        // in the state file until it is thawed.
        if self.ownership.try_lock().is_ok_and(|ownership| ownership.is_some()) {
            return false;
        }
        match state_file::look(root, &self.settings.marker) {
            Found::Ours(marker) => marker.phase == machine::Phase::Frozen,
            Found::Unknown => true,
            Found::Nothing | Found::Stale => false,
        }
    }

    /// Whether the agent holds file systems frozen.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Relaxed)
    }

    /// The agent serves its host: one that has taken over a freeze is there to stay.
    pub fn settle(&self) {
        if let Phase::Frozen(hold) = &self.lock().phase
            && let Some(guardian) = &hold.guardian
        {
            guardian.settle();
        }
    }

    /// A thaw has come in and waits for its turn: a freeze that does not get on is called off for it.
    /// Tells whether there is one.
    pub fn note_thaw_wish(&self) -> bool {
        let mut state = self.lock();
        let is_freezing = matches!(state.phase, Phase::Freezing);
        if is_freezing {
            state.thaw_wished_at.get_or_insert_with(Instant::now);
        }
        is_freezing
    }

    /// Freezes all file systems, or those that the names lead to, as long as somebody waits for it; tells how many.
    pub fn freeze(
        self: &Arc<Self>,
        root: &Root,
        names: Option<&[String]>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<i64, Error> {
        if !root.is_host() {
            return Err(Error::new("a recorded machine cannot be frozen"));
        }
        self.own(root)?;
        let generation = self.begin_freeze()?;
        // Whatever happens from here on, an error or a panic: dropping it undoes all.
        let mut attempt = Attempt::new(self, root, is_wanted);
        attempt.run(names)?;
        if attempt.hold.frozen.is_empty() {
            return Ok(0);
        }
        let mut state = self.lock();
        if let Err(error) = still_wanted(is_wanted) {
            drop(state);
            return Err(error);
        }
        let hold = attempt.finish();
        let count = hold.frozen.len();
        for opened in &hold.opened {
            if let Err(error) = opened.held.put_away() {
                log::warn!("whoever ends all that use {} ends this process: {error}", opened.name.display());
            }
        }
        if let Some(guardian) = &hold.guardian {
            guardian.confirm(&hold.opened, &hold.frozen, hold.deadline);
        }
        state.phase = Phase::Frozen(Box::new(hold));
        state.ended_early = None;
        drop(state);
        self.changed.notify_all();
        self.watch_deadline(root, generation);
        Ok(count as i64)
    }

    fn begin_freeze(&self) -> Result<u64, Error> {
        self.refuse_stubborn()?;
        let mut state = self.lock();
        match state.phase {
            Phase::Thawed => {}
            Phase::Freezing | Phase::Thawing => return Err(Error::new("a freeze or a thaw is still at work")),
            Phase::Frozen(_) => return Err(Error::new("the file systems are frozen already")),
        }
        state.phase = Phase::Freezing;
        state.thaw_wished_at = None;
        state.generation += 1;
        Ok(state.generation)
    }

    /// Thaws on the host's word; tells how many file systems were frozen until now.
    pub fn thaw_for_host(self: &Arc<Self>, root: &Root) -> Result<i64, Error> {
        if let Err(error) = self.own(root) {
            // What nobody has frozen needs no thaw, and the hooks are the other agent's.
            return if self.is_frozen_by_other(root) { Err(error) } else { Ok(0) };
        }
        let was_freezing = self.note_thaw_wish();
        if let Some(hold) = self.begin_thaw(|_| true)? {
            return self.undo(root, hold, machine::Phase::Thawed);
        }
        // Nothing is frozen. What went wrong before is told.
        self.refuse_stubborn()?;
        let mut state = self.lock();
        let Some(text) = state.ended_early.take() else {
            let is_idle = matches!(state.phase, Phase::Thawed);
            if was_freezing || !is_idle {
                return Ok(0);
            }
            // As the original does: whatever holds a lock from an earlier time lets it go. No freeze begins meanwhile.
            state.phase = Phase::Thawing;
            drop(state);
            let planned = Ran::of(self.settings.hooks.planned(root));
            let told = self.settings.hooks.thaw(root, &Journal::default(), planned);
            self.lock().phase = Phase::Thawed;
            self.changed.notify_all();
            return told.map(|()| 0);
        };
        drop(state);
        let _ = std::fs::remove_file(thawed_early(&self.settings.marker));
        Err(Error::new(text))
    }

    /// Ends everything before the agent ends.
    pub fn end(&self, root: &Root) {
        self.is_ending.store(true, Ordering::Relaxed);
        match self.begin_thaw(|_| true) {
            Ok(None) => {}
            Ok(Some(hold)) => {
                if let Err(error) = self.undo(root, hold, machine::Phase::Early(Why::AgentEnds)) {
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
        let started = prepare::start_thread(move || freezer.thaw_at(&root, deadline, generation));
        if let Err(error) = started {
            log::warn!("the guardian alone watches over the freeze: {}", error.desc);
        }
    }

    fn thaw_at(&self, root: &Root, deadline: Duration, generation: u64) {
        let mut state = self.lock();
        while state.generation == generation && matches!(state.phase, Phase::Frozen(_)) {
            let Some(left) = deadline.checked_sub(state_file::now()).filter(|left| !left.is_zero()) else { break };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        let Ok(Some(hold)) = self.begin_thaw(|state| state.generation == generation) else { return };
        if let Err(error) = self.undo(root, hold, machine::Phase::Early(Why::Deadline)) {
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
            Phase::Frozen(hold) => Ok(Some(*hold)),
            other => {
                state.phase = other;
                Ok(None)
            }
        }
    }

    /// Thaws and tells everybody, step by step. The phase is `Freezing` or `Thawing` before and `Thawed` afterwards. `how`
    /// it ends is early if the host does not know that it does.
    pub(super) fn undo(&self, root: &Root, hold: Hold, how: machine::Phase) -> Result<i64, Error> {
        let undone = self.undo_steps(root, hold, how);
        self.lock().phase = Phase::Thawed;
        self.changed.notify_all();
        undone
    }

    /// As [`undo`](Self::undo); the phase stays what it is.
    fn undo_steps(&self, root: &Root, mut hold: Hold, how: machine::Phase) -> Result<i64, Error> {
        let mut problem = None;
        let (mut thawed, mut early, mut told, mut is_clean) = (Thawed::default(), None, Ok(()), true);
        for step in THAW {
            match step {
                ThawStep::Announce => {
                    if let Some(guardian) = &hold.guardian {
                        guardian.announce(how);
                    }
                    if hold.is_unknown {
                        match all_opened(root) {
                            Ok(opened) => hold.frozen = opened,
                            Err(error) => problem = Some(error),
                        }
                        // Which hooks it has called is not told either.
                        hold.ran = Ran::of(self.settings.hooks.planned(root));
                    }
                }
                ThawStep::Thaw => {
                    thawed = apply::thaw(std::mem::take(&mut hold.frozen), hold.is_unknown);
                    is_clean = thawed.failed.is_empty();
                    if let Some(found) = thawed.problem(hold.is_unknown) {
                        problem.get_or_insert(found);
                    }
                    early = match how {
                        // What an agent that was killed had frozen, and is not to be found any more, is told all the same.
                        machine::Phase::Early(why)
                            if thawed.count > 0 || !thawed.lost.is_empty() || why == Why::Killed =>
                        {
                            Some(early_text(hold.frozen_at, why))
                        }
                        _ => None,
                    };
                    self.open();
                }
                ThawStep::MarkEnded => {
                    // From here on files are written, which may lie on what did not thaw: then a thread waits for them.
                    let how = if early.is_some() { how } else { machine::Phase::Thawed };
                    let note = self.note_of(&hold, how, is_clean);
                    if is_clean {
                        note();
                    } else if let Err(error) = prepare::start_thread(note) {
                        problem.get_or_insert(error);
                    }
                    audit(format_args!("thaw: {} file systems thawed", thawed.count));
                    if let Some(text) = &early {
                        log::warn!("{text}");
                    }
                }
                ThawStep::Release => {
                    let failed = std::mem::take(&mut thawed.failed).into_iter().map(|(opened, _)| opened).collect();
                    self.watch_rest(&mut hold, failed);
                }
                ThawStep::CallHooks => {
                    told = self.settings.hooks.thaw(root, &hold.journal, std::mem::take(&mut hold.ran));
                }
                ThawStep::RemoveMarker => {
                    if is_clean && (hold.journal.has_marker() || hold.is_unknown) {
                        self.remove_marker(early.is_none());
                    }
                }
            }
        }
        let mut state = self.lock();
        state.ended_early = early.or(state.ended_early.take());
        state.thaw_wished_at = None;
        drop(state);
        match problem {
            Some(error) => Err(error),
            None => told.map(|()| thawed.count as i64),
        }
    }

    /// What is written once everything is thawed: the log, and how the freeze has ended, for the agent after this one.
    fn note_of(&self, hold: &Hold, how: machine::Phase, is_clean: bool) -> impl FnOnce() + Send + 'static + use<> {
        let path = self.settings.marker.clone();
        // A guardian that took the agent for dead may have left what would be told of this freeze.
        let is_outdated = hold.guardian.is_some();
        let journal = Arc::clone(&hold.journal);
        move || {
            crate::system::log::hold(false);
            // As long as something is frozen the state file says so.
            if is_clean {
                mark_ended(&path, &journal, how);
            }
            if is_outdated && !matches!(how, machine::Phase::Early(_)) {
                let _ = std::fs::remove_file(thawed_early(&path));
            }
        }
    }

    fn remove_marker(&self, with_state_file: bool) {
        let state_file = with_state_file.then(|| self.settings.marker.clone());
        for path in state_file.into_iter().chain([meeting(&self.settings.marker)]) {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("cannot remove '{}': {}", path.display(), cause_text(&error));
            }
        }
    }

    /// Lets the guardian go, or leaves it with what is not thawed yet until that is.
    fn watch_rest(&self, hold: &mut Hold, failed: Vec<Opened>) {
        let (guardian, late) = (hold.guardian.take(), hold.late.take());
        let opened = std::mem::take(&mut hold.opened);
        let left: Vec<Opened> = failed.iter().cloned().chain(late.iter().map(|(late, _)| late.clone())).collect();
        if left.is_empty() {
            if let Some(guardian) = guardian {
                guardian.release();
            }
            // What is mounted nowhere any more ends with its last descriptor, and that waits for its disk.
            let _ = prepare::start_thread(move || drop(opened));
            return;
        }
        if let Some(guardian) = &guardian {
            guardian.keep_only(&opened, &left);
        }
        let stubborn = Arc::clone(&self.stubborn);
        let name = |opened: &Opened| opened.name.clone();
        let not_frozen_yet = late.iter().map(|(late, _)| (name(late), NOT_FROZEN_YET));
        *lock(&stubborn) = failed.iter().map(|opened| (name(opened), STILL_FROZEN)).chain(not_frozen_yet).collect();
        // The state file stays as long as something of it is frozen.
        let marker = (hold.journal.has_marker() && !failed.is_empty()).then(|| self.settings.marker.clone());
        let (is_at_work, has_ended) = mpsc::channel::<()>();
        for opened in failed {
            // One that hangs keeps no other one waiting, and one thread waits for it, not one for each try.
            let (is_at_work, stubborn) = (is_at_work.clone(), Arc::clone(&stubborn));
            let started = prepare::start_thread(move || {
                apply::thaw_at_last(&opened);
                lock(&stubborn).retain(|(name, _)| *name != opened.name);
                drop(is_at_work);
            });
            if let Err(error) = started {
                log::warn!("the guardian alone thaws what is left: {}", error.desc);
            }
        }
        drop(is_at_work);
        // The thread that froze it too late thaws it; if this process is killed before, the guardian does.
        let started = prepare::start_thread(move || {
            let _ = has_ended.recv();
            if let Some(marker) = marker {
                let _ = std::fs::remove_file(meeting(&marker));
                let _ = std::fs::remove_file(marker);
            }
            if let Some((opened, has_ended)) = late {
                let _ = has_ended.recv();
                lock(&stubborn).retain(|(name, _)| *name != opened.name);
            }
            if let Some(guardian) = guardian {
                guardian.release();
            }
        });
        if let Err(error) = started {
            log::warn!("the guardian alone thaws what is left: {}", error.desc);
        }
    }

    /// From here on nothing may write: something is about to be frozen.
    pub(super) fn close(&self) {
        self.is_frozen.store(true, Ordering::Relaxed);
        crate::system::log::hold(true);
        // What is locked is not paged out, and need not be paged in while a disk does not answer.
        if let Err(error) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
            log::info!("memory cannot be locked: {error}");
        }
    }

    /// Everything is thawed. The log goes on later: its file may lie on what is not.
    fn open(&self) {
        let _ = rustix::mm::munlockall();
        self.is_frozen.store(false, Ordering::Relaxed);
    }

    /// Why a freeze at work should stop.
    pub(super) fn is_called_off(&self) -> Result<(), Error> {
        if self.is_ending.load(Ordering::Relaxed) {
            return Err(Error::new("the freeze was given up, because the agent ends"));
        }
        match self.lock().thaw_wished_at {
            Some(since) if since.elapsed() > THAW_GRACE => {
                Err(Error::new("the freeze was given up for a guest-fsfreeze-thaw"))
            }
            _ => Ok(()),
        }
    }

    /// An error as long as something is frozen that should not be, or may become so.
    fn refuse_stubborn(&self) -> Result<(), Error> {
        let stubborn = lock(&self.stubborn);
        let Some((name, why)) = stubborn.first() else { return Ok(()) };
        Err(Error::new(format!("{} {why}", name.display())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
