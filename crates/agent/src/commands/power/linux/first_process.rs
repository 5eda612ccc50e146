//! The first process: which program it is, and whether it takes a signal.

use super::super::target_state::End;
use super::machine::{Failure, Machine};
use crate::system::root::Root;
use std::path::Path;
use std::time::Duration;

/// Says, among much else, which signals a process has a handler for and which wait for it.
const STATUS: &str = "/proc/1/status";
/// How often and how long apart it is looked whether a signal was taken.
const LOOKS: u32 = 100;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// A program that can be told by a signal how to end the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstProcess {
    /// systemd.
    Systemd,
    /// busybox's init, or finit, which takes the same signals.
    Busybox,
    /// Another one.
    Other,
}

impl FirstProcess {
    /// The one of a machine.
    pub fn of(root: &Root) -> Self {
        if root.exists("/run/systemd/system") {
            return Self::Systemd;
        }
        let program = root.read_link("/proc/1/exe").unwrap_or_default();
        match program.file_name().and_then(|name| Path::new(name).to_str()) {
            Some("busybox" | "finit") => Self::Busybox,
            _ => Self::Other,
        }
    }

    /// The signal that ends the machine.
    pub fn signal(self, end: End) -> Option<i32> {
        /// glibc's SIGRTMIN, with which distributions build systemd, whatever this program is linked with.
        const FIRST_REAL_TIME: i32 = 34;
        const USER_1: i32 = 10;
        const USER_2: i32 = 12;
        const TERMINATE: i32 = 15;
        match (self, end) {
            (Self::Systemd, End::Halt) => Some(FIRST_REAL_TIME + 3),
            (Self::Systemd, End::PowerDown) => Some(FIRST_REAL_TIME + 4),
            (Self::Systemd, End::Reboot) => Some(FIRST_REAL_TIME + 5),
            (Self::Busybox, End::Halt) => Some(USER_1),
            (Self::Busybox, End::PowerDown) => Some(USER_2),
            (Self::Busybox, End::Reboot) => Some(TERMINATE),
            (Self::Other, _) => None,
        }
    }
}

/// Sends a signal to the first process and waits until it has taken it. The kernel drops what it has no handler for,
/// and a first process that hangs leaves it waiting; both are failures.
pub fn tell(machine: &impl Machine, number: i32) -> Result<(), Failure> {
    let has = |masks: &[&str]| -> Option<bool> {
        let status = machine.root().read_text(STATUS).ok()?;
        let masks: Option<Vec<u64>> = masks.iter().map(|name| mask(&status, name)).collect();
        Some(masks?.iter().any(|mask| mask >> (number - 1) & 1 == 1))
    };
    // One that reads its signals from a descriptor blocks them.
    if has(&["SigCgt", "SigBlk"]) == Some(false) {
        return Err("the first process does not take it".to_owned());
    }
    machine.signal_first_process(number).map_err(|cause| crate::system::error::cause_text(&cause))?;
    for _ in 0..LOOKS {
        machine.wait(BETWEEN_LOOKS);
        if has(&["ShdPnd"]) != Some(true) {
            return Ok(());
        }
    }
    Err("the first process does not react".to_owned())
}

/// A set of signals in the text of a status, as `SigCgt: 00000000000004e8`.
fn mask(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::super::staged::Staged;
    use super::{FirstProcess, STATUS, tell};
    use std::os::unix::fs::symlink;

    fn status(pending: u64, caught: u64, blocked: u64) -> String {
        format!("Name:\tinit\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\nSigCgt:\t{caught:016x}\n")
    }

    #[test]
    fn the_first_process_is_known_by_its_traces() {
        let staged = Staged::new(&[]);
        assert_eq!(FirstProcess::of(&staged.root), FirstProcess::Other);
        staged.put("/proc/1/comm", "init");
        for (program, expected) in [
            ("/bin/busybox", FirstProcess::Busybox),
            ("/sbin/finit", FirstProcess::Busybox),
            ("/sbin/init", FirstProcess::Other),
        ] {
            let link = staged.root.path("/proc/1/exe");
            let _ = std::fs::remove_file(&link);
            symlink(program, link).unwrap();
            assert_eq!(FirstProcess::of(&staged.root), expected, "{program}");
        }
        staged.put("/run/systemd/system/x", "");
        assert_eq!(FirstProcess::of(&staged.root), FirstProcess::Systemd);
    }

    #[test]
    fn a_signal_counts_when_it_is_taken() {
        let staged = Staged::new(&[]);
        staged.put(STATUS, &status(0, 1 << 11, 0));
        assert_eq!(tell(&staged, 12), Ok(()));
        staged.put(STATUS, &status(0, 0, 1 << 11));
        assert_eq!(tell(&staged, 12), Ok(()));
        staged.put(STATUS, &status(1 << 11, 1 << 11, 0));
        assert_eq!(tell(&staged, 12).unwrap_err(), "the first process does not react");
        assert_eq!(staged.done(), ["signal 12", "signal 12", "signal 12"]);
        assert_eq!(tell(&staged, 10).unwrap_err(), "the first process does not take it");
        assert_eq!(staged.done().len(), 3);
    }
}
