//! Every command that changes nothing, with a real agent: the one that `AGENT_UNDER_TEST` names.

mod stage;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};
use stage::{Guest, command, run_with_input, signal, start, until, wait};

#[test]
fn a_guest_is_asked_for_what_it_is() {
    let Some(guest) = Guest::start() else { return };
    assert!(guest.qga(["ping"]).good().contains("answers in"));
    assert!(guest.json(["ping"])["milliseconds"].as_f64().unwrap() > 0.0);
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    assert!(guest.qga(["info"]).good().contains(&name));
    let info = guest.json(["info"]);
    assert_eq!(info["host-name"], name.as_str());
    assert_eq!(info["frozen"], json!(false));
    assert!(info["memory"]["total-bytes"].as_u64().unwrap() > 0, "{info}");
    for list in ["fs", "disks", "ip", "users", "cpus"] {
        assert!(guest.json([list]).is_array(), "{list}");
        assert_eq!(guest.qga([list]).code, Some(0), "{list}");
    }
    assert!(guest.json(["memory"])["memory"]["available-bytes"].is_u64());
    assert!(guest.json(["time"])["clock"]["ahead-seconds"].as_f64().unwrap().abs() < 60.0);
    assert_eq!(guest.qga(["freeze", "--status"]).good(), "thawed\n");
    assert!(guest.json(["ip"])[0]["addresses"].is_array());
}

#[test]
fn output_is_taken_at_the_end_where_that_is_asked_for() {
    let Some(guest) = Guest::start() else { return };
    let ended = guest.qga(["exec", "--at-end", "--", "sh", "-c", "readlink /proc/$$/fd/1; echo err >&2; exit 3"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(3), "err\n"));
    assert!(ended.text().starts_with("pipe:["), "there is a file in between: {ended:?}");
    guest.qga(["exec", "--at-end", "--", "/nonexistent/program"]).failed(127, "there is no such file");
    guest.qga(["exec", "--at-end", "-i", "--", "cat"]).failed(64, "cannot be used with");
}

#[test]
fn a_program_runs_as_if_it_ran_here() {
    let Some(guest) = Guest::start() else { return };
    let ended = guest.qga(["exec", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((ended.code, ended.text().as_str(), ended.stderr.as_str()), (Some(3), "out\n", "err\n"));
    assert_eq!(guest.qga(["exec", "sh", "-c", "kill -9 $$"]).code, Some(137));
    let missing = guest.qga(["exec", "nosuchprog"]);
    assert_eq!(missing.stderr, "qga: cannot run nosuchprog in the guest: no such program in PATH\n");
    assert_eq!(missing.code, Some(127));
    let elsewhere = guest.qga(["exec", "-w", "/nope", "true"]);
    assert_eq!(elsewhere.stderr, "qga: cannot run true in the guest: there is no directory /nope\n");
    assert_eq!(elsewhere.code, Some(126));
    guest.qga(["exec", "-u", "no-such-user", "id"]).failed(126, "there is no user no-such-user");
    guest.qga(["exec", "-x", "id"]).failed(64, "unexpected argument '-x'");
    guest.qga(["exec", "sh"]).failed(0, "'qga shell' opens a shell");
    assert_eq!(guest.json(["exec", "true"])["not-started"], Value::Null);
    let ended = run_with_input(&guest.target(), ["exec", "-i", "tr", "a-z", "A-Z"], b"hello\n");
    assert_eq!(ended.text(), "HELLO\n", "{ended:?}");
    let ended = guest.qga(["exec", "-e", "A=1 2", "-C", "/usr", "--shell", "echo \"$A\"; pwd; echo ${PATH:+path}"]);
    assert_eq!(ended.text(), "1 2\n/usr\npath\n", "{ended:?}");
    let ended = guest.qga(["exec", "--clear-env", "-e", "B=3", "/usr/bin/env"]);
    assert!(ended.text().contains("B=3") && !ended.text().contains("LC_ALL"), "{ended:?}");
    let look = "echo $QGA_TEST_SECRET; cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c 's3[c]r3t'";
    let output = command()
        .args(["-t", &guest.target(), "exec", "-e", "QGA_TEST_SECRET", "--", "sh", "-c", look])
        .env("QGA_TEST_SECRET", "s3cr3t")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "s3cr3t\n0\n", "{output:?}");
    let ended = guest.qga(["--json", "exec", "sh", "-c", r"printf 'a\377'"]);
    assert_eq!(ended.json()["stdout-base64"], "Yf8=", "{ended:?}");
}

#[test]
fn json_of_a_program_has_its_exit_code_and_ends_with_it() {
    let Some(guest) = Guest::start() else { return };
    let ended = guest.qga(["--json", "exec", "sh", "-c", "echo text; exit 7"]);
    assert_eq!(ended.code, Some(7));
    assert_eq!(ended.json()["exit-code"], 7);
    assert_eq!(ended.json()["stdout"], "text\n");
}

#[test]
fn output_comes_while_the_program_runs() {
    let Some(guest) = Guest::start() else { return };
    let go_on = guest.text("go-on");
    let script = format!("echo first; until [ -e {go_on} ]; do sleep 0.01; done; echo second");
    let mut child = start(&guest.target(), ["exec", "sh", "-c", &script]);
    let mut first = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first\n");
    fs::write(go_on, "").unwrap();
    assert_eq!(wait(child).good(), "second\n");
}

#[test]
fn a_program_ends_with_its_time_limit_or_with_ctrl_c() {
    let Some(guest) = Guest::start() else { return };
    guest.qga(["exec", "--time-limit", "200ms", "sleep", "300"]).failed(124, "time limit");
    let ended = guest.text("ended");
    let script = format!("trap 'touch {ended}; exit 5' TERM; echo up; while :; do sleep 0.05; done");
    let mut child = start(&guest.target(), ["exec", "sh", "-c", &script]);
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    signal(child.id(), rustix::process::Signal::INT);
    assert_eq!(wait(child).code, Some(130));
    assert!(fs::exists(ended).unwrap());
}

#[test]
fn a_program_can_be_left_running() {
    let Some(guest) = Guest::start() else { return };
    let mark = guest.text("mark");
    let pid: i64 = guest.qga(["exec", "--detach", "touch", &mark]).good().trim().parse().unwrap();
    until("the mark is there", || fs::exists(&mark).unwrap());
    until("it has ended", || {
        guest.json(["call", "guest-exec-status", "--pid", &pid.to_string()])["exited"] == json!(true)
    });
}

#[test]
fn files_are_copied_both_ways() {
    let Some(guest) = Guest::start() else { return };
    let content: Vec<u8> =
        (0..3_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(guest.path("here"), &content).unwrap();
    fs::set_permissions(guest.path("here"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::create_dir(guest.path("guest")).unwrap();
    let report = guest.json(["cp", "--checksum", &guest.text("here"), &format!(":{}/", guest.text("guest"))]);
    assert_eq!(report["bytes"], content.len());
    assert_eq!(report["sha256"].as_str().map(str::len), Some(64), "{report}");
    assert_eq!(fs::read(guest.path("guest/here")).unwrap(), content);
    assert_eq!(guest.path("guest/here").metadata().unwrap().permissions().mode() & 0o777, 0o751);
    guest.qga(["cp", "-c", &format!(":{}", guest.text("guest/here")), &guest.text("back")]).good();
    assert_eq!(fs::read(guest.path("back")).unwrap(), content);
    assert_eq!(guest.path("back").metadata().unwrap().permissions().mode() & 0o777, 0o751);
}

#[test]
fn a_copy_can_keep_everything_and_says_what_it_cannot() {
    let Some(guest) = Guest::start() else { return };
    fs::create_dir(guest.path("tree")).unwrap();
    fs::write(guest.path("tree/file"), "content").unwrap();
    fs::set_permissions(guest.path("tree/file"), fs::Permissions::from_mode(0o4701)).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_000_000_500);
    fs::File::open(guest.path("tree/file")).unwrap().set_modified(old).unwrap();
    fs::create_dir(guest.path("there")).unwrap();
    for (from, to, copy) in [("tree", ":there", "there/tree"), (":tree", "there/new", "there/new")] {
        let path = |text: &str| match text.strip_prefix(':') {
            Some(name) => format!(":{}", guest.text(name)),
            None => guest.text(text),
        };
        guest.qga(["cp", "-a", &path(from), &path(to)]).good();
        let file = guest.path(copy).join("file").metadata().unwrap();
        assert_eq!((file.permissions().mode() & 0o7777, file.modified().unwrap()), (0o4701, old), "{copy}");
    }
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("tree/socket")).unwrap();
    let ended = guest.qga(["--json", "cp", "-a", &guest.text("tree"), &format!(":{}", guest.text("again"))]);
    assert_eq!(ended.code, Some(1), "what was left out is no success: {ended:?}");
    assert_eq!(ended.json()["skipped"][0]["why"], "it is a socket");
    guest.qga(["cp", "-a", "-", &format!(":{}", guest.text("x"))]).failed(64, "has nothing but its content");
    guest.qga(["cp", "-a", "--resume", "x", ":y"]).failed(64, "cannot be used with");
}

#[test]
fn a_way_to_name_a_guest_that_scp_has_is_answered_with_ours() {
    for (paths, advice) in [
        (["web:/x", "."], "qga -t web cp :/x ."),
        (["notes.txt", "web:"], "qga -t web cp notes.txt :"),
        (["web:/a b", "."], "qga -t web cp"),
    ] {
        let output = command().arg("cp").args(paths).output().unwrap();
        let ended = stage::Ended::from(output);
        assert_eq!(ended.text(), "");
        ended.failed(64, advice);
    }
    let output = command().args(["cp", "a", "b"]).output().unwrap();
    stage::Ended::from(output).failed(64, "has a colon in front");
}

#[test]
fn trees_are_copied_and_what_cannot_be_is_named() {
    let Some(guest) = Guest::start() else { return };
    fs::create_dir_all(guest.path("tree/inner")).unwrap();
    fs::write(guest.path("tree/inner/file"), "content").unwrap();
    fs::write(guest.path("tree/line\nend"), "odd").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("tree/socket")).unwrap();
    std::os::unix::fs::symlink("inner/file", guest.path("tree/link")).unwrap();
    let ended = guest.qga(["--json", "cp", &format!(":{}", guest.text("tree")), &guest.text("copy")]);
    assert_eq!(ended.code, Some(1), "what was left out is no success: {ended:?}");
    let report = ended.json();
    assert_eq!((&report["files"], &report["links"]), (&json!(2), &json!(1)), "{report}");
    assert_eq!(report["skipped"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(fs::read_to_string(guest.path("copy/line\nend")).unwrap(), "odd");
    assert_eq!(fs::read_to_string(guest.path("copy/link")).unwrap(), "content");
    let ended = guest.qga(["cp", &guest.text("copy"), &format!(":{}", guest.text("again"))]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read_to_string(guest.path("again/inner/file")).unwrap(), "content");
}

#[test]
fn files_are_listed_and_printed() {
    let Some(guest) = Guest::start() else { return };
    fs::write(guest.path("b"), "two\n").unwrap();
    fs::write(guest.path("a\x1b[31m"), "one\n").unwrap();
    fs::write(guest.path(".hidden"), "").unwrap();
    let directory = guest.directory.path().display().to_string();
    assert_eq!(guest.qga(["ls", "-1", &directory]).good(), "a\\x1b[31m\nb\n");
    assert_eq!(guest.qga(["ls", "-1", "-a", &directory]).good(), ".hidden\na\\x1b[31m\nb\n");
    let listing = guest.json(["ls", &directory]);
    assert_eq!(listing[1]["name"], "b");
    assert_eq!((&listing[1]["size"], &listing[1]["kind"]), (&json!(4), &json!("file")));
    assert_eq!(guest.qga(["cat", &guest.text("b"), &guest.text("b")]).good(), "two\ntwo\n");
    let ended = guest.qga(["cat", &guest.text("b"), "/nonexistent", &format!(":{}", guest.text("b"))]);
    assert_eq!((ended.code, ended.text().as_str()), (Some(66), "two\ntwo\n"), "{ended:?}");
    assert!(ended.stderr.contains("/nonexistent"), "{ended:?}");
}

#[test]
fn a_listing_has_several_places_and_every_kind_of_file() {
    let Some(guest) = Guest::start() else { return };
    fs::create_dir_all(guest.path("d")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("d/socket")).unwrap();
    for name in [&b"a\xff"[..], b"a\\xff"] {
        fs::write(guest.path("d").join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
    }
    let (place, marked) = (guest.text("d"), format!(":{}", guest.text("d")));
    assert_eq!(guest.qga(["ls", "-1", &marked]).good(), "a\\\\xff\na\\xff\nsocket\n");
    assert!(guest.qga(["ls", "-l", &marked]).good().lines().any(|line| line.starts_with("srw")));
    let listing = guest.json(["ls", &place]);
    assert_eq!((&listing[0]["name"], &listing[0]["name-base64"]), (&json!("a\\xff"), &Value::Null), "{listing}");
    assert_eq!(listing[1]["name-base64"], "Yf8=", "{listing}");
    assert_eq!(listing[2]["kind"], "socket", "{listing}");
    let ended = guest.qga(["ls", "-1", &place, "/nonexistent", "/dev/null", &place]);
    assert_eq!(ended.code, Some(66), "{ended:?}");
    assert!(ended.text().starts_with(&format!("/dev/null\n\n{place}:\na")), "{ended:?}");
    let listing = guest.json(["ls", "/dev/null", &place]);
    assert_eq!(listing[0]["entries"][0]["kind"], "character-device", "{listing}");
    assert_eq!(listing[1]["path"], place.as_str(), "{listing}");
}

#[test]
fn the_standard_streams_are_copied() {
    let Some(guest) = Guest::start() else { return };
    let (there, marked) = (guest.text("there"), format!(":{}", guest.text("there")));
    let content: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    run_with_input(&guest.target(), ["cp", "-", &marked], &content).good();
    assert!(fs::read(&there).unwrap() == content);
    let ended = guest.qga(["cp", &marked, "-"]);
    assert!(ended.code == Some(0) && ended.stdout == content, "{:?}", ended.stderr);
    assert_eq!(guest.qga(["cp", &marked, "/dev/stdout"]).stdout, content);
    let into_directory = format!(":{}", guest.directory.path().display());
    guest.qga(["cp", "-", &into_directory]).failed(64, "standard input has no name");
    // A file that standard output is appended to is appended to.
    let log = guest.path("log");
    fs::write(&log, "before\n").unwrap();
    let mut command = command();
    let output = fs::OpenOptions::new().append(true).open(&log).unwrap();
    command.args(["-t", &guest.target(), "cp", ":/proc/sys/kernel/ostype", "-"]).stdout(output);
    assert!(command.status().unwrap().success());
    assert_eq!(fs::read_to_string(&log).unwrap(), "before\nLinux\n");
}

#[test]
fn any_command_can_be_called() {
    let Some(guest) = Guest::start() else { return };
    assert_eq!(guest.json(["call", "guest-sync", "--id", "-5"]), json!(-5));
    assert_eq!(guest.qga(["call", "guest-ping"]).good(), "{}\n");
    let ended = guest.qga(["raw", r#"{"execute": "guest-sync", "arguments": {"id": 3}}"#]);
    assert_eq!(ended.good(), "{\"return\":3}\n");
    let messages = b"{\"execute\": \"guest-ping\"}\n\n{\"execute\": \"guest-nothing\"}\n";
    let ended = run_with_input(&guest.target(), ["raw"], messages);
    assert!(ended.text().starts_with("{\"return\":{}}\n{\"error\":{\"class\":\"CommandNotFound\""), "{ended:?}");
}

#[test]
fn several_guests_are_told_apart() {
    let (Some(one), Some(other)) = (Guest::start(), Guest::start()) else { return };
    let both = format!("{},{}", one.target(), other.target());
    let ended = stage::run(&both, ["exec", "sh", "-c", "echo a; printf b"]);
    let mut lines: Vec<String> = ended.text().lines().map(str::to_owned).collect();
    lines.sort();
    let mut expected: Vec<String> =
        [&one, &other].iter().flat_map(|guest| ["a", "b"].map(|line| format!("{} | {line}", guest.target()))).collect();
    expected.sort();
    assert_eq!(lines, expected, "{ended:?}");
    let ended = stage::run(&both, ["--json", "exec", "sh", "-c", "exit 4"]);
    let lines: Vec<Value> = ended.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line["result"]["exit-code"] == 4), "{ended:?}");
    assert_eq!(ended.code, Some(4));
    let ended = stage::run(&format!("{both},/nonexistent"), ["ping"]);
    assert_eq!(ended.code, Some(66), "{ended:?}");
    assert!(ended.stderr.contains("3 targets: 2 done, 1 failed"), "{ended:?}");
}

#[test]
fn a_doctor_finds_nothing_wrong_with_a_healthy_agent() {
    let Some(guest) = Guest::start() else { return };
    let ended = guest.qga(["doctor"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.text().contains("an agent answers"), "{ended:?}");
    let checks = guest.json(["doctor"]);
    let is_good = |check: &Value| check["verdict"] == "good";
    assert!(checks["checks"].as_array().unwrap().iter().all(is_good), "{checks}");
    stage::run("/nonexistent", ["doctor"]).json_or_text("bad", 66);
}

impl stage::Ended {
    fn json_or_text(self, says: &str, code: i32) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.text().contains(says), "{self:?}");
    }
}

#[test]
fn measurements_are_printed_and_served() {
    let Some(guest) = Guest::start() else { return };
    let text = guest.qga(["metrics"]).good();
    let up = format!("qga_up{{target=\"{}\"}} 1\n", guest.target());
    assert!(text.contains(&up) && text.contains("\nqga_memory_total_bytes{"), "{text}");
    let down = stage::run("/nonexistent", ["metrics"]).good();
    assert!(
        down.contains("qga_up{target=\"/nonexistent\"} 0\n") && down.contains("reason=\"no-such-socket\""),
        "{down}"
    );

    let mut server = command()
        .args(["-t", &guest.target(), "metrics", "--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stderr = std::io::BufReader::new(server.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut stderr, &mut said).unwrap();
    let address = said.trim().strip_prefix("serving http://").and_then(|rest| rest.strip_suffix("/metrics"));
    let address = address.unwrap_or_else(|| panic!("{said:?}")).to_owned();
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let page = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains(&up), "{page}");
    assert!(ask("GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 "));
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_shell_takes_its_lines_from_a_pipe() {
    let Some(guest) = Guest::start() else { return };
    let ended = run_with_input(&guest.target(), ["shell"], b"cd /usr\npwd\nexit 6\n");
    assert_eq!((ended.code, ended.text().as_str()), (Some(6), "/usr\n"), "{ended:?}");
}

#[test]
fn completions_and_manual_pages_know_the_protocol() {
    let completions = command().args(["completions", "bash"]).output().unwrap();
    let completions = String::from_utf8_lossy(&completions.stdout).into_owned();
    assert!(completions.contains("guest-fsfreeze-freeze-list") && completions.contains("--timeout"));
    assert!(!completions.contains("thaw-when-input-ends"), "what is hidden is not offered");
    let directory = tempfile::tempdir().unwrap();
    let written = command().arg("man").arg(directory.path()).status().unwrap();
    assert!(written.success());
    let page = fs::read_to_string(directory.path().join("qga.1")).unwrap();
    assert!(page.contains("Exit codes") && page.contains("qga\\-freeze(1)"), "{page}");
    assert!(page.contains("EXIT STATUS") && !page.contains("EXTRA"), "{page}");
    let page = fs::read_to_string(directory.path().join("qga-call-guest-file-open.1")).unwrap();
    assert!(page.contains("\\-\\-mode"), "{page}");
}

#[test]
fn in_a_pipe_every_line_has_its_fields() {
    let Some(guest) = Guest::start() else { return };
    for (command, fields) in [("memory", 2), ("time", 5), ("ip", 6), ("fs", 6), ("cpus", 3)] {
        let text = guest.qga([command]).good();
        assert!(!text.is_empty(), "{command}");
        assert!(text.lines().all(|line| line.split('\t').count() == fields), "{command}: {text}");
    }
    let memory = guest.qga(["memory"]).good();
    let total = memory.lines().find_map(|line| line.strip_prefix("total-bytes\t")).unwrap();
    assert!(total.parse::<u64>().unwrap() > 0, "{memory}");
    let addresses = guest.qga(["ip"]).good();
    assert!(addresses.lines().all(|line| !line.starts_with('\t')), "{addresses}");
}

#[test]
fn top_is_text_where_there_is_no_screen() {
    let Some(guest) = Guest::start() else { return };
    let text = guest.qga(["top", "-n", "2", "-i", "50ms"]).good();
    assert_eq!(text.matches("memory").count(), 2, "{text}");
    assert!(!text.contains('\x1b') && text.contains("file systems"), "{text}");
    guest.qga(["--json", "top", "-n", "1"]).failed(64, "has no JSON");
}

#[test]
fn a_call_prints_the_reply_and_its_help_says_what_is_taken() {
    let Some(guest) = Guest::start() else { return };
    let name: Value = guest.qga(["call", "guest-get-host-name"]).json();
    assert!(name["host-name"].is_string(), "{name}");
    let help = command().args(["call", "guest-file-seek", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("set, cur, end") && help.contains("a whole number") && !help.contains("[`"), "{help}");
    stage::run(&guest.target(), ["call", "guest-exec", "--path", "x", "--capture-output", "true", "--nothing"])
        .failed(64, "--nothing");
}

#[test]
fn a_sockets_name_is_a_target() {
    let Some(guest) = Guest::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(guest.target(), directory.path().join("web-1.sock")).unwrap();
    for target in ["web-1.sock", "./web-1.sock", "unix:web-1.sock", "web-*.sock"] {
        let output = command().current_dir(directory.path()).args(["-t", target, "ping"]).output().unwrap();
        assert!(output.status.success(), "{target}: {output:?}");
    }
}
