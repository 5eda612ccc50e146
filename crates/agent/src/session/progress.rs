//! How long a running command has got nowhere: counted by somebody who looks at it, never taken from the clock alone.
//!
//! A whole machine can stand still (live migration, a stopped guest, SIGSTOP), or one of its processors, or it has too much
//! to do. Then time passes and no command is stuck. So whoever wants to know looks at intervals, and an interval counts as
//! [`TICK`] at most, however long it was: a gap in the looking thread's own time is a pause of that thread. A worker that
//! could run, but is not let, counts for a part; one that is stopped does not count.

use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::Pid;

pub use crate::limits::TICK;

/// A command that has got nowhere for this long counts as stuck. Many disks take hundreds of milliseconds for a write now
/// and then; clients wait for a synchronisation for some seconds.
pub const STUCK: Duration = Duration::from_secs(1);
/// What an interval counts for, as a part of it, if the worker wants to run. Not nothing: a command that only computes must
/// not keep a synchronisation waiting for ever.
const RUNNABLE_PART: u32 = 4;

/// What has been seen of a worker's commands.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Option<Seen>,
    stalled: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    state: Progress,
}

/// How far a worker has come. Any change is progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The number of the running command.
    pub command: u64,
    /// How often that has said that it gets on.
    pub steps: u64,
}

/// What the worker's thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Waits for something; also if the kernel does not tell.
    Waits,
    /// Runs, or would if it were let.
    Runs,
    /// Is stopped by a signal or a debugger.
    IsStopped,
}

impl Watch {
    /// Looks at a worker, and returns how long it has got nowhere.
    pub fn look(&mut self, now: Instant, state: Progress, activity: impl FnOnce() -> Activity) -> Duration {
        match self.seen.replace(Seen { at: now, state }) {
            Some(before) if before.state == state => {
                let interval = now.saturating_duration_since(before.at).min(TICK);
                // Once it is stuck only progress changes that.
                if self.stalled < STUCK {
                    self.stalled += match activity() {
                        Activity::Waits => interval,
                        Activity::Runs => interval / RUNNABLE_PART,
                        Activity::IsStopped => Duration::ZERO,
                    };
                }
            }
            _ => self.stalled = Duration::ZERO,
        }
        self.stalled
    }

    /// Forgets what was seen: there is nothing to look at.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// What a thread of this process does.
pub fn activity(thread: Pid) -> Activity {
    let path = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
    let mut buffer = [0; 256];
    let length = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|stat| rustix::io::read(stat, &mut buffer))
        .unwrap_or(0);
    // The state stands behind the name in parentheses.
    let name_end = buffer[..length].iter().rposition(|&byte| byte == b')');
    match name_end.and_then(|end| buffer.get(end + 2)) {
        Some(b'R') => Activity::Runs,
        Some(b'T' | b't') => Activity::IsStopped,
        _ => Activity::Waits,
    }
}

#[cfg(test)]
mod tests {
    use super::{Activity, Progress, STUCK, TICK, Watch, activity};
    use std::time::{Duration, Instant};

    const FIRST: Progress = Progress { command: 1, steps: 0 };

    /// Looks `count` times, `interval` apart; the last result.
    fn watched(watch: &mut Watch, now: &mut Instant, count: u32, interval: Duration, activity: Activity) -> Duration {
        let mut stalled = Duration::ZERO;
        for _ in 0..count {
            *now += interval;
            stalled = watch.look(*now, FIRST, || activity);
        }
        stalled
    }

    #[test]
    fn a_pause_of_the_machine_is_one_tick_however_long_it_was() {
        let (mut watch, mut now) = (Watch::default(), Instant::now());
        watch.look(now, FIRST, || Activity::Waits);
        let pauses = (STUCK.as_millis() / TICK.as_millis()) as u32 - 1;
        let stalled = watched(&mut watch, &mut now, pauses, Duration::from_hours(1), Activity::Waits);
        assert!(stalled < STUCK, "{stalled:?}");
    }

    #[test]
    fn a_command_that_waits_under_watch_is_stuck_in_the_end() {
        let (mut watch, mut now) = (Watch::default(), Instant::now());
        watch.look(now, FIRST, || Activity::Waits);
        assert!(watched(&mut watch, &mut now, 20, TICK, Activity::Waits) >= STUCK);
        // Also when nobody has looked for long.
        assert!(watched(&mut watch, &mut now, 1, Duration::from_hours(1), Activity::Runs) >= STUCK);
    }

    #[test]
    fn the_time_before_the_first_look_does_not_count() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(Instant::now() + Duration::from_hours(1), FIRST, || Activity::Waits), Duration::ZERO);
    }

    #[test]
    fn one_that_could_run_takes_longer_to_be_stuck_and_one_that_is_stopped_is_never() {
        let (mut watch, mut now) = (Watch::default(), Instant::now());
        watch.look(now, FIRST, || Activity::Runs);
        assert!(watched(&mut watch, &mut now, 40, TICK, Activity::Runs) < STUCK);
        assert!(watched(&mut watch, &mut now, 1000, TICK, Activity::IsStopped) < STUCK);
        assert!(watched(&mut watch, &mut now, 40, TICK, Activity::Runs) >= STUCK);
    }

    #[test]
    fn progress_and_another_command_begin_anew() {
        for next in [Progress { steps: 1, ..FIRST }, Progress { command: 2, ..FIRST }] {
            let (mut watch, mut now) = (Watch::default(), Instant::now());
            watched(&mut watch, &mut now, 30, TICK, Activity::Waits);
            assert_eq!(watch.look(now + TICK, next, || Activity::Waits), Duration::ZERO);
        }
    }

    #[test]
    fn a_thread_that_asks_about_itself_runs_and_one_that_waits_does_not() {
        assert_eq!(activity(rustix::thread::gettid()), Activity::Runs);
        let (told, thread) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let waits = std::thread::spawn(move || {
            told.send(rustix::thread::gettid()).unwrap();
            let _ = ended.recv();
        });
        let thread = thread.recv().unwrap();
        while activity(thread) != Activity::Waits {
            std::thread::yield_now();
        }
        drop(end);
        waits.join().unwrap();
    }
}
