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
use super::inheritance::{all_opened, run_left_hooks};
use super::linux::guardian::Guardian;
use super::linux::marker::{self, Found, Marker};
use super::linux::opening::{self, Opened};
use super::linux::{holding, meeting, thawed_early};
use crate::config::Failure;
use crate::error::{Error, cause_text};
use crate::linux::mounts;
use crate::log::audit;
use crate::root::Root;

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
    Frozen(Hold),
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
    /// Whether the state file is ours.
    pub has_marker: bool,
    pub frozen_at: Duration,
    pub deadline: Option<Duration>,
    /// Frozen by an agent that has not told what: all file systems are to be thawed, as often as it takes.
    pub is_unknown: bool,
}

impl Freezer {
    /// With what an earlier agent of this boot has left frozen. An error if that agent is still there.
    pub fn new(settings: Settings, root: &Root) -> Result<Arc<Self>, Failure> {
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
                has_marker: true,
                is_unknown: true,
                ..Hold::default()
            }),
            Found::Ours(marker) if marker.mounts.is_empty() => {
                // Killed while hooks were at work: nothing is frozen, but they wait.
                run_left_hooks(&settings.marker, marker, None);
                Phase::Thawed
            }
            Found::Ours(marker) => Phase::Frozen(Hold::resumed(root, &settings, &marker)?),
        };
        let early = thawed_early(&settings.marker);
        let ended_early = match marker::look(root, &early) {
            Found::Ours(marker) => {
                let text = early_text(marker.frozen_at, marker.reason.as_deref().unwrap_or("the agent was killed"));
                if !marker.hooks.is_empty() {
                    let told = Marker { hooks: Vec::new(), ..marker.clone() };
                    run_left_hooks(&early, marker, Some(told));
                }
                Some(text)
            }
            Found::Stale => {
                let _ = std::fs::remove_file(&early);
                None
            }
            Found::Nothing | Found::Unknown => None,
        };
        let is_frozen = matches!(phase, Phase::Frozen(_));
        let state = State { phase, thaw_wished_at: None, ended_early, generation: 1 };
        let freezer = Arc::new(Self {
            settings,
            state: Mutex::new(state),
            changed: Condvar::new(),
            is_frozen: AtomicBool::new(is_frozen),
            is_ending: AtomicBool::new(false),
            stubborn: Arc::default(),
        });
        if is_frozen {
            freezer.close();
            freezer.watch_deadline(root, 1);
        }
        Ok(freezer)
    }

    /// Whether the agent holds file systems frozen.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Relaxed)
    }

    /// The agent serves its host: one that has taken over a freeze is there to stay.
    pub fn settle(&self) {
        if let Phase::Frozen(Hold { guardian: Some(guardian), .. }) = &self.lock().phase {
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
        let generation = self.begin_freeze(root)?;
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
        state.phase = Phase::Frozen(hold);
        state.ended_early = None;
        drop(state);
        self.changed.notify_all();
        self.watch_deadline(root, generation);
        Ok(count as i64)
    }

    fn begin_freeze(&self, root: &Root) -> Result<u64, Error> {
        self.refuse_stubborn()?;
        let mut state = self.lock();
        match state.phase {
            Phase::Thawed => {}
            Phase::Freezing | Phase::Thawing => return Err(Error::new("a freeze or a thaw is still at work")),
            Phase::Frozen(_) => return Err(Error::new("the file systems are frozen already")),
        }
        if !matches!(marker::look(root, &self.settings.marker), Found::Nothing | Found::Stale) {
            return Err(Error::new(format!(
                "another agent holds file systems frozen, or is about to: '{}' says so",
                self.settings.marker.display()
            )));
        }
        state.phase = Phase::Freezing;
        state.thaw_wished_at = None;
        state.generation += 1;
        Ok(state.generation)
    }

    /// Thaws on the host's word; tells how many file systems were frozen until now.
    pub fn thaw_for_host(&self, root: &Root) -> Result<i64, Error> {
        let was_freezing = self.note_thaw_wish();
        if let Some(hold) = self.begin_thaw(|_| true)? {
            return self.undo(root, hold, None);
        }
        // Nothing is frozen. What went wrong before is told.
        self.refuse_stubborn()?;
        let mut state = self.lock();
        let Some(text) = state.ended_early.take() else {
            drop(state);
            if !was_freezing {
                // As the original does: whatever holds a lock from an earlier time lets it go.
                self.settings.hooks.thaw(root, Ran::of(self.settings.hooks.planned(root)))?;
            }
            return Ok(0);
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
                if let Err(error) = self.undo(root, hold, Some("the agent was told to end")) {
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
        if let Err(error) = self.undo(root, hold, Some("fsfreeze-timeout was over")) {
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

    /// Thaws and tells everybody. The phase is `Freezing` or `Thawing` before and `Thawed` afterwards. `why_early` is given
    /// if the host does not know that it ends.
    pub(super) fn undo(&self, root: &Root, mut hold: Hold, why_early: Option<&str>) -> Result<i64, Error> {
        let mut problem = None;
        if hold.is_unknown {
            match all_opened(root) {
                Ok(opened) => hold.frozen = opened,
                Err(error) => problem = Some(error),
            }
            // Which hooks it has called is not told either.
            hold.ran = Ran::of(self.settings.hooks.planned(root));
        }
        let thawed = holding::thaw(std::mem::take(&mut hold.frozen), hold.is_unknown);
        let early = why_early.filter(|_| thawed.count > 0).map(|why| early_text(hold.frozen_at, why));
        if let Some((opened, cause)) = thawed.failed.first() {
            let text = format!(
                "failed to thaw {}: {cause} ({} file systems were thawed, {} were not and are tried again)",
                opened.name.display(),
                thawed.count,
                thawed.failed.len()
            );
            problem.get_or_insert(Error::new(text));
        } else if !thawed.lost.is_empty() && !hold.is_unknown {
            let names: Vec<_> = thawed.lost.iter().map(|opened| opened.name.display().to_string()).collect();
            let text = format!(
                "{}: thawed before by somebody else, so what was copied after that is not consistent",
                names.join(", ")
            );
            problem.get_or_insert(Error::new(text));
        }
        let is_clean = thawed.failed.is_empty();
        self.open();
        // From here on files are written, which may lie on what did not thaw: then a thread of their own waits for them.
        let note = self.note_of(&hold, why_early.filter(|_| early.is_some()));
        if is_clean {
            note();
        } else if let Err(error) = opening::start_thread(note) {
            problem.get_or_insert(error);
        }
        audit(format_args!("thaw: {} file systems thawed", thawed.count));
        if let Some(text) = &early {
            log::warn!("{text}");
        }
        let told = self.settings.hooks.thaw(root, std::mem::take(&mut hold.ran));
        if is_clean && hold.has_marker {
            self.remove_marker();
        }
        self.watch_rest(hold, thawed.failed.into_iter().map(|(opened, _)| opened).collect());
        let mut state = self.lock();
        state.ended_early = early.or(state.ended_early.take());
        state.phase = Phase::Thawed;
        state.thaw_wished_at = None;
        drop(state);
        self.changed.notify_all();
        match problem {
            Some(error) => Err(error),
            None => told.map(|()| thawed.count as i64),
        }
    }

    /// What is written once everything is thawed: the log, and files for the agent after this one.
    fn note_of(&self, hold: &Hold, why_early: Option<&str>) -> impl FnOnce() + Send + 'static {
        let path = self.settings.marker.clone();
        let hooks = hold.ran.paths().to_vec();
        let waits = self.marker_of(hold.frozen_at, None, Vec::new(), hooks);
        let early = why_early.map(|why| Marker { reason: Some(why.to_owned()), hooks: Vec::new(), ..waits.clone() });
        let has_hooks = hold.has_marker && !waits.hooks.is_empty();
        // A guardian that took the agent for dead may have left one. Without a freeze, what was told before still holds.
        let is_outdated = hold.guardian.is_some();
        move || {
            crate::log::hold(false);
            if has_hooks {
                // Nothing is frozen any more, but hooks wait for their thaw.
                let _ = waits.write(&path);
            }
            match early {
                Some(early) => drop(early.write(&thawed_early(&path))),
                None if is_outdated => drop(std::fs::remove_file(thawed_early(&path))),
                None => {}
            }
        }
    }

    /// A state file of this agent.
    pub(super) fn marker_of(
        &self,
        frozen_at: Duration,
        deadline: Option<Duration>,
        mounts: Vec<(mounts::DeviceNumber, PathBuf)>,
        hooks: Vec<PathBuf>,
    ) -> Marker {
        Marker {
            boot_id: marker::boot_id(&Root::host()),
            frozen_at,
            deadline,
            mounts,
            hooks,
            script: self.settings.hooks.script().map(PathBuf::from),
            hook_patience: self.settings.hooks.patience_each(),
            reason: None,
        }
    }

    fn remove_marker(&self) {
        for path in [self.settings.marker.clone(), meeting(&self.settings.marker)] {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("cannot remove '{}': {}", path.display(), cause_text(&error));
            }
        }
    }

    /// Lets the guardian go, or leaves it with what is not thawed yet until that is.
    fn watch_rest(&self, hold: Hold, failed: Vec<Opened>) {
        let Hold { guardian, late, opened, has_marker, .. } = hold;
        let left: Vec<Opened> = failed.iter().cloned().chain(late.iter().map(|(late, _)| late.clone())).collect();
        if left.is_empty() {
            if let Some(guardian) = guardian {
                guardian.release();
            }
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
        let marker = (has_marker && !failed.is_empty()).then(|| self.settings.marker.clone());
        let (is_at_work, has_ended) = mpsc::channel::<()>();
        for opened in failed {
            // One that hangs keeps no other one waiting, and one thread waits for it, not one for each try.
            let (is_at_work, stubborn) = (is_at_work.clone(), Arc::clone(&stubborn));
            let started = opening::start_thread(move || {
                holding::thaw_at_last(&opened);
                lock(&stubborn).retain(|(name, _)| *name != opened.name);
                drop(is_at_work);
            });
            if let Err(error) = started {
                log::warn!("the guardian alone thaws what is left: {}", error.desc);
            }
        }
        drop(is_at_work);
        // The thread that froze it too late thaws it; if this process is killed before, the guardian does.
        let started = opening::start_thread(move || {
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
        crate::log::hold(true);
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

/// What the host is told of a freeze that it has not ended itself.
fn early_text(frozen_at: Duration, why: &str) -> String {
    format!(
        "the file systems were thawed before guest-fsfreeze-thaw was called, because {why}, in a freeze that began {} s \
         ago: what was copied after that is not consistent",
        marker::now().saturating_sub(frozen_at).as_secs()
    )
}
