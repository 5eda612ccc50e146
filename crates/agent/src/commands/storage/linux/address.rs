//! Where a disk is attached: read out of its path in sysfs, which names every bus and controller on the way.
//!
//! Hosts find their own disk by this, so the numbers are those that a host gives it, where the kernel has others.
//!
//! **A disk that is `unknown`**: record the machine's `/sys` along the disk's path, then add a line to
//! [`Place::read`].

use std::path::{Path, PathBuf};

use qga_protocol::storage::{CcwAddress, DiskAddress, DiskBusType, PciAddress};

use super::asking::Deadline;
use super::serial;
use crate::system::block_devices::{self, Uevent};
use crate::system::root::{Root, natural_key};

/// What stands for "no PCI function".
const NO_PCI: PciAddress = PciAddress { domain: -1, bus: -1, slot: -1, function: -1 };
/// The virtual devices above all controllers of an NVM Express disk.
const NVME_SUBSYSTEMS: &str = "/sys/devices/virtual/nvme-subsystem";
/// The first channel of logical drives with megaraid controllers; those below are physical drives.
const MEGARAID_LOGICAL_CHANNEL: i64 = 2;

/// The address of a disk or partition that is no virtual device; `None` if nothing is known of it at all. `record` is
/// what udev's database says of it.
pub fn of(root: &Root, path: &Path, uevent: &Uevent, record: &str, deadline: Deadline) -> Option<DiskAddress> {
    let whole = if uevent.is_partition { path.parent().unwrap_or(path) } else { path };
    let place = Place::read(root, &attached_path(root, whole));
    let serial = serial::of(root, whole, uevent, record, deadline);
    if place.bus_type == DiskBusType::Unknown && uevent.node.is_none() && serial.is_none() {
        return None;
    }
    Some(DiskAddress {
        pci_controller: place.pci.map_or(NO_PCI, |function| function.address),
        bus_type: place.bus_type.into(),
        bus: place.bus,
        target: place.target,
        unit: place.unit,
        serial,
        dev: uevent.node.clone(),
        ccw_address: place.ccw,
    })
}

/// The path that names the controller. An NVM Express disk with native multipath, the kernel's default, is a virtual device
/// whose controllers stand beside it.
fn attached_path(root: &Root, path: &Path) -> PathBuf {
    let Some(subsystem) = path.parent().filter(|parent| parent.starts_with(NVME_SUBSYSTEMS)) else {
        return path.to_owned();
    };
    let mut names = root.list(subsystem).unwrap_or_default();
    names.retain(|name| numbered(name, "nvme").is_some());
    names.sort_by_cached_key(|name| natural_key(name));
    let controllers: Vec<PathBuf> =
        names.iter().filter_map(|name| block_devices::linked(root, &subsystem.join(name))).collect();
    // The path to this disk by one controller: nvme0c1n1 for nvme0n1 by nvme1.
    let name = block_devices::name(path);
    let leads_here = |controller: &&PathBuf| {
        let number = block_devices::name(controller);
        let (head, namespace) = name.rsplit_once('n').unwrap_or_default();
        root.exists(controller.join(format!("{head}c{}n{namespace}", number.trim_start_matches("nvme"))))
    };
    let chosen = controllers.iter().find(leads_here).or(controllers.first());
    chosen.cloned().unwrap_or_else(|| path.to_owned())
}

/// A PCI function on the way to a disk.
struct PciFunction {
    address: PciAddress,
    path: PathBuf,
}

/// A disk's place on its bus.
struct Place {
    bus_type: DiskBusType,
    bus: i64,
    target: i64,
    unit: i64,
    pci: Option<PciFunction>,
    ccw: Option<CcwAddress>,
}

impl Place {
    /// Reads a path without links.
    fn read(root: &Root, path: &Path) -> Self {
        let words: Vec<&str> = path.iter().filter_map(|word| word.to_str()).collect();
        let mut place = Self {
            bus_type: DiskBusType::Unknown,
            bus: 0,
            target: 0,
            unit: 0,
            pci: nearest_pci_function(path),
            ccw: ccw_address(&words),
        };
        let has = |kind: &str| words.iter().any(|word| numbered(word, kind).is_some());
        let starts = |start: &str| words.iter().any(|word| word.starts_with(start));
        let scsi = words.iter().rev().find_map(|word| scsi_numbers(word));
        if has("nvme") {
            place.bus_type = DiskBusType::Nvme;
        } else if has("usb") {
            place.bus_type = DiskBusType::Usb;
        } else if starts("mmc_host") {
            let kind = root.read_text(path.join("device/type")).unwrap_or_default();
            place.bus_type = if kind == "MMC" { DiskBusType::Mmc } else { DiskBusType::Sd };
        } else if has("vbd-") {
            place.bus_type = DiskBusType::Xen;
        } else if starts("floppy.") {
            place.bus_type = DiskBusType::Fdc;
        } else if let Some(scsi) = scsi {
            place.read_scsi(root, path, &words, scsi);
        } else if has("virtio") {
            place.bus_type = DiskBusType::Virtio;
        }
        place
    }

    /// Reads the place of what the kernel drives as a SCSI disk: host, channel, target and logical unit.
    fn read_scsi(&mut self, root: &Root, path: &Path, words: &[&str], [_, channel, target, unit]: [i64; 4]) {
        let driver = self.pci.as_ref().map(|function| driver(root, &function.path)).unwrap_or_default();
        if let Some(position) = words.iter().position(|word| numbered(word, "ata").is_some()) {
            let parent: PathBuf = words[..position].iter().collect();
            let port = port_index(root, &parent, words[position]);
            if ["ata_piix", "ata_generic"].contains(&driver.as_str()) || driver.starts_with("pata_") {
                self.bus_type = DiskBusType::Ide;
                (self.bus, self.target, self.unit) = (port, 0, target);
            } else {
                self.bus_type = DiskBusType::Sata;
                (self.bus, self.target, self.unit) = (0, 0, port);
            }
            return;
        }
        let transport = |start: &str| path.iter().any(|word| word.to_str().is_some_and(|word| word.starts_with(start)));
        self.bus_type = if transport("end_device-") {
            DiskBusType::Sas
        } else if transport("rport-") {
            DiskBusType::Fibre
        } else if words.iter().any(|word| numbered(word, "session").is_some()) {
            DiskBusType::Iscsi
        } else {
            DiskBusType::Scsi
        };
        (self.bus, self.target, self.unit) = (channel, target, unit);
        match driver.as_str() {
            // Hosts count the targets of this controller as units.
            "sym53c8xx" => (self.bus, self.target, self.unit) = (0, 0, target),
            "megaraid_sas" if channel >= MEGARAID_LOGICAL_CHANNEL => self.bus = channel - MEGARAID_LOGICAL_CHANNEL,
            // Units above 255 are numbered in another way, which shows in the two uppermost of 16 bits.
            _ if words.iter().any(|word| numbered(word, "virtio").is_some()) && (0x4000..0x8000).contains(&unit) => {
                self.unit = unit & 0x3fff;
            }
            _ => {}
        }
    }
}

/// The PCI function that a disk is attached to: the last on its path, as those before are bridges.
fn nearest_pci_function(path: &Path) -> Option<PciFunction> {
    path.ancestors().find_map(|ancestor| {
        let address = pci_address(ancestor.file_name()?.to_str()?)?;
        Some(PciFunction { address, path: ancestor.to_owned() })
    })
}

/// The driver of a device; empty without one.
fn driver(root: &Root, path: &Path) -> String {
    root.read_link(path.join("driver")).map(|driver| block_devices::name(&driver)).unwrap_or_default()
}

/// Which of a controller's ports a port is: they are numbered through all controllers of the machine.
fn port_index(root: &Root, controller: &Path, port: &str) -> i64 {
    let mut ports: Vec<u64> =
        root.list(controller).unwrap_or_default().iter().filter_map(|name| numbered(name, "ata")).collect();
    ports.sort_unstable();
    ports.iter().position(|number| Some(*number) == numbered(port, "ata")).unwrap_or_default() as i64
}

/// The number in `ata3`; `None` for other words.
fn numbered(word: &str, kind: &str) -> Option<u64> {
    let digits = word.strip_prefix(kind)?;
    if digits.starts_with('+') { None } else { digits.parse().ok() }
}

/// Reads `0000:00:1f.2`.
fn pci_address(word: &str) -> Option<PciAddress> {
    let (rest, function) = word.split_once('.')?;
    let mut numbers = rest.split(':').map(hexadecimal);
    let address = PciAddress {
        domain: numbers.next()??,
        bus: numbers.next()??,
        slot: numbers.next()??,
        function: hexadecimal(function)?,
    };
    numbers.next().is_none().then_some(address)
}

/// Reads `2:0:0:1`.
fn scsi_numbers(word: &str) -> Option<[i64; 4]> {
    let numbers: Option<Vec<i64>> = word.split(':').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// The channel device below `/devices/css0`: its subchannel `0.1.000f`, then its own `0.1.0200`.
fn ccw_address(words: &[&str]) -> Option<CcwAddress> {
    let root = words.iter().position(|word| numbered(word, "css").is_some())?;
    let numbers = |word: &str| -> Option<[i64; 3]> {
        let numbers: Option<Vec<i64>> = word.split('.').map(hexadecimal).collect();
        numbers?.try_into().ok()
    };
    let [cssid, ssid, subchno] = numbers(words.get(root + 1)?)?;
    let [_, _, devno] = numbers(words.get(root + 2)?)?;
    Some(CcwAddress { cssid, ssid, subchno, devno })
}

fn hexadecimal(digits: &str) -> Option<i64> {
    if digits.starts_with(['+', '-']) { None } else { i64::from_str_radix(digits, 16).ok() }
}

#[cfg(test)]
mod tests {
    use super::{Place, ccw_address, numbered, pci_address, scsi_numbers};
    use crate::system::root::Root;
    use qga_protocol::storage::{CcwAddress, PciAddress};
    use std::path::Path;

    /// What is read out of the path alone: bus type, PCI function, bus, target and unit.
    fn check(path: &str, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::read(&Root::at(directory.path()), Path::new(path));
        let pci = place.pci.map_or("-".to_owned(), |pci| {
            let PciAddress { domain, bus, slot, function } = pci.address;
            format!("{domain}:{bus}:{slot}.{function}")
        });
        let bus_type = serde_json::to_value(place.bus_type).unwrap();
        let bus_type = bus_type.as_str().unwrap_or_default();
        assert_eq!(format!("{bus_type} {pci} {}/{}/{}", place.bus, place.target, place.unit), expected, "{path}");
    }

    #[test]
    fn a_path_tells_the_bus() {
        check("/sys/devices/pci0000:00/0000:00:05.0/virtio0/block/vda", "virtio 0:0:5.0 0/0/0");
        check("/sys/devices/pci0000:00/0000:00:06.0/0000:01:03.0/virtio6/block/vde", "virtio 0:1:3.0 0/0/0");
        check(
            "/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/0000:02:00.0/virtio1/block/vdb",
            "virtio 0:2:0.0 0/0/0",
        );
        check(
            "/sys/devices/pci0000:00/0000:00:0a.0/virtio4/host0/target0:0:3/0:0:3:2/block/sda",
            "scsi 0:0:10.0 0/3/2",
        );
        check(
            "/sys/devices/pci0000:00/0000:00:0a.0/virtio4/host0/target0:0:1/0:0:1:16640/block/sdb",
            "scsi 0:0:10.0 0/1/256",
        );
        check(
            "/sys/devices/pci0000:00/0000:00:0e.0/usb2/2-1/2-1:1.0/host10/target10:0:0/10:0:0:0/block/sdf",
            "usb 0:0:14.0 0/0/0",
        );
        check(
            "/sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:01.0/10000:e1:00.0/nvme/nvme0/nvme0n1",
            "nvme 65536:225:0.0 0/0/0",
        );
        check(
            "/sys/devices/pci0000:00/0000:00:12.0/host4/port-4:0/end_device-4:0/target4:0:7/4:0:7:0/block/sdg",
            "sas 0:0:18.0 0/7/0",
        );
        check(
            "/sys/devices/pci0000:00/0000:00:12.0/host4/rport-4:0-1/target4:0:7/4:0:7:1/block/sdg",
            "fibre 0:0:18.0 0/7/1",
        );
        check("/sys/devices/platform/host5/session1/target5:0:0/5:0:0:1/block/sdh", "iscsi - 0/0/1");
        check("/sys/devices/platform/a003e00.virtio_mmio/virtio0/block/vdc", "virtio - 0/0/0");
        check("/sys/devices/vbd-51712/block/xvda", "xen - 0/0/0");
        check("/sys/devices/platform/floppy.0/block/fd0", "fdc - 0/0/0");
        check("/sys/devices/css0/0.0.0009/0.0.0200/block/dasda", "unknown - 0/0/0");
        check("/sys/devices/somewhere/else", "unknown - 0/0/0");
    }

    #[test]
    fn words_of_other_forms_are_no_addresses() {
        assert_eq!(numbered("ata3", "ata"), Some(3));
        for word in ["ata", "ata+3", "ata3x", "xata3", "ata99999999999999999999999"] {
            assert_eq!(numbered(word, "ata"), None, "{word}");
        }
        for word in ["0000:00:1f", "00:1f.2", "0:0:0:0.1", "0000:00:1g.2", "0000:00:+1.2", "..", ":::."] {
            assert_eq!(pci_address(word), None, "{word}");
        }
        assert_eq!(scsi_numbers("2:0:0"), None);
        assert_eq!(scsi_numbers("target2:0:0:1"), None);
    }

    #[test]
    fn a_channel_device_has_the_numbers_of_its_subchannel_and_its_own() {
        let address = ccw_address(&["/", "sys", "devices", "css0", "0.1.000f", "0.1.0200", "virtio4"]);
        assert_eq!(address, Some(CcwAddress { cssid: 0, ssid: 1, subchno: 15, devno: 512 }));
        assert_eq!(ccw_address(&["css0", "defunct", "0.0.0200"]), None);
        assert_eq!(ccw_address(&["css0", "0.1.000f"]), None);
    }
}
