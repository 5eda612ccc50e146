//! `/proc/self/mountinfo`, and `/proc/self/mounts` where that is missing: whatever the kernel lists there, guest-get-fsinfo
//! answers, with mounts of it alone, and a freeze chooses among them.

#![no_main]

#[allow(dead_code, reason = "each target uses its own part of it")]
mod machine;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use qga_agent::fuzzing;
use qga_agent::root::Root;

use self::machine::{Machine, files};

const DISK: &str = "/sys/devices/pci0000:00/0000:00:05.0/virtio1/block/vda";

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(machine());
}

fuzz_target!(|input: &[u8]| {
    MACHINE.with_borrow_mut(|machine| {
        let [new, old] = files(input);
        machine.write("/proc/self/mounts", old);
        if new.is_empty() {
            machine.remove_file("/proc/self/mountinfo");
        } else {
            machine.write("/proc/self/mountinfo", new);
        }
        let reply = machine.ask("guest-get-fsinfo", input.len());
        let lines = input.split(|byte| *byte == b'\n').count();
        let count = reply["return"].as_array().expect("mounts that are not understood are passed over").len();
        assert!(count <= lines, "{count} file systems in {lines} lines");
        let frozen = fuzzing::file_systems_to_freeze(&Root::at(machine.path("/")));
        assert!(frozen <= lines, "{frozen} file systems to freeze in {lines} lines");
    });
});

/// With two disks for the mounts to lie on, one of them in a btrfs.
fn machine() -> Machine {
    let machine = Machine::new("mounts");
    machine.write(&format!("{DISK}/uevent"), b"MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk\n");
    machine.write(&format!("{DISK}/serial"), b"SERIAL");
    machine.write("/sys/devices/virtual/block/dm-0/uevent", b"MAJOR=253\nMINOR=0\nDEVNAME=dm-0\nDEVTYPE=disk\n");
    machine
        .link("/sys/devices/virtual/block/dm-0/slaves/vda", b"../../../../pci0000:00/0000:00:05.0/virtio1/block/vda");
    machine.link("/sys/dev/block/254:0", b"../../devices/pci0000:00/0000:00:05.0/virtio1/block/vda");
    machine.link("/sys/dev/block/253:0", b"../../devices/virtual/block/dm-0");
    machine.link("/sys/class/block/vda", b"../../devices/pci0000:00/0000:00:05.0/virtio1/block/vda");
    machine.link("/sys/fs/btrfs/1/devices/vda", b"../../../../devices/pci0000:00/0000:00:05.0/virtio1/block/vda");
    machine
}
