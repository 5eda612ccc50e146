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

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions, waitpid};

use self::messages::{Message, receive, send};
use super::opening::Opened;

/// How long the guardian may take to say that it is ready, or to hand over.
const ANSWER_PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// How long one that was let go may take to end.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A guardian that watches over frozen file systems.
#[derive(Debug)]
pub struct Guardian {
    socket: OwnedFd,
    /// Unless another agent has started it.
    pid: Option<Pid>,
}

impl Guardian {
    /// Starts one for what is about to be frozen. It thaws a little after the deadline, or if this process ends and no
    /// other agent comes to the meeting point.
    pub fn start(
        opened: &[Opened],
        deadline: Option<Duration>,
        marker: &Path,
        meeting: Option<&Path>,
    ) -> io::Result<Self> {
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let arguments = [c"qemu-ga".to_owned(), CString::new(process::ARGUMENT)?];
        let program = qga_sys::spawn::Program {
            file: c"/proc/self/exe",
            arguments: &arguments,
            environment: &[],
            streams: [theirs.as_fd(), nothing.as_fd(), nothing.as_fd()],
        };
        let guardian = Self { pid: Pid::from_raw(program.start()?), socket };
        drop(theirs);
        // Without a meeting point an agent that comes later opens the file systems anew.
        if let Some(Ok(listener)) = meeting.map(listen) {
            send(&guardian.socket, &Message::Listener(listener))?;
        }
        for opened in opened {
            send(&guardian.socket, &Message::Mount(opened.clone()))?;
        }
        send(&guardian.socket, &Message::Armed { deadline, marker: marker.to_owned() })?;
        match guardian.answer()? {
            Message::Ready => Ok(guardian),
            other => Err(io::Error::other(format!("it answers {other:?}"))),
        }
    }

    /// Finds the one that an agent before this one has started, and gets what is frozen from it.
    pub fn take_over(meeting: &Path) -> io::Result<(Self, Vec<Opened>)> {
        let socket = socket()?;
        rustix::net::connect(&socket, &address(meeting)?.1)?;
        let guardian = Self { socket, pid: None };
        let mut opened = Vec::new();
        loop {
            match guardian.answer()? {
                Message::Mount(mount) => opened.push(mount),
                Message::Armed { .. } => return Ok((guardian, opened)),
                other => return Err(io::Error::other(format!("it answers {other:?}"))),
            }
        }
    }

    /// Lets it go: everything is thawed.
    pub fn release(self) {
        if let Err(error) = send(&self.socket, &Message::Released) {
            log::debug!("the guardian of the freeze is gone: {error}");
        }
        drop(self.socket);
        let Some(pid) = self.pid else { return };
        let started = std::time::Instant::now();
        while started.elapsed() < END_PATIENCE {
            if !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        log::warn!("the guardian of the freeze, process {}, does not end", pid.as_raw_pid());
    }

    fn answer(&self) -> io::Result<Message> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut polled, Some(&ANSWER_PATIENCE))? == 0 {
            return Err(Errno::TIMEDOUT.into());
        }
        receive(&self.socket)?.ok_or_else(|| Errno::PIPE.into())
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The address of a socket file, however long its path is, and what must stay open while it is used.
fn address(path: &Path) -> io::Result<(File, SocketAddrUnix)> {
    use std::os::fd::AsRawFd as _;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
    let directory = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, SocketAddrUnix::new(&short)?))
}

/// Makes the meeting point, for root alone.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket()?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let (_directory, address) = address(path)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}
