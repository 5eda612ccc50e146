//! Synchronisation, ping and information; what passes from one client to the next.

use std::collections::BTreeSet;
use std::net::Shutdown;

use qga_compliance::{Agent, Failure, Kind, Received, Subject, Tally, check, deviation};
use serde_json::{Value, json};

#[test]
fn session() {
    check("session");
}

#[test]
fn information() {
    let subject = Subject::under_test();
    let mut tally = Tally::new("information");
    let agent = Agent::start(&subject, &[]).expect("the agent starts");
    let reply = agent.connect().and_then(|mut host| host.ask(r#"{"execute":"guest-info"}"#));
    tally.case("guest-info has a version and the commands, nothing else", || {
        let reply = returned(&reply)?;
        let members: BTreeSet<&str> = reply.as_object().ok_or("not an object")?.keys().map(String::as_str).collect();
        same(&members, &BTreeSet::from(["supported_commands", "version"]))
    });
    tally.case("the version is three numbers of a level that hosts know", || {
        let version = returned(&reply)?["version"].as_str().ok_or("not a string")?;
        let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some([major, minor, _]) if (*major, *minor) >= (9, 1) => Ok(()),
            _ => Err(format!("the version is {version}")),
        }
    });
    tally.case("an entry has exactly name, enabled and success-response", || {
        for entry in commands(&reply)? {
            let members: Vec<&str> = entry.as_object().ok_or("not an object")?.keys().map(String::as_str).collect();
            same(&members.iter().copied().collect(), &BTreeSet::from(["enabled", "name", "success-response"]))?;
            if !entry["name"].is_string() || !entry["enabled"].is_boolean() || !entry["success-response"].is_boolean() {
                return Err(format!("a member of a wrong kind: {entry}"));
            }
        }
        Ok(())
    });
    tally.case("each command is there once", || {
        let names: Vec<&str> = commands(&reply)?.iter().filter_map(|entry| entry["name"].as_str()).collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        if distinct.len() == names.len() { Ok(()) } else { Err(format!("{names:?}")) }
    });
    tally.case("the commands of protocol, files and programs are there and enabled", || {
        for name in [
            "guest-sync",
            "guest-sync-delimited",
            "guest-ping",
            "guest-info",
            "guest-file-open",
            "guest-file-close",
            "guest-file-read",
            "guest-file-write",
            "guest-file-seek",
            "guest-file-flush",
            "guest-exec",
            "guest-exec-status",
        ] {
            let expected = json!({"name": name, "enabled": true, "success-response": true});
            if !commands(&reply)?.contains(&expected) {
                return Err(format!("no such entry: {expected}"));
            }
        }
        Ok(())
    });
    tally.case("commands after whose success nothing is said are marked", || {
        let silent = ["guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"];
        for entry in commands(&reply)? {
            let is_silent = entry["name"].as_str().is_some_and(|name| silent.contains(&name));
            if entry["success-response"] == json!(is_silent) {
                return Err(format!("wrongly marked: {entry}"));
            }
        }
        Ok(())
    });
    tally.case("a command of another platform is not there", || {
        let found = commands(&reply)?.iter().any(|entry| entry["name"] == "guest-get-devices");
        if found { Err("guest-get-devices is there".to_owned()) } else { Ok(()) }
    });
    tally.finish();
}

/// Clients that come one after the other.
#[test]
fn clients_in_turn() {
    let subject = Subject::under_test();
    let mut tally = Tally::new("clients in turn");
    let names = [
        "half a message dies with its client",
        "a file stays open when its client leaves",
        "a program's record stays when its client leaves",
        "a client that leaves a reply unread ends nothing",
        "a client that only sends gets all its replies",
        "a client that connects and leaves ends nothing",
        "a client that leaves in the middle of a token ends nothing",
    ];
    if subject.program().is_none() {
        for name in names {
            tally.skip(name, "clients of a serial port are not told apart");
        }
        tally.finish();
        return;
    }
    let fresh = || Agent::start(&subject, &[]);
    tally.case(names[0], || {
        let agent = fresh()?;
        leave_after(&agent, br#"{"execute":"guest-pi"#)?;
        let mut host = agent.connect_as_is()?;
        host.send(b"ng\",\"id\":5}\n")?;
        let completed = host.receive()?.json == Some(json!({"return": {}, "id": 5}));
        let expected = deviation("half a message dies with its client").pick(agent.kind(), true, false);
        if completed == expected { Ok(()) } else { Err(format!("completed by the next client: {completed}")) }
    });
    tally.case(names[1], || {
        let agent = fresh()?;
        let opened = agent.connect()?.ask(r#"{"execute":"guest-file-open","arguments":{"path":"/dev/zero"}}"#)?;
        let handle = opened.returned().and_then(Value::as_i64).ok_or_else(|| opened.shown())?;
        let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 1}});
        let reply = agent.connect()?.ask(&request.to_string())?;
        if reply.returned().is_some() { Ok(()) } else { Err(reply.shown()) }
    });
    tally.case(names[2], || {
        let agent = fresh()?;
        let started = agent.connect()?.ask(r#"{"execute":"guest-exec","arguments":{"path":"/bin/true"}}"#)?;
        let pid = &started.returned().ok_or_else(|| started.shown())?["pid"];
        let request = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
        let reply = agent.connect()?.ask(&request.to_string())?;
        if reply.returned().is_some() { Ok(()) } else { Err(reply.shown()) }
    });
    tally.case(names[3], || {
        let mut agent = fresh()?;
        let mut rude = agent.connect()?;
        rude.send(b"{\"execute\":\"guest-ping\"}\n")?;
        wait_for_bytes(&rude)?;
        drop(rude);
        let alive = agent.connect().and_then(|mut host| host.ask(r#"{"execute":"guest-ping"}"#)).is_ok();
        let choice = deviation("a client that leaves a reply unread ends nothing");
        match (alive, choice.pick(agent.kind(), false, true)) {
            (true, true) | (false, false) => Ok(()),
            (true, false) => Err("the original lives on: then this is no deviation any more".to_owned()),
            (false, true) => Err(format!("the agent is gone: {:?} {}", agent.ended(), agent.output())),
        }
    });
    tally.case(names[4], || {
        let agent = fresh()?;
        let mut host = agent.connect()?;
        host.send(&b"{\"execute\":\"guest-ping\"}\n".repeat(50))?;
        host.stream().shutdown(Shutdown::Write).map_err(|error| error.to_string())?;
        for _ in 0..50 {
            host.receive()?;
        }
        Ok(())
    });
    tally.case(names[5], || {
        let agent = fresh()?;
        for _ in 0..20 {
            drop(agent.connect_as_is()?);
        }
        answers_a_ping(&agent)
    });
    tally.case(names[6], || {
        let agent = fresh()?;
        leave_after(&agent, b"{\"execute\":\"guest-pi\\u00")?;
        answers_a_ping(&agent)
    });
    tally.finish();
}

fn answers_a_ping(agent: &Agent) -> Result<(), Failure> {
    let reply = agent.connect()?.ask(r#"{"execute":"guest-ping"}"#)?;
    if reply.json == Some(json!({"return": {}})) { Ok(()) } else { Err(reply.shown()) }
}

/// Says something and waits until the agent has noticed that nothing follows.
fn leave_after(agent: &Agent, bytes: &[u8]) -> Result<(), Failure> {
    let mut host = agent.connect()?;
    host.send(bytes)?;
    host.stream().shutdown(Shutdown::Write).map_err(|error| error.to_string())?;
    match host.receive() {
        Ok(reply) if agent.kind() == Kind::Original => Err(format!("a reply to half a message: {}", reply.shown())),
        _ => Ok(()),
    }
}

/// Waits until a reply lies in the socket, and leaves it there.
fn wait_for_bytes(host: &qga_compliance::Connection) -> Result<(), Failure> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut waiting = [PollFd::new(host.stream(), PollFlags::IN)];
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    match poll(&mut waiting, Some(&patience)) {
        Ok(0) => Err("no reply in time".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn returned(reply: &Result<Received, Failure>) -> Result<&Value, Failure> {
    let reply = reply.as_ref().map_err(Clone::clone)?;
    reply.returned().ok_or_else(|| reply.shown())
}

fn commands(reply: &Result<Received, Failure>) -> Result<&Vec<Value>, Failure> {
    returned(reply)?["supported_commands"].as_array().ok_or_else(|| "not a list".to_owned())
}

fn same(found: &BTreeSet<&str>, expected: &BTreeSet<&str>) -> Result<(), Failure> {
    if found == expected { Ok(()) } else { Err(format!("expected {expected:?}, found {found:?}")) }
}
