//! How full file systems are.
//!
//! Most kinds of file systems may have to read for that, or to ask a server, and so can hang: threads of their own ask
//! these. What answers from memory is asked here, since a hand-over between threads takes ten times as long.

use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatVfs, StatxFlags, fstatvfs, openat2, statx};

use super::asking::{self, Deadline, Round};
use crate::system::mounts::{Mount, PLACES_MAX};

/// Kinds that have the answer in memory from mount to unmount, whatever becomes of the disk: they count there what is
/// free, or nothing ever is. (vfat counts when it is first asked; some versions of xfs wait for files to be deleted.)
const KNOWN_IN_MEMORY: [&str; 5] = ["ext2", "ext3", "ext4", "iso9660", "squashfs"];

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used_bytes: u64,
    /// In all, without what is kept for root.
    pub total_bytes: u64,
    /// In all.
    pub total_bytes_privileged: u64,
}

impl From<StatVfs> for Usage {
    fn from(found: StatVfs) -> Self {
        let used_blocks = found.f_blocks.saturating_sub(found.f_bfree);
        Self {
            used_bytes: used_blocks.saturating_mul(found.f_frsize),
            total_bytes: used_blocks.saturating_add(found.f_bavail).saturating_mul(found.f_frsize),
            total_bytes_privileged: found.f_blocks.saturating_mul(found.f_frsize),
        }
    }
}

/// The usage of mounts, partly still being asked for.
pub struct Usages {
    /// What is known; `None` for those that are asked.
    known: Vec<Option<Usage>>,
    /// Those that are asked, in their order among the others.
    round: Option<Round<Usage>>,
}

/// Begins to ask for the usage of each of the file systems, which are given with all their mounts.
pub fn ask(filesystems: &[Vec<Mount>]) -> Usages {
    let known: Vec<Option<Usage>> = filesystems.iter().map(|mounts| mounts.first().and_then(at_once)).collect();
    let unknown = filesystems.iter().zip(&known).filter(|(_, usage)| usage.is_none());
    // What is hidden in so many places is hidden.
    let asked: Vec<Vec<Mount>> = unknown.map(|(mounts, _)| mounts.iter().take(PLACES_MAX).cloned().collect()).collect();
    let path = |mounts: &Vec<Mount>| mounts.first().map(|mount| mount.mountpoint.clone()).unwrap_or_default();
    let paths: Vec<PathBuf> = asked.iter().map(path).collect();
    let round = (!asked.is_empty()).then(|| asking::ask(paths, move |index, _| of_mounts(&asked[index])));
    Usages { known, round }
}

impl Usages {
    /// The usage of each mount; `None` where the system does not tell, or not in time.
    pub fn results(self, deadline: Deadline) -> Vec<Option<Usage>> {
        let Self { mut known, round } = self;
        let answers = round.map_or_else(Vec::new, |round| round.answers(deadline));
        for (gap, answer) in known.iter_mut().filter(|usage| usage.is_none()).zip(answers) {
            *gap = answer;
        }
        known
    }
}

/// The usage where the file system can be reached. Something else may be mounted over it, whose usage it is not.
fn of_mounts(mounts: &[Mount]) -> Option<Usage> {
    let (first, others) = mounts.split_first()?;
    let place = first.open(others, OFlags::PATH).ok()?;
    fstatvfs(&place).ok().map(Usage::from)
}

/// The usage if nothing on the way to it can hang; `None` otherwise.
fn at_once(mount: &Mount) -> Option<Usage> {
    if !KNOWN_IN_MEMORY.contains(&mount.kind.as_str()) {
        return None;
    }
    // The kernel keeps the way to a mount point in memory, and with this flag (Linux 5.12) looks nowhere else. A server's
    // directory on the way is no way.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = openat2(CWD, &mount.mountpoint, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    // Something of another kind may have been mounted over it.
    let without_asking = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(&place, "", without_asking, StatxFlags::MNT_ID).ok()?;
    let is_told = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    if !is_told || found.stx_mnt_id != u64::from(mount.id) {
        return None;
    }
    fstatvfs(&place).ok().map(Usage::from)
}

#[cfg(test)]
mod tests {
    use super::{Deadline, ask, at_once, of_mounts};
    use crate::system::mounts::{DeviceNumber, Mount, all};
    use crate::system::root::Root;
    use std::path::Path;

    fn mounts() -> Vec<Mount> {
        all(&Root::host()).unwrap()
    }

    #[test]
    fn mounts_that_are_not_there_have_no_usage_and_others_keep_their_places() {
        let root = mounts().into_iter().rfind(|mount| mount.mountpoint == Path::new("/")).unwrap();
        let gone = Mount { mountpoint: "/nonexistent".into(), ..root.clone() };
        let usages = ask(&[gone.clone(), root.clone(), gone, root].map(|mount| vec![mount])).results(Deadline::new());
        assert_eq!([usages[0], usages[2]], [None; 2]);
        for usage in [usages[1], usages[3]] {
            assert!(usage.is_some_and(|usage| usage.total_bytes_privileged >= usage.used_bytes), "{usage:?}");
        }
    }

    #[test]
    fn what_is_asked_at_once_has_the_total_that_statvfs_tells() {
        for mount in mounts() {
            // Totals of memory file systems of others may change between the two questions; these kinds' do not.
            if let Some(usage) = at_once(&mount) {
                let again = of_mounts(std::slice::from_ref(&mount)).unwrap();
                assert_eq!(usage.total_bytes_privileged, again.total_bytes_privileged, "{mount:?}");
            }
        }
    }

    #[test]
    fn a_mount_under_another_one_or_of_a_kind_that_may_hang_is_not_asked_at_once() {
        let proc = mounts().into_iter().rfind(|mount| mount.mountpoint == Path::new("/proc")).unwrap();
        assert_eq!(at_once(&proc), None);
        let covered = Mount { kind: "ext4".to_owned(), id: proc.id.wrapping_add(1_000_000), ..proc.clone() };
        assert_eq!(at_once(&covered), None);
        // Nor at all, while there is nothing but what covers it; elsewhere it can be reached.
        let device = DeviceNumber { major: 254, minor: 1_000_000 };
        let covered = Mount { device, ..covered };
        assert_eq!(of_mounts(std::slice::from_ref(&covered)), None);
        assert!(of_mounts(&[covered, proc]).is_some());
    }
}
