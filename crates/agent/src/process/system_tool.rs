//! Runs the system's own programs, such as chpasswd(8), for commands that need one, and those an administrator names.
//!
//! The former are looked for in fixed places and get a small fixed environment. All are waited for until they end
//! themselves, whoever else holds their output, and are killed when that takes too long. What clients start is in
//! [`programs`](crate::process::client_programs).

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qga_sys::spawn::{Mark, Program};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use crate::process::child::{Child, Exit};
use crate::process::environment;
use crate::process::keeper;
use crate::system::root::Root;
use crate::system::trusted_path::{self, Walk};

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
/// What runs a script without a first line that says what runs it, as execvp(3) has it.
const SHELL: &str = "/bin/sh";
/// Bytes kept of the output; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Characters of the output that an error repeats.
const FAILURE_CHARACTERS_MAX: usize = 500;
/// The longest wait for output before the program itself is looked at again.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// How long a killed program may take to go.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    file: PathBuf,
    /// Its name and the arguments that always come first; none if an administrator named the file.
    words: Vec<String>,
}

/// What a program left.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended; `None` if it was killed, because it took too long or was not wanted any more.
    pub exit: Option<Exit>,
    /// What it wrote, without blanks at its ends; standard output and standard error as they came.
    pub output: String,
}

impl Tool {
    /// Looks for a program, and for busybox's if there is no other.
    pub fn find(root: &Root, name: &str) -> Option<Self> {
        Self::find_alone(root, name).or_else(|| Self::of_busybox(root, name))
    }

    /// Looks for a program, which may be a link to busybox.
    pub fn find_alone(root: &Root, name: &str) -> Option<Self> {
        in_directories(root, name).map(|file| Self { file, words: vec![name.to_owned()] })
    }

    /// The program of that name in busybox, if there is a busybox; whether it has the program shows when it runs.
    pub fn of_busybox(root: &Root, name: &str) -> Option<Self> {
        let words = vec!["busybox".to_owned(), name.to_owned()];
        in_directories(root, "busybox").map(|file| Self { file, words })
    }

    /// A program that an administrator named by its file: as from the original, that is its name too, and it gets the
    /// agent's own environment.
    pub fn at(file: PathBuf) -> Self {
        Self { file, words: Vec::new() }
    }

    /// Runs it with arguments and with `input` on its standard input, and waits until it has ended.
    pub fn run(&self, arguments: &[&str], input: &[u8], patience: Duration) -> io::Result<Ended> {
        self.run_unless(&|| false, None, arguments, input, patience)
    }

    /// As [`run`](Self::run), but kills it as soon as it is `cancelled`, and leaves a mark of its start.
    pub fn run_unless(
        &self,
        cancelled: &dyn Fn() -> bool,
        mark: Option<&Mark<'_>>,
        arguments: &[&str],
        input: &[u8],
        patience: Duration,
    ) -> io::Result<Ended> {
        let is_named_by_file = self.words.is_empty();
        let own_name = is_named_by_file.then_some(self.file.as_os_str());
        let words = own_name.into_iter().chain(self.words.iter().map(OsStr::new));
        let words = words.chain(arguments.iter().map(OsStr::new));
        let mut arguments = words.map(text).collect::<io::Result<Vec<_>>>()?;
        let environment =
            if is_named_by_file { environment::of_programs() } else { ENVIRONMENT.map(OsString::from).to_vec() };
        let environment = environment.iter().map(|entry| text(entry)).collect::<io::Result<Vec<_>>>()?;
        let (stdin, feed) = if input.is_empty() {
            (OwnedFd::from(File::open("/dev/null")?), None)
        } else {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK)?;
            (theirs, Some(ours))
        };
        let (output, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)?;
        let file = text(self.file.as_os_str())?;
        let streams = [stdin.as_fd(), theirs.as_fd(), theirs.as_fd()];
        let start = |file: &CStr, arguments: &[CString]| {
            Child::start(&Program { file, arguments, environment: &environment, streams }, mark)
        };
        let child = match start(&file, &arguments) {
            Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
                let shell = text(OsStr::new(SHELL))?;
                arguments.splice(..1, [shell.clone(), file]);
                start(&shell, &arguments)
            }
            started => started,
        }?;
        drop((stdin, theirs));
        let mut running = Running { child, feed, unsent: input, output, kept: Vec::new(), output_ended: false };
        let exit = running.wait(patience, cancelled);
        if !running.output_ended {
            // A service that it has started goes on writing there, and must not die of a closed pipe.
            keeper::empty(&running.output);
        }
        let output = String::from_utf8_lossy(&running.kept).trim().to_owned();
        Ok(Ended { exit: exit?, output })
    }
}

/// A program's file, if it is where programs are and nobody but root could have put it there.
fn in_directories(root: &Root, name: &str) -> Option<PathBuf> {
    let is_roots = |path: &PathBuf| {
        let walk = trusted_path::walk(root, path).ok().filter(Walk::is_there)?;
        match walk.doubts().first() {
            None => Some(walk.kind() == Some(FileType::RegularFile)),
            Some(doubt) => {
                log::warn!("'{}' is not run: {doubt}", path.display());
                None
            }
        }
    };
    let files = DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
    files.filter(|path| is_roots(path) == Some(true)).map(|path| root.path(path)).next()
}

/// As it is typed, without its directory.
impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

impl Ended {
    /// Why it is no success: `exit status 1: <output>`. The output is a line, and not longer than a reader bears.
    pub fn failure(&self, patience: Duration) -> Option<String> {
        let how = match self.exit {
            Some(Exit::Code(0)) => return None,
            Some(Exit::Code(code)) => format!("exit status {code}"),
            Some(Exit::Signal(signal)) => format!("ended by signal {signal}"),
            None => format!("did not end in {} s and was killed", patience.as_secs()),
        };
        let lines = self.output.lines().map(str::trim).filter(|line| !line.is_empty());
        let output: String = lines.collect::<Vec<_>>().join(", ").chars().take(FAILURE_CHARACTERS_MAX).collect();
        Some(if output.is_empty() { how } else { format!("{how}: {output}") })
    }
}

fn text(word: &OsStr) -> io::Result<CString> {
    CString::new(word.to_owned().into_vec()).map_err(|_| Errno::INVAL.into())
}

/// A program at work.
struct Running<'a> {
    child: Child,
    feed: Option<OwnedFd>,
    unsent: &'a [u8],
    output: OwnedFd,
    kept: Vec<u8>,
    output_ended: bool,
}

impl Running<'_> {
    /// Serves its pipes until it has ended; kills it when that takes too long.
    fn wait(&mut self, patience: Duration, cancelled: &dyn Fn() -> bool) -> io::Result<Option<Exit>> {
        let started = Instant::now();
        loop {
            let exit = self.ended()?;
            self.send();
            while self.take() {}
            if exit.is_some() {
                return Ok(exit);
            }
            if started.elapsed() > patience || cancelled() {
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
        Ok(self.child.ended()?)
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
        self.child.signal_group(Signal::KILL);
        let killed = Instant::now();
        while killed.elapsed() < KILL_WAIT {
            if !matches!(self.ended(), Ok(None)) {
                return;
            }
            let _ = poll(&mut [], Some(&PAUSE));
        }
        log::warn!("process {} was killed and does not end", self.child.pid().as_raw_pid());
    }
}

#[cfg(test)]
#[path = "system_tool_tests.rs"]
pub mod tests;
