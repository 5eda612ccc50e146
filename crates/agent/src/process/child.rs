//! How the processes that the agent has started end, and the end of those that it has inherited.
//!
//! As the first process of a container, or where it was made the reaper of its descendants, the agent inherits every
//! orphan, and must ask how each one ended, or it stays a zombie for ever. The kernel tells of whichever has ended, the
//! agent's own children among them, so how those ended is kept for whoever waits for them.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qga_sys::spawn::Program;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};

/// Ends that are kept, orphans' among them, which nobody asks for. Whoever waits for a child of the agent's looks for it
/// more often than so many processes end.
const KEPT_MAX: usize = 4096;
/// Ends that are taken notice of in one go.
const REAPED_MAX: usize = 512;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// The ends that the kernel has told, the oldest first.
static ENDS: Mutex<VecDeque<(Pid, WaitStatus)>> = Mutex::new(VecDeque::new());

fn ends() -> MutexGuard<'static, VecDeque<(Pid, WaitStatus)>> {
    ENDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts another process of the agent from its own file, which finds what the agent would find in its environment.
pub fn start_own_file(arguments: &[CString], streams: [BorrowedFd<'_>; 3]) -> io::Result<Pid> {
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    let program = Program { file: c"/proc/self/exe", arguments, environment: &environment, streams };
    Ok(Pid::from_raw(program.start()?).ok_or(Errno::SRCH)?)
}

/// How a child has ended; `None` if it runs. It is told once.
///
/// # Errors
/// `ECHILD` if it is no child of the agent's, or was told before.
pub fn ended(pid: Pid) -> Result<Option<Exit>, Errno> {
    // The lock keeps `reap` from having asked the kernel and not yet said so.
    let mut ends = ends();
    let status = match waitpid(Some(pid), WaitOptions::NOHANG) {
        Ok(ended) => ended.map(|(_, status)| status),
        // The newest: a process id may be used again.
        Err(Errno::CHILD) => {
            let place = ends.iter().rposition(|(known, _)| *known == pid).ok_or(Errno::CHILD)?;
            ends.remove(place).map(|(_, status)| status)
        }
        Err(error) => return Err(error),
    };
    Ok(status.and_then(exit))
}

fn exit(status: WaitStatus) -> Option<Exit> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Exit::Code(code)),
        (None, Some(signal)) => Some(Exit::Signal(signal)),
        (None, None) => None,
    }
}

/// Whether orphans become children of this process.
#[must_use]
pub fn inherits_orphans() -> bool {
    rustix::process::getpid() == Pid::INIT || matches!(rustix::process::child_subreaper(), Ok(Some(_)))
}

/// Takes notice of children that have ended, whoever has started them. True if there may be more of them.
pub fn reap() -> bool {
    let mut ends = ends();
    for _ in 0..REAPED_MAX {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if ends.len() == KEPT_MAX {
                    ends.pop_front();
                }
                ends.push_back((pid, status));
            }
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return false,
        }
    }
    true
}
