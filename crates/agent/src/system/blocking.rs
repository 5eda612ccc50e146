//! Work that may never end, as on a file system whose server is gone: a thread of its own does it, and whoever wants its
//! result waits for as long as the result is worth.
//!
//! A thread that hangs cannot be ended. So those that were given up on are remembered by what they work on, and no further
//! work begins there, or at all, while there are too many of them: however often clients ask, the threads that hang have a
//! bound.
//!
//! What asks many file systems at once, and needs its answers at the speed of a system call, has threads that wait for work:
//! `commands/storage/linux/asking.rs`.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::error::cause_text;

/// The stack of a thread of the agent: recursion is bounded and large data is on the heap.
pub const STACK_BYTES: usize = 256 << 10;

/// How often somebody who waits asks himself whether to go on.
const TICK: Duration = Duration::from_millis(50);

/// Threads for one kind of work.
#[derive(Debug)]
pub struct BlockingThreads {
    /// What they are called.
    name: &'static str,
    /// How many may hang in work on one object.
    per_object_max: usize,
    /// How many may hang.
    hanging_max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    begun: u64,
    /// The work that was given up on and has not ended, by its number and its object.
    hanging: Vec<(u64, String)>,
}

/// Why work has no result.
#[derive(Debug)]
pub enum NotDone {
    /// It was not begun: work on the same object hangs.
    IsBusy,
    /// It was not begun: so many threads hang.
    TooMany(usize),
    /// It was not begun: there is no thread for it.
    NoThread(io::Error),
    /// It has not ended in this time, and goes on without anybody who waits.
    TimedOut(Duration),
    /// It has panicked.
    Failed,
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IsBusy => f.write_str("an earlier attempt has not ended yet"),
            Self::TooMany(count) => write!(f, "{count} earlier attempts have not ended yet"),
            Self::NoThread(cause) => write!(f, "no thread for it: {}", cause_text(cause)),
            Self::TimedOut(after) => write!(f, "no end after {} s", after.as_secs()),
            Self::Failed => f.write_str("the agent failed, its log says why"),
        }
    }
}

impl BlockingThreads {
    /// None yet.
    pub const fn new(name: &'static str, per_object_max: usize, hanging_max: usize) -> Self {
        let state = State { begun: 0, hanging: Vec::new() };
        Self { name, per_object_max, hanging_max, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does work on an object, and waits for it no longer than `patience`.
    pub fn run<T: Send + 'static>(
        &'static self,
        object: &str,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        self.run_while(object, |waited| waited < patience, work)
    }

    /// Does work on an object, and waits for it as long as `is_worth` says so, which is told how long that has been.
    pub fn run_while<T: Send + 'static>(
        &'static self,
        object: &str,
        mut is_worth: impl FnMut(Duration) -> bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let number = {
            let mut state = self.lock();
            let on_object = state.hanging.iter().filter(|(_, known)| known == object).count();
            if on_object >= self.per_object_max {
                return Err(NotDone::IsBusy);
            }
            if state.hanging.len() >= self.hanging_max {
                return Err(NotDone::TooMany(state.hanging.len()));
            }
            state.begun += 1;
            state.begun
        };
        let (report, reports) = mpsc::channel();
        let thread = thread::Builder::new().name(self.name.to_owned()).stack_size(STACK_BYTES).spawn(move || {
            let _ends = Ends { threads: self, number };
            let result = work();
            // Under the lock, so that it is either received or known to hang.
            let _state = self.lock();
            let _ = report.send(result);
        });
        thread.map_err(NotDone::NoThread)?;
        // Counted and not taken from the clock: a pause of the machine is one tick.
        let mut waited = Duration::ZERO;
        while is_worth(waited) {
            match reports.recv_timeout(TICK) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Disconnected) => return Err(NotDone::Failed),
                Err(RecvTimeoutError::Timeout) => waited += TICK,
            }
        }
        let mut state = self.lock();
        match reports.try_recv() {
            Ok(result) => Ok(result),
            Err(mpsc::TryRecvError::Disconnected) => Err(NotDone::Failed),
            Err(mpsc::TryRecvError::Empty) => {
                state.hanging.push((number, object.to_owned()));
                Err(NotDone::TimedOut(waited))
            }
        }
    }
}

/// Forgets that a thread hangs, when it has ended after all.
struct Ends {
    threads: &'static BlockingThreads,
    number: u64,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let mut state = self.threads.lock();
        if let Some(position) = state.hanging.iter().position(|(number, _)| *number == self.number) {
            let (_, object) = state.hanging.swap_remove(position);
            drop(state);
            log::info!("{} '{object}': it has ended after all", self.threads.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockingThreads, NotDone};
    use std::sync::mpsc;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(600);

    /// Work that hangs until the sender is dropped.
    fn hang(threads: &'static BlockingThreads, object: &str) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let hung = threads.run(object, Duration::ZERO, move || {
            let _ = released.recv();
        });
        assert!(matches!(hung, Err(NotDone::TimedOut(_))), "{hung:?}");
        release
    }

    #[test]
    fn work_gives_its_result() {
        static THREADS: BlockingThreads = BlockingThreads::new("test", 1, 2);
        assert_eq!(THREADS.run("a", LONG, || 7).unwrap(), 7);
    }

    #[test]
    fn an_object_on_which_work_hangs_is_left_alone_until_it_has_ended() {
        static THREADS: BlockingThreads = BlockingThreads::new("test", 1, 8);
        let release = hang(&THREADS, "a");
        assert!(matches!(THREADS.run("a", LONG, || 1), Err(NotDone::IsBusy)));
        assert_eq!(THREADS.run("b", LONG, || 2).unwrap(), 2);
        drop(release);
        while matches!(THREADS.run("a", LONG, || 3), Err(NotDone::IsBusy)) {
            std::thread::yield_now();
        }
        assert_eq!(THREADS.run("a", LONG, || 4).unwrap(), 4);
    }

    #[test]
    fn threads_that_hang_have_a_bound() {
        static THREADS: BlockingThreads = BlockingThreads::new("test", 1, 2);
        let first = hang(&THREADS, "a");
        let _second = hang(&THREADS, "b");
        assert!(matches!(THREADS.run("c", LONG, || 1), Err(NotDone::TooMany(2))));
        drop(first);
        while matches!(THREADS.run("c", LONG, || 1), Err(NotDone::TooMany(_))) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn work_that_panics_is_told_and_hangs_nowhere() {
        static THREADS: BlockingThreads = BlockingThreads::new("test", 1, 1);
        let failed = THREADS.run("a", LONG, || -> () { panic!("on purpose") });
        assert!(matches!(failed, Err(NotDone::Failed)));
        assert_eq!(THREADS.run("a", LONG, || 1).unwrap(), 1);
    }

    #[test]
    fn whoever_waits_decides_how_long() {
        static THREADS: BlockingThreads = BlockingThreads::new("test", 1, 1);
        let mut asked = 0;
        let (_release, released) = mpsc::channel::<()>();
        let is_worth = |_| {
            asked += 1;
            asked <= 3
        };
        let hung = THREADS.run_while("a", is_worth, move || {
            let _ = released.recv();
        });
        assert!(matches!(hung, Err(NotDone::TimedOut(_))));
        assert_eq!(asked, 4);
    }
}
