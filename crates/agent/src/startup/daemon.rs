//! Goes to the background for `--daemonize`.
//!
//! The fork comes first and the child opens everything, the pid file's lock before all else: so a second agent fails
//! before it takes the first one's socket away, and the parent's exit code says whether the child serves.

use crate::system::error::StartFailure;
use crate::system::error::cause_text;
use qga_sys::daemon::{ForkedAs, Word, WordToParent};
use rustix::fs::Mode;

/// Which process goes on after [`detach`].
#[derive(Debug)]
pub enum Detached {
    /// The one that was started: it has nothing left to do but to exit with success.
    Parent,
    /// The daemon, which still has to open everything and then to say so.
    Daemon(Readiness),
}

/// What the daemon owes the one who started it.
#[derive(Debug)]
pub struct Readiness(WordToParent);

/// Forks, in the one thread the process has. In the parent this returns when the daemon is [ready](Readiness::ready),
/// or fails with the daemon's reason.
pub fn detach() -> Result<Detached, StartFailure> {
    match qga_sys::daemon::fork_and_wait().map_err(|error| StartFailure::of("cannot fork a daemon", &error))? {
        ForkedAs::Parent(Word::Ready) => Ok(Detached::Parent),
        ForkedAs::Parent(Word::Failed(text)) => Err(StartFailure::new(text)),
        ForkedAs::Parent(Word::Ended(how)) => {
            Err(StartFailure::new(format!("the daemon ended {how} before it was ready to serve")))
        }
        ForkedAs::Child(word) => {
            let readiness = Readiness(word);
            match leave_surroundings() {
                Ok(()) => Ok(Detached::Daemon(readiness)),
                // To be told by the parent; the child's own stderr is the same, so it must not say it again.
                Err(failure) => {
                    readiness.failed(&failure);
                    Ok(Detached::Parent)
                }
            }
        }
    }
}

fn leave_surroundings() -> Result<(), StartFailure> {
    rustix::process::setsid()
        .map_err(|error| StartFailure::of("cannot start a session for the daemon", &error.into()))?;
    rustix::process::chdir("/").map_err(|error| StartFailure::of("cannot go to the directory /", &error.into()))?;
    Ok(())
}

impl Readiness {
    /// Gives up the terminal, makes what is created from now on private, and lets the parent exit with success.
    pub fn ready(self) {
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        if let Err(error) = qga_sys::daemon::leave_standard_streams() {
            log::warn!("cannot leave the standard streams: {}", cause_text(&error));
        }
        self.0.ready();
    }

    /// Lets the parent say the reason and exit with 1. The daemon is to exit too.
    pub fn failed(self, failure: &StartFailure) {
        self.0.failed(&failure.text);
    }
}
