//! The ways to an agent: sockets, serial lines, sockets passed on by a service manager; what clients do to each other.

#[path = "transports/line.rs"]
mod line;
#[path = "transports/queues.rs"]
mod queues;
#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use qga_compliance::{Connection, Failure, Kind, PATIENCE, ReadFailure, deviation};
use rustix::process::Signal;
use serde_json::{Value, json};

use self::line::{Line, bridged};
use self::stage::{Cases, Stage, expect, expect_code, until};

const PING: &str = r#"{"execute":"guest-ping"}"#;
/// How long a reply that must not come is waited for.
const A_WHILE: Duration = Duration::from_millis(300);

fn pings(host: &mut Connection) -> Result<(), Failure> {
    let reply = host.ask(PING)?;
    expect(reply.returned() == Some(&json!({})), || reply.shown())
}

/// Whether a ping is answered. One that must not be answered is not waited for as long.
fn answers(host: &mut Connection, expected: bool) -> Result<bool, Failure> {
    host.send(format!("{PING}\n").as_bytes())?;
    match host.read_line(if expected { PATIENCE } else { A_WHILE }) {
        Ok(_) => Ok(true),
        Err(ReadFailure::TimedOut(_)) => Ok(false),
        Err(other) => Err(other.to_string()),
    }
}

#[test]
fn unix_sockets() {
    let mut cases = Cases::new("unix sockets");
    cases.case("the socket of an agent that is gone is replaced", |stage| {
        drop(UnixListener::bind(stage.path("socket")).map_err(|error| error.to_string())?);
        pings(&mut stage.serve("")?.connect()?)
    });
    cases.case("a file that is no socket is not removed", |stage| {
        let choice = deviation("a file that is no socket is not removed");
        stage.write("socket", "precious")?;
        if choice.pick(stage.kind, true, false) {
            return pings(&mut stage.serve("")?.connect()?);
        }
        stage.run(&format!("exec $agent {}", stage::SOCKET))?.check(1, &[], &["$dir/socket"])?;
        expect(stage.read("socket")? == "precious", || "the file has changed".to_owned())
    });
    cases.case("a directory is not removed", |stage| {
        fs::create_dir(stage.path("socket")).map_err(|error| error.to_string())?;
        stage.run(&format!("exec $agent {}", stage::SOCKET))?.check(1, &[], &["$dir/socket"])?;
        expect(stage.path("socket").is_dir(), || "it is gone".to_owned())
    });
    cases.case("a name that is too long is told", |stage| {
        let name = "x".repeat(120);
        stage.run(&format!("exec $agent -m unix-listen -p $dir/{name} -t $dir"))?.check(1, &[], &[&name, "too long"])
    });
    cases.case("a directory that is missing is told", |stage| {
        let ended = stage.run("exec $agent -m unix-listen -p $dir/missing/socket -t $dir")?;
        ended.check(1, &[], &["Failed to bind socket to $dir/missing/socket: No such file or directory"])
    });
    cases.case("a socket is not for everybody", |stage| {
        let choice = deviation("a socket is not for everybody");
        let mut serving = stage.start(&format!("umask 0; exec $agent {}", stage::SOCKET))?;
        serving.wait_until_it_listens("socket")?;
        let mode = fs::metadata(stage.path("socket")).map_err(|error| error.to_string())?.permissions().mode() & 0o777;
        expect(mode == choice.pick(stage.kind, 0o777, 0o770), || format!("the mode is {mode:o}"))
    });
    cases.case("a relative name is meant from the directory of the start", |stage| {
        let mut serving = stage.start("exec $agent -m unix-listen -p socket -t $dir")?;
        serving.wait_until_it_listens("socket")?;
        pings(&mut serving.connect()?)
    });
    cases.finish();
}

#[test]
fn clients_at_once() {
    let mut cases = Cases::new("clients at once");
    cases.case("a silent client does not lock out another", |stage| {
        let choice = deviation("a silent client does not lock out another");
        let serving = stage.serve("")?;
        let silent = serving.connect()?;
        let mut other = stage.connect_to("socket")?;
        let expected = choice.pick(stage.kind, false, true);
        let answered = answers(&mut other, expected)?;
        expect(answered == expected, || format!("answered: {answered}"))?;
        drop(silent);
        if answered { pings(&mut other) } else { other.receive().map(drop) }
    });
    cases.case("twenty clients are served at once", |stage| {
        let choice = deviation("twenty clients are served at once");
        let serving = stage.serve("")?;
        if choice.pick(stage.kind, 1, 20) == 1 {
            let _first = serving.connect()?;
            let answered = answers(&mut stage.connect_to("socket")?, false)?;
            return expect(!answered, || "a second client is answered".to_owned());
        }
        let mut hosts = (0..20).map(|_| serving.connect()).collect::<Result<Vec<_>, _>>()?;
        for round in 0..3 {
            for (index, host) in hosts.iter_mut().enumerate() {
                let id = round * 100 + index;
                let reply = host.ask(&format!(r#"{{"execute":"guest-sync","arguments":{{"id":{id}}}}}"#))?;
                expect(reply.returned() == Some(&json!(id)), || reply.shown())?;
            }
        }
        Ok(())
    });
    cases.case("replies of many clients do not cross", |stage| {
        let serving = stage.serve("")?;
        let serving = &serving;
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16_i64)
                .map(|client| {
                    scope.spawn(move || {
                        let mut host = serving.connect()?;
                        for round in 0..200_i64 {
                            let id = client << 32 | round.wrapping_mul(2_654_435_761) & 0xffff_ffff;
                            let request =
                                format!(r#"{{"execute":"guest-sync","arguments":{{"id":{id}}},"id":{round}}}"#);
                            let reply = host.ask(&request)?;
                            expect(reply.json == Some(json!({"return": id, "id": round})), || reply.shown())?;
                        }
                        Ok(())
                    })
                })
                .collect();
            clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| Err("a panic".to_owned())))
        })
    });
    cases.case("a client that stops in the middle of a request harms no other", |stage| {
        let choice = deviation("a client that stops in the middle of a request harms no other");
        let serving = stage.serve("")?;
        let mut half = serving.connect()?;
        half.send(br#"{"execute":"guest-fi"#)?;
        let expected = choice.pick(stage.kind, false, true);
        let answered = answers(&mut stage.connect_to("socket")?, expected)?;
        expect(answered == expected, || format!("answered: {answered}"))
    });
    cases.case("a client that reads nothing harms no other", |stage| {
        let choice = deviation("a client that reads nothing harms no other");
        let serving = stage.serve("")?;
        let mut deaf = serving.connect()?;
        let handle = open_zero(&mut deaf)?;
        for _ in 0..16 {
            let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 4 << 20}});
            deaf.send(format!("{request}\n").as_bytes())?;
        }
        let expected = choice.pick(stage.kind, false, true);
        let answered = answers(&mut stage.connect_to("socket")?, expected)?;
        expect(answered == expected, || format!("answered: {answered}"))?;
        let memory = resident_kilobytes(serving.id())?;
        expect(memory < 64 << 10, || format!("{memory} kB are resident"))
    });
    cases.case("a flood that reads nothing is held back and harms no other", |stage| {
        let choice = deviation("a flood that reads nothing is held back and harms no other");
        let serving = stage.serve("")?;
        let flooding = serving.connect()?;
        let mut stream = flooding.stream();
        stream.set_write_timeout(Some(A_WHILE)).map_err(|error| error.to_string())?;
        let block = format!("{PING}\n").repeat(4000);
        let mut sent_bytes = 0;
        while sent_bytes < 100_000_000 {
            match stream.write(block.as_bytes()) {
                Ok(count) => sent_bytes += count,
                Err(_) => break,
            }
        }
        let memory = resident_kilobytes(serving.id())?;
        expect(memory < 64 << 10, || format!("{memory} kB are resident after {sent_bytes} bytes"))?;
        let expected = choice.pick(stage.kind, false, true);
        let answered = answers(&mut stage.connect_to("socket")?, expected)?;
        expect(answered == expected, || format!("answered: {answered}"))
    });
    cases.case("a flood of blanks costs no memory", |stage| {
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        for _ in 0..100 {
            host.send(&vec![b' '; 1_000_000])?;
        }
        pings(&mut host)?;
        let memory = resident_kilobytes(serving.id())?;
        expect(memory < 64 << 10, || format!("{memory} kB are resident"))
    });
    cases.case("a flood of garbage costs no memory", |stage| {
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        for _ in 0..30 {
            host.send(&b"@ garbage \n".repeat(2000))?;
            host.replies_so_far()?;
        }
        pings(&mut host)?;
        let memory = resident_kilobytes(serving.id())?;
        expect(memory < 64 << 10, || format!("{memory} kB are resident"))
    });
    cases.case("a client that has said all gets the rest of its replies", |stage| {
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let handle = open_zero(&mut host)?;
        let request = json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": 3_000_000}});
        host.send(format!("{request}\n{PING}\n").as_bytes())?;
        host.stream().shutdown(Shutdown::Write).map_err(|error| error.to_string())?;
        let data = host.receive()?;
        expect(data.line.len() > 4_000_000, || data.shown())?;
        let reply = host.receive()?;
        expect(reply.returned() == Some(&json!({})), || reply.shown())?;
        match host.read_line(PATIENCE) {
            Err(ReadFailure::Closed) => Ok(()),
            other => Err(format!("expected the end: {other:?}")),
        }
    });
    cases.case("a stuck command makes nobody wait", |stage| {
        let choice = deviation("a stuck command makes nobody wait");
        let script = queues::stuck_script(stage)?;
        let serving = stage.serve("")?;
        let mut host = serving.connect()?;
        let request = json!({"execute": "guest-exec", "arguments": {"path": stage.expand("$dir/script")}});
        host.send(format!("{request}\n").as_bytes())?;
        if choice.pick(stage.kind, true, false) {
            host.send(b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1}}\n")?;
            let line = host.read_line(Duration::from_secs(1));
            drop(script);
            // Both replies are taken: the original would end if one was left.
            host.receive()?;
            host.receive()?;
            return expect(matches!(line, Err(ReadFailure::TimedOut(_))), || format!("{line:?}"));
        }
        host.resynchronise()?;
        pings(&mut host)?;
        pings(&mut serving.connect()?)?;
        drop(script);
        pings(&mut host)
    });
    cases.finish();
}

#[test]
fn waiting_requests() {
    let mut cases = Cases::new("waiting requests");
    cases.case("requests of a client that has left are done though the first was stuck", queues::done_without_client);
    cases.case("a client that reads late gets all of three thousand replies", queues::read_late);
    cases.case("pipelined requests are all served though the machine pauses again and again", queues::paused);
    cases.case("a synchronisation behind a slow reply does not cut it", queues::not_cut);
    cases.case("requests too many behind a stuck command are refused in their turn", |stage| {
        let choice = deviation("requests too many behind a stuck command are refused in their turn");
        let expected = choice.pick(stage.kind, [true, true, true, true], [true, true, false, false]);
        let served = queues::served_behind_stuck(stage, stage.kind == Kind::Ours)?;
        expect(served == expected, || format!("served: {served:?}"))
    });
    cases.case("input that programs do not read is limited in size", |stage| {
        let choice = deviation("input that programs do not read is limited in size");
        // The original would take the input of all, so it gets less.
        let refusal = queues::refused_input(stage, choice.pick(stage.kind, 2, 20))?;
        let names_input = refusal.as_ref().is_some_and(|text| text.contains("input"));
        expect(names_input == choice.pick(stage.kind, false, true), || format!("{refusal:?}"))
    });
    cases.case("a client too many takes the place of an idle one, not of one that waits", |stage| {
        let choice = deviation("a client too many takes the place of an idle one, not of one that waits");
        let expected = choice.pick(stage.kind, false, true);
        let answered = queues::one_client_more(stage, choice.pick(stage.kind, 0, 63), expected)?;
        expect(answered == expected, || format!("answered: {answered}"))
    });
    cases.finish();
}

fn open_zero(host: &mut Connection) -> Result<i64, Failure> {
    let reply = host.ask(r#"{"execute":"guest-file-open","arguments":{"path":"/dev/zero"}}"#)?;
    reply.returned().and_then(Value::as_i64).ok_or_else(|| reply.shown())
}

fn resident_kilobytes(id: u32) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).map_err(|error| format!("process {id}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).ok_or_else(|| status.clone())
}

#[test]
fn passed_sockets() {
    let mut cases = Cases::new("passed sockets");
    let pass = "exec 3<&0 0</dev/null; export LISTEN_PID=$$";
    let listen = |stage: &Stage| {
        let listener = UnixListener::bind(stage.path("passed")).map_err(|error| error.to_string())?;
        Ok::<_, Failure>(OwnedFd::from(listener))
    };
    cases.case("a passed socket is served whatever the options say", |stage| {
        let line = format!("{pass}; LISTEN_FDS=1 exec $agent -m isa-serial -p /nonexistent -t $dir");
        let mut serving = stage.start_with(&line, listen(stage)?)?;
        let mut host = stage.connect_to("passed")?;
        pings(&mut host)?;
        drop(host);
        expect_code(serving.end_by(Signal::TERM)?, 0)?;
        expect(stage.path("passed").exists(), || "its file is gone".to_owned())
    });
    cases.case("a passed socket is shown in the dump", |stage| {
        let line = format!("{pass}; LISTEN_FDS=1 exec $agent -p /x -D");
        let mut serving = stage.start_with(&line, listen(stage)?)?;
        expect_code(serving.wait()?, 0)?;
        let dump = stage.read("standard-output")?;
        expect(dump.contains("method=unix-listen\n") && !dump.contains("\npath="), || dump.clone())
    });
    cases.case("programs do not hear of the passed socket", |stage| {
        let line = format!("{pass}; LISTEN_FDS=1 exec $agent -t $dir");
        let _serving = stage.start_with(&line, listen(stage)?)?;
        let mut host = stage.connect_to("passed")?;
        let script = stage.expand("env >$dir/seen; ls /proc/self/fd >>$dir/seen; mv $dir/seen $dir/done");
        let request = json!({"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", script]}});
        host.ask(&request.to_string())?;
        let seen = until("the program does not end", || Ok(stage.read("done").ok()))?;
        expect(!seen.contains("LISTEN_"), || seen.clone())
    });
    cases.case("two passed sockets are one too many", |stage| {
        let line = format!("{pass}; exec 4<&3; LISTEN_FDS=2 exec $agent {}", stage::SOCKET);
        let mut serving = stage.start_with(&line, listen(stage)?)?;
        expect_code(serving.wait()?, 1)?;
        expect(serving.said().contains("one socket"), || serving.said())
    });
    cases.case("a passed socket of another family is refused", |stage| {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let line = format!("{pass}; LISTEN_FDS=1 exec $agent {}", stage::SOCKET);
        let mut serving = stage.start_with(&line, OwnedFd::from(listener))?;
        expect_code(serving.wait()?, 1)?;
        expect(serving.said().contains("listen"), || serving.said())
    });
    cases.case("a passed socket that is none is told", |stage| {
        let ended = stage.run("exec 3<&-; export LISTEN_PID=$$; LISTEN_FDS=1 exec $agent -t $dir")?;
        ended.check(1, &[], &["ocket activation", "Bad file descriptor"])
    });
    for (name, variables) in [
        ("sockets passed to another process are not taken", "export LISTEN_PID=1 LISTEN_FDS=1"),
        ("no passed socket is none", "export LISTEN_PID=$$ LISTEN_FDS=0"),
        ("a count of passed sockets that is no number is none", "export LISTEN_PID=$$ LISTEN_FDS=x"),
        ("a passed socket without a process is none", "export LISTEN_FDS=1"),
    ] {
        cases.case(name, |stage| {
            let mut serving = stage.start(&format!("{variables}; exec $agent {}", stage::SOCKET))?;
            serving.wait_until_it_listens("socket")?;
            pings(&mut serving.connect()?)
        });
    }
    cases.finish();
}

#[test]
fn vsock() {
    let mut cases = Cases::new("vsock");
    for (address, part) in [
        ("abc", "error parsing address 'abc'"),
        ("1", "error parsing address '1'"),
        ("1:", "error parsing address '1:'"),
        (":5", "error parsing address ':5'"),
        ("x:1", "Failed to parse cid 'x'"),
        ("-1:5", "Failed to parse cid '-1'"),
        ("0x1:5", "Failed to parse cid '0x1'"),
        ("4294967296:1", "Failed to parse cid '4294967296'"),
        ("1:x", "Failed to parse port 'x'"),
        ("1:4294967296", "Failed to parse port '4294967296'"),
        ("1:5:6", "Failed to parse port '5:6'"),
        ("1:5,x", "5,x'"),
    ] {
        cases.case(&format!("the vsock address {address} is refused"), |stage| {
            stage.run(&format!("exec $agent -m vsock-listen -p '{address}' -t $dir"))?.check(1, &[], &[part])
        });
    }
    let named = "a ping over vsock is answered";
    let choice = deviation("a program of the guest cannot connect over vsock unless it is named");
    match vsock::VsockListener::bind_with_cid_port(1, u32::MAX) {
        Err(error) => {
            let reason = format!("this machine has no vsock loopback ({error})");
            cases.skip(named, &reason);
            cases.skip(choice.case(), &reason);
        }
        Ok(probe) => {
            let port = probe.local_addr().map_or(51_234, |address| address.port());
            drop(probe);
            // The original does not know the key, and asks nobody where they come from.
            let over_loopback = |stage: &Stage, config: &str| {
                stage.write("conf", format!("[general]\n{config}"))?;
                let line = format!("exec $agent -c $dir/conf -m vsock-listen -p 1:{port} -t $dir");
                let mut serving = stage.start(&line)?;
                let stream = until("the agent does not listen", || match serving.ended() {
                    Some(status) => Err(format!("the agent ended ({status}): {}", serving.said())),
                    None => Ok(vsock::VsockStream::connect_with_cid_port(1, port).ok()),
                })?;
                pings(&mut bridged(OwnedFd::from(stream))?)
            };
            cases.case(named, |stage| over_loopback(stage, "vsock-peers=1\n"));
            cases.case(choice.case(), |stage| {
                let outcome = over_loopback(stage, "");
                let is_served = choice.pick(stage.kind, true, false);
                expect(outcome.is_ok() == is_served, || format!("{outcome:?}"))
            });
        }
    }
    cases.finish();
}

#[test]
fn lines() {
    let mut cases = Cases::new("serial lines");
    cases.case("a serial line is made raw and served", |stage| {
        let line = Line::open(stage, "tty")?;
        let _serving = stage.start("exec $agent -m isa-serial -p $dir/tty -t $dir")?;
        line.wait_until_raw()?;
        let mut host = line.host()?;
        host.resynchronise()?;
        let text = "a\\u0003\\u0004\\r\\n\u{e4}";
        let reply = host.ask(&format!(r#"{{"execute":"guest-ping","id":"{text}"}}"#))?;
        let id = reply.json.as_ref().and_then(|json| json.get("id")).cloned();
        expect(id == Some(json!("a\u{3}\u{4}\r\n\u{e4}")), || reply.shown())
    });
    cases.case("a line that gives back what it is sent ends in silence", |stage| {
        let choice = deviation("a line that gives back what it is sent ends in silence");
        let line = Line::open(stage, "port")?;
        let _serving = stage.start("exec $agent -m isa-serial -p $dir/port -t $dir -f $dir/pid")?;
        line.wait_until_raw()?;
        let mut host = line.host()?;
        // Between an answer, an error, a synchronisation and a line of noise.
        let sync = r#"{"execute":"guest-sync-delimited","arguments":{"id":7}}"#;
        for request in [PING, r#"{"execute":"guest-nope","id":"x"}"#, sync, "noise"] {
            host.send(format!("{request}\n").as_bytes())?;
            let mut said = host.receive()?;
            if said.sentinel {
                // The byte before the answer is told as an error by both, once.
                host.send(b"\xff\n")?;
                said = host.receive()?;
            }
            for round in 0..20 {
                host.send(format!("{}\n", String::from_utf8_lossy(&said.line)).as_bytes())?;
                if choice.pick(stage.kind, true, false) {
                    said = host.receive()?;
                    expect(said.error_text().is_some_and(|text| text.contains("is unexpected")), || said.shown())?;
                }
                let id = json!([request, round]);
                let reply = host.ask(&json!({"execute": "guest-ping", "id": id}).to_string())?;
                expect(reply.json.as_ref().is_some_and(|json| json["id"] == id), || reply.shown())?;
            }
        }
        Ok(())
    });
    cases.case("much data passes a serial line whole", |stage| {
        let line = Line::open(stage, "tty")?;
        let _serving = stage.start("exec $agent -m isa-serial -p $dir/tty -t $dir")?;
        line.wait_until_raw()?;
        let mut host = line.host()?;
        host.resynchronise()?;
        let text = "x".repeat(300_000);
        let reply = host.ask(&format!(r#"{{"execute":"guest-ping","id":"{text}"}}"#))?;
        let id = reply.json.as_ref().and_then(|json| json.get("id")).cloned();
        expect(id == Some(json!(text)), || format!("{} bytes came back", reply.line.len()))
    });
    cases.case("a line of the usual speed becomes one of 38400", |stage| {
        let line = Line::open(stage, "tty")?;
        line.set_speed(9600)?;
        let _serving = stage.start("exec $agent -m isa-serial -p $dir/tty -t $dir")?;
        line.wait_until_raw()?;
        expect(line.speed()? == 38400, || format!("{:?}", line.speed()))
    });
    cases.case("a speed that was set is kept", |stage| {
        let choice = deviation("a speed that was set is kept");
        let line = Line::open(stage, "tty")?;
        line.set_speed(115_200)?;
        let _serving = stage.start("exec $agent -m isa-serial -p $dir/tty -t $dir")?;
        line.wait_until_raw()?;
        let expected = choice.pick(stage.kind, 4_000_000, 115_200);
        expect(line.speed()? == expected, || format!("{:?}", line.speed()))
    });
    cases.case("a serial line that was hung up is served again", |stage| {
        let choice = deviation("a serial line that was hung up is served again");
        let line = Line::open(stage, "tty")?;
        let mut serving = stage.start("exec $agent -m isa-serial -p $dir/tty -t $dir")?;
        line.wait_until_raw()?;
        drop(line);
        let line = Line::open(stage, "tty")?;
        if choice.pick(stage.kind, false, true) {
            line.wait_until_raw()?;
            let mut host = line.host()?;
            host.resynchronise()?;
            return pings(&mut host);
        }
        std::thread::sleep(Duration::from_secs(1));
        expect(!line.is_raw()? && serving.ended().is_none(), || "it serves again, or has ended".to_owned())
    });
    cases.case("a virtio port is served", |stage| {
        let line = Line::open(stage, "port")?;
        line.make_raw()?;
        let _serving = stage.start("exec $agent -p $dir/port -t $dir")?;
        let mut host = line.host()?;
        host.resynchronise()?;
        pings(&mut host)
    });
    cases.case("a port that is not there yet is waited for", |stage| {
        let choice = deviation("a port that is not there yet is waited for");
        let line = "exec $agent -r -p $dir/port -t $dir";
        if choice.pick(stage.kind, false, true) {
            let _serving = stage.start(line)?;
            std::thread::sleep(A_WHILE);
            let port = Line::open(stage, "port")?;
            port.make_raw()?;
            let mut host = port.host()?;
            host.resynchronise()?;
            return pings(&mut host);
        }
        stage.run(line)?.check(1, &[], &["error opening channel '$dir/port': No such file or directory"])
    });
    cases.case("a device that is no port keeps the agent alive", |stage| {
        let mut serving = stage.start("exec $agent -p /dev/null -t $dir")?;
        std::thread::sleep(A_WHILE);
        expect(serving.ended().is_none(), || serving.said())?;
        expect_code(serving.end_by(Signal::TERM)?, 0)
    });
    cases.case("SIGTERM ends an agent on a serial line", |stage| {
        let line = Line::open(stage, "tty")?;
        let mut serving = stage.start("exec $agent -m isa-serial -p $dir/tty -t $dir")?;
        line.wait_until_raw()?;
        let mut host = line.host()?;
        host.resynchronise()?;
        expect_code(serving.end_by(Signal::TERM)?, 0)
    });
    cases.finish();
}
