//! virtio-serial and isa-serial: one port, one host, which may leave and come back.
//!
//! A host that has left is waited for without polling it awake: the kernel tells when it is back. A port that is gone
//! (unplugged, hung up) is looked for until it is there again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{self, OptionalActions};

use super::line_writer::{LineWriter, ServeClient};
use super::link::{Link, Stream};
use crate::system::error::cause_text;
use crate::system::root::Root;

/// How often a port that is gone is looked for.
const SEARCH_INTERVAL: Duration = Duration::from_millis(250);
/// The same for a port that goes as soon as it is there, without a byte.
const SEARCH_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// How often an absent host is looked for where the kernel does not tell that it is back.
const HOST_INTERVAL: Duration = Duration::from_secs(1);
/// Where udev makes a link for each virtio port, named after the port.
const LINK_DIRECTORY: &str = "/dev/virtio-ports";
/// What the kernel says of each virtio port, with or without udev.
const PORTS: &str = "/sys/class/virtio-ports";

/// Which kind of port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A virtio-serial port: knows whether the host is there.
    Virtio,
    /// A serial line.
    Serial,
}

/// A port that is open, or waited for.
pub struct Device {
    kind: Kind,
    path: PathBuf,
    port: Option<OwnedFd>,
}

impl Device {
    /// Opens the port at `path`; a virtio port also by its name where udev has made no link. With `may_wait`, a port that
    /// cannot be opened yet is waited for by [`Self::serve`].
    pub fn open(kind: Kind, path: &Path, may_wait: bool) -> io::Result<Self> {
        let port = match open(kind, path) {
            Ok(port) => Some(port),
            Err(error) if may_wait => {
                log::warn!("waiting for channel '{}': {}", path.display(), cause_text(&error));
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { kind, path: path.to_owned(), port })
    }

    /// Serves whoever is at the other end, for ever.
    pub fn serve(self, serve_client: &ServeClient) -> ! {
        let Self { kind, path, port } = self;
        let mut opened = port;
        // What has been said of a port that comes and goes without a byte is not said again.
        let mut is_news = true;
        let mut pause = SEARCH_INTERVAL;
        loop {
            let port = opened.take().unwrap_or_else(|| search(kind, &path, pause));
            let link = Arc::new(Link::new(Stream::Port(port)));
            let lost = serve_until_lost(kind, &link, serve_client);
            let was_used = link.was_used();
            if was_used || is_news {
                let shown = path.display();
                log::warn!("channel '{shown}' is lost: {}; waiting until it is back", cause_text(&lost));
            }
            is_news = was_used;
            pause = if was_used { SEARCH_INTERVAL } else { (pause * 2).min(SEARCH_INTERVAL_MAX) };
        }
    }
}

/// Waits until the port can be opened again.
fn search(kind: Kind, path: &Path, pause: Duration) -> OwnedFd {
    loop {
        std::thread::sleep(pause);
        match open(kind, path) {
            Ok(port) => return port,
            Err(error) => log::debug!("channel '{}': {}", path.display(), cause_text(&error)),
        }
    }
}

/// Serves one host after the other until the port itself fails.
fn serve_until_lost(kind: Kind, link: &Arc<Link>, serve_client: &ServeClient) -> io::Error {
    let line_writer = LineWriter::new(Arc::clone(link));
    let mut left_behind = vec![0; 4096];
    loop {
        let ended = match kind {
            Kind::Virtio => wait_for_host(link, &mut left_behind)
                .and_then(|count| serve_client(&line_writer, &left_behind[..count])),
            // The end of a serial line is a hang-up: the port has to be opened anew.
            Kind::Serial => serve_client(&line_writer, &[]).and(Err(Errno::IO.into())),
        };
        if let Err(error) = ended {
            return error;
        }
        log::info!("the host has closed the channel");
    }
}

/// Waits until the host has opened its end of a virtio port, or has left something behind: what it sent before it left
/// is still to be done, though nobody hears the reply. Returns how many bytes that is.
fn wait_for_host(link: &Link, left_behind: &mut [u8]) -> io::Result<usize> {
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    // Edge-triggered: an absent host is a standing hang-up, of which one wants to hear once, and then of its end. OUT
    // belongs to it because that is what the kernel reports when a host comes that sends nothing yet.
    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    let watched = epoll::add(&watch, link.as_fd(), epoll::EventData::new_u64(0), flags);
    let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 1];
    let interval = rustix::time::Timespec { tv_sec: HOST_INTERVAL.as_secs() as i64, tv_nsec: 0 };
    while link.is_hung_up() {
        // An unplugged port hangs up as well; reading tells.
        match rustix::io::read(link.as_fd(), &mut *left_behind) {
            Ok(0) | Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(count) => return Ok(count),
            Err(error) => return Err(error.into()),
        }
        if watched.is_err() {
            std::thread::sleep(HOST_INTERVAL);
        } else if let Err(error) = epoll::wait(&watch, &mut events, Some(&interval))
            && error != Errno::INTR
        {
            return Err(error.into());
        }
    }
    if watched.is_err() {
        // Not a port: a file or a device that is always at its end.
        std::thread::sleep(HOST_INTERVAL);
    }
    Ok(0)
}

fn open(kind: Kind, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let port = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) if kind == Kind::Virtio => {
            let Some(port) = port_by_name(path) else { return Err(Errno::NOENT.into()) };
            rustix::fs::open(port, flags, Mode::empty())?
        }
        opened => opened?,
    };
    if kind == Kind::Serial {
        set_raw(&port);
    }
    Ok(port)
}

/// The device of the virtio port whose link would be at `path`.
fn port_by_name(path: &Path) -> Option<PathBuf> {
    let name = path.strip_prefix(LINK_DIRECTORY).ok()?.to_str()?;
    let ports = Root::host().list(PORTS).ok()?;
    let port = ports.into_iter().find(|port| {
        // A port that goes away meanwhile is not the one.
        Root::host().read_text(Path::new(PORTS).join(port).join("name")).is_ok_and(|found| found == name)
    })?;
    Some(Path::new("/dev").join(port))
}

/// Makes a serial line carry bytes as they are. What is no terminal is left alone, as the original does.
///
/// The speed: the default of 9600 becomes 38400 as with the original; a speed that somebody has set is kept, where the
/// original made 4000000 of 115200.
fn set_raw(port: &OwnedFd) {
    const DEFAULT_SPEED: u32 = 9600;
    const SPEED: u32 = 38400;
    let Ok(mut settings) = termios::tcgetattr(port) else { return };
    settings.input_modes -= termios::InputModes::IGNBRK
        | termios::InputModes::BRKINT
        | termios::InputModes::PARMRK
        | termios::InputModes::ISTRIP
        | termios::InputModes::INLCR
        | termios::InputModes::IGNCR
        | termios::InputModes::ICRNL
        | termios::InputModes::IXON;
    settings.output_modes = termios::OutputModes::empty();
    settings.local_modes = termios::LocalModes::empty();
    settings.special_codes[termios::SpecialCodeIndex::VMIN] = 1;
    settings.special_codes[termios::SpecialCodeIndex::VTIME] = 0;
    if settings.output_speed() == DEFAULT_SPEED
        && let Err(error) = settings.set_speed(SPEED)
    {
        log::warn!("cannot set the speed of the serial line: {error}");
    }
    // Before the line is raw: a host that waits for that may send its first request at once.
    if let Err(error) = termios::tcflush(port.as_fd(), termios::QueueSelector::IFlush) {
        log::warn!("cannot flush the serial line: {error}");
    }
    if let Err(error) = termios::tcsetattr(port, OptionalActions::Now, &settings) {
        log::warn!("cannot set up the serial line: {error}");
    }
}
