//! The guardian's own process: holds the descriptors of what is frozen and thaws
//!
//! * a little after the deadline, for then the agent should have done it and has not;
//! * when the agent is gone and no other one has come for a while, or the service manager ends what is left of it.
//!
//! It leaves the agent's control group, so that a service manager that cleans up after a killed agent does not end it
//! too; where it may not, it thaws before it is ended. It writes nothing before the thaw.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::super::apply;
use super::super::prepare::{Opened, in_time};
use super::super::state_file::{self, Marker};
use super::super::{meeting, ownership, thawed_early};
use super::messages::{Deadline, Message, receive, send};
use crate::freeze::machine::{Phase, Stage, may_thaw};
use crate::freeze::ownership::Ownership;
use crate::freeze::recovery::finish_hooks;
use crate::process::keeper;
use crate::system::log::audit;
use crate::system::root::Root;

/// The argument that makes the agent's program a guardian.
pub const ARGUMENT: &str = "--guard-freeze";

/// How long after the deadline the agent may still be about to thaw.
const LATE: Duration = Duration::from_secs(15);
/// How long a killed agent may take to come again, and to serve.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(60);
/// How long an agent that was told to end together with the guardian may take to thaw.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How long the state file may take to be read.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);
/// The root of the control groups, in the places where it may be.
const CONTROL_GROUPS: [&str; 3] =
    ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/systemd/cgroup.procs"];

/// Guards what the agent on standard input hands over, until it is thawed.
#[must_use]
pub fn main() -> ExitCode {
    let Ok(agent) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    match Guard::prepare(agent).and_then(Guard::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Guard {
    /// The agent; none after it has gone.
    agent: Option<OwnedFd>,
    /// Where a later agent comes.
    listener: Option<OwnedFd>,
    held: Vec<Opened>,
    deadline: Deadline,
    stage: Stage,
    /// The identity of the freeze.
    id: String,
    /// None once the freeze has ended but for what is left in `held`.
    marker: Option<PathBuf>,
    /// When the agent was found gone; until another one has come and serves.
    orphaned_at: Option<Duration>,
    /// When the process was told to end.
    ended_at: Option<Duration>,
    ended: Arc<AtomicBool>,
    wake: UnixStream,
}

impl Guard {
    fn prepare(agent: OwnedFd) -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&ended))?;
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        let mut guard = Self {
            agent: None,
            listener: None,
            held: Vec::new(),
            deadline: Deadline::AtWork(state_file::now()),
            stage: Stage::AtWork,
            id: String::new(),
            marker: None,
            orphaned_at: None,
            ended_at: None,
            ended,
            wake,
        };
        while guard.marker.is_none() {
            let Some(message) = receive(&agent)? else { return Err(Errno::PIPE.into()) };
            guard.take(message);
        }
        // Each of these makes it safer; none is needed.
        let _ = CONTROL_GROUPS.iter().any(|file| Root::host().order(file, "0").is_ok());
        let _ = Root::host().order("/proc/self/oom_score_adj", "-1000");
        let _ = Root::host().order("/proc/self/comm", "qemu-ga-guard");
        let _ = std::env::set_current_dir("/");
        let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE);
        send(&agent, &Message::Ready)?;
        guard.agent = Some(agent);
        Ok(guard)
    }

    /// Does what the agent says. True if there is nothing left to do.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Listener(listener) => self.listener = Some(listener),
            Message::Mount(opened) => {
                // Where that cannot be had it is held as it is.
                let _ = opened.held.put_away();
                self.held.push(opened);
            }
            Message::Forget(device) => self.held.retain(|opened| opened.device != device),
            Message::Armed(id, marker) => (self.id, self.marker) = (id, Some(marker)),
            Message::Deadline(deadline) => {
                self.deadline = deadline;
                self.stage = match deadline {
                    Deadline::AtWork(_) => Stage::AtWork,
                    Deadline::Frozen(_) => Stage::Frozen,
                };
            }
            Message::Ending(phase) => self.stage = Stage::Ending(phase),
            Message::Ready => self.orphaned_at = None,
            Message::Remainder => {
                (self.marker, self.listener, self.deadline) = (None, None, Deadline::Frozen(None));
            }
            Message::Released => return true,
        }
        false
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            // What the agent has said comes first: a process that was stopped finds its time over when it goes on.
            if self.is_released() {
                return Ok(());
            }
            self.meet();
            let thaw_at = self.thaw_at();
            let now = state_file::now();
            if thaw_at.is_some_and(|at| at <= now) {
                self.thaw();
                return Ok(());
            }
            self.wait(thaw_at.map(|at| at.saturating_sub(now)))?;
            if self.ended.swap(false, Ordering::Relaxed) && self.ended_at.is_none() {
                self.ended_at = Some(state_file::now());
            }
        }
    }

    /// When it has to thaw, as things are.
    fn thaw_at(&self) -> Option<Duration> {
        let has_agent = self.agent.is_some();
        let late = self.deadline.at().map(|at| at + if has_agent { LATE } else { Duration::ZERO });
        let ended = self.ended_at.map(|at| at + if has_agent { END_PATIENCE } else { Duration::ZERO });
        // What is left of a freeze is of no use to anybody.
        let patience = match &self.marker {
            Some(_) => self.stage.patience_without_agent(ORPHAN_PATIENCE),
            None => Duration::ZERO,
        };
        let orphaned = self.orphaned_at.filter(|_| !has_agent || self.stage == Stage::Frozen).map(|at| at + patience);
        [late, ended, orphaned].into_iter().flatten().min()
    }

    fn wait(&mut self, patience: Option<Duration>) -> io::Result<()> {
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(
            [&self.agent, &self.listener].into_iter().flatten().map(|socket| PollFd::new(socket, PollFlags::IN)),
        );
        // Rounded up, so that it does not turn round and round within the last millisecond.
        let patience = patience.map(|patience| patience + Duration::from_millis(1));
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        match poll(&mut polled, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut bytes = [0; 64];
        while matches!(rustix::io::read(&self.wake, &mut bytes), Ok(1..)) {}
        Ok(())
    }

    /// Whether the agent lets it go. Notes what else it says, and when it is gone.
    fn is_released(&mut self) -> bool {
        while let Some(agent) = &self.agent
            && is_readable(agent)
        {
            if let Ok(Some(message)) = receive(agent) {
                if self.take(message) {
                    return true;
                }
            } else {
                self.agent = None;
                // One that came and did not stay is not counted anew.
                self.orphaned_at.get_or_insert_with(state_file::now);
            }
        }
        false
    }

    /// Hands what it holds to an agent that has come after one that is gone: it has the lock of the state directory, so
    /// the one before it is gone for sure.
    fn meet(&mut self) {
        if !self.stage.is_handed_over() {
            return;
        }
        let Some(listener) = self.listener.as_ref().filter(|listener| is_readable(listener)) else { return };
        let Ok(visitor) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else { return };
        let is_ours = crate::system::rendezvous::is_of_same_user(&visitor);
        let (true, Some(marker)) = (is_ours, &self.marker) else { return };
        let told = [Message::Deadline(self.deadline), Message::Armed(self.id.clone(), marker.clone())];
        let messages = self.held.iter().cloned().map(Message::Mount).chain(told);
        if messages.map(|message| send(&visitor, &message)).collect::<io::Result<Vec<()>>>().is_ok() {
            self.agent = Some(visitor);
        }
    }

    /// Thaws, tells it to the agent that comes next, and calls the hooks that the agent did not.
    fn thaw(self) {
        let Some(path) = self.marker else {
            apply::thaw(self.held, false);
            return;
        };
        // What cannot be read in time does not keep anything frozen.
        let (file, early) = (path.clone(), thawed_early(&path));
        let look = move || (Marker::open(&file), Marker::open(&early).map(|(told, _)| told.id));
        let (found, told) = in_time("read the state file", LOOK_PATIENCE, &|| Ok(()), look).unwrap_or((None, None));
        let known = found.as_ref().map(|(marker, _)| marker.id.as_str());
        if !may_thaw(&self.id, known, told.as_deref()) {
            return;
        }
        let thawed = apply::thaw(self.held, false);
        let has_agent = self.agent.is_some();
        let phase = self.stage.ended_by_guardian(has_agent, thawed.count > 0);
        let is_clean = thawed.failed.is_empty();
        if let Some((marker, file)) = &found
            && is_clean
            && marker.phase == Phase::Frozen
            && file.set_phase(phase).is_ok()
            && matches!(phase, Phase::Early(_))
        {
            let _ = std::fs::rename(&path, thawed_early(&path));
        }
        let _ = crate::system::log::open(None, false);
        audit(format_args!(
            "the freeze was ended by its guardian{}: {} file systems thawed, {} failed",
            if let Phase::Early(why) = phase { format!(", because {}", why.text()) } else { String::new() },
            thawed.count,
            thawed.failed.len()
        ));
        let _ = std::fs::remove_file(meeting(&path));
        // An agent that is there calls its hooks itself; so does one that has come meanwhile, and has the lock.
        drop((self.listener, self.agent));
        if !has_agent
            && is_clean
            && let Ok(_ownership) = Ownership::take(&ownership(&path), &path)
        {
            keeper::turn_on(None);
            finish_hooks(&path, &path, true);
            finish_hooks(&path, &thawed_early(&path), false);
        }
    }
}

fn is_readable(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
}
