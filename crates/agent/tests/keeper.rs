//! The processes that keep programs alive when their agent is gone: one that stands still, and many of them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// A hang is a failure, not a reason to wait for ever.
const PATIENCE: Duration = Duration::from_secs(300);
/// Most keepers of earlier agents beside which there is another one.
const KEEPERS_MAX: usize = 16;

/// An agent that is killed with the value.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("agent.sock");
        let _ = fs::remove_file(&socket);
        let configuration = directory.join("agent.conf");
        fs::write(&configuration, "").expect("a file");
        let program = std::env::var_os("QGA_OURS").unwrap_or_else(|| env!("CARGO_BIN_EXE_qemu-ga").into());
        let mut command = Command::new(program);
        command.args(["-m", "unix-listen", "-p"]).arg(&socket).arg("-t").arg(directory).arg("-c").arg(configuration);
        let process = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the agent starts");
        let mut agent = Self { process, socket };
        while UnixStream::connect(&agent.socket).is_err() {
            assert!(agent.process.try_wait().expect("a child").is_none(), "the agent does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    fn ask(&self, command: &str, arguments: &Value) -> Value {
        let mut client = UnixStream::connect(&self.socket).expect("the agent listens");
        client.set_read_timeout(Some(PATIENCE)).expect("a limit");
        writeln!(client, "{}", json!({"execute": command, "arguments": arguments})).expect("the agent reads");
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).expect("the agent answers");
        serde_json::from_str(&line).expect("a reply")
    }

    /// A program that runs until there is a file `go`.
    fn program(&self, directory: &Path) -> Value {
        let script = format!("echo begun; until test -e '{}/go'; do sleep 0.05; done", directory.display());
        let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true});
        let reply = self.ask("guest-exec", &arguments);
        assert!(reply["return"]["pid"].is_i64(), "{reply}");
        json!({"pid": reply["return"]["pid"]})
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ends all programs, and by that all keepers, whatever happens.
struct Ending(tempfile::TempDir);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = fs::write(self.0.path().join("go"), "");
        for keeper in keepers(self.0.path()) {
            signal("CONT", &keeper);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The process ids of the keepers that have a socket file.
fn keepers(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.file_name());
    names.filter_map(|name| Some(name.to_str()?.strip_prefix("qga.programs.")?.to_owned())).collect()
}

/// Waits until there are so many. One listens soon after it was started.
fn wait_for(directory: &Path, count: usize) -> Vec<String> {
    loop {
        let found = keepers(directory);
        if found.len() >= count {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, process: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(process).stderr(Stdio::null()).status();
}

#[test]
fn a_keeper_that_stands_still_is_named_and_keeps_nobody_from_asking_another_one() {
    let directory = Ending(tempfile::tempdir().expect("a directory"));
    let at = directory.0.path();
    let first = Agent::start(at);
    let of_first = first.program(at);
    let stopped = wait_for(at, 1).pop().expect("a keeper");
    drop(first);
    signal("STOP", &stopped);
    let second = Agent::start(at);
    let of_second = second.program(at);
    wait_for(at, 2);
    drop(second);
    // More agents start and ask than there is room for before a keeper that does not answer.
    for _ in 0..4 {
        let agent = Agent::start(at);
        assert_eq!(agent.ask("guest-exec-status", &of_second), json!({"return": {"exited": false}}));
    }
    let agent = Agent::start(at);
    let told = agent.ask("guest-exec-status", &of_first);
    let text = told["error"]["desc"].as_str().unwrap_or_default();
    assert!(text.contains("does not answer within") && text.contains(&stopped), "{told}");
    signal("CONT", &stopped);
    assert_eq!(agent.ask("guest-exec-status", &of_first), json!({"return": {"exited": false}}));
    let of_nobody = agent.ask("guest-exec-status", &json!({"pid": 1}));
    assert_eq!(of_nobody["error"]["desc"], "PID 1 does not exist");
}

#[test]
fn however_often_an_agent_is_killed_the_keepers_of_its_programs_have_a_bound() {
    let directory = Ending(tempfile::tempdir().expect("a directory"));
    let at = directory.0.path();
    let mut programs = Vec::new();
    for number in 1..=KEEPERS_MAX + 4 {
        let agent = Agent::start(at);
        programs.push(agent.program(at));
        wait_for(at, number.min(KEEPERS_MAX));
    }
    assert_eq!(keepers(at).len(), KEEPERS_MAX);
    // Programs start all the same, and those of earlier agents are known.
    let agent = Agent::start(at);
    agent.program(at);
    for program in &programs[..KEEPERS_MAX] {
        assert_eq!(agent.ask("guest-exec-status", program), json!({"return": {"exited": false}}));
    }
}
