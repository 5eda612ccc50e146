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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::users::Account;
use crate::system::blocking::BlockingThreads;
use crate::system::error::Error;

/// How long the work may take, or each large piece of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it may take that long.
const ROUNDS_MAX: usize = 6;
/// Threads that may hang in files of one user, and in all.
const HANGING_OF_USER_MAX: usize = 2;
const HANGING_MAX: usize = 16;

/// Threads that work on files of users, by user.
static AT_WORK: BlockingThreads = BlockingThreads::new("as user", HANGING_OF_USER_MAX, HANGING_MAX);

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
    let turn = Arc::new(Turn::default());
    let (turn_of_work, account) = (Arc::clone(&turn), account.clone());
    let uid = account.uid.to_string();
    let mut limit =
        Limit { turn: &turn, patience, end: patience, rounds_left: ROUNDS_MAX - 1, pieces: 0, is_last: false };
    let done = AT_WORK.run_while(
        &uid,
        |waited| limit.is_worth(waited),
        move || {
            let ready = match rights {
                Rights::User => become_user(&account),
                Rights::Agent => Ok(()),
            };
            match ready {
                Ok(()) => work(&turn_of_work).map_err(Failure::Failed),
                Err(cause) => Err(Failure::NotBegun(cause)),
            }
        },
    );
    done.unwrap_or_else(|not_done| Err(Failure::GivenUp(Error::new(format!("{act}: {not_done}")))))
}

/// How long the work is waited for.
struct Limit<'a> {
    turn: &'a Turn,
    patience: Duration,
    /// When it is looked at again.
    end: Duration,
    rounds_left: usize,
    /// The pieces that were done at the last look.
    pieces: usize,
    /// The work has taken the turn.
    is_last: bool,
}

impl Limit<'_> {
    fn is_worth(&mut self, waited: Duration) -> bool {
        if waited < self.end {
            return true;
        }
        self.end = waited + self.patience;
        let before = std::mem::replace(&mut self.pieces, self.turn.pieces.load(Ordering::Relaxed));
        if self.pieces != before && self.rounds_left > 0 {
            self.rounds_left -= 1;
            return true;
        }
        // The first who takes the turn decides. If that was the work, it has taken effect by now, or is about to.
        self.rounds_left = 0;
        !std::mem::replace(&mut self.is_last, true) && !self.turn.take()
    }
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
    use super::{Account, Failure, HANGING_OF_USER_MAX, Rights, Turn, become_user, run, run_within};
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
        assert_eq!(text(stuck), "failed: no end after 0 s");
        let mut released = vec![release];
        let refused = loop {
            let (release, hold) = channel::<()>();
            released.push(release);
            let done = run_within(Duration::from_millis(50), Rights::User, &own, "failed", move |_| {
                let _ = hold.recv();
                Ok::<_, Error>(())
            });
            let text = text(done);
            if text != "failed: no end after 0 s" {
                break text;
            }
            assert!(released.len() <= HANGING_OF_USER_MAX);
        };
        assert_eq!(refused, "failed: an earlier attempt has not ended yet");
        drop(released);
        assert!(!taken.recv().unwrap(), "what was given up takes no effect");
    }

    #[test]
    fn work_that_gets_on_is_waited_for_longer_but_not_for_ever() {
        let own = account(geteuid().as_raw());
        let (release, hold) = channel::<()>();
        let done = run_within(Duration::from_millis(100), Rights::Agent, &own, "failed", move |turn| {
            while hold.try_recv() == Err(TryRecvError::Empty) {
                turn.note_progress();
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, Error>(())
        });
        assert!(text(done).starts_with("failed: no end after "));
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
