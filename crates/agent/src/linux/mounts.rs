//! The mounts of the agent's own mount namespace that have a block device, in the kernel's order.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, major, minor, stat};

use super::block::Uevent;
use crate::error::Error;
use crate::root::Root;

/// Where the kernel lists the mounts.
const MOUNTS: &str = "/proc/self/mountinfo";

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
    /// Its device; major 0 if it has none.
    pub device: DeviceNumber,
    /// Where it is mounted: any bytes.
    pub mountpoint: PathBuf,
    /// The kernel's name of its kind: `ext4`.
    pub kind: String,
    /// What was mounted: `/dev/vda1`.
    pub source: PathBuf,
}

/// The file systems with a block device, each where it is mounted first.
pub fn with_devices(root: &Root) -> Result<Vec<Mount>, Error> {
    let text = root.read(MOUNTS).map_err(|error| Error::io(format!("failed to read '{MOUNTS}'"), &error))?;
    let mut seen = HashSet::new();
    let mounts =
        text.split(|byte| *byte == b'\n').filter_map(Mount::parse).filter_map(|mount| with_device(root, mount));
    Ok(mounts.filter(|mount| seen.insert(mount.device)).collect())
}

/// The mount if it has a device. A btrfs has a number of its own, as it may lie on several devices; its source is one.
fn with_device(root: &Root, mount: Mount) -> Option<Mount> {
    if mount.device.major != 0 {
        return Some(mount);
    }
    if mount.kind != "btrfs" {
        return None;
    }
    device_of_node(root, &mount.source).map(|device| Mount { device, ..mount })
}

/// The number of a device node; by its name if there is no node, as in a container.
fn device_of_node(root: &Root, node: &Path) -> Option<DeviceNumber> {
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
    /// Reads a line: `36 35 98:0 /in/it /mnt rw,noatime master:1 - ext4 /dev/root rw`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let device = DeviceNumber::parse(std::str::from_utf8(words.nth(2)?).ok()?)?;
        let mountpoint = unescape(words.nth(1)?);
        // Some optional words, then a dash.
        words.find(|word| *word == b"-")?;
        let kind = String::from_utf8_lossy(unescape(words.next()?).as_os_str().as_bytes()).into_owned();
        Some(Self { device, mountpoint, kind, source: unescape(words.next()?) })
    }
}

/// Undoes the kernel's `\040` for a blank and the like.
fn unescape(word: &[u8]) -> PathBuf {
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
    use super::{DeviceNumber, Mount, unescape};
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn optional_words_before_the_dash_are_passed_over() {
        for optional in ["", "shared:1 ", "shared:1 master:2 propagate_from:3 "] {
            let line = format!("36 35 98:0 / /mnt rw,noatime {optional}- ext4 /dev/root rw");
            let mount = Mount::parse(line.as_bytes()).unwrap();
            assert_eq!(mount.device, DeviceNumber { major: 98, minor: 0 });
            assert_eq!((mount.mountpoint.to_str(), mount.kind.as_str()), (Some("/mnt"), "ext4"));
            assert_eq!(mount.source.to_str(), Some("/dev/root"));
        }
    }

    #[test]
    fn lines_that_are_no_mounts_are_passed_over() {
        for line in
            ["", "1 2", "1 2 x:y / / rw - ext4 /dev/vda rw", "1 2 254:0 / / rw ext4 /dev/vda rw", "1 2 254:0 / / rw -"]
        {
            assert_eq!(Mount::parse(line.as_bytes()), None, "{line}");
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
