//! File descriptors of the whole process.

use std::io;

/// Marks every descriptor above 2 as closed in programs that the agent starts, whoever opened it.
///
/// # Errors
/// What close_range(2) reports; kernels before 5.11 do not have it.
#[cfg(target_os = "linux")]
pub fn close_all_on_exec() -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: with this flag close_range(2) only sets a flag on descriptors; none changes its owner.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
