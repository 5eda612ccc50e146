//! File systems and disks as `/proc`, `/sys` and udev's database show them.
//!
//! A block device is known by its directory in sysfs with all links followed, because that path tells where it is
//! attached. A device that vanishes while it is looked at is left out.

mod address;
mod asking;
mod counters;
mod serial;
pub mod smart;
mod trim;
mod usage;

use std::path::{Path, PathBuf};

use qga_protocol::storage::{DiskBusType, DiskInfo, FilesystemInfo};

use self::asking::Deadline;
pub use self::counters::disk_stats;
pub use self::trim::trim;
use crate::system::block_devices;
use crate::system::error::Error;
use crate::system::mounts::{self, Mount};
use crate::system::root::Root;

/// Where the kernel lists the disks.
const DISKS: &str = "/sys/block";

/// The file systems that have a block device, the last mounted first: clients turn that round.
pub fn filesystems(root: &Root) -> Result<Vec<FilesystemInfo>, Error> {
    let mut mounted = mounts::all_with_devices(root)?;
    mounted.reverse();
    let deadline = Deadline::new();
    // The system calls can only speak of the machine that they are made on.
    let usages = usage::ask(if root.is_host() { &mounted } else { &[] });
    let firsts = mounted.iter().filter_map(|mounts| mounts.first());
    let mut filesystems: Vec<FilesystemInfo> = firsts.map(|mount| filesystem(root, mount, deadline)).collect();
    for (filesystem, usage) in filesystems.iter_mut().zip(usages.results(deadline)) {
        filesystem.used_bytes = usage.map(|usage| usage.used_bytes);
        filesystem.total_bytes = usage.map(|usage| usage.total_bytes);
        filesystem.total_bytes_privileged = usage.map(|usage| usage.total_bytes_privileged);
    }
    Ok(filesystems)
}

/// A file system without its usage.
fn filesystem(root: &Root, mount: &Mount, deadline: Deadline) -> FilesystemInfo {
    let path = block_devices::linked(root, Path::new(&format!("/sys/dev/block/{}", mount.device)));
    let leaves = path.as_deref().map_or_else(Vec::new, |path| block_devices::leaves(root, beneath(root, mount, path)));
    let address = |leaf: &PathBuf| {
        let uevent = block_devices::Uevent::read(root, leaf);
        address::of(root, leaf, &uevent, &block_devices::udev_record(root, &uevent), deadline)
    };
    FilesystemInfo {
        name: path.as_deref().map_or_else(|| mount.device.to_string(), block_devices::name),
        mountpoint: mount.mountpoint.to_string_lossy().into_owned(),
        r#type: mount.kind.clone(),
        used_bytes: None,
        total_bytes: None,
        total_bytes_privileged: None,
        // The original puts each before those that it has found already.
        disk: leaves.iter().rev().filter_map(address).collect(),
    }
}

/// The devices that a file system lies on: all of a btrfs, the one that the mount names last.
fn beneath(root: &Root, mount: &Mount, path: &Path) -> Vec<PathBuf> {
    let mut members =
        if mount.kind == "btrfs" { block_devices::btrfs_members(root, &block_devices::name(path)) } else { Vec::new() };
    members.sort_by_key(|member| member == path);
    if members.is_empty() { vec![path.to_owned()] } else { members }
}

/// The disks, each behind its partitions: everywhere what the kernel lists last comes first, as with the original.
pub fn disks(root: &Root) -> Result<Vec<DiskInfo>, Error> {
    let names = root.list(DISKS).map_err(|error| Error::io(format!("Can't open directory \"{DISKS}\""), &error))?;
    let (mut found, deadline) = (Vec::new(), Deadline::new());
    for name in names.into_iter().rev() {
        let link = Path::new(DISKS).join(&name);
        // An empty drive has no size, and files beside the links are no disks.
        if root.read_text(link.join("size")).is_ok_and(|size| size == "0") {
            continue;
        }
        let Some(path) = block_devices::linked(root, &link) else { continue };
        let uevent = block_devices::Uevent::read(root, &path);
        let Some(node) = uevent.node.clone() else { continue };
        found.extend(partitions(root, &path, &name, &node));
        found.push(disk(root, &path, &uevent, node, deadline));
    }
    Ok(found)
}

fn partitions(root: &Root, disk_path: &Path, disk_name: &str, disk_node: &str) -> Vec<DiskInfo> {
    let mut names = root.list(disk_path).unwrap_or_default();
    names.retain(|name| name.starts_with(disk_name) && root.exists(disk_path.join(name).join("partition")));
    let nodes = names.iter().rev().filter_map(|name| block_devices::Uevent::read(root, &disk_path.join(name)).node);
    let partition = |name| DiskInfo {
        name,
        partition: true,
        dependencies: Some(vec![disk_node.to_owned()]),
        address: None,
        alias: None,
        smart: None,
    };
    nodes.map(partition).collect()
}

fn disk(root: &Root, path: &Path, uevent: &block_devices::Uevent, node: String, deadline: Deadline) -> DiskInfo {
    let record = block_devices::udev_record(root, uevent);
    let address = if block_devices::is_built_upon_others(path) {
        None
    } else {
        address::of(root, path, uevent, &record, deadline)
    };
    let is_nvme = address.as_ref().is_some_and(|address| address.bus_type == DiskBusType::Nvme);
    let node_of = |slave: PathBuf| block_devices::Uevent::read(root, &slave).node;
    DiskInfo {
        partition: false,
        dependencies: block_devices::slaves(root, path)
            .map(|slaves| slaves.into_iter().rev().filter_map(node_of).collect()),
        address,
        alias: block_devices::alias(root, path, &record),
        smart: if is_nvme && root.is_host() { smart::read(&node).map(Into::into) } else { None },
        name: node,
    }
}

#[cfg(test)]
mod tests {
    use super::{disks, filesystems};
    use crate::system::root::Root;

    #[test]
    fn a_machine_without_disks_is_an_error_that_names_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let error = disks(&Root::at(directory.path())).unwrap_err();
        assert_eq!(error.desc, "Can't open directory \"/sys/block\": No such file or directory");
    }

    #[test]
    fn a_machine_without_mounts_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = filesystems(&Root::at(directory.path())).unwrap_err();
        assert_eq!(error.desc, "failed to open mtab file: '/proc/self/mounts': No such file or directory");
    }

    #[test]
    fn this_machine_has_a_usage_for_what_it_boots_from() {
        for filesystem in filesystems(&Root::host()).unwrap() {
            let total = filesystem.total_bytes_privileged.unwrap_or(u64::MAX);
            assert!(filesystem.used_bytes.is_none_or(|used| used <= total), "{filesystem:?}");
        }
    }
}
