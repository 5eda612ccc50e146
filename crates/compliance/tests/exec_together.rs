//! Several clients who write scripts and run them at the same time.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use qga_compliance::{Agent, Connection, Failure, Kind, PATIENCE, Subject, Tally};
use serde_json::{Value, json};

/// `#!/bin/sh` as base64.
const SCRIPT: &str = "IyEvYmluL3NoCg==";

/// Scripts that each client writes and runs.
const SCRIPTS_EACH: usize = 80;

#[test]
fn exec_together() {
    let subject = Subject::under_test();
    let mut tally = Tally::new("exec together");
    let name = "a script that was written and closed is run while others write and run theirs";
    if subject.program().is_none() {
        tally.skip(name, "it takes several clients at once and a place for scripts");
        tally.finish();
        return;
    }
    tally.case(name, || {
        let agent = Agent::start(&subject, &[])?;
        // The original serves one client at a time.
        let clients = if agent.kind() == Kind::Original { 1 } else { 8 };
        thread::scope(|scope| {
            let agent = &agent;
            let clients: Vec<_> = (0..clients).map(|number| scope.spawn(move || client(agent, number))).collect();
            clients.into_iter().try_for_each(|client| client.join().map_err(|_| "a client panicked".to_owned())?)
        })
    });
    tally.finish();
}

fn client(agent: &Agent, number: usize) -> Result<(), Failure> {
    let mut host = agent.connect()?;
    let path = agent.directory().join(format!("script{number}"));
    fs::write(&path, "")
        .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
        .map_err(|error| format!("no script: {error}"))?;
    let mut refusals = Vec::new();
    for _ in 0..SCRIPTS_EACH {
        let handle = ask(&mut host, "guest-file-open", &json!({"path": path, "mode": "w"}))?;
        ask(&mut host, "guest-file-write", &json!({"handle": handle, "buf-b64": SCRIPT}))?;
        ask(&mut host, "guest-file-close", &json!({"handle": handle}))?;
        match ask(&mut host, "guest-exec", &json!({"path": path})) {
            Ok(started) => wait_for(&mut host, &started["pid"])?,
            Err(refusal) => refusals.push(refusal),
        }
    }
    match refusals.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} of {SCRIPTS_EACH} scripts were refused: {first}", refusals.len())),
    }
}

fn wait_for(host: &mut Connection, pid: &Value) -> Result<(), Failure> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let status = ask(host, "guest-exec-status", &json!({"pid": pid}))?;
        match &status["exitcode"] {
            Value::Null => thread::sleep(Duration::from_millis(1)),
            code if *code == 0 => return Ok(()),
            _ => return Err(format!("the script failed: {status}")),
        }
    }
    Err(format!("program {pid} does not end"))
}

fn ask(host: &mut Connection, command: &str, arguments: &Value) -> Result<Value, Failure> {
    let reply = host.ask(&json!({"execute": command, "arguments": arguments}).to_string())?;
    reply.returned().cloned().ok_or_else(|| reply.shown())
}
