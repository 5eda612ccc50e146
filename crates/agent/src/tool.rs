//! Runs the system's own programs, such as chpasswd(8), for commands that need one.
//!
//! Such a program is looked for in fixed places, gets a small fixed environment, is waited for until it ends itself,
//! whoever else holds its output, and is killed when that takes too long. What clients start is in
//! [`programs`](crate::programs).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};

use crate::programs::Exit;
use crate::root::Root;

/// Where programs are, whatever the agent's own environment says.
const DIRECTORIES: [&str; 7] = [
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/local/sbin",
    "/usr/local/bin",
    // NixOS has its programs nowhere else.
    "/run/current-system/sw/bin",
];
/// All of a program's environment: messages in English, and a search path for scripts.
const ENVIRONMENT: [&str; 2] = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"];
/// Bytes kept of the output; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// The longest wait for output before the program itself is looked at again.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// How long a killed program may take to go.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    file: PathBuf,
    /// Its name and the arguments that always come first.
    words: Vec<String>,
}

/// What a program left.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended; `None` if it was killed because it took too long.
    pub exit: Option<Exit>,
    /// What it wrote, without blanks at its ends; standard output and standard error as they came.
    pub output: String,
}

impl Tool {
    /// Looks for a program, and for busybox's if there is no other.
    pub fn find(root: &Root, name: &str) -> Option<Self> {
        let in_directories = |name: &str| {
            DIRECTORIES.iter().map(|directory| root.path(Path::new(directory).join(name))).find(|path| path.is_file())
        };
        let alone = in_directories(name).map(|file| Self { file, words: vec![name.to_owned()] });
        alone.or_else(|| {
            let words = vec!["busybox".to_owned(), name.to_owned()];
            in_directories("busybox").map(|file| Self { file, words })
        })
    }

    /// Runs it with arguments and with `input` on its standard input, and waits until it has ended.
    pub fn run(&self, arguments: &[&str], input: &[u8], patience: Duration) -> io::Result<Ended> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::from(Errno::INVAL));
        let words = self.words.iter().map(String::as_str).chain(arguments.iter().copied());
        let arguments = words.map(|word| text(word.as_bytes())).collect::<io::Result<Vec<_>>>()?;
        let environment =
            ENVIRONMENT.map(|entry| text(entry.as_bytes())).into_iter().collect::<io::Result<Vec<_>>>()?;
        let (stdin, feed) = if input.is_empty() {
            (OwnedFd::from(File::open("/dev/null")?), None)
        } else {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK)?;
            (theirs, Some(ours))
        };
        let (output, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)?;
        let file = text(self.file.as_os_str().as_bytes())?;
        let streams = [stdin.as_fd(), theirs.as_fd(), theirs.as_fd()];
        let program =
            qga_sys::spawn::Program { file: &file, arguments: &arguments, environment: &environment, streams };
        let pid = Pid::from_raw(program.start()?).ok_or(Errno::SRCH)?;
        drop((stdin, theirs));
        let mut running = Running { pid, feed, unsent: input, output, kept: Vec::new(), output_ended: false };
        let exit = running.wait(patience);
        let output = String::from_utf8_lossy(&running.kept).trim().to_owned();
        Ok(Ended { exit: exit?, output })
    }
}

/// A program at work.
struct Running<'a> {
    pid: Pid,
    feed: Option<OwnedFd>,
    unsent: &'a [u8],
    output: OwnedFd,
    kept: Vec<u8>,
    output_ended: bool,
}

impl Running<'_> {
    /// Serves its pipes until it has ended; kills it when that takes too long.
    fn wait(&mut self, patience: Duration) -> io::Result<Option<Exit>> {
        let started = Instant::now();
        loop {
            let exit = self.ended()?;
            self.send();
            while self.take() {}
            if exit.is_some() {
                return Ok(exit);
            }
            if started.elapsed() > patience {
                self.kill();
                return Ok(None);
            }
            let mut polled = Vec::new();
            if !self.output_ended {
                polled.push(PollFd::new(&self.output, PollFlags::IN));
            }
            if let Some(feed) = &self.feed {
                polled.push(PollFd::new(feed, PollFlags::OUT));
            }
            let _ = poll(&mut polled, Some(&PAUSE));
        }
    }

    fn ended(&self) -> io::Result<Option<Exit>> {
        let Some((_, status)) = waitpid(Some(self.pid), WaitOptions::NOHANG)? else { return Ok(None) };
        Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Exit::Code(code)),
            (None, Some(signal)) => Some(Exit::Signal(signal)),
            (None, None) => None,
        })
    }

    fn send(&mut self) {
        let Some(feed) = &self.feed else { return };
        match rustix::io::write(feed, self.unsent) {
            Ok(count) => self.unsent = &self.unsent[count..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            // It does not want the rest, and says why.
            Err(_) => self.unsent = &[],
        }
        if self.unsent.is_empty() {
            self.feed = None;
        }
    }

    /// Keeps what the output pipe holds. False if it holds nothing now.
    fn take(&mut self) -> bool {
        let mut piece = [0; 4096];
        match rustix::io::read(&self.output, &mut piece) {
            Ok(count @ 1..) => {
                let room = OUTPUT_BYTES_MAX - self.kept.len();
                self.kept.extend_from_slice(&piece[..count.min(room)]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(_) | Err(_) => {
                self.output_ended = true;
                false
            }
        }
    }

    /// Ends it and what it has started.
    fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let killed = Instant::now();
        while killed.elapsed() < KILL_WAIT {
            if !matches!(self.ended(), Ok(None)) {
                return;
            }
            let _ = poll(&mut [], Some(&PAUSE));
        }
        log::warn!("process {} was killed and does not end", self.pid.as_raw_pid());
    }
}

#[cfg(test)]
#[path = "tool_tests.rs"]
pub mod tests;
