//! `.ssh/authorized_keys` below a home: read as it is, replaced as a whole.
//!
//! With the user's rights the kernel refuses what the user may not do. With the agent's own, every step is one name below
//! a directory that is open and was looked at ([`walk`](super::walk)): written is only into directories of the user's, or
//! of root's where the user put nothing in the way; read is only what the user may read, or what lies where nobody but
//! root can put anything. Links are followed and stay: root's, and the user's own as far as the user could follow them. One
//! that leads to where the user may not write gives way to a file, as with QEMU's agent. In either case what is opened is looked at before it is read, opening never waits, and what
//! is written has its content, owner, mode and label before it has its name.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, PROC_SUPER_MAGIC, Stat, Uid, XattrFlags, fgetxattr, fsetxattr, fstat,
    fstatfs, openat, statat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::as_user::{Rights, Turn};
use super::users::Account;
use super::walk::{Links, Walk, is_roots, symbolic_link};
use crate::limits::memory_budget::{Budget, Hold};
use crate::system::root::Root;

/// The directory below the home.
pub const DIRECTORY: &str = ".ssh";
/// The file in it.
pub const FILE: &str = "authorized_keys";
/// The largest file: as large as the largest request. Some 80,000 keys of the longest usual kind.
const FILE_BYTES_MAX: usize = 64 << 20;
/// Bytes read or written in one go.
const PIECE_BYTES: usize = 4 << 20;
/// Where `SELinux` keeps a file's label.
const LABEL: &str = "security.selinux";
/// The longest label.
const LABEL_BYTES_MAX: usize = 4096;
/// Where a list is kept of who else may do what with a file.
const ACCESS_LIST: &str = "system.posix_acl_access";
/// How many names are tried for the new file.
const ATTEMPTS: usize = 16;
/// What stays of the mode of a file that root keeps.
const KEPT_BITS: u32 = 0o755;
/// The mode of a directory that is being made: nothing else has it, so nothing else can be taken for it.
const UNFINISHED: u32 = 0o1700;

/// For whom, with which rights, and what for.
pub struct Task<'a> {
    /// Whose keys.
    pub account: &'a Account,
    /// Where the machine is.
    pub root: &'a Root,
    /// With whose rights.
    pub rights: Rights,
    /// What memory there is for the file.
    pub budget: &'a Budget,
    /// Who waits for it.
    pub turn: &'a Turn,
}

/// Where the file is, or belongs.
#[derive(Debug)]
pub struct Place {
    folder: OwnedFd,
    name: OsString,
    /// Nobody but root can have put anything there.
    is_roots: bool,
    /// The folder is root's.
    is_in_roots_folder: bool,
    /// The user may write there, as far as is known.
    is_of_user: bool,
    /// The link of the user's that leads there: its folder.
    link_folder: Option<OwnedFd>,
}

/// What was found.
#[derive(Debug)]
pub struct KeyFile {
    /// The content.
    pub bytes: Vec<u8>,
    /// What the content takes of the agent's memory.
    pub hold: Hold,
    /// Owner and mode are those that a new file would get.
    pub is_private: bool,
    label: Option<Vec<u8>>,
    /// Root keeps it: group and mode.
    kept: Option<(u32, Mode)>,
}

/// `None` for what is not there.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Whether a directory takes no file from this user.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn of_another(what: &str, uid: u32) -> io::Error {
    io::Error::other(format!("{what} belongs to another user: user id {uid}"))
}

impl Task<'_> {
    fn home(&self) -> PathBuf {
        self.root.path(&self.account.home)
    }

    /// Whether the file is the agent's own user's.
    fn is_own(&self) -> bool {
        self.account.uid == geteuid().as_raw()
    }

    fn open_home(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(self.home(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The way to the home with the agent's own rights.
    fn walk_home(&self) -> io::Result<Walk> {
        let known = Walk::start(&self.root.path("/")).and_then(|mut walk| {
            walk.enter(&self.account.home)?;
            Ok(walk)
        });
        if self.is_own() {
            // The kernel may know better, and there is nobody else's right to lend.
            return known.or_else(|_| Walk::start_anywhere(&self.home()));
        }
        let walk = known?;
        let owner = walk.here()?.owner;
        if owner == self.account.uid || walk.is_named_by_root() { Ok(walk) } else { Err(of_another("the home", owner)) }
    }

    /// The way to the home with the user's rights.
    fn walk_as_user(&self) -> io::Result<Walk> {
        let mut walk = Walk::start(&self.root.path("/"))?;
        walk.follow(Links::All);
        walk.enter(&self.account.home)?;
        Ok(walk)
    }

    /// Where the file is; nothing if its directory is not there.
    pub fn find(&self) -> io::Result<Option<Place>> {
        match self.rights {
            Rights::User => if_there(self.walk_as_user().and_then(Place::of_user)),
            Rights::Agent => if_there(self.walk_home().and_then(|walk| self.place(walk))),
        }
    }

    /// Makes the directory, for its owner alone. The home must be there.
    pub fn make(&self) -> io::Result<Place> {
        if let Rights::User = self.rights {
            let home = self.open_home()?;
            rustix::fs::mkdirat(&home, DIRECTORY, Mode::RWXU)?;
            return Place::of_user(self.walk_as_user()?);
        }
        let walk = self.walk_home()?;
        let home = &walk.here()?.directory;
        if self.is_own() {
            rustix::fs::mkdirat(home, DIRECTORY, Mode::RWXU)?;
        } else {
            self.give_directory(home)?;
        }
        self.place(walk)
    }

    /// Makes the directory for another user. It is the user's before it has its name. Whoever owns the home can change
    /// names in it at any time, so it is made sure that what is given away is the new one and no other of root's.
    fn give_directory(&self, home: &OwnedFd) -> io::Result<()> {
        if statat(home, DIRECTORY, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(Errno::EXIST.into());
        }
        let name = new_name(OsStr::new(DIRECTORY));
        rustix::fs::mkdirat(home, &name, Mode::from_raw_mode(UNFINISHED))?;
        let given = self.give(home, &name).and_then(|()| Ok(rustix::fs::renameat(home, &name, home, DIRECTORY)?));
        if given.is_err() {
            let _ = rustix::fs::unlinkat(home, &name, AtFlags::REMOVEDIR);
        }
        given
    }

    fn give(&self, home: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let directory = openat(home, name, flags, Mode::empty())?;
        let (found, around) = (fstat(&directory)?, fstat(home)?);
        let entries = Dir::read_from(&directory)?.filter_map(Result::ok);
        let is_empty = entries.filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")).count() == 0;
        let is_new = found.st_uid == geteuid().as_raw()
            && found.st_mode & 0o1777 == UNFINISHED
            && found.st_dev == around.st_dev
            && is_empty;
        if !is_new {
            return Err(io::Error::other("somebody has put another directory in the place of the new one"));
        }
        let (uid, gid) = (Uid::from_raw(self.account.uid), Gid::from_raw(self.account.gid));
        rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
        Ok(rustix::fs::fchmod(&directory, Mode::RWXU)?)
    }

    /// Goes on from the home, and makes sure that the agent's rights can do no harm there.
    fn place(&self, mut walk: Walk) -> io::Result<Place> {
        let links_to_home = walk.links();
        if !self.is_own() {
            walk.follow(Links::OfUser { uid: self.account.uid, gid: self.account.gid });
        }
        walk.enter(Path::new(DIRECTORY))?;
        let folder = walk.here()?;
        let around_link = rustix::io::fcntl_dupfd_cloexec(&folder.directory, 0)?;
        let is_led_to_folder = walk.is_led_by_user();
        let (is_users, owner) = (folder.owner == self.account.uid, folder.owner);
        if !is_users && !folder.is_roots && !folder.is_closed && !self.is_own() {
            return Err(of_another(&format!("'{DIRECTORY}'"), owner));
        }
        let name = match walk.file(FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && walk.is_led_by_user() && is_users => {
                let (is_roots, is_in_roots_folder, is_of_user) = (false, false, true);
                let folder = rustix::io::fcntl_dupfd_cloexec(&around_link, 0)?;
                let link_folder = Some(around_link);
                return Ok(Place { folder, name: FILE.into(), is_roots, is_in_roots_folder, is_of_user, link_folder });
            }
            found => found?,
        };
        let is_linked = walk.links() > links_to_home;
        let folder = walk.here()?;
        let is_users = folder.owner == self.account.uid && !self.is_own();
        let is_led = walk.is_led_by_user();
        if is_led_to_folder && !is_users {
            return Err(io::Error::other("a symbolic link of the user's leads to a directory of another user's"));
        }
        if is_linked && !is_led && !is_users && !folder.is_roots {
            return Err(io::Error::other("a symbolic link leads to where others than root can change files"));
        }
        Ok(Place {
            // What a user has named is nobody's word but the user's.
            is_roots: folder.is_roots && !is_led,
            is_in_roots_folder: is_roots(folder.owner) && !self.is_own() && !is_led,
            is_of_user: !is_led || is_users,
            link_folder: is_led.then_some(around_link),
            folder: rustix::io::fcntl_dupfd_cloexec(&folder.directory, 0)?,
            name,
        })
    }

    /// Whether the user may read a file of somebody else's. A list of further rights is not worked out.
    fn may_be_read_by_user(&self, file: impl AsFd, found: &Stat) -> bool {
        let of_group = found.st_gid == self.account.gid;
        let bit = if of_group { Mode::RGRP } else { Mode::ROTH };
        let has_list = !matches!(fgetxattr(file, ACCESS_LIST, &mut [0_u8; 0][..]), Err(Errno::NODATA | Errno::NOTSUP));
        Mode::from_raw_mode(found.st_mode).contains(bit) && !has_list
    }

    /// The file, if it is there: a plain file, of the user or of root.
    pub fn read(&self, place: &Place) -> io::Result<Option<KeyFile>> {
        if place.is_nowhere() {
            return Ok(None);
        }
        let Some(file) = if_there(self.open(place))? else { return Ok(None) };
        let found = fstat(&file)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            FileType::Symlink => return Err(symbolic_link(FILE)),
            _ => return Err(io::Error::other("it is not a regular file")),
        }
        let is_users = found.st_uid == self.account.uid;
        if !is_users && !is_roots(found.st_uid) {
            return Err(of_another("the file", found.st_uid));
        }
        let file = match self.rights {
            Rights::User => file,
            Rights::Agent => open_for_reading(&file)?,
        };
        let may_read = is_users || self.may_be_read_by_user(&file, &found);
        if let Rights::Agent = self.rights
            && !may_read
            && !place.is_roots
        {
            // It may be any file of root's that the user has given this name.
            return Err(io::Error::other("the file belongs to root, and the user may not read it"));
        }
        let mode = Mode::from_raw_mode(found.st_mode);
        let is_kept = !is_users && may_read && place.is_in_roots_folder;
        let kept = is_kept.then_some((found.st_gid, mode & Mode::from_raw_mode(KEPT_BITS)));
        let is_private = kept.map_or(is_users && mode == Mode::RUSR | Mode::WUSR, |(_, kept)| kept == mode);
        let label = label(&file);
        let (bytes, hold) = self.read_all(&File::from(file), u64::try_from(found.st_size).unwrap_or(0))?;
        Ok(Some(KeyFile { bytes, hold, is_private, label, kept }))
    }

    fn open(&self, place: &Place) -> io::Result<OwnedFd> {
        let flags = match self.rights {
            Rights::User => OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            // Opening a device can do something already.
            Rights::Agent => OFlags::PATH,
        };
        let opened = openat(&place.folder, &place.name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        opened.map_err(|error| if error == Errno::LOOP { symbolic_link(FILE) } else { error.into() })
    }

    fn read_all(&self, mut file: &File, expected: u64) -> io::Result<(Vec<u8>, Hold)> {
        let too_large = || {
            let text = format!("the file is larger than {} MiB", FILE_BYTES_MAX >> 20);
            io::Error::new(io::ErrorKind::FileTooLarge, text)
        };
        let expected = usize::try_from(expected).ok().filter(|&size| size <= FILE_BYTES_MAX).ok_or_else(too_large)?;
        let mut hold = self.budget.hold();
        let mut bytes = Vec::new();
        loop {
            let wanted = expected.max(bytes.len());
            if !hold.resize(wanted) {
                let text = "the requests of all clients together leave no memory for it at the moment";
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, text));
            }
            // One more, so that the end is met without more memory.
            bytes.reserve_exact(wanted + 1 - bytes.len());
            let length = bytes.len();
            if Read::by_ref(&mut file).take(PIECE_BYTES as u64).read_to_end(&mut bytes)? == 0 {
                return Ok((bytes, hold));
            }
            self.turn.note_progress();
            if bytes.len() > FILE_BYTES_MAX {
                return Err(too_large());
            }
            debug_assert!(bytes.len() > length);
        }
    }

    /// Puts a new file in the place of the old one, if nobody has given it up at the end. After an error the old one is
    /// as it was.
    pub fn replace(&self, place: &Place, old: Option<&KeyFile>, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > FILE_BYTES_MAX {
            let text = format!("the file would be larger than {} MiB", FILE_BYTES_MAX >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        match place.create() {
            // The user may not write there, and what the user wants to have is a file with these keys.
            Err(error) if is_refusal(&error) && place.link_folder.is_some() => {
                let link = place.of_link()?;
                let new = link.create()?;
                self.put(&link, new, old, bytes)
            }
            created => self.put(place, created?, old, bytes),
        }
    }

    /// Fills a new file and gives it the name of the old one.
    fn put(
        &self,
        place: &Place,
        (name, file): (OsString, OwnedFd),
        old: Option<&KeyFile>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let replaced = self.fill(file, bytes, old).and_then(|()| {
            if !self.turn.take() {
                return Err(Errno::TIMEDOUT.into());
            }
            Ok(rustix::fs::renameat(&place.folder, &name, &place.folder, &place.name)?)
        });
        if replaced.is_err() {
            let _ = rustix::fs::unlinkat(&place.folder, &name, AtFlags::empty());
        } else if let Ok(folder) =
            openat(&place.folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        {
            // The keys are in force; not every file system can write a directory through.
            let _ = rustix::fs::fsync(&folder);
        }
        replaced
    }

    fn fill(&self, file: OwnedFd, bytes: &[u8], old: Option<&KeyFile>) -> io::Result<()> {
        if let Some(wanted) = old.and_then(|old| old.label.as_deref())
            && label(&file).as_deref() != Some(wanted)
            && let Err(error) = fsetxattr(&file, LABEL, wanted, XattrFlags::empty())
        {
            log::warn!("a new authorized_keys file has not the SELinux label of the old one: {error}");
        }
        let mut file = File::from(file);
        for piece in bytes.chunks(PIECE_BYTES) {
            file.write_all(piece)?;
            if bytes.len() > PIECE_BYTES {
                file.sync_data()?;
                self.turn.note_progress();
            }
        }
        // Only now: whoever owns it may change it.
        let kept = old.and_then(|old| old.kept);
        let (gid, mode) = kept.unwrap_or((self.account.gid, Mode::RUSR | Mode::WUSR));
        let found = fstat(&file)?;
        let is_given = matches!(self.rights, Rights::Agent) && !self.is_own() && kept.is_none();
        if is_given && found.st_uid != self.account.uid {
            rustix::fs::fchown(&file, Some(Uid::from_raw(self.account.uid)), Some(Gid::from_raw(gid)))?;
        } else if found.st_gid != gid {
            // The directory's group instead: it has no rights to the file anyway, or as many as root's.
            let _ = rustix::fs::fchown(&file, None, Some(Gid::from_raw(gid)));
        }
        rustix::fs::fchmod(&file, mode)?;
        file.sync_all()
    }
}

/// Opens a file that was looked at, and no other.
fn open_for_reading(file: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A name that nobody can know before.
fn new_name(name: &OsStr) -> OsString {
    let mut new = name.to_owned();
    new.push(format!(".{:016x}", RandomState::new().hash_one(FILE)));
    new
}

impl Place {
    /// Goes on from the home with the user's rights.
    fn of_user(mut walk: Walk) -> io::Result<Self> {
        walk.enter(Path::new(DIRECTORY))?;
        let folder = rustix::io::fcntl_dupfd_cloexec(&walk.here()?.directory, 0)?;
        let links = walk.links();
        let name = match walk.file(FILE) {
            Ok(name) => name,
            // A link that leads nowhere gives way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let link_folder = Some(rustix::io::fcntl_dupfd_cloexec(&folder, 0)?);
                let name = OsString::from(FILE);
                return Ok(Self {
                    folder,
                    name,
                    is_roots: false,
                    is_in_roots_folder: false,
                    is_of_user: true,
                    link_folder,
                });
            }
            Err(error) => return Err(error),
        };
        let here = rustix::io::fcntl_dupfd_cloexec(&walk.here()?.directory, 0)?;
        if fstatfs(&here)?.f_type as u64 == PROC_SUPER_MAGIC as u64 {
            // There the agent's own thread finds what is the agent's.
            return Err(io::Error::other("a symbolic link leads into /proc"));
        }
        let link_folder = (walk.links() > links).then_some(folder);
        Ok(Self { folder: here, name, is_roots: false, is_in_roots_folder: false, is_of_user: true, link_folder })
    }

    /// Whether it is the place of a link that leads nowhere.
    fn is_nowhere(&self) -> bool {
        self.link_folder.is_some()
            && self.name == FILE
            && statat(&self.folder, FILE, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_symlink())
    }

    /// The place of the link that leads there.
    fn of_link(&self) -> io::Result<Self> {
        let folder = self.link_folder.as_ref().ok_or(Errno::NOENT)?;
        let folder = rustix::io::fcntl_dupfd_cloexec(folder, 0)?;
        let (is_roots, is_in_roots_folder, is_of_user) = (false, false, true);
        Ok(Self { folder, name: FILE.into(), is_roots, is_in_roots_folder, is_of_user, link_folder: None })
    }

    /// A new file beside it, under a name that nobody can know before.
    fn create(&self) -> io::Result<(OsString, OwnedFd)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !self.is_of_user {
            return Err(Errno::ACCESS.into());
        }
        for _ in 0..ATTEMPTS {
            let name = new_name(&self.name);
            match openat(&self.folder, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((name, file)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }
}

fn label(file: &impl AsFd) -> Option<Vec<u8>> {
    let mut value = [0; LABEL_BYTES_MAX];
    let length = fgetxattr(file, LABEL, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use super::{Rights, Task, Turn, UNFINISHED};
    use crate::commands::accounts::linux::users::Account;
    use crate::limits::memory_budget::Budget;
    use crate::system::root::Root;
    use rustix::process::geteuid;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// A user who owns the home can put something else in the place of a directory that root makes there, between any
    /// two steps.
    #[test]
    fn no_directory_is_given_away_but_a_new_one() {
        if !geteuid().is_root() {
            println!("skipped: only root can give files away");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let account = Account { uid: 61_234, gid: 61_234, home: "/home".into() };
        let path = |name: &str| directory.path().join("home").join(name);
        let make = |name: &str, mode: u32| {
            fs::create_dir_all(path(name)).unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        make("new", UNFINISHED);
        make("closed", 0o700);
        make("open", 0o755);
        make("full", UNFINISHED);
        fs::write(path("full/file"), "").unwrap();
        make("given", UNFINISHED);
        std::os::unix::fs::chown(path("given"), Some(61_235), None).unwrap();
        symlink("closed", path("link")).unwrap();
        fs::write(path("file"), "").unwrap();
        let (budget, turn) = (Budget::default(), Turn::default());
        let task = Task { account: &account, root: &root, rights: Rights::Agent, budget: &budget, turn: &turn };
        let home = task.open_home().unwrap();
        for name in ["closed", "open", "full", "given", "link", "file", "nothing"] {
            assert!(task.give(&home, OsStr::new(name)).is_err(), "{name}");
            assert!(path(name).symlink_metadata().map_or(0, |found| found.uid()) != 61_234, "{name}");
        }
        task.give(&home, OsStr::new("new")).unwrap();
        let found = path("new").metadata().unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (61_234, 61_234, 0o700));
    }
}
