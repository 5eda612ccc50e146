//! Where messages go: stderr or the log file, and for what the host asked for the system's log.
//!
//! Everything comes in through the `log` crate's macros, what the host asked for through [`audit`]. Nothing here fails,
//! and nothing waits for a reader: a line that cannot be written now is lost and counted, for a full disk or a stuck reader
//! must not stop the agent. A log file on a disk that hangs costs the one thread that writes to it; the others go on.
//! While file systems are frozen nothing is written at all; what is said then is [held](hold), within
//! limits, and written after the thaw.
//!
//! A line of the log: `SECONDS.MICROSECONDS: LEVEL: text`. Control characters in the text are escaped, so that a host
//! cannot write lines of its own into a guest's log.

use crate::config::Failure;
use crate::trusted_path;
use ::log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime};

/// The target of what goes to the system's log.
const AUDIT: &str = "audit";
/// Where the system's log listens.
const SYSTEM_LOG: &str = "/dev/log";
/// A whole line, so that a pipe takes it at once or not at all.
const MAX_LINE_BYTES: usize = 4096;
/// What is left of a line for its text.
const MAX_TEXT_BYTES: usize = MAX_LINE_BYTES - 128;
/// How much is held while frozen.
const MAX_HELD_LINES: usize = 1000;
/// How many bytes of text are held while frozen.
const MAX_HELD_BYTES: usize = 256 * 1024;

static LOGGER: Logger = Logger::new(SYSTEM_LOG);

/// Opens the log: the file, or stderr without one. Before, nothing that is logged is seen. While it is [held](hold) the
/// file is left for later, so an agent that starts frozen calls that first.
pub fn open(file: Option<&Path>, verbose: bool) -> Result<(), Failure> {
    LOGGER.open(file, verbose)?;
    // Fails only if it is there already, as after a second call.
    let _ = ::log::set_logger(&LOGGER);
    // What the host asked for is at level Info and always wanted; the rest is sorted out in `enabled`.
    ::log::set_max_level(if verbose { LevelFilter::Trace } else { LevelFilter::Info });
    Ok(())
}

/// Opens the log file anew by its name, after log rotation has moved it away.
pub fn reopen() {
    if let Err(failure) = LOGGER.reopen() {
        ::log::warn!("{failure}; the log goes on into the file that was open");
    }
}

/// Tells the system's log what the host asked for: `guest-file-open called, filepath: /x, mode: r`.
pub fn audit(text: fmt::Arguments<'_>) {
    ::log::log!(target: AUDIT, Level::Info, "{text}");
}

/// While on, nothing is written; turned off, what was held is.
pub fn hold(on: bool) {
    LOGGER.hold(on);
}

/// Tells a person on stderr what must not wait for a thaw. If stderr is a file on a frozen disk, a thread waits with it.
pub fn tell_at_once(text: String) {
    const PATIENCE: Duration = Duration::from_millis(200);
    let line = Line { since_epoch: since_epoch(), level: "warning", text, is_audit: false };
    let (sender, receiver) = std::sync::mpsc::channel();
    let writer = std::thread::Builder::new().stack_size(crate::lane::STACK_BYTES).spawn(move || {
        write_without_waiting(rustix::stdio::stderr(), line.for_log().as_bytes());
        let _ = sender.send(());
    });
    if writer.is_ok() {
        let _ = receiver.recv_timeout(PATIENCE);
    }
}

struct Logger {
    state: Mutex<State>,
    system_log: &'static str,
    /// Whoever writes does not come back: the file is on a disk that hangs, say.
    is_stuck: AtomicBool,
    /// Lines that did not even come to be written.
    lost_waiting: AtomicU64,
}

struct State {
    verbose: bool,
    destination: Destination,
    system_log_socket: Option<UnixDatagram>,
    held: Option<Held>,
    /// Lines that could not be written, not yet told.
    lost: u64,
}

enum Destination {
    /// Not opened yet.
    Nowhere,
    Stderr {
        /// Stderr once more, not blocking, where it is a terminal or a pipe.
        own: Option<OwnedFd>,
    },
    File {
        path: PathBuf,
        /// None: it is to be opened after the thaw.
        file: Option<OwnedFd>,
    },
}

/// What was said while file systems were frozen.
#[derive(Default)]
struct Held {
    lines: VecDeque<Line>,
    bytes: usize,
    dropped: u64,
    /// The file is to be opened (anew) first: that too is a write.
    reopen: bool,
}

/// A message, shortened and escaped.
struct Line {
    since_epoch: Duration,
    level: &'static str,
    text: String,
    is_audit: bool,
}

impl Logger {
    const fn new(system_log: &'static str) -> Self {
        Self {
            state: Mutex::new(State {
                verbose: false,
                destination: Destination::Nowhere,
                system_log_socket: None,
                held: None,
                lost: 0,
            }),
            system_log,
            is_stuck: AtomicBool::new(false),
            lost_waiting: AtomicU64::new(0),
        }
    }

    /// The state, unless somebody keeps it: one thread may hang in a write, the others go on without the log.
    fn state_soon(&self) -> Option<MutexGuard<'_, State>> {
        const TRIES: u32 = 50;
        const PAUSE: Duration = Duration::from_millis(1);
        let tries = if self.is_stuck.load(Ordering::Relaxed) { 1 } else { TRIES };
        for attempt in 0..tries {
            let mut state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    if attempt + 1 < tries {
                        std::thread::sleep(PAUSE);
                    }
                    continue;
                }
            };
            self.is_stuck.store(false, Ordering::Relaxed);
            state.lost += self.lost_waiting.swap(0, Ordering::Relaxed);
            return Some(state);
        }
        self.is_stuck.store(true, Ordering::Relaxed);
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while logging has left nothing half done that matters.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, file: Option<&Path>, verbose: bool) -> Result<(), Failure> {
        let mut state = self.state();
        state.verbose = verbose;
        state.destination = match (file, &mut state.held) {
            (None, _) => Destination::Stderr { own: stderr_without_waiting() },
            (Some(path), None) => Destination::File { path: path.to_owned(), file: Some(open_file(path)?) },
            (Some(path), Some(held)) => {
                held.reopen = true;
                Destination::File { path: path.to_owned(), file: None }
            }
        };
        Ok(())
    }

    fn reopen(&self) -> Result<(), Failure> {
        let mut state = self.state();
        if let Some(held) = &mut state.held {
            held.reopen = true;
            return Ok(());
        }
        state.reopen()
    }

    fn hold(&self, on: bool) {
        let mut state = self.state();
        if on {
            state.held.get_or_insert_default();
            return;
        }
        let Some(held) = state.held.take() else { return };
        let notice = |text: String| Line { since_epoch: since_epoch(), level: "warning", text, is_audit: false };
        if held.reopen
            && let Err(failure) = state.reopen()
        {
            state.write(&notice(failure.text), self.system_log);
        }
        if held.dropped > 0 {
            let text = format!("{} older messages were dropped while file systems were frozen", held.dropped);
            state.write(&notice(text), self.system_log);
        }
        for line in &held.lines {
            state.write(line, self.system_log);
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == AUDIT
            || metadata.level() <= Level::Warn
            || self.state_soon().is_some_and(|state| state.verbose)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut text = Escaped::default();
        let _ = text.write_fmt(*record.args());
        let line = Line {
            since_epoch: since_epoch(),
            level: word(record.level()),
            text: text.finish(),
            is_audit: record.target() == AUDIT,
        };
        let Some(mut state) = self.state_soon() else {
            self.lost_waiting.fetch_add(1, Ordering::Relaxed);
            return;
        };
        match &mut state.held {
            Some(held) => held.push(line),
            None => state.write(&line, self.system_log),
        }
    }

    fn flush(&self) {}
}

impl State {
    fn reopen(&mut self) -> Result<(), Failure> {
        if let Destination::File { path, file } = &mut self.destination {
            *file = Some(open_file(path)?);
        }
        Ok(())
    }

    fn write(&mut self, line: &Line, system_log: &str) {
        if line.is_audit {
            self.write_to_system_log(line, system_log);
            if !self.verbose {
                return;
            }
        }
        if self.lost > 0 {
            let text = format!("{} messages were lost because the log could not be written", self.lost);
            let notice = Line { since_epoch: line.since_epoch, level: "warning", text, is_audit: false };
            if !self.write_to_log(&notice) {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if !self.write_to_log(line) {
            self.lost += 1;
        }
    }

    fn write_to_log(&self, line: &Line) -> bool {
        let bytes = line.for_log();
        match &self.destination {
            Destination::Nowhere => true,
            Destination::Stderr { own: Some(own) } => rustix::io::write(own, bytes.as_bytes()).is_ok(),
            Destination::Stderr { own: None } => write_without_waiting(rustix::stdio::stderr(), bytes.as_bytes()),
            Destination::File { file: Some(file), .. } => write_without_waiting(file.as_fd(), bytes.as_bytes()),
            Destination::File { file: None, .. } => false,
        }
    }

    fn write_to_system_log(&mut self, line: &Line, system_log: &str) {
        if self.system_log_socket.is_none() {
            self.system_log_socket =
                UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).ok();
        }
        if let Some(socket) = &self.system_log_socket {
            // By name each time: so a system log that was restarted is found again. Without one nobody listens.
            let _ = socket.send_to(line.for_system_log().as_bytes(), system_log);
        }
    }
}

impl Line {
    fn for_log(&self) -> String {
        let (seconds, micros) = (self.since_epoch.as_secs(), self.since_epoch.subsec_micros());
        format!("{seconds}.{micros:06}: {}: {}\n", self.level, self.text)
    }

    /// RFC 3164 without the time, which the receiver knows and a sender without time zone data does not.
    fn for_system_log(&self) -> String {
        const FACILITY_USER: u8 = 1;
        const SEVERITY_INFO: u8 = 6;
        format!("<{}>qemu-ga: {}: {}", FACILITY_USER * 8 + SEVERITY_INFO, self.level, self.text)
    }
}

impl Held {
    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > MAX_HELD_LINES || self.bytes > MAX_HELD_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
            self.dropped += 1;
        }
    }
}

/// Collects a text, escaped and up to a limit: a message may quote what a client sent, whatever its size.
#[derive(Default)]
struct Escaped {
    text: String,
    left_out_bytes: usize,
}

impl fmt::Write for Escaped {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for (index, character) in part.char_indices() {
            if self.left_out_bytes > 0 || self.text.len() + 8 > MAX_TEXT_BYTES {
                self.left_out_bytes += part.len() - index;
                return Ok(());
            }
            if character.is_control() {
                self.text.extend(character.escape_default());
            } else {
                self.text.push(character);
            }
        }
        Ok(())
    }
}

impl Escaped {
    fn finish(mut self) -> String {
        if self.left_out_bytes > 0 {
            let _ = write!(self.text, " [and {} bytes more]", self.left_out_bytes);
        }
        self.text
    }
}

/// The original's word for a level.
fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "critical",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn open_file(path: &Path) -> Result<OwnedFd, Failure> {
    // Not waiting for the reader of a FIFO; the log may quote paths and commands, so it is the owner's alone.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    trusted_path::open_to_write(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Failure::of(format!("cannot open the log file '{}'", path.display()), &error))
}

/// Stderr once more: it may be a terminal or a pipe that nobody reads, and is not ours to make non-blocking, since others
/// write to it too. A file stays as it is: opened anew it would have a position of its own.
fn stderr_without_waiting() -> Option<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(rustix::stdio::stderr()).ok()?.st_mode);
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match kind {
        FileType::CharacterDevice | FileType::Fifo => rustix::fs::open("/proc/self/fd/2", flags, Mode::empty()).ok(),
        _ => None,
    }
}

/// Writes a line if it can be taken right now.
fn write_without_waiting(destination: BorrowedFd<'_>, line: &[u8]) -> bool {
    if let Ok(count) = rustix::net::send(destination, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        return count == line.len();
    }
    let mut ready = [PollFd::from_borrowed_fd(destination, PollFlags::OUT)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let can_take = rustix::event::poll(&mut ready, Some(&now)).is_ok() && ready[0].revents().contains(PollFlags::OUT);
    can_take && rustix::io::write(destination, line).is_ok()
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
