//! Requests to a mounted file system through a descriptor of any file on it: ioctl_fs(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The kernel's `struct fstrim_range`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimRange {
    /// The first byte, counted from the file system's start.
    pub start: u64,
    /// How many bytes from there; after the call how many were discarded.
    pub length: u64,
    /// Free pieces smaller than this many bytes are left alone; after the call the value that the file system used.
    pub minimum: u64,
}

/// Makes the file system consistent on its disk and lets every write wait. Blocks until what is dirty is written.
///
/// # Errors
/// `EOPNOTSUPP` if it cannot be frozen, `EBUSY` if it is already, `EPERM` without the right, else what the disk says.
pub fn freeze(file: impl AsFd) -> io::Result<()> {
    const FIFREEZE: libc::c_ulong = 0xc004_5877;
    // SAFETY: ioctl(2) with this number ignores its argument.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FIFREEZE as _, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets writes go on.
///
/// # Errors
/// `EINVAL` if it is not frozen, `EPERM` without the right, else what the disk says.
pub fn thaw(file: impl AsFd) -> io::Result<()> {
    const FITHAW: libc::c_ulong = 0xc004_5878;
    // SAFETY: ioctl(2) with this number ignores its argument.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FITHAW as _, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tells the disk which blocks of the file system are free; `range` tells afterwards what was done.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` if the file system or its disk cannot, `EINVAL` for a range or a minimum that it cannot
/// take, `EPERM` without the right, else what the disk says.
pub fn trim(file: impl AsFd, range: &mut TrimRange) -> io::Result<()> {
    const FITRIM: libc::c_ulong = 0xc018_5879;
    // SAFETY: ioctl(2) with this number reads and writes the struct above, which has the kernel's layout of 24 bytes.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FITRIM as _, std::ptr::from_mut(range)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
