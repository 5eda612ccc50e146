//! A directory of the host below which a guest's tree is put: no name leads out of it, whatever the guest says and
//! whatever links stand there.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::attributes::less_umask;
use super::place::Place;

/// The directory, held open.
#[derive(Debug)]
pub(super) struct Below {
    top: OwnedFd,
    shown: PathBuf,
    /// The last directory that was gone to: the next file is in it most often.
    last: Option<(PathBuf, OwnedFd)>,
}

impl Below {
    pub(super) fn new(top: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(top, flags, Mode::empty())?;
        Ok(Self { top: opened, shown: top.to_owned(), last: None })
    }

    /// A place for a file or a link.
    pub(super) fn place(&mut self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(Errno::INVAL)?.to_owned();
        let directory = self.directory(path.parent().unwrap_or(Path::new("")))?;
        Ok(Place { directory, name, shown: self.shown.join(path) })
    }

    /// Makes a directory where none is, and says whether it did. What a link leads to is none.
    pub(super) fn make_directory(&mut self, path: &Path) -> io::Result<bool> {
        let place = self.place(path)?;
        match mkdirat(&place.directory, &place.name, Mode::RWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => enter(place.directory.as_fd(), &place.name).map(|_| false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a directory that was made here the permissions of the original, less the umask.
    pub(super) fn set_mode(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let place = self.place(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = File::from(openat(&place.directory, &place.name, flags, Mode::empty())?);
        directory.set_permissions(Permissions::from_mode(less_umask(mode)))
    }

    /// Makes a symbolic link; a file or link that is there gives way.
    pub(super) fn make_link(&mut self, path: &Path, target: &OsStr) -> io::Result<()> {
        let place = self.place(path)?;
        match symlinkat(target, &place.directory, &place.name) {
            Err(Errno::EXIST) => {
                unlinkat(&place.directory, &place.name, AtFlags::empty())?;
                Ok(symlinkat(target, &place.directory, &place.name)?)
            }
            made => Ok(made?),
        }
    }

    fn directory(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return directory.try_clone();
        }
        let mut directory = self.top.try_clone()?;
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(Errno::INVAL.into()) };
            directory = enter(directory.as_fd(), name)?;
        }
        self.last = Some((path.to_owned(), directory.try_clone()?));
        Ok(directory)
    }
}

/// Opens a directory in another one, never through a link.
fn enter(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_leads_out_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
        std::fs::create_dir_all(inside.join("d")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        std::os::unix::fs::symlink("../../out", inside.join("d/link")).unwrap();
        let mut below = Below::new(&inside).unwrap();
        for path in ["link/x", "d/link/x", "../out/x", "d/../../out/x", "/tmp/x", "missing/x", "", "..", "."] {
            below.place(Path::new(path)).expect_err(path);
            below.make_directory(Path::new(path)).expect_err(path);
        }
        below.make_directory(Path::new("link")).expect_err("it is a link");
        below.set_mode(Path::new("link"), 0o777).expect_err("it is a link");
        assert!(!below.make_directory(Path::new("d")).unwrap() && below.make_directory(Path::new("d/e")).unwrap());
        below.make_link(Path::new("link"), OsStr::new("elsewhere")).unwrap();
        assert_eq!(std::fs::read_link(inside.join("link")).unwrap(), Path::new("elsewhere"));
        below.make_link(Path::new("d"), OsStr::new("elsewhere")).expect_err("it is a directory");
        assert_eq!(std::fs::read_dir(outside).unwrap().count(), 0);
    }
}
