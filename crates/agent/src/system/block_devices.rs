//! Block devices by their directories in sysfs: what each is called and what it is built upon.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use super::mounts::DeviceNumber;
use crate::system::root::Root;

/// Where devices are that the kernel makes out of other ones or of nothing: dm, md, loop, zram.
const VIRTUAL: &str = "/sys/devices/virtual/block";
/// Where each mounted btrfs has a directory with its devices.
const BTRFS: &str = "/sys/fs/btrfs";

/// Beginnings of the names of virtual devices that are never built upon others: there is nothing to look for.
const ALONE: [&str; 4] = ["loop", "nbd", "ram", "zram"];

/// What a device says of itself in its file `uevent`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Uevent {
    /// The device node; hidden devices have none.
    pub node: Option<String>,
    /// The device's number.
    pub number: Option<DeviceNumber>,
    /// Whether it is a partition.
    pub is_partition: bool,
    /// The number of the disk in this run of the system, which no other disk ever has; a partition has its disk's. Linux
    /// tells it since 5.15.
    pub disk_sequence: Option<u64>,
}

impl Uevent {
    /// Reads a device's file; a device without one says nothing.
    pub fn read(root: &Root, path: &Path) -> Self {
        Self::parse(&root.read_text(path.join("uevent")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| value(name)?.parse().ok();
        let disk_sequence = value("DISKSEQ").and_then(|digits| digits.parse().ok());
        Self {
            node: value("DEVNAME").filter(|name| !name.is_empty()).map(|name| format!("/dev/{name}")),
            number: number("MAJOR").zip(number("MINOR")).map(|(major, minor)| DeviceNumber { major, minor }),
            is_partition: value("DEVTYPE") == Some("partition"),
            disk_sequence,
        }
    }
}

/// Where a link of sysfs leads. The kernel makes them relative, from one real directory to another: so one call tells,
/// where realpath(3) would look at each directory on the way.
pub fn linked(root: &Root, link: &Path) -> Option<PathBuf> {
    let target = root.read_link(link).ok()?;
    let mut path = link.parent()?.to_owned();
    for component in target.components() {
        match component {
            Component::ParentDir => {
                path.pop();
            }
            other => path.push(other),
        }
    }
    Some(path)
}

/// The kernel's name of a device.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether the kernel made the device: no place on a bus, perhaps devices beneath.
pub fn is_built_upon_others(path: &Path) -> bool {
    path.starts_with(VIRTUAL)
}

/// The devices that a device is built upon; `None` if it is none that could be.
pub fn slaves(root: &Root, path: &Path) -> Option<Vec<PathBuf>> {
    let directory = path.join("slaves");
    let names = root.list(&directory).ok()?;
    Some(names.iter().filter_map(|name| linked(root, &directory.join(name))).collect())
}

/// The devices at the bottom, each once.
pub fn leaves(root: &Root, tops: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut devices = stack(root, tops);
    devices.retain(|path| !is_built_upon_others(path));
    devices
}

/// Devices and all that they are built upon, each once, from above to below.
pub fn stack(root: &Root, tops: Vec<PathBuf>) -> Vec<PathBuf> {
    let (mut pending, mut seen, mut found) = (tops, HashSet::new(), Vec::new());
    pending.reverse();
    while let Some(path) = pending.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        if is_built_upon_others(&path) {
            // A partition lies where its disk lies.
            match path.parent().filter(|parent| *parent != Path::new(VIRTUAL)) {
                Some(whole) => pending.push(whole.to_owned()),
                None if ALONE.iter().any(|beginning| name(&path).starts_with(beginning)) => {}
                None => pending.extend(slaves(root, &path).unwrap_or_default().into_iter().rev()),
            }
        }
        found.push(path);
    }
    found
}

/// All devices of the btrfs that a device belongs to; none if the kernel does not tell.
pub fn btrfs_members(root: &Root, name: &str) -> Vec<PathBuf> {
    let all = Path::new(BTRFS);
    let Ok(filesystems) = root.list(all) else { return Vec::new() };
    let devices =
        filesystems.iter().map(|id| all.join(id).join("devices")).find(|devices| root.exists(devices.join(name)));
    let Some(devices) = devices else { return Vec::new() };
    let names = root.list(&devices).unwrap_or_default();
    names.iter().filter_map(|name| linked(root, &devices.join(name))).collect()
}

/// What udev's database says of a device, in the database's notation; nothing where there is no udev.
pub fn udev_record(root: &Root, uevent: &Uevent) -> String {
    let record = uevent.number.and_then(|number| root.read_text(format!("/run/udev/data/b{number}")).ok());
    record.unwrap_or_default()
}

/// A property in a record of udev's database.
pub fn udev_property<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix("E:")?.strip_prefix(name)?.strip_prefix('=');
    record.lines().find_map(value).filter(|value| !value.is_empty())
}

/// The name that the device mapper has for a device; `record` is what udev's database says of it.
pub fn alias(root: &Root, path: &Path, record: &str) -> Option<String> {
    let from_udev = udev_property(record, "DM_NAME").map(str::to_owned);
    from_udev.or_else(|| root.read_text(path.join("dm/name")).ok()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{Uevent, leaves, udev_property};
    use crate::system::root::Root;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[test]
    fn a_device_without_a_node_has_none() {
        let uevent = Uevent::parse("MAJOR=259\nMINOR=1\nDEVNAME=cciss/c0d0p1\nDEVTYPE=partition\nDISKSEQ=1");
        assert_eq!(uevent.node.as_deref(), Some("/dev/cciss/c0d0p1"));
        assert!(uevent.is_partition);
        assert_eq!(uevent.disk_sequence, Some(1));
        assert_eq!(Uevent::parse("DEVTYPE=disk\nDEVNAME=\nMAJOR=x"), Uevent::default());
    }

    #[test]
    fn a_property_is_the_one_of_exactly_this_name() {
        let record = "S:disk/by-id/x\nI:123\nE:ID_SERIAL_SHORT=a\nE:ID_SERIAL=b=c\nE:DM_NAME=\nG:systemd";
        assert_eq!(udev_property(record, "ID_SERIAL"), Some("b=c"));
        assert_eq!(udev_property(record, "DM_NAME"), None);
    }

    #[test]
    fn a_leaf_reached_twice_is_listed_once_and_a_circle_ends() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        for (device, slaves) in [("dm-0", &["dm-1", "dm-2"][..]), ("dm-1", &["sda"]), ("dm-2", &["sda", "dm-0"])] {
            let path = root.path(format!("/sys/devices/virtual/block/{device}/slaves"));
            fs::create_dir_all(&path).unwrap();
            for slave in slaves {
                let target = if *slave == "sda" { "../../../../x/block/sda".into() } else { format!("../../{slave}") };
                symlink(target, path.join(slave)).unwrap();
            }
        }
        fs::create_dir_all(root.path("/sys/devices/x/block/sda")).unwrap();
        let found = leaves(&root, vec!["/sys/devices/virtual/block/dm-0".into()]);
        assert_eq!(found, [Path::new("/sys/devices/x/block/sda")]);
    }
}
