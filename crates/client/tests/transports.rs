//! The ways to an agent, each with something at the other end that plays the agent.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use qga_client::{Agent, AnyAgent, Error, Kind, Target, Timeouts};
use serde_json::{Value, json};

const SHORT: Timeouts = Timeouts { connect: Duration::from_millis(200), silence: Duration::from_millis(200) };
const LONG: Timeouts = Timeouts { connect: Duration::from_secs(20), silence: Duration::from_secs(20) };

/// Answers syncs and pings until the other side is gone.
fn play_the_agent(stream: impl Read + Write) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).is_ok_and(|size| size > 0) {
        let text = line.iter().copied().skip_while(|&byte| byte == 0xFF).collect::<Vec<u8>>();
        let request: Value = serde_json::from_slice(&text).expect("a request");
        let is_sync = request["execute"] == "guest-sync-delimited";
        let result = if is_sync { request["arguments"]["id"].clone() } else { json!({}) };
        let mut reply = if is_sync { vec![0xFF] } else { Vec::new() };
        reply.extend(format!("{}\n", json!({ "return": result, "id": request["id"] })).into_bytes());
        if stream.get_mut().write_all(&reply).is_err() {
            return;
        }
        line.clear();
    }
}

fn connect(target: &str, timeouts: Timeouts) -> Result<AnyAgent, Error> {
    Agent::connect(&target.parse().unwrap(), timeouts)
}

fn ping(agent: &mut AnyAgent) {
    assert_eq!(agent.call_raw("guest-ping", Value::Null).unwrap(), json!({}));
}

/// A hypervisor's socket: reads the line that asks for a port, answers it, and is the agent if the answer is OK.
fn hypervisor(path: &Path, answer: &'static str) -> JoinHandle<String> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        let mut byte = [0];
        while !asked.ends_with(b"\n") && stream.read(&mut byte).unwrap() > 0 {
            asked.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        if answer.starts_with("OK") {
            play_the_agent(stream);
        }
        String::from_utf8(asked).unwrap()
    })
}

#[test]
fn a_hypervisors_socket_leads_to_the_port() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.vsock");
    let played = hypervisor(&path, "OK 1073741824\n");
    let mut agent = connect(&format!("hybrid:{}:1024", path.display()), LONG).unwrap();
    ping(&mut agent);
    drop(agent);
    assert_eq!(played.join().unwrap(), "CONNECT 1024\n");
}

#[test]
fn a_hypervisor_that_does_not_connect_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let check = |name: &str, answer, kind, expected: &str| {
        let path = directory.path().join(name);
        let _played = hypervisor(&path, answer);
        let error = connect(&format!("hybrid:{}:1024", path.display()), LONG).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    check("closed", "", Kind::NoAgent, "nobody listens on vsock port 1024");
    check("other", "HTTP/1.1 400\n", Kind::NoManager, "\"HTTP/1.1 400\"");
    check(
        "endless",
        "OKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOK",
        Kind::NoManager,
        "endless",
    );
}

#[test]
fn a_hypervisor_that_says_nothing_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = connect(&format!("hybrid:{}:1024", path.display()), SHORT).unwrap_err();
    assert_eq!(error.kind(), Kind::NoAnswer, "{error}");
}

#[test]
fn a_serial_device_is_raw_and_for_one_client() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let far = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&far).unwrap();
    unlockpt(&far).unwrap();
    let device = ptsname(&far, Vec::new()).unwrap().into_string().unwrap();
    // The far end would be told of the last client's leave by an error.
    let kept_open = fs::File::open(&device).unwrap();
    let played = thread::spawn(move || play_the_agent(fs::File::from(far)));
    let mut agent = connect(&format!("serial:{device}"), LONG).unwrap();
    ping(&mut agent);
    // Line discipline would have changed these.
    let odd = json!({ "x": "\u{3}\u{4}\r\u{11}\u{13}\u{7f}" });
    agent.call_raw("guest-ping", odd).unwrap();
    let other = || connect(&format!("serial:{device}"), SHORT).map(drop);
    assert_eq!(other().unwrap_err().kind(), Kind::Held);
    // What the last one has left behind does not keep the next one out.
    drop(agent);
    ping(&mut connect(&format!("serial:{device}"), LONG).unwrap());
    drop(kept_open);
    played.join().unwrap();
}

#[test]
fn what_cannot_be_opened_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let check = |target: &Target, kind| {
        let error = Agent::connect(target, SHORT).unwrap_err();
        assert_eq!(error.kind(), kind, "{target}: {error}");
        assert!(error.to_string().contains("cannot connect to"), "{error}");
    };
    check(&Target::Unix(directory.path().join("missing")), Kind::NoSuchSocket);
    check(&Target::Serial(directory.path().join("missing")), Kind::NoSuchSocket);
    check(&Target::Hybrid { path: directory.path().join("missing"), port: 1 }, Kind::NoSuchSocket);

    let error = Agent::connect(&Target::Proxmox(999_999_999), SHORT).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSuchSocket, "{error}");
    assert!(error.to_string().contains("qm set 999999999 --agent 1"), "{error}");

    let deserted = directory.path().join("deserted");
    drop(UnixListener::bind(&deserted).unwrap());
    check(&Target::Unix(deserted), Kind::NobodyListens);

    if !rustix::process::geteuid().is_root() {
        let closed: PathBuf = directory.path().join("closed");
        let _listener = UnixListener::bind(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        check(&Target::Unix(closed), Kind::NotPermitted);
    }
}

#[test]
fn an_agent_that_leaves_in_the_middle_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let played = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(&stream);
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).unwrap();
        (&stream).write_all(b"\xff{\"retu").unwrap();
    });
    let error = connect(path.to_str().unwrap(), LONG).unwrap_err();
    assert_eq!(error.kind(), Kind::ConnectionLost, "{error}");
    assert!(error.needs_sync());
    played.join().unwrap();
}
