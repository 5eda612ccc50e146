//! The client against scripted agents: what it sends, and what it makes of good and bad answers.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use qga_client::{
    Connection, CopyOptions, Error, Exit, Limits, OutputStream, Patience, Program, Progress, RunOptions, Timeouts,
};
use serde_json::{Value, json};

/// An agent that answers each line with whatever the function returns.
struct Scripted<F> {
    answer: F,
    request: Vec<u8>,
    replies: Vec<u8>,
}

impl<F: FnMut(&str) -> Vec<u8>> Scripted<F> {
    fn connect(answer: F) -> Connection<Self> {
        Connection::new(Self { answer, request: Vec::new(), replies: Vec::new() })
    }
}

impl<F: FnMut(&str) -> Vec<u8>> Write for Scripted<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.request.extend_from_slice(bytes);
        while let Some(end) = self.request.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.request.drain(..=end).collect();
            let reply = (self.answer)(&String::from_utf8_lossy(&line));
            self.replies.extend(reply);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F> Read for Scripted<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = buffer.len().min(self.replies.len());
        buffer[..size].copy_from_slice(&self.replies[..size]);
        self.replies.drain(..size);
        Ok(size)
    }
}

fn sync_id(line: &str) -> i64 {
    let request: Value = serde_json::from_str(line.trim_start_matches('\u{FFFD}')).expect("a request");
    request["arguments"]["id"].as_i64().expect("an id")
}

#[test]
fn sync_forgets_garbage_old_replies_and_old_syncs() {
    let mut agent = Scripted::connect(|line| {
        let mut reply = b"{\"return\": {\"pid\": 115}}\nhalf a re".to_vec();
        reply.extend(b"\xff{\"return\": 42}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"stray\"}}\n");
        reply.extend(b"\xff{\"return\": ");
        reply.extend(sync_id(line).to_string().into_bytes());
        reply.extend(b"}\n");
        reply
    });
    agent.sync().unwrap();
}

#[test]
fn sync_says_so_when_the_agent_refuses_the_command() {
    let mut agent = Scripted::connect(|_| {
        let refusal = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command guest-sync-delimited has been \
                       disabled: the command is not allowed\"}}\n";
        refusal.as_bytes().to_vec()
    });
    let error = agent.sync().unwrap_err();
    assert_eq!(error.agent().expect("the agent's").class, "CommandNotFound");
}

#[test]
fn sync_gives_up_on_endless_garbage() {
    let mut agent = Scripted::connect(|_| vec![b'x'; 3 << 20]).with_limits(Limits {
        reply_bytes: 1 << 20,
        discarded_bytes: 1 << 20,
        ..Limits::default()
    });
    assert!(matches!(agent.sync(), Err(Error::TooLong { limit_bytes: 1_048_576, .. })));
}

#[test]
fn sync_gives_up_on_endless_ends_and_wrong_answers() {
    for piece in [b"\n".as_slice(), b"\xff{}\n", b"\xff\n"] {
        let mut agent = Connection::new(Endless { piece, pause: Duration::ZERO }).with_limits(Limits {
            reply_bytes: 1 << 20,
            discarded_bytes: 1 << 20,
            ..Limits::default()
        });
        assert!(matches!(agent.sync(), Err(Error::TooLong { limit_bytes: 1_048_576, .. })), "{piece:?}");
    }
}

#[test]
fn sync_gives_up_on_an_agent_that_never_gets_to_the_point() {
    let limits = Limits { sync_time: Duration::from_millis(30), discarded_bytes: usize::MAX, ..Limits::default() };
    for piece in [b"x".as_slice(), b"\xff{}\n"] {
        let mut agent = Connection::new(Endless { piece, pause: Duration::from_millis(1) }).with_limits(limits);
        let error = agent.sync().unwrap_err();
        assert!(matches!(&error, Error::Reply { problem, .. } if problem.contains("0.03 s")), "{error}");
    }
}

/// Says the same for ever.
struct Endless {
    piece: &'static [u8],
    pause: Duration,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        std::thread::sleep(self.pause);
        let pieces = if self.pause.is_zero() { buffer.len() / self.piece.len() } else { 1 };
        let bytes = self.piece.repeat(pieces);
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

impl Write for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An agent that says of each program what the function does of its path and its last argument.
fn with_programs(output: impl Fn(&str, &str) -> Value) -> Connection<Scripted<impl FnMut(&str) -> Vec<u8>>> {
    let mut status = json!({ "exited": true, "exitcode": 0 });
    Scripted::connect(move |line| {
        let request: Value = serde_json::from_str(line).expect("a request");
        let arguments = &request["arguments"];
        let reply = match request["execute"].as_str() {
            Some("guest-exec") => {
                let last = arguments["arg"].as_array().and_then(|all| all.last()).and_then(Value::as_str);
                status = output(arguments["path"].as_str().expect("a path"), last.unwrap_or_default());
                json!({ "return": { "pid": 7 } })
            }
            Some("guest-exec-status") => json!({ "return": status }),
            Some("guest-file-open") => json!({ "return": 1000 }),
            Some("guest-file-read") => json!({ "return": { "count": 3, "buf-b64": "YWJj", "eof": false } }),
            Some("guest-file-seek") => json!({ "return": { "position": 3, "eof": false } }),
            _ => json!({ "return": {} }),
        };
        format!("{reply}\n").into_bytes()
    })
}

fn said(text: &str) -> Value {
    json!({ "exited": true, "exitcode": 0, "out-data": base64_simd::STANDARD.encode_to_string(text) })
}

fn go_on(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn no_file_is_written_through_a_link_of_an_earlier_copy() {
    let host = tempfile::tempdir().expect("a directory");
    let (victim, copy) = (host.path().join("victim"), host.path().join("copy"));
    std::fs::create_dir(&victim).unwrap();
    std::fs::create_dir(&copy).unwrap();
    std::os::unix::fs::symlink(&victim, copy.join("d")).unwrap();
    let mut agent = with_programs(|program, last| match (program, last) {
        ("stat", "/t") => said("//41ed 3 17 1 8 512 9,a\nroot\nroot\n/t\n"),
        ("stat", _) => said("//81a4 3 17 1 8 512 9,a\nroot\nroot\n/t/d/keys\n"),
        ("find", _) => {
            said("//81a4 3 17 1 8 512 9,a\nroot\nroot\n/t/d/keys\n//a1ff 3 17 1 8 512 9,a\nroot\nroot\n/t/d/link\n")
        }
        _ => said(""),
    });
    let report = agent.download_tree("/t", &copy, CopyOptions::default(), &mut go_on).unwrap();
    assert_eq!((report.files, report.links, report.skipped.len()), (0, 0, 2), "{report:?}");
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
}

#[test]
fn a_file_without_an_end_is_not_copied_without_an_end() {
    let host = tempfile::tempdir().expect("a directory");
    let mut agent = with_programs(|_, _| said("//81a4 30000 17 1 8 512 9,a\nroot\nroot\n/x\n"));
    let error = agent.download("/x", &host.path().join("x"), CopyOptions::default(), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 0);
}

#[test]
fn a_copy_that_is_too_short_is_noticed_without_stat() {
    let host = tempfile::tempdir().expect("a directory");
    let mut agent = Scripted::connect(|line| {
        let reply = match line {
            line if line.contains("guest-exec") => json!({ "error": { "class": "CommandNotFound", "desc": "no" } }),
            line if line.contains("guest-file-open") => json!({ "return": 1000 }),
            line if line.contains("guest-file-seek") => json!({ "return": { "position": 10, "eof": false } }),
            line if line.contains("guest-file-read") => {
                json!({ "return": { "count": 3, "buf-b64": "YWJj", "eof": true } })
            }
            _ => json!({ "return": {} }),
        };
        format!("{reply}\n").into_bytes()
    });
    let error = agent.download("/x", &host.path().join("x"), CopyOptions::default(), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 0);
}

#[test]
fn a_path_that_cmd_would_run_is_refused() {
    let host = tempfile::NamedTempFile::new().expect("a file");
    let mut agent = Scripted::connect(|line| {
        assert!(!line.contains("guest-file-open"), "nothing is sent for nothing");
        let class = "GenericError";
        let desc = "Guest agent command failed, error was 'Failed to execute helper program (/bin/sh)'";
        format!("{}\n", json!({ "error": { "class": class, "desc": desc } })).into_bytes()
    });
    let options = CopyOptions::default();
    let error = agent.upload(host.path(), "C:\\a & del x", options, &mut go_on).unwrap_err();
    assert!(error.to_string().contains("cmd"), "{error}");
}

/// What two runs of a short program over one connection send, without `guest-` in front.
fn sent_for_two_runs(live: bool) -> [Vec<String>; 2] {
    let sent = std::cell::RefCell::new(Vec::new());
    let mut agent = Scripted::connect(|line| {
        let request: Value = serde_json::from_str(line).expect("a request");
        let command = request["execute"].as_str().expect("a name").trim_start_matches("guest-").to_owned();
        let result = match command.as_str() {
            "info" => json!({ "version": "10.0.2", "supported_commands": [] }),
            "exec" => json!({ "pid": 7 }),
            "exec-status" => json!({ "exited": true, "exitcode": 0 }),
            "file-open" => json!(1000),
            "file-read" => json!({ "count": 0, "buf-b64": "", "eof": true }),
            _ => json!({}),
        };
        sent.borrow_mut().push(command);
        format!("{}\n", json!({ "return": result })).into_bytes()
    });
    let mut run = || {
        let program = Program { path: "true".to_owned(), ..Program::default() };
        let options = RunOptions { live, ..RunOptions::default() };
        let mut no_output = |_: OutputStream, _: &[u8]| panic!("there is none");
        let ended = agent.run_live(&program, &options, &mut no_output).unwrap();
        assert_eq!((ended.exit, ended.was_live), (Exit::Code(0), live));
        sent.take()
    };
    [run(), run()]
}

#[test]
fn a_short_program_costs_few_requests() {
    let bare = ["exec", "exec-status"];
    assert_eq!(sent_for_two_runs(false), [bare, bare], "its start and its end, nothing else");
    // The second program removes the names of the files while they are read.
    let live = [
        "exec",
        "exec-status",
        "file-open",
        "file-open",
        "exec",
        "file-read",
        "file-read",
        "file-close",
        "file-close",
        "exec-status",
    ];
    let [first, second] = sent_for_two_runs(true);
    assert_eq!(first, [&["info"], live.as_slice()].concat());
    assert_eq!(second, live);
}

#[test]
fn a_program_that_does_not_end_is_given_up() {
    let mut agent = with_programs(|_, _| json!({ "exited": false }));
    assert_eq!(agent.run_within("stat", &["/hung"], None, Duration::from_millis(20)).unwrap(), None);
}

#[test]
fn a_task_waits_for_the_guests_programs_as_long_as_it_is_told() {
    let mut agent = with_programs(|_, _| json!({ "exited": false }));
    let patience = |program, tree| Patience {
        program: Duration::from_millis(program),
        tree: Duration::from_millis(tree),
        ..Patience::default()
    };
    agent.set_patience(patience(20, 3_600_000));
    let error = agent.stat_file("/hung", false).unwrap_err();
    assert!(error.to_string().contains("stat has not ended in 0.02 s"), "{error}");
    agent.set_patience(patience(3_600_000, 30));
    let error = agent.list_directory("/hung", true).unwrap_err();
    assert!(error.to_string().contains("find has not ended in 0.03 s"), "{error}");
}

#[test]
fn arguments_are_left_out_where_there_are_none() {
    let mut sent = Vec::new();
    let mut agent = Scripted::connect(|line| {
        sent.push(line.to_owned());
        b"{\"return\": {}}\n".to_vec()
    });
    agent.call_raw("guest-ping", Value::Null).unwrap();
    agent.call_raw("guest-sync", json!({ "id": 1 })).unwrap();
    drop(agent);
    assert_eq!(sent, ["{\"execute\":\"guest-ping\"}\n", "{\"execute\":\"guest-sync\",\"arguments\":{\"id\":1}}\n"]);
}

#[test]
fn bad_answers_are_told_apart() {
    let call = |answer: &'static [u8]| {
        Scripted::connect(move |_| answer.to_vec())
            .with_limits(Limits { reply_bytes: 100, discarded_bytes: 100, ..Limits::default() })
            .call_raw("guest-ping", Value::Null)
            .unwrap_err()
    };
    assert!(matches!(call(b""), Error::Closed { .. }));
    assert!(matches!(call(b"{\"return\": "), Error::Closed { .. }));
    assert!(matches!(call(b"hello\n"), Error::Reply { .. }));
    assert!(matches!(call(b"{\"event\": \"X\"}\n"), Error::Reply { .. }));
    assert!(matches!(call(&[b'x'; 1000]), Error::TooLong { limit_bytes: 100, .. }));
    let refused = call(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no luck\"}, \"id\": 3}\n");
    assert_eq!(refused.to_string(), "guest-ping failed in the guest: no luck");
}

#[test]
fn a_program_is_asked_for_until_it_has_exited() {
    let mut questions = 0;
    let mut agent = Scripted::connect(move |line| {
        let request: Value = serde_json::from_str(line).expect("a request");
        let reply = if request["execute"] == "guest-exec" {
            assert_eq!(
                request["arguments"],
                json!({ "path": "a\"b", "arg": ["-x"], "input-data": "aGk=", "capture-output": true })
            );
            json!({ "return": { "pid": 7 } })
        } else {
            questions += 1;
            if questions < 3 {
                json!({ "return": { "exited": false } })
            } else {
                json!({ "return": { "exited": true, "signal": 9, "out-data": "b3V0", "out-truncated": false } })
            }
        };
        format!("{reply}\n").into_bytes()
    });
    let output = agent.run("a\"b", &["-x"], Some(b"hi")).unwrap();
    assert_eq!(output.exit, Exit::Signal(9));
    assert_eq!(output.stdout, b"out");
    assert!(output.stdout_truncated, "its presence is the sign");
    assert!(!output.stderr_truncated);
}

#[test]
fn a_file_handle_is_closed_when_a_piece_fails() {
    let mut seen = Vec::new();
    let mut agent = Scripted::connect(|line| {
        let request: Value = serde_json::from_str(line).expect("a request");
        let name = request["execute"].as_str().expect("a name").to_owned();
        let reply = match name.as_str() {
            "guest-file-open" => json!({ "return": 1000 }),
            "guest-file-close" => json!({ "return": {} }),
            _ => json!({ "error": { "class": "GenericError", "desc": "failed to read file: Input/output error" } }),
        };
        seen.push(name);
        format!("{reply}\n").into_bytes()
    });
    let error = agent.read_file("/x").unwrap_err();
    assert!(error.to_string().contains("Input/output error"), "{error}");
    drop(agent);
    assert_eq!(seen, ["guest-file-open", "guest-file-read", "guest-file-close"]);
}

#[test]
fn a_file_handle_is_closed_when_the_hosts_side_fails() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut closed = false;
    let mut agent = Scripted::connect(|line| {
        closed |= line.contains("guest-file-close");
        let reply = match line {
            line if line.contains("guest-file-open") => json!({ "return": 1000 }),
            line if line.contains("guest-file-close") => json!({ "return": {} }),
            _ => json!({ "return": { "count": 3, "buf-b64": "YWJj", "eof": false } }),
        };
        format!("{reply}\n").into_bytes()
    });
    let error = agent.copy_from_guest("/x", &mut Full).unwrap_err();
    assert!(error.to_string().starts_with("cannot copy /x from the guest: "), "{error}");
    assert!(!error.needs_sync());
    drop(agent);
    assert!(closed);
}

#[test]
fn a_short_write_goes_on_where_it_ended() {
    let mut written = Vec::new();
    let mut agent = Scripted::connect(|line| {
        let request: Value = serde_json::from_str(line).expect("a request");
        let reply = match request["execute"].as_str() {
            Some("guest-file-open") => json!({ "return": 1000 }),
            Some("guest-file-write") => {
                let text = request["arguments"]["buf-b64"].as_str().expect("base64");
                let bytes = base64_simd::STANDARD.decode_to_vec(text).expect("base64");
                let taken = bytes.len().min(3);
                written.extend_from_slice(&bytes[..taken]);
                json!({ "return": { "count": taken, "eof": false } })
            }
            _ => json!({ "return": {} }),
        };
        format!("{reply}\n").into_bytes()
    });
    agent.write_file("/x", b"0123456789").unwrap();
    drop(agent);
    assert_eq!(written, b"0123456789");
}

#[test]
fn a_silent_agent_is_given_up_with_its_name_in_the_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("s");
    let _listener = UnixListener::bind(&path).expect("a socket");
    let timeouts = Timeouts { connect: Duration::from_secs(1), silence: Duration::from_millis(20) };
    let mut agent: Connection<UnixStream> = Connection::unix_with(&path, timeouts).unwrap();
    let error = agent.call_raw("guest-ping", Value::Null).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(error.to_string(), "no answer to guest-ping: the agent was silent for 0.02 s");
}

#[test]
fn no_socket_is_an_error_that_names_it() {
    let error = Connection::unix("/nonexistent/agent.sock").unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to /nonexistent/agent.sock: No such file or directory (os error 2)");
}
