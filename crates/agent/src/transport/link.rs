//! Bytes to and from one client, over whatever leads to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vsock::VsockStream;

/// Bytes to and from one client.
pub struct Link {
    stream: Stream,
    opened: Instant,
    /// When bytes last came, in milliseconds since `opened`.
    active: AtomicU64,
    /// The client waits for an answer.
    busy: AtomicBool,
    /// Nobody took what was written to a port: whoever sends next is another host.
    deserted: AtomicBool,
}

/// What leads to a client.
pub enum Stream {
    /// A connection of a unix socket.
    Unix(UnixStream),
    /// A connection of a vsock socket.
    Vsock(VsockStream),
    /// A port, which does not block.
    Port(OwnedFd),
}

impl From<UnixStream> for Link {
    fn from(stream: UnixStream) -> Self {
        Self::new(Stream::Unix(stream))
    }
}

#[cfg(test)]
impl Link {
    /// Any descriptor that does not block, as the port of a virtual machine.
    pub fn port(descriptor: OwnedFd) -> Self {
        Self::new(Stream::Port(descriptor))
    }
}

impl Link {
    /// A link that nothing has come through yet.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            opened: Instant::now(),
            active: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            deserted: AtomicBool::new(false),
        }
    }

    /// For poll(2) and the like.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Vsock(stream) => stream.as_fd(),
            Stream::Port(port) => port.as_fd(),
        }
    }

    /// Waits for bytes. 0 means that the client has stopped sending or is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Stream::Port(port) = &self.stream {
                wait_for(port.as_fd(), PollFlags::IN)?;
                if self.deserted.swap(false, Ordering::Relaxed) {
                    return Ok(0);
                }
            }
            match rustix::io::read(self.as_fd(), &mut *buffer) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // A client that left with a reply unread.
                Err(Errno::CONNRESET | Errno::PIPE) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether nobody is at the other end of a port. The kernel hands over the next host's first bytes before it tells,
    /// from a queue of its own, that the last one has left and this one come: a hang-up counts only if it lasts.
    pub fn stays_hung_up(&self) -> bool {
        // Looks, not time: after a pause of the machine the kernel has had no time to tell.
        const LOOKS: u32 = 50;
        const PAUSE: Duration = Duration::from_millis(5);
        for _ in 0..LOOKS {
            if !self.is_hung_up() {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        self.is_hung_up()
    }

    /// Writes all of it; waits as long as the client is there and takes nothing.
    /// Stops between two parts when `is_wanted` says no. Returns how many bytes are out, and why not all of them.
    pub fn write_all(&self, bytes: &[u8], is_wanted: &dyn Fn() -> bool) -> (usize, io::Result<()>) {
        let mut written = 0;
        let ended = self.write_to_client(bytes, &mut written, is_wanted);
        if ended.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.deserted.store(true, Ordering::Relaxed);
        }
        (written, ended)
    }

    fn write_to_client(&self, bytes: &[u8], written: &mut usize, is_wanted: &dyn Fn() -> bool) -> io::Result<()> {
        let is_port = matches!(self.stream, Stream::Port(_));
        // A port takes bytes without a host as well, and would give them to the next one.
        if is_port && self.stays_hung_up() {
            return Err(Errno::PIPE.into());
        }
        while *written < bytes.len() {
            if !is_wanted() {
                return Err(Errno::CANCELED.into());
            }
            match rustix::io::write(self.as_fd(), &bytes[*written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let hung_up = wait_for(self.as_fd(), PollFlags::OUT)?.contains(PollFlags::HUP);
                    if hung_up && (!is_port || self.stays_hung_up()) {
                        return Err(Errno::PIPE.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the client is wholly gone: it neither sends nor receives any more.
    pub fn is_hung_up(&self) -> bool {
        let fd = self.as_fd();
        let mut polled = [PollFd::new(&fd, PollFlags::empty())];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_err() || polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Whether bytes, or the end of them, come within this time.
    pub fn is_readable_within(&self, time: Duration) -> io::Result<bool> {
        let fd = self.as_fd();
        let mut polled = [PollFd::new(&fd, PollFlags::IN)];
        let end = Instant::now() + time;
        let mut left = time;
        loop {
            let limit = rustix::time::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut polled, Some(&limit)) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => left = end.saturating_duration_since(Instant::now()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the client may stop sending and still wait for replies.
    pub fn can_be_half_closed(&self) -> bool {
        !matches!(self.stream, Stream::Port(_))
    }

    /// Says whether the client waits for an answer.
    pub fn set_busy(&self, is_busy: bool) {
        self.busy.store(is_busy, Ordering::Relaxed);
    }

    /// Whether the client waits for an answer.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Notes that bytes have come.
    pub fn note_activity(&self) {
        self.active.store((self.opened.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
    }

    /// Whether bytes have ever come.
    pub fn was_used(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    /// Milliseconds since bytes last came.
    pub fn silent_ms(&self) -> u64 {
        (self.opened.elapsed().as_millis() as u64).saturating_sub(self.active.load(Ordering::Relaxed))
    }

    /// Ends the connection; whoever waits on it wakes up.
    pub fn shut_down(&self) {
        // Fails only if the client has done it already.
        let _ = rustix::net::shutdown(self.as_fd(), rustix::net::Shutdown::Both);
    }
}

/// Waits until the descriptor is ready in one of these ways, or hung up or broken.
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(&fd, flags)];
    loop {
        match poll(&mut polled, None) {
            Ok(_) => return Ok(polled[0].revents()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
