//! Requests that wait: behind a command that is stuck, behind a reply that nobody takes, behind other clients.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use qga_compliance::{Connection, Failure, Kind, PATIENCE, ReadFailure};
use serde_json::{Value, json};

use crate::stage::{Stage, expect, until};
use crate::{A_WHILE, answers, open_zero, pings, resident_kilobytes};

/// Longer than an agent may wait before it takes a client or a command for stuck.
const LATE: Duration = Duration::from_secs(2);

/// A program, `$dir/script`, that cannot be started until the file returned here is dropped: who tries is stuck.
pub fn stuck_script(stage: &Stage) -> Result<File, Failure> {
    stage.write("script", "#!/bin/sh\n")?;
    let told = |error: std::io::Error| format!("no script: {error}");
    fs::set_permissions(stage.path("script"), PermissionsExt::from_mode(0o755)).map_err(told)?;
    let script = File::options().read(true).write(true).open(stage.path("script")).map_err(told)?;
    // A process that another test is just starting may have the file open until it executes its program.
    until("no lease", || Ok(qga_sys::lease::hold_write_lease(&script).ok()))?;
    Ok(script)
}

fn execution_of_script(stage: &Stage, id: &str) -> Value {
    json!({"execute": "guest-exec", "arguments": {"path": stage.expand("$dir/script")}, "id": id})
}

/// Requests that were sent before the client left are done, although the first of them was stuck then.
pub fn done_without_client(stage: &Stage) -> Result<(), Failure> {
    let script = stuck_script(stage)?;
    let serving = stage.serve("")?;
    let mut host = serving.connect()?;
    let mark = stage.expand("$dir/mark");
    let second = json!({"execute": "guest-exec", "arguments": {"path": "touch", "arg": [mark]}});
    host.send(format!("{}\n{second}\n", execution_of_script(stage, "stuck")).as_bytes())?;
    thread::sleep(A_WHILE);
    drop(host);
    // The agent is to see that the client is gone while the command is still stuck.
    thread::sleep(LATE);
    drop(script);
    until("the second request is not done", || Ok(stage.path("mark").exists().then_some(())))
}

/// Thousands of requests whose replies are taken late are all served.
pub fn read_late(stage: &Stage) -> Result<(), Failure> {
    const COUNT: usize = 3000;
    let serving = stage.serve("")?;
    let mut host = serving.connect()?;
    let handle = open_zero(&mut host)?;
    // With this id the requests are more than an agent keeps behind a command that is stuck.
    let id = "x".repeat(400);
    let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 4096}, "id": id});
    host.send(format!("{request}\n").repeat(COUNT).as_bytes())?;
    thread::sleep(LATE);
    for number in 0..COUNT {
        let reply = host.receive().map_err(|failure| format!("reply {number}: {failure}"))?;
        let count = reply.returned().map(|data| &data["count"]);
        expect(count == Some(&json!(4096)), || format!("reply {number}: {}", reply.shown()))?;
    }
    pings(&mut host)
}

/// A reply that the client is slow to take is whole, although a synchronisation is behind it.
pub fn not_cut(stage: &Stage) -> Result<(), Failure> {
    const COUNT: usize = 4 << 20;
    let serving = stage.serve("")?;
    let mut host = serving.connect()?;
    let handle = open_zero(&mut host)?;
    let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": COUNT}});
    let sync = r#"{"execute":"guest-sync","arguments":{"id":5}}"#;
    host.send(format!("{request}\n{sync}\n").as_bytes())?;
    thread::sleep(LATE);
    let data = host.receive()?;
    let (count, text) = data.returned().map(|data| (&data["count"], &data["buf-b64"])).unwrap_or_default();
    let is_whole = count == &json!(COUNT) && text.as_str().is_some_and(|text| text.len() == COUNT.div_ceil(3) * 4);
    expect(is_whole, || data.shown())?;
    let reply = host.receive()?;
    expect(reply.returned() == Some(&json!(5)), || reply.shown())?;
    pings(&mut host)
}

/// Sends more than an agent keeps while a command is stuck, and tells which requests were served in the end. The replies
/// have to come in the order of the requests and with their ids, whatever they say.
pub fn served_behind_stuck(stage: &Stage, is_read_on: bool) -> Result<Vec<bool>, Failure> {
    let script = stuck_script(stage)?;
    let serving = stage.serve("")?;
    let mut host = serving.connect()?;
    let large = "x".repeat(900_000);
    let mut ids = vec![json!("stuck")];
    let mut message = execution_of_script(stage, "stuck").to_string();
    for id in [json!(["first", large]), json!(["second", large]), json!("third")] {
        message += "\n";
        message += &json!({"execute": "guest-ping", "id": id}).to_string();
        ids.push(id);
    }
    // More than the socket takes by itself: what comes behind it can only be sent when all requests were looked at.
    message += &" ".repeat(1 << 20);
    host.send(message.as_bytes())?;
    if is_read_on {
        host.send(b"\n")?;
    } else {
        thread::sleep(A_WHILE);
    }
    drop(script);
    let mut served = Vec::new();
    for id in ids {
        let reply = host.receive()?;
        expect(reply.json.as_ref().and_then(|json| json.get("id")) == Some(&id), || reply.shown())?;
        served.push(reply.returned().is_some());
    }
    pings(&mut host)?;
    Ok(served)
}

/// Starts programs that do not read their 30 MiB of input until one is refused, and tells by which words.
pub fn refused_input(stage: &Stage, programs: usize) -> Result<Option<String>, Failure> {
    let serving = stage.serve("")?;
    let mut host = serving.connect()?;
    let input = "QUFB".repeat(10 << 20);
    let arguments = json!({"path": "sleep", "arg": ["60"], "input-data": input});
    let request = json!({"execute": "guest-exec", "arguments": arguments}).to_string();
    for _ in 0..programs {
        let reply = host.ask(&request)?;
        let memory = resident_kilobytes(serving.id())?;
        // The original has no limit that could be looked for.
        expect(stage.kind == Kind::Original || memory < 300 << 10, || format!("{memory} kB are resident"))?;
        if let Some(text) = reply.error_text() {
            pings(&mut host)?;
            return Ok(Some(text.to_owned()));
        }
    }
    Ok(None)
}

/// With one client that waits for a reply and others that are idle, connects one more and tells whether it is served. The
/// one that waits gets its reply in any case.
pub fn one_client_more(stage: &Stage, idle: usize, expected: bool) -> Result<bool, Failure> {
    let script = stuck_script(stage)?;
    let serving = stage.serve("")?;
    let mut waiting = serving.connect()?;
    waiting.send(format!("{}\n", execution_of_script(stage, "waiting")).as_bytes())?;
    thread::sleep(A_WHILE);
    let mut idle = (0..idle).map(|_| serving.connect()).collect::<Result<Vec<_>, _>>()?;
    let mut further = stage.connect_to("socket")?;
    let answered = answers(&mut further, expected)?;
    let still_there =
        |host: &mut Connection| matches!(host.read_line(Duration::from_millis(1)), Err(ReadFailure::TimedOut(_)));
    let gone = idle.iter_mut().map(still_there).filter(|still_there| !still_there).count();
    drop(script);
    let reply = waiting.read_line(PATIENCE).map_err(|failure| format!("the client that waits: {failure}"))?;
    let reply = String::from_utf8_lossy(&reply);
    expect(reply.contains("\"waiting\"") && reply.contains("\"pid\""), || reply.to_string())?;
    expect((gone > 0) == answered, || format!("{gone} idle clients lost their place"))?;
    drop(waiting);
    if !answered {
        further.receive()?;
    }
    Ok(answered)
}
