//! The pid file of a daemon: tells others its process id, and by its lock that there is one at all.
//!
//! The lock is the kind the original takes (a POSIX record lock over the whole file), so either sees the other. The file
//! is removed by the agent that wrote it and by nobody else.

use crate::system::error::StartFailure;
use crate::system::error::cause_text;
use crate::system::trusted_path;
use rustix::fs::{FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Flock, FlockOffsetType, FlockType};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A pid file that this process wrote and has locked; dropped, it is removed, also after a start that failed later on.
/// Any other descriptor of the same file that this process closes ends the lock too, as is the way of these locks.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Locks and writes the file. To be called by the process that will serve, for locks do not survive a fork.
    pub fn create(path: &Path) -> Result<Self, StartFailure> {
        let act = |what: &str| format!("cannot {what} the pid file '{}'", path.display());
        loop {
            // Not truncated yet: until the lock is ours it may be another agent's.
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = trusted_path::open_to_write(path, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|error| StartFailure::of(act("create"), &error))?;
            let file = File::from(file);
            let metadata = file.metadata().map_err(|error| StartFailure::of(act("look at"), &error))?;
            if !metadata.is_file() {
                return Err(StartFailure::new(format!("{}: it is not a regular file", act("use"))));
            }
            match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => return Err(Self::held(&file, &act("lock"))),
                Err(error) => return Err(StartFailure::of(act("lock"), &error.into())),
            }
            let pid_file = Self { path: path.to_owned(), file };
            // Its former owner may have removed it between the opening and the locking; then the lock is on a file that
            // nobody else will ever see.
            if pid_file.is_at_its_path() {
                pid_file.write().map_err(|error| StartFailure::of(act("write"), &error))?;
                return Ok(pid_file);
            }
        }
    }

    fn held(file: &File, act: &str) -> StartFailure {
        let whole =
            Flock { start: 0, length: 0, pid: None, typ: FlockType::WriteLock, offset_type: FlockOffsetType::Set };
        let holder = rustix::process::fcntl_getlk(file, &whole).ok().flatten().and_then(|lock| lock.pid);
        match holder {
            Some(pid) => {
                StartFailure::new(format!("{act}: process {} holds the lock, so an agent is running", pid.as_raw_pid()))
            }
            None => StartFailure::new(format!("{act}: another process holds the lock, so an agent is running")),
        }
    }

    fn is_at_its_path(&self) -> bool {
        let same = |one: &Stat, other: &Stat| one.st_dev == other.st_dev && one.st_ino == other.st_ino;
        match (rustix::fs::fstat(&self.file), rustix::fs::stat(&self.path)) {
            (Ok(ours), Ok(there)) => same(&ours, &there),
            _ => false,
        }
    }

    fn write(&self) -> io::Result<()> {
        self.file.set_len(0)?;
        (&self.file).write_all(format!("{}\n", std::process::id()).as_bytes())
    }
}

impl Drop for PidFile {
    /// Removes the file, unless another one has taken its place. The lock is held until after that.
    fn drop(&mut self) {
        if self.is_at_its_path()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove the pid file '{}': {}", self.path.display(), cause_text(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_holds_the_process_id_and_only_the_owner_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        std::fs::write(&path, "a stale one, and a longer text than the new").unwrap();
        std::fs::remove_file(&path).unwrap();
        let pid_file = PidFile::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // Reading it by another descriptor of this process ends the lock; this test needs none.
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(pid_file);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_file_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        std::fs::write(&path, "999999999 and more\n").unwrap();
        let _pid_file = PidFile::create(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_file_that_took_its_place_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let pid_file = PidFile::create(&path).unwrap();
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        std::fs::write(&path, "another agent's").unwrap();
        drop(pid_file);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another agent's");
    }

    #[test]
    fn what_cannot_be_a_pid_file_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let missing = directory.path().join("missing/pid");
        for (path, end) in [
            (Path::new("/dev/null"), "cannot use the pid file '/dev/null': it is not a regular file"),
            (directory.path(), ": Is a directory"),
            (fifo.as_path(), ": No such device or address"),
            (missing.as_path(), ": No such file or directory"),
            (Path::new(""), "cannot create the pid file '': No such file or directory"),
        ] {
            let text = PidFile::create(path).unwrap_err().text;
            assert!(text.ends_with(end), "{text}");
        }
    }
}
