//! Who could pose as an agent: whose are the steps of a path, the socket at its end, and the process that listens there.
//!
//! A request may hold a password or a key, so it is asked before anything is sent. The rules are those of sshd for its
//! files (`StrictModes`) with one account more: a hypervisor's own, which owns its sockets and their directories.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;
use rustix::process::geteuid;

const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const PROCFS: rustix::fs::FsWord = 0x9fa0;
/// As the kernel follows at most.
const MOST_LINKS: usize = 40;
/// The kernel's name for users that a user namespace does not have.
const OVERFLOW: u32 = 65534;

/// Those who may stand behind a socket.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    /// Root and the caller. The one who became root by sudo is the caller as well, as for git.
    callers: Vec<u32>,
    /// Whose the socket is.
    owner: u32,
    /// Whether the host's root has no number here and looks like nobody.
    is_root_unmapped: bool,
    names: Names,
}

/// Looks at every step of a path. What is wrong is returned in words; an error says that the path does not lead anywhere.
pub(crate) fn look_at_path(path: &Path) -> io::Result<Result<Accounts, String>> {
    let metadata = fs::metadata(path)?;
    let accounts = Accounts::of(metadata.uid());
    Ok(accounts.look_at_steps(&std::path::absolute(path)?)?.map_or(Ok(accounts), Err))
}

impl Accounts {
    fn of(owner: u32) -> Self {
        let own = geteuid().as_raw();
        let mut callers = vec![0, own];
        if own == 0 {
            callers.extend(std::env::var("SUDO_UID").ok().and_then(|text| text.parse::<u32>().ok()));
        }
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_whole = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        Self { callers, owner, is_root_unmapped: !map.is_empty() && !is_whole, names: Names::read() }
    }

    fn is_caller(&self, user: u32) -> bool {
        self.callers.contains(&user)
    }

    fn may_own(&self, user: u32) -> bool {
        self.is_caller(user) || user == self.owner || (self.is_root_unmapped && user == OVERFLOW)
    }

    /// Looks at who listens: whoever that is was there when the connection was made.
    pub(crate) fn look_at_peer(&self, socket: impl AsFd) -> io::Result<Result<(), String>> {
        let peer = rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw();
        if self.is_caller(peer) || peer == self.owner {
            return Ok(Ok(()));
        }
        let (peer, owner) = (self.names.user(peer), self.names.user(self.owner));
        Ok(Err(format!("it belongs to {owner}, and a process of {peer} listens there")))
    }

    fn look_at_steps(&self, path: &Path) -> io::Result<Option<String>> {
        let mut pending: VecDeque<OsString> = names_of(path);
        let mut directory = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                directory.push(name);
                continue;
            }
            let entry = directory.join(&name);
            let metadata = fs::symlink_metadata(&entry)?;
            if let Some(problem) = self.problem_with(&directory, &fs::metadata(&directory)?, &entry, &metadata) {
                return Ok(Some(problem));
            }
            // A link of procfs leads where no text says: /proc/PID/root into another container.
            if !metadata.is_symlink() || rustix::fs::statfs(&directory)?.f_type == PROCFS {
                directory = entry;
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = fs::read_link(&entry)?;
            if target.is_absolute() {
                directory = PathBuf::from("/");
            }
            for name in names_of(&target).into_iter().rev() {
                pending.push_front(name);
            }
        }
        Ok(None)
    }

    /// Whether somebody else could have made or replaced an entry of a directory.
    fn problem_with(
        &self,
        directory: &Path,
        directory_metadata: &Metadata,
        entry: &Path,
        metadata: &Metadata,
    ) -> Option<String> {
        let shown = directory.display();
        if !self.may_own(directory_metadata.uid()) {
            return Some(format!("the directory {shown} belongs to {}", self.names.user(directory_metadata.uid())));
        }
        let mode = directory_metadata.mode();
        let writers = if mode & OTHERS_WRITE != 0 {
            "every user".to_owned()
        } else if mode & GROUP_WRITES != 0 && !self.is_private(directory, directory_metadata.gid()) {
            format!("group {}", self.names.group(directory_metadata.gid()))
        } else {
            return None;
        };
        if mode & STICKY == 0 {
            return Some(format!("{writers} can replace what is in the directory {shown}"));
        }
        let owner = metadata.uid();
        (!self.is_caller(owner)).then(|| {
            let (entry, owner) = (entry.display(), self.names.user(owner));
            format!("{writers} can make entries in {shown}, and {entry} belongs to {owner}")
        })
    }

    /// Whether nobody else is in a group: the one that many systems give to each user.
    fn is_private(&self, directory: &Path, group: u32) -> bool {
        let users: Vec<u32> = self.callers.iter().copied().chain([self.owner]).collect();
        // With an access control list the group's bits are those of everybody that it names.
        let has_list = !matches!(
            rustix::fs::getxattr(directory, "system.posix_acl_access", &mut [0_u8; 0][..]),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS)
        );
        !has_list && self.names.is_only_of(group, &users)
    }
}

fn names_of(path: &Path) -> VecDeque<OsString> {
    let named = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(|part| named(*part)).map(|part| part.as_os_str().to_owned()).collect()
}

/// The users and groups of the system's own files. Of those that a directory service has, only the numbers are known.
#[derive(Debug, Clone, Default)]
struct Names {
    users: String,
    groups: String,
}

impl Names {
    fn read() -> Self {
        Self { users: read_bounded("/etc/passwd"), groups: read_bounded("/etc/group") }
    }

    fn user(&self, user: u32) -> String {
        let name = lines(&self.users).find(|fields| number(fields, 2) == Some(user)).map(|fields| fields[0]);
        name.map_or_else(|| format!("user {user}"), |name| format!("user {name}"))
    }

    fn group(&self, group: u32) -> String {
        let name = lines(&self.groups).find(|fields| number(fields, 2) == Some(group)).map(|fields| fields[0]);
        name.map_or_else(|| group.to_string(), str::to_owned)
    }

    /// Whether a group is known to have these users alone.
    fn is_only_of(&self, group: u32, users: &[u32]) -> bool {
        let known: Vec<&str> = lines(&self.users)
            .filter(|fields| number(fields, 2).is_some_and(|user| users.contains(&user)))
            .map(|fields| fields[0])
            .collect();
        let is_others_first_group = lines(&self.users).any(|fields| {
            number(&fields, 3) == Some(group) && number(&fields, 2).is_none_or(|user| !users.contains(&user))
        });
        let mut entries = lines(&self.groups).filter(|fields| number(fields, 2) == Some(group)).peekable();
        entries.peek().is_some()
            && !is_others_first_group
            && entries.all(|fields| {
                let members = fields.get(3).copied().unwrap_or_default();
                members.split(',').filter(|name| !name.is_empty()).all(|name| known.contains(&name))
            })
    }
}

fn read_bounded(path: &str) -> String {
    const MOST_BYTES: u64 = 4 << 20;
    let mut text = Vec::new();
    // What cannot be read names nobody, and then no group is private.
    let _ = fs::File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

fn number(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_private_only_if_it_is_known_to_be() {
        let names = Names {
            users: "root:x:0:0::/:\nme:x:1000:1000::/:\nyou:x:1001:1001::/:\nshy:x:1002:1003::/:\n".to_owned(),
            groups: "root:x:0:\nme:x:1000:\nyou:x:1001:me\nboth:x:1002:me,you\nshy:x:1003:\n".to_owned(),
        };
        assert!(names.is_only_of(1000, &[0, 1000]));
        assert!(names.is_only_of(0, &[0, 1000]));
        assert!(!names.is_only_of(1001, &[0, 1000]), "you are in it, by your entry");
        assert!(!names.is_only_of(1002, &[0, 1000]));
        assert!(names.is_only_of(1002, &[1000, 1001]));
        assert!(!names.is_only_of(1003, &[1000]), "it is the first group of another");
        assert!(!names.is_only_of(4711, &[1000]), "a directory service may have it");
        assert_eq!(
            (names.user(1001), names.user(7), names.group(1002)),
            ("user you".into(), "user 7".into(), "both".into())
        );
    }
}
