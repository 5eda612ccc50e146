//! What outlives the agent, in the state directory: the counter of file handles (`qga.state`) and the mark that file
//! systems are frozen (`qga.state.isfrozen`).
//!
//! The counter makes a handle that a former agent gave out fail instead of naming another file. It has to survive the
//! process, not the machine: after a reboot no client holds a handle. So it is written by temporary file and rename,
//! never half, but not forced to the disk, which would cost every opening of a file a wait for the disk.
//!
//! The format is the original's, so that either can take over from the other.

use crate::system::error::StartFailure;
use crate::system::error::cause_text;
use crate::system::key_file::KeyFile;
use crate::system::own_file;
use crate::system::whole_file;
use std::fs::DirBuilder;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// The first handle ever given out.
const FIRST_HANDLE: i64 = 1000;
/// Above this the stored counter is not believed: counting on would run out of numbers.
const LAST_BELIEVED_HANDLE: i64 = i64::MAX - (1 << 32);
/// A counter's file has some thirty bytes.
const MAX_STATE_BYTES: u64 = 64 * 1024;

/// The file in a state directory whose existence says that file systems are frozen.
pub fn frozen_marker(directory: &Path) -> PathBuf {
    directory.join("qga.state.isfrozen")
}

/// The state directory of a running agent.
#[derive(Debug)]
pub struct State {
    directory: PathBuf,
    next_handle: i64,
}

impl State {
    /// Reads the state; what is missing is created, what cannot be understood is started anew with a warning.
    pub fn open(directory: &Path) -> Result<Self, StartFailure> {
        let act = |what: &str| format!("cannot {what} the state directory '{}'", directory.display());
        // Only if it is missing: on a frozen file system even creating what exists waits for the thaw.
        if directory.exists() && !directory.is_dir() {
            return Err(StartFailure::of(act("use"), &rustix::io::Errno::NOTDIR.into()));
        }
        if !directory.is_dir() {
            let mut builder = DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|error| StartFailure::of(act("create"), &error))?;
        }
        let mut state = Self { directory: directory.to_owned(), next_handle: FIRST_HANDLE };
        let is_frozen = match std::fs::symlink_metadata(frozen_marker(directory)) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(StartFailure::of(act("read"), &error)),
        };
        match state.stored_handle() {
            Ok(Some(handle)) => state.next_handle = handle,
            Ok(None) if is_frozen => {} // Nothing may be written now: the directory may be on a frozen file system.
            Ok(None) => {
                state.store(FIRST_HANDLE).map_err(|error| StartFailure::of(act("write to"), &error))?;
            }
            Err(problem) => {
                log::warn!("{}: {problem}; file handles start at {FIRST_HANDLE} again", state.counter_file().display());
            }
        }
        Ok(state)
    }

    /// A number that no handle had before; it is stored before it is given out.
    pub fn next_handle(&mut self) -> io::Result<i64> {
        let handle = self.next_handle;
        let next = handle.checked_add(1).ok_or_else(|| io::Error::other("no handle numbers are left"))?;
        self.store(next).map_err(|error| {
            let (reason, file) = (cause_text(&error), self.counter_file());
            let text =
                format!("failed to commit persistent state to disk: cannot write '{}': {reason}", file.display());
            io::Error::new(error.kind(), text)
        })?;
        self.next_handle = next;
        Ok(handle)
    }

    fn counter_file(&self) -> PathBuf {
        self.directory.join("qga.state")
    }

    /// The stored counter, None without one; an error says what is wrong with it.
    fn stored_handle(&self) -> Result<Option<i64>, String> {
        let path = self.counter_file();
        let read = || -> io::Result<Vec<u8>> {
            // A state directory may be one like /tmp, where anybody can lay a FIFO, a link, or a file.
            let file = own_file::open(std::fs::File::options().read(true), &path)?;
            let mut bytes = Vec::new();
            file.take(MAX_STATE_BYTES + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MAX_STATE_BYTES {
                return Err(io::Error::other("the file is larger than 64 KiB"));
            }
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cause_text(&error)),
        };
        let file = KeyFile::parse(&bytes).map_err(|problem| format!("line {}: {}", problem.line, problem.text))?;
        let Some(entry) = file.last("global", "fd_counter") else { return Ok(None) };
        let value = String::from_utf8_lossy(&entry.raw_value);
        match value.trim_end().parse::<i64>() {
            Ok(handle @ 0..=LAST_BELIEVED_HANDLE) => Ok(Some(handle)),
            _ => Err(format!("line {}: '{}' is no handle number", entry.line, value.escape_debug())),
        }
    }

    fn store(&self, handle: i64) -> io::Result<()> {
        whole_file::write(&self.counter_file(), format!("[global]\nfd_counter={handle}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn stored(directory: &Path) -> String {
        std::fs::read_to_string(directory.join("qga.state")).unwrap()
    }

    #[test]
    fn handles_count_from_1000_and_go_on_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::open(directory.path()).unwrap();
        assert_eq!(stored(directory.path()), "[global]\nfd_counter=1000\n");
        assert_eq!(state.next_handle().unwrap(), 1000);
        assert_eq!(state.next_handle().unwrap(), 1001);
        assert_eq!(stored(directory.path()), "[global]\nfd_counter=1002\n");
        assert_eq!(State::open(directory.path()).unwrap().next_handle().unwrap(), 1002);
        let names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["qga.state"]);
        assert_eq!(std::fs::metadata(directory.path().join("qga.state")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_stored_is_believed_if_it_can_be_a_handle() {
        for (content, next) in [
            ("[global]\nfd_counter=2000\n", 2000),
            ("[global]\nfd_counter=0\n", 0),
            ("[global]\nfd_counter=2147483648\n", 2_147_483_648),
            ("", 1000),
            ("[global]\n", 1000),
            ("[other]\nfd_counter=5\n", 1000),
            ("[global]\nfd_counter=abc\n", 1000),
            ("[global]\nfd_counter=-5\n", 1000),
            ("[global]\nfd_counter=9223372036854775807\n", 1000),
            ("garbage\n", 1000),
            ("\0\0\0\0\0\0", 1000),
        ] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("qga.state"), content).unwrap();
            assert_eq!(State::open(directory.path()).unwrap().next_handle().unwrap(), next, "{content:?}");
        }
    }

    #[test]
    fn what_others_have_laid_in_the_directory_neither_stops_the_start_nor_is_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let other = directory.path().join("other");
        std::fs::write(&other, "[global]\nfd_counter=2000\n").unwrap();
        std::os::unix::fs::symlink(&other, directory.path().join("qga.state")).unwrap();
        assert_eq!(State::open(directory.path()).unwrap().next_handle().unwrap(), 1000);
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "[global]\nfd_counter=2000\n");
        std::fs::remove_file(directory.path().join("qga.state")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, directory.path().join("qga.state"), fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert_eq!(State::open(directory.path()).unwrap().next_handle().unwrap(), 1000);
        if rustix::process::geteuid().is_root() {
            std::fs::remove_file(directory.path().join("qga.state")).unwrap();
            std::fs::write(directory.path().join("qga.state"), "[global]\nfd_counter=2000\n").unwrap();
            std::os::unix::fs::chown(directory.path().join("qga.state"), Some(12345), None).unwrap();
            assert_eq!(State::open(directory.path()).unwrap().next_handle().unwrap(), 1000);
        }
    }

    #[test]
    fn a_missing_directory_is_created() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        State::open(&deep).unwrap();
        assert!(deep.join("qga.state").exists());
    }

    #[test]
    fn a_directory_that_is_a_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let text = State::open(&file.join("below")).unwrap_err().text;
        assert_eq!(
            text,
            format!("cannot create the state directory '{}': Not a directory", file.join("below").display())
        );
    }

    #[test]
    fn a_handle_that_cannot_be_stored_is_not_given_out() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("below");
        let mut state = State::open(&below).unwrap();
        std::fs::remove_dir_all(&below).unwrap();
        let text = state.next_handle().unwrap_err().to_string();
        let file = below.join("qga.state");
        let expected = "failed to commit persistent state to disk: cannot write";
        assert_eq!(text, format!("{expected} '{}': No such file or directory", file.display()));
        std::fs::create_dir(&below).unwrap();
        assert_eq!(state.next_handle().unwrap(), 1000);
    }

    #[test]
    fn a_marked_agent_writes_nothing_at_start() {
        let directory = tempfile::tempdir().unwrap();
        State::open(directory.path()).unwrap();
        std::fs::remove_file(directory.path().join("qga.state")).unwrap();
        std::fs::write(frozen_marker(directory.path()), "").unwrap();
        State::open(directory.path()).unwrap();
        assert!(!directory.path().join("qga.state").exists());
    }
}
