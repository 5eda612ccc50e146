//! Programs outlive the agent, whatever ends it, and what they leave behind outlives them.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use std::fs;
use std::thread;
use std::time::Duration;

use qga_compliance::{Connection, Failure, Kind, deviation};
use rustix::process::Signal;
use serde_json::{Value, json};

use self::stage::{Cases, Serving, Stage, expect, signal, until};

/// Says something, waits for the file `go`, says something again, and ends.
const SCRIPT: &str = "echo unpacking; echo warned >&2; touch $dir/begun
    until test -e $dir/go; do sleep 0.02; done
    echo configuring; echo failed >&2; touch $dir/done; exit 7";

/// Programs that leave others behind which go on writing: more than the original's limit of descriptors usually allows for
/// whoever keeps three of them for each.
const LEAVERS: usize = 100;
/// Programs whose results are left.
const UNFETCHED: usize = 40;

#[test]
fn survival() {
    let mut cases = Cases::new("survival");
    for (choice, which) in [
        (deviation("a program whose agent is ended runs to its end"), Signal::TERM),
        (deviation("a program whose agent is killed runs to its end"), Signal::KILL),
    ] {
        cases.case(choice.case(), |stage| {
            let (_, _serving) = begin_and_restart(stage, which)?;
            stage.write("go", "")?;
            let done = stage.path("done");
            if choice.pick(stage.kind, true, false) {
                // It dies when it speaks; there is nothing to wait for but its end.
                thread::sleep(Duration::from_secs(1));
                return expect(!done.exists(), || "it has run to its end".to_owned());
            }
            until("it does not run to its end", || Ok(done.exists().then_some(())))
        });
    }
    for (choice, which) in [
        (deviation("a later agent tells how a program is doing whose agent was ended"), Signal::TERM),
        (deviation("a later agent tells how a program is doing whose agent was killed"), Signal::KILL),
    ] {
        cases.case(choice.case(), |stage| {
            let (pid, serving) = begin_and_restart(stage, which)?;
            let mut host = serving.connect()?;
            let status = host.ask(&request("guest-exec-status", &json!({"pid": pid})))?;
            if choice.pick(stage.kind, true, false) {
                let text = status.error_text().unwrap_or_default();
                return expect(text.contains("does not exist"), || status.shown());
            }
            expect(status.returned() == Some(&json!({"exited": false})), || status.shown())?;
            stage.write("go", "")?;
            let expected = json!({
                "exited": true, "exitcode": 7,
                "out-data": base64_simd::STANDARD.encode_to_string("unpacking\nconfiguring\n"),
                "err-data": base64_simd::STANDARD.encode_to_string("warned\nfailed\n"),
            });
            let ended = await_end(&mut host, &pid)?;
            expect(ended == expected, || ended.to_string())?;
            let again = host.ask(&request("guest-exec-status", &json!({"pid": pid})))?;
            expect(again.error_text().is_some_and(|text| text.contains("does not exist")), || again.shown())
        });
    }
    cases.case("a later agent tells by which signal a program ended", |stage| {
        let choice = deviation("a later agent tells by which signal a program ended");
        let (pid, serving) = begin_and_restart(stage, Signal::KILL)?;
        let process = pid.as_u64().and_then(|pid| u32::try_from(pid).ok()).ok_or("no process")?;
        signal(process, Signal::USR1)?;
        let mut host = serving.connect()?;
        if choice.pick(stage.kind, true, false) {
            let status = host.ask(&request("guest-exec-status", &json!({"pid": pid})))?;
            return expect(status.error_text().is_some(), || status.shown());
        }
        let ended = await_end(&mut host, &pid)?;
        expect(ended["signal"] == Signal::USR1.as_raw() && ended["exitcode"].is_null(), || ended.to_string())
    });
    cases.case("a result that nobody has fetched outlives an agent that is ended", |stage| {
        let choice = deviation("a result that nobody has fetched outlives an agent that is ended");
        let mut serving = stage.serve("")?;
        let pid = start(&mut serving.connect()?, "echo early; exit 3")?;
        until("the program does not end", || {
            Ok((!stage::is_alive(pid.as_u64().unwrap_or_default() as u32)).then_some(()))
        })?;
        let serving = restart(stage, &mut serving, Signal::TERM)?;
        let mut host = serving.connect()?;
        if choice.pick(stage.kind, true, false) {
            let status = host.ask(&request("guest-exec-status", &json!({"pid": pid})))?;
            return expect(status.error_text().is_some(), || status.shown());
        }
        let ended = await_end(&mut host, &pid)?;
        expect(ended["exitcode"] == 3 && ended["out-data"] == "ZWFybHkK", || ended.to_string())
    });
    cases.case("a program that nobody reads from after its agent's end does not stand still", |stage| {
        let choice = deviation("a program that nobody reads from after its agent's end does not stand still");
        let mut serving = stage.serve("")?;
        let script = "touch $dir/begun; until test -e $dir/go; do sleep 0.02; done
            head -c 1000000 /dev/zero && touch $dir/done";
        let pid = start(&mut serving.connect()?, &stage.expand(script))?;
        until("the program does not begin", || Ok(stage.path("begun").exists().then_some(())))?;
        let serving = restart(stage, &mut serving, Signal::KILL)?;
        stage.write("go", "")?;
        if choice.pick(stage.kind, true, false) {
            thread::sleep(Duration::from_secs(1));
            return expect(!stage.path("done").exists(), || "it has run to its end".to_owned());
        }
        let ended = await_end(&mut serving.connect()?, &pid)?;
        let length = ended["out-data"].as_str().unwrap_or_default().len();
        let is_whole = ended["out-truncated"].is_null() && length == 1_000_000_usize.div_ceil(3) * 4;
        expect(is_whole && ended["exitcode"] == 0 && stage.path("done").exists(), || format!("{length} of base64"))
    });
    cases.case("processes that programs leave behind go on writing, however many they are", |stage| {
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let script = "(until test -e $dir/go; do echo line || exit; sleep 0.2; done
            echo whole >> $dir/survivors) & exit 0";
        let leavers: Vec<Value> =
            (0..LEAVERS).map(|_| start(&mut host, &stage.expand(script))).collect::<Result<_, _>>()?;
        if stage.kind != Kind::Original {
            // The original tells the end of a program when nobody writes any more.
            for pid in &leavers {
                await_end(&mut host, pid)?;
            }
        }
        thread::sleep(Duration::from_secs(1));
        stage.write("go", "")?;
        until("some have died", || {
            let survivors = stage.read("survivors").unwrap_or_default();
            Ok((survivors.lines().count() == LEAVERS).then_some(()))
        })
    });
    cases.case("results that nobody has fetched hold no descriptors", |stage| {
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let held = || fs::read_dir(format!("/proc/{}/fd", serving.id())).map_or(usize::MAX, Iterator::count);
        let before = held();
        for _ in 0..UNFETCHED {
            start(&mut host, "echo first; sleep 0.1; echo second")?;
        }
        // Ours talks to its keeper by two.
        until("descriptors stay open", || Ok((held() <= before + 4).then_some(())))
    });
    cases.finish();
}

/// Starts the script, ends its agent once the script has begun, and starts another agent in the same place.
fn begin_and_restart(stage: &Stage, which: Signal) -> Result<(Value, Serving<'_>), Failure> {
    let mut serving = stage.serve("")?;
    let pid = start(&mut serving.connect()?, &stage.expand(SCRIPT))?;
    until("the program does not begin", || Ok(stage.path("begun").exists().then_some(())))?;
    // What it has said is with the agent by now, or will never be.
    thread::sleep(Duration::from_millis(200));
    let serving = restart(stage, &mut serving, which)?;
    Ok((pid, serving))
}

fn restart<'a>(stage: &'a Stage, serving: &mut Serving<'_>, which: Signal) -> Result<Serving<'a>, Failure> {
    serving.end_by(which)?;
    // The old socket would be taken for the new agent's.
    fs::remove_file(stage.path("socket")).map_err(|error| format!("no socket: {error}"))?;
    stage.serve("")
}

fn request(command: &str, arguments: &Value) -> String {
    json!({"execute": command, "arguments": arguments}).to_string()
}

/// The process of a script whose output is captured.
fn start(host: &mut Connection, script: &str) -> Result<Value, Failure> {
    let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true});
    let reply = host.ask(&request("guest-exec", &arguments))?;
    reply.returned().map(|started| started["pid"].clone()).ok_or_else(|| reply.shown())
}

/// What is told of a program once it has ended.
fn await_end(host: &mut Connection, pid: &Value) -> Result<Value, Failure> {
    until("the program does not end", || {
        let reply = host.ask(&request("guest-exec-status", &json!({"pid": pid})))?;
        let status = reply.returned().cloned().ok_or_else(|| reply.shown())?;
        Ok((status["exited"] == true).then_some(status))
    })
}
