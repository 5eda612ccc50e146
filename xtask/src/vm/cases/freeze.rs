//! What a host is told around a freeze: the same by both agents, on real file systems.
//!
//! The requests go to the original and to ours one after the other. Where ours does more on purpose, both answers
//! stand in the table; what ours promises beyond the original's contract has a file of its own.

use super::Case;
use crate::vm::conversation::Conversation;
use crate::vm::frozen::FreezeState;
use crate::vm::guest::{Agent, Guest};
use crate::vm::stage::{Kind, disk_name};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "freeze_list_takes_each_kind_of_file_system", run: kinds },
    Case { name: "freeze_list_takes_names_as_the_original_does", run: names },
    Case { name: "freeze_of_everything_stops_writers_until_the_thaw", run: everything },
    Case { name: "freeze_leaves_six_commands_and_gives_all_back", run: rules },
    Case { name: "freeze_hook_is_called_as_by_the_original", run: hook },
    Case { name: "freeze_makes_a_copy_of_the_host_whole", run: copies },
];

fn freeze_list(names: &[&str]) -> Value {
    json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": names}})
}

/// Freezes, looks, thaws: how many were frozen, which of `watched` are, and how many were thawed.
fn round(guest: &mut Guest, agent: Agent, request: &Value, watched: &[String]) -> Result<(Value, Vec<String>, Value)> {
    let names: Vec<&str> = watched.iter().map(String::as_str).collect();
    let mut host = guest.talk_to(agent)?;
    let reply = host.ask(request)?;
    let states = guest.freeze_states(&names);
    let told = host.call("guest-fsfreeze-status", &json!({}));
    let thawed = host.ask(&json!({"execute": "guest-fsfreeze-thaw"}))?;
    let frozen = watched.iter().zip(states?).filter(|(_, state)| *state == FreezeState::Frozen);
    let frozen: Vec<String> = frozen.map(|(mountpoint, _)| mountpoint.clone()).collect();
    let expected = if reply["return"].as_i64().is_some_and(|count| count > 0) { "frozen" } else { "thawed" };
    ensure!(told.as_ref().is_ok_and(|told| told == expected), "{agent:?}: {request}: {reply}, then {told:?}");
    let states = guest.freeze_states(&frozen.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure!(!states.contains(&FreezeState::Frozen), "{agent:?}: {request}: {states:?} after the thaw: {thawed}");
    Ok((reply, frozen, thawed))
}

fn kinds(guest: &mut Guest) -> Result<()> {
    for kind in Kind::ALL {
        guest.make_file_system(*kind)?;
    }
    let mountpoints: Vec<String> = Kind::ALL.iter().map(|kind| kind.mountpoint()).collect();
    for agent in Agent::BOTH {
        for kind in Kind::ALL {
            let at = kind.mountpoint();
            // Who asks for the state of what lies on a frozen file system waits for the thaw.
            let watched: Vec<String> = match kind {
                Kind::Base => mountpoints.iter().filter(|other| **other != Kind::Loop.mountpoint()).cloned().collect(),
                _ => mountpoints.clone(),
            };
            let (reply, frozen, thawed) = round(guest, agent, &freeze_list(&[&at]), &watched)?;
            // A second mount of a file system is not in the original's list; ours finds the file system by it.
            let is_frozen = kind.can_be_frozen() && (*kind != Kind::Bind || agent == Agent::Ours);
            let expected = json!({"return": i32::from(is_frozen)});
            ensure!(reply == expected && thawed == expected, "{agent:?}: {at}: {reply}, then {thawed}");
            let of_one: Vec<String> = match kind {
                // They are one file system.
                Kind::Ext4 | Kind::Bind => vec![Kind::Ext4.mountpoint(), Kind::Bind.mountpoint()],
                _ => vec![at.clone()],
            };
            let of_one = if is_frozen { of_one } else { Vec::new() };
            ensure!(frozen == of_one, "{agent:?}: {at}: frozen are {frozen:?}, not {of_one:?}");
        }
    }
    let all: Vec<&str> = mountpoints.iter().map(String::as_str).collect();
    let freezable = Kind::ALL.iter().filter(|kind| kind.can_be_frozen());
    let expected: Vec<String> = freezable.map(|kind| kind.mountpoint()).collect();
    for agent in Agent::BOTH {
        let (reply, frozen, thawed) = round(guest, agent, &freeze_list(&all), &mountpoints)?;
        ensure!(frozen == expected, "{agent:?}: frozen are {frozen:?}");
        // A bind mount is no file system of its own.
        let count = json!({"return": expected.len() - 1});
        ensure!(reply == count && thawed == count, "{agent:?}: {reply}, then {thawed}");
    }
    guest.note(format!("{} kinds, {} of them can be frozen", all.len(), expected.len()));
    Ok(())
}

fn names(guest: &mut Guest) -> Result<()> {
    const ODD: &str = "/stage/ext4/bl ank\nline ü";
    let ext4 = guest.make_file_system(Kind::Ext4)?;
    let btrfs = guest.make_file_system(Kind::Btrfs)?;
    let xfs = guest.make_file_system(Kind::Xfs)?;
    guest.shell(&format!(
        "set -e; truncate -s 32M {ext4}/odd.img; mkfs.ext4 -q {ext4}/odd.img; mkdir '{ODD}'; mount -o loop {ext4}/odd.img '{ODD}'
         ln -s {ext4} /stage/link; mount -o remount,ro {xfs}"
    ))?;
    let outcome = all_names(guest, ODD, &[ext4, btrfs, xfs]);
    guest.shell(&format!("umount '{ODD}'; rm /stage/link; mount -o remount,rw /stage/xfs"))?;
    outcome
}

fn all_names(guest: &mut Guest, odd: &str, watched: &[String]) -> Result<()> {
    let same: &[(&[&str], u32)] = &[
        (&[], 0),
        (&["/nowhere"], 0),
        (&[""], 0),
        (&["/stage/ext4", "/nowhere"], 1),
        (&["/nowhere", "/stage/ext4", "/stage/ext4"], 1),
        (&["/stage/btrfs", "/stage/ext4"], 2),
        // Frozen although nobody can write there.
        (&["/stage/xfs"], 1),
        (&[odd], 1),
        (&["/proc", "/sys", "/run", "/dev"], 0),
    ];
    for (names, count) in same {
        for agent in Agent::BOTH {
            let (reply, _, thawed) = round(guest, agent, &freeze_list(names), watched)?;
            let expected = json!({"return": count});
            ensure!(reply == expected && thawed == expected, "{agent:?}: {names:?}: {reply}, then {thawed}");
        }
    }
    // The original takes the first mount of a file system by its exact name alone.
    for name in ["/stage/btrfs-second", "/stage/ext4/", "/stage/link", "/stage/../stage/ext4"] {
        let (reply, _, _) = round(guest, Agent::Original, &freeze_list(&[name]), watched)?;
        ensure!(reply == json!({"return": 0}), "the original: {name}: {reply}");
        let (reply, _, _) = round(guest, Agent::Ours, &freeze_list(&[name]), watched)?;
        guest.note(format!("{name}: the original freezes nothing, ours: {reply}"));
    }
    let wrong = [json!("x"), json!({}), json!([1]), json!([null]), json!(null), json!(["/stage/ext4", 1])];
    for mountpoints in wrong {
        let request = json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": mountpoints}});
        let (original, _, _) = round(guest, Agent::Original, &request, watched)?;
        let (ours, _, _) = round(guest, Agent::Ours, &request, watched)?;
        ensure!(original == ours && ours.get("error").is_some(), "{request}\noriginal: {original}\nours:     {ours}");
    }
    Ok(())
}

fn everything(guest: &mut Guest) -> Result<()> {
    let mut watched = vec!["/".to_owned()];
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Loop, Kind::Lvm] {
        watched.push(guest.make_file_system(kind)?);
    }
    let writer = guest.start_writer(&watched[1])?;
    let outcome = freeze_everything(guest, &watched, &writer);
    guest.shell(&format!("systemctl stop {writer}"))?;
    outcome
}

fn freeze_everything(guest: &mut Guest, watched: &[String], writer: &str) -> Result<()> {
    let mut told = Vec::new();
    for agent in Agent::BOTH {
        for request in [
            json!({"execute": "guest-fsfreeze-freeze"}),
            // Without a list all are meant as well.
            json!({"execute": "guest-fsfreeze-freeze-list"}),
        ] {
            let mut host = guest.talk_to(agent)?;
            let frozen = host.ask(&request)?;
            let looked = look_while_frozen(guest, &mut host, watched, writer);
            let thawed = host.ask(&json!({"execute": "guest-fsfreeze-thaw"}))?;
            looked.with_context(|| format!("{agent:?}: {request}"))?;
            ensure!(frozen == thawed, "{agent:?}: {request}: {frozen}, then {thawed}");
            let again = host.ask(&json!({"execute": "guest-fsfreeze-thaw"}))?;
            ensure!(again == json!({"return": 0}), "{agent:?}: a second thaw: {again}");
            ensure!(host.call("guest-fsfreeze-status", &json!({}))? == "thawed", "{agent:?} is not thawed");
            guest.wait_for_writes(writer)?;
            told.push(frozen);
        }
    }
    ensure!(told.iter().all(|reply| *reply == told[0]), "how many are frozen: {told:?}");
    // What lies beneath others is watched too: root, five, and the one beneath the loop.
    ensure!(told[0] == json!({"return": watched.len() + 1}), "how many are frozen: {}", told[0]);
    Ok(())
}

fn look_while_frozen(guest: &mut Guest, host: &mut Conversation, watched: &[String], writer: &str) -> Result<()> {
    let names: Vec<&str> = watched.iter().map(String::as_str).collect();
    let states = guest.freeze_states(&names)?;
    ensure!(states.iter().all(|state| *state == FreezeState::Frozen), "{names:?} are {states:?}");
    // It may have been told of a write that was done just before.
    guest.wait_until("the writer waits", |guest| {
        let state = guest.shell("grep -h ^State /proc/[0-9]*/task/*/status | grep -c 'D (disk sleep)'; true")?;
        Ok((state != "0").then_some(()))
    })?;
    let before = guest.writes_of(writer)?;
    host.call("guest-ping", &json!({}))?;
    ensure!(host.call("guest-fsfreeze-status", &json!({}))? == "frozen", "the agent does not say that it is frozen");
    std::thread::sleep(std::time::Duration::from_secs(1));
    let now = guest.writes_of(writer)?;
    ensure!(now == before, "{} writes were done while frozen", now - before);
    Ok(())
}

/// What a frozen agent still does.
const ALLOWED: [&str; 6] =
    ["guest-sync-delimited", "guest-sync", "guest-ping", "guest-info", "guest-fsfreeze-status", "guest-fsfreeze-thaw"];

fn rules(guest: &mut Guest) -> Result<()> {
    let at = guest.make_file_system(Kind::Ext4)?;
    for agent in Agent::BOTH {
        let mut host = guest.talk_to(agent)?;
        let before = host.call("guest-info", &json!({}))?;
        ensure!(host.ask(&freeze_list(&[&at]))? == json!({"return": 1}), "{agent:?} freezes nothing");
        let outcome = rules_while_frozen(&mut host, agent, &before);
        let thawed = host.ask(&json!({"execute": "guest-fsfreeze-thaw"}))?;
        outcome?;
        ensure!(thawed == json!({"return": 1}), "{agent:?}: {thawed}");
        let after = host.call("guest-info", &json!({}))?;
        ensure!(before == after, "{agent:?}: guest-info is not what it was:\n{before}\n{after}");
    }
    Ok(())
}

fn rules_while_frozen(host: &mut Conversation, agent: Agent, before: &Value) -> Result<()> {
    let info = host.call("guest-info", &json!({}))?;
    let commands = info["supported_commands"].as_array().context("guest-info lists no commands")?;
    let mut enabled: Vec<&str> = commands
        .iter()
        .filter(|command| command["enabled"] == true)
        .filter_map(|command| command["name"].as_str())
        .collect();
    let mut allowed = ALLOWED;
    enabled.sort_unstable();
    allowed.sort_unstable();
    ensure!(enabled == allowed, "{agent:?}: enabled while frozen: {enabled:?}");
    let known = before["supported_commands"].as_array().map_or(0, Vec::len);
    ensure!(commands.len() == known, "{agent:?} lists {} commands while frozen, {known} before", commands.len());
    for name in commands.iter().filter_map(|command| command["name"].as_str()) {
        if allowed.contains(&name) {
            continue;
        }
        // The refusal comes before anybody looks at arguments.
        for request in [json!({"execute": name}), json!({"execute": name, "arguments": {"nonsense": 1}, "id": 7})] {
            let reply = host.ask(&request)?;
            let because = if agent == Agent::Ours { " (file systems are frozen)" } else { "" };
            let expected = json!({"class": "CommandNotFound",
                "desc": format!("Command {name} has been disabled: the command is not allowed{because}")});
            ensure!(reply["error"] == expected, "{agent:?}: {request}: {reply}");
            ensure!(reply["id"] == request["id"], "{agent:?}: {request}: {reply}");
        }
    }
    let reply = host.ask(&json!({"execute": "guest-nonsense"}))?;
    let text = "The command guest-nonsense has not been found";
    ensure!(reply["error"] == json!({"class": "CommandNotFound", "desc": text}), "{agent:?}: {reply}");
    host.synchronise(crate::vm::conversation::patience())?;
    let reply = host.ask(&json!({"execute": "guest-sync", "arguments": {"id": 5}}))?;
    ensure!(reply == json!({"return": 5}), "{agent:?}: {reply}");
    ensure!(host.call("guest-fsfreeze-status", &json!({}))? == "frozen", "{agent:?} does not say that it is frozen");
    Ok(())
}

/// Writes down how it was called, then does what its name in `/run/hook-does` says.
const HOOK: &str = r#"#!/bin/sh
echo "$# $0 $1 $(readlink /proc/self/fd/0)" >> /run/hook-log
if [ -e /run/hook-fails ]; then echo "no room"; echo "for this" >&2; exit 3; fi
"#;

fn hook(guest: &mut Guest) -> Result<()> {
    let at = guest.make_file_system(Kind::Ext4)?;
    guest.shell(&format!("cat > /run/hook << 'END'\n{HOOK}END\nchmod 755 /run/hook"))?;
    guest.restart_original_with("-F/run/hook")?;
    guest.restart_our_agent_with("-F/run/hook")?;
    let outcome = Agent::BOTH.into_iter().try_for_each(|agent| calls_of_hook(guest, agent, &at));
    guest.shell("rm -f /run/hook /run/hook-log /run/hook-fails")?;
    outcome
}

fn calls_of_hook(guest: &mut Guest, agent: Agent, at: &str) -> Result<()> {
    let thaw = json!({"execute": "guest-fsfreeze-thaw"});
    let calls = |guest: &mut Guest| guest.shell("cat /run/hook-log 2> /dev/null; rm -f /run/hook-log");
    let mut host = guest.talk_to(agent)?;
    let replies = [host.ask(&freeze_list(&[at]))?, host.ask(&thaw)?];
    ensure!(replies.iter().all(|reply| *reply == json!({"return": 1})), "{agent:?}: {replies:?}");
    let expected = "1 /run/hook freeze /dev/null\n1 /run/hook thaw /dev/null";
    let called = calls(guest)?;
    ensure!(called == expected, "{agent:?} called:\n{called}");
    // What it says is told, and nothing is frozen.
    guest.shell("touch /run/hook-fails")?;
    let reply = host.ask(&freeze_list(&[at]))?;
    let state = guest.freeze_state(at)?;
    let status = host.call("guest-fsfreeze-status", &json!({}))?;
    guest.shell("rm /run/hook-fails")?;
    let text = reply["error"]["desc"].as_str().unwrap_or_default();
    let is_told = text.starts_with("child process has failed to execute fsfreeze hook: ") && text.contains("no room");
    ensure!(is_told && reply["error"]["class"] == "GenericError", "{agent:?}: {reply}");
    ensure!(state == FreezeState::Thawed && status == "thawed", "{agent:?}: {status}, the file system is {state:?}");
    // Who was told of a freeze is told that it is over: by the original, only when something came of it.
    let (after_failure, without_freeze, after_thaw) = match agent {
        Agent::Original => {
            ("1 /run/hook freeze /dev/null", "1 /run/hook freeze /dev/null", "1 /run/hook thaw /dev/null")
        }
        Agent::Ours => (expected, expected, "1 /run/hook thaw /dev/null"),
    };
    let called = calls(guest)?;
    ensure!(called == after_failure, "{agent:?} called, when the hook failed:\n{called}");
    let reply = host.ask(&freeze_list(&["/nowhere"]))?;
    ensure!(reply == json!({"return": 0}), "{agent:?}: {reply}");
    let called = calls(guest)?;
    ensure!(called == without_freeze, "{agent:?} called, when there was nothing to freeze:\n{called}");
    let reply = host.ask(&thaw)?;
    ensure!(reply == json!({"return": 0}), "{agent:?}: {reply}");
    let called = calls(guest)?;
    ensure!(called == after_thaw, "{agent:?} called, when nothing was frozen:\n{called}");
    Ok(())
}

/// The check of a copied disk, in the guest: prints what is wrong with it, nothing if it is whole.
fn check_script(kind: Kind, device: &str) -> String {
    match kind {
        // A journal with something in it is what a disk without power has.
        Kind::Ext4 => format!(
            "e2fsck -fn {device} > /run/fsck 2>&1 || cat /run/fsck
             dumpe2fs -h {device} 2> /dev/null | grep -o needs_recovery; true"
        ),
        // A frozen one leaves a record in its log, for the next mount to look for files that are deleted and open.
        Kind::Xfs => format!(
            "mkdir -p /run/copy; mount -o nouuid {device} /run/copy; cat /run/copy/writer > /dev/null; umount /run/copy
             xfs_repair -n {device} > /run/fsck 2>&1 || cat /run/fsck"
        ),
        _ => format!("btrfs check --readonly --force {device} > /run/fsck 2>&1 || cat /run/fsck"),
    }
}

fn copies(guest: &mut Guest) -> Result<()> {
    let kinds = [Kind::Ext4, Kind::Xfs, Kind::Btrfs];
    let mut writers = Vec::new();
    for kind in kinds {
        let at = guest.make_file_system(kind)?;
        writers.push(guest.start_writer(&at)?);
    }
    let outcome = copies_of(guest, &kinds, &writers);
    guest.shell(&format!("systemctl stop {}", writers.join(" ")))?;
    outcome
}

fn copies_of(guest: &mut Guest, kinds: &[Kind], writers: &[String]) -> Result<()> {
    let mountpoints: Vec<String> = kinds.iter().map(|kind| kind.mountpoint()).collect();
    let names: Vec<&str> = mountpoints.iter().map(String::as_str).collect();
    // A file system in use is not whole: else the test would prove nothing.
    let found = check_copies(guest, &kinds[..1], |guest| Ok(vec![copy_of(guest, Kind::Ext4)?]))?;
    ensure!(!found.is_empty(), "a copy of a disk that is written to is whole");
    for agent in Agent::BOTH {
        let mut host = guest.talk_to(agent)?;
        let found = check_copies(guest, kinds, |guest| {
            let reply = host.ask(&freeze_list(&names))?;
            ensure!(reply == json!({"return": kinds.len()}), "{agent:?}: {reply}");
            let copied = kinds.iter().map(|kind| copy_of(guest, *kind)).collect();
            let thawed = host.ask(&json!({"execute": "guest-fsfreeze-thaw"}))?;
            ensure!(thawed == reply, "{agent:?}: {thawed}");
            copied
        })?;
        ensure!(found.is_empty(), "{agent:?}: the copies are not whole:\n{found}");
        for writer in writers {
            guest.wait_for_writes(writer)?;
        }
    }
    Ok(())
}

fn copy_of(guest: &mut Guest, kind: Kind) -> Result<String> {
    let disk = guest.disk(&disk_name(kind, 1))?;
    guest.copy_disk(&disk)
}

/// What is wrong with the copies that `copy` makes.
fn check_copies(
    guest: &mut Guest,
    kinds: &[Kind],
    copy: impl FnOnce(&mut Guest) -> Result<Vec<String>>,
) -> Result<String> {
    let names = copy(guest)?;
    let mut found = String::new();
    for (kind, name) in kinds.iter().zip(names) {
        let device = guest.plug_copy(&name)?.device;
        found += &guest.shell(&check_script(*kind, &device))?;
        guest.unplug_disk(&name)?;
    }
    Ok(found)
}
