//! Memory blocks and their size.

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod machine;

use std::fs;

use qga_compliance::{Failure, check, deviation};
use serde_json::{Value, json};

use machine::{Machine, Machines, same};

/// The machine's own directory of memory blocks, and in it.
const OWN_SYSFS: &str = "mkdir -p $machine/system/memory; mount --bind $machine/system /sys/devices/system; \
                         cd $machine/system/memory";
/// No such directory.
const NO_SYSFS: &str = "mkdir $machine/system; mount --bind $machine/system /sys/devices/system";

#[test]
fn memory() {
    check("memory");
}

#[test]
fn blocks() {
    let mut machines = Machines::new("memory blocks");
    machines.case("this machine's memory blocks are told", "", |machine| {
        let listed = fs::read_dir("/sys/devices/system/memory").into_iter().flatten().flatten();
        let names = listed.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let expected: Vec<u64> = names.filter_map(|name| name.strip_prefix("memory")?.parse().ok()).collect();
        same(&numbers(machine)?, &json!(expected))
    });
    let unordered = format!(
        "{OWN_SYSFS}; for number in 7 0 12 3 2 10; do mkdir memory$number; echo online > memory$number/state; done; \
         ls -U > $machine/order"
    );
    machines.case("memory blocks come in the order of the kernel's directory", &unordered, |machine| {
        let listed = machine.words("order")?;
        let numbers_there = listed.iter().filter_map(|name| name.strip_prefix("memory")?.parse::<u64>().ok());
        let expected: Vec<u64> = numbers_there.collect();
        same(&numbers(machine)?, &json!(expected))
    });
    let zoo = format!(
        "{OWN_SYSFS}; block() {{ mkdir memory$1; echo $2 > memory$1/state; echo $3 > memory$1/removable; }}; \
         block 0 online 0; block 1 online 1; block 2 offline 1; block 10 going-offline 0; mkdir memory11; \
         mkdir memory12; echo online > memory12/state; echo 8000000 > block_size_bytes"
    );
    machines.case("each memory block is told with its state", &zoo, |machine| {
        let expected = json!([
            {"phys-index": 0, "online": true, "can-offline": false},
            {"phys-index": 1, "online": true, "can-offline": true},
            {"phys-index": 2, "online": false, "can-offline": true},
            {"phys-index": 10, "online": false, "can-offline": false},
            {"phys-index": 11, "online": true, "can-offline": false},
            {"phys-index": 12, "online": true, "can-offline": false},
        ]);
        same(&Value::from(by_number(machine)?), &expected)
    });
    machines.case("a kernel that cannot switch memory has no blocks", NO_SYSFS, |machine| {
        machine.expect("guest-get-memory-blocks", &json!([]))
    });
    machines.case("a kernel that could but has no block is an error", OWN_SYSFS, |machine| {
        machine.expect_error("guest-get-memory-blocks", "guest reported zero memory blocks!")
    });
    let choice = deviation("a memory block whose state is empty is named");
    machines.case(choice.case(), &format!("{OWN_SYSFS}; mkdir memory7; : > memory7/state"), |machine| {
        let original = "pread sysfs file \"state\": unexpected EOF";
        let ours = "pread sysfs file \"state\": unexpected EOF (/sys/devices/system/memory/memory7)";
        machine.expect_error("guest-get-memory-blocks", choice.pick(machine.kind, original, ours))
    });
    let choice = deviation("a list of memory blocks that cannot be read is told");
    machines.case(choice.case(), &format!("{NO_SYSFS}; : > $machine/system/memory"), |machine| {
        let original = "Can't open directory\"/sys/devices/system/memory/\": Not a directory";
        let ours = "Can't open directory \"/sys/devices/system/memory/\": Not a directory";
        machine.expect_error("guest-get-memory-blocks", choice.pick(machine.kind, original, ours))
    });
    machines.finish();
}

/// The blocks' numbers as they come.
fn numbers(machine: &mut Machine) -> Result<Value, Failure> {
    let found = machine.returned("guest-get-memory-blocks")?;
    Ok(found.as_array().into_iter().flatten().map(|entry| entry["phys-index"].clone()).collect())
}

fn by_number(machine: &mut Machine) -> Result<Vec<Value>, Failure> {
    let mut found = machine.returned("guest-get-memory-blocks")?.as_array().cloned().ok_or("not a list")?;
    found.sort_by_key(|entry| entry["phys-index"].as_u64());
    Ok(found)
}

#[test]
fn block_size() {
    const COMMAND: &str = "guest-get-memory-block-info";
    let mut machines = Machines::new("memory block size");
    for (text, size) in [("8000000", 134_217_728_u64), ("0x80000000", 2_147_483_648), ("1", 1)] {
        let name = format!("the size {text} is hexadecimal");
        machines.case(&name, &format!("{OWN_SYSFS}; echo {text} > block_size_bytes"), |machine| {
            machine.expect(COMMAND, &json!({ "size": size }))
        });
    }
    machines.case("a kernel that cannot switch memory has no block size", NO_SYSFS, |machine| {
        machine.expect_error(COMMAND, "open(\"/sys/devices/system/memory/\"): No such file or directory")
    });
    machines.case("a missing size is an error", OWN_SYSFS, |machine| {
        machine.expect_error(COMMAND, "open sysfs file \"block_size_bytes\": No such file or directory")
    });
    machines.case("an empty size is an error", &format!("{OWN_SYSFS}; : > block_size_bytes"), |machine| {
        machine.expect_error(COMMAND, "pread sysfs file \"block_size_bytes\": unexpected EOF")
    });
    let choice = deviation("a size that is no number is an error");
    machines.case(choice.case(), &format!("{OWN_SYSFS}; echo much > block_size_bytes"), |machine| {
        let original = json!({"return": {"size": 0}});
        let desc = "sysfs file \"block_size_bytes\" has no hexadecimal number: \"much\"";
        let ours = json!({"error": {"class": "GenericError", "desc": desc}});
        let reply = machine.ask(COMMAND)?.json.unwrap_or_default();
        same(&reply, &choice.pick(machine.kind, original, ours))
    });
    machines.finish();
}
