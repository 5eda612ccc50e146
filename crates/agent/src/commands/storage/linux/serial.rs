//! The serial number of a disk: as udev has it, with the model, because hosts compare that; else as the disk has it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::asking::{self, Deadline};
use crate::system::block_devices::{self, Uevent};
use crate::system::root::Root;

/// Serial numbers that virtio disks told, by the disks' sequence numbers. The kernel gives each disk one that no other
/// had since the system started, so what is kept is true as long as the disk is there.
static TOLD: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());
/// Most that are kept; the disks that came first go first, since they may be gone.
const TOLD_MAX: usize = 256;

/// The serial number of a disk with a directory, or of the one that a partition in `uevent` lies on.
pub fn of(root: &Root, whole: &Path, uevent: &Uevent, record: &str, deadline: Deadline) -> Option<String> {
    if let Some(serial) = block_devices::udev_property(record, "ID_SERIAL") {
        return Some(serial.to_owned());
    }
    let text = |path: PathBuf| root.read_text(path).ok();
    // virtio-blk; NVM Express and memory cards; SCSI's page of vital data 0x80, behind a head of four bytes; USB.
    let virtio = || of_virtio(root, whole.join("serial"), uevent.disk_sequence, deadline);
    let page = || root.read(whole.join("device/vpd_pg80")).ok();
    let in_page = || Some(String::from_utf8_lossy(page()?.get(4..)?).into_owned());
    let usb = || {
        let device = whole.ancestors().find(|ancestor| root.exists(ancestor.join("idVendor")))?;
        text(device.join("serial"))
    };
    let found = virtio().or_else(|| text(whole.join("device/serial"))).or_else(in_page).or_else(usb)?;
    let found = found.trim_matches(|character: char| character.is_whitespace() || character == '\0');
    (!found.is_empty()).then(|| found.to_owned())
}

/// The only serial number that the kernel does not know itself: each look at the file asks the host, which takes longer
/// than everything else in the reply, and hangs if the host does not answer.
fn of_virtio(root: &Root, path: PathBuf, disk_sequence: Option<u64>, deadline: Deadline) -> Option<String> {
    if !root.is_host() {
        return root.read_text(path).ok();
    }
    let known = disk_sequence.and_then(|number| told().get(&number).cloned());
    if known.is_some() {
        return known;
    }
    if !root.exists(&path) {
        return None;
    }
    let answers = asking::ask(vec![path], |_, path: &Path| Root::host().read_text(path).ok()).answers(deadline);
    let serial = answers.into_iter().next().flatten()?;
    if let Some(number) = disk_sequence {
        keep(&mut told(), number, &serial);
    }
    Some(serial)
}

fn told() -> MutexGuard<'static, BTreeMap<u64, String>> {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(told: &mut BTreeMap<u64, String>, disk_sequence: u64, serial: &str) {
    told.insert(disk_sequence, serial.to_owned());
    while told.len() > TOLD_MAX {
        told.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::{TOLD_MAX, keep, of_virtio, told};
    use crate::commands::storage::linux::asking::Deadline;
    use crate::system::root::Root;
    use std::collections::BTreeMap;
    use std::fs;

    #[test]
    fn a_disk_that_told_its_number_is_not_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serial");
        let ask = |disk_sequence| of_virtio(&Root::host(), path.clone(), disk_sequence, Deadline::new());
        // No kernel counts so far.
        let number = Some(u64::MAX - 1);
        assert_eq!(ask(number), None);
        fs::write(&path, "first").unwrap();
        assert_eq!(ask(number).as_deref(), Some("first"));
        fs::write(&path, "second").unwrap();
        assert_eq!([ask(number), ask(None)].map(Option::unwrap), ["first", "second"]);
        assert_eq!(told().remove(&(u64::MAX - 1)).as_deref(), Some("first"));
    }

    #[test]
    fn the_disks_that_came_last_are_kept() {
        let mut kept = BTreeMap::new();
        for number in 1..=TOLD_MAX as u64 + 2 {
            keep(&mut kept, number, "x");
        }
        assert_eq!((kept.len(), kept.first_key_value().map(|(number, _)| *number)), (TOLD_MAX, Some(3)));
    }
}
