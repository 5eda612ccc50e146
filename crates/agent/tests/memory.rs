//! What the agent takes of the guest's memory while clients send as much as they can and read nothing, and whether a
//! well-behaved client is answered meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What the agent may take at its worst.
const PEAK_BYTES_MAX: u64 = 256_000_000;
/// One place of the 64 is left for the client that behaves.
const HOSTILE_CLIENTS: usize = 63;
/// A hostile client gives up writing what nobody takes.
const GIVES_UP: Duration = Duration::from_secs(10);
/// A hang is a failure, not a reason to wait for ever.
const PATIENCE: Duration = Duration::from_secs(300);

/// An agent of its own, ended with the test.
struct Agent {
    process: Child,
    directory: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        let program = std::env::var_os("QGA_OURS").unwrap_or_else(|| env!("CARGO_BIN_EXE_qemu-ga").into());
        let (socket, pid_file) = (at("agent.sock"), at("agent.pid"));
        let configuration = at("agent.conf");
        fs::write(&configuration, "").expect("a file");
        let arguments = ["-m", "unix-listen", "-p", &socket, "-t", &at(""), "-f", &pid_file, "-c", &configuration];
        let process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        let mut agent = Self { process, directory };
        // The file is there before anybody listens at it.
        while UnixStream::connect(agent.socket()).is_err() {
            assert!(agent.process.try_wait().expect("a child").is_none(), "the agent does not start");
            thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).expect("the agent listens")
    }

    /// The most that it has ever had in memory.
    fn peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks and waits for the answer.
fn ask(client: &mut BufReader<UnixStream>, request: &Value) -> Value {
    client.get_mut().set_read_timeout(Some(PATIENCE)).expect("a limit");
    writeln!(client.get_mut(), "{request}").expect("the agent reads");
    let mut line = String::new();
    client.read_line(&mut line).expect("the agent answers");
    serde_json::from_str(&line).expect("a reply")
}

/// A list, an object or a text of a million parts.
fn many(part: &str, separator: &str) -> String {
    vec![part; 1_000_000].join(separator)
}

/// What hostile clients send, one after the other. None of them reads a reply.
fn hostile_requests(number: usize) -> Vec<String> {
    let megabytes = |count: usize, letter: &str| letter.repeat(count << 20);
    let exec = |script: &str| {
        json!({"execute": "guest-exec", "arguments":
            {"path": "/bin/sh", "arg": ["-c", script], "capture-output": true}})
        .to_string()
    };
    match number % 9 {
        0 => vec![format!(r#"{{"execute": "guest-ping", "arguments": {{"half": "{}"#, megabytes(60, "a"))],
        1 => vec![format!(
            r#"{{"execute": "guest-exec", "arguments": {{"path": "/bin/true", "arg": [{}]}}}}"#,
            many(r#""""#, ",")
        )],
        2 => {
            let members: Vec<String> = (0..500_000).map(|number| format!(r#""{number}":1"#)).collect();
            vec![format!(r#"{{"execute": "guest-ping", "arguments": {{{}}}}}"#, members.join(","))]
        }
        3 => vec![format!(r#"{{"execute": "guest-ping", "arguments": {{"deep": {}"#, "[[[],".repeat(300_000))],
        4 => vec![exec("head -c 16777216 /dev/zero; head -c 16777216 /dev/zero >&2"); 4],
        5 => vec![
            r#"{"execute": "guest-file-open", "arguments": {"path": "/dev/zero"}}"#.to_owned(),
            // Handles of others are as good as own ones.
            (0..64)
                .map(|handle| {
                    format!(
                        r#"{{"execute": "guest-file-read", "arguments": {{"handle": {handle}, "count": 50000000}}}}"#
                    )
                })
                .collect::<Vec<_>>()
                .join("\n"),
        ],
        6 => vec![format!(
            r#"{{"execute": "guest-exec", "arguments": {{"path": "/bin/sleep", "arg": ["3"], "input-data": "{}"}}}}"#,
            megabytes(40, "A")
        )],
        7 => vec![format!(r#"{{"id": "{}", "execute": "guest-ping"}}"#, megabytes(30, "i"))],
        _ => vec![format!(
            r#"{{"execute": "guest-ssh-add-authorized-keys", "arguments": {{"username": "root-of-nobody", "keys": [{}]}}}}"#,
            many(r#""ssh-ed25519 AAAA""#, ",")
        )],
    }
}

#[test]
fn all_clients_but_one_are_hostile_and_the_memory_has_its_bound() {
    let agent = Agent::start();
    let begin = Barrier::new(HOSTILE_CLIENTS + 1);
    let all_sent = Barrier::new(HOSTILE_CLIENTS + 1);
    thread::scope(|scope| {
        for number in 0..HOSTILE_CLIENTS {
            let (begin, all_sent, mut client) = (&begin, &all_sent, agent.connect());
            client.set_write_timeout(Some(GIVES_UP)).expect("a limit");
            scope.spawn(move || {
                begin.wait();
                for request in hostile_requests(number) {
                    // What is not taken is held back, which is the bound at work.
                    if client.write_all(request.as_bytes()).and_then(|()| client.write_all(b"\n")).is_err() {
                        break;
                    }
                }
                all_sent.wait();
            });
        }
        let mut good = BufReader::new(agent.connect());
        begin.wait();
        for _ in 0..50 {
            assert_eq!(ask(&mut good, &json!({"execute": "guest-ping"})), json!({"return": {}}));
        }
        let started = ask(&mut good, &json!({"execute": "guest-exec", "arguments": {"path": "/bin/true"}}));
        let is_answered = started["return"]["pid"].is_i64() || started["error"]["class"] == "GenericError";
        assert!(is_answered, "{started}");
        all_sent.wait();
        assert_eq!(ask(&mut good, &json!({"execute": "guest-ping"})), json!({"return": {}}));
    });
    let peak = agent.peak_bytes();
    println!("peak: {} MB", peak / 1_000_000);
    assert!(peak <= PEAK_BYTES_MAX, "{peak} bytes");
}

/// Starts a request in each of several clients at once, none of which reads more than a first byte.
fn peak_of_silent_clients(requests: &[String]) -> u64 {
    let agent = Agent::start();
    thread::scope(|scope| {
        let clients: Vec<_> = requests
            .iter()
            .map(|request| {
                let mut client = agent.connect();
                scope.spawn(move || {
                    client.set_write_timeout(Some(GIVES_UP)).expect("a limit");
                    // Whole, or dropped on its way.
                    let _ = writeln!(client, "{request}");
                    client.set_read_timeout(Some(PATIENCE)).expect("a limit");
                    assert_eq!(client.read(&mut [0]).expect("the agent answers"), 1);
                    client
                })
            })
            .collect();
        let clients: Vec<UnixStream> = clients.into_iter().map(|client| client.join().expect("a client")).collect();
        let mut good = BufReader::new(agent.connect());
        assert_eq!(ask(&mut good, &json!({"execute": "guest-ping"})), json!({"return": {}}));
        drop(clients);
    });
    agent.peak_bytes()
}

/// An `id` goes back in the reply, also of what is refused, and a text may have escapes.
#[test]
fn what_goes_back_or_is_decoded_is_a_part_of_the_bound() {
    let megabytes = |count: usize, text: &str| text.repeat((count << 20) / text.len());
    let no_request = format!(r#"{{"id": "{}"}}"#, megabytes(60, "i"));
    let with_escapes = format!(r#"{{"id": "{}"}}"#, megabytes(60, r"\u00e9"));
    let request = format!(r#"{{"id": "{}", "execute": "guest-ping"}}"#, megabytes(58, "i"));
    let input = |text: &str| {
        let arguments = format!(r#""path": "/bin/sleep", "arg": ["3"], "input-data": "{}""#, megabytes(60, text));
        format!(r#"{{"execute": "guest-exec", "arguments": {{{arguments}}}}}"#)
    };
    for (what, requests) in [
        ("no requests", vec![no_request; 5]),
        ("no requests, with escapes", vec![with_escapes; 5]),
        ("requests", vec![request; 5]),
        ("input", vec![input("A"); 4]),
        ("input with escapes", vec![input(r"\/\/\/\/"); 4]),
    ] {
        let peak = peak_of_silent_clients(&requests);
        println!("{what}: {} MB", peak / 1_000_000);
        assert!(peak <= PEAK_BYTES_MAX, "{what}: {peak} bytes");
    }
}

/// The original sends back what it gets, and gives a program all of its input.
#[test]
fn the_only_client_has_the_whole_of_the_bound() {
    for (count, text, shown) in [(56 << 20, "i", "i"), (12 << 20, "\u{e9}", "\\u00E9"), (40 << 20, "\u{7f}", "\\u007F")]
    {
        let agent = Agent::start();
        let mut client = agent.connect();
        let sent = thread::spawn({
            let mut client = client.try_clone().expect("a descriptor");
            let request = format!(r#"{{"execute": "guest-ping", "id": "{}"}}"#, text.repeat(count));
            move || writeln!(client, "{request}").expect("the agent reads")
        });
        client.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let wanted = format!(r#"{{"return": {{}}, "id": "{}"}}"#, shown.repeat(count)) + "\n";
        let mut reply = vec![0; wanted.len()];
        client.read_exact(&mut reply).expect("the agent answers");
        sent.join().expect("a client");
        assert!(reply == wanted.as_bytes(), "{}", String::from_utf8_lossy(&reply[..200]));
        println!("an id of {count} times '{shown}': {} MB", agent.peak_bytes() / 1_000_000);
        assert!(agent.peak_bytes() <= PEAK_BYTES_MAX);
    }
    let agent = Agent::start();
    let mut client = BufReader::new(agent.connect());
    // base64 of bytes 0xff as encoders write it that escape the slash: 47 MiB of data.
    let input = format!("{}{}", r"\/".repeat(1 << 20), "A".repeat(62_700_000 - (1 << 20)));
    writeln!(
        client.get_mut(),
        r#"{{"execute": "guest-exec", "arguments": {{"path": "/bin/cat", "input-data": "{input}"}}}}"#
    )
    .expect("the agent reads");
    let mut line = String::new();
    client.read_line(&mut line).expect("the agent answers");
    assert!(line.contains("\"pid\""), "{line}");
    println!("input with escapes: {} MB", agent.peak_bytes() / 1_000_000);
    assert!(agent.peak_bytes() <= PEAK_BYTES_MAX);
}

/// The largest requests that one client may send, and what each may take at its worst.
#[test]
fn the_largest_legal_request_of_one_client_is_served() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), vec![b'x'; 48 << 20]).expect("a file of 48 MiB");
    let open = |client: &mut BufReader<UnixStream>, path: &Path, mode: &str| {
        let request = json!({"execute": "guest-file-open", "arguments": {"path": path, "mode": mode}});
        ask(client, &request)["return"].as_i64().expect("a handle")
    };
    let peak_of = |act: &dyn Fn(&mut BufReader<UnixStream>)| {
        let agent = Agent::start();
        act(&mut BufReader::new(agent.connect()));
        agent.peak_bytes()
    };
    let read = peak_of(&|client| {
        let handle = open(client, file.path(), "r");
        let arguments = json!({"handle": handle, "count": 48 << 20});
        let reply = ask(client, &json!({"execute": "guest-file-read", "arguments": arguments}));
        assert_eq!(reply["return"]["count"], 48 << 20);
    });
    let write = peak_of(&|client| {
        let handle = open(client, Path::new("/dev/null"), "w");
        let data = "A".repeat(64_000_000);
        let arguments = json!({"handle": handle, "buf-b64": data});
        let reply = ask(client, &json!({"execute": "guest-file-write", "arguments": arguments}));
        assert_eq!(reply["return"]["count"], 48_000_000);
    });
    let exec = peak_of(&|client| {
        let words = vec!["xyz"; 150_000];
        let arguments = json!({"path": "/bin/true", "arg": words});
        let reply = ask(client, &json!({"execute": "guest-exec", "arguments": arguments}));
        assert!(reply["return"]["pid"].is_i64(), "{reply}");
        let arguments = json!({"path": "/bin/true", "arg": vec!["xyz"; 1_000_000]});
        let reply = ask(client, &json!({"execute": "guest-exec", "arguments": arguments}));
        let desc = reply["error"]["desc"].as_str().expect("an error");
        assert_eq!(desc, "Failed to execute child process “/bin/true” (Argument list too long)");
    });
    let output = peak_of(&|client| {
        let script = "head -c 16777216 /dev/zero; head -c 16777215 /dev/zero >&2";
        let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true});
        let pid = ask(client, &json!({"execute": "guest-exec", "arguments": arguments}))["return"]["pid"].clone();
        let result = loop {
            let reply = ask(client, &json!({"execute": "guest-exec-status", "arguments": {"pid": pid}}));
            if reply["return"]["exited"] == json!(true) {
                break reply["return"].clone();
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(result["out-data"].as_str().map(str::len), Some(16_777_216_usize.div_ceil(3) * 4));
        assert_eq!(result["err-data"].as_str().map(str::len), Some(16_777_215 / 3 * 4));
        assert!(result["out-truncated"].is_null());
    });
    let members = peak_of(&|client| {
        let members: Vec<String> = (0..500_000).map(|number| format!(r#""{number}":1"#)).collect();
        let request = format!(r#"{{"execute": "guest-ping", "arguments": {{{}}}}}"#, members.join(","));
        writeln!(client.get_mut(), "{request}").expect("the agent reads");
        let mut line = String::new();
        client.read_line(&mut line).expect("the agent answers");
        assert!(line.contains("Parameter '0' is unexpected"), "{line}");
    });
    for (what, peak) in [("read", read), ("write", write), ("exec", exec), ("output", output), ("members", members)] {
        println!("{what}: {} MB", peak / 1_000_000);
        assert!(peak <= PEAK_BYTES_MAX, "{what}: {peak} bytes");
    }
}
