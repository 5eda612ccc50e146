//! The mounts of the agent's own mount namespace, in the kernel's order, and which of them have a block device.
//!
//! The kernel's own list is `mountinfo`. Where there is none there is the older `mounts`, which tells less: devices
//! are found by their nodes, and what is mounted on what by the mount points. A list that is there and cannot be read
//! whole is an error: a reply without a file system would look like a machine without it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, stat};

use super::block_devices::Uevent;
use crate::system::error::Error;
use crate::system::root::Root;

/// Where the kernel lists the mounts.
const MOUNTINFO: &str = "/proc/self/mountinfo";
/// Where it lists them in the notation of fstab(5).
const MOUNTS: &str = "/proc/self/mounts";
/// Most bytes of either. The kernel allows 100,000 mounts in a namespace unless it is told otherwise, with some 100 to
/// 500 bytes each: a container host with many leaked mounts has some ten MiB.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// Most places that are tried to reach one file system.
pub const PLACES_MAX: usize = 16;

/// The number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// The driver's number.
    pub major: u32,
    /// The device's number with the driver.
    pub minor: u32,
}

impl DeviceNumber {
    /// Reads `254:0`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    /// The mount's number, used by no other mount of this moment.
    pub id: u32,
    /// The number of the mount that it is mounted on; one that is not listed for the topmost.
    pub parent_id: u32,
    /// Its device; major 0 if it has none.
    pub device: DeviceNumber,
    /// The part of the file system that is mounted: `/`, or a directory of it.
    pub root: PathBuf,
    /// Where it is mounted: any bytes.
    pub mountpoint: PathBuf,
    /// Whether the file system takes no writes. One that takes them by another mount does take writes.
    pub is_read_only: bool,
    /// The kernel's name of its kind: `ext4`.
    pub kind: String,
    /// What was mounted: `/dev/vda1`.
    pub source: PathBuf,
}

/// All mounts, in the kernel's order.
pub fn all(root: &Root) -> Result<Vec<Mount>, Error> {
    those(root, |_, _| true)
}

/// The file systems with a block device, each with all its mounts, of which there is at least one: it may be hidden
/// where it is mounted first, and can be reached elsewhere.
pub fn all_with_devices(root: &Root) -> Result<Vec<Vec<Mount>>, Error> {
    let mut found: Vec<Vec<Mount>> = Vec::new();
    let mut numbers = HashMap::new();
    for mount in those(root, may_have_device)?.into_iter().filter_map(|mount| with_device(root, mount)) {
        let number = *numbers.entry(mount.device).or_insert(found.len());
        match found.get_mut(number) {
            Some(mounts) => mounts.push(mount),
            None => found.push(vec![mount]),
        }
    }
    Ok(found)
}

/// Whether an open file lies on a file system: by its device, or by its mount where files have devices of their own.
pub fn lies_on(file: impl AsFd, device: DeviceNumber, mount_id: u32) -> bool {
    let is_device = |found: &Stat| (major(found.st_dev), minor(found.st_dev)) == (device.major, device.minor);
    fstat(&file).is_ok_and(|found| is_device(&found)) || mount_of(file.as_fd()) == Some(mount_id)
}

/// The mount that a file was opened through: `proc_pid_fdinfo(5)`.
fn mount_of(file: BorrowedFd<'_>) -> Option<u32> {
    let text = Root::host().read_text(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// The mounts whose device and kind are wanted. Most of a machine's mounts are not, so what else a line tells is not
/// looked at before.
fn those(root: &Root, is_wanted: fn(DeviceNumber, &[u8]) -> bool) -> Result<Vec<Mount>, Error> {
    let mut found = Vec::new();
    match root.each_line(MOUNTINFO, LIST_BYTES_MAX, |line| found.extend(Mount::parse(line, is_wanted))) {
        Ok(()) => return Ok(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(format!("failed to read the list of mounts '{MOUNTINFO}'"), &error)),
    }
    let mut older = Older { root, found, numbers: HashMap::new(), lines: 0 };
    root.each_line(MOUNTS, LIST_BYTES_MAX, |line| older.take(line))
        .map_err(|error| Error::io(format!("failed to open mtab file: '{MOUNTS}'"), &error))?;
    Ok(older.found)
}

/// Whether [`with_device`] might find one.
fn may_have_device(device: DeviceNumber, kind: &[u8]) -> bool {
    device.major != 0 || kind == b"btrfs"
}

/// The mount if it has a device. A btrfs has a number of its own, as it may lie on several devices; its source is one.
pub(crate) fn with_device(root: &Root, mount: Mount) -> Option<Mount> {
    if mount.device.major != 0 {
        return Some(mount);
    }
    if mount.kind != "btrfs" {
        return None;
    }
    device_of_node(root, &mount.source).map(|device| Mount { device, ..mount })
}

/// The number of a device node; by its name if there is no node, as in a container.
pub(crate) fn device_of_node(root: &Root, node: &Path) -> Option<DeviceNumber> {
    if let Ok(found) = stat(root.path(node))
        && FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice
    {
        return Some(DeviceNumber { major: major(found.st_rdev), minor: minor(found.st_rdev) });
    }
    let real = root.canonical(node).unwrap_or_else(|_| node.to_owned());
    let name = real.strip_prefix("/dev").ok()?.to_str()?.replace('/', "!");
    Uevent::read(root, &Path::new("/sys/class/block").join(name)).number
}

impl Mount {
    /// Opens what is mounted, here or at the first of `others` where something else hides it: never what hides it.
    pub fn open(&self, others: &[Self], flags: OFlags) -> io::Result<OwnedFd> {
        let mut failed = None;
        for mount in std::iter::once(self).chain(others).take(PLACES_MAX) {
            match rustix::fs::open(&mount.mountpoint, flags | OFlags::CLOEXEC, Mode::empty()) {
                Ok(file) if lies_on(&file, mount.device, mount.id) => return Ok(file),
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.map_or_else(|| io::Error::other("another file system is mounted over it"), io::Error::from))
    }

    /// Reads a line: `36 35 98:0 /in/it /mnt rw,noatime master:1 - ext4 /dev/root rw`.
    fn parse(line: &[u8], is_wanted: fn(DeviceNumber, &[u8]) -> bool) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let mut text = || std::str::from_utf8(words.next()?).ok();
        let (id, parent_id) = (text()?.parse().ok()?, text()?.parse().ok()?);
        let device = DeviceNumber::parse(text()?)?;
        let (root, mountpoint) = (words.next()?, words.next()?);
        // The mount's own options and some optional words, then a dash.
        words.find(|word| *word == b"-")?;
        let kind_word = words.next()?;
        if !is_wanted(device, kind_word) {
            return None;
        }
        let source = unescape(words.next()?);
        let is_read_only = words.next().is_some_and(says_read_only);
        let (root, mountpoint, kind) = (unescape(root), unescape(mountpoint), kind(kind_word));
        Some(Self { id, parent_id, device, root, mountpoint, is_read_only, kind, source })
    }
}

/// Reads lines of fstab(5): `/dev/vda1 /mnt ext4 rw,noatime 0 0`. Mounts are numbered by their lines.
struct Older<'a> {
    root: &'a Root,
    found: Vec<Mount>,
    numbers: HashMap<PathBuf, u32>,
    lines: u32,
}

impl Older<'_> {
    fn take(&mut self, line: &[u8]) {
        self.lines += 1;
        let mut words = line.split(|byte| *byte == b' ');
        let [Some(source), Some(mountpoint), Some(kind_word), Some(options)] = std::array::from_fn(|_| words.next())
        else {
            return;
        };
        let (source, mountpoint, kind) = (unescape(source), unescape(mountpoint), kind(kind_word));
        let is_remote = !source.has_root() || ["smbfs", "cifs"].contains(&kind.as_str());
        let device = if is_remote { None } else { device_of_node(self.root, &source) };
        self.found.push(Mount {
            id: self.lines,
            parent_id: mountpoint.ancestors().find_map(|above| self.numbers.get(above).copied()).unwrap_or(0),
            device: device.unwrap_or(DeviceNumber { major: 0, minor: 0 }),
            root: "/".into(),
            mountpoint: mountpoint.clone(),
            is_read_only: says_read_only(options),
            kind,
            source,
        });
        self.numbers.insert(mountpoint, self.lines);
    }
}

fn kind(word: &[u8]) -> String {
    String::from_utf8_lossy(unescape(word).as_os_str().as_bytes()).into_owned()
}

/// Whether options have `ro` among them.
fn says_read_only(options: &[u8]) -> bool {
    options.split(|byte| *byte == b',').any(|option| option == b"ro")
}

/// Undoes the kernel's `\040` for a blank and the like.
pub(crate) fn unescape(word: &[u8]) -> PathBuf {
    if !word.contains(&b'\\') {
        return OsStr::from_bytes(word).into();
    }
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = &after[3..];
            }
            (b'\\', [b'\\', ..]) => {
                bytes.push(b'\\');
                rest = &after[1..];
            }
            _ => bytes.push(first),
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::{DeviceNumber, MOUNTINFO, MOUNTS, Mount, all, all_with_devices, unescape};
    use crate::system::error::Error;
    use crate::system::root::Root;
    use std::fmt::Write;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    /// Each where it is mounted first.
    fn with_devices(root: &Root) -> Result<Vec<Mount>, Error> {
        Ok(all_with_devices(root)?.into_iter().filter_map(|mounts| mounts.into_iter().next()).collect())
    }

    #[test]
    fn optional_words_before_the_dash_are_passed_over() {
        for optional in ["", "shared:1 ", "shared:1 master:2 propagate_from:3 "] {
            let line = format!("36 35 98:0 /in\\040it /mnt rw,noatime {optional}- ext4 /dev/root rw,errors=continue");
            let expected = Mount {
                id: 36,
                parent_id: 35,
                device: DeviceNumber { major: 98, minor: 0 },
                root: "/in it".into(),
                mountpoint: "/mnt".into(),
                is_read_only: false,
                kind: "ext4".to_owned(),
                source: "/dev/root".into(),
            };
            assert_eq!(Mount::parse(line.as_bytes(), |_, _| true), Some(expected));
        }
    }

    #[test]
    fn a_file_system_is_read_only_if_it_is_so_itself() {
        let is_read_only = |mount: &str, filesystem: &str| {
            let line = format!("1 0 254:0 / / {mount} - ext4 /dev/vda {filesystem}");
            Mount::parse(line.as_bytes(), |_, _| true).unwrap().is_read_only
        };
        assert!(is_read_only("ro,noatime", "ro"));
        assert!(is_read_only("ro", "errors=x,ro"));
        assert!(!is_read_only("ro", "rw"));
        assert!(!is_read_only("rw", "rw,errors=remount-ro"));
    }

    #[test]
    fn without_the_kernels_list_the_older_one_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        for (name, number) in [("vda1", "254:1"), ("mapper!data", "253:0")] {
            let path = root.path(format!("/sys/class/block/{name}"));
            fs::create_dir_all(&path).unwrap();
            let (major, minor) = number.split_once(':').unwrap();
            fs::write(path.join("uevent"), format!("MAJOR={major}\nMINOR={minor}\nDEVNAME={name}\n")).unwrap();
        }
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        let text = "rootfs / rootfs rw 0 0\n/dev/vda1 / ext4 rw,relatime 0 0\n//srv/x /mnt cifs rw 0 0\n\
                    proc /proc proc rw 0 0\n/dev/gone /gone ext4 rw 0 0\nbroken\n\
                    /dev/mapper/data /a\\040b btrfs ro,subvol=/x 0 0\n/dev/vda1 /a\\040b/c ext4 rw 0 0\n";
        fs::write(root.path(MOUNTS), text).unwrap();
        let found = with_devices(&root).unwrap();
        let seen: Vec<_> =
            found.iter().map(|mount| (mount.mountpoint.to_str().unwrap(), mount.device.to_string())).collect();
        assert_eq!(seen, [("/", "254:1".to_owned()), ("/a b", "253:0".to_owned())]);
        assert_eq!([found[0].is_read_only, found[1].is_read_only], [false, true]);
        let parents: Vec<_> = all(&root).unwrap().iter().map(|mount| (mount.id, mount.parent_id)).collect();
        assert_eq!(parents, [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 2), (8, 7)]);

        fs::write(root.path(MOUNTINFO), "1 0 254:7 / /only rw - ext4 /dev/vda7 rw\n").unwrap();
        assert_eq!(with_devices(&root).unwrap()[0].mountpoint.to_str(), Some("/only"));
        fs::remove_file(root.path(MOUNTINFO)).unwrap();
        fs::remove_file(root.path(MOUNTS)).unwrap();
        assert!(all(&root).unwrap_err().desc.starts_with("failed to open mtab file: '/proc/self/mounts': "));
    }

    #[test]
    fn a_list_of_many_thousand_mounts_is_read_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        let long = "x".repeat(400);
        let mut text = String::new();
        for id in 0..20_000 {
            writeln!(text, "{id} 1 0:40 / /leaked/{id}/{long} rw - tmpfs tmpfs rw").unwrap();
        }
        assert!(text.len() > 8 << 20);
        text.push_str("20000 1 254:1 / /data rw - ext4 /dev/vdb rw\n");
        fs::write(root.path(MOUNTINFO), text).unwrap();
        fs::write(root.path(MOUNTS), "/dev/vda / ext4 rw 0 0\n").unwrap();
        assert_eq!(with_devices(&root).unwrap()[0].mountpoint.to_str(), Some("/data"));
        assert_eq!(all(&root).unwrap().len(), 20_001);
    }

    #[test]
    fn a_list_that_is_there_and_cannot_be_read_is_an_error_and_not_replaced_by_the_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path(MOUNTINFO)).unwrap();
        fs::write(root.path(MOUNTS), "/dev/vda / ext4 rw 0 0\n").unwrap();
        let text = all(&root).unwrap_err().desc;
        assert_eq!(text, "failed to read the list of mounts '/proc/self/mountinfo': Is a directory");
    }

    #[test]
    fn lines_that_are_no_mounts_are_passed_over() {
        for line in
            ["", "1 2", "1 2 x:y / / rw - ext4 /dev/vda rw", "1 2 254:0 / / rw ext4 /dev/vda rw", "1 2 254:0 / / rw -"]
        {
            assert_eq!(Mount::parse(line.as_bytes(), |_, _| true), None, "{line}");
        }
    }

    #[test]
    fn escapes_become_the_bytes_they_stand_for() {
        let bytes = |word: &str| unescape(word.as_bytes()).as_os_str().as_bytes().to_vec();
        assert_eq!(bytes(r"/a\040b\011c\012d\134e"), b"/a b\tc\nd\\e");
        assert_eq!(bytes(r"/a\\040"), br"/a\040");
        assert_eq!(bytes(r"/x\377"), b"/x\xff");
        assert_eq!(bytes(r"/a\04"), br"/a\04");
        assert_eq!(bytes(r"/a\400\"), br"/a\400\");
    }
}
