//! A zoo of devices and file systems, and every command that describes the guest asked of both agents.
//!
//! What differs on purpose is in [`WANTED`]; any other difference is a failure, and so is an entry that no longer
//! differs.

use super::Case;
use crate::vm::difference::{self, Difference};
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs::File;

pub const CASES: &[Case] = &[
    Case { name: "zoo_of_disks_and_file_systems_is_told_as_by_the_original", run: disks },
    Case { name: "zoo_of_interfaces_and_routes_is_told_as_by_the_original", run: network },
    Case { name: "guest_is_told_as_by_the_original", run: system },
];

/// Large enough for every file system; takes no room until something is written.
const DISK_BYTES: u64 = 512 << 20;

/// Differences that are wanted: the command and the place in its reply, with `*` for anything, and why.
const WANTED: &[(&str, &str)] = &[
    ("guest-get-disks/*NVME1*/address/*", NVME),
    ("guest-get-disks/*NVME1*/smart/*", NVME),
    ("guest-get-fsinfo//zoo/nvme/disk/*NVME1*/*", NVME),
    ("guest-get-disks/*SCSI32*/address/target", TARGET),
    ("guest-get-fsinfo//zoo/xfs/disk/*SCSI32*/target", TARGET),
    ("guest-get-disks/*PV1*/address/*", ANY_DRIVER),
    ("guest-get-fsinfo//zoo/xfs/disk/*PV1*/*", ANY_DRIVER),
    ("guest-get-disks/*MEGA1*/address/*", ANY_DRIVER),
    ("guest-get-fsinfo//zoo/mirror/disk/*MEGA1*/*", ANY_DRIVER),
    ("guest-get-disks/0xdeadbeef/address/*", ANY_DRIVER),
    ("guest-get-fsinfo//zoo/btrfs/disk/*USB1*", "all disks of a btrfs are told"),
    ("guest-network-get-interfaces/zoo-tun/hardware-address", "an interface without a hardware address has none"),
    ("guest-network-get-route/*/flags", UNSIGNED),
    ("guest-network-get-route/:: lo/metric", UNSIGNED),
    ("guest-network-get-route/203.0.113.0 zoo-dummy/mtu", "an IPv4 route's MTU is told"),
    ("guest-network-get-route/203.0.113.64 zoo-dummy 2*", "each next hop of an IPv4 route is told"),
];

const NVME: &str = "NVM Express disks are told with multipath too";
const TARGET: &str = "disks of a virtio SCSI controller have their target";
const ANY_DRIVER: &str = "the place of a disk is told whatever the driver";
const UNSIGNED: &str = "metrics and flags have no sign";

/// The disks by their serial numbers: how ours is to tell them. The last two are there from the start.
const DISKS: &[(&str, &str, u64, u64)] = &[
    ("SCSI00", "scsi", 0, 0),
    ("SCSI32", "scsi", 3, 2),
    ("NVME1", "nvme", 0, 0),
    ("VIRTIO1", "virtio", 0, 0),
    ("USB1", "usb", 0, 0),
    ("MEGA1", "scsi", 1, 0),
    ("PV1", "scsi", 1, 0),
    // The host numbers the targets of such a controller as units.
    ("LSI2", "scsi", 0, 2),
    ("AHCI0", "sata", 0, 0),
    ("0xdeadbeef", "sd", 0, 0),
];

/// The controller that stays plugged in: the guest's driver frees what is not its own when it goes.
const STAYS: &str = "lsi53c895a";

/// What is plugged in: controllers, each with the disks at it. Those without disks are disks themselves.
fn controllers() -> Vec<(Value, Vec<Value>)> {
    let scsi = |target: u64, unit: u64, serial: &str| json!({"driver": "scsi-hd", "scsi-id": target, "lun": unit, "serial": serial});
    vec![
        (json!({"driver": "virtio-scsi-pci"}), vec![scsi(0, 0, "SCSI00"), scsi(3, 2, "SCSI32")]),
        (json!({"driver": "nvme", "serial": "NVME1"}), vec![]),
        (json!({"driver": "virtio-blk-pci", "serial": "VIRTIO1"}), vec![]),
        (json!({"driver": "qemu-xhci"}), vec![json!({"driver": "usb-storage", "serial": "USB1"})]),
        (json!({"driver": "megasas-gen2"}), vec![scsi(1, 0, "MEGA1")]),
        (json!({"driver": "pvscsi"}), vec![scsi(1, 0, "PV1")]),
        (json!({"driver": STAYS}), vec![scsi(2, 0, "LSI2")]),
    ]
}

/// Disks become file systems in as many ways as the guest has tools for.
const BUILD: &str = r#"set -e
exec 2>&1
disk() { lsblk -dnpo PATH,SERIAL | awk -v serial="$1" '$2 == serial { print $1 }'; }
mkdir -p /zoo/ext4 "/zoo/with blank" /zoo/xfs /zoo/btrfs /zoo/mirror /zoo/crypt /zoo/nvme /zoo/loop /zoo/bound
printf 'size=100MiB\nsize=100MiB\n' | sfdisk -q "$(disk SCSI00)"
udevadm settle
mkfs.ext4 -q "$(disk SCSI00)1"; mount "$(disk SCSI00)1" /zoo/ext4
mkfs.vfat "$(disk SCSI00)2" > /dev/null; mount "$(disk SCSI00)2" "/zoo/with blank"
mkfs.ext4 -q "$(disk NVME1)"; mount "$(disk NVME1)" /zoo/nvme
vgcreate -q zoo "$(disk SCSI32)" "$(disk PV1)"
lvcreate -q -y -n wide -l 100%FREE zoo; mkfs.xfs -q /dev/zoo/wide; mount /dev/zoo/wide /zoo/xfs
mkfs.btrfs -q -d single -m raid1 "$(disk VIRTIO1)" "$(disk USB1)"; mount "$(disk VIRTIO1)" /zoo/btrfs
mdadm -q --create /dev/md9 --level 1 --raid-devices 2 --assume-clean --metadata 1.2 --run "$(disk MEGA1)" "$(disk LSI2)"
mkfs.ext4 -q /dev/md9; mount /dev/md9 /zoo/mirror
truncate -s 64M /zoo/crypt.img /zoo/loop.img
echo secret > /zoo/key
crypt=$(losetup -f --show /zoo/crypt.img)
cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /zoo/key "$crypt"
cryptsetup open --key-file /zoo/key "$crypt" zoo-crypt
mkfs.ext4 -q /dev/mapper/zoo-crypt; mount /dev/mapper/zoo-crypt /zoo/crypt
mkfs.ext4 -q /zoo/loop.img; mount -o loop /zoo/loop.img /zoo/loop
mount --bind /zoo/ext4 /zoo/bound
udevadm settle
"#;

/// Undoes [`BUILD`], as far as it got.
const CLEAR: &str = r#"
for mount in bound loop crypt mirror btrfs xfs nvme "with blank" ext4; do umount "/zoo/$mount"; done
cryptsetup close zoo-crypt; losetup -D; mdadm -q --stop /dev/md9; vgchange -q -an zoo; rm -rf /zoo
true
"#;

fn disks(guest: &mut Guest) -> Result<()> {
    guest.renew_by_boot()?;
    let plugged = plug(guest).context("plugging the zoo in");
    let outcome = plugged.and_then(|()| build_and_compare(guest));
    guest.shell_result(CLEAR)?;
    outcome.and(unplug(guest))
}

fn build_and_compare(guest: &mut Guest) -> Result<()> {
    guest.shell(BUILD).context("building the zoo")?;
    compare(guest, &["guest-get-disks", "guest-get-fsinfo", "guest-get-diskstats"])?;
    let mut host = guest.talk_to_ours()?;
    let told = host.call("guest-get-disks", &json!({}))?;
    drop(host);
    for (serial, bus_type, target, unit) in DISKS {
        let of_disk = |disk: &&Value| disk["address"]["serial"].as_str().is_some_and(|told| told.contains(serial));
        let disk = told.as_array().and_then(|disks| disks.iter().find(of_disk));
        let disk = disk.with_context(|| format!("no disk {serial} in {told}"))?;
        let address = &disk["address"];
        let found = (address["bus-type"].as_str(), address["target"].as_u64(), address["unit"].as_u64());
        ensure!(found == (Some(bus_type), Some(*target), Some(*unit)), "{serial} is told as {disk}");
        let name = disk["name"].as_str().unwrap_or_default();
        let pci = &address["pci-controller"];
        let number = |name: &str| pci[name].as_i64().unwrap_or(-1);
        let [domain, bus, slot, function] = ["domain", "bus", "slot", "function"].map(number);
        let told = format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}");
        // The last PCI function on the way to a device is its controller.
        let expected = guest.shell(&format!(
            "readlink -f /sys/class/block/{}/device | grep -oE '[0-9a-f]{{4}}(:[0-9a-f]{{2}}){{2}}[.][0-7]' | tail -1",
            name.trim_start_matches("/dev/")
        ))?;
        // An NVM Express disk with multipath belongs to no controller alone.
        ensure!(told == expected || expected.is_empty(), "{serial} is at {expected}, told as {told}");
    }
    Ok(())
}

fn plug(guest: &mut Guest) -> Result<()> {
    let mut count = 0;
    let folder = guest.folder().to_owned();
    for (slot, (mut controller, disks)) in (1..).zip(controllers()) {
        let mut backed = |guest: &mut Guest, device: &mut Value| -> Result<()> {
            let node = format!("zoo-disk{count}");
            count += 1;
            let file = folder.join(&node);
            File::create(&file)?.set_len(DISK_BYTES)?;
            let node_options =
                json!({"driver": "raw", "node-name": node, "file": {"driver": "file", "filename": file}});
            guest.machine().qmp("blockdev-add", &node_options)?;
            device["drive"] = json!(node);
            Ok(())
        };
        let id = format!("zoo{slot}");
        controller["id"] = json!(id);
        controller["bus"] = json!(format!("slot{slot}"));
        if disks.is_empty() {
            backed(guest, &mut controller)?;
        }
        guest.machine().qmp("device_add", &controller)?;
        for mut disk in disks {
            disk["bus"] = json!(format!("{id}.0"));
            backed(guest, &mut disk)?;
            guest.machine().qmp("device_add", &disk)?;
        }
    }
    wait_for_disks(guest, &["LSI2", "MEGA1", "NVME1", "PV1", "SCSI00", "SCSI32", "USB1", "VIRTIO1"])
}

/// Waits until the guest has these disks, by their serial numbers, and none of the others of the zoo.
fn wait_for_disks(guest: &mut Guest, expected: &[&str]) -> Result<()> {
    guest.wait_until("the guest has noticed its disks", |guest| {
        let seen = guest.shell("udevadm settle; lsblk -dno SERIAL | sort | xargs")?;
        let of_the_zoo = |serial: &&str| DISKS[..DISKS.len() - 2].iter().any(|disk| disk.0 == *serial);
        let seen: Vec<&str> = seen.split(' ').filter(of_the_zoo).collect();
        ensure!(seen == expected, "expected {expected:?}, there are {seen:?}");
        Ok(Some(()))
    })
}

fn unplug(guest: &mut Guest) -> Result<()> {
    for (slot, (controller, _)) in (1..).zip(controllers()) {
        if controller["driver"] != STAYS {
            // What was never plugged in is no device.
            let _ = guest.machine().qmp("device_del", &json!({"id": format!("zoo{slot}")}));
        }
    }
    wait_for_disks(guest, &["LSI2"])
}

/// Interfaces of many kinds, with and without addresses, labels and hardware addresses, and routes over them.
const WIRE: &str = "set -e
exec 2>&1
ip link add zoo-bridge type bridge
ip link add zoo-left type veth peer name zoo-right
ip link set zoo-left master zoo-bridge
ip link add zoo-dummy address 02:00:00:00:00:01 type dummy
ip link add link zoo-dummy name zoo-vlan type vlan id 7
ip link add link zoo-dummy name zoo-macvlan type macvlan
ip tuntap add zoo-tun mode tun
for name in bridge left right dummy vlan macvlan tun; do ip link set zoo-$name up; done
ip addr add 192.0.2.1/24 dev zoo-dummy
ip addr add 192.0.2.2/24 dev zoo-dummy label zoo-dummy:1
ip addr add 198.51.100.1 peer 198.51.100.2/32 dev zoo-tun
ip addr add 2001:db8::1/64 dev zoo-vlan nodad
ip route add 203.0.113.0/25 via 192.0.2.9 metric 77 mtu 1400
ip route add unreachable 203.0.113.128/25
ip route add 203.0.113.64/26 nexthop via 192.0.2.8 nexthop via 192.0.2.9
ip -6 route add 2001:db8:1::/48 via 2001:db8::9 metric 5
";

/// Undoes [`WIRE`], as far as it got.
const UNWIRE: &str = "ip route del unreachable 203.0.113.128/25
for name in bridge left dummy tun; do ip link del zoo-$name; done";

fn network(guest: &mut Guest) -> Result<()> {
    let outcome =
        guest.shell(WIRE).and_then(|_| compare(guest, &["guest-network-get-interfaces", "guest-network-get-route"]));
    guest.shell_result(UNWIRE)?;
    outcome
}

fn system(guest: &mut Guest) -> Result<()> {
    /// Longer than two questions take on the busiest machine; shorter than any mistake about a clock.
    const CLOCK_DIFFERENCE_NS: i64 = 600_000_000_000;
    let commands = [
        "guest-get-vcpus",
        "guest-get-cpustats",
        "guest-get-load",
        "guest-get-memory-blocks",
        "guest-get-memory-block-info",
        "guest-get-osinfo",
        "guest-get-host-name",
        "guest-get-timezone",
        "guest-get-users",
    ];
    compare(guest, &commands)?;
    let time = |reply: Value| reply.as_i64().context("the time is no number");
    let original = time(guest.talk_to_original()?.call("guest-get-time", &json!({}))?)?;
    let ours = time(guest.talk_to_ours()?.call("guest-get-time", &json!({}))?)?;
    ensure!((ours - original).abs() < CLOCK_DIFFERENCE_NS, "the time is {original}, or {ours}");
    Ok(())
}

/// Asks both agents for each command. Lists of file systems are in the same order too, which hosts rely on.
pub fn compare(guest: &mut Guest, commands: &[&str]) -> Result<()> {
    let mut unwanted = Vec::new();
    let mut unused: Vec<&str> = WANTED.iter().map(|(place, _)| *place).collect();
    unused.retain(|place| commands.iter().any(|command| place.starts_with(command)));
    let (mut compared, mut wanted) = (0, 0);
    for command in commands {
        let (original, ours) = ask_both(guest, command)?;
        let order = |reply: &Value| -> Vec<Value> {
            reply.as_array().into_iter().flatten().filter_map(|element| element.get("mountpoint").cloned()).collect()
        };
        ensure!(order(&original) == order(&ours), "{command}: {:?}, but ours {:?}", order(&original), order(&ours));
        let (count, differences) = difference::between(&original, &ours);
        compared += count;
        for Difference { place, first, second } in differences {
            let place = format!("{command}/{place}");
            match WANTED.iter().find(|(pattern, _)| matches(pattern, &place)) {
                Some((pattern, _)) => {
                    wanted += 1;
                    unused.retain(|unused| unused != pattern);
                }
                None => unwanted.push(format!("{place}: {first:?}, but ours {second:?}")),
            }
        }
    }
    ensure!(unwanted.is_empty(), "{} members differ:\n{}", unwanted.len(), unwanted.join("\n"));
    ensure!(unused.is_empty(), "nothing differs any more at {unused:?}");
    guest.note(format!("{compared} members compared, {wanted} differ as wanted"));
    Ok(())
}

/// The replies of the original and of ours while the guest stays as it is: addresses and routes come about by
/// themselves.
fn ask_both(guest: &mut Guest, command: &str) -> Result<(Value, Value)> {
    guest.wait_until("the guest stays as it is", |guest| {
        let before = guest.talk_to_original()?.call(command, &json!({}))?;
        let ours = guest.talk_to_ours()?.call(command, &json!({}))?;
        let after = guest.talk_to_original()?.call(command, &json!({}))?;
        let (_, changes) = difference::between(&before, &after);
        Ok(changes.is_empty().then_some((after, ours)))
    })
}

/// Whether a text matches a pattern in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            text.char_indices().map(|(index, _)| index).chain([text.len()]).any(|index| matches(rest, &text[index..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("a/*b*/c", "a/xbx/y/c"));
        assert!(matches("a*", "a"));
        assert!(!matches("a/*/c", "a/c"));
        assert!(!matches("a", "ab"));
    }
}
