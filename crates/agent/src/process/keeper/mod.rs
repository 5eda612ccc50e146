//! The keeper: a process of its own that has a second descriptor of what clients' programs write to, so that they run to
//! their end whatever ends the agent.
//!
//! While the agent lives the keeper only takes descriptors, and empties pipes from which nobody wants anything any more:
//! those of programs that have ended and left others behind. Once the agent is gone it reads all pipes, keeps what the
//! agent would have kept, learns how the programs end, and answers an agent that comes later. What it does is in
//! [`process`]; this side starts it with the first program, tells it what there is, and lets it go when there has been
//! nothing for a while.
//!
//! A program costs the agent two messages, three with output. They are left in the socket until there is something to be
//! done or many have come, so that the keeper is not woken up for each.

mod messages;
pub mod process;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, Signal};

use self::messages::{Answer, bytes, numbers, receive, send};
use crate::process::child::{self, Child, Exit};
use crate::process::kept_output::Output;
use crate::process::kept_output::Status;
use crate::system::blocking::BlockingThreads;
use crate::system::error::{Error, cause_text};
use crate::system::rendezvous;

/// What the socket files begin with; the keeper's process id follows.
const MEETING_PREFIX: &str = "qga.programs.";
/// Most socket files that are looked at.
const MEETINGS_MAX: usize = 64;
/// How long the keeper may take to take a message.
const SEND_PATIENCE: Duration = Duration::from_secs(1);
/// How long one whose agent is gone may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing is looked at while they are asked.
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// Most keepers of earlier agents beside which an agent starts one of its own. Each has programs or their results.
const KEEPERS_MAX: usize = 16;
/// How long the start of one may take.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long an agent that ends waits until the keeper has taken over.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Messages after which the keeper is to take them, long before the socket is full.
const MESSAGES_LEFT_MAX: usize = 32;
/// Pipes that a program may leave behind.
const PIPES_EACH: usize = 2;

/// To start one is to execute the agent's own file, which may be on a file system that hangs.
static STARTS: BlockingThreads = BlockingThreads::new("starting a keeper", 1, 1);

static STATE: Mutex<State> =
    Mutex::new(State { is_on: false, directory: None, running: None, next: 0, has_warned: false });

struct State {
    is_on: bool,
    /// Where a later agent is to look.
    directory: Option<PathBuf>,
    running: Option<Running>,
    /// The next program's number.
    next: u64,
    /// Whether it was logged that there is none.
    has_warned: bool,
}

/// A keeper at work.
struct Running {
    process: Child,
    socket: OwnedFd,
    /// Wakes it up.
    wake: OwnedFd,
    /// Messages that it has not been woken up for.
    messages: usize,
    /// Pipes that it can take beyond those that it has.
    room: usize,
    /// Pipes that it empties.
    left: usize,
    /// Programs that it was told of and that have not ended.
    wards: usize,
}

/// A program that a keeper knows.
#[derive(Debug)]
pub struct Ward {
    keeper: Pid,
    number: u64,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets this process have a keeper. Without a directory no later agent finds it.
pub fn turn_on(directory: Option<&Path>) {
    let mut state = state();
    state.is_on = true;
    state.directory = directory.map(Path::to_owned);
}

/// Tells the keeper of a program that is about to start. `None` if there can be no keeper, which is logged: then the
/// program may die of a closed pipe if the agent ends before it.
pub fn expect(outputs: [Option<BorrowedFd<'_>>; 2]) -> Option<Ward> {
    let mut state = with_keeper();
    let keeper = state.running.as_ref()?.process.pid();
    let number = state.next;
    state.next += 1;
    let present = outputs.map(|output| i32::from(output.is_some()));
    let descriptors: Vec<BorrowedFd<'_>> = outputs.into_iter().flatten().collect();
    if !descriptors.is_empty() {
        state.tell(&bytes(b'S', number, &present), &descriptors, false);
    }
    let running = state.running.as_mut()?;
    running.wards += 1;
    Some(Ward { keeper, number })
}

impl Ward {
    /// False if the keeper that knows it is gone.
    fn tell(&self, kind: u8, rest: &[i32], descriptors: &[BorrowedFd<'_>], at_once: bool) -> bool {
        let mut state = state();
        let is_its_keeper =
            |state: &State| state.running.as_ref().is_some_and(|running| running.process.pid() == self.keeper);
        if is_its_keeper(&state) {
            state.tell(&bytes(kind, self.number, rest), descriptors, at_once);
        }
        is_its_keeper(&state)
    }

    /// It has started, and its end has not been asked for.
    pub fn started(&self, child: &Child) {
        // Where the system has no such descriptors the keeper does without.
        let process = child.process();
        let descriptors: Vec<BorrowedFd<'_>> = process.iter().map(OwnedFd::as_fd).collect();
        self.tell(b'P', &[child.pid().as_raw_pid()], &descriptors, false);
    }

    /// All that is kept of a stream is, and will be, in this file.
    pub fn keeps(&self, stream: usize, file: BorrowedFd<'_>) {
        self.tell(b'K', &[stream as i32], &[file], false);
    }

    /// More has come of a stream than is kept.
    pub fn has_truncated(&self, stream: usize) {
        self.tell(b'T', &[stream as i32], &[], false);
    }

    /// It has ended and its output is here, or it has not started. The keeper empties its pipes if somebody still
    /// `writes`; false if it is gone.
    pub fn ended(self, writes: bool) -> bool {
        let is_told = self.tell(b'E', &[], &[], writes);
        if let Some(running) = state().running.as_mut().filter(|running| running.process.pid() == self.keeper) {
            running.wards -= 1;
        }
        is_told
    }
}

/// Has a pipe emptied, for as long as somebody writes to it.
pub fn empty(pipe: &OwnedFd) {
    let mut state = with_keeper();
    if state.running.is_some() {
        state.tell(&bytes(b'L', 0, &[]), &[pipe.as_fd()], true);
    }
}

/// How many pipes are emptied already, if that are so many that no further program should be started.
pub fn too_many_left() -> Option<usize> {
    let mut state = state();
    let running = state.running.as_mut()?;
    running.hear();
    if running.room >= PIPES_EACH {
        return None;
    }
    // For the next time: there may be room by now.
    running.wake();
    Some(running.left)
}

/// Whether there is a keeper that might go.
pub fn is_there() -> bool {
    state().running.is_some()
}

/// Lets the keeper go, if it empties no pipes: there has been no program for a while.
pub fn let_go() {
    let mut state = state();
    if let Some(running) = &mut state.running {
        running.hear();
        // One of a program that has just begun would take that for orphaned.
        if running.left == 0 && running.wards == 0 {
            state.running = None;
        }
    }
}

/// What is known of a program whose result nobody has fetched.
pub struct Unfetched<'a> {
    /// The program.
    pub pid: i32,
    /// How it ended.
    pub exit: Exit,
    /// What was kept of its streams.
    pub output: &'a mut [Output; 2],
}

/// Leaves everything to the keeper, and waits until it has taken over. To be called last: no program is started after it.
pub fn take_over<'a>(unfetched: impl Iterator<Item = Unfetched<'a>>) {
    let mut unfetched = unfetched.peekable();
    let mut state = if unfetched.peek().is_some() { with_keeper() } else { state() };
    for Unfetched { pid, exit, output } in unfetched {
        if state.running.is_none() {
            break;
        }
        let number = state.next;
        state.next += 1;
        let [kind, code] = numbers(Some(exit));
        state.tell(&bytes(b'R', number, &[pid, kind, code]), &[], false);
        for (stream, output) in (0..).zip(output).filter(|(_, output)| output.len() > 0 || output.is_truncated()) {
            let truncated = output.is_truncated();
            match output.shared() {
                Ok(file) => state.tell(&bytes(b'K', number, &[stream]), &[file], false),
                Err(error) => log::warn!("the output of program {pid} is lost: {error}"),
            }
            if truncated {
                state.tell(&bytes(b'T', number, &[stream]), &[], false);
            }
            // There may be more of them than this process may have descriptors.
            *output = Output::default();
        }
    }
    if let Some(running) = &state.running {
        let _ = sockopt::set_socket_timeout(&running.socket, sockopt::Timeout::Recv, Some(END_PATIENCE));
        let _ = rustix::net::shutdown(&running.socket, Shutdown::Write);
        while let Ok(Some(_)) = receive(&running.socket, RecvFlags::empty()) {}
    }
    // Whoever wants to start a program now waits for the end.
    std::mem::forget(state);
}

/// The state with a keeper, which is started if there is none; without one if that is not possible, or not in time. The
/// state is not held while it starts: all programs and signals would wait for it.
fn with_keeper() -> MutexGuard<'static, State> {
    let known = state();
    if !known.is_on || known.running.is_some() {
        return known;
    }
    let directory = known.directory.clone();
    drop(known);
    let started = STARTS.run("keeper", START_PATIENCE, move || Running::start(directory.as_deref()));
    let mut state = state();
    let failed = match started {
        // Of two that were started at once one is let go.
        Ok(Ok(running)) => {
            if state.running.is_none() {
                (state.running, state.has_warned) = (Some(running), false);
            }
            return state;
        }
        Ok(Err(error)) => cause_text(&error),
        Err(not_done) => not_done.to_string(),
    };
    if state.running.is_none() && !state.has_warned {
        state.has_warned = true;
        log::warn!(
            "cannot start the process that keeps programs alive when the agent ends ({failed}): programs may die of a \
             closed pipe then, and so may those that they leave behind"
        );
    }
    state
}

impl State {
    fn tell(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], at_once: bool) {
        let Some(running) = &mut self.running else { return };
        let told = send(&running.socket, bytes, descriptors, SendFlags::empty());
        running.messages += 1;
        if at_once || running.messages >= MESSAGES_LEFT_MAX {
            running.wake();
        }
        if let Err(error) = told {
            let pid = running.process.pid();
            log::warn!(
                "process {pid}, which keeps programs alive when the agent ends, is gone or stuck ({error}): programs that \
                 run now may die of a closed pipe then; the next one gets a new keeper"
            );
            running.process.signal(Signal::KILL);
            self.running = None;
        }
    }
}

impl Running {
    fn start(directory: Option<&Path>) -> io::Result<Self> {
        if let Some(directory) = directory {
            let others = meetings(directory).iter().filter(|(path, _)| !is_gone(path)).count();
            if others >= KEEPERS_MAX {
                return Err(io::Error::other(format!(
                    "{others} of earlier agents still have programs that run, or processes left by them: end some"
                )));
            }
        }
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(SEND_PATIENCE))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let mut arguments = vec![c"ga-keeper".to_owned(), CString::new(process::ARGUMENT)?];
        if let Some(directory) = directory {
            arguments.push(CString::new(directory.as_os_str().as_bytes())?);
        }
        let process = child::start_own_file(&arguments, [theirs.as_fd(), wake.as_fd(), nothing.as_fd()])?;
        Ok(Self { process, socket, wake, messages: 0, room: PIPES_EACH, left: 0, wards: 0 })
    }

    fn wake(&mut self) {
        self.messages = 0;
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Takes what the keeper says of itself.
    fn hear(&mut self) {
        while let Ok(Some(packet)) = receive(&self.socket, RecvFlags::DONTWAIT) {
            if let Some((room, left)) = packet.room() {
                (self.room, self.left) = (room, left);
            }
        }
    }
}

/// What keepers of earlier agents know of a program. All are asked at once, so that one that stands still delays nobody who
/// asks for another one's program.
///
/// # Errors
/// Some of them do not answer, so that it is not known.
pub fn ask(pid: i32) -> Result<Option<Status>, Error> {
    let (directory, own) = {
        let state = state();
        let own = state.running.as_ref().map(|running| running.process.pid());
        let Some(directory) = state.directory.clone() else { return Ok(None) };
        (directory, own)
    };
    let mut unasked = meetings(&directory);
    unasked.retain(|(_, keeper)| Some(*keeper) != own);
    ask_all(unasked, pid)
}

fn ask_all(mut unasked: Vec<(PathBuf, Pid)>, pid: i32) -> Result<Option<Status>, Error> {
    let mut question = vec![b'?'];
    question.extend_from_slice(&pid.to_le_bytes());
    let mut asked: Vec<(OwnedFd, Pid)> = Vec::new();
    let mut waited = Duration::ZERO;
    loop {
        unasked.retain(|(path, keeper)| match rendezvous::come_at_once(path) {
            Ok(socket) => {
                if send(&socket, &question, &[], SendFlags::DONTWAIT).is_ok() {
                    asked.push((socket, *keeper));
                }
                false
            }
            // Others are there.
            Err(error) => error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()),
        });
        let mut known = None;
        asked.retain(|(socket, _)| match receive(socket, RecvFlags::DONTWAIT) {
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => true,
            Ok(Some(packet)) if known.is_none() => {
                known = status_of(packet, socket).unwrap_or_default();
                false
            }
            Ok(_) | Err(_) => false,
        });
        if known.is_some() || (asked.is_empty() && unasked.is_empty()) {
            return Ok(known);
        }
        // Counted and not taken from the clock: a pause of the machine is one step.
        if waited >= ANSWER_PATIENCE {
            let silent = asked.iter().map(|(_, keeper)| *keeper).chain(unasked.iter().map(|(_, keeper)| *keeper));
            let silent: Vec<String> = silent.map(|keeper| keeper.to_string()).collect();
            return Err(Error::new(format!(
                "cannot ask for PID {pid}: what keeps programs of an earlier agent does not answer within {} s (process {}: \
                 is it stopped?)",
                ANSWER_PATIENCE.as_secs(),
                silent.join(", ")
            )));
        }
        let mut polled: Vec<PollFd<'_>> = asked.iter().map(|(socket, _)| PollFd::new(socket, PollFlags::IN)).collect();
        let pause = Timespec::try_from(ASK_PAUSE).ok();
        if !matches!(poll(&mut polled, pause.as_ref()), Ok(1..)) {
            waited += ASK_PAUSE;
        }
    }
}

fn status_of(packet: messages::Packet, socket: &OwnedFd) -> io::Result<Option<Status>> {
    Ok(match packet.answer() {
        None | Some(Answer::Unknown) => None,
        Some(Answer::Running) => Some(Status::Running),
        Some(Answer::Ended(exit, streams)) => {
            let [out, err] = streams.map(|(file, truncated)| {
                let mut output = file.map_or_else(|| Ok(Output::default()), |file| Output::of_file(file, truncated))?;
                if truncated {
                    output.set_truncated();
                }
                io::Result::Ok(output)
            });
            let outputs = [out?, err?];
            // It keeps the result until it hears this.
            send(socket, b"k", &[], SendFlags::empty())?;
            Some(Status::Ended(exit, outputs))
        }
    })
}

/// Removes the socket files of keepers that are gone.
pub fn tidy(directory: &Path) {
    for (path, _) in meetings(directory).into_iter().filter(|(path, _)| is_gone(path)) {
        let _ = std::fs::remove_file(path);
    }
}

/// Whether nobody listens at a socket file any more.
fn is_gone(path: &Path) -> bool {
    let refused = Some(Errno::CONNREFUSED.raw_os_error());
    rendezvous::come_at_once(path).is_err_and(|error| error.raw_os_error() == refused)
}

/// The socket files of keepers, and the process id of each. The directory may be one in which everybody can lay files:
/// those of other users are none.
fn meetings(directory: &Path) -> Vec<(PathBuf, Pid)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let meetings = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.strip_prefix(MEETING_PREFIX)?.parse().ok().and_then(Pid::from_raw)?;
        let is_own = entry.metadata().is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw());
        is_own.then(|| (entry.path(), pid))
    });
    meetings.take(MEETINGS_MAX).collect()
}
