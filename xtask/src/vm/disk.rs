//! Disks that a case plugs into the running guest: fast or slow, copied by the host at any moment, pulled out again.
//!
//! They hang at a SCSI controller that every guest has, as many as a case likes. What is still plugged in when a case
//! has ended is removed by [`Guest::clear_stage`].

use super::guest::Guest;
use super::pace;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::fs::File;
use std::time::Duration;

/// A host takes its time to copy or to let a device go.
fn patience() -> Duration {
    pace::patience(Duration::from_secs(60))
}

/// Large enough for every file system; takes no room on the host until something is written.
pub const USUAL_BYTES: u64 = 512 << 20;

/// A disk that is plugged in.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The serial number, and the name of everything that belongs to it in QEMU.
    pub name: String,
    /// Where it is in the guest, such as `/dev/sdb`.
    pub device: String,
}

/// What a disk is like.
#[derive(Debug, Clone, Copy)]
pub struct DiskOptions {
    /// Size.
    pub bytes: u64,
    /// The host lets no more than this through, reads and writes together.
    pub bytes_per_second: Option<u64>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self { bytes: USUAL_BYTES, bytes_per_second: None }
    }
}

impl Guest {
    /// Plugs in an empty disk and waits until the guest has it. `name`: at most 20 letters, digits and dashes.
    pub fn plug_disk(&mut self, name: &str, options: DiskOptions) -> Result<Disk> {
        let file = self.folder().join(format!("disk-{name}"));
        File::create(&file)?.set_len(options.bytes)?;
        // A trim in the guest makes holes in the file; zeros that are copied stay holes.
        let raw = json!({"driver": "raw", "discard": "unmap", "detect-zeroes": "unmap",
            "file": {"driver": "file", "filename": file, "discard": "unmap"}});
        let mut node = match options.bytes_per_second {
            None => raw,
            Some(bytes_per_second) => {
                let group = json!({"qom-type": "throttle-group", "id": format!("{name}-speed"),
                    "limits": {"bps-total": bytes_per_second}});
                self.machine().qmp("object-add", &group)?;
                json!({"driver": "throttle", "throttle-group": format!("{name}-speed"), "file": raw})
            }
        };
        node["node-name"] = json!(node_name(name));
        self.machine().qmp("blockdev-add", &node)?;
        self.plug_node(name)
    }

    /// Copies a disk as it is at this moment, which takes no notice of the guest, and returns the name of the copy:
    /// [`Guest::plug_copy`] plugs it in.
    pub fn copy_disk(&mut self, disk: &Disk) -> Result<String> {
        let name = format!("{}-copy", disk.name);
        let file = self.folder().join(format!("disk-{name}"));
        let bytes = self.folder().join(format!("disk-{}", disk.name)).metadata()?.len();
        File::create(&file)?.set_len(bytes)?;
        let node = json!({"driver": "raw", "node-name": node_name(&name), "detect-zeroes": "unmap",
            "discard": "unmap", "file": {"driver": "file", "filename": file, "discard": "unmap"}});
        self.machine().qmp("blockdev-add", &node)?;
        let job = json!({"job-id": format!("{name}-job"), "device": node_name(&disk.name),
            "target": node_name(&name), "sync": "full"});
        self.machine().qmp("blockdev-backup", &job)?;
        let event = self.machine().wait_for_event("BLOCK_JOB_COMPLETED", patience())?;
        anyhow::ensure!(event["data"]["error"].is_null(), "the copy of {} failed: {event}", disk.name);
        Ok(name)
    }

    /// Plugs in what [`Guest::copy_disk`] made.
    pub fn plug_copy(&mut self, name: &str) -> Result<Disk> {
        self.plug_node(name)
    }

    fn plug_node(&mut self, name: &str) -> Result<Disk> {
        let device = json!({"driver": "scsi-hd", "bus": "plugs.0", "id": name, "drive": node_name(name),
            "serial": name, "physical_block_size": 512, "discard_granularity": 512});
        self.machine().qmp("device_add", &device)?;
        self.disks().push(Disk { name: name.to_owned(), device: String::new() });
        let device = self.wait_until(&format!("the guest sees disk {name}"), |guest| {
            let path = guest.shell(&format!("lsblk -dnpo PATH,SERIAL | awk '$2 == \"{name}\" {{ print $1 }}'"))?;
            Ok((!path.is_empty()).then_some(path))
        })?;
        // The rules for a new disk open it: whoever formats it now is in their way.
        self.shell("udevadm settle")?;
        let disk = Disk { name: name.to_owned(), device };
        if let Some(last) = self.disks().last_mut() {
            *last = disk.clone();
        }
        Ok(disk)
    }

    /// The disk that was plugged in under this name.
    pub fn disk(&mut self, name: &str) -> Result<Disk> {
        let disk = self.disks().iter().find(|disk| disk.name == name).cloned();
        disk.with_context(|| format!("there is no disk {name}"))
    }

    /// Pulls a disk out, in use or not, and waits until the guest has let it go.
    pub fn unplug_disk(&mut self, name: &str) -> Result<()> {
        self.machine().qmp("device_del", &json!({"id": name}))?;
        self.machine().wait_for_event_of("DEVICE_DELETED", &json!({"device": name}), patience())?;
        self.disks().retain(|known| known.name != name);
        self.machine().qmp("blockdev-del", &json!({"node-name": node_name(name)}))?;
        // Only a slow disk has a limit.
        let _: Result<Value> = self.machine().qmp("object-del", &json!({"id": format!("{name}-speed")}));
        std::fs::remove_file(self.folder().join(format!("disk-{name}"))).context("cannot remove a disk's file")
    }
}

fn node_name(disk: &str) -> String {
    format!("node-{disk}")
}
