//! Processors and memory are plugged in, switched on and off by the agent, and taken away again.
//!
//! The original is asked for the same, in the same state of the guest: replies and outcomes are the same.

use super::Case;
use super::zoo::compare;
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "actions_switch_processors_as_the_original_does", run: processors },
    Case { name: "actions_switch_memory_as_the_original_does", run: memory },
];

/// Processor 1 and the plugged one, switched on; 0 has no switch on this kind of machine.
const ALL_ON: &str = "for switch in /sys/devices/system/cpu/cpu*/online; do
    [ \"$(cat $switch)\" = 1 ] || echo 1 > $switch; done";

fn processors(guest: &mut Guest) -> Result<()> {
    let slots = guest.machine().qmp("query-hotpluggable-cpus", &json!({}))?;
    let free = slots.as_array().and_then(|slots| slots.iter().find(|slot| slot["qom-path"].is_null()));
    let free = free.context("the machine has no place for another processor")?.clone();
    let mut device = free["props"].clone();
    device["driver"] = free["type"].clone();
    device["id"] = json!("plugged-cpu");
    guest.machine().qmp("device_add", &device)?;
    guest.wait_until("the guest sees the processor", |guest| {
        Ok((guest.shell_result("test -e /sys/devices/system/cpu/cpu2/online")?.status == 0).then_some(()))
    })?;
    let outcome = switch_processors(guest);
    guest.shell(ALL_ON)?;
    guest.machine().qmp("device_del", &json!({"id": "plugged-cpu"}))?;
    guest.wait_until("the guest has let the processor go", |guest| {
        Ok((guest.shell_result("test -e /sys/devices/system/cpu/cpu2")?.status != 0).then_some(()))
    })?;
    outcome
}

fn switch_processors(guest: &mut Guest) -> Result<()> {
    // What is asked for, and which processors are on afterwards.
    let requests: &[(Value, &str)] = &[
        (json!([]), "0-2"),
        (json!([{"logical-id": 2, "online": false}]), "0-1"),
        (json!([{"logical-id": 1, "online": false, "can-offline": false}, {"logical-id": 2, "online": false}]), "0"),
        (json!([{"logical-id": 1, "online": true}, {"logical-id": 0, "online": true}]), "0-2"),
        (json!([{"logical-id": 0, "online": false}, {"logical-id": 1, "online": false}]), "0-2"),
        (json!([{"logical-id": 1, "online": false}, {"logical-id": 0, "online": false}]), "0,2"),
        (json!([{"logical-id": 99, "online": true}]), "0-2"),
        (json!([{"logical-id": -1, "online": true}]), "0-2"),
        (json!([{"logical-id": 2, "online": false}, {"logical-id": 99, "online": false}]), "0-1"),
        (json!([{"logical-id": 2, "online": false}, {"logical-id": 2, "online": true}]), "0-2"),
        (json!([{"logical-id": 2}]), "0-2"),
        (json!({"logical-id": 2}), "0-2"),
    ];
    for (vcpus, expected) in requests {
        let request = json!({"execute": "guest-set-vcpus", "arguments": {"vcpus": vcpus}});
        let [original, ours] = both(guest, ALL_ON, &request, "cat /sys/devices/system/cpu/online")?;
        ensure!(original == ours, "{request}\noriginal: {original:?}\nours:     {ours:?}");
        ensure!(ours.1 == *expected, "{request}: {} are on after {}", ours.1, ours.0);
    }
    guest.note(format!("{} requests answered and obeyed as by the original", requests.len()));
    guest.shell("echo 0 > /sys/devices/system/cpu/cpu1/online")?;
    compare(guest, &["guest-get-vcpus", "guest-get-cpustats"])
}

/// Asks both agents, each after `prepare`: the reply and what `look` prints then.
fn both(guest: &mut Guest, prepare: &str, request: &Value, look: &str) -> Result<[(Value, String); 2]> {
    let mut ask = |is_original: bool| -> Result<(Value, String)> {
        guest.shell(prepare)?;
        let mut host = if is_original { guest.talk_to_original()? } else { guest.talk_to_ours()? };
        let reply = host.ask(request)?;
        drop(host);
        Ok((reply, guest.shell(look)?))
    };
    Ok([ask(true)?, ask(false)?])
}

fn memory(guest: &mut Guest) -> Result<()> {
    const BLOCKS: &str = "cd /sys/devices/system/memory && ls -d memory* | sort -V";
    guest.shell("echo offline > /sys/devices/system/memory/auto_online_blocks")?;
    let before = guest.shell(BLOCKS)?;
    let size = json!({"qom-type": "memory-backend-ram", "id": "plugged-memory", "size": 3 * (128 << 20)});
    guest.machine().qmp("object-add", &size)?;
    let device = json!({"driver": "pc-dimm", "id": "plugged-dimm", "memdev": "plugged-memory"});
    guest.machine().qmp("device_add", &device)?;
    let plugged: Vec<u64> = guest.wait_until("the guest sees the memory", |guest| {
        let now = guest.shell(BLOCKS)?;
        let new = now.lines().filter(|name| !before.lines().any(|known| known == *name));
        let numbers: Vec<u64> = new.filter_map(|name| name.strip_prefix("memory")?.parse().ok()).collect();
        Ok((numbers.len() == 3).then_some(numbers))
    })?;
    // What lies between memory that is kept free of the kernel's own data is kept free of it too, and can be switched
    // off again.
    for number in [plugged[0], plugged[2]] {
        guest.shell(&format!("echo online_movable > /sys/devices/system/memory/memory{number}/state"))?;
    }
    let outcome = switch_memory(guest, plugged[1]);
    guest.machine().qmp("device_del", &json!({"id": "plugged-dimm"}))?;
    guest.wait_until("the guest has let the memory go", |guest| Ok((guest.shell(BLOCKS)? == before).then_some(())))?;
    outcome
}

fn switch_memory(guest: &mut Guest, block: u64) -> Result<()> {
    let state = format!("/sys/devices/system/memory/memory{block}/state");
    // The state before, what is asked for, the kind of answer, the state afterwards.
    let requests: &[(&str, Value, &[&str], &str)] = &[
        ("offline", json!([]), &[], "offline"),
        ("offline", json!([{"phys-index": block, "online": true}]), &["success"], "online"),
        ("online", json!([{"phys-index": block, "online": true}]), &["success"], "online"),
        ("online", json!([{"phys-index": block, "online": false, "can-offline": false}]), &["success"], "offline"),
        // The kernel's own code is in the first block: nobody can switch that off.
        (
            "online",
            json!([{"phys-index": 0, "online": false}, {"phys-index": 99_999, "online": true},
                   {"phys-index": block, "online": false}]),
            &["operation-failed", "not-found", "success"],
            "offline",
        ),
        ("offline", json!([{"phys-index": u64::MAX, "online": true}]), &["not-found"], "offline"),
        ("offline", json!([{"online": true}]), &[], "offline"),
    ];
    for (before, blocks, answers, after) in requests {
        let request = json!({"execute": "guest-set-memory-blocks", "arguments": {"mem-blks": blocks}});
        let prepare = format!("[ \"$(cat {state})\" = {before} ] || echo {before} > {state}");
        let [original, ours] = both(guest, &prepare, &request, &format!("cat {state}"))?;
        ensure!(original == ours, "{request}\noriginal: {original:?}\nours:     {ours:?}");
        ensure!(ours.1 == *after, "{request}: the block is {} after {}", ours.1, ours.0);
        let kinds: Vec<&str> = ours.0["return"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|answer| answer["response"].as_str())
            .collect();
        ensure!(kinds == *answers, "{request}: {}", ours.0);
    }
    guest.note(format!("{} requests answered and obeyed as by the original, block {block}", requests.len()));
    compare(guest, &["guest-get-memory-blocks", "guest-get-memory-block-info"])
}
