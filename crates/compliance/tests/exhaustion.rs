//! An agent that may open no more files says so, and goes on when it may again.

use qga_compliance::{Agent, Connection, Failure, Subject, Tally, deviation};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

const DESCRIPTOR_LIMIT: u64 = 64;

#[test]
fn exhaustion() {
    let subject = Subject::under_test();
    let mut tally = Tally::new("exhaustion");
    let names = [
        "opening file after file ends in an error",
        "without descriptors a ping is answered",
        "without descriptors a program is refused",
        "when files are closed others can be opened",
        "when files are closed programs can be started",
    ];
    if subject.program().is_none() {
        for name in names {
            tally.skip(name, "the limits of an agent that runs already are not ours to set");
        }
        tally.finish();
        return;
    }
    let agent = Agent::start(&subject, &[]).expect("the agent starts");
    let mut host = agent.connect().expect("the agent answers");
    limit_descriptors(&agent).expect("the agent's limit can be set");
    let mut handles = Vec::new();
    tally.case(names[0], || {
        let choice = deviation("opening file after file ends in an error");
        let expected = choice.pick(agent.kind(), "failed to commit persistent state to disk", "Too many open files");
        for _ in 0..=DESCRIPTOR_LIMIT {
            match open(&mut host)? {
                Ok(handle) => handles.push(handle),
                Err(text) if text.contains(expected) => return Ok(()),
                Err(text) => return Err(text),
            }
        }
        Err("no end of it".to_owned())
    });
    tally.case(names[1], || {
        let reply = host.ask(r#"{"execute":"guest-ping"}"#)?;
        if reply.returned().is_some() { Ok(()) } else { Err(reply.shown()) }
    });
    tally.case(names[2], || {
        let request = r#"{"execute":"guest-exec","arguments":{"path":"/bin/true","capture-output":true}}"#;
        let reply = host.ask(request)?;
        match reply.error_text() {
            Some(text) if text.contains("Too many open files") => Ok(()),
            _ => Err(reply.shown()),
        }
    });
    tally.case(names[3], || {
        for handle in handles.drain(..) {
            let request = json!({"execute": "guest-file-close", "arguments": {"handle": handle}});
            let reply = host.ask(&request.to_string())?;
            if reply.returned().is_none() {
                return Err(reply.shown());
            }
        }
        open(&mut host)?.map(drop)
    });
    tally.case(names[4], || {
        let reply = host.ask(r#"{"execute":"guest-exec","arguments":{"path":"/bin/true","capture-output":true}}"#)?;
        if reply.returned().is_some() { Ok(()) } else { Err(reply.shown()) }
    });
    tally.finish();
}

/// A handle, or the text of the refusal.
fn open(host: &mut Connection) -> Result<Result<i64, String>, Failure> {
    let reply = host.ask(r#"{"execute":"guest-file-open","arguments":{"path":"/dev/null"}}"#)?;
    let handle = reply.returned().and_then(Value::as_i64);
    Ok(handle.ok_or_else(|| reply.error_text().unwrap_or_default().to_owned()))
}

fn limit_descriptors(agent: &Agent) -> Result<(), Failure> {
    let process = agent.process_id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(DESCRIPTOR_LIMIT), maximum: Some(DESCRIPTOR_LIMIT) };
    prlimit(process, Resource::Nofile, limit).map(drop).map_err(|error| error.to_string())
}
