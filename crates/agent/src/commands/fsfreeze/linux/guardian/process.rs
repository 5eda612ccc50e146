//! The guardian's own process: holds the descriptors of what is frozen and thaws
//!
//! * a little after the deadline, for then the agent should have done it and has not;
//! * when the agent is gone and no other one has come for a while, or the service manager ends what is left of it.
//!
//! It leaves the agent's control group, so that a service manager that cleans up after a killed agent does not end it
//! too; where it may not, it thaws before it is ended. It writes nothing before the thaw.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::super::holding;
use super::super::marker::{self, Marker};
use super::super::opening::Opened;
use super::super::thawed_early;
use super::messages::{Message, receive, send};
use crate::commands::fsfreeze::hooks::{Hooks, Ran};
use crate::log::audit;
use crate::root::Root;

/// The argument that makes the agent's program a guardian.
pub const ARGUMENT: &str = "--guard-freeze";

/// How long after the deadline the agent may still be about to thaw.
const LATE: Duration = Duration::from_secs(15);
/// How long a killed agent may take to come again.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(60);
/// How long an agent that was told to end together with the guardian may take to thaw.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How long a hook may take.
const HOOK_PATIENCE: Duration = Duration::from_secs(60);
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
    deadline: Option<Duration>,
    marker: PathBuf,
    /// When the agent was found gone.
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
            deadline: None,
            marker: PathBuf::new(),
            orphaned_at: None,
            ended_at: None,
            ended,
            wake,
        };
        loop {
            match receive(&agent)? {
                Some(Message::Listener(listener)) => guard.listener = Some(listener),
                Some(Message::Mount(opened)) => guard.held.push(opened),
                Some(Message::Armed { deadline, marker }) => {
                    (guard.deadline, guard.marker) = (deadline, marker);
                    break;
                }
                Some(_) => return Err(Errno::BADMSG.into()),
                None => return Err(Errno::PIPE.into()),
            }
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

    fn run(mut self) -> io::Result<()> {
        loop {
            let thaw_at = self.thaw_at();
            let now = marker::now();
            if thaw_at.is_some_and(|at| at <= now) {
                self.thaw();
                return Ok(());
            }
            self.wait(thaw_at.map(|at| at.saturating_sub(now)))?;
            if self.ended.swap(false, Ordering::Relaxed) && self.ended_at.is_none() {
                self.ended_at = Some(marker::now());
            }
            if self.is_released() {
                return Ok(());
            }
            self.meet();
        }
    }

    /// When it has to thaw, as things are.
    fn thaw_at(&self) -> Option<Duration> {
        let late = self.deadline.map(|deadline| deadline + if self.agent.is_some() { LATE } else { Duration::ZERO });
        let ended = self.ended_at.map(|at| if self.agent.is_some() { at + END_PATIENCE } else { at });
        let orphaned = self.orphaned_at.map(|at| at + ORPHAN_PATIENCE);
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

    /// Whether the agent lets it go. Notes when the agent is gone.
    fn is_released(&mut self) -> bool {
        let Some(agent) = &self.agent else { return false };
        let mut polled = [PollFd::new(agent, PollFlags::IN)];
        if !matches!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..)) {
            return false;
        }
        if matches!(receive(agent), Ok(Some(Message::Released))) {
            return true;
        }
        self.agent = None;
        self.orphaned_at = Some(marker::now());
        false
    }

    /// Hands what it holds to an agent that has come after one that is gone.
    fn meet(&mut self) {
        let Some(listener) = &self.listener else { return };
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        if !matches!(poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..)) {
            return;
        }
        let Ok(visitor) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else { return };
        let is_ours = rustix::net::sockopt::socket_peercred(&visitor)
            .is_ok_and(|visitor| visitor.uid == rustix::process::geteuid());
        // One that is still there keeps what it has.
        if !is_ours || self.agent.is_some() {
            return;
        }
        let armed = Message::Armed { deadline: self.deadline, marker: self.marker.clone() };
        let messages = self.held.iter().cloned().map(Message::Mount).chain([armed]);
        if messages.map(|message| send(&visitor, &message)).collect::<io::Result<Vec<()>>>().is_ok() {
            self.agent = Some(visitor);
            self.orphaned_at = None;
        }
    }

    /// Thaws, tells it to the agent that comes next, and runs the hooks that the agent did not.
    fn thaw(self) {
        let thawed = holding::thaw(self.held, false);
        let noted = File::open(&self.marker).ok().and_then(|file| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, 4 << 20), &mut bytes).ok()?;
            Marker::parse(&bytes)
        });
        if thawed.count > 0 {
            let _ = std::fs::rename(&self.marker, thawed_early(&self.marker));
        }
        let _ = crate::log::open(None, false);
        audit(format_args!(
            "the freeze was ended by its guardian, {}: {} file systems thawed, {} failed",
            if self.agent.is_some() { "as the agent did not do it" } else { "as the agent is gone" },
            thawed.count,
            thawed.failed.len()
        ));
        // An agent that is there runs its hooks itself.
        if self.agent.is_none()
            && let Some(marker) = noted
        {
            let hooks = Hooks::new(None, None, HOOK_PATIENCE);
            let _ = hooks.thaw(&Root::host(), Ran::of(marker.hooks));
        }
        remove_meeting(&self.marker);
    }
}

/// Removes the socket beside the marker.
fn remove_meeting(marker: &Path) {
    let _ = std::fs::remove_file(super::super::meeting(marker));
}
