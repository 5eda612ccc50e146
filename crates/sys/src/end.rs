//! How a process ends that is not this process's child.
//!
//! Two ways: the kernel tells whoever holds a descriptor of the process (Linux 6.15 and later), or whoever traces it.
//! Ends are told as by wait(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The beginning of the kernel's `struct pidfd_info`.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    control_group: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// That the exit code is asked for, or told.
const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xff, 11, struct pidfd_info)`, with the size of its first version.
const PIDFD_GET_INFO: libc::c_ulong = 3 << 30 | (size_of::<PidfdInfo>() as libc::c_ulong) << 16 | 0xff << 8 | 11;

/// How the process of a descriptor has ended. `None` as long as its parent has not been told.
///
/// # Errors
/// Those of a kernel that does not tell.
pub fn told(process: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request writes at most as many bytes as it names, which is the size of `info`.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
}

/// Traces a process of which nothing is wanted but its end. It must be [attended](attend) whenever SIGCHLD comes, by the
/// same thread. It goes on if this process ends.
///
/// # Errors
/// Of ptrace(2): somebody else traces it, it has ended, it is not allowed.
pub fn trace(process: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_SEIZE, process, 0)
}

/// Lets a traced process have its signals, and stop and go on as it would. How it has ended, once it has.
///
/// # Errors
/// `ECHILD` if it is not traced, or not any more: a thread other than its first has executed another program.
pub fn attend(process: i32) -> io::Result<Option<i32>> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer leads to an integer.
        let result = unsafe { libc::waitpid(process, &raw mut status, libc::WNOHANG | libc::__WALL) };
        match result {
            0 => return Ok(None),
            1.. if !libc::WIFSTOPPED(status) => return Ok(Some(status)),
            1.. => {}
            _ => return Err(io::Error::last_os_error()),
        }
        let signal = libc::WSTOPSIG(status);
        let is_stop = matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
        let gone_on = match status >> 16 {
            // It was stopped, and is to stay so until SIGCONT.
            libc::PTRACE_EVENT_STOP if is_stop => ptrace(libc::PTRACE_LISTEN, process, 0),
            // A signal is about to be delivered.
            0 => ptrace(libc::PTRACE_CONT, process, signal),
            _ => ptrace(libc::PTRACE_CONT, process, 0),
        };
        // It was killed meanwhile: its end is told next.
        if gone_on.is_err_and(|error| error.raw_os_error() != Some(libc::ESRCH)) {
            return Err(io::Error::last_os_error());
        }
    }
}

fn ptrace(request: libc::c_uint, process: i32, data: i32) -> io::Result<()> {
    // SAFETY: none of the requests used here reads or writes memory of this process; the last two are plain numbers.
    let result = unsafe { libc::ptrace(request, process, 0_usize, data as usize) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

    use super::*;

    /// A process that is not a child of the test's: its parent ends at once.
    fn stranger(script: &str) -> i32 {
        let script = format!("({script}) </dev/null >/dev/null 2>&1 & echo $!");
        let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    fn end_of(process: i32) -> i32 {
        loop {
            if let Some(status) = attend(process).unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn state(process: i32) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }

    #[test]
    fn a_traced_process_has_its_signals_and_its_end_is_told() {
        let process = stranger("trap 'exit 7' USR1; while :; do sleep 0.01; done");
        trace(process).unwrap();
        let signal = |signal| kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
        signal(Signal::STOP);
        while state(process) != 't' && state(process) != 'T' {
            assert_eq!(attend(process).unwrap(), None);
        }
        signal(Signal::CONT);
        signal(Signal::USR1);
        let status = end_of(process);
        // By the signal itself if it came before the trap.
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7 || libc::WTERMSIG(status) == libc::SIGUSR1);
        assert_eq!(attend(process).unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }

    #[test]
    fn the_kernel_tells_the_end_of_a_stranger_or_that_it_does_not() {
        let process = stranger("sleep 0.2; exit 9");
        let descriptor = pidfd_open(Pid::from_raw(process).unwrap(), PidfdFlags::empty()).unwrap();
        while std::path::Path::new(&format!("/proc/{process}")).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        match told(descriptor.as_fd()) {
            Ok(Some(status)) => assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 9)),
            Ok(None) => {}
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)), "{error}"),
        }
    }
}
