//! The weak points of the original that cost memory, time or the agent itself, and the table of all of them.
//!
//! `docs/weak-points.md` names for each weak point the cases that show it; those that other families show anyway are
//! there. Nothing here depends on how fast the machine is: processor time is compared with a part of the time waited.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "transports/line.rs"]
mod line;
#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use qga_compliance::conversation::parse;
use qga_compliance::{Connection, Failure, deviation};
use rustix::process::Signal;
use serde_json::{Value, json};

use self::line::Line;
use self::stage::{Cases, expect, expect_code, until};

/// What a test waits in order to see what an agent does when it has nothing to do.
const A_SECOND: Duration = Duration::from_secs(1);

fn integer(host: &mut Connection, request: &Value, member: &str) -> Result<i64, Failure> {
    let reply = host.ask(&request.to_string())?;
    let value = reply.returned().map(|value| if member.is_empty() { value } else { &value[member] });
    value.and_then(Value::as_i64).ok_or_else(|| reply.shown())
}

fn open(host: &mut Connection, path: &str, mode: &str) -> Result<i64, Failure> {
    integer(host, &json!({"execute": "guest-file-open", "arguments": {"path": path, "mode": mode}}), "")
}

/// A number of `/proc/ID/status`: kilobytes or a count.
fn figure(id: u32, name: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).map_err(|error| format!("process {id}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).ok_or_else(|| status.clone())
}

/// Whether a process is as busy as expected while it has nothing to do.
fn expect_busy(id: u32, expected: bool) -> Result<(), Failure> {
    let ticks = || -> Result<u64, Failure> {
        let fields =
            fs::read_to_string(format!("/proc/{id}/stat")).map_err(|error| format!("process {id}: {error}"))?;
        let (_, rest) = fields.rsplit_once(") ").ok_or("no fields")?;
        Ok(rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum())
    };
    // What it had to do before is to be over.
    thread::sleep(A_SECOND / 4);
    let before = ticks()?;
    // A tick is a hundredth of a second.
    if expected {
        // On a crowded machine even a busy process may have to wait for its part.
        return until("it is not busy", || Ok((ticks()? - before >= 20).then_some(())));
    }
    thread::sleep(A_SECOND);
    let used = ticks()? - before;
    expect(used < 20, || format!("{used} hundredths of a second were used in about one"))
}

#[test]
fn time() {
    let mut cases = Cases::new("weak points: time");
    cases.case("input that a program does not read costs no time", |stage| {
        let choice = deviation("input that a program does not read costs no time");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let input = "QUFB".repeat(100_000);
        let request = json!({"execute": "guest-exec",
            "arguments": {"path": "sleep", "arg": ["0.1"], "input-data": input}});
        let pid = integer(&mut host, &request, "pid")?;
        let query = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
        until("the program does not end", || {
            let reply = host.ask(&query.to_string())?;
            Ok((reply.returned().map(|status| &status["exited"]) == Some(&json!(true))).then_some(()))
        })?;
        expect_busy(serving.id(), choice.pick(stage.kind, true, false))
    });
    cases.case("a client that does not read costs no time", |stage| {
        let choice = deviation("a client that does not read costs no time");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let handle = open(&mut host, "/dev/zero", "r")?;
        let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 8 << 20}});
        host.send(format!("{request}\n").as_bytes())?;
        expect_busy(serving.id(), choice.pick(stage.kind, true, false))
    });
    cases.case("a client that does not read cannot keep the agent from ending", |stage| {
        let choice = deviation("a client that does not read cannot keep the agent from ending");
        let mut serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let handle = open(&mut host, "/dev/zero", "r")?;
        let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 8 << 20}});
        host.send(format!("{request}\n").as_bytes())?;
        thread::sleep(Duration::from_millis(300));
        if choice.pick(stage.kind, false, true) {
            return expect_code(serving.end_by(Signal::TERM)?, 0);
        }
        serving.signal(Signal::TERM)?;
        thread::sleep(A_SECOND);
        expect(serving.ended().is_none(), || "it has ended".to_owned())
    });
    cases.case("an absent host wakes nobody ten times a second", |stage| {
        let choice = deviation("an absent host wakes nobody ten times a second");
        let serving = stage.start("exec $agent -p /dev/null -t $dir")?;
        thread::sleep(A_SECOND);
        let switches = || -> Result<u64, Failure> {
            let tasks = fs::read_dir(format!("/proc/{}/task", serving.id())).map_err(|error| error.to_string())?;
            let ids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok());
            ids.map(|id| figure(id, "voluntary_ctxt_switches")).sum()
        };
        let before = switches()?;
        if choice.pick(stage.kind, true, false) {
            return until("it sleeps", || Ok((switches()? - before >= 10).then_some(())));
        }
        thread::sleep(2 * A_SECOND);
        let count = switches()? - before;
        expect(count < 10, || format!("{count} times in about two seconds"))
    });
    cases.finish();
}

#[test]
fn memory() {
    let mut cases = Cases::new("weak points: memory");
    cases.case("keys that are there twice cost no memory", |stage| {
        let choice = deviation("keys that are there twice cost no memory");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let request = format!(r#"{{"execute":"guest-ping","id":1,"id":"{}"}}"#, "x".repeat(1 << 20));
        for _ in 0..5 {
            host.ask(&request)?;
        }
        let before = figure(serving.id(), "VmRSS")?;
        for _ in 0..50 {
            let reply = host.ask(&request)?;
            expect(reply.error_text().is_some_and(|text| text.contains("duplicate key")), || reply.shown())?;
        }
        let growth = figure(serving.id(), "VmRSS")?.saturating_sub(before);
        let grew = growth > 20 << 10;
        expect(grew == choice.pick(stage.kind, true, false), || format!("{growth} kB more"))
    });
    cases.case("reading 48 MiB costs a part of it", |stage| {
        let choice = deviation("reading 48 MiB costs a part of it");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let handle = open(&mut host, "/dev/zero", "r")?;
        let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 48 << 20}});
        let reply = host.ask(&request.to_string())?;
        expect(reply.line.len() > 64 << 20, || reply.shown())?;
        let peak = figure(serving.id(), "VmHWM")?;
        let is_small = peak < 16 << 10;
        expect(is_small == choice.pick(stage.kind, false, true), || format!("{peak} kB at the peak"))
    });
    cases.case("memory for a large request is given back", |stage| {
        let choice = deviation("memory for a large request is given back");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let request = format!(r#"{{"execute":"guest-ping","id":"{}"}}"#, "x".repeat(40 << 20));
        let reply = host.ask(&request)?;
        expect(reply.returned().is_some(), || reply.shown())?;
        host.resynchronise()?;
        let left = || figure(serving.id(), "VmRSS");
        if choice.pick(stage.kind, false, true) {
            return until("the memory is kept", || Ok((left()? < 24 << 10).then_some(())));
        }
        thread::sleep(Duration::from_millis(300));
        expect(left()? > 24 << 10, || "the memory is given back".to_owned())
    });
    cases.case("a million tokens cost a few times their bytes", |stage| {
        let choice = deviation("a million tokens cost a few times their bytes");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let list = "1,".repeat(1_000_000) + "1";
        let reply = host.ask(&format!(r#"{{"execute":"guest-ping","arguments":{{"x":[{list}]}}}}"#))?;
        expect(reply.error_text().is_some_and(|text| text.contains("'x' is unexpected")), || reply.shown())?;
        let peak = figure(serving.id(), "VmHWM")?;
        let is_small = peak < 32 << 10;
        expect(is_small == choice.pick(stage.kind, false, true), || format!("{peak} kB at the peak"))
    });
    cases.case("results that nobody fetches are limited in number", |stage| {
        let choice = deviation("results that nobody fetches are limited in number");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let mut refusal = None;
        for _ in 0..700 {
            let reply = host.ask(r#"{"execute":"guest-exec","arguments":{"path":"/bin/true"}}"#)?;
            if let Some(text) = reply.error_text() {
                refusal = Some(text.to_owned());
                break;
            }
        }
        let limited = refusal.as_ref().is_some_and(|text| text.contains("guest-exec-status"));
        expect(limited == choice.pick(stage.kind, false, true), || format!("{refusal:?}"))
    });
    cases.case("output that nobody fetches is limited in size", |stage| {
        let choice = deviation("output that nobody fetches is limited in size");
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let mut refusal = None;
        for count in 0..14 {
            let line = stage.expand(&format!("head -c 16777216 /dev/zero; exec touch $dir/done{count}"));
            let request = json!({"execute": "guest-exec",
                "arguments": {"path": "/bin/sh", "arg": ["-c", line], "capture-output": true}});
            let reply = host.ask(&request.to_string())?;
            if let Some(text) = reply.error_text() {
                refusal = Some(text.to_owned());
                break;
            }
            until("the program does not end", || Ok(stage.path(&format!("done{count}")).exists().then_some(())))?;
        }
        let limited = refusal.as_ref().is_some_and(|text| text.contains("guest-exec-status"));
        expect(limited == choice.pick(stage.kind, false, true), || format!("{refusal:?}"))
    });
    cases.finish();
}

#[test]
fn survival() {
    let mut cases = Cases::new("weak points: survival");
    cases.case("a handle whose closing failed is gone", |stage| {
        let choice = deviation("a handle whose closing failed is gone");
        let mut serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let handle = open(&mut host, "/dev/full", "w")?;
        let close = json!({"execute": "guest-file-close", "arguments": {"handle": handle}}).to_string();
        host.ask(
            &json!({"execute": "guest-file-write", "arguments": {"handle": handle, "buf-b64": "QUJD"}}).to_string(),
        )?;
        host.ask(&close)?;
        let second = host.ask(&close);
        if choice.pick(stage.kind, false, true) {
            let reply = second?;
            let text = format!("handle '{handle}' has not been found");
            return expect(reply.error_text() == Some(&text), || reply.shown());
        }
        let status = serving.wait()?;
        expect(status.signal().is_some(), || format!("{status}"))
    });
    cases.case("a marker of a freeze does not keep the agent from ending", |stage| {
        let choice = deviation("a marker of a freeze does not keep the agent from ending");
        stage.write("qga.state.isfrozen", "")?;
        let mut serving = stage.serve("")?;
        drop(serving.connect()?);
        if choice.pick(stage.kind, false, true) {
            return expect_code(serving.end_by(Signal::TERM)?, 0);
        }
        serving.signal(Signal::TERM)?;
        thread::sleep(Duration::from_millis(300));
        expect(serving.ended().is_none(), || "it has ended".to_owned())
    });
    cases.case("a lost channel is told without being asked for", |stage| {
        let choice = deviation("a lost channel is told without being asked for");
        let line = Line::open(stage, "tty")?;
        let serving = stage.start("exec $agent -m isa-serial -p $dir/tty -t $dir")?;
        line.wait_until_raw()?;
        drop(line);
        if choice.pick(stage.kind, false, true) {
            return until("nothing is said", || Ok(serving.said().contains("is lost").then_some(())));
        }
        thread::sleep(Duration::from_millis(300));
        expect(serving.said().is_empty(), || serving.said())
    });
    cases.case("a refused command is in the log", |stage| {
        let choice = deviation("a refused command is in the log");
        let serving = stage.serve("-v -b guest-exec")?;
        serving.connect()?.ask(r#"{"execute":"guest-exec","arguments":{"path":"true"}}"#)?;
        let is_told = || serving.said().contains("guest-exec refused");
        if choice.pick(stage.kind, false, true) {
            return until("nothing is said", || Ok(is_told().then_some(())));
        }
        expect(!is_told(), || serving.said())
    });
    cases.finish();
}

/// The table of weak points and the cases name each other.
#[test]
fn the_table_is_complete() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = include_str!("../../../docs/weak-points.md");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| W"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let numbers: BTreeSet<String> = rows.iter().map(|row| row[0].to_owned()).collect();
    assert_eq!(numbers, (1..=rows.len()).map(|number| format!("W{number}")).collect(), "numbers are missing or twice");

    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let paths = |directory: &str, ending: &str| -> Vec<_> {
        let entries = fs::read_dir(manifest.join(directory)).unwrap_or_else(|error| panic!("{directory}: {error}"));
        let paths = entries.map(|entry| entry.expect("the directory can be read").path());
        paths.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
    };
    let in_text: BTreeSet<String> =
        paths("cases", "txt").iter().flat_map(|path| parse("", &read(path))).map(|case| case.name).collect();
    let sources: String = paths("tests", "rs").iter().map(|path| read(path)).collect();
    let mut named = BTreeSet::new();
    for row in &rows {
        assert_eq!(row.len(), 4, "{row:?}");
        let cases: Vec<&str> = row[3].split('`').skip(1).step_by(2).collect();
        assert!(!cases.is_empty(), "{} names no case", row[0]);
        for case in cases {
            let exists = in_text.contains(case) || sources.contains(&format!("\"{case}\""));
            assert!(exists, "{}: there is no case `{case}`", row[0]);
            named.insert(case);
        }
    }
    let own = include_str!("weak_points.rs").split("cases.case(\"").skip(1);
    for case in own.filter_map(|rest| rest.split_once('"').map(|(name, _)| name)) {
        assert!(case.contains("(\\") || named.contains(case), "`{case}` is in no row of docs/weak-points.md");
    }
}
