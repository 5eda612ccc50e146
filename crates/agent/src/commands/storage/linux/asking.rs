//! Questions that can hang for ever, as to a file system whose server or a disk whose host is gone: threads of their own
//! ask them.
//!
//! What does not answer in time is left out, and as long as its thread hangs nobody asks it again. So the threads that
//! hang are never more than [`HANGING_MAX`], however often clients ask.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::system::blocking::STACK_BYTES;

/// How long all that hangs may delay one reply. Hosts wait five seconds for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the threads at work may get nowhere before another one helps. A round that begins when the patience of its
/// request is used up is given so long.
const GRACE: Duration = Duration::from_millis(50);
/// A thread with nothing to do ends after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Threads at work for one round.
const WORKERS_MAX: usize = 8;
/// Threads that may hang, all requests together.
const HANGING_MAX: usize = 16;

/// The paths at which threads hang, one for each thread.
static HANGING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// The threads that wait for work.
static CREW: Mutex<Crew> = Mutex::new(Crew { idle: 0, work: VecDeque::new() });
/// There is work.
static CALLED: Condvar = Condvar::new();

/// When a request's patience ends, whatever it asks.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// For a request that begins now.
    pub fn new() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now()).max(GRACE)
    }
}

fn hanging() -> MutexGuard<'static, Vec<PathBuf>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread does.
trait Work: Send + Sync {
    fn answer(&self);
}

/// Threads without work, and work for them.
struct Crew {
    idle: usize,
    work: VecDeque<Arc<dyn Work>>,
}

fn crew() -> MutexGuard<'static, Crew> {
    CREW.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives questions to a thread: one that waits for work, as making one takes longer than asking a dozen times.
fn hire(questions: Arc<dyn Work>) -> bool {
    let mut crew = crew();
    if crew.idle > crew.work.len() {
        crew.work.push_back(questions);
        // Before the thread wakes, or it would have to wait for the lock.
        drop(crew);
        CALLED.notify_one();
        return true;
    }
    let worker = thread::Builder::new().name("asking".to_owned()).stack_size(STACK_BYTES);
    worker.spawn(move || serve(questions)).is_ok()
}

/// A thread's life.
fn serve(first: Arc<dyn Work>) {
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

/// Questions that are asked together, under way.
pub struct Round<A>(Arc<Questions<A>>);

/// Asks for a path, which has this number among all of the round.
type Ask<A> = dyn Fn(usize, &Path) -> Option<A> + Send + Sync;

/// What the threads of a round share.
struct Questions<A> {
    paths: Vec<PathBuf>,
    ask: Box<Ask<A>>,
    state: Mutex<State<A>>,
    done: Condvar,
}

/// How far a round is.
struct State<A> {
    /// Threads that have been started.
    workers: usize,
    /// The first path that no thread has taken.
    next: usize,
    /// Paths that threads have taken and not answered.
    asked: HashSet<usize>,
    /// How many are answered, or never will be.
    answered: usize,
    /// Answers.
    answers: Vec<Option<A>>,
    /// Nobody waits any more.
    is_over: bool,
}

/// Begins to ask the same of each of the paths; who asks is told the path's number too.
pub fn ask<A: Clone + Send + 'static>(
    paths: Vec<PathBuf>,
    ask: impl Fn(usize, &Path) -> Option<A> + Send + Sync + 'static,
) -> Round<A> {
    let ask = Box::new(ask);
    let answers = vec![None; paths.len()];
    let state = State { workers: 0, next: 0, asked: HashSet::new(), answered: 0, answers, is_over: false };
    let round = Round(Arc::new(Questions { paths, ask, state: Mutex::new(state), done: Condvar::new() }));
    round.help(&mut round.0.state());
    round
}

impl<A: Send + 'static> Round<A> {
    /// Starts another thread if there is something left to ask.
    fn help(&self, state: &mut State<A>) {
        let is_needed = state.next < self.0.paths.len() && state.workers < WORKERS_MAX;
        if is_needed && hanging().len() + state.workers < HANGING_MAX {
            state.workers += usize::from(hire(Arc::clone(&self.0) as Arc<dyn Work>));
        }
    }

    /// The answer for each path; `None` where there is none, or not in time.
    pub fn answers(self, deadline: Deadline) -> Vec<Option<A>> {
        self.answers_within(deadline.left())
    }

    fn answers_within(self, time: Duration) -> Vec<Option<A>> {
        let (started, total) = (Instant::now(), self.0.paths.len());
        let mut state = self.0.state();
        while state.answered < total && started.elapsed() < time {
            if state.workers == 0 {
                log::warn!("no thread can ask file systems and disks; {} do not answer", hanging().len());
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
            log::warn!("'{}' does not answer", self.0.paths[*index].display());
            hanging().push(self.0.paths[*index].clone());
        }
        std::mem::take(&mut state.answers)
    }
}

impl<A> Questions<A> {
    fn state(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Send> Work for Questions<A> {
    /// Asks for one path after the other that nobody else has taken.
    fn answer(&self) {
        let mut state = self.state();
        while let (false, Some(path)) = (state.is_over, self.paths.get(state.next)) {
            let index = state.next;
            state.next += 1;
            if !hanging().contains(path) {
                state.asked.insert(index);
                drop(state);
                let answer = (self.ask)(index, path);
                state = self.state();
                state.asked.remove(&index);
                if state.is_over {
                    let mut hanging = hanging();
                    if let Some(position) = hanging.iter().position(|known| known == path) {
                        hanging.swap_remove(position);
                    }
                    return;
                }
                state.answers[index] = answer;
            }
            state.answered += 1;
        }
        if state.answered == self.paths.len() {
            self.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ask, hanging};
    use std::path::{Path, PathBuf};
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    #[test]
    fn what_hangs_costs_its_own_answer_and_is_not_asked_again_until_it_answers() {
        static IS_DEAD: Mutex<bool> = Mutex::new(true);
        static REVIVED: Condvar = Condvar::new();
        fn ask_in_test(_: usize, path: &Path) -> Option<String> {
            if path == Path::new("/dead") {
                let is_dead = IS_DEAD.lock().unwrap();
                drop(REVIVED.wait_while(is_dead, |is_dead| *is_dead).unwrap());
            }
            (path != Path::new("/gone")).then(|| path.display().to_string())
        }
        let paths: Vec<PathBuf> = ["/a", "/dead", "/gone", "/b"].iter().map(PathBuf::from).collect();
        let [a, dead, b] = ["/a", "/dead", "/b"].map(|path| Some(path.to_owned()));
        for _ in 0..3 {
            let answers = ask(paths.clone(), ask_in_test).answers_within(Duration::from_secs(3));
            assert_eq!(answers, [a.clone(), None, None, b.clone()]);
            assert_eq!(*hanging(), [Path::new("/dead")]);
        }
        *IS_DEAD.lock().unwrap() = false;
        REVIVED.notify_all();
        while !hanging().is_empty() {
            std::thread::yield_now();
        }
        let answers = ask(paths, ask_in_test).answers_within(Duration::from_secs(60));
        assert_eq!(answers, [a, dead, None, b]);
    }

    #[test]
    fn nothing_asked_is_nothing_answered() {
        assert!(ask(Vec::new(), |_, _: &Path| Some(())).answers_within(Duration::from_secs(60)).is_empty());
    }
}
