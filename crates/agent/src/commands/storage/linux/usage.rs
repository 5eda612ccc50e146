//! How full file systems are. Asking one whose server or disk is gone can block for ever, so threads of their own ask.
//!
//! A file system that does not answer in time is left out, and as long as its thread hangs nobody asks it again. So
//! the threads that hang are never more than [`HANGING_MAX`], however often clients ask.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::statvfs;

use crate::lane::STACK_BYTES;

/// How long all file systems together may take. Hosts wait five seconds for the reply.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the threads at work may get nowhere before another one helps.
const GRACE: Duration = Duration::from_millis(50);
/// A thread with nothing to do ends after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Threads at work for one request.
const WORKERS_MAX: usize = 8;
/// Threads that may hang, all requests together.
const HANGING_MAX: usize = 16;

/// The mount points at which threads hang, one for each thread.
static HANGING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// The threads that wait for work.
static CREW: Mutex<Crew> = Mutex::new(Crew { idle: 0, work: VecDeque::new() });
/// There is work.
static CALLED: Condvar = Condvar::new();

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used_bytes: u64,
    /// In all, without what is kept for root.
    pub total_bytes: u64,
    /// In all.
    pub total_bytes_privileged: u64,
}

/// Begins to ask for the usage of what is mounted at each of the points.
pub fn ask(points: Vec<PathBuf>) -> Round {
    Round::begin(points, of_one)
}

fn of_one(point: &Path) -> Option<Usage> {
    let found = statvfs(point).ok()?;
    let used_blocks = found.f_blocks.saturating_sub(found.f_bfree);
    Some(Usage {
        used_bytes: used_blocks.saturating_mul(found.f_frsize),
        total_bytes: used_blocks.saturating_add(found.f_bavail).saturating_mul(found.f_frsize),
        total_bytes_privileged: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

fn hanging() -> MutexGuard<'static, Vec<PathBuf>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads without work, and work for them.
struct Crew {
    idle: usize,
    work: VecDeque<Arc<Questions>>,
}

fn crew() -> MutexGuard<'static, Crew> {
    CREW.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives questions to a thread: one that waits for work, as making one takes longer than asking ten file systems.
fn hire(questions: Arc<Questions>) -> bool {
    let mut crew = crew();
    if crew.idle > crew.work.len() {
        crew.work.push_back(questions);
        CALLED.notify_one();
        return true;
    }
    let worker = thread::Builder::new().name("usage".to_owned()).stack_size(STACK_BYTES);
    worker.spawn(move || serve(questions)).is_ok()
}

/// A thread's life.
fn serve(first: Arc<Questions>) {
    let mut work = Some(first);
    while let Some(questions) = work {
        questions.answer();
        drop(questions);
        let mut crew = crew();
        crew.idle += 1;
        let waited = CALLED.wait_timeout_while(crew, IDLE, |crew| crew.work.is_empty());
        crew = waited.unwrap_or_else(PoisonError::into_inner).0;
        crew.idle -= 1;
        work = crew.work.pop_front();
    }
}

/// One request's questions, under way.
pub struct Round(Arc<Questions>);

/// What the threads of a round share.
struct Questions {
    points: Vec<PathBuf>,
    ask: fn(&Path) -> Option<Usage>,
    state: Mutex<State>,
    done: Condvar,
}

/// How far a round is.
#[derive(Default)]
struct State {
    /// Threads that have been started.
    workers: usize,
    /// The first point that no thread has taken.
    next: usize,
    /// Points that threads have taken and not answered.
    asked: HashSet<usize>,
    /// How many are answered, or never will be.
    answered: usize,
    /// Answers.
    usages: Vec<Option<Usage>>,
    /// Nobody waits any more.
    is_over: bool,
}

impl Round {
    fn begin(points: Vec<PathBuf>, ask: fn(&Path) -> Option<Usage>) -> Self {
        let state = State { usages: vec![None; points.len()], ..State::default() };
        let round = Self(Arc::new(Questions { points, ask, state: Mutex::new(state), done: Condvar::new() }));
        round.help(&mut round.0.state());
        round
    }

    /// Starts another thread if there is something left to ask.
    fn help(&self, state: &mut State) {
        let is_needed = state.next < self.0.points.len() && state.workers < WORKERS_MAX;
        if is_needed && hanging().len() + state.workers < HANGING_MAX {
            state.workers += usize::from(hire(Arc::clone(&self.0)));
        }
    }

    /// The usage of each point; `None` where the system does not tell, or not in time.
    pub fn results(self) -> Vec<Option<Usage>> {
        self.results_within(DEADLINE)
    }

    fn results_within(self, deadline: Duration) -> Vec<Option<Usage>> {
        let (started, total) = (Instant::now(), self.0.points.len());
        let mut state = self.0.state();
        while state.answered < total && started.elapsed() < deadline {
            if state.workers == 0 {
                log::warn!("no thread can ask how full file systems are; {} do not answer", hanging().len());
                break;
            }
            let answered_before = state.answered;
            let waited = self.0.done.wait_timeout_while(state, GRACE, |state| state.answered < total);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.answered == answered_before {
                self.help(&mut state);
            }
        }
        state.is_over = true;
        for index in &state.asked {
            log::warn!("the file system at '{}' does not answer", self.0.points[*index].display());
            hanging().push(self.0.points[*index].clone());
        }
        std::mem::take(&mut state.usages)
    }
}

impl Questions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for one point after the other that nobody else has taken.
    fn answer(&self) {
        let mut state = self.state();
        while let (false, Some(point)) = (state.is_over, self.points.get(state.next)) {
            let index = state.next;
            state.next += 1;
            if !hanging().contains(point) {
                state.asked.insert(index);
                drop(state);
                let usage = (self.ask)(point);
                state = self.state();
                state.asked.remove(&index);
                if state.is_over {
                    let mut hanging = hanging();
                    if let Some(position) = hanging.iter().position(|known| known == point) {
                        hanging.swap_remove(position);
                    }
                    return;
                }
                state.usages[index] = usage;
            }
            state.answered += 1;
        }
        if state.answered == self.points.len() {
            self.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Round, Usage, ask, hanging};
    use std::path::{Path, PathBuf};
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    const EMPTY: Usage = Usage { used_bytes: 0, total_bytes: 1, total_bytes_privileged: 1 };

    #[test]
    fn points_that_are_not_there_have_no_usage() {
        assert!(ask(Vec::new()).results().is_empty());
        let usages = ask(vec!["/".into(), "/nonexistent".into()]).results();
        assert!(usages[0].is_some_and(|usage| usage.total_bytes_privileged >= usage.used_bytes));
        assert_eq!(usages[1], None);
    }

    #[test]
    fn a_hanging_file_system_costs_its_own_usage_and_is_not_asked_again_until_it_answers() {
        static IS_DEAD: Mutex<bool> = Mutex::new(true);
        static REVIVED: Condvar = Condvar::new();
        fn ask_in_test(point: &Path) -> Option<Usage> {
            if point == Path::new("/dead") {
                let is_dead = IS_DEAD.lock().unwrap();
                drop(REVIVED.wait_while(is_dead, |is_dead| *is_dead).unwrap());
            }
            (point != Path::new("/gone")).then_some(EMPTY)
        }
        let points: Vec<PathBuf> = ["/a", "/dead", "/gone", "/b"].iter().map(PathBuf::from).collect();
        for _ in 0..3 {
            let usages = Round::begin(points.clone(), ask_in_test).results_within(Duration::from_secs(3));
            assert_eq!(usages, [Some(EMPTY), None, None, Some(EMPTY)]);
            assert_eq!(*hanging(), [Path::new("/dead")]);
        }
        *IS_DEAD.lock().unwrap() = false;
        REVIVED.notify_all();
        while !hanging().is_empty() {
            std::thread::yield_now();
        }
        let usages = Round::begin(points, ask_in_test).results_within(Duration::from_secs(60));
        assert_eq!(usages, [Some(EMPTY), Some(EMPTY), None, Some(EMPTY)]);
    }
}
