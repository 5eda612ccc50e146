//! Does work with a user's rights and nothing of the agent's own, and does not wait for ever.
//!
//! The effective user of a thread is the thread's alone, so a thread is made for the work and goes with it. Whatever a
//! user has put in the way, it can be reached only as far as the user could reach it anyway. The real and saved users
//! stay the agent's: the user may not send signals to the thread or trace it.
//!
//! Where the agent may not act as somebody else, or the user's own rights do not get as far as the agent's, the same is done
//! with the agent's own, on a thread of its own as well.
//!
//! A user can also mount a file system that never answers. So the work has a deadline, and those that hang are few.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::users::Account;
use crate::system::blocking::STACK_BYTES;
use crate::system::error::Error;

/// How long the work may take, or each large piece of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it may take that long.
const ROUNDS_MAX: usize = 6;
/// Threads that may hang in files of one user, and in all.
const HANGING_MAX: (usize, usize) = (2, 16);

/// The threads at work: whose, and since when.
static AT_WORK: Mutex<Vec<Work>> = Mutex::new(Vec::new());

/// Who decides: the work whether it takes effect, or the one who waits whether it is given up.
#[derive(Debug, Default)]
pub struct Turn {
    is_taken: AtomicBool,
    pieces: AtomicUsize,
}

/// With whose rights work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The user's alone.
    User,
    /// The agent's own.
    Agent,
}

/// Why work has no result.
#[derive(Debug)]
pub enum Failure<E> {
    /// The agent may not act as the user.
    NotBegun(io::Error),
    /// What went wrong.
    Failed(E),
    /// Nobody waits for it any more, or it was never begun; the text says why.
    GivenUp(Error),
}

impl Turn {
    /// True for the first who asks.
    pub fn take(&self) -> bool {
        !self.is_taken.swap(true, Ordering::AcqRel)
    }

    /// Says that a large piece of the work is done.
    pub fn note_progress(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }
}

/// A thread's entry while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    uid: u32,
    since: Instant,
}

/// Removes the entry.
struct Place(Work);

fn at_work() -> MutexGuard<'static, Vec<Work>> {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// Refuses if too many have been at work for longer than anybody waits.
    fn reserve(uid: u32, patience: Duration) -> Option<Self> {
        let mut threads = at_work();
        let hanging = || threads.iter().filter(|work| work.since.elapsed() >= patience);
        if hanging().filter(|work| work.uid == uid).count() >= HANGING_MAX.0 || hanging().count() >= HANGING_MAX.1 {
            return None;
        }
        let work = Work { uid, since: Instant::now() };
        threads.push(work);
        Some(Self(work))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut threads = at_work();
        if let Some(index) = threads.iter().position(|work| *work == self.0) {
            threads.swap_remove(index);
        }
    }
}

/// Does the work with somebody's rights. `act` begins the texts of what goes wrong around it.
pub fn run<T: Send + 'static, E: Send + 'static>(
    rights: Rights,
    account: &Account,
    act: &str,
    work: impl FnOnce(&Turn) -> Result<T, E> + Send + 'static,
) -> Result<T, Failure<E>> {
    run_within(PATIENCE, rights, account, act, work)
}

fn run_within<T: Send + 'static, E: Send + 'static>(
    patience: Duration,
    rights: Rights,
    account: &Account,
    act: &str,
    work: impl FnOnce(&Turn) -> Result<T, E> + Send + 'static,
) -> Result<T, Failure<E>> {
    let given_up = |cause: &str| Failure::GivenUp(Error::new(format!("{act}: {cause}")));
    let Some(place) = Place::reserve(account.uid, patience) else {
        return Err(given_up("earlier commands for files of this user have not ended"));
    };
    let account = account.clone();
    let turn = Arc::new(Turn::default());
    let (sender, receiver) = sync_channel(1);
    let turn_of_work = Arc::clone(&turn);
    let thread = thread::Builder::new().name("as user".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        let ready = match rights {
            Rights::User => become_user(&account),
            Rights::Agent => Ok(()),
        };
        let done = match ready {
            Ok(()) => work(&turn_of_work).map_err(Failure::Failed),
            Err(cause) => Err(Failure::NotBegun(cause)),
        };
        drop(place);
        // Nobody takes it any more if it has been given up.
        let _ = sender.send(done);
    });
    if let Err(cause) = thread {
        return Err(given_up(&format!("cannot start a thread: {cause}")));
    }
    let mut done = receiver.recv_timeout(patience);
    let mut pieces = 0;
    for _ in 1..ROUNDS_MAX {
        let now = turn.pieces.load(Ordering::Relaxed);
        if !matches!(done, Err(RecvTimeoutError::Timeout)) || now == pieces {
            break;
        }
        pieces = now;
        done = receiver.recv_timeout(patience);
    }
    if matches!(done, Err(RecvTimeoutError::Timeout)) && !turn.take() {
        // It has taken effect by now, or is about to.
        done = receiver.recv_timeout(patience);
    }
    done.unwrap_or_else(|error| {
        Err(given_up(match error {
            RecvTimeoutError::Timeout => "the file system does not answer",
            RecvTimeoutError::Disconnected => "the agent failed, its log says why",
        }))
    })
}

/// Gives up all rights of this thread but the user's.
fn become_user(account: &Account) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    if geteuid() == uid {
        return Ok(());
    }
    if !geteuid().is_root() {
        return Err(Errno::PERM.into());
    }
    set_thread_groups(&[gid])?;
    set_thread_res_gid(None, gid, None)?;
    Ok(set_thread_res_uid(None, uid, None)?)
}

#[cfg(test)]
mod tests {
    use super::{Account, Failure, HANGING_MAX, Rights, Turn, become_user, run, run_within};
    use crate::system::error::Error;
    use rustix::process::geteuid;
    use std::sync::mpsc::{TryRecvError, channel};
    use std::time::Duration;

    fn account(uid: u32) -> Account {
        Account { uid, gid: uid, home: "/nonexistent".into() }
    }

    /// The text of what went wrong around the work.
    fn text<T>(done: Result<T, Failure<Error>>) -> String {
        match done {
            Err(Failure::GivenUp(error)) => error.desc,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it is done"),
        }
    }

    #[test]
    fn the_first_one_decides() {
        let turn = Turn::default();
        assert!(turn.take() && !turn.take());
    }

    #[test]
    fn what_does_not_end_is_given_up_and_limited() {
        let own = account(geteuid().as_raw());
        let (release, hold) = channel::<()>();
        let (report, taken) = channel();
        let stuck = run_within(Duration::from_millis(50), Rights::User, &own, "failed", move |turn| {
            let _ = hold.recv();
            let _ = report.send(turn.take());
            Ok::<_, Error>(())
        });
        assert_eq!(text(stuck), "failed: the file system does not answer");
        let mut released = vec![release];
        let refused = loop {
            let (release, hold) = channel::<()>();
            released.push(release);
            let done = run_within(Duration::from_millis(50), Rights::User, &own, "failed", move |_| {
                let _ = hold.recv();
                Ok::<_, Error>(())
            });
            let text = text(done);
            if text != "failed: the file system does not answer" {
                break text;
            }
            assert!(released.len() <= HANGING_MAX.0);
        };
        assert_eq!(refused, "failed: earlier commands for files of this user have not ended");
        drop(released);
        assert!(!taken.recv().unwrap(), "what was given up takes no effect");
    }

    #[test]
    fn work_that_gets_on_is_waited_for_longer_but_not_for_ever() {
        let own = account(geteuid().as_raw());
        let (release, hold) = channel::<()>();
        let done = run_within(Duration::from_millis(20), Rights::Agent, &own, "failed", move |turn| {
            while hold.try_recv() == Err(TryRecvError::Empty) {
                turn.note_progress();
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, Error>(())
        });
        assert_eq!(text(done), "failed: the file system does not answer");
        drop(release);
    }

    #[test]
    fn the_rights_are_the_users_and_only_in_the_thread() {
        if !geteuid().is_root() {
            println!("skipped: only root can become another user");
            return;
        }
        let found = run(Rights::User, &account(61234), "failed", |_| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(std::fs::read("/etc/shadow").is_err());
            Ok::<_, Error>(status)
        });
        let found = found.unwrap();
        let line = |name: &str| found.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(line("Uid:"), "0\t61234\t0\t61234");
        assert_eq!(line("Gid:"), "0\t61234\t0\t61234");
        assert_eq!(line("Groups:"), "61234");
        assert_eq!(line("CapEff:"), "0000000000000000");
        assert!(geteuid().is_root() && std::fs::read("/etc/shadow").is_ok());
        become_user(&account(0)).unwrap();
    }
}
