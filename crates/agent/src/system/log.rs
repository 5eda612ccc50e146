//! Where messages go: stderr or the log file, and for what the host asked for the system's log.
//!
//! Everything comes in through the `log` crate's macros, what the host asked for through [`audit`]. Nothing here fails,
//! and nobody waits: a message goes into a queue, and one thread, started when there is something to do and ended when there
//! is nothing for a while, opens the file and writes. So a file on a disk that hangs costs that thread alone. What does not
//! fit into the queue, and a line that a full disk or a stuck reader does not take, is lost and counted, and the number is
//! told as soon as a line can be written again. The system's log is told at once, by whoever has something to say, without
//! waiting. While file systems are frozen nothing is written at all; what is said then is [held](hold) in the queue.
//!
//! A line of the log: `SECONDS.MICROSECONDS: LEVEL: text`. Control characters in the text are escaped, so that a host
//! cannot write lines of its own into a guest's log.

use crate::system::error::StartFailure;
use crate::system::trusted_path;
use ::log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The target of what goes to the system's log.
const AUDIT: &str = "audit";
/// Where the system's log listens.
const SYSTEM_LOG: &str = "/dev/log";
/// A whole line, so that a pipe takes it at once or not at all.
const MAX_LINE_BYTES: usize = 4096;
/// What is left of a line for its text.
const MAX_TEXT_BYTES: usize = MAX_LINE_BYTES - 128;
/// How many lines wait to be written.
const MAX_WAITING_LINES: usize = 1000;
/// How many bytes of text wait to be written.
const MAX_WAITING_BYTES: usize = 256 * 1024;
/// A writer with nothing to do ends after this time.
const WRITER_IDLE: Duration = Duration::from_secs(10);
/// How long a thread with something to say waits for room: a burst is not to cost lines that a healthy disk would take.
const ROOM_PATIENCE: Duration = Duration::from_millis(50);
/// How long a start waits for the log file to be opened.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a freeze waits for what was said before it to be written.
const HOLD_PATIENCE: Duration = Duration::from_millis(100);
/// How long an end waits for the last lines to be written.
const END_PATIENCE: Duration = Duration::from_secs(1);

static LOGGER: Logger = Logger::new(SYSTEM_LOG);
static HANDLE: Handle = Handle(&LOGGER);

/// Opens the log: the file, or stderr without one. Before, nothing that is logged is seen. While it is [held](hold) the
/// file is left for later, so an agent that starts frozen calls that first. A file that does not answer is waited for some
/// seconds; then the agent goes on without it.
pub fn open(file: Option<&Path>, verbose: bool) -> Result<(), StartFailure> {
    LOGGER.open(file, verbose, OPEN_PATIENCE)?;
    // Fails only if it is there already, as after a second call.
    let _ = ::log::set_logger(&HANDLE);
    // What the host asked for is at level Info and always wanted; the rest is sorted out in `enabled`.
    ::log::set_max_level(if verbose { LevelFilter::Trace } else { LevelFilter::Info });
    Ok(())
}

/// Opens the log file anew by its name, after log rotation has moved it away. Does not wait for it.
pub fn reopen() {
    LOGGER.reopen();
}

/// Waits for the last lines to be written, but not for long. False if they are not.
pub fn finish() -> bool {
    LOGGER.settles_within(END_PATIENCE)
}

/// Tells the system's log what the host asked for: `guest-file-open called, filepath: /x, mode: r`.
pub fn audit(text: fmt::Arguments<'_>) {
    ::log::log!(target: AUDIT, Level::Info, "{text}");
}

/// While on, nothing is written; turned off, what was held is. Waits for a moment at most.
pub fn hold(on: bool) {
    LOGGER.hold(on);
}

/// Tells a person on stderr what must not wait for a thaw. If stderr is a file on a frozen disk, a thread waits with it.
pub fn tell_at_once(text: String) {
    const PATIENCE: Duration = Duration::from_millis(200);
    let line = Line::warning(text);
    let (sender, receiver) = mpsc::channel();
    let writer = std::thread::Builder::new().stack_size(crate::system::blocking::STACK_BYTES).spawn(move || {
        write_without_waiting(rustix::stdio::stderr(), line.for_log().as_bytes());
        let _ = sender.send(());
    });
    if writer.is_ok() {
        let _ = receiver.recv_timeout(PATIENCE);
    }
}

struct Logger {
    system_log: &'static str,
    system_log_socket: OnceLock<Option<UnixDatagram>>,
    verbose: AtomicBool,
    /// Never locked while something is written.
    queue: Mutex<Queue>,
    changed: Condvar,
    /// The writer's own.
    destination: Mutex<Destination>,
}

/// What the `log` crate knows of the logger.
struct Handle(&'static Logger);

/// What the writer is to do.
#[derive(Default)]
struct Queue {
    lines: VecDeque<Line>,
    bytes: usize,
    /// File systems are frozen: everything waits.
    is_held: bool,
    missing: Missing,
    opening: Option<Opening>,
    /// How many lines are to be written before that.
    lines_before_opening: usize,
    /// There is a writer.
    has_writer: bool,
    /// It is at work.
    is_writing: bool,
    /// It has not made room in time: nobody waits for it before it has come back.
    is_stuck: bool,
    /// Somebody waits for room.
    is_awaited: bool,
}

/// A file to be opened before anything else is written.
enum Opening {
    /// For the first time. Whoever waits is told how that went.
    First(PathBuf, Option<SyncSender<Result<(), StartFailure>>>),
    /// Anew, by the name that is known.
    Again,
}

/// One step of the writer.
enum Step {
    Open(Opening),
    /// A line, after what is missing before it.
    Write(Line, Missing),
}

/// Lines that were dropped, not yet told.
#[derive(Default)]
struct Missing {
    while_held: u64,
    /// Did not fit, or could not be written.
    otherwise: u64,
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
        /// None: it could not be opened.
        file: Option<OwnedFd>,
    },
}

/// A message, shortened and escaped.
struct Line {
    since_epoch: Duration,
    level: &'static str,
    text: String,
    is_audit: bool,
}

impl Queue {
    fn has_work(&self) -> bool {
        !self.is_held && (self.opening.is_some() || !self.lines.is_empty())
    }

    /// Whether a line more might cost an older one.
    fn is_full(&self) -> bool {
        self.lines.len() >= MAX_WAITING_LINES || self.bytes + MAX_LINE_BYTES > MAX_WAITING_BYTES
    }

    /// Puts a line at the end; the oldest ones make room.
    fn push(&mut self, line: Line) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > MAX_WAITING_LINES || self.bytes > MAX_WAITING_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
            self.lines_before_opening = self.lines_before_opening.saturating_sub(1);
            let count = if self.is_held { &mut self.missing.while_held } else { &mut self.missing.otherwise };
            *count += 1;
        }
    }

    /// What is to be done next.
    fn next(&mut self) -> Option<Step> {
        if !self.has_work() {
            return None;
        }
        if let Some(opening) = self.opening.take_if(|_| self.lines_before_opening == 0) {
            return Some(Step::Open(opening));
        }
        let line = self.lines.pop_front()?;
        self.lines_before_opening = self.lines_before_opening.saturating_sub(1);
        self.bytes -= line.text.len();
        Some(Step::Write(line, std::mem::take(&mut self.missing)))
    }
}

impl Logger {
    const fn new(system_log: &'static str) -> Self {
        Self {
            system_log,
            system_log_socket: OnceLock::new(),
            verbose: AtomicBool::new(false),
            queue: Mutex::new(Queue {
                lines: VecDeque::new(),
                bytes: 0,
                is_held: false,
                missing: Missing { while_held: 0, otherwise: 0 },
                opening: None,
                lines_before_opening: 0,
                has_writer: false,
                is_writing: false,
                is_stuck: false,
                is_awaited: false,
            }),
            changed: Condvar::new(),
            destination: Mutex::new(Destination::Nowhere),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A thread that panicked while logging has left nothing half done that matters.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&'static self, file: Option<&Path>, verbose: bool, patience: Duration) -> Result<(), StartFailure> {
        self.verbose.store(verbose, Ordering::Relaxed);
        let Some(path) = file else {
            *self.destination() = Destination::Stderr { own: stderr_without_waiting() };
            return Ok(());
        };
        let (told, outcome) = mpsc::sync_channel(1);
        let mut queue = self.queue();
        queue.lines_before_opening = 0;
        if queue.is_held {
            queue.opening = Some(Opening::First(path.to_owned(), None));
            return Ok(());
        }
        queue.opening = Some(Opening::First(path.to_owned(), Some(told)));
        self.set_to_work(queue);
        outcome.recv_timeout(patience).unwrap_or_else(|_| {
            let shown = path.display();
            tell_at_once(format!(
                "the log file '{shown}' cannot be opened yet: its disk does not answer, or the agent cannot \
                start a thread; what is to be logged waits for it, up to {MAX_WAITING_LINES} lines"
            ));
            Ok(())
        })
    }

    fn reopen(&'static self) {
        let mut queue = self.queue();
        // One that has not been opened yet will be anyway.
        if queue.opening.is_none() {
            queue.opening = Some(Opening::Again);
            queue.lines_before_opening = queue.lines.len();
        }
        self.set_to_work(queue);
    }

    fn hold(&'static self, on: bool) {
        if on {
            // What was said before is to be on the disk, if that takes it.
            self.settles_within(HOLD_PATIENCE);
        }
        let mut queue = self.queue();
        queue.is_held = on;
        self.set_to_work(queue);
    }

    /// Waits until nothing is left to be written. What is held is not waited for.
    fn settles_within(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut queue = self.queue();
        while queue.is_writing || queue.has_work() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Wakes the writer if there is something to do, or starts one. If that cannot be, the next message tries again.
    fn set_to_work(&'static self, mut queue: MutexGuard<'_, Queue>) {
        if !queue.has_work() {
            return;
        }
        if queue.has_writer {
            drop(queue);
            self.changed.notify_all();
            return;
        }
        // A thread has the rights of the one that starts it, and this one may have taken those of a user. Another message
        // will start the writer.
        if rustix::process::geteuid() != rustix::process::getuid() && rustix::process::getuid().is_root() {
            return;
        }
        let writer =
            std::thread::Builder::new().name("log".to_owned()).stack_size(crate::system::blocking::STACK_BYTES);
        queue.has_writer = writer.spawn(|| self.work()).is_ok();
    }

    /// The writer.
    fn work(&self) {
        let mut queue = self.queue();
        let mut idle_since = Instant::now();
        loop {
            if let Some(step) = queue.next() {
                queue.is_writing = true;
                drop(queue);
                let lost = self.take_step(step);
                queue = self.queue();
                queue.is_writing = false;
                queue.is_stuck = false;
                queue.missing.otherwise += lost;
                idle_since = Instant::now();
                if !queue.has_work() || (queue.is_awaited && !queue.is_full()) {
                    queue.is_awaited = false;
                    self.changed.notify_all();
                }
                continue;
            }
            if idle_since.elapsed() >= WRITER_IDLE {
                queue.has_writer = false;
                return;
            }
            queue = self.changed.wait_timeout(queue, WRITER_IDLE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn destination(&self) -> MutexGuard<'_, Destination> {
        self.destination.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what may take for ever. Returns how many lines were lost.
    fn take_step(&self, step: Step) -> u64 {
        let mut destination = self.destination();
        let (line, missing) = match step {
            Step::Write(line, missing) => (line, missing),
            Step::Open(opening) => {
                if let Some(complaint) = destination.open(opening).map(Line::warning)
                    && !destination.write(&complaint)
                {
                    // Else nobody would ever know why the log is empty.
                    write_without_waiting(rustix::stdio::stderr(), complaint.for_log().as_bytes());
                }
                return 0;
            }
        };
        let is_for_log = !line.is_audit || self.tell_system_log_of(&line);
        let Missing { while_held, otherwise } = missing;
        let notices = [
            (while_held, "older messages were dropped while file systems were frozen"),
            (otherwise, "messages were lost because the log could not be written"),
        ];
        for (count, what) in notices {
            if count > 0 && !destination.write(&Line::warning(format!("{count} {what}"))) {
                return while_held + otherwise + u64::from(is_for_log);
            }
        }
        u64::from(is_for_log && !destination.write(&line))
    }

    /// Tells the system's log of a held message. Whether the log is to have it too.
    fn tell_system_log_of(&self, line: &Line) -> bool {
        self.tell_system_log(line);
        self.verbose.load(Ordering::Relaxed)
    }

    fn tell_system_log(&self, line: &Line) {
        let socket = self.system_log_socket.get_or_init(|| {
            UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).ok()
        });
        if let Some(socket) = socket {
            // By name each time: so a system log that was restarted is found again. Without one nobody listens.
            let _ = socket.send_to(line.for_system_log().as_bytes(), self.system_log);
        }
    }
}

impl Log for Handle {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == AUDIT || metadata.level() <= Level::Warn || self.0.verbose.load(Ordering::Relaxed)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut text = Escaped::default();
        let _ = text.write_fmt(*record.args());
        let mut line = Line {
            since_epoch: since_epoch(),
            level: word(record.level()),
            text: text.finish(),
            is_audit: record.target() == AUDIT,
        };
        let logger = self.0;
        let mut queue = logger.queue();
        if line.is_audit && !queue.is_held {
            drop(queue);
            if !logger.tell_system_log_of(&line) {
                return;
            }
            line.is_audit = false;
            queue = logger.queue();
        }
        if queue.is_full() && queue.has_writer && !queue.is_held && !queue.is_stuck {
            queue.is_awaited = true;
            let (kept, waited) = logger
                .changed
                .wait_timeout_while(queue, ROOM_PATIENCE, |queue| queue.is_full() && !queue.is_held)
                .unwrap_or_else(PoisonError::into_inner);
            queue = kept;
            queue.is_stuck |= waited.timed_out();
        }
        queue.push(line);
        logger.set_to_work(queue);
    }

    fn flush(&self) {}
}

impl Destination {
    /// Opens the file. What went wrong, if nobody else is told.
    fn open(&mut self, opening: Opening) -> Option<String> {
        let path = match (&opening, &*self) {
            (Opening::First(path, _), _) | (Opening::Again, Self::File { path, .. }) => path.clone(),
            (Opening::Again, _) => return None,
        };
        let before = match std::mem::replace(self, Self::Nowhere) {
            Self::File { file, .. } => file,
            _ => None,
        };
        let opened = open_file(&path);
        let failure = opened.as_ref().err().map(|failure| failure.text.clone());
        let goes_on = if before.is_some() { "; the log goes on into the file that was open" } else { "" };
        let (told, outcome, file) = match (opened, opening) {
            (Ok(file), Opening::First(_, told)) => (told, Ok(()), Some(file)),
            (Ok(file), Opening::Again) => (None, Ok(()), Some(file)),
            (Err(failure), Opening::First(_, told)) => (told, Err(failure), before),
            (Err(failure), Opening::Again) => (None, Err(failure), before),
        };
        *self = Self::File { path, file };
        match told {
            Some(told) if told.send(outcome).is_ok() => None,
            _ => failure.map(|text| format!("{text}{goes_on}")),
        }
    }

    /// False if the line is lost.
    fn write(&self, line: &Line) -> bool {
        let bytes = line.for_log();
        match self {
            Self::Nowhere => true,
            Self::Stderr { own: Some(own) } => rustix::io::write(own, bytes.as_bytes()).is_ok(),
            Self::Stderr { own: None } => write_without_waiting(rustix::stdio::stderr(), bytes.as_bytes()),
            Self::File { file: Some(file), .. } => write_without_waiting(file.as_fd(), bytes.as_bytes()),
            Self::File { file: None, .. } => false,
        }
    }
}

impl Line {
    fn warning(text: String) -> Self {
        Self { since_epoch: since_epoch(), level: "warning", text, is_audit: false }
    }

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

fn open_file(path: &Path) -> Result<OwnedFd, StartFailure> {
    // Not waiting for the reader of a FIFO; the log may quote paths and commands, so it is the owner's alone.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    trusted_path::open_to_write(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| StartFailure::of(format!("cannot open the log file '{}'", path.display()), &error))
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
