//! The file on the host that becomes the copy when it is whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::PARTIAL;

/// How often a partial file is looked for anew because another copy has just given it its final name.
const TRIES: u32 = 16;

/// A partial file that no other copy writes to: it is locked as long as this lives.
pub(super) struct Partial {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl Partial {
    /// Opens the partial file of a path or makes one.
    pub(super) fn beside(host: &Path) -> io::Result<Self> {
        // A link that leads nowhere, or that may not be followed, is replaced as any other.
        if let Ok(there) = host.metadata()
            && !there.is_file()
        {
            let what = if there.is_dir() { "it is a directory" } else { "it is a device, a socket or a FIFO" };
            return Err(refusal(what));
        }
        let name = host.file_name().ok_or_else(|| refusal("it has no file name"))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(PARTIAL);
        let path = host.with_file_name(partial);
        for _ in 0..TRIES {
            let Some(file) = open(&path)? else { continue };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => break,
                // A file system without locks.
                Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            let partial = Self { file, path: path.clone() };
            if partial.has_its_name() {
                return Ok(partial);
            }
        }
        Err(in_use())
    }

    /// Gives the whole file its permissions and its name.
    pub(super) fn complete(&self, host: &Path, mode: Option<u32>) -> io::Result<()> {
        let mode = mode.unwrap_or_else(mode_of_a_new_file);
        self.file.set_permissions(Permissions::from_mode(mode & 0o777))?;
        // Some file systems tell only now that a write has failed.
        self.file.sync_all()?;
        if !self.has_its_name() {
            return Err(in_use());
        }
        fs::rename(&self.path, host)
    }

    /// Removes the file. An error of that would hide the one that led here.
    pub(super) fn remove(&self) {
        if self.has_its_name() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Whether what stands under the name is the file that is open here.
    fn has_its_name(&self) -> bool {
        let identity = |file: fs::Metadata| (file.dev(), file.ino());
        match (self.file.metadata(), fs::symlink_metadata(&self.path)) {
            (Ok(open), Ok(named)) => identity(open) == identity(named),
            _ => false,
        }
    }
}

/// Opens a partial file of our own, never what a link leads to; what else stands there makes room. `None` if somebody
/// else was faster.
fn open(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    // A FIFO would be waited for.
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    match options.open(path) {
        Ok(file) if is_ours(&file.metadata()?) => return Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        _ => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        },
    }
    match options.create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        made => made.map(Some),
    }
}

/// A file with a second name is somebody's, and writing to the partial file would write to it.
fn is_ours(file: &fs::Metadata) -> bool {
    file.is_file() && file.nlink() == 1 && file.uid() == rustix::process::geteuid().as_raw()
}

fn refusal(cause: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, cause.to_owned())
}

fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "another copy to the same file is at work")
}

/// Read without changing it, which other threads would notice.
fn mode_of_a_new_file() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    0o666 & !mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_to_one_file_are_one_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("x");
        let first = Partial::beside(&host).unwrap();
        let refused = Partial::beside(&host).err().expect("the first is at work");
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        first.complete(&host, None).unwrap();
        let second = Partial::beside(&host).unwrap();
        // What another program does to the name is noticed.
        fs::remove_file(&second.path).unwrap();
        fs::write(&second.path, "half").unwrap();
        assert_eq!(second.complete(&host, None).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        second.remove();
        assert_eq!(fs::read(&second.path).unwrap(), b"half");
        assert_eq!(fs::read(&host).unwrap(), b"");
    }

    #[test]
    fn a_partial_file_with_a_second_name_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "keep").unwrap();
        fs::hard_link(&victim, directory.path().join(".x.qga-partial")).unwrap();
        let partial = Partial::beside(&directory.path().join("x")).unwrap();
        partial.file.set_len(0).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"keep");
    }
}
