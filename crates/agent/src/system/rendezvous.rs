//! Socket files at which a process of the agent's that outlives it is met by an agent that comes later.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The address of a socket file, however long its path is, and what must stay open while it is used.
fn address(path: &Path) -> io::Result<(File, SocketAddrUnix)> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
    let directory = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, SocketAddrUnix::new(&short)?))
}

/// Makes a meeting point, for the agent's user alone, in the place of one that is there.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
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

/// Comes to one. Nothing waits there for longer than `patience`, the way there neither. An error if the process at the
/// other end is another user's: the directory may be one in which everybody can lay files.
pub fn come(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let (_directory, address) = address(path)?;
    let socket = socket()?;
    for way in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, way, Some(patience))?;
    }
    rustix::net::connect(&socket, &address)?;
    if is_of_same_user(&socket) { Ok(socket) } else { Err(Errno::PERM.into()) }
}

/// As [`come`], and does not wait at all, neither here nor in what is done with the socket. `EAGAIN` if others wait there.
pub fn come_at_once(path: &Path) -> io::Result<OwnedFd> {
    let (_directory, address) = address(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    if is_of_same_user(&socket) { Ok(socket) } else { Err(Errno::PERM.into()) }
}

/// Whether the process at the other end is the same user's.
pub fn is_of_same_user(socket: &OwnedFd) -> bool {
    sockopt::socket_peercred(socket).is_ok_and(|other| other.uid == rustix::process::geteuid())
}
