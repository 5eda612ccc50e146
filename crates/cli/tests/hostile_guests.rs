//! Guests, sockets and programs with names that would steer a terminal, forge another guest's line or fill the memory: every
//! command shows them written out, in a pipe, on a terminal and as JSON.

mod stage;

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use stage::scripted::{Answer, Scripted};
use stage::{Ended, run, run_with_input, wait};

/// Steers a terminal, ends lines, turns the direction of reading and hides.
const HOSTILE: &str = "a\x1b[2J\x1b]0;t\x07\r\nb | forged\t\u{9b}1m\u{202e}c\u{200b}\u{2028}d";

fn guest(directory: &tempfile::TempDir, name: &str) -> Scripted {
    let address = json!({ "ip-address": HOSTILE, "ip-address-type": HOSTILE, "prefix": 24 });
    let global = json!({ "ip-address": "192.0.2.2", "ip-address-type": "ipv4", "prefix": 24 });
    let counters = json!({ "rx-bytes": 1, "rx-packets": 1, "rx-errs": 0, "rx-dropped": 0, "tx-bytes": 1, "tx-packets": 1, "tx-errs": 0, "tx-dropped": 0 });
    let interface = json!({ "name": HOSTILE, "hardware-address": HOSTILE, "ip-addresses": [address, global], "statistics": counters });
    let pci = json!({ "domain": 0, "bus": 0, "slot": 0, "function": 0 });
    let place =
        json!({ "pci-controller": pci, "bus-type": HOSTILE, "bus": 0, "target": 0, "unit": 0, "serial": HOSTILE });
    let file_system = json!({ "name": HOSTILE, "mountpoint": HOSTILE, "type": HOSTILE, "used-bytes": 1, "total-bytes": 2, "disk": [place] });
    let disk = json!({ "name": HOSTILE, "partition": false, "address": place, "alias": HOSTILE });
    let system = json!({ "pretty-name": HOSTILE, "name": HOSTILE, "kernel-release": HOSTILE, "machine": HOSTILE, "id": HOSTILE });
    let commands = json!([{ "name": HOSTILE, "enabled": false, "success-response": true }]);
    let trimmed = json!({ "paths": [{ "path": HOSTILE, "error": HOSTILE }, { "path": HOSTILE, "trimmed": 1 }] });
    let said = |agent: Scripted, command: &str, value: Value| agent.answering(command, Answer::Value(value));
    let mut agent = Scripted::start_at(directory.path().join(name));
    for (command, value) in [
        ("guest-info", json!({ "version": HOSTILE, "supported_commands": commands })),
        ("guest-get-host-name", json!({ "host-name": HOSTILE })),
        ("guest-get-osinfo", system),
        ("guest-get-users", json!([{ "user": HOSTILE, "login-time": 1.5, "domain": HOSTILE }])),
        ("guest-get-timezone", json!({ "zone": HOSTILE, "offset": 0 })),
        ("guest-get-time", json!(1_000_000_000_i64)),
        ("guest-get-vcpus", json!([{ "logical-id": 0, "online": true }])),
        ("guest-get-load", json!({ "load1m": 0.5, "load5m": 0.5, "load15m": 0.5 })),
        ("guest-get-cpustats", json!([{ "type": "beos", "cpu": HOSTILE }])),
        ("guest-get-diskstats", json!([{ "name": HOSTILE, "major": 1, "minor": 0, "stats": { "read-sectors": 1 } }])),
        // The same interface twice: a page for Prometheus must not have its series twice.
        ("guest-network-get-interfaces", json!([interface, interface])),
        ("guest-network-get-route", json!([])),
        ("guest-get-fsinfo", json!([file_system, file_system])),
        ("guest-get-disks", json!([disk, disk])),
        ("guest-get-memory-blocks", json!([])),
        ("guest-ssh-get-authorized-keys", json!({ "keys": [HOSTILE] })),
        ("guest-fstrim", trimmed),
    ] {
        agent = said(agent, command, value);
    }
    for command in [
        "guest-set-user-password",
        "guest-set-time",
        "guest-suspend-ram",
        "guest-suspend-disk",
        "guest-ssh-add-authorized-keys",
        "guest-exec",
    ] {
        agent = agent.answering(command, Answer::Error(HOSTILE));
    }
    agent = agent.answering("guest-set-vcpus", Answer::Value(json!(1)));
    let switched = json!([{ "phys-index": 0, "response": HOSTILE }]);
    agent = agent.answering("guest-set-memory-blocks", Answer::Value(switched));
    agent.answering("guest-file-open", Answer::Error("Command has been disabled: the command is not allowed"))
}

/// Nothing in an output but lines, tabs and changes of colour.
fn is_harmless(output: &str) -> bool {
    let mut rest = output;
    while let Some(at) = rest.find("\x1b[") {
        let behind = &rest[at + 2..];
        let end = behind.find(|c: char| !c.is_ascii_digit() && c != ';');
        if rest[..at].chars().any(steers) || !end.is_some_and(|end| behind[end..].starts_with('m')) {
            return false;
        }
        rest = &behind[end.map_or(0, |end| end + 1)..];
    }
    !rest.chars().any(steers)
}

fn steers(character: char) -> bool {
    (character.is_control() && !"\n\t".contains(character)) || "\u{202e}\u{200b}\u{2028}".contains(character)
}

fn look(ended: &Ended, what: &str) {
    assert!(is_harmless(&ended.text()) && is_harmless(&ended.stderr), "{what}: {ended:?}");
    let forged = |line: &str| line.trim_start().starts_with("b | forged");
    assert!(!ended.text().lines().chain(ended.stderr.lines()).any(forged), "{what}: {ended:?}");
}

#[test]
fn no_command_lets_a_guest_steer_the_terminal() {
    let directory = tempfile::tempdir().unwrap();
    // Their sockets' names are hostile too.
    let names = ["x\x1b[2J\r\u{202e}one.sock", "x\x1b[2J\r\u{202e}two.sock"];
    let guests = names.map(|name| guest(&directory, name));
    let both = format!("{},{}", guests[0].target(), guests[1].target());
    let raw = r#"{"execute": "guest-get-host-name", "id": "x"}"#;
    let copies = format!("{}/copies/", directory.path().display());
    let mut visited: Vec<String> = Vec::new();
    for command in [
        &["ping"][..],
        &["info"],
        &["fs"],
        &["disks"],
        &["ip"],
        &["ip", "-1"],
        &["users"],
        &["time"],
        &["cpus"],
        &["memory"],
        &["ssh-key", "ls", "u"],
        &["ssh-key", "rm", "u", "nobody"],
        &["trim"],
        &["metrics"],
        &["doctor"],
        &["freeze", "--status"],
        &["freeze", "-m", "/x\x1b[2J", "--run", "true"],
        &["--yes", "freeze"],
        &["thaw"],
        &["shutdown"],
        &["--yes", "reboot"],
        &["call", "guest-get-host-name"],
        &["call", "guest-network-get-interfaces"],
        &["raw", raw],
        &["exec", "true"],
        &["ls", "/"],
        &["cat", "/x\x1b[2J"],
        &["cp", ":/x\x1b[2J", &copies],
        &["--yes", "time", "--set", "@1"],
        &["--yes", "cpus", "--offline", "0"],
        &["--yes", "memory", "--offline", "0"],
        &["passwd", "--stdin", "u\x1b[2J"],
        &["ssh-key", "add", "u\x1b[2J", "ssh-ed25519 AAAA x"],
        &["--yes", "suspend"],
        &["--yes", "suspend", "disk"],
        &["--yes", "halt"],
        &["shell"],
        &["top", "-n", "1"],
    ] {
        let words: Vec<&str> = command.iter().copied().filter(|word| !word.starts_with('-')).collect();
        visited.extend([words[0].to_owned(), words[..words.len().min(2)].join(" ")]);
        let what = command.join(" ");
        for form in [&["--timeout", "5"][..], &["--timeout", "5", "--color", "always"], &["--timeout", "5", "--json"]] {
            let arguments = [form, command].concat();
            look(&run_with_input(&guests[0].target(), &arguments, b"x\n"), &what);
            look(&run_with_input(&both, &arguments, b"x\n"), &what);
        }
    }
    let virsh = directory.path().join("virsh");
    // The list has a name a line.
    let name = HOSTILE.replace("\r\n", "");
    std::fs::write(&virsh, format!("#!/bin/sh\nprintf '%s\\n' '{name}'\n")).unwrap();
    std::fs::set_permissions(&virsh, std::fs::Permissions::from_mode(0o755)).unwrap();
    for form in [&["targets"][..], &["--json", "targets"], &["--color", "always", "targets"], &["--all", "ping"]] {
        let listed: Ended = stage::command().env("QGA_VIRSH", &virsh).args(form).output().unwrap().into();
        assert!(listed.text().contains("libvirt:") || listed.stderr.contains("targets"), "{listed:?}");
        look(&listed, "targets");
    }
    visited.push("targets".to_owned());

    // What says nothing of a guest.
    let about_qga = ["completions", "man", "help"];
    for group in [&[][..], &["ssh-key"]] {
        let missing: Vec<String> = subcommands(group)
            .into_iter()
            .filter(|name| !about_qga.contains(&name.as_str()))
            .filter(|name| !visited.contains(&[group, &[name.as_str()]].concat().join(" ")))
            .collect();
        assert!(missing.is_empty(), "this test does not visit {group:?} {missing:?}");
    }
}

/// The commands that the help lists, which clap makes from the definition.
fn subcommands(group: &[&str]) -> Vec<String> {
    let help: Ended = stage::command().args(group).arg("--help").output().unwrap().into();
    let help = help.good();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Names stand two columns in; the lines of a long description further.
    let names = listed.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let names: Vec<String> = names.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    assert!(names.len() > 2, "{help}");
    names
}

#[test]
fn what_succeeds_with_hostile_names_shows_them_written_out() {
    let Some(guest) = stage::Guest::start() else { return };
    // A program's output is passed on as it is, so it is one that says nothing by itself.
    let tree = guest.path("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join(HOSTILE), "content\n").unwrap();
    let (here, there) = (guest.text("tree"), guest.text("copied"));
    let (file, back) = (format!("{here}/{HOSTILE}"), guest.text("back"));
    for form in [&[][..], &["--color", "always"], &["--json"]] {
        for command in [
            &["exec", "true", HOSTILE][..],
            &["exec", "--at-end", "true", HOSTILE],
            &["cp", &here, &format!(":{there}")],
            &["cp", "-c", &file, &format!(":{there}")],
            &["cp", &format!(":{there}"), &back],
            &["cp", "-c", &format!(":{file}"), &back],
            &["ls", &here],
        ] {
            let ended = guest.qga([form, command].concat());
            look(&ended, &format!("{command:?}"));
            assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
        }
        for made in [&there, &back] {
            std::fs::remove_dir_all(made).unwrap();
        }
    }
}

#[test]
fn what_a_newer_agent_says_is_shown_as_it_says_it() {
    let directory = tempfile::tempdir().unwrap();
    let pci = json!({ "domain": 0, "bus": 0, "slot": 0, "function": 0 });
    let place = json!({ "pci-controller": pci, "bus-type": "ufs", "bus": 0, "target": 0, "unit": 0 });
    let disk =
        json!({ "name": "/dev/sda", "partition": false, "address": place, "smart": { "type": "ufs", "wear": 3 } });
    let agent = guest(&directory, "new.sock").answering("guest-get-disks", Answer::Value(json!([disk])));
    assert_eq!(run(&agent.target(), ["disks"]).good(), "/dev/sda\tufs\t-\t\n");
    let told = run(&agent.target(), ["--json", "disks"]).json();
    assert_eq!(told, json!([disk]));
    assert_eq!(run(&agent.target(), ["info"]).code, Some(0));
    assert!(run(&agent.target(), ["metrics"]).good().contains("\"} 1\n"));
    let answer = json!([{ "phys-index": 4, "response": "next-year" }]);
    let agent = agent.answering("guest-set-memory-blocks", Answer::Value(answer));
    run(&agent.target(), ["--yes", "memory", "--offline", "4"]).failed(71, "block 4: next-year");
}

#[test]
fn a_guest_that_says_too_much_is_bounded() {
    // A reply without an end, and one of a hundred thousand users.
    let flood = Scripted::start().answering("guest-get-host-name", Answer::Flood(&[b'x'; 8192]));
    let many: Vec<Value> =
        (0..100_000).map(|number| json!({ "user": format!("{number}"), "login-time": 1.0 })).collect();
    let wordy = Scripted::start().answering("guest-get-users", Answer::Value(json!(many)));
    let both = format!("{},{}", flood.target(), wordy.target());
    let page = run(&both, ["--timeout", "60", "metrics"]).good();
    for target in [flood.target(), wordy.target()] {
        assert!(page.contains(&format!("qga_up{{target=\"{target}\"}} 0\n")), "{page}");
    }
    assert!(page.contains("reason=\"not-understood\""), "{page}");
}

#[test]
fn a_large_reply_costs_little_more_than_itself() {
    let long = "x".repeat(24 << 20);
    let agent = Scripted::start().answering("guest-file-read", Answer::Value(json!({ "buf-b64": long, "count": 1 })));
    let mut child = stage::start(&agent.target(), ["call", "guest-file-read", "--handle", "1"]);
    // The most that it had in memory, as long as it stays: it waits for its reader.
    let mut stdout = child.stdout.take().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut first = [0; 1];
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    let peak = std::fs::read_to_string(status).unwrap();
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
    let kibibytes: u64 = peak.split(' ').next().unwrap().parse().unwrap();
    let reader = std::thread::spawn(move || {
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut stdout, &mut rest).unwrap();
        rest.len()
    });
    assert_eq!(wait(child).code, Some(0));
    assert!(reader.join().unwrap() > 24 << 20);
    assert!(kibibytes < 160 << 10, "{peak} for a reply of 24 MiB");
}
