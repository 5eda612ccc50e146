//! Where a copy on the host goes: what stands there decides how it is written.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, openat, statat};
use rustix::io::Errno;

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// A name in a directory that is held open, so that nobody can put another one in its place.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
    /// The path for people.
    pub(super) shown: PathBuf,
}

/// What a path of the host turned out to be.
#[derive(Debug)]
pub(super) enum Destination {
    /// A regular file, or nothing yet.
    File(Place),
    /// A device or a FIFO, or an open file that `/dev/stdout` and its like lead to: it is written to as it is.
    Through(PathBuf),
}

impl Destination {
    /// Follows the links at a path, as cp does, those that lead to nothing yet included.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
                _ => PathBuf::from("."),
            };
            match fs::symlink_metadata(&path) {
                // A link of the kernel's: its text is not the way, and what it leads to is open already.
                Ok(there) if there.is_symlink() && is_of_the_kernel(&parent) => return Ok(Self::Through(path)),
                Ok(there) if there.is_symlink() => path = parent.join(fs::read_link(&path)?),
                Ok(there) if there.is_dir() => return Err(refusal("it is a directory")),
                Ok(there) if there.file_type().is_socket() => return Err(refusal("it is a socket")),
                Ok(there) if there.is_file() => return Place::at(&parent, &path).map(Self::File),
                Ok(_) => return Ok(Self::Through(path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Place::at(&parent, &path).map(Self::File);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Errno::LOOP.into())
    }
}

impl Place {
    fn at(parent: &Path, path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| refusal("it has no file name"))?;
        let directory =
            fs::OpenOptions::new().read(true).custom_flags(flags(OFlags::PATH | OFlags::DIRECTORY)).open(parent)?;
        Ok(Self { directory: directory.into(), name: name.to_owned(), shown: path.to_owned() })
    }

    /// Opens what stands there, if it is a regular file; a link is none.
    pub(super) fn open_there(&self, flags: OFlags) -> io::Result<Option<File>> {
        // A FIFO would be waited for.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.directory, &self.name, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                Ok(file.metadata()?.is_file().then_some(file))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What stands there: its kind, and how many names it has.
    pub(super) fn look(&self) -> io::Result<Option<(FileType, u64)>> {
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Ok(Some((FileType::from_raw_mode(there.st_mode as RawMode), there.st_nlink))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Another name in the same directory.
    pub(super) fn beside(&self, name: &[u8]) -> io::Result<Self> {
        let name = OsStr::from_bytes(name).to_owned();
        let shown = self.shown.with_file_name(&name);
        Ok(Self { directory: self.directory.as_fd().try_clone_to_owned()?, name, shown })
    }
}

pub(super) fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

fn is_of_the_kernel(directory: &Path) -> bool {
    rustix::fs::statfs(directory).is_ok_and(|there| there.f_type as u64 == rustix::fs::PROC_SUPER_MAGIC as u64)
}

pub(super) fn refusal(cause: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, cause.to_owned())
}
