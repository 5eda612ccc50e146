//! Requests that wait: behind a command that is stuck, behind a reply that nobody takes, behind other clients.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use qga_compliance::{Connection, Failure, Kind, PATIENCE, ReadFailure};
use rustix::process::Signal;
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

/// Pipelined requests are all served in their order, however often and for how long the agent's process stands still
/// meanwhile, as it does in a virtual machine that is paused or moves to another host.
pub fn paused(stage: &Stage) -> Result<(), Failure> {
    const PAUSES: u32 = 300;
    const WRITES: u64 = 400;
    let serving = stage.serve("")?;
    let mut host = serving.connect()?;
    let open = json!({"execute": "guest-file-open", "arguments": {"path": stage.expand("$dir/file"), "mode": "w"}});
    let reply = host.ask(&open.to_string())?;
    let handle = reply.returned().and_then(Value::as_i64).ok_or_else(|| reply.shown())?;
    let sync = json!({"execute": "guest-sync", "arguments": {"id": 77}, "id": WRITES});
    let arguments = json!({"handle": handle, "buf-b64": "QUJD"});
    let mut requests: Vec<String> = (0..WRITES)
        .map(|id| json!({"execute": "guest-file-write", "arguments": arguments, "id": id}).to_string())
        .collect();
    requests.push(format!("{sync}\n"));
    let message = requests.join("\n");
    let is_over = AtomicBool::new(false);
    let mut rounds = 0;
    let pause = || -> Result<(), Failure> {
        for number in 0..PAUSES {
            serving.signal(Signal::STOP)?;
            // From a hiccup to what moving to another host takes.
            thread::sleep(Duration::from_millis(if number % 20 == 0 { 300 } else { u64::from(number % 7) * 4 }));
            serving.signal(Signal::CONT)?;
            thread::sleep(Duration::from_micros(u64::from(number * 37 % 5000)));
        }
        Ok(())
    };
    let paused = thread::scope(|scope| -> Result<(), Failure> {
        let pauses = scope.spawn(|| {
            let paused = pause();
            is_over.store(true, Ordering::Relaxed);
            paused
        });
        while !is_over.load(Ordering::Relaxed) {
            rounds += 1;
            host.send(message.as_bytes())?;
            for id in 0..=WRITES {
                let reply = host.receive().map_err(|failure| format!("round {rounds}, reply {id}: {failure}"))?;
                let is_it = reply.returned().is_some() && reply.json.as_ref().is_some_and(|json| json["id"] == id);
                expect(is_it, || format!("round {rounds}, reply {id}: {}", reply.shown()))?;
            }
        }
        pauses.join().unwrap_or_else(|_| Err("the thread that pauses the agent panicked".to_owned()))
    });
    paused?;
    host.ask(&json!({"execute": "guest-file-close", "arguments": {"handle": handle}}).to_string())?;
    let length = stage.read("file")?.len() as u64;
    expect(length == rounds * WRITES * 3, || format!("{rounds} rounds have left {length} bytes"))
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
