//! Commands that run and could hang: counted, bounded, and named in errors.
//!
//! Each is counted from its start to its end, whatever becomes of its client in between: so the number of threads that hang
//! has a bound which no order of coming, asking and leaving can pass. Commands that are the way out of a freeze are counted
//! for themselves, so that others cannot keep them out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::TICK;
use crate::system::error::Error;

/// Commands that run although nobody waits for them any more, before no further one is started.
const ABANDONED_MAX: usize = 16;
/// Commands that run at once.
const RUNNING_MAX: usize = 32;
/// How long a command waits for another one to end if too many run and their clients wait for them.
const PATIENCE: Duration = Duration::from_secs(1);

/// The commands of one kind.
#[derive(Debug, Default)]
pub struct Stuck {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    number: u64,
    name: &'static str,
    since: Instant,
    /// Nobody waits for it any more.
    is_abandoned: Arc<AtomicBool>,
}

/// A command that runs, until dropped.
#[derive(Debug)]
pub struct Admitted<'a> {
    stuck: &'a Stuck,
    number: u64,
}

impl Stuck {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a command as running, or refuses it if too many are. `is_abandoned` tells at any time whether its client has
    /// left or given up; then no other's end is waited for, because a thread that waits would be one more.
    pub fn admit(&self, name: &'static str, is_abandoned: &Arc<AtomicBool>) -> Result<Admitted<'_>, Error> {
        let mut left = PATIENCE;
        let mut state = self.lock();
        loop {
            let abandoned = state.abandoned();
            if abandoned < ABANDONED_MAX && state.running.len() < RUNNING_MAX {
                break;
            }
            if abandoned >= ABANDONED_MAX || left.is_zero() || is_abandoned.load(Ordering::Acquire) {
                return Err(state.refusal(name, abandoned));
            }
            // Bit by bit: a pause of the machine is to cost one of them only.
            let bit = left.min(TICK);
            state = self.ended.wait_timeout(state, bit).unwrap_or_else(PoisonError::into_inner).0;
            left -= bit;
        }
        let number = state.next;
        state.next += 1;
        state.running.push(Running { number, name, since: Instant::now(), is_abandoned: Arc::clone(is_abandoned) });
        Ok(Admitted { stuck: self, number })
    }
}

impl State {
    fn abandoned(&self) -> usize {
        self.running.iter().filter(|running| running.is_abandoned.load(Ordering::Acquire)).count()
    }

    fn refusal(&self, name: &str, abandoned: usize) -> Error {
        let (oldest, seconds) = self
            .running
            .iter()
            .min_by_key(|running| running.since)
            .map_or(("none", 0), |running| (running.name, running.since.elapsed().as_secs()));
        let why = if abandoned >= ABANDONED_MAX {
            format!("{abandoned} commands have been given up on and still run")
        } else {
            format!("{} commands run already", self.running.len())
        };
        Error::new(format!(
            "{name} was not started: {why}, the oldest of them {oldest} for {seconds} s; something that they wait for, a \
             disk or a network file system, does not answer"
        ))
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.stuck.lock().running.retain(|running| running.number != self.number);
        self.stuck.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::{ABANDONED_MAX, RUNNING_MAX, Stuck};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn client() -> Arc<AtomicBool> {
        Arc::new(AtomicBool::new(false))
    }

    #[test]
    fn too_many_commands_given_up_on_refuse_another_until_one_ends() {
        let (stuck, gone) = (Stuck::default(), client());
        let mut running: Vec<_> = (0..ABANDONED_MAX).map(|_| stuck.admit("guest-file-read", &gone).unwrap()).collect();
        assert!(stuck.admit("guest-exec", &client()).is_ok(), "somebody waits for each of them");
        gone.store(true, Ordering::Release);
        let error = stuck.admit("guest-exec", &client()).unwrap_err();
        assert!(
            error.desc.contains("16 commands have been given up on and still run, the oldest of them guest-file-read")
        );
        running.pop();
        assert!(stuck.admit("guest-exec", &client()).is_ok());
    }

    #[test]
    fn clients_that_come_ask_and_leave_cannot_pass_the_limit() {
        let stuck = Stuck::default();
        let mut running = Vec::new();
        // All ask before the first one leaves.
        for _ in 0..64 {
            let client = client();
            running.extend(stuck.admit("guest-file-read", &client).ok().map(|admitted| (admitted, client)));
            if running.len() >= RUNNING_MAX {
                break;
            }
        }
        for (_, client) in &running {
            client.store(true, Ordering::Release);
        }
        for _ in 0..64 {
            assert!(stuck.admit("guest-file-read", &client()).is_err());
        }
        assert_eq!(running.len(), RUNNING_MAX);
    }

    #[test]
    fn one_too_many_waits_for_the_end_of_another_but_not_when_its_own_client_has_left() {
        let stuck = Stuck::default();
        let clients: Vec<_> = (0..RUNNING_MAX).map(|_| client()).collect();
        let mut running: Vec<_> = clients.iter().map(|client| stuck.admit("guest-exec", client).unwrap()).collect();
        assert!(stuck.admit("guest-exec", &Arc::new(AtomicBool::new(true))).is_err());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stuck.admit("guest-exec", &client()).map(drop));
            running.pop();
            assert!(waiting.join().unwrap().is_ok());
        });
        let error = {
            let _last = stuck.admit("guest-exec", &client()).unwrap();
            stuck.admit("guest-exec", &client()).unwrap_err()
        };
        assert!(error.desc.contains("32 commands run already"), "{error:?}");
    }
}
