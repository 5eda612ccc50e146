//! Opening files: modes, permissions, refusals; how handles are numbered.

use qga_compliance::{Agent, Connection, Failure, Subject, Tally, check};
use serde_json::Value;

#[test]
fn file_open() {
    check("file_open");
}

#[test]
fn handles() {
    let subject = Subject::under_test();
    let mut tally = Tally::new("handles");
    let names = [
        "the first handle is 1000 and each next one is greater by one",
        "a closed handle's number is not used again",
        "a refused opening uses up no number",
        "a path that is relative starts at the agent's directory",
    ];
    if subject.program().is_none() {
        for name in names {
            tally.skip(name, "the agent has a history");
        }
        tally.finish();
        return;
    }
    tally.case(names[0], || {
        let agent = Agent::start(&subject, &[])?;
        let mut host = agent.connect()?;
        let opened = [open(&mut host)?, open(&mut host)?, open(&mut host)?];
        if opened == [1000, 1001, 1002] { Ok(()) } else { Err(format!("the handles are {opened:?}")) }
    });
    tally.case(names[1], || {
        let agent = Agent::start(&subject, &[])?;
        let mut host = agent.connect()?;
        let first = open(&mut host)?;
        host.ask(&format!(r#"{{"execute":"guest-file-close","arguments":{{"handle":{first}}}}}"#))?;
        let second = open(&mut host)?;
        if second == first + 1 { Ok(()) } else { Err(format!("{first}, then {second}")) }
    });
    tally.case(names[2], || {
        let agent = Agent::start(&subject, &[])?;
        let mut host = agent.connect()?;
        let first = open(&mut host)?;
        host.ask(r#"{"execute":"guest-file-open","arguments":{"path":"/nonexistent"}}"#)?;
        let second = open(&mut host)?;
        if second == first + 1 { Ok(()) } else { Err(format!("{first}, then {second}")) }
    });
    tally.case(names[3], || {
        let agent = Agent::start(&subject, &[])?;
        std::fs::write(agent.directory().join("beside"), "x").map_err(|error| error.to_string())?;
        let reply = agent.connect()?.ask(r#"{"execute":"guest-file-open","arguments":{"path":"beside"}}"#)?;
        if reply.returned().is_some() { Ok(()) } else { Err(reply.shown()) }
    });
    tally.finish();
}

fn open(host: &mut Connection) -> Result<i64, Failure> {
    let reply = host.ask(r#"{"execute":"guest-file-open","arguments":{"path":"/dev/null"}}"#)?;
    reply.returned().and_then(Value::as_i64).ok_or_else(|| reply.shown())
}
