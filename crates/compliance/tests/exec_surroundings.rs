//! What a program finds around it: the environment, and who looks after what it leaves behind.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use std::thread;
use std::time::Duration;

use qga_compliance::{Connection, Failure, Kind, deviation};
use serde_json::{Value, json};

use self::stage::{Cases, SOCKET, Serving, Stage, expect, until};

#[test]
fn environments() {
    let mut cases = Cases::new("environments");
    cases.case("a program has a home where the agent has none", |stage| {
        let choice = deviation("a program has a home where the agent has none");
        let serving = serve(stage, "env -u HOME -u USER -u LOGNAME -u SHELL")?;
        let found =
            run(&mut serving.connect()?, "printf '%s,%s,%s,%s' \"$HOME\" \"$USER\" \"$LOGNAME\" \"${SHELL:+shell}\"")?;
        let ended = stage.run("getent passwd $(id -u)")?;
        let fields: Vec<&str> = ended.output.trim_end().split(':').collect();
        let [name, .., home, _shell] = fields[..] else { return Err(format!("no user: {}", ended.output)) };
        // A shell sets SHELL by itself, but does not pass it on.
        let expected = choice.pick(stage.kind, ",,".to_owned(), format!("{home},{name},{name}"));
        expect(found.0.starts_with(&expected), || format!("{found:?} where {expected} was expected"))
    });
    cases.case("what the agent has of a login stays as it is", |stage| {
        let serving = serve(stage, "env HOME=/elsewhere USER= LOGNAME=somebody SHELL=/bin/none")?;
        let found = run(&mut serving.connect()?, "printf '%s,%s,%s,%s' \"$HOME\" \"$USER\" \"$LOGNAME\" \"$SHELL\"")?;
        expect(found.0 == "/elsewhere,,somebody,/bin/none", || format!("{found:?}"))
    });
    cases.finish();
}

#[test]
fn orphans() {
    let mut cases = Cases::new("orphans");
    if !rustix::process::geteuid().is_root() {
        cases.skip("orphans of an agent that is process 1", "root alone can make a process 1");
        cases.finish();
        return;
    }
    cases.case("orphans of an agent that is process 1 do not stay zombies", |stage| {
        let choice = deviation("orphans of an agent that is process 1 do not stay zombies");
        let serving = serve(stage, FIRST_PROCESS)?;
        let mut host = serving.connect()?;
        // Each of these ends after its parent.
        let orphans = "for number in 1 2 3 4 5; do (sleep 0.05; exit 4) & done; exit 3";
        expect(run(&mut host, orphans)?.1 == 3, || "the parent's own code is lost".to_owned())?;
        let count = "sleep 0.5; cat /proc/[0-9]*/stat | grep -c ') Z 1 '; :";
        if choice.pick(stage.kind, true, false) {
            let found = run(&mut host, count)?.0;
            return expect(found.trim() == "5", || format!("{found} zombies"));
        }
        until("zombies stay", || Ok((run(&mut host, count)?.0.trim() == "0").then_some(())))
    });
    cases.case("an agent that is process 1 tells how each of its programs ended", |stage| {
        let serving = serve(stage, FIRST_PROCESS)?;
        let clients = if stage.kind == Kind::Original { 1 } else { 4 };
        thread::scope(|scope| {
            let serving = &serving;
            let client = move |number: i64| {
                let mut host = serving.connect()?;
                for round in 0..25 {
                    let code = (number * 50 + round) % 256;
                    let found = run(&mut host, &format!("(sleep 0.01; exit 9) & (exit 8) & exit {code}"))?.1;
                    expect(found == code, || format!("{found} where {code} was expected"))?;
                }
                Ok(())
            };
            let clients: Vec<_> = (0..clients).map(|number| scope.spawn(move || client(number))).collect();
            clients.into_iter().try_for_each(|client| client.join().map_err(|_| "a client panicked".to_owned())?)
        })
    });
    cases.finish();
}

/// Makes the agent the first process of a namespace of its own.
const FIRST_PROCESS: &str = "unshare --pid --fork --mount-proc --kill-child";

/// Starts an agent by a program in front of it.
fn serve<'a>(stage: &'a Stage, by: &str) -> Result<Serving<'a>, Failure> {
    let mut serving = stage.start(&format!("exec {by} $agent {SOCKET}"))?;
    serving.wait_until_it_listens("socket")?;
    Ok(serving)
}

/// The output and the exit code of a script.
fn run(host: &mut Connection, script: &str) -> Result<(String, i64), Failure> {
    let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true});
    let pid = ask(host, "guest-exec", &arguments)?["pid"].clone();
    until("the program does not end", || {
        let status = ask(host, "guest-exec-status", &json!({"pid": pid}))?;
        if status["exited"] == false {
            thread::sleep(Duration::from_millis(5));
            return Ok(None);
        }
        let code = status["exitcode"].as_i64().ok_or_else(|| format!("no code: {status}"))?;
        let data = status["out-data"].as_str().unwrap_or_default();
        let output = base64_simd::STANDARD.decode_to_vec(data).map_err(|error| format!("no base64: {error}"))?;
        Ok(Some((String::from_utf8_lossy(&output).into_owned(), code)))
    })
}

fn ask(host: &mut Connection, command: &str, arguments: &Value) -> Result<Value, Failure> {
    let reply = host.ask(&json!({"execute": command, "arguments": arguments}).to_string())?;
    reply.returned().cloned().ok_or_else(|| reply.shown())
}
