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

/// Lets go of whatever the process has open above 2: sockets and devices first, files after them. The numbers stay taken,
/// by `/dev/null`, so that no other thread takes something new for what it had. For a process that ends although a thread
/// hangs in the kernel: as long as that lasts, the process and what it has open would be there.
///
/// # Errors
/// If `/dev/null` or the list of descriptors cannot be read.
#[cfg(target_os = "linux")]
pub fn let_go_of_all() -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let mut open: Vec<(bool, i32)> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            // Reading the link asks nothing of the file's own file system.
            let name = std::fs::read_link(entry.path()).ok()?.into_os_string().into_encoded_bytes();
            Some((!name.starts_with(b"socket:") && !name.starts_with(b"/dev/"), number))
        })
        .filter(|(_, number)| *number > 2 && *number != null.as_raw_fd())
        .collect();
    open.sort_unstable();
    for (_, number) in open {
        // SAFETY: dup2(2) replaces what a number stands for; every owner of it still has a valid descriptor.
        unsafe { libc::dup2(null.as_raw_fd(), number) };
    }
    Ok(())
}
