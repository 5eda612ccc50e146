//! The file on the host that becomes the copy when it is whole.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, flock, fstatvfs, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::attributes::{give_those_of, less_umask};
use super::place::{Place, refusal};
use super::{holes, names};

/// How often a partial file is looked for anew because another copy has just given it its final name.
const TRIES: u32 = 16;

/// A partial file that no other copy writes to: it is locked as long as this lives.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) file: File,
    pub(super) at: Place,
    /// Whether it is the final file itself, in a directory that takes no other one.
    pub(super) is_direct: bool,
}

impl Partial {
    /// Opens the partial file for a place or makes one. To be found again it needs the name of the source.
    pub(super) fn beside(place: &Place, source: Option<&str>) -> io::Result<Self> {
        let name = place.name.as_bytes();
        let partial = source.map_or_else(|| names::own(name), |source| names::shared(name, source));
        let at = place.beside(&partial)?;
        for _ in 0..TRIES {
            let file = match open(&at) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                // As in /proc, and in a directory of somebody else's: the file itself may take it all the same.
                Err(error) if is_refused(&error) => return Self::direct(place).map_err(|_| error),
                Err(error) => return Err(error),
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => break,
                // A file system without locks.
                Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            if is_named(&file, &at) {
                return Ok(Self { file, at, is_direct: false });
            }
        }
        Err(in_use())
    }

    fn direct(place: &Place) -> io::Result<Self> {
        let file = place.open_there(OFlags::WRONLY | OFlags::TRUNC)?.ok_or(Errno::NOENT)?;
        Ok(Self { file, at: place.beside(place.name.as_bytes())?, is_direct: true })
    }

    /// Makes the whole file the one at the place. A new one gets these permissions less the umask, those of any new file if
    /// there are none; one that is there keeps its own.
    pub(super) fn complete(&self, place: &Place, mode: Option<u32>) -> io::Result<()> {
        // Some file systems tell only now that a write has failed.
        let synced = self.file.sync_all();
        synced.or_else(|error| if self.is_direct && is_unsyncable(&error) { Ok(()) } else { Err(error) })?;
        self.complete_quickly(place, mode)
    }

    /// As [`complete`](Self::complete), without waiting until it is on the disk: for one of many small files.
    pub(super) fn complete_quickly(&self, place: &Place, mode: Option<u32>) -> io::Result<()> {
        if self.is_direct {
            return Ok(());
        }
        let is_replaced = match place.look()? {
            Some((FileType::RegularFile, 1)) => {
                let there = place.open_there(OFlags::RDONLY);
                there.and_then(|there| there.map_or(Ok(()), |there| give_those_of(&there, &self.file))).is_ok()
            }
            // Its other names are to have the new content too.
            Some((FileType::RegularFile, _)) => false,
            Some((FileType::Symlink, _)) | None => {
                let mode = less_umask(mode.unwrap_or(0o666));
                self.file.set_permissions(Permissions::from_mode(mode))?;
                true
            }
            Some((FileType::Directory, _)) => return Err(refusal("it is a directory")),
            Some(_) => return Err(refusal("it is a device, a socket or a FIFO")),
        };
        if !self.has_its_name() {
            return Err(in_use());
        }
        if is_replaced {
            match renameat(&self.at.directory, &self.at.name, &place.directory, &place.name) {
                // Something is mounted there, or the file belongs to another user in a directory with the sticky bit.
                Err(Errno::BUSY | Errno::XDEV | Errno::PERM | Errno::ACCESS) => {}
                renamed => return Ok(renamed?),
            }
        }
        self.write_into(place)
    }

    /// Writes the content into the file that is there, as cp does.
    fn write_into(&self, place: &Place) -> io::Result<()> {
        let there = place.open_there(OFlags::WRONLY)?.ok_or_else(in_use)?;
        let (size, old) = (self.file.metadata()?, there.metadata()?);
        let free = fstatvfs(&there).map_or(u64::MAX, |system| system.f_bavail.saturating_mul(system.f_frsize));
        if size.blocks() * 512 > free.saturating_add(old.blocks() * 512) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "no space left on device for a second copy, from which a file with several names is written",
            ));
        }
        there.set_len(0)?;
        holes::copy(&self.file, &there)?;
        there.sync_all()?;
        self.remove();
        Ok(())
    }

    /// Whether bytes are in it that another try can go on from.
    pub(super) fn is_worth_keeping(&self) -> bool {
        !self.is_direct && self.file.metadata().is_ok_and(|partial| partial.len() > 0)
    }

    /// Removes the file. An error of that would hide the one that led here.
    pub(super) fn remove(&self) {
        if !self.is_direct && self.has_its_name() {
            let _ = unlinkat(&self.at.directory, &self.at.name, AtFlags::empty());
        }
    }

    fn has_its_name(&self) -> bool {
        is_named(&self.file, &self.at)
    }
}

/// Whether what stands under a name is the file that is open.
fn is_named(file: &File, at: &Place) -> bool {
    match (file.metadata(), statat(&at.directory, &at.name, AtFlags::SYMLINK_NOFOLLOW)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.st_dev, named.st_ino),
        _ => false,
    }
}

/// Opens a partial file of our own, never what a link leads to; what else stands there makes room. `None` if somebody
/// else was faster.
fn open(at: &Place) -> io::Result<Option<File>> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match openat(&at.directory, &at.name, flags, Mode::empty()).map(File::from) {
        Ok(file) if is_ours(&file.metadata()?) => return Ok(Some(file)),
        Err(Errno::NOENT) => {}
        _ => match unlinkat(&at.directory, &at.name, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT => return Err(error.into()),
            _ => {}
        },
    }
    match openat(&at.directory, &at.name, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR) {
        Err(Errno::EXIST) => Ok(None),
        made => Ok(made.map(|made| Some(File::from(made)))?),
    }
}

/// A file with a second name is somebody's, and writing to the partial file would write to it.
fn is_ours(file: &std::fs::Metadata) -> bool {
    file.is_file() && file.nlink() == 1 && file.uid() == rustix::process::geteuid().as_raw()
}

/// Whether a directory takes no new file, for other reasons than room.
fn is_refused(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | NotFound | Unsupported)
}

/// Files that the kernel makes up have nothing to write out.
fn is_unsyncable(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP))
}

fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "another copy to the same file is at work")
}

#[cfg(test)]
mod tests {
    use super::super::place::Destination;
    use super::*;
    use std::fs;
    use std::path::Path;

    fn place(path: &Path) -> Place {
        match Destination::of(path).unwrap() {
            Destination::File(place) => place,
            Destination::Through(path) => panic!("{} is no file", path.display()),
        }
    }

    #[test]
    fn two_copies_that_resume_to_one_file_are_one_too_many() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("x");
        let place = place(&host);
        let first = Partial::beside(&place, Some("s")).unwrap();
        let refused = Partial::beside(&place, Some("s")).expect_err("the first is at work");
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        first.complete(&place, None).unwrap();
        let second = Partial::beside(&place, Some("s")).unwrap();
        // What another program does to the name is noticed.
        fs::remove_file(&second.at.shown).unwrap();
        fs::write(&second.at.shown, "half").unwrap();
        let refused = second.complete(&place, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        second.remove();
        assert_eq!(fs::read(&second.at.shown).unwrap(), b"half");
        assert_eq!(fs::read(&host).unwrap(), b"");
    }

    #[test]
    fn a_partial_file_with_a_second_name_or_behind_a_link_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "keep").unwrap();
        let place = place(&directory.path().join("x"));
        let name = Partial::beside(&place, Some("s")).unwrap().at.shown;
        for make in [fs::hard_link::<&Path, &Path>, std::os::unix::fs::symlink::<&Path, &Path>] {
            fs::remove_file(&name).unwrap();
            make(&victim, &name).unwrap();
            let partial = Partial::beside(&place, Some("s")).unwrap();
            partial.file.set_len(0).unwrap();
            assert_eq!(fs::read(&victim).unwrap(), b"keep");
        }
    }

    #[test]
    fn a_file_with_two_names_keeps_both() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        fs::write(&one, "old and longer").unwrap();
        fs::hard_link(&one, &other).unwrap();
        let place = place(&one);
        let partial = Partial::beside(&place, None).unwrap();
        fs::write(&partial.at.shown, "new").unwrap();
        partial.complete(&place, Some(0o600)).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "the partial file is left");
    }
}
