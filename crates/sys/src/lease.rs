//! File leases, fcntl(2) `F_SETLEASE`: the way to make another process's open(2) or execve(2) wait.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes a write lease: whoever opens or executes the file waits until it is given up, or until
/// `/proc/sys/fs/lease-break-time` (45 s by default) is over. The holder gets SIGIO then, which is ignored from here on.
///
/// # Errors
/// If the file is open elsewhere (`EAGAIN`), belongs to someone else, or is on a file system without leases.
pub fn hold_write_lease(file: &File) -> io::Result<()> {
    // SAFETY: SIG_IGN is a valid disposition for SIGIO, and no handler of anybody's is replaced: nothing here uses it.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: fcntl(2) with F_SETLEASE takes an integer; the descriptor is open as long as `file` lives.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
