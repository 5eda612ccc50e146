//! Which file systems a freeze holds, and in which order. Nothing is done here: what is decided is a plain value.
//!
//! Every file system (superblock) is held once, however often it is mounted. One that lies on a file of another one
//! (loop device) comes before it, whatever is between them (partitions, dm, LUKS, md, LVM): its last writes must
//! still reach the file. Among equals the one that was mounted last comes first, as the original does it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::prepare::in_time;
use crate::system::block_devices;
use crate::system::mounts::{self, DeviceNumber, Mount};
use crate::system::root::Root;

/// Kinds of file systems without a device number of their own that lie on this machine's disks all the same.
const KINDS_WITH_OWN_NUMBERS: [&str; 2] = ["btrfs", "bcachefs"];
/// Kinds that hold nothing that a snapshot of the machine's disks would miss.
const KINDS_WITHOUT_DISK: [&str; 25] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "rootfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// How long a file system may take to tell about a file of it: all that matters here is on this machine's disks.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// A file system to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The number that the kernel lists it with.
    pub device: DeviceNumber,
    /// The kernel's name of its kind.
    pub kind: String,
    /// Where it is mounted, each with the mount's number; the first one names it.
    pub mounts: Vec<(u32, PathBuf)>,
}

impl Step {
    /// The path by which people know it.
    pub fn name(&self) -> &Path {
        self.mounts.first().map_or(Path::new("?"), |(_, mountpoint)| mountpoint)
    }
}

/// What a freeze is going to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What is to be held, in this order.
    pub steps: Vec<Step>,
    /// What is not, and why, for the log: only what somebody could have expected to be held.
    pub left_out: Vec<(PathBuf, String)>,
}

/// Tells on which device the file behind a loop device lies, by the loop device's directory in sysfs.
pub type BackingDevice<'a> = &'a dyn Fn(&Root, &Path) -> Option<DeviceNumber>;

/// Asks the kernel, which asks the file's file system: one that does not answer is not waited for long. The path in sysfs
/// says less: it is of no use when the file system with the file is mounted elsewhere by now.
pub fn ask_for_backing_device(root: &Root, device: &Path) -> Option<DeviceNumber> {
    if !root.is_host() || !root.exists(device.join("loop")) {
        return None;
    }
    let node = block_devices::Uevent::read(root, device).node?;
    let ask = move || qga_sys::loop_device::backing_device(std::fs::File::open(node)?);
    let number = in_time("ask a loop device for its file", ANSWER_PATIENCE, &|| Ok(()), ask).ok()?.ok()?;
    Some(DeviceNumber { major: rustix::fs::major(number), minor: rustix::fs::minor(number) })
}

/// Asks nobody: what is frozen already might keep the answer back.
pub fn unasked(_root: &Root, _device: &Path) -> Option<DeviceNumber> {
    None
}

/// Chooses among the machine's mounts: all, or those that lead to one of `names`.
pub fn choose(root: &Root, mounts: &[Mount], names: Option<&[String]>, backing_device: BackingDevice<'_>) -> Choice {
    let mut choice = Choice::default();
    let mut steps: Vec<Step> = Vec::new();
    for mount in mounts {
        if let Some(known) = steps.iter_mut().find(|step| step.device == mount.device) {
            known.mounts.push((mount.id, mount.mountpoint.clone()));
            continue;
        }
        if let Err(reason) = has_disk(root, mount) {
            if let Some(reason) = reason {
                choice.left_out.push((mount.mountpoint.clone(), reason));
            }
            continue;
        }
        let mounts = vec![(mount.id, mount.mountpoint.clone())];
        steps.push(Step { device: mount.device, kind: mount.kind.clone(), mounts });
    }
    if let Some(names) = names {
        keep_named(root, mounts, names, &mut steps, &mut choice.left_out);
    }
    let depths = Depths::of(root, mounts, backing_device);
    // The last mounted first; a stable sort then moves forward what lies on files of others.
    steps.reverse();
    steps.sort_by_key(|step| std::cmp::Reverse(depths.known.get(&step.device).copied().unwrap_or(0)));
    choice.steps = steps;
    choice
}

/// Whether a mount lies on a disk of this machine; the error may say what a person should know of one that does not.
fn has_disk(root: &Root, mount: &Mount) -> Result<(), Option<String>> {
    if mount.device.major != 0 {
        return Ok(());
    }
    if KINDS_WITH_OWN_NUMBERS.contains(&mount.kind.as_str()) {
        // What is mounted may be named by several devices: `/dev/sda:/dev/sdb`.
        let source = mount.source.to_string_lossy();
        let first = source.split(':').next().unwrap_or_default();
        return match mounts::device_of_node(root, Path::new(first)) {
            Some(_) => Ok(()),
            None => Err(Some(format!("{}: its device {first} is not here", mount.kind))),
        };
    }
    if KINDS_WITHOUT_DISK.contains(&mount.kind.as_str()) {
        return Err(None);
    }
    Err(Some(match mount.kind.as_str() {
        "zfs" => "zfs cannot be frozen by the kernel: it is consistent by itself, as after a power loss".to_owned(),
        kind => format!("{kind}: it is not on a disk of this machine"),
    }))
}

/// Keeps the file systems that the names lead to.
fn keep_named(
    root: &Root,
    mounts: &[Mount],
    names: &[String],
    steps: &mut Vec<Step>,
    left_out: &mut Vec<(PathBuf, String)>,
) {
    left_out.clear();
    let mut wanted = Vec::new();
    for name in names {
        let path = Path::new(name);
        // Where one mount hides another, the name means the upper one, which was mounted later.
        let mounted_at =
            |path: &Path| mounts.iter().rev().find(|mount| mount.mountpoint.components().eq(path.components()));
        let found = mounted_at(path).or_else(|| {
            let real = if path.is_absolute() { root.canonical(path).ok() } else { None };
            mounted_at(&real?)
        });
        let reason = match found {
            None => "no file system is mounted there".to_owned(),
            Some(mount) if steps.iter().any(|step| step.device == mount.device) => {
                wanted.push(mount.device);
                continue;
            }
            Some(mount) => format!("{}: it is not on a disk of this machine", mount.kind),
        };
        left_out.push((path.to_owned(), reason));
    }
    steps.retain(|step| wanted.contains(&step.device));
}

/// On how many files of other file systems, one within the other, each file system lies.
struct Depths<'a> {
    root: &'a Root,
    mounts: &'a [Mount],
    backing_device: BackingDevice<'a>,
    known: HashMap<DeviceNumber, usize>,
}

impl<'a> Depths<'a> {
    fn of(root: &'a Root, mounts: &'a [Mount], backing_device: BackingDevice<'a>) -> Self {
        let mut depths = Self { root, mounts, backing_device, known: HashMap::new() };
        for mount in mounts {
            depths.measure(mount);
        }
        depths
    }

    fn measure(&mut self, mount: &Mount) -> usize {
        if let Some(depth) = self.known.get(&mount.device) {
            return *depth;
        }
        // Ends a circle, which only a damaged recording can have.
        self.known.insert(mount.device, 0);
        let mut depth = 0;
        for device in devices_beneath(self.root, mount) {
            let Some(file) = backing_file(self.root, &device) else { continue };
            // A file that is not seen from here still lies on something.
            depth = depth.max(1 + self.host(&device, &file).map_or(0, |host| self.measure(host)));
        }
        self.known.insert(mount.device, depth);
        depth
    }

    /// The mount of the file system on which the file behind a loop device lies.
    fn host(&self, device: &Path, file: &Path) -> Option<&'a Mount> {
        let number = (self.backing_device)(self.root, device);
        let by_number = number.and_then(|number| self.mounts.iter().find(|mount| mount.device == number));
        // Files of a btrfs have numbers that no mount has.
        by_number.or_else(|| {
            let above = self.mounts.iter().rev().filter(|mount| file.starts_with(&mount.mountpoint));
            above.max_by_key(|mount| mount.mountpoint.components().count())
        })
    }
}

/// All devices that a file system lies on, one upon the other.
fn devices_beneath(root: &Root, mount: &Mount) -> Vec<PathBuf> {
    let device = match mount.device.major {
        // Only where the source is a device: what else it may be might not even answer.
        0 if KINDS_WITH_OWN_NUMBERS.contains(&mount.kind.as_str()) => mounts::device_of_node(root, &mount.source),
        0 => None,
        _ => Some(mount.device),
    };
    let Some(path) =
        device.and_then(|device| block_devices::linked(root, Path::new(&format!("/sys/dev/block/{device}"))))
    else {
        return Vec::new();
    };
    let members = if mount.kind == "btrfs" {
        block_devices::btrfs_members(root, &block_devices::name(&path))
    } else {
        Vec::new()
    };
    block_devices::stack(root, if members.is_empty() { vec![path] } else { members })
}

/// The file that is a loop device's content.
fn backing_file(root: &Root, device: &Path) -> Option<PathBuf> {
    let text = root.read_text(device.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
