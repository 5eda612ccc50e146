//! Streams that lead to an agent: unix sockets, vsock, a hypervisor's vsock behind a unix socket, serial devices.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::termios::{self, OptionalActions, SpecialCodeIndex};
use vsock::VsockStream;

use crate::connect::ConnectOptions;
use crate::error::Error;
use crate::kind::Kind;
use crate::stream::{Stream, Timeouts};
use crate::trust::{self, Accounts};

pub(crate) fn unix(path: &Path, options: ConnectOptions) -> Result<Stream<UnixStream>, Error> {
    let text = path.display().to_string();
    let stream = connect_trusted(path, &text, options)?;
    Stream::with_silence(stream, options.timeouts.silence, set_unix_silence)
        .map(|stream| stream.named(text.clone()))
        .map_err(|source| Error::Connect { path: text, source })
}

/// Connects to a socket at which nobody can listen but those who are trusted; nothing has been sent yet.
fn connect_trusted(path: &Path, text: &str, options: ConnectOptions) -> Result<UnixStream, Error> {
    let failed = |source| not_connected(path, text.to_owned(), source);
    let accounts = trusted(path, text, options).map_err(|error| match error {
        Error::Connect { source, .. } => failed(source),
        error => error,
    })?;
    let stream = connect_unix(path, text, options)?;
    if let Some(accounts) = accounts {
        accounts.look_at_peer(&stream).map_err(failed)?.map_err(|problem| not_trusted(text, &problem))?;
    }
    Ok(stream)
}

/// Looks at who could have put a socket or a device where it is. Nobody, if that does not matter.
fn trusted(path: &Path, text: &str, options: ConnectOptions) -> Result<Option<Accounts>, Error> {
    if options.trusts_any_socket {
        return Ok(None);
    }
    trust::look_at_path(path)
        .map_err(|source| Error::Connect { path: text.to_owned(), source })?
        .map(Some)
        .map_err(|problem| not_trusted(text, &problem))
}

/// Whether a socket is one that [`unix`] would connect to, without connecting.
pub(crate) fn look_at(path: &Path) -> Result<(), Error> {
    trusted(path, &path.display().to_string(), ConnectOptions::default()).map(|_| ())
}

fn not_trusted(text: &str, problem: &str) -> Error {
    let cause = format!("another user may have put it there: {problem}; nothing was sent");
    Error::Unreachable { target: text.to_owned(), kind: Kind::NotTrusted, cause }
}

/// A file that is no socket refuses like a socket at which nobody listens.
fn not_connected(path: &Path, text: String, source: io::Error) -> Error {
    use std::os::unix::fs::FileTypeExt;
    let kind = path.metadata().map(|metadata| metadata.file_type());
    match kind {
        Ok(kind) if !kind.is_socket() => {
            let what = if kind.is_dir() {
                "a directory"
            } else if kind.is_file() {
                "a file"
            } else if kind.is_char_device() {
                "a device (a serial one is named serial:DEVICE)"
            } else {
                "no socket"
            };
            Error::Target { text, problem: format!("it is {what}, and a socket is wanted") }
        }
        _ => Error::Connect { path: text, source },
    }
}

fn set_unix_silence(stream: &mut UnixStream, silence: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(silence))?;
    stream.set_write_timeout(Some(silence))
}

/// When a wait that begins now is over. One that no clock can count lasts for ever, or a century.
fn end_of(wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    Instant::now() + wait.min(CENTURY)
}

/// A blocking connect has no time-out of its own and would wait for ever for a place in the listener's queue.
fn connect_unix(path: &Path, text: &str, options: ConnectOptions) -> Result<UnixStream, Error> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

    let failed = |source| not_connected(path, text.to_owned(), source);
    let wait = options.timeouts.connect;
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    let deadline = end_of(wait);
    let mut pause = Duration::from_micros(100);
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket: OwnedFd =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|error| failed(error.into()))?;
        match connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false).map_err(failed)?;
                return Ok(stream);
            }
            Err(Errno::AGAIN) if options.give_up_when.is_some_and(|is_over| is_over()) => {
                return Err(Error::GivenUp { command: "a connection".to_owned() });
            }
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(Errno::AGAIN) => {
                let text = format!("its queue was full for {} s: another client holds the agent", wait.as_secs_f64());
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, text)));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// How many clients are connected to a unix socket, those in its queue included; `None` if the system does not tell.
pub(crate) fn clients(path: &Path) -> Option<usize> {
    const CONNECTED: &str = "03";
    const CONNECTING: &str = "02";
    let names = [Some(path.to_owned()), path.canonicalize().ok()];
    let table = std::fs::read_to_string("/proc/net/unix").ok()?;
    let is_client = |line: &&str| {
        // Num RefCount Protocol Flags Type St Inode Path
        let state = line.split_ascii_whitespace().nth(5).unwrap_or_default();
        let bound = line.find('/').map(|start| Path::new(&line[start..]));
        (state == CONNECTED || state == CONNECTING)
            && names.iter().any(|name| name.is_some() && name.as_deref() == bound)
    };
    Some(table.lines().filter(is_client).count())
}

pub(crate) fn vsock(cid: u32, port: u32, timeouts: Timeouts) -> Result<Stream<VsockStream>, Error> {
    let target = format!("vsock:{cid}:{port}");
    VsockStream::connect_with_cid_port(cid, port)
        .and_then(|stream| {
            Stream::with_silence(stream, timeouts.silence, |stream, silence| {
                stream.set_read_timeout(Some(silence))?;
                stream.set_write_timeout(Some(silence))
            })
        })
        .map_err(|source| {
            let unreachable = |kind, cause| Error::Unreachable { target: target.clone(), kind, cause };
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::CONNRESET) => unreachable(Kind::NoAgent, nobody_listens(port)),
                Some(Errno::TIMEDOUT) => {
                    unreachable(Kind::NoAnswer, "the guest does not answer a connection".to_owned())
                }
                Some(Errno::NODEV | Errno::AFNOSUPPORT) => {
                    let cause = format!("no machine has the number {cid}, or this host has no vsock (vhost_vsock)");
                    unreachable(Kind::NoSuchSocket, cause)
                }
                _ => Error::Connect { path: target.clone(), source },
            }
        })
}

fn nobody_listens(port: u32) -> String {
    format!("nobody listens on vsock port {port} in the guest")
}

/// Cloud Hypervisor's and Firecracker's way to a guest's vsock: a unix socket, a line that says which port, a line that
/// says it is there.
pub(crate) fn hybrid(path: &Path, port: u32, options: ConnectOptions) -> Result<Stream<UnixStream>, Error> {
    const LONGEST_ANSWER_BYTES: usize = 64;
    /// How often it is asked whether this is over.
    const LOOK: Duration = Duration::from_millis(100);
    let timeouts = options.timeouts;
    let text = format!("hybrid:{}:{port}", path.display());
    let connect = |source| Error::Connect { path: text.clone(), source };
    let mut stream = connect_trusted(path, &text, options)?;
    set_unix_silence(&mut stream, timeouts.connect).map_err(connect)?;
    let deadline = end_of(timeouts.connect);
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(connect)?;

    // Byte by byte: what follows the line belongs to the agent already.
    let mut answer = Vec::new();
    let mut byte = [0];
    let problem = loop {
        // An answer that comes byte by byte is waited for no longer than one that does not come.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left.min(LOOK))).map_err(connect)?;
        match stream.read(&mut byte) {
            Err(_) if options.give_up_when.is_some_and(|is_over| is_over()) => {
                return Err(Error::GivenUp { command: format!("CONNECT {port}") });
            }
            _ if Instant::now() > deadline => {
                let text = format!("no answer to CONNECT within {} s", timeouts.connect.as_secs_f64());
                break Some((Kind::NoAnswer, text));
            }
            // That is how both say that nobody listens on the port in the guest.
            Ok(0) => break Some((Kind::NoAgent, nobody_listens(port))),
            Ok(_) if byte[0] == b'\n' => break None,
            Ok(_) if answer.len() >= LONGEST_ANSWER_BYTES => {
                break Some((Kind::NoManager, "its answer is endless".into()));
            }
            Ok(_) => answer.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                break Some((Kind::NoAgent, nobody_listens(port)));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(connect(error)),
        }
    };
    let problem = problem.or_else(|| {
        let answer = String::from_utf8_lossy(&answer);
        let is_ok = answer.strip_prefix("OK ").is_some_and(|number| number.trim_end().parse::<u32>().is_ok());
        (!is_ok).then(|| (Kind::NoManager, format!("it answered {answer:?} to CONNECT {port}, not OK")))
    });
    if let Some((kind, cause)) = problem {
        return Err(Error::Unreachable { target: text, kind, cause });
    }
    Stream::with_silence(stream, timeouts.silence, set_unix_silence).map_err(connect)
}

/// The major numbers of Linux's pseudo terminals.
const PSEUDO_TERMINALS: RangeInclusive<u32> = 136..=143;

/// A serial device or pseudo terminal, in raw mode and for this process alone.
#[derive(Debug)]
pub struct SerialPort {
    device: File,
    silence: Option<Duration>,
}

pub(crate) fn serial(path: &Path, options: ConnectOptions) -> Result<Stream<SerialPort>, Error> {
    let timeouts = options.timeouts;
    // A link in a shared directory may lead to another user's terminal.
    trusted(path, &path.display().to_string(), options)?;
    SerialPort::open(path)
        .and_then(|port| {
            Stream::with_silence(port, timeouts.silence, |port, silence| {
                port.silence = Some(silence);
                Ok(())
            })
        })
        .map_err(|source| {
            let text = path.display().to_string();
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOTTY) => {
                    let text = format!("serial:{text}");
                    Error::Target { text, problem: "it is no serial device or pseudo terminal".to_owned() }
                }
                _ => Error::Connect { path: text, source },
            }
        })
}

impl SerialPort {
    /// Opens a device, takes it for this process and sets it to raw mode; its speed stays as it is.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Without NONBLOCK the open itself would wait for a carrier.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
        flock(&device, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| if error == Errno::WOULDBLOCK { Errno::BUSY } else { error })?;
        // The lock is for those who heed it, this for the others. A pseudo terminal would stay exclusive when we are gone,
        // for as long as the other end is open.
        let device_kind = rustix::fs::major(rustix::fs::fstat(&device)?.st_rdev);
        if !PSEUDO_TERMINALS.contains(&device_kind) {
            termios::ioctl_tiocexcl(&device)?;
        }
        let mut attributes = termios::tcgetattr(&device)?;
        attributes.make_raw();
        attributes.special_codes[SpecialCodeIndex::VMIN] = 1;
        attributes.special_codes[SpecialCodeIndex::VTIME] = 0;
        termios::tcsetattr(&device, OptionalActions::Now, &attributes)?;
        Ok(Self { device: device.into(), silence: None })
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        let deadline = self.silence.map(end_of);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::from_borrowed_fd(self.device.as_fd(), events)], left.as_ref()) {
                Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for SerialPort {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.device.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                // The other end of a pseudo terminal is gone.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
                other => return other,
            }
        }
    }
}

impl Write for SerialPort {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.device.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
