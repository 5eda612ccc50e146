//! The first process of the system.

use std::io;

/// Sends a signal by its number: rustix knows no real-time signals, by which some first processes are told what to do.
///
/// # Errors
/// `EPERM` without the right, `EINVAL` for a number that is no signal's.
pub fn signal(number: i32) -> io::Result<()> {
    const FIRST: libc::pid_t = 1;
    // SAFETY: kill(2) takes two numbers and touches no memory of ours.
    let result = unsafe { libc::kill(FIRST, number) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn what_is_no_signal_is_refused() {
        assert_eq!(signal(1000).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
