//! The record of the hook that is at work: a file that tells whoever comes after an agent that was killed whether the
//! hook was started, and whether it still runs.
//!
//! The new process empties the file before it executes the hook, so a file that is not empty belongs to a hook that was
//! never started. The hook inherits the descriptor with the file's lock, so the lock is free when the hook has ended. A
//! service that a hook starts inherits it too: each hook gets a new file, so that it keeps nobody waiting.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qga_sys::spawn::Mark;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, getpgrp, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::system::own_file;

/// How often it is looked whether a hook has ended that another agent has started.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a hook that was killed may take to go.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The record of one call of a hook.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    name: CString,
    file: File,
}

/// What a record tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// There is none.
    Nothing,
    /// The hook was never started.
    NotStarted,
    /// It was started, and has ended.
    Ended,
    /// It was started, and still runs.
    Runs,
}

impl Record {
    /// A new one, in the place of one that is not needed any more.
    pub fn create(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
        let mut record = || {
            file.write_all(b"not started\n")?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(CString::new(path.as_os_str().as_bytes())?)
        };
        let name: io::Result<CString> = record();
        match name {
            Ok(name) => Ok(Self { path: path.to_owned(), name, file }),
            Err(error) => {
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// What a hook that is started leaves in it.
    pub fn mark(&self) -> Mark<'_> {
        Mark { emptied: &self.name, inherited: self.file.as_fd() }
    }

    /// The hook has ended.
    pub fn remove(self) {
        let _ = std::fs::remove_file(self.path);
    }
}

/// What an earlier agent's record tells.
pub fn look(path: &Path) -> Told {
    // One that another user has laid there and holds would have this agent wait for nothing.
    let Ok(file) = own_file::open(File::options().read(true), path) else { return Told::Nothing };
    if flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
        return Told::Runs;
    }
    // Looked at after the lock was free: from then on nobody empties it.
    match file.metadata() {
        Ok(metadata) if metadata.len() == 0 => Told::Ended,
        _ => Told::NotStarted,
    }
}

/// Waits until the hook of an earlier agent has ended, and no longer than that.
pub fn wait(path: &Path, patience: Duration) -> Told {
    let started = Instant::now();
    loop {
        let told = look(path);
        if told != Told::Runs || started.elapsed() > patience {
            return told;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Ends a hook that does not end: its process group is the one of the oldest process that has the record open, for what it
/// has started is younger.
pub fn kill(path: &Path) {
    let record = own_file::open(File::options().read(true), path).and_then(|file| file.metadata());
    let Ok(record) = record else { return };
    let holds = |pid: &i32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|entry| entry.path().metadata().ok())
            .any(|file| (file.dev(), file.ino()) == (record.dev(), record.ino()))
    };
    let own = std::process::id() as i32;
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let started = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the start is the twentieth word behind it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse::<u64>().ok()
    };
    let oldest = pids.filter(|pid| *pid != own && holds(pid)).min_by_key(started);
    let Some(oldest) = oldest.and_then(Pid::from_raw) else { return };
    // It may end at any moment, and its process id and its group's be given again. One that is stopped does not end by
    // itself. Where the system has no descriptors of processes it is done without.
    let process = match pidfd_open(oldest, PidfdFlags::empty()) {
        Ok(process) => Some(process),
        Err(Errno::NOSYS | Errno::PERM) => None,
        Err(_) => return,
    };
    if !holds(&oldest.as_raw_pid()) {
        return;
    }
    if let Some(process) = &process
        && pidfd_send_signal(process, Signal::STOP).is_err()
    {
        return;
    }
    let group = getpgid(Some(oldest)).ok().filter(|group| *group != getpgrp());
    if group.is_none()
        && let Some(process) = &process
    {
        let _ = pidfd_send_signal(process, Signal::CONT);
    }
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
        let started = Instant::now();
        while look(path) == Told::Runs && started.elapsed() < KILL_PATIENCE {
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Record, Told, kill, look};
    use qga_sys::spawn::Program;
    use rustix::process::{Pid, WaitOptions, waitpid};
    use std::fs::File;
    use std::os::fd::AsFd;

    fn start(record: &Record, script: &std::ffi::CStr) -> Pid {
        let arguments = [c"sh".to_owned(), c"-c".to_owned(), script.to_owned()];
        let nothing = File::options().read(true).write(true).open("/dev/null").unwrap();
        let streams = [nothing.as_fd(), nothing.as_fd(), nothing.as_fd()];
        let program = Program { file: c"/bin/sh", arguments: &arguments, environment: &[], streams };
        Pid::from_raw(program.start_marked(&record.mark()).unwrap()).unwrap()
    }

    #[test]
    fn a_record_tells_whether_a_hook_was_started_and_whether_it_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        assert_eq!(look(&path), Told::Nothing);
        let record = Record::create(&path).unwrap();
        // The agent is killed before it starts it.
        drop(record);
        assert_eq!(look(&path), Told::NotStarted);
        let record = Record::create(&path).unwrap();
        let pid = start(&record, c"sleep 1000");
        // And here while it runs.
        drop(record);
        assert_eq!(look(&path), Told::Runs);
        kill(&path);
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
        assert_eq!(look(&path), Told::Ended);
    }

    #[test]
    fn what_a_hook_leaves_running_keeps_no_later_hook_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        let record = Record::create(&path).unwrap();
        let pid = start(&record, c"sleep 1000 & echo $! > /dev/null; exec setsid sleep 1000");
        let next = Record::create(&path).unwrap();
        drop((record, next));
        assert_eq!(look(&path), Told::NotStarted);
        rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).unwrap();
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
    }
}
