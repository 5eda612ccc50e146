//! Which agent may freeze by a state directory, and touches what freezes leave in it: the one that holds the lock on a
//! file there, for as long as it lives. It is a lock of the process (fcntl), so no program that the agent starts keeps it,
//! and the kernel tells who has it.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

use crate::system::error::{Error, cause_text};
use crate::system::own_file;

/// The lock. Nothing else of this process may open the file: closing it anywhere would give the lock up.
#[derive(Debug)]
pub struct Ownership {
    _file: Option<File>,
}

/// Why the state directory is not this process's.
#[derive(Debug)]
pub enum NotOwned {
    /// Another process has it; its number, if the kernel tells.
    Other(Option<i32>),
    /// The lock cannot be asked for.
    Failed(io::Error),
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The pauses between two tries to get what another process has.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Tries again, less and less often, until it has been done. The owner may be a guardian that calls hooks: if it is killed,
/// the hooks that it has left must not wait for the next request of a host.
pub fn retry(mut is_done: impl FnMut() -> bool) {
    let (mut pause, longest) = RETRY_PAUSES;
    loop {
        std::thread::sleep(pause);
        if is_done() {
            return;
        }
        pause = (pause * 2).min(longest);
    }
}

impl Ownership {
    /// Takes the lock, if nobody else has it.
    pub fn take(lock: &Path, marker: &Path) -> Result<Self, NotOwned> {
        let mut options = File::options();
        options.read(true).write(true).mode(0o600);
        let mut opened = own_file::open(&mut options, lock);
        if opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) && !is_there(marker) {
            // Another user has laid it there: whoever holds it is no agent.
            let _ = std::fs::remove_file(lock);
            opened = own_file::open(&mut options, lock);
        }
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // On a frozen file system to make it would wait for the thaw. It is missing beside a state file of an agent
                // of another version alone.
                if is_there(marker) {
                    return Ok(Self { _file: None });
                }
                own_file::open(options.create(true), lock)
            }
            opened => opened,
        };
        let file = file.map_err(NotOwned::Failed)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: Some(file) }),
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let whole = Flock {
                    start: 0,
                    length: 0,
                    pid: None,
                    typ: FlockType::WriteLock,
                    offset_type: FlockOffsetType::Set,
                };
                let holder = fcntl_getlk(&file, &whole).ok().flatten().and_then(|lock| lock.pid);
                Err(NotOwned::Other(holder.map(rustix::process::Pid::as_raw_pid)))
            }
            Err(error) => Err(NotOwned::Failed(error.into())),
        }
    }
}

impl NotOwned {
    /// What is told to a host that wants to freeze or thaw all the same.
    pub fn error(&self, lock: &Path) -> Error {
        let directory = lock.parent().unwrap_or(lock).display();
        Error::new(match self {
            Self::Other(pid) => format!(
                "another agent{} freezes and thaws by the state directory '{directory}': ask that one, or give this one a \
                 directory of its own (-t)",
                pid.map_or_else(String::new, |pid| format!(", process {pid},"))
            ),
            Self::Failed(error) => format!(
                "cannot lock '{}': {}. Without it another agent could freeze at the same time, so nothing is frozen (-t \
                 names another state directory)",
                lock.display(),
                cause_text(error)
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{NotOwned, Ownership};
    use std::process::Command;

    #[test]
    fn a_directory_that_another_process_owns_is_told_with_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let (lock, marker) = (directory.path().join("lock"), directory.path().join("marker"));
        let script = "import fcntl,sys,os\nf=open(sys.argv[1],'w')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint(os.getpid(),flush=True)\nsys.stdin.read()";
        let Ok(mut other) = Command::new("python3")
            .args(["-c", script])
            .arg(&lock)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            panic!("python3 holds the lock in this test");
        };
        let mut pid = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.take().unwrap()), &mut pid).unwrap();
        let refused = Ownership::take(&lock, &marker).unwrap_err();
        assert!(matches!(refused, NotOwned::Other(Some(_))), "{refused:?}");
        let text = refused.error(&lock).desc;
        assert!(text.starts_with(&format!("another agent, process {}, freezes", pid.trim())), "{text}");
        drop(other.stdin.take());
        other.wait().unwrap();
        Ownership::take(&lock, &marker).unwrap();
    }

    #[test]
    fn a_lock_that_another_user_has_laid_there_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (lock, marker) = (directory.path().join("lock"), directory.path().join("marker"));
        let other = directory.path().join("other");
        std::fs::write(&other, "kept").unwrap();
        std::os::unix::fs::symlink(&other, &lock).unwrap();
        drop(Ownership::take(&lock, &marker).unwrap());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "kept");
        assert!(lock.symlink_metadata().unwrap().is_file());
        if rustix::process::geteuid().is_root() {
            std::fs::write(&lock, "").unwrap();
            std::os::unix::fs::chown(&lock, Some(12345), None).unwrap();
            Ownership::take(&lock, &marker).unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&lock.metadata().unwrap()), 0);
        }
    }

    #[test]
    fn a_directory_that_takes_no_lock_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let lock = directory.path().join("missing/lock");
        let text = Ownership::take(&lock, &directory.path().join("marker")).unwrap_err().error(&lock).desc;
        assert!(text.contains("missing/lock': No such file or directory. Without it"), "{text}");
    }
}
