//! Targets that are none, agents that answer nonsense, outputs that take nothing: a clear message and the right exit
//! code each time.

mod stage;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};
use stage::scripted::{Answer, Scripted};
use stage::{Guest, command, run};

fn place(directory: &tempfile::TempDir, name: &str) -> String {
    directory.path().join(name).display().to_string()
}

#[test]
fn a_target_that_is_none_is_told_why() {
    let directory = tempfile::tempdir().unwrap();
    let target = |name: &str| place(&directory, name);
    run(&target("none"), ["ping"]).failed(66, "No such file or directory");
    run("tcp:host:1", ["ping"]).failed(64, "\"tcp\" is none of unix");
    run(&target("*.sock"), ["ping"]).failed(66, "no agent matches");
    drop(UnixListener::bind(target("left")).unwrap());
    run(&target("left"), ["ping"]).failed(69, "refused");
    let _silent = UnixListener::bind(target("silent")).unwrap();
    run(&target("silent"), ["--timeout", "200ms", "ping"]).failed(75, "silent");
}

#[test]
fn an_agent_that_makes_no_sense_is_told() {
    let check = |answer: Answer, code: i32, says: &str| {
        // Long where something comes, whatever the machine is busy with.
        let limit = if says.starts_with("silent") { "500ms" } else { "20" };
        let agent = Scripted::start().answering("guest-get-host-name", answer);
        run(&agent.target(), ["--timeout", limit, "call", "guest-get-host-name"]).failed(code, says);
    };
    check(Answer::Bytes(b"hello\n"), 76, "not understood");
    check(Answer::Bytes(b"{\"error\": \n"), 76, "not understood");
    check(Answer::Bytes(b"{\"return\": {\"host-"), 75, "silent for 0.5 s");
    check(Answer::Silence, 75, "silent for 0.5 s");
    check(Answer::Close, 75, "closed the connection");
    check(Answer::Error("the disk is on fire"), 71, "the disk is on fire");
    // The reply to somebody else's request.
    check(Answer::Bytes(b"{\"return\": 1, \"id\": 99}\n"), 75, "silent for 0.5 s");
}

#[test]
fn a_failure_is_json_where_json_is_asked_for() {
    let ended = run("/nonexistent", ["--json", "ping"]);
    let error: Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "no-such-socket", "{ended:?}");
    assert_eq!(error["error"]["exit-code"], 66);
    assert_eq!(ended.code, Some(66));
    let agent = Scripted::start();
    let ended = run(&format!("/nonexistent,{}", agent.target()), ["--json", "ping"]);
    let lines: Vec<Value> = ended.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{ended:?}");
    let of = |target: &str| lines.iter().find(|line| line["target"] == target).unwrap();
    assert_eq!(of("/nonexistent")["error"]["kind"], "no-such-socket");
    assert_eq!(of(&agent.target())["ok"], json!(true));
    assert_eq!(ended.code, Some(66));
}

#[test]
fn an_agents_words_do_not_steer_the_terminal() {
    let agent = Scripted::start().answering("guest-ping", Answer::Error("\x1b]0;x\x07 and \u{9b}2J"));
    let ended = run(&agent.target(), ["ping"]);
    assert!(!ended.stderr.contains(['\x1b', '\x07', '\u{9b}']), "{ended:?}");
    ended.failed(71, r"\x1b]0;x\x07 and \x9b2J");
    let ended = run(&agent.target(), ["raw", r#"{"execute": "guest-ping"}"#]);
    assert!(
        !ended.text().contains('\u{9b}') && ended.json()["error"]["desc"] == "\x1b]0;x\x07 and \u{9b}2J",
        "{ended:?}"
    );
}

#[test]
fn a_guest_that_dawdles_does_not_hold_up_the_measurements() {
    let Some(good) = Guest::start() else { return };
    let slow = Scripted::start().answering("guest-get-host-name", Answer::Drip);
    let both = format!("{},{}", slow.target(), good.target());
    let text = run(&both, ["--timeout", "5", "metrics"]).good();
    for (target, up) in [(slow.target(), 0), (good.target(), 1)] {
        let expected = format!("qga_up{{target=\"{target}\"}} {up}\n");
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn the_command_line_is_checked_before_anything_is_sent() {
    let agent = Scripted::start();
    let target = agent.target();
    run(&target, ["nothing"]).failed(64, "unrecognized");
    run(&target, ["cp", "a", "b"]).failed(64, "neither path is in the guest");
    run(&target, ["cp", "a", "b", ":/c"]).failed(64, "is no directory of the guest");
    run(&target, ["raw", "nonsense"]).failed(64, "no JSON");
    run(&target, ["call", "guest-sync", "--id", "x"]).failed(64, "no whole number");
    run(&target, ["--json", "top"]).failed(64, "has no JSON");
    run(&target, ["exec", "--env", "QGA_TEST_NOT_SET", "true"]).failed(64, "NAME=VALUE");
}

#[test]
fn an_output_that_is_full_or_gone_is_no_success() {
    let Some(guest) = Guest::start() else { return };
    std::fs::write(guest.path("big"), vec![b'x'; 4 << 20]).unwrap();
    let (target, big) = (guest.target(), guest.text("big"));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command().args(["-t", &target, "cat", &big]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(73), "{}", String::from_utf8_lossy(&output.stderr));

    let mut child =
        command().args(["-t", &target, "cat", &big]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut start = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    let ended = stage::wait(child);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(141), ""));
    assert_eq!(guest.qga(["ping"]).code, Some(0));
}

#[test]
fn what_is_blocked_or_missing_in_the_guest_is_told_apart() {
    let Some(guest) = Guest::start_with(&["--block-rpcs=guest-get-host-name"]) else { return };
    guest.qga(["call", "guest-get-host-name"]).failed(70, "disabled");
    guest.qga(["cat", "/nonexistent/file"]).failed(66, "No such file or directory");
    guest.qga(["ls", "/nonexistent"]).failed(66, "No such file or directory");
    let missing = guest.text("missing");
    guest.qga(["cp", ":/nonexistent/file", &missing]).failed(66, "No such file or directory");
    assert_eq!(std::fs::read_dir(guest.directory.path()).unwrap().count(), 0);
}

#[test]
fn what_is_no_socket_is_called_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = place(&directory, "file");
    std::fs::write(&file, "").unwrap();
    run(&file, ["ping"]).failed(64, "it is a file, and a socket is wanted");
    run(&directory.path().display().to_string(), ["ping"]).failed(64, "it is a directory");
    run("/dev/null", ["ping"]).failed(64, "it is a device");
    run(&format!("hybrid:{file}:1"), ["ping"]).failed(64, "it is a file");
    run(&format!("serial:{file}"), ["ping"]).failed(64, "no serial device");
}

#[test]
fn the_doctor_says_well_only_of_what_it_has_seen() {
    let agent = Scripted::start();
    agent.set_frozen(true);
    let off = json!({ "version": "10.0.2", "supported_commands": [{ "name": "guest-exec", "enabled": false, "success-response": true }] });
    let agent = agent.answering("guest-info", Answer::Value(off));
    let ended = run(&agent.target(), ["doctor"]);
    assert!(ended.text().contains("file systems are frozen") && !ended.text().contains("disabled"), "{ended:?}");
    assert_eq!(ended.code, Some(70));

    let silent = Scripted::start();
    let ended = run(&silent.target(), ["doctor"]);
    assert!(!ended.text().contains("has what the commands"), "{ended:?}");

    let nowhere = command()
        .args(["-t", "libvirt:web", "--timeout", "2", "doctor"])
        .env("QGA_VIRSH", "/nonexistent/virsh")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&nowhere.stdout).into_owned();
    assert!(!said.contains("ok ") && said.contains("virsh cannot be started"), "{said}");
    assert_ne!(nowhere.status.code(), Some(0));
}

#[test]
fn every_line_of_a_reply_has_its_guests_name() {
    let agents = [Scripted::start(), Scripted::start()]
        .map(|agent| agent.answering("guest-get-host-name", Answer::Value(json!({ "host-name": "web" }))));
    let both = format!("{},{}", agents[0].target(), agents[1].target());
    let text = run(&both, ["call", "guest-get-host-name"]).good();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.lines().all(|line| line.contains(" | ")), "{text}");
}
