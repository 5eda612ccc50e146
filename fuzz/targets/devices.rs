//! What sysfs and udev's database say of block devices: names, links, addresses, serial numbers, in twelve files and links
//! of two devices. guest-get-disks, guest-get-fsinfo and guest-get-diskstats answer all the same.

#![no_main]

#[allow(dead_code, reason = "each target uses its own part of it")]
mod machine;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

use self::machine::{Machine, files};

/// The device whose place on the bus is the fuzzer's.
const TARGET: &str = "/sys/devices/d";

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(machine());
}

fuzz_target!(|input: &[u8]| {
    let [place, uevent, size, serial, page, kind, driver, record, slave, name, upper, counters] = files(input);
    MACHINE.with_borrow_mut(|machine| {
        machine.remove("/sys/devices");
        machine.remove("/sys/block");
        let path = laid_out(place);
        let disk = format!("{TARGET}/{path}");
        machine.write(&format!("{disk}/uevent"), uevent);
        machine.write(&format!("{disk}/size"), size);
        machine.write(&format!("{disk}/serial"), serial);
        machine.write(&format!("{disk}/device/vpd_pg80"), page);
        machine.write(&format!("{disk}/device/type"), kind);
        machine.link(&format!("{disk}/../driver"), driver);
        machine.link("/sys/block/a", format!("../devices/d/{path}").as_bytes());
        machine.link("/sys/dev/block/1:0", format!("../../devices/d/{path}").as_bytes());
        machine.write("/run/udev/data/b1:0", record);
        machine.write("/sys/devices/virtual/block/dm-0/uevent", upper);
        machine.write("/sys/devices/virtual/block/dm-0/dm/name", name);
        machine.link("/sys/devices/virtual/block/dm-0/slaves/a", slave);
        machine.link("/sys/block/dm-0", b"../devices/virtual/block/dm-0");
        machine.write("/proc/diskstats", counters);
        for command in ["guest-get-disks", "guest-get-fsinfo", "guest-get-diskstats"] {
            let reply = machine.ask(command, input.len());
            assert!(reply.get("return").is_some(), "{command}: {reply}");
        }
    });
});

fn machine() -> Machine {
    let machine = Machine::new("devices");
    machine.write("/proc/self/mountinfo", b"1 1 1:0 / / rw - ext4 /dev/a rw\n2 1 253:0 / /b rw - xfs /dev/b rw\n");
    machine.link("/sys/dev/block/253:0", b"../../devices/virtual/block/dm-0");
    machine
}

/// A path of sysfs: some words, none of which leads elsewhere.
fn laid_out(place: &[u8]) -> String {
    let text = String::from_utf8_lossy(place).replace('\0', "");
    let words = text.split('/').map(str::trim).filter(|word| !["", ".", ".."].contains(word) && word.len() < 100);
    let words: Vec<&str> = words.take(12).collect();
    if words.is_empty() { "a".to_owned() } else { words.join("/") }
}
