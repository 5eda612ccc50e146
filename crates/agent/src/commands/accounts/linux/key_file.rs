//! `.ssh/authorized_keys` below a home: read as it is, replaced as a whole.
//!
//! Every step is one name below a directory that is open, and no step follows a symbolic link: that is what openat2(2)
//! with `RESOLVE_NO_SYMLINKS` would do, and works on kernels that lack it. What is opened is looked at before it is
//! read, and opening never waits. What is written has its owner, mode and label before it has its name.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, XattrFlags, fgetxattr, fsetxattr, fstat, openat, statat};
use rustix::io::Errno;

/// The directory below the home.
pub const DIRECTORY: &str = ".ssh";
/// The file in it.
pub const FILE: &str = "authorized_keys";
/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Where `SELinux` keeps a file's label.
const LABEL: &str = "security.selinux";
/// The longest label.
const LABEL_BYTES_MAX: usize = 4096;
/// How many names are tried for the new file.
const ATTEMPTS: usize = 16;

/// A user's `.ssh`.
#[derive(Debug)]
pub struct Directory(OwnedFd);

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// The content.
    pub bytes: Vec<u8>,
    /// The label of `SELinux`.
    pub label: Option<Vec<u8>>,
    /// It belongs to the user, who alone may read and write it.
    pub is_private: bool,
}

fn home(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn symbolic_link(name: &str) -> io::Error {
    io::Error::other(format!("'{name}' is a symbolic link, which is not followed"))
}

/// `None` for what is not there.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

impl Directory {
    /// The directory in a home, if it is there.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        if_there(home(path).and_then(|home| Self::below(&home)))
    }

    /// Makes the directory, for its owner alone. The home must be there.
    pub fn make(path: &Path) -> io::Result<Self> {
        let home = home(path)?;
        rustix::fs::mkdirat(&home, DIRECTORY, Mode::RWXU)?;
        Self::below(&home)
    }

    fn below(home: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(home, DIRECTORY, flags, Mode::empty()).map(Self).map_err(|error| {
            // For a link the kernel says that too.
            let found = statat(home, DIRECTORY, AtFlags::SYMLINK_NOFOLLOW);
            let is_link = found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_symlink());
            if error == Errno::NOTDIR && is_link { symbolic_link(DIRECTORY) } else { error.into() }
        })
    }

    /// The file, if it is there: a plain file with no other name, of the user or of root.
    pub fn read(&self, uid: u32) -> io::Result<Option<KeyFile>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = openat(&self.0, FILE, flags, Mode::empty());
        let opened = opened.map_err(|error| if error == Errno::LOOP { symbolic_link(FILE) } else { error.into() });
        let Some(file) = if_there(opened)? else { return Ok(None) };
        let found = fstat(&file)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(io::Error::other("it is not a regular file")),
        }
        if found.st_nlink > 1 {
            return Err(io::Error::other("the file has another name: a hard link, which is not followed"));
        }
        if ![uid, 0].contains(&found.st_uid) {
            return Err(io::Error::other(format!("the file belongs to another user: user id {}", found.st_uid)));
        }
        let label = label(&file);
        let mut bytes = Vec::new();
        File::from(file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than 4 MiB"));
        }
        let is_private = found.st_uid == uid && Mode::from_raw_mode(found.st_mode) == Mode::RUSR | Mode::WUSR;
        Ok(Some(KeyFile { bytes, label, is_private }))
    }

    /// Puts a new file in the place of the old one, if `may_take_effect` says so at the end. After an error the old one
    /// is as it was.
    pub fn replace(
        &self,
        bytes: &[u8],
        label: Option<&[u8]>,
        gid: u32,
        may_take_effect: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        let (name, file) = self.create()?;
        let replaced = fill(file, bytes, label, gid).and_then(|()| {
            if !may_take_effect() {
                return Err(Errno::TIMEDOUT.into());
            }
            Ok(rustix::fs::renameat(&self.0, &name, &self.0, FILE)?)
        });
        if replaced.is_err() {
            let _ = rustix::fs::unlinkat(&self.0, &name, AtFlags::empty());
        } else {
            // The keys are in force; not every file system can write a directory through.
            let _ = rustix::fs::fsync(&self.0);
        }
        replaced
    }

    /// A new file under a name that nobody can know before.
    fn create(&self) -> io::Result<(String, OwnedFd)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..ATTEMPTS {
            let name = format!("{FILE}.{:016x}", RandomState::new().hash_one(FILE));
            match openat(&self.0, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((name, file)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }
}

fn fill(file: OwnedFd, bytes: &[u8], label_before: Option<&[u8]>, gid: u32) -> io::Result<()> {
    rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    if fstat(&file)?.st_gid != gid {
        // The directory's group instead of the user's own: it has no rights to the file anyway.
        let _ = rustix::fs::fchown(&file, None, Some(Gid::from_raw(gid)));
    }
    if let Some(wanted) = label_before
        && label(&file).as_deref() != Some(wanted)
        && let Err(error) = fsetxattr(&file, LABEL, wanted, XattrFlags::empty())
    {
        log::warn!("a new authorized_keys file has not the SELinux label of the old one: {error}");
    }
    let mut file = File::from(file);
    file.write_all(bytes)?;
    file.sync_all()
}

fn label(file: &OwnedFd) -> Option<Vec<u8>> {
    let mut value = [0; LABEL_BYTES_MAX];
    let length = fgetxattr(file, LABEL, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}
