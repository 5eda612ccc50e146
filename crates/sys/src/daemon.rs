//! Forking into the background, and the socket that a service manager hands over.

use rustix::fd::{FromRawFd as _, OwnedFd};
use rustix::process::{Pid, WaitOptions};
use std::fs::File;
use std::io::{self, Read as _, Write as _};

/// Which of the two processes after [`fork_and_wait`] this is.
#[derive(Debug)]
pub enum ForkedAs {
    /// The one that was started; the child has spoken or is gone.
    Parent(Word),
    /// The one that goes on; it owes the parent a word.
    Child(WordToParent),
}

/// What the child told its parent.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// It serves.
    Ready,
    /// It cannot, for this reason.
    Failed(String),
    /// It ended without a word, as this describes.
    Ended(String),
}

/// The child's end of the pipe. Dropped unused, the parent learns that the child has ended when it has.
#[derive(Debug)]
pub struct WordToParent(File);

impl WordToParent {
    /// Lets the parent exit with success.
    pub fn ready(mut self) {
        // Nobody is left to tell if this fails: the parent was killed while it waited.
        let _ = self.0.write_all(&[READY]);
    }

    /// Lets the parent exit with this reason.
    pub fn failed(mut self, text: &str) {
        let _ = self.0.write_all(&[FAILED]);
        let _ = self.0.write_all(text.as_bytes());
    }
}

const READY: u8 = b'+';
const FAILED: u8 = b'-';
/// A reason is one line; a child that writes without end must not fill the parent.
const MAX_WORD_BYTES: u64 = 64 * 1024;

/// Forks. The parent waits until the child has said whether it is ready, or is gone.
///
/// To be called while the process has a single thread: the child gets only the calling one, and a lock that another
/// thread held would stay locked there for ever.
pub fn fork_and_wait() -> io::Result<ForkedAs> {
    let (reading_end, writing_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: fork has no preconditions on memory. The child may do whatever the parent could as long as the process has
    // one thread; with more, a lock held elsewhere could hang it, which is no memory error.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reading_end);
            Ok(ForkedAs::Child(WordToParent(File::from(writing_end))))
        }
        child => {
            drop(writing_end);
            let mut word = Vec::new();
            File::from(reading_end).take(MAX_WORD_BYTES).read_to_end(&mut word)?;
            Ok(ForkedAs::Parent(match word.split_first() {
                Some((&READY, _)) => Word::Ready,
                Some((_, text)) => Word::Failed(String::from_utf8_lossy(text).into_owned()),
                None => Word::Ended(how_it_ended(Pid::from_raw(child))),
            }))
        }
    }
}

fn how_it_ended(child: Option<Pid>) -> String {
    let Ok(Some((_, status))) = rustix::process::waitpid(child, WaitOptions::empty()) else {
        return "for an unknown reason".to_owned();
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("with exit code {code}"),
        (_, Some(signal)) => format!("by signal {signal}"),
        _ => "for an unknown reason".to_owned(),
    }
}

/// The number of the socket that a service manager hands over first.
const FIRST_ACTIVATED: libc::c_int = 3;

/// The socket that a service manager handed over, as a second descriptor of the same socket that children do not get.
/// Descriptor 3 itself stays open, but children do not get that either from now on.
///
/// Whether it is a socket at all is left to its first use; an error means that there is no such descriptor.
pub fn activated_socket() -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes a descriptor's number, valid or not, and an integer; it touches no memory.
    if unsafe { libc::fcntl(FIRST_ACTIVATED, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_DUPFD_CLOEXEC takes a descriptor's number, valid or not, and the least new number; it touches no memory.
    let duplicate = unsafe { libc::fcntl(FIRST_ACTIVATED, libc::F_DUPFD_CLOEXEC, FIRST_ACTIVATED + 1) };
    if duplicate == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above succeeded, so this is a new open descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Makes stdin, stdout and stderr the null device, so that a daemon holds no terminal and no pipe.
pub fn leave_standard_streams() -> io::Result<()> {
    // Rust's start-up has opened whichever of the three was closed, so this gets a number above them.
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forks from the test's thread: the child does nothing but its word and leaves without running anything else.
    fn fork_with(child: impl FnOnce(WordToParent)) -> Word {
        match fork_and_wait().unwrap() {
            ForkedAs::Parent(word) => word,
            ForkedAs::Child(word) => {
                child(word);
                // SAFETY: ends the process at once; nothing of it is used afterwards.
                unsafe { libc::_exit(7) }
            }
        }
    }

    #[test]
    fn the_parent_learns_that_the_child_is_ready() {
        assert_eq!(fork_with(WordToParent::ready), Word::Ready);
    }

    #[test]
    fn the_parent_learns_why_the_child_is_not_ready() {
        assert_eq!(fork_with(|word| word.failed("no such port")), Word::Failed("no such port".to_owned()));
    }

    #[test]
    fn the_parent_learns_that_the_child_ended_without_a_word() {
        assert_eq!(fork_with(drop), Word::Ended("with exit code 7".to_owned()));
    }
}
