//! Follows a path with the agent's own rights, a name at a time, and knows who could change where it leads.
//!
//! A symbolic link is followed where every step up to it, and the link, is root's and nobody else can change them: there
//! it is root's word. Anywhere else it is a user's word ([`Links`]), and leads no further than that user could go: the
//! kernel sees to that where the walk has the user's rights, and the walk itself where it has the agent's. Links are read
//! and not handed to the kernel, so those of `/proc` lead where their text says. Every directory on the way is held open,
//! so whatever is renamed meanwhile changes nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// Most links that are followed, as in the kernel.
const LINKS_MAX: usize = 40;
/// Most directories that are held open.
const STEPS_MAX: usize = 256;
/// The bits of a mode that let others than the owner change a directory.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Names in a directory with this bit are changed by their owners alone.
const STICKY: u32 = 0o1000;

/// Whose links are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Root's, where nobody else can change them.
    OfRoot,
    /// Those of this user as well, but only through directories that the user may enter.
    OfUser { uid: u32, gid: u32 },
    /// All: the walk has the rights of a user, and no more.
    All,
}

/// A directory on the way.
#[derive(Debug)]
pub struct Step {
    /// The directory; only a way to what is in it.
    pub directory: OwnedFd,
    /// The user that it belongs to.
    pub owner: u32,
    group: u32,
    mode: u32,
    /// It and everything before it is root's, and nobody else can change what is there.
    pub is_roots: bool,
    /// It is root's and nobody else can change what is in it; somebody may be able to put another in its place.
    pub is_closed: bool,
}

/// Where a walk has come to.
#[derive(Debug)]
pub struct Walk {
    steps: Vec<Step>,
    links: usize,
    follows: Links,
    /// Whether a link of somebody else's than root's has been followed.
    is_led_by_user: bool,
}

/// What a name is.
enum Link {
    /// No link.
    None,
    /// One that is not followed.
    OfAnother,
    To(PathBuf),
}

/// Whether a file of this user's can only have been made by root, or by the user that the agent is.
pub fn is_roots(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// Why a link is in the way.
pub fn symbolic_link(name: &str) -> io::Error {
    io::Error::other(format!("'{name}' is a symbolic link, which is not followed"))
}

impl Step {
    fn new(directory: OwnedFd, is_behind_roots: bool) -> io::Result<Self> {
        let found = fstat(&directory)?;
        let is_ours = is_roots(found.st_uid);
        let is_closed = is_ours && found.st_mode & WRITABLE_BY_OTHERS == 0;
        let is_safe = is_closed || is_ours && found.st_mode & STICKY != 0;
        let is_roots = is_behind_roots && is_safe;
        Ok(Self { directory, owner: found.st_uid, group: found.st_gid, mode: found.st_mode, is_roots, is_closed })
    }

    /// Whether the mode lets a user look for names in it.
    fn can_be_entered_by(&self, uid: u32, gid: u32) -> bool {
        let bit = match self {
            _ if self.owner == uid => 0o100,
            _ if self.group == gid => 0o010,
            _ => 0o001,
        };
        self.mode & bit != 0
    }
}

impl Walk {
    /// Begins in a directory that nobody but root has named.
    pub fn start(root: &Path) -> io::Result<Self> {
        Self::at(root, true)
    }

    /// Begins in a directory that a path leads to as the kernel follows it: nothing is known of the way.
    pub fn start_anywhere(path: &Path) -> io::Result<Self> {
        Self::at(path, false)
    }

    fn at(path: &Path, is_known: bool) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        let steps = vec![Step::new(directory, is_known)?];
        Ok(Self { steps, links: 0, follows: Links::OfRoot, is_led_by_user: false })
    }

    /// The directory that it has come to.
    pub fn here(&self) -> io::Result<&Step> {
        self.steps.last().ok_or_else(|| Errno::NOENT.into())
    }

    /// From here on these links are followed.
    pub fn follow(&mut self, links: Links) {
        self.follows = links;
    }

    /// Whether a link of somebody else's than root's has been followed.
    pub fn is_led_by_user(&self) -> bool {
        self.is_led_by_user
    }

    /// How many links have been followed.
    pub fn links(&self) -> usize {
        self.links
    }

    /// Whether nobody but root can have put the directory in its place.
    pub fn is_named_by_root(&self) -> bool {
        match &self.steps[..] {
            [.., before, _] => before.is_roots,
            [only] => only.is_roots,
            [] => false,
        }
    }

    /// Goes on to a directory. An absolute path begins where the walk began.
    pub fn enter(&mut self, path: &Path) -> io::Result<()> {
        let mut pending: Vec<PathBuf> = vec![path.to_owned()];
        while let Some(next) = pending.pop() {
            let mut components = next.components();
            let Some(component) = components.next() else { continue };
            pending.push(components.as_path().to_owned());
            match component {
                Component::RootDir | Component::Prefix(_) => self.steps.truncate(1),
                Component::CurDir => {}
                Component::ParentDir if self.steps.len() > 1 => drop(self.steps.pop()),
                Component::ParentDir => {}
                Component::Normal(name) => pending.extend(self.enter_one(name)?),
            }
        }
        Ok(())
    }

    /// Goes on to one directory, or returns where a link in its place leads.
    fn enter_one(&mut self, name: &OsStr) -> io::Result<Option<PathBuf>> {
        // Without reading rights for it, and so that a file system that is mounted on demand is.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let here = self.here()?;
        let directory = match openat(&here.directory, name, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return match self.link(name)? {
                    Link::To(target) => Ok(Some(target)),
                    Link::OfAnother => Err(symbolic_link(&name.to_string_lossy())),
                    Link::None => Err(Errno::NOTDIR.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        if self.steps.len() >= STEPS_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let step = Step::new(directory, here.is_roots)?;
        if let Links::OfUser { uid, gid } = self.follows
            && self.is_led_by_user
            && !here.can_be_entered_by(uid, gid)
        {
            return Err(Errno::ACCESS.into());
        }
        self.steps.push(step);
        Ok(None)
    }

    /// Where a name leads.
    fn link(&mut self, name: &OsStr) -> io::Result<Link> {
        let here = self.here()?;
        let found = match statat(&here.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Link::None),
            found => found?,
        };
        if !FileType::from_raw_mode(found.st_mode).is_symlink() {
            return Ok(Link::None);
        }
        if !(here.is_roots && is_roots(found.st_uid)) {
            match self.follows {
                Links::OfUser { uid, gid } if found.st_uid == uid && here.can_be_entered_by(uid, gid) => {}
                Links::All => {}
                _ => return Ok(Link::OfAnother),
            }
            self.is_led_by_user = true;
        }
        let here = self.here()?;
        let target = readlinkat(&here.directory, name, Vec::new())?;
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        Ok(Link::To(PathBuf::from(OsString::from_vec(target.into_bytes()))))
    }

    /// Where a file of that name is, which need not exist: goes on to its directory if links lead there, and returns the
    /// name in it. That may be the name of a link that is not followed.
    pub fn file(&mut self, name: &str) -> io::Result<OsString> {
        let mut name = OsString::from(name);
        while let Link::To(target) = self.link(&name)? {
            let last = target.file_name().ok_or(Errno::ISDIR)?.to_owned();
            if let Some(parent) = target.parent() {
                self.enter(parent)?;
            }
            name = last;
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::Walk;
    use rustix::process::geteuid;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::path::Path;

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in ["a/b", "c", "open"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::set_permissions(root.path().join("open"), fs::Permissions::from_mode(0o777)).unwrap();
        symlink("../c", root.path().join("a/relative")).unwrap();
        symlink("/c/../a/relative/file", root.path().join("a/absolute")).unwrap();
        symlink("round", root.path().join("a/round")).unwrap();
        symlink("/c", root.path().join("open/link")).unwrap();
        root
    }

    fn came_to(walk: &Walk, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let found = rustix::fs::fstat(&walk.here().unwrap().directory).unwrap();
        found.st_ino == path.metadata().unwrap().ino()
    }

    #[test]
    fn links_of_roots_are_followed_inside_the_machine_and_those_of_others_not() {
        let root = machine();
        let walk = || Walk::start(root.path()).unwrap();
        let mut to_c = walk();
        to_c.enter(Path::new("/a/relative/../../../c/.")).unwrap();
        assert!(came_to(&to_c, &root.path().join("c")) && to_c.here().unwrap().is_roots && !to_c.is_led_by_user());
        let mut to_file = walk();
        to_file.enter(Path::new("a")).unwrap();
        assert_eq!(to_file.file("absolute").unwrap(), "file");
        assert!(came_to(&to_file, &root.path().join("c")));
        assert_eq!(to_file.file("nothing").unwrap(), "nothing");
        assert_eq!(walk().enter(Path::new("/a/round")).unwrap_err().raw_os_error(), Some(40));
        let error = walk().enter(Path::new("/open/link")).unwrap_err().to_string();
        assert_eq!(error, "'link' is a symbolic link, which is not followed");
        let mut open = walk();
        open.enter(Path::new("/open")).unwrap();
        assert!(!open.here().unwrap().is_roots && open.is_named_by_root());
        fs::set_permissions(root.path().join("open"), fs::Permissions::from_mode(0o1777)).unwrap();
        walk().enter(Path::new("/open/link")).unwrap();
        if geteuid().is_root() {
            std::os::unix::fs::lchown(root.path().join("open/link"), Some(61_234), None).unwrap();
            walk().enter(Path::new("/open/link")).unwrap_err();
            chown(root.path().join("a"), Some(61_234), None).unwrap();
            walk().enter(Path::new("/a/relative")).unwrap_err();
            let mut to_b = walk();
            to_b.enter(Path::new("/a/b")).unwrap();
            let b = to_b.here().unwrap();
            assert!(b.is_closed && !b.is_roots && !to_b.is_named_by_root());
        } else {
            println!("skipped: only root can give files away");
        }
    }
}
