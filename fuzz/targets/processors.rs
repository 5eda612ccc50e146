//! Processors and memory: `/proc/stat`, the names of directories and the states in sysfs. The processors that are told are
//! those whose directories are there.

#![no_main]

#[allow(dead_code, reason = "each target uses its own part of it")]
mod machine;

use std::cell::RefCell;
use std::fs;

use libfuzzer_sys::fuzz_target;

use self::machine::{Machine, files};

const SYSTEM: &str = "/sys/devices/system";

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new("processors"));
}

fuzz_target!(|input: &[u8]| {
    let [names, times, online, state, removable, size] = files(input);
    MACHINE.with_borrow_mut(|machine| {
        machine.remove(SYSTEM);
        machine.write("/proc/stat", times);
        machine.write(&format!("{SYSTEM}/cpu/cpu1/online"), online);
        machine.write(&format!("{SYSTEM}/memory/memory1/state"), state);
        machine.write(&format!("{SYSTEM}/memory/memory1/removable"), removable);
        machine.write(&format!("{SYSTEM}/memory/block_size_bytes"), size);
        let names = String::from_utf8_lossy(names);
        let names = names.lines().filter(|name| !name.contains(['/', '\0']) && name.len() < 50);
        for name in names.filter(|name| name.starts_with("cpu") || name.starts_with("memory")).take(20) {
            let family = if name.starts_with("cpu") { "cpu" } else { "memory" };
            let _ = fs::create_dir(machine.path(&format!("{SYSTEM}/{family}/{name}")));
        }
        for command in
            ["guest-get-vcpus", "guest-get-cpustats", "guest-get-memory-blocks", "guest-get-memory-block-info"]
        {
            machine.ask(command, input.len());
        }
        if !online.is_empty() {
            let reply = machine.ask("guest-get-vcpus", input.len());
            let processors = reply["return"].as_array().expect("a state that is there is a state");
            let mut numbers: Vec<i64> = processors.iter().filter_map(|one| one["logical-id"].as_i64()).collect();
            assert!(numbers.contains(&1) && numbers.is_sorted(), "{numbers:?}");
            // `cpu1` and `cpu01` are not both made by a kernel.
            numbers.dedup();
            assert!(!numbers.is_empty());
        }
    });
});
