//! A long mixed load: what an agent holds afterwards must be what it held before.

use anyhow::{Result, bail};

use super::measure::Subject;
use super::process::{Holdings, holdings};
use super::table::{Row, Target, Unit};
use super::{Effort, Programs};

/// Growth of resident memory that is still called flat: a few pages of an allocator that came to rest.
const FLAT_BYTES: f64 = 256.0 * 1024.0;

/// What is asked in turn, so that a whole turn leaves nothing open; `HANDLE` and `PATH` are filled in.
const REQUESTS: &[&str] = &[
    r#"{"execute":"guest-ping"}"#,
    r#"{"execute":"guest-sync","arguments":{"id":123456789012}}"#,
    r#"{"execute":"guest-file-open","arguments":{"path":"PATH","mode":"r+"}}"#,
    r#"{"execute":"guest-file-read","arguments":{"handle":HANDLE,"count":20000}}"#,
    r#"{"execute":"guest-ping","id":{"nested":[1,2,{"deep":"text"}]}}"#,
    r#"{"execute":"guest-file-seek","arguments":{"handle":HANDLE,"offset":0,"whence":"set"}}"#,
    r#"{"execute":"guest-file-write","arguments":{"handle":HANDLE,"buf-b64":"aGVsbG8gd29ybGQK"}}"#,
    r#"{"execute":"guest-file-flush","arguments":{"handle":HANDLE}}"#,
    r#"{"execute":"guest-file-close","arguments":{"handle":HANDLE}}"#,
    r#"{"execute":"guest-info"}"#,
    r#"{"execute":"guest-nope"}"#,
    r#"{"execute":"guest-sync","arguments":{"id":"no number"}}"#,
    r#"{"execute" "guest-ping"}"#,
    r#"{"execute":"guest-file-read","arguments":{"handle":1}}"#,
    r#"{"execute":"guest-exec","arguments":{"path":"/nonexistent"}}"#,
    r#"{"execute":"guest-ping"}"#,
];

/// Every so many requests a program is run.
const PROGRAM_EVERY: u32 = 100;

/// The load on both agents.
pub fn load(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    let original = growth(&mut Subject::start(&programs.original)?, effort.mixed_requests)?;
    let ours = growth(&mut Subject::start(&programs.ours)?, effort.mixed_requests)?;
    let requests = effort.mixed_requests;
    let row = |what: &str, unit, value: fn(&Holdings) -> f64, target| Row {
        name: format!("{requests} requests: {what}"),
        unit,
        original: Some(value(&original)),
        ours: Some(value(&ours)),
        target,
    };
    Ok(vec![
        row("more memory", Unit::Bytes, |held| held.resident.max(0.0), Target::AtMost(FLAT_BYTES)),
        row("more threads", Unit::Count, |held| held.threads.max(0.0), Target::AtMost(0.0)),
        row("more descriptors", Unit::Count, |held| held.descriptors.max(0.0), Target::AtMost(0.0)),
    ])
}

/// What the agent holds more after the load than after a first part of it that warms it up.
fn growth(subject: &mut Subject, requests: u32) -> Result<Holdings> {
    let turns = requests / REQUESTS.len() as u32;
    let requests = turns * REQUESTS.len() as u32;
    run(subject, turns / 10 * REQUESTS.len() as u32)?;
    let before = holdings(subject.agent.pid())?;
    run(subject, requests)?;
    let after = holdings(subject.agent.pid())?;
    Ok(Holdings {
        resident: after.resident - before.resident,
        peak: after.peak - before.peak,
        threads: after.threads - before.threads,
        descriptors: after.descriptors - before.descriptors,
    })
}

fn run(subject: &mut Subject, requests: u32) -> Result<()> {
    let path = subject.agent.folder().join("mixed").display().to_string();
    std::fs::write(&path, vec![b'x'; 10_000])?;
    let mut handle = String::new();
    for number in 0..requests {
        if number % PROGRAM_EVERY == 0 {
            subject.connection.run("/bin/echo", &["hello"], Some(b"input"))?;
        }
        let template = REQUESTS[number as usize % REQUESTS.len()];
        let request = template.replace("HANDLE", &handle).replace("PATH", &path);
        subject.connection.send_line("a mixed request", request.as_bytes())?;
        let reply = subject.connection.receive_line("a mixed request")?;
        if template.contains("guest-file-open") {
            let number = reply.strip_prefix(b"{\"return\": ").and_then(|rest| rest.strip_suffix(b"}"));
            match number {
                Some(number) => handle = String::from_utf8_lossy(number).into_owned(),
                None => bail!("guest-file-open answered {}", String::from_utf8_lossy(reply)),
            }
        }
    }
    Ok(())
}
