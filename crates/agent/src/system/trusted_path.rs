//! Follows a path step by step and tells who else than root could lead it elsewhere.
//!
//! The agent is root: what it runs, obeys or writes to by name must not be for an ordinary user to choose. A look at
//! where a path leads (realpath, stat) proves nothing: a link that lies in a user's directory is another one a moment
//! later. So each step is opened by its descriptor, links are followed here, and owner and mode are those of the
//! descriptor. A path without a [`Doubt`] can be changed by root alone, so it still leads to the same file when the
//! kernel follows it afterwards. That is why hooks are started by their name, which they find their files by (`$0`).
//!
//! Files that are written to may lie in directories of others, as logs do: see [`open_to_write`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, PROC_SUPER_MAGIC, Stat, fstat, fstatfs, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::system::root::Root;

/// Most symbolic links followed on one path, as in the kernel.
const LINKS_MAX: usize = 40;
/// Bits of a mode: everybody may write, the group may write, only owners remove what is in it.
const ALL_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// Who could change a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Everybody, by its mode.
    All,
    /// The group of this number, by its mode.
    Group(u32),
    /// The user of this number, to whom it belongs.
    Owner(u32),
    /// The user of this number: it is a link of theirs in a directory that others may write to.
    LinkOwner(u32),
}

/// A step of a path that somebody other than root could change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The step, all links before it followed.
    pub step: PathBuf,
    /// Who could change it.
    pub who: Who,
    /// Its mode.
    pub mode: u32,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, mode) = (self.step.display(), self.mode);
        match self.who {
            Who::All => {
                write!(f, "the mode of '{step}' is {mode:04o}: everybody may change it; 'chmod o-w {step}' mends that")
            }
            Who::Group(group) => write!(
                f,
                "the mode of '{step}' is {mode:04o}: its group, {group}, may change it; 'chmod g-w {step}' mends that"
            ),
            Who::Owner(user) => write!(
                f,
                "the owner of '{step}' (mode {mode:04o}) is the user {user}, not root; 'chown root {step}' mends that"
            ),
            Who::LinkOwner(user) => write!(
                f,
                "the link '{step}' is the user {user}'s, in a directory that others may write to; \
                 'chown -h root {step}' mends that"
            ),
        }
    }
}

/// Where a path leads, all links followed, also the last one.
#[derive(Debug)]
pub struct Walk {
    /// The directory that the last step is in.
    directory: OwnedFd,
    /// The last step's name there; `.` if the path is the directory itself.
    name: OsString,
    /// The last step, unless nothing is there. The descriptor is for looking at it alone (`O_PATH`).
    found: Option<Stat>,
    /// It is a link of the kernel's to something open (`/proc/self/fd/2`), which has no other name.
    is_open_already: bool,
    /// Whether others than root may put something else in the last step's place.
    may_be_replaced: bool,
    /// The path without links.
    real: PathBuf,
    /// The steps that others could change, in their order. The last step's own come last.
    doubts: Vec<Doubt>,
}

impl Walk {
    /// What somebody other than root could change.
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }

    /// What kind of file it is; nothing if nothing is there.
    pub fn kind(&self) -> Option<FileType> {
        self.found.as_ref().map(|stat| FileType::from_raw_mode(stat.st_mode))
    }

    /// The path without links.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// Whether something is there.
    pub fn is_there(&self) -> bool {
        self.found.is_some()
    }

    /// Opens what was found, and nothing else that has its name by now.
    pub fn open(&self, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let no_link = if self.is_open_already { OFlags::empty() } else { OFlags::NOFOLLOW };
        Ok(openat(&self.directory, &self.name, flags | no_link | OFlags::CLOEXEC, mode)?)
    }
}

/// Follows a path to its end. What is missing at the end is for [`Walk::open`] to find out; before it, it is an error.
pub fn walk(root: &Root, path: &Path) -> io::Result<Walk> {
    if path.as_os_str().is_empty() {
        return Err(Errno::NOENT.into());
    }
    let mut walker = Walker::at_root(root)?;
    let mut pending = steps(&std::path::absolute(path)?);
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            walker.up();
            continue;
        }
        let is_last = pending.is_empty();
        let Some((step, stat)) = walker.step(&name, is_last)? else {
            if is_last {
                return Ok(walker.end(name, None, false));
            }
            return Err(Errno::NOENT.into());
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            if is_last {
                return Ok(walker.end(name, Some(stat), false));
            }
            walker.enter(&name, step, &stat)?;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        walker.doubt_link(&name, &stat);
        let here = walker.here();
        if fstatfs(here)?.f_type == PROC_SUPER_MAGIC {
            // The text of such a link is only a description.
            if is_last {
                let stat = statat(here, &name, AtFlags::empty())?;
                return Ok(walker.end(name, Some(stat), true));
            }
            let target = openat(here, &name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let stat = fstat(&target)?;
            walker.enter(&name, target, &stat)?;
            continue;
        }
        let target = readlinkat(here, &name, Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            walker.back_to_root();
        }
        pending.extend(steps(&target));
    }
    // The root, or a path that ends with `..`.
    let stat = fstat(walker.here())?;
    Ok(walker.end(".".into(), Some(stat), false))
}

/// The first reason why a file is not to be obeyed as root's word: a step of its path, or the file itself, that others
/// could change. What a group may change is warned of if the administrator has named the file, as the original takes it.
pub fn first_refusal(walk: &Walk, is_named: bool, warn: impl FnMut(&Doubt)) -> Option<&Doubt> {
    let is_borne = |doubt: &&Doubt| is_named && matches!(doubt.who, Who::Group(_));
    let refusal = walk.doubts.iter().find(|doubt| !is_borne(doubt));
    if refusal.is_none() {
        walk.doubts.iter().for_each(warn);
    }
    refusal
}

/// Opens a file that the agent writes to. It may lie where others may write, as logs do; there it must not be a link to,
/// or another name of, a file of root's that somebody would like to see overwritten.
pub fn open_to_write(path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let refused = |text: String| io::Error::new(io::ErrorKind::PermissionDenied, text);
    let walk = walk(&Root::host(), path)?;
    if let Some(doubt) = walk.doubts.iter().find(|doubt| matches!(doubt.who, Who::LinkOwner(_))) {
        return Err(refused(doubt.to_string()));
    }
    let file = walk.open(flags, mode)?;
    let stat = fstat(&file)?;
    let has_other_names = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink > 1;
    if walk.may_be_replaced && has_other_names {
        return Err(refused(format!(
            "the file has {} names, and others than root may write to its directory; 'rm {}' mends that",
            stat.st_nlink,
            walk.real.display()
        )));
    }
    Ok(file)
}

/// The steps of a path, the first one last.
fn steps(path: &Path) -> Vec<OsString> {
    let step = |component: Component<'_>| match component {
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        Component::ParentDir => Some(OsString::from("..")),
        Component::Normal(name) => Some(name.to_owned()),
    };
    path.components().rev().filter_map(step).collect()
}

/// A directory on the way.
struct Passed {
    descriptor: OwnedFd,
    path: PathBuf,
    /// Others may put something in the place of what is in it, whoever owns that.
    is_open: bool,
    /// Others may do so with what belongs to them.
    is_sticky: bool,
}

/// How far a path has been followed: the directories from the root to here.
struct Walker {
    passed: Vec<Passed>,
    doubts: Vec<Doubt>,
}

impl Walker {
    fn at_root(root: &Root) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(root.path("/"), flags, Mode::empty())?;
        let stat = fstat(&top)?;
        let mut walker = Self { passed: Vec::new(), doubts: Vec::new() };
        walker.push("/".into(), top, &stat);
        Ok(walker)
    }

    fn last(&self) -> &Passed {
        // Nothing removes the first one.
        &self.passed[self.passed.len() - 1]
    }

    fn here(&self) -> &OwnedFd {
        &self.last().descriptor
    }

    fn back_to_root(&mut self) {
        self.passed.truncate(1);
    }

    fn up(&mut self) {
        if self.passed.len() > 1 {
            self.passed.pop();
        }
    }

    /// Opens a name, to look at it alone; a directory on the way as one, so that what is mounted on demand is.
    fn step(&self, name: &OsStr, is_last: bool) -> io::Result<Option<(OwnedFd, Stat)>> {
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match openat(self.here(), name, look | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => openat(self.here(), name, look, Mode::empty()),
            opened => opened,
        };
        match opened {
            Ok(step) => {
                let stat = fstat(&step)?;
                let is_way = matches!(FileType::from_raw_mode(stat.st_mode), FileType::Directory | FileType::Symlink);
                if is_last || is_way { Ok(Some((step, stat))) } else { Err(Errno::NOTDIR.into()) }
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn enter(&mut self, name: &OsStr, descriptor: OwnedFd, stat: &Stat) -> io::Result<()> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        let path = self.last().path.join(name);
        self.doubt_owner(&path, stat);
        self.push(path, descriptor, stat);
        Ok(())
    }

    fn push(&mut self, path: PathBuf, descriptor: OwnedFd, stat: &Stat) {
        let is_sticky = stat.st_mode & STICKY != 0;
        if self.passed.is_empty() {
            self.doubt(&path, owner_doubt(stat), stat);
        }
        let writable = mode_doubt(stat);
        if !is_sticky {
            self.doubt(&path, writable, stat);
        }
        let is_open = (!is_sticky && writable.is_some()) || !is_trusted(stat.st_uid);
        self.passed.push(Passed { descriptor, path, is_open, is_sticky: is_sticky && writable.is_some() });
    }

    /// In a sticky directory and in one of others, a link may have been made by anybody.
    fn doubt_link(&mut self, name: &OsStr, stat: &Stat) {
        let (is_changeable, path) = (self.last().is_open || self.last().is_sticky, self.last().path.join(name));
        let who = (is_changeable && !is_trusted(stat.st_uid)).then_some(Who::LinkOwner(stat.st_uid));
        self.doubt(&path, who, stat);
    }

    fn doubt_owner(&mut self, path: &Path, stat: &Stat) {
        self.doubt(path, owner_doubt(stat), stat);
    }

    fn doubt(&mut self, path: &Path, who: Option<Who>, stat: &Stat) {
        let Some(who) = who else { return };
        let doubt = Doubt { step: path.to_owned(), who, mode: stat.st_mode & 0o7777 };
        if !self.doubts.contains(&doubt) {
            self.doubts.push(doubt);
        }
    }

    fn end(mut self, name: OsString, found: Option<Stat>, is_open_already: bool) -> Walk {
        let real = if name == "." { self.last().path.clone() } else { self.last().path.join(&name) };
        if let Some(stat) = &found {
            self.doubt(&real, mode_doubt(stat), stat);
            self.doubt(&real, owner_doubt(stat), stat);
        }
        let may_be_replaced = self.last().is_open || self.last().is_sticky;
        let doubts = self.doubts;
        // The first one is always there.
        let directory = self.passed.swap_remove(self.passed.len() - 1).descriptor;
        Walk { directory, name, found, is_open_already, may_be_replaced, real, doubts }
    }
}

/// The user that the agent runs as can do what the agent can.
fn is_trusted(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

fn owner_doubt(stat: &Stat) -> Option<Who> {
    (!is_trusted(stat.st_uid)).then_some(Who::Owner(stat.st_uid))
}

fn mode_doubt(stat: &Stat) -> Option<Who> {
    if stat.st_mode & ALL_WRITE != 0 {
        Some(Who::All)
    } else if stat.st_mode & GROUP_WRITES != 0 {
        Some(Who::Group(stat.st_gid))
    } else {
        None
    }
}

#[cfg(test)]
#[path = "trusted_path_tests.rs"]
mod tests;
