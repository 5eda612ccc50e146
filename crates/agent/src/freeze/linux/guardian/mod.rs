//! The guardian: a process of its own that thaws when the agent no longer can. This side starts it, hands it what is
//! frozen, and lets it go; what it does is in [`process`].
//!
//! It is started before anything is frozen, from the agent's own file, and gets every descriptor before the freeze of
//! it begins. An agent that comes after one that was killed finds it by a socket in the state directory and gets all
//! descriptors from it.

mod messages;
pub mod process;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::Signal;

pub use self::messages::Deadline;
use self::messages::{Message, receive, send};
use super::prepare::Opened;
use crate::freeze::machine::Phase;
use crate::process::child::{self, Child};
use crate::system::rendezvous;

/// How long the guardian may take to take a message, to say that it is ready, or to hand over.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
/// How long one that was let go may take to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A guardian that watches over frozen file systems.
#[derive(Debug)]
pub struct Guardian {
    socket: OwnedFd,
    /// Unless another agent has started it.
    process: Option<Child>,
}

/// What a guardian has handed over.
#[derive(Debug)]
pub struct TakenOver {
    /// The guardian, which goes on.
    pub guardian: Guardian,
    /// The identity of its freeze.
    pub id: String,
    /// What is frozen.
    pub opened: Vec<Opened>,
    /// Until when.
    pub deadline: Deadline,
}

/// What is at the meeting point.
#[derive(Debug)]
pub enum Met {
    /// A guardian whose agent is gone.
    Guardian(TakenOver),
    /// A guardian that has ended its freeze meanwhile.
    Ended,
    /// Nobody.
    Nobody,
}

impl Guardian {
    /// Starts one for what is about to be frozen. Until it learns a [`Deadline::Frozen`] it takes the freeze for one that
    /// is still at work.
    pub fn start(
        id: &str,
        opened: &[Opened],
        deadline: Deadline,
        marker: &Path,
        meeting: Option<&Path>,
    ) -> io::Result<Self> {
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let arguments = [c"qemu-ga".to_owned(), CString::new(process::ARGUMENT)?];
        // Hooks that it may have to run find what they would find with the agent.
        let process = child::start_own_file(&arguments, [theirs.as_fd(), nothing.as_fd(), nothing.as_fd()])?;
        let guardian = Self::behind(socket, Some(process))?;
        drop(theirs);
        match guardian.hand_over(id, opened, deadline, marker, meeting) {
            Ok(()) => Ok(guardian),
            Err(error) => {
                guardian.give_up();
                Err(error)
            }
        }
    }

    fn behind(socket: OwnedFd, process: Option<Child>) -> io::Result<Self> {
        for way in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
            sockopt::set_socket_timeout(&socket, way, Some(ANSWER_PATIENCE))?;
        }
        Ok(Self { socket, process })
    }

    fn hand_over(
        &self,
        id: &str,
        opened: &[Opened],
        deadline: Deadline,
        marker: &Path,
        meeting: Option<&Path>,
    ) -> io::Result<()> {
        // Without a meeting point an agent that comes later opens the file systems anew.
        if let Some(Ok(listener)) = meeting.map(rendezvous::listen) {
            send(&self.socket, &Message::Listener(listener))?;
        }
        for opened in opened {
            send(&self.socket, &Message::Mount(opened.clone()))?;
        }
        send(&self.socket, &Message::Deadline(deadline))?;
        send(&self.socket, &Message::Armed(id.to_owned(), marker.to_owned()))?;
        match receive(&self.socket)? {
            Some(Message::Ready) => Ok(()),
            other => Err(io::Error::other(format!("it answers {other:?}"))),
        }
    }

    /// Looks for the one that an agent before this one has started, and gets what is frozen from it. One whose freeze no
    /// host relies on ends it at once, and is waited for.
    pub fn meet(meeting: &Path) -> Met {
        let connected = rendezvous::come(meeting, ANSWER_PATIENCE).and_then(|socket| Self::behind(socket, None));
        let Ok(guardian) = connected else { return Met::Nobody };
        let (mut opened, mut deadline) = (Vec::new(), Deadline::Frozen(None));
        loop {
            match receive(&guardian.socket) {
                Ok(Some(Message::Mount(mount))) => opened.push(mount),
                Ok(Some(Message::Deadline(told))) => deadline = told,
                Ok(Some(Message::Armed(id, _))) => {
                    return Met::Guardian(TakenOver { guardian, id, opened, deadline });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    log::warn!("the guardian of an earlier freeze does not answer");
                    return Met::Nobody;
                }
                _ => return Met::Ended,
            }
        }
    }

    /// The agent that has taken over serves its host.
    pub fn settle(&self) {
        self.tell(&Message::Ready);
    }

    /// The host knows of the freeze: of these file systems, until this moment.
    pub fn confirm(&self, opened: &[Opened], frozen: &[Opened], deadline: Option<Duration>) {
        self.forget_but(opened, frozen);
        self.tell(&Message::Deadline(Deadline::Frozen(deadline)));
    }

    /// The freeze ends now, in this way.
    pub fn announce(&self, phase: Phase) {
        self.tell(&Message::Ending(phase));
    }

    /// The freeze has ended, but for these, which are to be thawed as soon as this process ends.
    pub fn keep_only(&self, opened: &[Opened], left: &[Opened]) {
        self.forget_but(opened, left);
        self.tell(&Message::Remainder);
    }

    fn forget_but(&self, opened: &[Opened], kept: &[Opened]) {
        for opened in opened.iter().filter(|opened| !kept.iter().any(|kept| kept.device == opened.device)) {
            self.tell(&Message::Forget(opened.device));
        }
    }

    fn tell(&self, message: &Message) {
        if let Err(error) = send(&self.socket, message) {
            log::warn!("the guardian of the freeze is gone: {error}");
        }
    }

    /// Lets it go: everything is thawed.
    pub fn release(self) {
        let _ = send(&self.socket, &Message::Released);
        self.wait_for_its_end();
    }

    /// It does not do what it should.
    fn give_up(self) {
        if let Some(process) = &self.process {
            process.signal(Signal::KILL);
        }
        self.wait_for_its_end();
    }

    fn wait_for_its_end(self) {
        let Some(process) = self.process else {
            // One that another agent has started closes its end when it ends.
            let _ = sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(END_PATIENCE));
            let _ = receive(&self.socket);
            return;
        };
        drop(self.socket);
        for is_killed in [false, true] {
            if is_killed {
                // It has nothing to do any more, and must not be there when something else is frozen.
                log::warn!("the guardian of the freeze, process {}, does not end: it is killed", process.pid());
                process.signal(Signal::KILL);
            }
            let started = std::time::Instant::now();
            while started.elapsed() < END_PATIENCE {
                if !matches!(process.ended(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
