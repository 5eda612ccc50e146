//! Time zones: the bytes of a zone file, and values of `TZ`. Every zone has a name and an offset of less than a week.

#![no_main]

#[allow(dead_code, reason = "each target uses its own part of it")]
mod machine;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use qga_agent::fuzzing;
use qga_agent::root::Root;

use self::machine::{Machine, files};

/// Some times of either season, and what no calendar has.
const TIMES: [i64; 6] = [0, 1_768_000_000, 1_783_600_000, -5_000_000_000, i64::MAX, i64::MIN];
/// POSIX has up to 167 hours in rules; 32 bits hold more in files.
const NAME_BYTES_MAX: usize = 70_000;

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new("zones"));
}

fuzz_target!(|input: &[u8]| {
    let [variable, file] = files(input);
    MACHINE.with_borrow_mut(|machine| {
        machine.write("/etc/localtime", file);
        machine.write("/usr/share/zoneinfo/Zone", file);
        let root = Root::at(machine.path("/"));
        let variable = String::from_utf8_lossy(variable);
        for chosen in [None, Some("Zone"), Some(&*variable)] {
            for time in TIMES {
                let zone = fuzzing::timezone(&root, chosen, time);
                let name = zone.zone.expect("a zone has a name");
                assert!(name.len() <= NAME_BYTES_MAX);
                assert!(i32::try_from(zone.offset).is_ok(), "{name}: {}", zone.offset);
            }
        }
        machine.ask("guest-get-timezone", input.len());
    });
});
