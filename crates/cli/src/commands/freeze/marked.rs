//! What a command has started, found by a mark in its environment: for the process that thaws when the one that runs the
//! command is gone. That one's orphans have another parent by then.
//!
//! A process that empties its environment, or belongs to a user whose environment may not be read, is not found.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The variable that the command and all that it starts have.
pub const VARIABLE: &str = "QGA_FREEZE";

/// The kernel's limit of an environment is 6 MiB with an unlimited stack, and far less as a rule.
const ENVIRONMENT_BYTES_MAX: u64 = 8 << 20;

/// How often it is looked for more: a process may start another one while it is being ended.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// A value of the variable that no other command has.
pub fn new_mark() -> String {
    format!("{}-{:016x}", std::process::id(), RandomState::new().hash_one(VARIABLE))
}

/// Kills all processes that have this mark, until none is found.
pub fn kill_all(mark: &str) {
    let entry = format!("{VARIABLE}={mark}");
    for _ in 0..LOOKS {
        let found = marked(entry.as_bytes());
        if found.is_empty() {
            return;
        }
        for process in found {
            // It may have ended, or belong to another user.
            let _ = kill_process(process, Signal::KILL);
        }
        thread::sleep(PAUSE);
    }
}

fn marked(entry: &[u8]) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(|pid| {
        let mut environment = Vec::new();
        let read = File::open(format!("/proc/{}/environ", pid.as_raw_pid()))
            .and_then(|file| file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment));
        read.is_ok() && environment.split(|byte| *byte == 0).any(|found| found == entry)
    })
    .collect()
}
