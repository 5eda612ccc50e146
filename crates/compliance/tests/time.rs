//! The clock and the time zone.

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod machine;

use std::fs;
use std::os::unix::fs::symlink;

use qga_compliance::{Failure, check, deviation};
use serde_json::{Value, json};

use machine::{Machine, Machines};

#[test]
fn time() {
    check("time");
}

#[test]
fn zone_of_the_environment() {
    let mut machines = Machines::new("zone of the environment");
    for (variable, zone, offset_seconds) in [
        ("", "UTC", 0),
        (":", "UTC", 0),
        ("UTC", "UTC", 0),
        ("Z", "Z", 0),
        ("+05:30", "+05:30", 19800),
        ("-03", "-03", -10800),
        ("+0530", "+0530", 19800),
        ("05:30", "05:30", 19800),
        ("IST-5:30", "IST", 19800),
        ("ABC3", "ABC", -10800),
        ("UTC+3", "UTC", -10800),
        ("<+03>-3", "+03", 10800),
        // Rules without a summer that could be now: the cases hold all year.
        ("MST7", "MST", -25200),
        ("Asia/Kolkata", "IST", 19800),
        (":Asia/Tokyo", "JST", 32400),
        ("/usr/share/zoneinfo/Asia/Tokyo", "JST", 32400),
        ("bogus", "UTC", 0),
        ("Asia", "UTC", 0),
        ("CET-1CEST", "UTC", 0),
        ("+05:60", "UTC", 0),
    ] {
        let name = format!("TZ={variable:?} is understood");
        if variable.contains("Asia/") && !std::path::Path::new("/usr/share/zoneinfo/Asia/Kolkata").exists() {
            machines.skip(&name, "no time zone files: install tzdata");
            continue;
        }
        machines.case(&name, &format!("export TZ='{variable}'"), |machine| told(machine, zone, offset_seconds));
    }
    machines.finish();
}

/// A zone file of a zone that never changes.
fn zone_file(name: [u8; 4], offset_seconds: i32, rule: &str) -> Vec<u8> {
    let header = [b"TZif2".as_slice(), &[0; 31], &[0, 0, 0, 1, 0, 0, 0, 5]].concat();
    let kind = [offset_seconds.to_be_bytes().as_slice(), &[0, 0], &name, &[0]].concat();
    [&header, &kind, &header, &kind, b"\n".as_slice(), rule.as_bytes(), b"\n"].concat()
}

#[test]
fn zone_of_the_machine() {
    const OWN_ETC: &str = "unset TZ; mkdir $machine/etc; mount --bind $machine/etc /etc";
    let mut machines = Machines::new("zone of the machine");
    let east = zone_file(*b"EAST", 10800, "EAST-3");
    let west = zone_file(*b"WEST", -12600, "WEST+3:30");
    let files: [(&str, &[u8]); 2] = [("east", &east), ("west", &west)];
    machines.case("without a zone it is UTC", OWN_ETC, |machine| told(machine, "UTC", 0));
    machines.case("a zone file that is none is UTC", &format!("{OWN_ETC}; echo x > /etc/localtime"), |machine| {
        told(machine, "UTC", 0)
    });
    let linked = format!("{OWN_ETC}; ln -s $machine/east /etc/localtime");
    machines.case_with("a changed link is seen at the next call", &files, &linked, |machine| {
        told(machine, "EAST", 10800)?;
        let link = machine.path("etc/localtime");
        let changed = fs::remove_file(&link).and_then(|()| symlink(machine.path("west"), &link));
        changed.map_err(|error| error.to_string())?;
        told(machine, "WEST", -12600)
    });
    let copied = format!("{OWN_ETC}; cp $machine/east /etc/localtime");
    let choice = deviation("a zone file that is no link is read, at each call");
    machines.case_with(choice.case(), &files, &copied, |machine| {
        let (zone, offset_seconds) = choice.pick(machine.kind, ("UTC", 0), ("EAST", 10800));
        told(machine, zone, offset_seconds)?;
        let rename = fs::copy(machine.path("west"), machine.path("etc/new"))
            .and_then(|_| fs::rename(machine.path("etc/new"), machine.path("etc/localtime")));
        rename.map_err(|error| error.to_string())?;
        let (zone, offset_seconds) = choice.pick(machine.kind, ("UTC", 0), ("WEST", -12600));
        told(machine, zone, offset_seconds)
    });
    machines.finish();
}

fn told(machine: &mut Machine, zone: &str, offset_seconds: i64) -> Result<(), Failure> {
    let expected: Value = json!({"zone": zone, "offset": offset_seconds});
    machine.expect("guest-get-timezone", &expected)
}
