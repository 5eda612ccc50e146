//! Start and end of an agent: the daemon and its pid file, signals, the state and the log.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use qga_compliance::{Connection, Failure, Kind, deviation};
use rustix::process::Signal;
use serde_json::Value;

use self::stage::{Cases, Stage, expect, expect_code, expect_killed, is_alive, signal, until};

const PING: &str = r#"{"execute":"guest-ping"}"#;

/// Starts a daemon on `$dir/socket` and returns its process.
fn daemon(stage: &Stage, options: &str) -> Result<u32, Failure> {
    stage.run(&format!("exec $agent {} -d {options}", stage::SOCKET))?.check(0, &[], &[])?;
    let id = stage.daemon_id("pid")?;
    // The original writes the file before it is ready for signals.
    answers(stage)?;
    Ok(id)
}

fn answers(stage: &Stage) -> Result<(), Failure> {
    let mut host = stage.connect_to("socket")?;
    host.resynchronise()?;
    let reply = host.ask(PING)?;
    expect(reply.returned().is_some(), || reply.shown())
}

fn mode(stage: &Stage, name: &str) -> Result<u32, Failure> {
    let metadata = fs::metadata(stage.path(name)).map_err(|error| format!("{name}: {error}"))?;
    Ok(metadata.permissions().mode() & 0o777)
}

fn gone(id: u32) -> Result<(), Failure> {
    until("the daemon does not end", || Ok((!is_alive(id)).then_some(())))
}

#[test]
fn daemons() {
    let mut cases = Cases::new("daemons");
    cases.case("a daemon serves when the command that started it has ended", |stage| {
        daemon(stage, "")?;
        answers(stage)
    });
    cases.case("the pid file has the daemon's number, for its owner alone", |stage| {
        let id = daemon(stage, "")?;
        expect(is_alive(id), || format!("{id} is not alive"))?;
        expect(mode(stage, "pid")? == 0o600, || format!("the mode is {:o}", mode(stage, "pid").unwrap_or(0)))
    });
    cases.case("a daemon leads a session in the root directory with nothing on its standard streams", |stage| {
        let id = daemon(stage, "")?;
        let fields = fs::read_to_string(format!("/proc/{id}/stat")).map_err(|error| error.to_string())?;
        let session = fields.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(3));
        expect(session == Some(id.to_string().as_str()), || format!("session {session:?} of {id}"))?;
        let link = |name: &str| fs::read_link(format!("/proc/{id}/{name}")).unwrap_or_default();
        expect(link("cwd").as_os_str() == "/", || format!("the directory is {:?}", link("cwd")))?;
        for stream in ["fd/0", "fd/1", "fd/2"] {
            let found = until("the standard streams are kept", || {
                let found = link(stream);
                Ok((found.as_os_str() == "/dev/null").then_some(()))
            });
            found.map_err(|failure| format!("{failure}: {:?}", link(stream)))?;
        }
        Ok(())
    });
    cases.case("SIGTERM ends a daemon and removes its pid file", |stage| {
        let id = daemon(stage, "")?;
        signal(id, Signal::TERM)?;
        gone(id)?;
        expect(!stage.path("pid").exists(), || "the pid file is there".to_owned())
    });
    cases.case("SIGINT ends a daemon and removes its pid file", |stage| {
        let id = daemon(stage, "")?;
        signal(id, Signal::INT)?;
        gone(id)?;
        expect(!stage.path("pid").exists(), || "the pid file is there".to_owned())
    });
    cases.case("the pid file of a killed daemon is taken over by the next", |stage| {
        let first = daemon(stage, "")?;
        signal(first, Signal::KILL)?;
        gone(first)?;
        expect(stage.read("pid")? == format!("{first}\n"), || "the pid file has changed".to_owned())?;
        stage.run(&format!("exec $agent {} -d", stage::SOCKET))?.check(0, &[], &[])?;
        until("the pid file has still the old number", || {
            let id = stage.daemon_id("pid")?;
            Ok((id != first && is_alive(id)).then_some(()))
        })
    });
    cases.case("a stale pid file with other content is taken over", |stage| {
        stage.write("pid", "this is no number, and it is longer than one\n")?;
        let id = daemon(stage, "")?;
        expect(stage.read("pid")? == format!("{id}\n"), || stage.read("pid").unwrap_or_default())
    });
    cases.case("without -d there is no pid file", |stage| {
        let _serving = stage.serve("")?;
        expect(!stage.path("pid").exists(), || "the pid file is there".to_owned())
    });
    cases.case("the configuration can ask for a daemon", |stage| {
        stage.write("conf", "[general]\ndaemon=true\n")?;
        daemon(stage, "-c $dir/conf")?;
        answers(stage)
    });
    cases.case("a channel that cannot be opened is told by the command that starts the daemon", |stage| {
        let ended = stage.run("exec $agent -m unix-listen -p $dir/missing/s -t $dir -f $dir/pid -d")?;
        ended.check(1, &[], &["Failed to bind socket to $dir/missing/s: No such file or directory"])
    });
    cases.case("a daemon waits for its port when the command that started it has ended", |stage| {
        let choice = deviation("a daemon waits for its port when the command that started it has ended");
        let ended = stage.run("exec $agent -r -p $dir/port -t $dir -f $dir/pid -d")?;
        if choice.pick(stage.kind, true, false) {
            return ended.check(1, &[], &["$dir/port"]);
        }
        ended.check(0, &[], &[])?;
        let id = stage.daemon_id("pid")?;
        expect(is_alive(id), || format!("{id} is not alive"))?;
        signal(id, Signal::TERM)?;
        gone(id)?;
        expect(!stage.path("pid").exists(), || "the pid file is there".to_owned())
    });
    cases.case("a pid file that cannot be made is told by the command that starts the daemon", |stage| {
        let choice = deviation("a pid file that cannot be made is told by the command that starts the daemon");
        let ended = stage.run("exec $agent -m unix-listen -p $dir/socket -t $dir -f $dir/missing/pid -d")?;
        expect_code(ended.status, choice.pick(stage.kind, 0, 1))?;
        until("the cause is not told", || {
            let said = stage.read("standard-error")?;
            let named = said.contains(&stage.expand("$dir/missing/pid")) && said.contains("No such file or directory");
            Ok(named.then_some(()))
        })
    });
    cases.case("a second daemon is told by the command that starts it", |stage| {
        let choice = deviation("a second daemon is told by the command that starts it");
        let first = daemon(stage, "")?;
        let ended = stage.run("exec $agent -m unix-listen -p $dir/other -t $dir -f $dir/pid -d")?;
        expect_code(ended.status, choice.pick(stage.kind, 0, 1))?;
        if stage.kind == Kind::Ours {
            expect(ended.errors.contains(&format!("process {first} ")), || ended.errors.clone())?;
        }
        expect(is_alive(first), || "the first daemon is gone".to_owned())
    });
    cases.case("a second daemon leaves the first one's socket alone", |stage| {
        let choice = deviation("a second daemon leaves the first one's socket alone");
        daemon(stage, "")?;
        stage.run(&format!("exec $agent {} -d", stage::SOCKET))?;
        let kept = until("the second daemon neither serves nor ends", || match answers(stage) {
            Ok(()) => Ok(Some(true)),
            Err(failure) if failure.contains("Connection refused") => Ok(Some(false)),
            Err(_) => Ok(None),
        })?;
        expect(kept == choice.pick(stage.kind, false, true), || format!("the first daemon is reached: {kept}"))
    });
    cases.case("a second agent in the foreground leaves the first one's socket alone", |stage| {
        let choice = deviation("a second agent in the foreground leaves the first one's socket alone");
        let first = stage.serve("")?;
        if choice.pick(stage.kind, true, false) {
            let second = stage.serve("")?;
            return expect(second.id() != first.id() && answers(stage).is_ok(), || "not taken over".to_owned());
        }
        stage.run(&format!("exec $agent {}", stage::SOCKET))?.check(1, &[], &["$dir/socket", "another process"])?;
        answers(stage)
    });
    cases.case("a daemon that fails to start leaves the pid file of the running one", |stage| {
        let choice = deviation("a daemon that fails to start leaves the pid file of the running one");
        daemon(stage, "")?;
        stage.run("exec $agent -m unix-listen -p $dir/missing/s -t $dir -f $dir/pid -d")?.check(1, &[], &[])?;
        let left = stage.path("pid").exists();
        expect(left == choice.pick(stage.kind, false, true), || format!("the pid file is there: {left}"))
    });
    cases.case("a dump of the configuration leaves the pid file of the running daemon", |stage| {
        let choice = deviation("a dump of the configuration leaves the pid file of the running daemon");
        daemon(stage, "")?;
        stage.run("exec $agent -f $dir/pid -d -D")?.check(0, &["daemon=true\n"], &[])?;
        let left = stage.path("pid").exists();
        expect(left == choice.pick(stage.kind, false, true), || format!("the pid file is there: {left}"))
    });
    cases.case("a pid file with a relative name is removed at the end", |stage| {
        let choice = deviation("a pid file with a relative name is removed at the end");
        stage.run("exec $agent -m unix-listen -p $dir/socket -t $dir -f own-pid -d")?.check(0, &[], &[])?;
        let id = stage.daemon_id("own-pid")?;
        answers(stage)?;
        signal(id, Signal::TERM)?;
        gone(id)?;
        let left = stage.path("own-pid").exists();
        expect(left == choice.pick(stage.kind, true, false), || format!("the pid file is there: {left}"))
    });
    cases.case("a daemon with a relative state directory can open files", |stage| {
        let choice = deviation("a daemon with a relative state directory can open files");
        fs::create_dir(stage.path("state")).map_err(|error| error.to_string())?;
        stage.run("exec $agent -m unix-listen -p $dir/socket -t state -f $dir/pid -d")?.check(0, &[], &[])?;
        stage.daemon_id("pid")?;
        let mut host = stage.connect_to("socket")?;
        let reply = open(&mut host)?;
        expect(reply.is_ok() == choice.pick(stage.kind, false, true), || format!("{reply:?}"))
    });
    cases.case("a daemon with a relative log writes it", |stage| {
        let id = daemon(stage, "-l own-log -v")?;
        answers(stage)?;
        signal(id, Signal::TERM)?;
        gone(id)?;
        let log = stage.read("own-log")?;
        expect(log.contains("guest-ping"), || log.clone())
    });
    cases.finish();
}

#[test]
fn signals() {
    let mut cases = Cases::new("signals");
    cases.case("SIGTERM ends the agent with success", |stage| expect_code(stage.serve("")?.end_by(Signal::TERM)?, 0));
    cases.case("SIGINT ends the agent with success", |stage| expect_code(stage.serve("")?.end_by(Signal::INT)?, 0));
    cases.case("SIGTERM ends an agent with a client", |stage| {
        let mut serving = stage.serve("")?;
        let _host = serving.connect()?;
        expect_code(serving.end_by(Signal::TERM)?, 0)
    });
    cases.case("SIGTERM ends an agent that waits for its port", |stage| {
        let choice = deviation("SIGTERM ends an agent that waits for its port");
        let line = "exec $agent -r -p $dir/port -t $dir";
        if choice.pick(stage.kind, true, false) {
            return stage.run(line)?.check(1, &[], &["$dir/port"]);
        }
        let mut serving = stage.start(line)?;
        until("it does not wait", || Ok(serving.said().contains("waiting for channel").then_some(())))?;
        expect_code(serving.end_by(Signal::TERM)?, 0)
    });
    cases.case("SIGTERM leaves the programs that were started", |stage| {
        let mut serving = stage.serve("")?;
        let request = r#"{"execute":"guest-exec","arguments":{"path":"sleep","arg":["60"]}}"#;
        let reply = serving.connect()?.ask(request)?;
        let id = reply.returned().and_then(|started| started["pid"].as_u64()).ok_or_else(|| reply.shown())?;
        expect_code(serving.end_by(Signal::TERM)?, 0)?;
        expect(is_alive(id as u32), || "the program has ended with the agent".to_owned())
    });
    cases.case("SIGPIPE does nothing", |stage| {
        let serving = stage.serve("")?;
        serving.signal(Signal::PIPE)?;
        answers(stage)
    });
    cases.case("SIGUSR1 ends the agent", |stage| expect_killed(stage.serve("")?.end_by(Signal::USR1)?, Signal::USR1));
    cases.case("SIGHUP does not end the agent", |stage| {
        let choice = deviation("SIGHUP does not end the agent");
        let mut serving = stage.serve_with_hangups("")?;
        if choice.pick(stage.kind, true, false) {
            return expect_killed(serving.end_by(Signal::HUP)?, Signal::HUP);
        }
        serving.signal(Signal::HUP)?;
        answers(stage)
    });
    cases.case("SIGHUP opens the log anew", |stage| {
        let choice = deviation("SIGHUP opens the log anew");
        let mut serving = stage.serve_with_hangups("-v -l $dir/log")?;
        answers(stage)?;
        fs::rename(stage.path("log"), stage.path("log.1")).map_err(|error| error.to_string())?;
        if choice.pick(stage.kind, true, false) {
            return expect_killed(serving.end_by(Signal::HUP)?, Signal::HUP);
        }
        serving.signal(Signal::HUP)?;
        until("there is no new log", || {
            answers(stage)?;
            Ok(stage.read("log").is_ok_and(|log| log.contains("guest-ping")).then_some(()))
        })
    });
    cases.case("the socket's file stays when the agent ends", |stage| {
        let mut serving = stage.serve("")?;
        serving.end_by(Signal::TERM)?;
        expect(stage.path("socket").exists(), || "it is gone".to_owned())
    });
    cases.case("the state's counter outlives a killed agent", |stage| {
        let mut serving = stage.serve("")?;
        let first = open(&mut serving.connect()?)?;
        serving.end_by(Signal::KILL)?;
        let second = open(&mut stage.serve("")?.connect()?)?;
        expect((first.clone(), second.clone()) == (Ok(1000), Ok(1001)), || format!("{first:?}, {second:?}"))
    });
    cases.finish();
}

/// The handle of a newly opened file, or the error's text.
fn open(host: &mut Connection) -> Result<Result<i64, String>, Failure> {
    let reply = host.ask(r#"{"execute":"guest-file-open","arguments":{"path":"/dev/null"}}"#)?;
    let handle = reply.returned().and_then(Value::as_i64);
    Ok(handle.ok_or_else(|| reply.error_text().unwrap_or_default().to_owned()))
}

#[test]
fn states() {
    let mut cases = Cases::new("states");
    // A name, the state file, and the first handle.
    let rows: &[(&str, &str, i64)] = &[
        ("an empty state counts from 1000", "", 1000),
        ("a state without the counter counts from 1000", "[global]\n", 1000),
        ("a counter of another group does not count", "[other]\nfd_counter=5000\n", 1000),
        ("the counter goes on where it was", "[global]\nfd_counter=2000\n", 2000),
        ("the counter may be small", "[global]\nfd_counter=7\n", 7),
        ("the counter may be the largest of 32 bits", "[global]\nfd_counter=2147483647\n", 2_147_483_647),
    ];
    for (name, state, first) in rows {
        cases.case(name, |stage| {
            stage.write("qga.state", state)?;
            let found = open(&mut stage.serve("")?.connect()?)?;
            expect(found == Ok(*first), || format!("the first handle is {found:?}"))
        });
    }
    cases.case("the state is made at start and counts the files", |stage| {
        let serving = stage.serve("")?;
        let fresh = stage.read("qga.state")?;
        open(&mut serving.connect()?)?.ok();
        let later = stage.read("qga.state")?;
        let states = (fresh.as_str(), later.as_str());
        expect(states == ("[global]\nfd_counter=1000\n", "[global]\nfd_counter=1001\n"), || format!("{states:?}"))
    });
    cases.case("a counter that is no number does not restart at zero", |stage| {
        let choice = deviation("a counter that is no number does not restart at zero");
        stage.write("qga.state", "[global]\nfd_counter=abc\n")?;
        let found = open(&mut stage.serve("")?.connect()?)?;
        expect(found == Ok(choice.pick(stage.kind, 0, 1000)), || format!("the first handle is {found:?}"))
    });
    cases.case("a counter beyond 32 bits is kept", |stage| {
        let choice = deviation("a counter beyond 32 bits is kept");
        stage.write("qga.state", "[global]\nfd_counter=99999999999\n")?;
        let found = open(&mut stage.serve("")?.connect()?)?;
        expect(found == Ok(choice.pick(stage.kind, 0, 99_999_999_999)), || format!("the first handle is {found:?}"))
    });
    cases.case("a negative counter gives no negative handle", |stage| {
        let choice = deviation("a negative counter gives no negative handle");
        stage.write("qga.state", "[global]\nfd_counter=-5\n")?;
        let found = open(&mut stage.serve("")?.connect()?)?;
        expect(found == Ok(choice.pick(stage.kind, -1, 1000)), || format!("the first handle is {found:?}"))
    });
    cases.case("the counter does not turn negative after 31 bits", |stage| {
        let choice = deviation("the counter does not turn negative after 31 bits");
        stage.write("qga.state", "[global]\nfd_counter=2147483647\n")?;
        let serving = stage.serve("")?;
        open(&mut serving.connect()?)?.ok();
        let state = stage.read("qga.state")?;
        let expected = choice.pick(stage.kind, "fd_counter=-2147483648\n", "fd_counter=2147483648\n");
        expect(state.ends_with(expected), || state.clone())
    });
    cases.case("a state that is garbage does not prevent the start", |stage| {
        let choice = deviation("a state that is garbage does not prevent the start");
        stage.write("qga.state", "garbage\n")?;
        if choice.pick(stage.kind, false, true) {
            let serving = stage.serve("")?;
            let found = open(&mut serving.connect()?)?;
            expect(found == Ok(1000), || format!("the first handle is {found:?}"))?;
            return expect(serving.said().contains("qga.state"), || serving.said());
        }
        stage.run(&format!("exec $agent {}", stage::SOCKET))?.check(1, &[], &["$dir/qga.state"])
    });
    cases.case("a state directory that is missing is made", |stage| {
        let choice = deviation("a state directory that is missing is made");
        let line = "exec $agent -m unix-listen -p $dir/socket -t $dir/new/state";
        if choice.pick(stage.kind, false, true) {
            stage.start(line)?.wait_until_it_listens("socket")?;
            return expect(stage.path("new/state/qga.state").exists(), || "there is no state".to_owned());
        }
        stage.run(line)?.check(1, &[], &["$dir/new/state", "No such file or directory"])
    });
    cases.case("a state directory that is a file is told", |stage| {
        stage.write("file", "")?;
        let ended = stage.run("exec $agent -m unix-listen -p $dir/socket -t $dir/file")?;
        ended.check(1, &[], &["$dir/file"])
    });
    // Only what changes nothing is asked here: nothing is frozen, but thawing would still walk over all file systems.
    cases.case("a marker of a freeze leaves only the harmless commands", |stage| {
        stage.write("qga.state.isfrozen", "")?;
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        for (request, refused) in [
            (PING, false),
            (r#"{"execute":"guest-info"}"#, false),
            (r#"{"execute":"guest-sync","arguments":{"id":1}}"#, false),
            (r#"{"execute":"guest-fsfreeze-status"}"#, false),
            (r#"{"execute":"guest-file-open","arguments":{"path":"/dev/null"}}"#, true),
            (r#"{"execute":"guest-exec","arguments":{"path":"true"}}"#, true),
        ] {
            let reply = host.ask(request)?;
            let found = reply.error_class() == Some("CommandNotFound");
            expect(found == refused, || format!("{request}: {}", reply.shown()))?;
        }
        Ok(())
    });
    cases.case("a marker of a freeze is told at start with its file", |stage| {
        stage.write("qga.state.isfrozen", "")?;
        let serving = stage.serve("")?;
        // It is told by the time that the agent serves.
        serving.connect()?.ask(PING)?;
        let marker = stage.expand("$dir/qga.state.isfrozen");
        expect(serving.said().contains(&marker), || serving.said())
    });
    cases.case("an agent with a marker of a freeze writes no state", |stage| {
        stage.write("qga.state.isfrozen", "")?;
        let _serving = stage.serve("")?;
        expect(!stage.path("qga.state").exists(), || "there is a state".to_owned())
    });
    cases.case("the state is for its owner alone", |stage| {
        let choice = deviation("the state is for its owner alone");
        let _serving = stage.serve("")?;
        let found = mode(stage, "qga.state")?;
        expect(found == choice.pick(stage.kind, 0o644, 0o600), || format!("the mode is {found:o}"))
    });
    cases.finish();
}

/// The log as soon as it has this part: an agent may answer before it has written what it has to say.
fn log_with(stage: &Stage, part: &str) -> Result<String, Failure> {
    let found = until("it is not in the log", || Ok(stage.read("log").ok().filter(|log| log.contains(part))));
    found.map_err(|failure| format!("{failure}: {part}\n{}", stage.read("log").unwrap_or_default()))
}

#[test]
fn logs() {
    let mut cases = Cases::new("logs");
    cases.case("a verbose log names what was read", |stage| {
        let _serving = stage.serve("-v -l $dir/log")?;
        answers(stage)?;
        let log = log_with(stage, "guest-ping")?;
        let found = log.lines().any(|line| line.contains("debug: read data, count: ") && line.contains("guest-ping"));
        expect(found, || log.clone())
    });
    cases.case("a line of the log has seconds, level and text", |stage| {
        let _serving = stage.serve("-v -l $dir/log")?;
        answers(stage)?;
        let log = log_with(stage, "read data")?;
        let well_formed = |line: &str| {
            let mut parts = line.splitn(3, ": ");
            let time = parts.next().and_then(|time| time.split_once('.'));
            let is_time = time.is_some_and(|(seconds, micros)| {
                micros.len() == 6 && seconds.chars().chain(micros.chars()).all(|digit| digit.is_ascii_digit())
            });
            let levels = ["error", "critical", "warning", "message", "info", "debug"];
            is_time && parts.next().is_some_and(|level| levels.contains(&level)) && parts.next().is_some()
        };
        let first = log.lines().find(|line| line.contains("read data"));
        expect(first.is_some_and(well_formed), || log.clone())
    });
    cases.case("a quiet agent says nothing about requests", |stage| {
        let serving = stage.serve("-l $dir/log")?;
        answers(stage)?;
        let said = format!("{}{}", stage.read("log")?, serving.said());
        expect(said.is_empty(), || said.clone())
    });
    cases.case("without a log file a verbose agent writes to its standard error", |stage| {
        let serving = stage.serve("-v")?;
        answers(stage)?;
        until("it says nothing", || Ok(serving.said().contains("read data").then_some(())))
    });
    cases.case("the log is appended to", |stage| {
        stage.write("log", "a line from before\n")?;
        let _serving = stage.serve("-v -l $dir/log")?;
        answers(stage)?;
        let log = log_with(stage, "guest-ping")?;
        expect(log.starts_with("a line from before\n"), || log.clone())
    });
    cases.case("the configuration can ask for a verbose log", |stage| {
        let text = stage.expand("[general]\nverbose=true\nlogfile=$dir/log\n");
        stage.write("conf", text)?;
        let _serving = stage.serve("-c $dir/conf")?;
        answers(stage)?;
        log_with(stage, "read data").map(drop)
    });
    cases.case("the log is for its owner alone", |stage| {
        let choice = deviation("the log is for its owner alone");
        let _serving = stage.serve("-v -l $dir/log")?;
        let found = mode(stage, "log")?;
        expect(found == choice.pick(stage.kind, 0o644, 0o600), || format!("the mode is {found:o}"))
    });
    cases.case("the log has no contents of files and no input of programs", |stage| {
        let choice = deviation("the log has no contents of files and no input of programs");
        let serving = stage.serve("-v -l $dir/log")?;
        let mut host = serving.connect()?;
        let secret = "c2VjcmV0IHdvcmQ=";
        for request in [
            format!(r#"{{"execute":"guest-exec","arguments":{{"path":"/bin/true","input-data":"{secret}"}}}}"#),
            format!(r#"{{"execute":"guest-file-write","arguments":{{"handle":1,"buf-b64":"{secret}"}}}}"#),
            r#"{"execute":"guest-exec","arguments":{"path":"/bin/true","env":["PASS=c2VjcmV0IHdvcmQ="]}}"#.to_owned(),
        ] {
            host.ask(&request)?;
        }
        let log = log_with(stage, "\"env\"")?;
        expect(log.contains("guest-file-write"), || log.clone())?;
        let found = log.contains(secret);
        expect(found == choice.pick(stage.kind, true, false), || log.clone())
    });
    cases.case("the log has no passwords", |stage| {
        let choice = deviation("the log has no passwords");
        // The log must not know which commands have passwords; this one is no command of any agent.
        let serving = stage.serve("-v -l $dir/log")?;
        let arguments = r#"{"username":"nobody","password":"c2VjcmV0IHdvcmQ=","crypted":false}"#;
        serving.connect()?.ask(&format!(r#"{{"execute":"guest-nope","arguments":{arguments}}}"#))?;
        let log = log_with(stage, "guest-nope")?;
        let found = log.contains("c2VjcmV0IHdvcmQ=");
        expect(found == choice.pick(stage.kind, true, false), || log.clone())
    });
    cases.case("a request cannot write lines of its own into the log", |stage| {
        let serving = stage.serve("-v -l $dir/log")?;
        serving.connect()?.ask(r#"{"execute":"guest-nope\n1.000000: error: forged"}"#)?;
        let log = log_with(stage, "guest-nope")?;
        expect(!log.lines().any(|line| line.starts_with("1.000000")), || log.clone())
    });
    cases.finish();
}
