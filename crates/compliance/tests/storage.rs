//! File systems, disks and their counters, on machines made of files: a sysfs and a list of mounts of our own.

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod machine;

use qga_compliance::deviations::Choice;
use qga_compliance::{Failure, check, deviation};
use serde_json::{Value, json};

use machine::{Machine, Machines, same};

/// Shell functions that make disks. A path is below `/sys/devices`, a number is `MAJOR:MINOR`. The variable tells udev's
/// library, which the original asks, not to mind that it is no real sysfs.
const OWN_SYSFS: &str = r#"
export SYSTEMD_DEVICE_VERIFY_SYSFS=0
mount -t tmpfs tmpfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /sys/block /sys/dev/block /sys/class/block /run/udev/data
uevent() { # path number kind
    mkdir -p /sys/devices/$1
    printf 'MAJOR=%s\nMINOR=%s\nDEVNAME=%s\nDEVTYPE=%s\n' ${2%:*} ${2#*:} ${1##*/} $3 > /sys/devices/$1/uevent
    ln -s /sys/class/block /sys/devices/$1/subsystem
    ln -s ../../devices/$1 /sys/dev/block/$2
    ln -s ../../devices/$1 /sys/class/block/${1##*/}
}
disk() { # path number
    uevent $1 $2 disk
    mkdir /sys/devices/$1/slaves
    echo 2048 > /sys/devices/$1/size
    ln -s ../devices/$1 /sys/block/${1##*/}
}
partition() { # path number
    uevent $1 $2 partition
    echo 1 > /sys/devices/$1/partition
}
driver() { # path name
    mkdir -p /sys/devices/$1 /sys/bus/pci/drivers/$2
    ln -s /sys/bus/pci/drivers/$2 /sys/devices/$1/driver
}
under() { # path slave
    ln -s /sys/devices/$2 /sys/devices/$1/slaves/${2##*/}
}
mounts() { # lines behind mount and parent id; what is there in fact keeps its id
    for line in "$@"; do
        set -- $line
        id=$(awk -v at="$3" '$5 == at { id = $1 } END { print id ? id : 20 }' /proc/self/mountinfo)
        printf '%s 1 %s\n' "$id" "$line"
    done > $machine/mountinfo
    mount --bind $machine/mountinfo /proc/$$/mountinfo
}
counters() { # lines
    printf '%s\n' "$@" > $machine/diskstats
    mount --bind $machine/diskstats /proc/diskstats
}
"#;

/// A machine after these shell lines.
fn prepared(lines: &str) -> String {
    format!("{OWN_SYSFS}\n{lines}")
}

#[test]
fn storage() {
    check("storage");
}

/// A disk's address in short: `scsi 0:0:10.0 0/3/2`, without the PCI function if there is none.
fn place(address: &Value) -> String {
    let number =
        |object: &Value, member: &str| object[member].as_i64().map_or("?".to_owned(), |number| number.to_string());
    let pci = &address["pci-controller"];
    let pci = match pci["domain"].as_i64() {
        Some(-1) => String::new(),
        _ => {
            ["domain", "bus", "slot"].map(|member| number(pci, member)).join(":") + "." + &number(pci, "function") + " "
        }
    };
    let bus_type = address["bus-type"].as_str().unwrap_or("?");
    format!("{bus_type} {pci}{}", ["bus", "target", "unit"].map(|member| number(address, member)).join("/"))
}

/// The one disk in the reply of guest-get-disks that has an address, and the same in guest-get-fsinfo.
fn only_place(machine: &mut Machine) -> Result<String, Failure> {
    let disks = machine.returned("guest-get-disks")?;
    let mut addresses = disks.as_array().into_iter().flatten().filter_map(|disk| disk.get("address"));
    let (Some(address), None) = (addresses.next(), addresses.next()) else {
        return Err(format!("not one address: {disks}"));
    };
    let mounted = machine.returned("guest-get-fsinfo")?;
    same(&mounted[0]["disk"][0], address)?;
    Ok(place(address))
}

/// Where a disk is: its path, what else is there, and its address.
type Whereabouts<'a> = (&'a str, &'a str, &'a str);

const MOUNTED: &str = "mounts '8:0 / /nonexistent rw - ext4 /dev/disk rw'";

#[test]
fn places() {
    let mut machines = Machines::new("places of disks");
    let lines = |path: &str, more: &str| prepared(&format!("{more}\ndisk {path} 8:0\n{MOUNTED}"));
    let alike: [(&str, Whereabouts<'_>); 9] = [
        (
            "a virtio disk has its PCI function",
            (
                "pci0000:00/0000:00:05.0/virtio0/block/vda",
                "driver pci0000:00/0000:00:05.0 virtio-pci",
                "virtio 0:0:5.0 0/0/0",
            ),
        ),
        (
            "a virtio disk behind a bridge has its own PCI function",
            (
                "pci0000:00/0000:00:06.0/0000:01:03.0/virtio6/block/vde",
                "driver pci0000:00/0000:00:06.0/0000:01:03.0 virtio-pci",
                "virtio 0:1:3.0 0/0/0",
            ),
        ),
        (
            "an IDE disk has its channel as bus and its place there as unit",
            (
                "pci0000:00/0000:00:01.1/ata8/host8/target8:0:1/8:0:1:0/block/sdd",
                "driver pci0000:00/0000:00:01.1 ata_piix; mkdir -p /sys/devices/pci0000:00/0000:00:01.1/ata7",
                "ide 0:0:1.1 1/0/1",
            ),
        ),
        (
            "a SATA disk has its port as unit",
            (
                "pci0000:00/0000:00:0b.0/ata4/host4/target4:0:0/4:0:0:0/block/sdc",
                "driver pci0000:00/0000:00:0b.0 ahci; cd /sys/devices/pci0000:00/0000:00:0b.0; mkdir ata1 ata2 ata3 ata5",
                "sata 0:0:11.0 0/0/3",
            ),
        ),
        (
            "an LSI disk has its target as unit",
            (
                "pci0000:00/0000:00:11.0/host9/target9:0:5/9:0:5:0/block/sde",
                "driver pci0000:00/0000:00:11.0 sym53c8xx",
                "scsi 0:0:17.0 0/0/5",
            ),
        ),
        (
            "a USB disk has its PCI function",
            (
                "pci0000:00/0000:00:0e.0/usb2/2-1/2-1:1.0/host10/target10:0:0/10:0:0:0/block/sdf",
                "driver pci0000:00/0000:00:0e.0 xhci_hcd",
                "usb 0:0:14.0 0/0/0",
            ),
        ),
        (
            "an NVM Express disk without multipath has its PCI function",
            (
                "pci0000:00/0000:00:0c.0/nvme/nvme0/nvme0n1",
                "driver pci0000:00/0000:00:0c.0 nvme",
                "nvme 0:0:12.0 0/0/0",
            ),
        ),
        (
            "a virtio disk without PCI has no PCI function",
            ("platform/a003e00.virtio_mmio/virtio0/block/vdc", "", "virtio 0/0/0"),
        ),
        ("a DASD is of an unknown kind", ("css0/0.0.0009/0.0.0200/block/dasda", "", "unknown 0/0/0")),
    ];
    for (name, (path, more, expected)) in alike {
        machines.case(name, &lines(path, more), |machine| same(&json!(only_place(machine)?), &json!(expected)));
    }
    let differing: [(Choice<'_>, Whereabouts<'_>, &str); 9] = [
        (
            deviation("a virtio SCSI disk has its target"),
            (
                "pci0000:00/0000:00:0a.0/virtio4/host0/target0:0:3/0:0:3:2/block/sda",
                "driver pci0000:00/0000:00:0a.0 virtio-pci",
                "scsi 0:0:10.0 0/0/2",
            ),
            "scsi 0:0:10.0 0/3/2",
        ),
        (
            deviation("a virtio SCSI unit above 255 is the host's number"),
            (
                "pci0000:00/0000:00:0a.0/virtio4/host0/target0:0:0/0:0:0:16684/block/sda",
                "driver pci0000:00/0000:00:0a.0 virtio-pci",
                "scsi 0:0:10.0 0/0/16684",
            ),
            "scsi 0:0:10.0 0/0/300",
        ),
        (
            deviation("an NVM Express disk with multipath has its PCI function"),
            (
                "virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
                "mkdir -p /sys/devices/pci0000:00/0000:00:0c.0/nvme/nvme0/nvme0c0n1 /sys/devices/virtual/nvme-subsystem/nvme-subsys0
                ln -s /sys/devices/pci0000:00/0000:00:0c.0/nvme/nvme0 /sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0",
                "unknown 0/0/0",
            ),
            "nvme 0:0:12.0 0/0/0",
        ),
        (
            deviation("a USB disk of any controller has its kind and PCI function"),
            (
                "pci0000:00/0000:00:0c.0/usb1/1-1/1-1:1.0/host19/target19:0:0/19:0:0:0/block/sdk",
                "driver pci0000:00/0000:00:0c.0 uhci_hcd",
                "unknown 0/0/0",
            ),
            "usb 0:0:12.0 0/0/0",
        ),
        (
            deviation("a PVSCSI disk has its PCI function, target and unit"),
            (
                "pci0000:00/0000:00:0e.0/host1/target1:0:6/1:0:6:0/block/sde",
                "driver pci0000:00/0000:00:0e.0 vmw_pvscsi",
                "unknown 0/0/0",
            ),
            "scsi 0:0:14.0 0/6/0",
        ),
        (
            deviation("a MegaRAID drive has its PCI function, and the host's bus"),
            (
                "pci0000:00/0000:00:0d.0/host2/target2:2:4/2:2:4:0/block/sdf",
                "driver pci0000:00/0000:00:0d.0 megaraid_sas",
                "unknown 0/0/0",
            ),
            "scsi 0:0:13.0 0/4/0",
        ),
        (
            deviation("a memory card is an SD card and has its PCI function"),
            (
                "pci0000:00/0000:00:10.0/mmc_host/mmc0/mmc0:6081/block/mmcblk0",
                "driver pci0000:00/0000:00:10.0 sdhci-pci",
                "unknown 0/0/0",
            ),
            "sd 0:0:16.0 0/0/0",
        ),
        (
            deviation("a disk of Hyper-V has its target and unit"),
            ("LNXSYSTM:00/VMBUS:01/f8b3781a/host0/target0:0:0/0:0:0:1/block/sdb", "", "unknown 0/0/0"),
            "scsi 0/0/1",
        ),
        (deviation("a disk of Xen is one"), ("vbd-51712/block/xvda", "", "unknown 0/0/0"), "xen 0/0/0"),
    ];
    for (choice, (path, more, original), ours) in differing {
        machines.case(choice.case(), &lines(path, more), |machine| {
            same(&json!(only_place(machine)?), &json!(choice.pick(machine.kind, original, ours)))
        });
    }
    let channel_device = prepared("disk css0/0.1.000f/0.1.0200/virtio4/host8/target8:0:1/8:0:1:5/block/sdg 8:0");
    machines.case("a disk of a channel device has its address", &channel_device, |machine| {
        let expected = json!({"bus-type": "scsi", "bus": 0, "target": 1, "unit": 5, "dev": "/dev/sdg",
            "pci-controller": {"domain": -1, "bus": -1, "slot": -1, "function": -1},
            "ccw-address": {"cssid": 0, "ssid": 1, "subchno": 15, "devno": 512}});
        same(&machine.returned("guest-get-disks")?[0]["address"], &expected)
    });
    machines.finish();
}

/// The names of a reply's elements.
fn names(reply: &Value, member: &str) -> Value {
    reply.as_array().into_iter().flatten().map(|entry| entry[member].clone()).collect()
}

#[test]
fn file_systems() {
    let mut machines = Machines::new("file systems");
    machines.case("the last mounted is the first, and each device is there once", &prepared(
        "mounts '8:1 / / rw shared:1 - ext4 /dev/sda1 rw' '8:2 / /home rw - xfs /dev/sda2 rw' '8:1 /x /bind rw - ext4 /dev/sda1 rw'",
    ), |machine| {
        let reply = machine.returned("guest-get-fsinfo")?;
        same(&json!([names(&reply, "mountpoint"), names(&reply, "type")]), &json!([["/home", "/"], ["xfs", "ext4"]]))
    });
    let without_devices = prepared(
        "mounts '0:20 / /proc rw - proc proc rw' '0:30 / /net rw - nfs4 server:/x rw' '0:31 / /b rw - btrfs /dev/nothing rw' \
         'no mount' '8:1 / /x rw ext4 /dev/sda1 rw'",
    );
    machines.case("what has no device is no file system", &without_devices, |machine| {
        machine.expect("guest-get-fsinfo", &json!([]))
    });
    let escaped = prepared(r"mounts '8:1 / /a\040b\011c\012d\134e rw - ext4 /dev/sda1 rw'");
    machines.case("a mount point has the signs it was made with", &escaped, |machine| {
        let reply = machine.returned("guest-get-fsinfo")?;
        let expected = json!([{"name": "8:1", "mountpoint": "/a b\tc\nd\\e", "type": "ext4", "disk": []}]);
        same(&reply, &expected)
    });
    let usage = prepared("mounts '8:1 / / rw - ext4 /dev/sda1 rw'");
    machines.case("a file system that is there has its usage", &usage, |machine| {
        let found = machine.returned("guest-get-fsinfo")?;
        let number = |member: &str| found[0][member].as_u64().ok_or_else(|| format!("{member}: {found}"));
        let (used, total, all) = (number("used-bytes")?, number("total-bytes")?, number("total-bytes-privileged")?);
        if used <= total && total <= all { Ok(()) } else { Err(found.to_string()) }
    });
    let partition = prepared(
        "driver pci0000:00/0000:00:05.0 virtio-pci; disk pci0000:00/0000:00:05.0/virtio0/block/vda 254:0; \
         partition pci0000:00/0000:00:05.0/virtio0/block/vda/vda1 254:1; mounts '254:1 / /x rw - ext4 /dev/vda1 rw'",
    );
    machines.case("a partition has its disk's address and its own node", &partition, |machine| {
        let expected = json!([{"name": "vda1", "mountpoint": "/x", "type": "ext4", "disk": [
            {"bus-type": "virtio", "bus": 0, "target": 0, "unit": 0, "dev": "/dev/vda1",
            "pci-controller": {"domain": 0, "bus": 0, "slot": 5, "function": 0}},
        ]}]);
        machine.expect("guest-get-fsinfo", &expected)
    });
    let nodes = |machine: &mut Machine| -> Result<Value, Failure> {
        let mut nodes = names(&machine.returned("guest-get-fsinfo")?[0]["disk"], "dev");
        if let Some(nodes) = nodes.as_array_mut() {
            nodes.sort_by_key(Value::to_string);
        }
        Ok(nodes)
    };
    let two_disks =
        "disk pci0000:00/0000:00:05.0/virtio0/block/vda 254:0; disk pci0000:00/0000:00:06.0/virtio1/block/vdb 254:16";
    let layers = prepared(&format!(
        "{two_disks}; disk virtual/block/md0 9:0; disk virtual/block/dm-0 253:0; under virtual/block/dm-0 virtual/block/md0; \
         under virtual/block/md0 pci0000:00/0000:00:05.0/virtio0/block/vda; \
         under virtual/block/md0 pci0000:00/0000:00:06.0/virtio1/block/vdb; mounts '253:0 / /x rw - ext4 /dev/dm-0 rw'"
    ));
    machines.case("what is built upon others has the disks at the bottom", &layers, |machine| {
        same(&nodes(machine)?, &json!(["/dev/vda", "/dev/vdb"]))
    });
    let looped = prepared("disk virtual/block/loop0 7:0; mounts '7:0 / /x rw - ext4 /dev/loop0 rw'");
    machines.case("a loop device has no disk", &looped, |machine| same(&nodes(machine)?, &json!([])));
    let choice = deviation("a disk reached in two ways is told once");
    let twice = prepared(
        "disk pci0000:00/0000:00:05.0/virtio0/block/vda 254:0; disk virtual/block/dm-0 253:0; disk virtual/block/dm-1 253:1; \
         disk virtual/block/dm-2 253:2; under virtual/block/dm-2 virtual/block/dm-0; under virtual/block/dm-2 virtual/block/dm-1; \
         under virtual/block/dm-0 pci0000:00/0000:00:05.0/virtio0/block/vda; \
         under virtual/block/dm-1 pci0000:00/0000:00:05.0/virtio0/block/vda; mounts '253:2 / /x rw - ext4 /dev/dm-2 rw'",
    );
    machines.case(choice.case(), &twice, |machine| {
        same(&nodes(machine)?, &choice.pick(machine.kind, json!(["/dev/vda", "/dev/vda"]), json!(["/dev/vda"])))
    });
    let choice = deviation("a partition of a mirror has the mirror's disks");
    let mirror = prepared(&format!(
        "{two_disks}; disk virtual/block/md0 9:0; under virtual/block/md0 pci0000:00/0000:00:05.0/virtio0/block/vda; \
         under virtual/block/md0 pci0000:00/0000:00:06.0/virtio1/block/vdb; partition virtual/block/md0/md0p1 259:0; \
         mounts '259:0 / /x rw - ext4 /dev/md0p1 rw'"
    ));
    machines.case(choice.case(), &mirror, |machine| {
        same(&nodes(machine)?, &choice.pick(machine.kind, json!([]), json!(["/dev/vda", "/dev/vdb"])))
    });
    let choice = deviation("a btrfs has all its disks");
    let pool = prepared(&format!(
        "{two_disks}; mkdir -p /sys/fs/btrfs/1-2/devices; for name in vda vdb; do ln -s /sys/class/block/$name $machine/$name; \
         ln -s $(readlink -f /sys/class/block/$name) /sys/fs/btrfs/1-2/devices/$name; done; mknod $machine/pool b 254 0; \
         mounts \"0:40 / /x rw - btrfs $machine/pool rw\""
    ));
    machines.case(choice.case(), &pool, |machine| {
        same(&nodes(machine)?, &choice.pick(machine.kind, json!(["/dev/vda"]), json!(["/dev/vda", "/dev/vdb"])))
    });
    let choice = deviation("a dead file system costs only its own usage");
    // Nobody answers for it; the connection, and with it all that hangs, ends with the agent, which inherits it.
    let dead = prepared(
        "mkdir $machine/dead; exec 3<>/dev/fuse
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 nobody $machine/dead
        mounts '8:1 / / rw - ext4 /dev/sda1 rw' \"8:2 / $machine/dead rw - fuseblk /dev/sda2 rw\"",
    );
    if std::path::Path::new("/dev/fuse").exists() {
        machines.case(choice.case(), &dead, |machine| {
            let answer = machine.returned("guest-get-fsinfo").ok();
            let has_usage = |entry: &Value| entry.get("used-bytes").is_some();
            let found: Option<Vec<bool>> =
                answer.map(|reply| reply.as_array().into_iter().flatten().map(has_usage).collect());
            same(&json!(found), &json!(choice.pick(machine.kind, None, Some(vec![false, true]))))
        });
    } else {
        machines.skip(choice.case(), "there is no /dev/fuse");
    }
    let choice = deviation("what is mounted over a file system does not lend it its size");
    let elsewhere = deviation("a file system that is hidden where it was mounted first has its size from elsewhere");
    let megabyte: u64 = 1 << 20;
    let cover = |other: &str| {
        format!(
            "truncate -s 64M $machine/image; mkfs.ext4 -q $machine/image; mkdir $machine/covered $machine/other
            mount -o loop $machine/image $machine/covered; {other}
            mount -t tmpfs -o size=1m tmpfs $machine/covered"
        )
    };
    let size = |machine: &mut Machine| -> Result<Option<u64>, Failure> {
        let path = machine.path("covered").display().to_string();
        let found = machine.returned("guest-get-fsinfo")?;
        let entry = found.as_array().into_iter().flatten().find(|entry| entry["mountpoint"] == path.as_str());
        Ok(entry.ok_or_else(|| format!("no entry for it: {found}"))?["total-bytes-privileged"].as_u64())
    };
    if std::path::Path::new("/dev/loop-control").exists() {
        machines.case(choice.case(), &cover(""), |machine| {
            same(&json!(size(machine)?), &json!(choice.pick(machine.kind, Some(megabyte), None)))
        });
        machines.case(elsewhere.case(), &cover("mount --bind $machine/covered $machine/other"), |machine| {
            let is_right = size(machine)?.is_some_and(|bytes| bytes > 32 * megabyte);
            same(&json!(is_right), &json!(elsewhere.pick(machine.kind, false, true)))
        });
    } else {
        machines.skip(choice.case(), "there are no loop devices");
        machines.skip(elsewhere.case(), "there are no loop devices");
    }
    let choice = deviation("a device whose place cannot be read costs only its disks");
    let circle = prepared(
        "ln -s 9:9 /sys/dev/block/9:9; mounts '9:9 / /x rw - ext4 /dev/x rw' '8:1 / /y rw - ext4 /dev/sda1 rw'",
    );
    machines.case(choice.case(), &circle, |machine| {
        let found = machine.returned("guest-get-fsinfo").ok().map(|reply| names(&reply, "mountpoint"));
        let expected = choice.pick(machine.kind, None, Some(json!(["/y", "/x"])));
        same(&json!(found), &json!(expected))
    });
    machines.finish();
}

#[test]
fn disks() {
    let mut machines = Machines::new("disks");
    let no_disks = prepared("rmdir /sys/block");
    machines.case("disks that cannot be listed are an error", &no_disks, |machine| {
        machine.expect_error("guest-get-disks", "Can't open directory \"/sys/block\": No such file or directory")
    });
    let nothing = prepared(
        "disk virtual/block/loop0 7:0; echo 0 > /sys/devices/virtual/block/loop0/size; mkdir /sys/block/directory; \
         disk pci0000:00/0000:00:11.0/nvme/nvme0/nvme0c0n1 259:1; \
         : > /sys/devices/pci0000:00/0000:00:11.0/nvme/nvme0/nvme0c0n1/uevent",
    );
    machines
        .case("empty and hidden disks are left out", &nothing, |machine| machine.expect("guest-get-disks", &json!([])));
    let parts = prepared(
        "disk virtual/block/md0 9:0; partition virtual/block/md0/md0p1 259:1; mkdir /sys/devices/virtual/block/md0/md",
    );
    machines.case("a partition stands before its disk and depends on it", &parts, |machine| {
        let expected = json!([
            {"name": "/dev/md0p1", "partition": true, "dependencies": ["/dev/md0"]},
            {"name": "/dev/md0", "partition": false, "dependencies": []},
        ]);
        machine.expect("guest-get-disks", &expected)
    });
    let mapped = prepared(
        "disk virtual/block/dm-0 253:0; rmdir /sys/devices/virtual/block/dm-0/slaves; \
         printf 'E:DM_NAME=vg-home\\nE:DM_UUID=1\\n' > /run/udev/data/b253:0",
    );
    machines.case("an alias comes from udev", &mapped, |machine| {
        let expected = json!([{"name": "/dev/dm-0", "partition": false, "alias": "vg-home"}]);
        machine.expect("guest-get-disks", &expected)
    });
    let serial =
        |machine: &mut Machine| Ok::<_, Failure>(machine.returned("guest-get-disks")?[0]["address"]["serial"].take());
    let virtio = "disk pci0000:00/0000:00:05.0/virtio0/block/vda 254:0; \
                  echo OWN > /sys/devices/pci0000:00/0000:00:05.0/virtio0/block/vda/serial";
    let known = prepared(&format!("{virtio}; printf 'S:x\\nE:ID_SERIAL=FROM_UDEV\\n' > /run/udev/data/b254:0"));
    machines.case("a serial number is udev's", &known, |machine| same(&serial(machine)?, &json!("FROM_UDEV")));
    let choice = deviation("without udev a serial number is the disk's own");
    machines.case(choice.case(), &prepared(virtio), |machine| {
        same(&serial(machine)?, &choice.pick(machine.kind, Value::Null, json!("OWN")))
    });
    let choice = deviation("without udev an alias is the device mapper's");
    let lines = "disk virtual/block/dm-0 253:0; mkdir /sys/devices/virtual/block/dm-0/dm; \
                 echo vg-home > /sys/devices/virtual/block/dm-0/dm/name";
    machines.case(choice.case(), &prepared(lines), |machine| {
        let mut found = machine.returned("guest-get-disks")?;
        same(&found[0]["alias"].take(), &choice.pick(machine.kind, Value::Null, json!("vg-home")))
    });
    let unordered = prepared(
        "at=pci0000:00/0000:00:05.0; for name in vdj vdb vdf vda vdk; do disk $at/$name/block/$name 254:$((number += 1)); done; \
         for part in 3 1 2; do partition $at/vdf/block/vdf/vdf$part 259:$part; done; disk virtual/block/dm-0 253:0; \
         for name in vdk vda vdj; do under virtual/block/dm-0 $at/$name/block/$name; done; \
         mounts '253:0 / /x rw - ext4 /dev/dm-0 rw'; \
         ls -U /sys/block > $machine/disks; ls -U /sys/devices/$at/vdf/block/vdf > $machine/parts; \
         ls -U /sys/devices/virtual/block/dm-0/slaves > $machine/slaves",
    );
    machines.case("what the kernel lists last comes first, in all lists of disks", &unordered, |machine| {
        let reversed = |words: Vec<String>| words.into_iter().rev().map(|name| format!("/dev/{name}"));
        let parts = reversed(machine.words("parts")?).filter(|node| node.starts_with("/dev/vdf")).collect::<Vec<_>>();
        let slaves: Vec<String> = reversed(machine.words("slaves")?).collect();
        let with_parts =
            |node: String| if node == "/dev/vdf" { [parts.clone(), vec![node]].concat() } else { vec![node] };
        let expected: Vec<String> = reversed(machine.words("disks")?).flat_map(with_parts).collect();
        let found = machine.returned("guest-get-disks")?;
        same(&names(&found, "name"), &json!(expected))?;
        let mapped = found.as_array().into_iter().flatten().find(|disk| disk["name"] == "/dev/dm-0");
        same(&mapped.map_or(Value::Null, |disk| disk["dependencies"].clone()), &json!(slaves))?;
        same(&names(&machine.returned("guest-get-fsinfo")?[0]["disk"], "dev"), &json!(slaves))
    });
    machines.finish();
}

#[test]
fn counters() {
    let mut machines = Machines::new("counters");
    let stats = |machine: &mut Machine| -> Result<Value, Failure> {
        let mut found = machine.returned("guest-get-diskstats")?;
        Ok(found[0]["stats"].take())
    };
    let lines = prepared(
        "counters '254 0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17' '  7       1 loop1 1 2 3 4' '7 2 loop2' ''",
    );
    machines.case("each line is a device with its counters", &lines, |machine| {
        let expected = json!([
            {"name": "vda", "major": 254, "minor": 0, "stats": {"read-ios": 1, "read-merges": 2, "read-sectors": 3,
            "read-ticks": 4, "write-ios": 5, "write-merges": 6, "write-sectors": 7, "write-ticks": 8, "ios-pgr": 9,
            "total-ticks": 10, "weight-ticks": 11, "discard-ios": 12, "discard-merges": 13, "discard-sectors": 14,
            "discard-ticks": 15, "flush-ios": 16, "flush-ticks": 17}},
            {"name": "loop1", "major": 7, "minor": 1, "stats": {"read-ios": 1, "read-sectors": 2, "write-ios": 3,
            "write-sectors": 4}},
        ]);
        machine.expect("guest-get-diskstats", &expected)
    });
    for (count, name) in
        [(11, "a kernel without discards has 11 counters"), (15, "a kernel without flushes has 15 counters")]
    {
        machines.case(name, &prepared(&format!("counters \"254 0 vda $(seq -s ' ' {count})\"")), |machine| {
            let found = stats(machine)?;
            same(&json!(found.as_object().map(serde_json::Map::len)), &json!(count))
        });
    }
    let choice = deviation("all counters have 64 bits");
    machines.case(
        choice.case(),
        &prepared("counters '254 0 vda 1 2 3 4294967297 5 6 7 4294967297 0 4294967298 9'"),
        |machine| {
            let found = stats(machine)?;
            let found = json!([found["read-ticks"], found["write-ticks"], found["total-ticks"]]);
            let original = json!([4_294_967_297_u64, 1, 2]);
            let ours = json!([4_294_967_297_u64, 4_294_967_297_u64, 4_294_967_298_u64]);
            same(&found, &choice.pick(machine.kind, original, ours))
        },
    );
    let choice = deviation("a line that ends early has the counters that are there");
    machines.case(choice.case(), &prepared("counters '254 0 vda 1 2 3 4 5'"), |machine| {
        let ours = json!({"read-ios": 1, "read-merges": 2, "read-sectors": 3, "read-ticks": 4, "write-ios": 5});
        same(&stats(machine)?, &choice.pick(machine.kind, json!({}), ours))
    });
    let missing = prepared("mkdir $machine/proc; mount --bind $machine/proc /proc/fs; mount -t tmpfs tmpfs /proc");
    machines.case("counters that cannot be read are an error", &missing, |machine| {
        machine.expect_error("guest-get-diskstats", "open(\"/proc/diskstats\"): No such file or directory")
    });
    machines.finish();
}
