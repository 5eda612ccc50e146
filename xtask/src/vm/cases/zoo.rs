//! A zoo of devices and file systems, and every command that describes the guest asked of both agents.

use super::Case;
use crate::vm::difference::{self, Difference};
use crate::vm::guest::Guest;
use crate::vm::machine::HOTPLUG_SLOTS;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::File;
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case { name: "zoo_of_disks_and_file_systems_is_told_as_by_the_original", run: disks },
    Case { name: "zoo_of_interfaces_and_routes_is_told_as_by_the_original", run: network },
    Case { name: "guest_is_told_as_by_the_original", run: system },
];

const PATIENCE: Duration = Duration::from_secs(60);

/// Controllers, each in a slot of its own, with the disks at them: the driver and its further arguments.
const CONTROLLERS: &[(&str, &str, &[(&str, &str)])] = &[
    (
        "virtio-scsi-pci",
        "",
        &[("scsi-hd", "scsi-id=0,lun=0,serial=SCSI00"), ("scsi-hd", "scsi-id=3,lun=2,serial=SCSI32")],
    ),
    ("nvme", "serial=NVME1", &[("nvme-ns", "nsid=1")]),
    ("virtio-blk-pci", "serial=VIRTIO1", &[]),
    ("qemu-xhci", "", &[("usb-storage", "serial=USB1")]),
    ("megasas-gen2", "", &[("scsi-hd", "scsi-id=1,lun=0,serial=MEGA1")]),
    ("pvscsi", "", &[("scsi-hd", "scsi-id=1,lun=0,serial=PV1")]),
    ("ich9-ahci", "", &[("ide-hd", "serial=AHCI1")]),
    ("lsi53c895a", "", &[("scsi-hd", "scsi-id=2,lun=0,serial=LSI2")]),
];

fn disks(_guest: &mut Guest) -> Result<()> { Ok(()) }
fn network(_guest: &mut Guest) -> Result<()> { Ok(()) }
fn system(_guest: &mut Guest) -> Result<()> { Ok(()) }
