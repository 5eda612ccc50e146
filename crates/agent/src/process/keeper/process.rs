//! The keeper's own process.
//!
//! It leaves the agent's control group, so that a service manager that cleans up after the agent does not end it too, and
//! raises its limit of descriptors, which no program inherits. It ends when its agent is gone, no program of it runs,
//! nobody writes to a pipe that it empties, and every result was fetched or has waited for too long.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit, test_kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::MEETING_PREFIX;
use super::messages::{Message, numbers, receive, send};
use crate::process::child::Exit;
use crate::process::kept_output::{OUTPUT_BYTES_MAX, PIPE_BYTES, RESULT_AGE};
use crate::process::kept_output::{Output, STREAM_BYTES_MAX};
use crate::system::rendezvous;
use crate::system::root::Root;

/// The argument that makes the agent's program a keeper. A directory may follow: where a later agent looks for it.
pub const ARGUMENT: &str = "--keep-programs";

/// Most descriptors that it wants.
const DESCRIPTORS_MAX: u64 = 1 << 16;
/// Descriptors that are not for pipes to be emptied: those of the programs that run, and a few of its own.
const DESCRIPTORS_KEPT: u64 = 2560;
/// How long a later agent may take to ask, and to say that it has what it asked for.
const VISIT_PATIENCE: Duration = Duration::from_secs(1);
/// How often a program is looked at of whose end nobody tells.
const LOOK: Duration = Duration::from_secs(1);
/// Linux as of this version tells how a process has ended.
const TELLING_LINUX: (u32, u32) = (6, 15);

/// The root of the control groups, in the places where it may be.
const CONTROL_GROUPS: [&str; 3] =
    ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/systemd/cgroup.procs"];

/// Keeps what the agent on standard input hands over.
#[must_use]
pub fn main() -> ExitCode {
    match Keeper::prepare().and_then(Keeper::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Keeper {
    /// None after it has gone.
    agent: Option<OwnedFd>,
    /// The agent wakes it up by this.
    call: OwnedFd,
    /// Where a later agent comes.
    listener: Option<OwnedFd>,
    meeting: Option<PathBuf>,
    programs: BTreeMap<u64, Program>,
    /// Bytes kept of all of them.
    output_bytes: usize,
    /// Pipes to be emptied.
    left: Vec<OwnedFd>,
    /// Pipes that can be emptied at once.
    left_max: usize,
    /// What the agent was told last of them: how many more there may be, and how many there are.
    told: (usize, usize),
    wake: UnixStream,
    was_told_to_end: Arc<AtomicBool>,
}

#[derive(Default)]
struct Program {
    pid: Option<i32>,
    process: Option<OwnedFd>,
    pipes: [Option<OwnedFd>; 2],
    output: [Output; 2],
    way: Way,
    ended: Option<(Option<Exit>, Instant)>,
}

/// How the end of a program is learned once the agent is gone.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The kernel tells whoever has a descriptor of the process.
    Told,
    /// It is traced.
    Traced,
    /// That it has ended is all that can be learned.
    #[default]
    Seen,
}

/// What is found of a program.
enum End {
    Runs,
    /// How, if that could be learned.
    Ended(Option<Exit>),
}

/// What there is to do.
struct Waited {
    is_called: bool,
    is_agent_gone: bool,
    /// Which of the pipes that are to be emptied have something, or end.
    left: Vec<bool>,
}

impl Keeper {
    fn prepare() -> io::Result<Self> {
        let agent = io::stdin().as_fd().try_clone_to_owned()?;
        let call = io::stdout().as_fd().try_clone_to_owned()?;
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let was_told_to_end = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&was_told_to_end))?;
        }
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGCHLD] {
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        // The standard streams are copies by now, and a closed one must not become something else.
        qga_sys::daemon::leave_standard_streams()?;
        let meeting = std::env::args_os().nth(2).map(|directory| {
            Path::new(&directory).join(format!("{MEETING_PREFIX}{}", rustix::process::getpid().as_raw_nonzero()))
        });
        // Each of these makes it better; none is needed.
        let listener = meeting.as_deref().and_then(|meeting| rendezvous::listen(meeting).ok());
        let _ = CONTROL_GROUPS.iter().any(|file| Root::host().order(file, "0").is_ok());
        let _ = Root::host().order("/proc/self/oom_score_adj", "-1000");
        let _ = Root::host().order("/proc/self/comm", "ga-keeper");
        let _ = std::env::set_current_dir("/");
        let left_max = raise_limit();
        Ok(Self {
            agent: Some(agent),
            call,
            listener,
            meeting,
            programs: BTreeMap::new(),
            output_bytes: 0,
            left: Vec::new(),
            left_max,
            told: (0, 0),
            wake,
            was_told_to_end,
        })
    }

    fn run(mut self) -> io::Result<()> {
        // What was said before there was anybody to hear it.
        self.hear();
        while !self.is_done() {
            let Waited { is_called, is_agent_gone, left } = self.wait()?;
            self.empty_left(&left);
            if is_called || is_agent_gone {
                self.hear();
            }
            if self.agent.is_none() {
                self.serve();
            }
            self.meet();
            self.tell_room();
        }
        if let Some(meeting) = &self.meeting {
            let _ = std::fs::remove_file(meeting);
        }
        Ok(())
    }

    /// Whether nobody needs it any more.
    fn is_done(&mut self) -> bool {
        if self.agent.is_some() {
            return false;
        }
        let forgotten = |program: &Program| program.ended.is_some_and(|(_, at)| at.elapsed() >= RESULT_AGE);
        for (_, program) in self.programs.extract_if(.., |_, program| forgotten(program)) {
            self.output_bytes -= program.output.iter().map(Output::len).sum::<usize>();
        }
        let is_needed = !self.left.is_empty() || self.programs.values().any(|program| program.ended.is_none());
        // When the machine goes down everybody is told to end. Then results are no reason to stay, but programs are: one
        // that has something left to do would die of a closed pipe.
        !is_needed && (self.programs.is_empty() || self.was_told_to_end.load(Ordering::Relaxed))
    }

    /// Waits for something to do.
    fn wait(&self) -> io::Result<Waited> {
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN), PollFd::new(&self.call, PollFlags::IN)];
        let mut limit: Option<Duration> = None;
        let mut limit_to = |other: Duration| limit = Some(limit.map_or(other, |limit| limit.min(other)));
        // Not its messages: they can wait.
        polled.extend(self.agent.iter().map(|agent| PollFd::new(agent, PollFlags::RDHUP)));
        let agent_place = self.agent.as_ref().map(|_| 2);
        polled.extend(self.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        let left_place = polled.len();
        polled.extend(self.left.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        if self.agent.is_none() {
            for program in self.programs.values() {
                polled.extend(program.pipes.iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
                match (program.ended, program.way, &program.process) {
                    (Some((_, at)), ..) => limit_to(RESULT_AGE.saturating_sub(at.elapsed())),
                    // It hangs up when somebody has asked how it ended; not before is there something to be told.
                    (None, Way::Told, Some(process)) => polled.push(PollFd::new(process, PollFlags::empty())),
                    (None, Way::Seen, Some(process)) => polled.push(PollFd::new(process, PollFlags::IN)),
                    (None, Way::Told | Way::Seen, None) => limit_to(LOOK),
                    // SIGCHLD tells.
                    (None, Way::Traced, _) => {}
                }
            }
        }
        // Rounded up, so that it does not turn round and round within the last millisecond.
        let limit = limit.map(|limit| limit + Duration::from_millis(1));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_called = !polled[1].revents().is_empty();
        let is_agent_gone = agent_place.is_some_and(|place| !polled[place].revents().is_empty());
        let left = polled[left_place..][..self.left.len()].iter().map(|pipe| !pipe.revents().is_empty()).collect();
        let mut bytes = [0; 64];
        while matches!(rustix::io::read(&self.wake, &mut bytes), Ok(1..)) {}
        let _ = rustix::io::read(&self.call, &mut bytes);
        Ok(Waited { is_called, is_agent_gone, left })
    }

    /// Takes what the agent has said; after its last word everything is the keeper's.
    fn hear(&mut self) {
        while let Some(agent) = &self.agent {
            match receive(agent, RecvFlags::DONTWAIT) {
                Ok(Some(packet)) => {
                    if let Some(message) = packet.message() {
                        self.take(message);
                    }
                }
                Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => return,
                // Descriptors have come for which there was no place: the rest is worth the more.
                Err(error) if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {}
                // The agent ended with something unheard from here. That is told once, and before what it has said itself.
                Err(error) if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => {}
                Ok(None) | Err(_) => self.take_over(),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Streams(number, pipes) => self.programs.entry(number).or_default().pipes = pipes,
            Message::Started(number, pid, process) => {
                let program = self.programs.entry(number).or_default();
                (program.pid, program.process) = (Some(pid), process);
            }
            Message::Kept(number, stream, file) => {
                if let (Some(program), Ok(output)) = (self.programs.get_mut(&number), Output::of_file(file, false)) {
                    program.output[stream] = output;
                }
            }
            Message::Truncated(number, stream) => {
                if let Some(program) = self.programs.get_mut(&number) {
                    program.output[stream].set_truncated();
                }
            }
            Message::Ended(number) => {
                if let Some(program) = self.programs.remove(&number) {
                    self.left.extend(program.pipes.into_iter().flatten());
                }
            }
            Message::Unfetched(number, pid, exit) => {
                let program = self.programs.entry(number).or_default();
                (program.pid, program.ended) = (Some(pid), Some((Some(exit), Instant::now())));
            }
            Message::Left(pipe) => self.left.push(pipe),
        }
    }

    /// The agent is gone: what it did for its programs is done here from now on.
    fn take_over(&mut self) {
        let tells = tells_ends();
        let mut unstarted = Vec::new();
        for (number, program) in &mut self.programs {
            let Some(pid) = program.pid else {
                // It was about to start; perhaps it did, but nobody knows its number.
                unstarted.push(*number);
                continue;
            };
            for output in &mut program.output {
                // The agent has gone on writing to the file.
                output.measure();
                self.output_bytes += output.len();
            }
            if program.ended.is_none() {
                program.way = match &program.process {
                    Some(_) if tells => Way::Told,
                    Some(process) if is_ready(process.as_fd(), PollFlags::IN) => Way::Seen,
                    _ if qga_sys::end::trace(pid).is_ok() => Way::Traced,
                    _ => Way::Seen,
                };
            }
        }
        for number in unstarted {
            self.take(Message::Ended(number));
        }
        // An agent that ends in order waits for this.
        self.agent = None;
    }

    /// Reads what programs write, and notes which have ended.
    fn serve(&mut self) {
        let mut buffer = vec![0; PIPE_BYTES];
        for program in self.programs.values_mut().filter(|program| program.ended.is_none()) {
            for stream in 0..2 {
                self.output_bytes +=
                    program.read(stream, &mut buffer, OUTPUT_BYTES_MAX - self.output_bytes).unwrap_or(0);
            }
            let End::Ended(exit) = program.end() else { continue };
            for stream in 0..2 {
                // What the program itself wrote is in the pipe by now; its descendants may write for ever.
                for _ in 0..STREAM_BYTES_MAX / PIPE_BYTES {
                    let room = OUTPUT_BYTES_MAX - self.output_bytes;
                    let Some(kept) = program.read(stream, &mut buffer, room) else { break };
                    self.output_bytes += kept;
                }
            }
            self.left.extend(program.pipes.iter_mut().filter_map(Option::take));
            program.process = None;
            program.ended = Some((exit, Instant::now()));
        }
    }

    /// Reads and drops what is in those of the pipes that have something, and closes those that nobody writes to.
    fn empty_left(&mut self, ready: &[bool]) {
        let mut buffer = Vec::new();
        let mut ready = ready.iter();
        self.left.retain(|pipe| {
            if ready.next() != Some(&true) {
                return true;
            }
            buffer.resize(PIPE_BYTES, 0);
            matches!(rustix::io::read(pipe, &mut buffer[..]), Ok(1..) | Err(Errno::AGAIN | Errno::INTR))
        });
    }

    /// Says how many more pipes it can empty, if that has changed.
    fn tell_room(&mut self) {
        let Some(agent) = &self.agent else { return };
        let now = (self.left_max.saturating_sub(self.left.len()), self.left.len());
        if now != self.told {
            let mut bytes = vec![b'C'];
            bytes.extend([now.0, now.1].into_iter().flat_map(|number| (number as i32).to_le_bytes()));
            if send(agent, &bytes, &[], SendFlags::DONTWAIT).is_ok() {
                self.told = now;
            }
        }
    }

    /// Answers a later agent.
    fn meet(&mut self) {
        let Some(listener) = self.listener.as_ref().filter(|listener| is_ready(listener.as_fd(), PollFlags::IN)) else {
            return;
        };
        let Ok(visitor) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else { return };
        if rendezvous::is_of_same_user(&visitor) {
            // One that does not wait for the answer gets it the next time.
            let _ = self.answer(&visitor);
        }
    }

    fn answer(&mut self, visitor: &OwnedFd) -> io::Result<()> {
        for way in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
            sockopt::set_socket_timeout(visitor, way, Some(VISIT_PATIENCE))?;
        }
        let Some(pid) = receive(visitor, RecvFlags::empty())?.and_then(|packet| packet.asked_pid()) else {
            return Ok(());
        };
        // As long as the agent is there it answers itself.
        let is_asked_for = |program: &Program| self.agent.is_none() && program.pid == Some(pid);
        // The newest: a process id may be used again.
        let found = self.programs.iter().rev().find(|(_, program)| is_asked_for(program));
        let Some((number, program)) = found else { return send(visitor, b"-", &[], SendFlags::empty()) };
        let Some((exit, _)) = program.ended else { return send(visitor, b"r", &[], SendFlags::empty()) };
        let files = program.output.each_ref().map(Output::file);
        let [out, err] =
            [0, 1].map(|stream| [i32::from(files[stream].is_some()), i32::from(program.output[stream].is_truncated())]);
        let all = [numbers(exit), out, err].concat();
        let mut bytes = vec![b'e'];
        bytes.extend(all.into_iter().flat_map(i32::to_le_bytes));
        let files: Vec<BorrowedFd<'_>> = files.into_iter().flatten().collect();
        send(visitor, &bytes, &files, SendFlags::empty())?;
        let number = *number;
        if receive(visitor, RecvFlags::empty())?.and_then(|packet| packet.kind()) == Some(b'k')
            && let Some(program) = self.programs.remove(&number)
        {
            self.output_bytes -= program.output.iter().map(Output::len).sum::<usize>();
        }
        Ok(())
    }
}

impl Program {
    /// Keeps what a pipe holds, up to the limits; how much. None if it holds nothing now.
    fn read(&mut self, stream: usize, buffer: &mut [u8], room: usize) -> Option<usize> {
        let pipe = self.pipes[stream].as_ref()?;
        match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(count @ 1..) => {
                let output = &mut self.output[stream];
                if output.shared().is_err() {
                    output.set_truncated();
                    return Some(0);
                }
                Some(output.keep(&buffer[..count], room))
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok(_) | Err(_) => {
                self.pipes[stream] = None;
                None
            }
        }
    }

    /// Whether and how it has ended.
    fn end(&mut self) -> End {
        let Some(pid) = self.pid else { return End::Runs };
        let seen = |is_gone: bool| if is_gone { End::Ended(None) } else { End::Runs };
        if self.way == Way::Traced {
            match qga_sys::end::attend(pid) {
                Ok(None) => return End::Runs,
                Ok(Some(status)) => return End::Ended(Some(exit(status))),
                // Another of its threads has executed a program: the process goes on, untraced.
                Err(_) if qga_sys::end::trace(pid).is_ok() => return End::Runs,
                Err(_) => self.way = Way::Seen,
            }
        }
        let Some(process) = &self.process else {
            return seen(Pid::from_raw(pid).is_none_or(|pid| test_kill_process(pid) == Err(Errno::SRCH)));
        };
        match self.way {
            Way::Told => match qga_sys::end::told(process.as_fd()) {
                Ok(Some(status)) => End::Ended(Some(exit(status))),
                Ok(None) => seen(is_ready(process.as_fd(), PollFlags::empty())),
                Err(_) => {
                    self.way = Way::Seen;
                    End::Runs
                }
            },
            _ => seen(is_ready(process.as_fd(), PollFlags::IN)),
        }
    }
}

/// An end as wait(2) tells it.
fn exit(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Code(status >> 8 & 0xff),
        signal => Exit::Signal(signal),
    }
}

fn is_ready(descriptor: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut polled = [PollFd::new(&descriptor, what)];
    matches!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
}

/// Whether this kernel tells how a process has ended that is no child.
fn tells_ends() -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= TELLING_LINUX,
        _ => false,
    }
}

/// Allows itself more descriptors; how many pipes it can empty.
fn raise_limit() -> usize {
    let wanted = Rlimit { current: Some(DESCRIPTORS_MAX), maximum: Some(DESCRIPTORS_MAX) };
    let before = getrlimit(Resource::Nofile);
    if before.current.is_some_and(|current| current < DESCRIPTORS_MAX) && setrlimit(Resource::Nofile, wanted).is_err() {
        let allowed = Rlimit { current: before.maximum, maximum: before.maximum };
        let _ = setrlimit(Resource::Nofile, allowed);
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
    (limit - DESCRIPTORS_KEPT.min(limit / 2)) as usize
}
