//! Children that do not outlive their parent.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Lets the kernel kill the child when the thread that starts it ends, in whatever way: a parent that is killed cannot
/// end it itself. So that thread must stay for as long as the child is wanted.
pub fn end_with_parent(command: &mut Command) {
    let parent = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before that, and then there would be no signal.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls on plain numbers; it takes no lock and allocates
    // nothing, an error from a kind included.
    unsafe { command.pre_exec(ask) };
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            end_with_parent(command.arg("600"));
            command.spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    }

    #[test]
    fn a_child_of_a_thread_that_stays_ends_by_itself() {
        let mut command = Command::new("true");
        end_with_parent(&mut command);
        assert!(command.status().unwrap().success());
    }
}
