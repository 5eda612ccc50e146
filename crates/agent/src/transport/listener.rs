//! unix-listen and vsock-listen: a socket that many clients use at once, a thread for each.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vsock::VsockListener;

use super::line_writer::{LineWriter, ServeClient};
use super::link::{Link, Stream};
use super::vsock_peers::{Refusals, VsockPeers};
use crate::system::blocking::STACK_BYTES;
use crate::system::error::cause_text;

/// Clients served at once. A further one takes the place of the one that has been silent the longest.
const CLIENTS_MAX: usize = 64;
/// A client that has spoken more recently than this keeps its place.
const SILENT_MS_MIN: u64 = 1000;
/// Threads that wait for a client at once; one whose client has left ends if there are as many.
const WAITING_MAX: usize = 2;
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Pause after accepting has failed, for want of descriptors say.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A listening socket.
pub enum Listener {
    /// `AF_UNIX`.
    Unix(UnixListener),
    /// `AF_VSOCK`, and who may connect.
    Vsock(VsockListener, VsockPeers, Refusals),
}

impl Listener {
    /// Listens at a path. A socket that nobody serves any more is replaced; anything else that is there stays.
    ///
    /// The socket can be used by its owner and, if the umask lets it, by its group; never by all.
    pub fn unix(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let address = SocketAddrUnix::new(path).map_err(|_| format!("UNIX socket path '{shown}' is too long"))?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(format!("Failed to bind socket to {shown}: it exists and is not a socket"));
            }
            Ok(_) if is_served(&address) => {
                return Err(format!("Failed to bind socket to {shown}: another process serves it"));
            }
            Ok(_) => fs::remove_file(path)
                .map_err(|error| format!("Failed to unlink socket {shown}: {}", cause_text(&error)))?,
            Err(_) => {}
        }
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask | Mode::RWXO);
        let bound = listen(&address);
        rustix::process::umask(umask);
        bound.map(Self::Unix).map_err(|error| format!("Failed to bind socket to {shown}: {}", cause_text(&error)))
    }

    /// Listens at `<cid>:<port>`.
    pub fn vsock(address: &str, peers: VsockPeers) -> Result<Self, String> {
        let (cid, port) = vsock_address(address)?;
        VsockListener::bind_with_cid_port(cid, port)
            .map(|listener| Self::Vsock(listener, peers, Refusals::default()))
            .map_err(|error| format!("Failed to bind socket to vsock {address}: {}", cause_text(&error)))
    }

    /// Uses a socket that a service manager listens on: who may connect to a unix socket is for that to say, by its mode.
    pub fn passed(socket: OwnedFd, peers: VsockPeers) -> Result<Self, String> {
        let address = rustix::net::getsockname(&socket).map_err(|error| {
            format!("Socket activation failed: descriptor 3 is no socket: {}", cause_text(&error.into()))
        })?;
        match address.address_family() {
            AddressFamily::UNIX => {
                let listener = UnixListener::from(socket);
                warn_of_open_socket(&listener);
                Ok(Self::Unix(listener))
            }
            AddressFamily::VSOCK => Ok(Self::Vsock(VsockListener::from(socket), peers, Refusals::default())),
            _ => Err("unsupported listen fd type: descriptor 3 is neither a unix nor a vsock socket".to_owned()),
        }
    }

    fn accept(&self) -> io::Result<Link> {
        Ok(match self {
            Self::Unix(listener) => Link::from(listener.accept()?.0),
            Self::Vsock(listener, peers, refusals) => loop {
                let (stream, peer) = listener.accept()?;
                if peers.allow(peer.cid()) {
                    break Link::new(Stream::Vsock(stream));
                }
                if let Some(text) = refusals.note(peer.cid(), peer.port(), Instant::now()) {
                    log::warn!("{text}");
                }
            },
        })
    }

    /// Serves clients, for ever.
    pub fn serve(self, serve_client: Box<ServeClient>) -> ! {
        let crew =
            Arc::new(Crew { listener: self, serve_client, clients: Clients::default(), waiting: AtomicUsize::new(0) });
        crew.work();
        loop {
            // Others wait for clients; this is the process's first thread, which cannot end alone.
            std::thread::park();
        }
    }
}

/// The threads that serve a socket's clients. Who accepts a client serves it, and sees to it that somebody else waits
/// for the next one: so no client waits for a thread to start.
struct Crew {
    listener: Listener,
    serve_client: Box<ServeClient>,
    clients: Clients,
    /// Threads that wait for a client.
    waiting: AtomicUsize,
}

impl Crew {
    /// Waits for a client, serves it, and so on until enough others wait.
    fn work(self: &Arc<Self>) {
        let one_more = |waiting: usize| (waiting < WAITING_MAX).then_some(waiting + 1);
        while self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
            let accepted = self.listener.accept();
            let was_last = self.waiting.fetch_sub(1, Ordering::Relaxed) == 1;
            match accepted {
                Ok(link) => self.serve(link, was_last),
                Err(error) => {
                    log::warn!("cannot accept a client: {}", cause_text(&error));
                    std::thread::sleep(RETRY_PAUSE);
                }
            }
        }
    }

    fn serve(self: &Arc<Self>, link: Link, was_last: bool) {
        let link = Arc::new(link);
        self.clients.make_room();
        self.clients.lock().push(Arc::clone(&link));
        if was_last {
            let crew = Arc::clone(self);
            let thread = std::thread::Builder::new().name("session".to_owned()).stack_size(STACK_BYTES);
            if let Err(error) = thread.spawn(move || crew.work()) {
                log::warn!("further clients have to wait until one leaves: {error}");
            }
        }
        if let Err(error) = (self.serve_client)(&LineWriter::new(Arc::clone(&link)), &[]) {
            log::info!("a client's connection has failed: {}", cause_text(&error));
        }
        self.clients.remove(&link);
    }
}

/// A socket that listens at an address. std's own function refuses the longest of paths.
fn listen(address: &SocketAddrUnix) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// A service manager makes sockets that everybody may connect to, unless it is told otherwise.
fn warn_of_open_socket(listener: &UnixListener) {
    const ALL_WRITE: u32 = 0o002;
    let Ok(address) = listener.local_addr() else { return };
    let mode = address.as_pathname().map(|path| fs::metadata(path).map(|found| found.mode()));
    if matches!(mode, Some(Ok(mode)) if mode & ALL_WRITE == 0) {
        return;
    }
    let shown = address.as_pathname().map_or("the socket".to_owned(), |path| format!("'{}'", path.display()));
    log::warn!(
        "every user may connect to {shown}, and act as root by guest-exec: 'SocketMode=0600' in the socket's unit mends that"
    );
}

/// Whether somebody accepts connections at a socket.
fn is_served(address: &SocketAddrUnix) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let Ok(socket) = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else {
        return false;
    };
    match rustix::net::connect(&socket, address) {
        Ok(()) => {
            drop(UnixStream::from(socket));
            true
        }
        // Its queue is full, so it has one.
        Err(error) => error == rustix::io::Errno::AGAIN,
    }
}

/// Two numbers of 32 bit.
fn vsock_address(address: &str) -> Result<(u32, u32), String> {
    let number = |what: &str, text: &str| -> Result<u32, String> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten().ok_or_else(|| {
            format!("Failed to parse {what} '{text}': a number from 0 to 4294967295 is wanted, as in '3:1234'")
        })
    };
    match address.split_once(':') {
        Some((cid, port)) if !cid.is_empty() && !port.is_empty() => Ok((number("cid", cid)?, number("port", port)?)),
        _ => Err(format!("error parsing address '{address}': <cid>:<port> is wanted, as in '3:1234'")),
    }
}

/// The clients that are connected.
#[derive(Default)]
struct Clients {
    links: Mutex<Vec<Arc<Link>>>,
    left: Condvar,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, link: &Arc<Link>) {
        self.lock().retain(|known| !Arc::ptr_eq(known, link));
        self.left.notify_one();
    }

    /// Waits until there is a place, and takes it from the client that has been silent the longest if need be.
    fn make_room(&self) {
        let mut links = self.lock();
        while links.len() >= CLIENTS_MAX {
            let idle = links.iter().filter(|link| !link.is_busy());
            if let Some(link) = idle.max_by_key(|link| link.silent_ms())
                && link.silent_ms() >= SILENT_MS_MIN
            {
                log::warn!(
                    "{CLIENTS_MAX} clients are connected: closing the one that has been silent for {} s",
                    link.silent_ms() / 1000
                );
                link.shut_down();
            }
            links = self.left.wait_timeout(links, RETRY_PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::vsock_address;

    #[test]
    fn a_vsock_address_is_two_decimal_numbers() {
        assert_eq!(vsock_address("3:1234"), Ok((3, 1234)));
        assert_eq!(vsock_address("4294967295:0"), Ok((u32::MAX, 0)));
        for (address, error) in [
            ("abc", "error parsing address 'abc'"),
            ("1:", "error parsing address '1:'"),
            (":5", "error parsing address ':5'"),
            ("x:1", "Failed to parse cid 'x'"),
            ("-1:5", "Failed to parse cid '-1'"),
            ("0x1:5", "Failed to parse cid '0x1'"),
            ("4294967296:1", "Failed to parse cid '4294967296'"),
            ("1:x", "Failed to parse port 'x'"),
            ("1:5:6", "Failed to parse port '5:6'"),
            ("1:5,x", "Failed to parse port '5,x'"),
        ] {
            assert!(vsock_address(address).unwrap_err().starts_with(error), "{address}");
        }
    }
}
