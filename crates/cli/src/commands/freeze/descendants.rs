//! What a command has started, also what it has left behind: it ends with the command, so that nothing of it works on
//! after the thaw.
//!
//! This process becomes the one that orphans are given to (`PR_SET_CHILD_SUBREAPER`, prctl(2)), so a process that the command
//! has put into the background, in a session of its own too, is found here. What a service manager starts on behalf of the
//! command belongs to the service manager, and stays.

use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};

/// How often it is looked whether they have ended.
const PAUSE: Duration = Duration::from_millis(20);

/// The processes that are below this one without being the command's: those that were there before it.
#[derive(Debug)]
pub struct Descendants {
    others: BTreeSet<i32>,
}

impl Descendants {
    /// From now on orphans are given to this process. Before the command is started.
    ///
    /// # Errors
    /// If the kernel gives it none, or tells of no processes: then what leaves the command cannot be found.
    pub fn watch() -> io::Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        Ok(Self { others: below(getpid(), &BTreeSet::new())? })
    }

    /// Ends all that are left of the command, which has ended: by SIGTERM, and by SIGKILL as soon as `is_late` says so.
    /// Returns those that do not end within `last_grace` after that. While this runs nothing else of this process starts
    /// children, or they would be taken for the command's.
    pub fn end(&self, mut is_late: impl FnMut() -> bool, last_grace: Duration) -> BTreeSet<i32> {
        let mut asked = BTreeSet::new();
        let mut late_since: Option<Instant> = None;
        loop {
            // It was readable before.
            let left = below(getpid(), &self.others).unwrap_or_default();
            if left.is_empty() || late_since.is_some_and(|since| since.elapsed() >= last_grace) {
                return left;
            }
            if late_since.is_none() && is_late() {
                late_since = Some(Instant::now());
            }
            for process in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                let is_new = asked.insert(process.as_raw_pid());
                if late_since.is_some() || is_new {
                    let signal = if late_since.is_some() { Signal::KILL } else { Signal::TERM };
                    let _ = kill_process(process, signal);
                }
                // An orphan that has ended is this process's to bury; of the others the call knows nothing.
                let _ = waitpid(Some(process), WaitOptions::NOHANG);
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The processes below one, without some and what is below those.
fn below(ancestor: Pid, others: &BTreeSet<i32>) -> io::Result<BTreeSet<i32>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parents: Vec<(i32, i32)> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let mut found = BTreeSet::new();
    let mut pending = vec![ancestor.as_raw_pid()];
    while let Some(parent) = pending.pop() {
        for (child, _) in parents.iter().filter(|(child, of)| *of == parent && !others.contains(child)) {
            if found.insert(*child) {
                pending.push(*child);
            }
        }
    }
    Ok(found)
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state and the parent are behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
