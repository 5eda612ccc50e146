//! What the tests of the command line stand on: running `qga`, a real agent, and one that says what it is told to.

#![allow(dead_code, unused_imports)] // each test file uses its part

#[allow(unused_imports)] // as above
pub use qga_scripted as scripted;

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qga_compliance::{Agent, Subject};
use serde_json::Value;

/// What would take longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// `qga`, with nothing of the environment that changes its answers.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qga"));
    command.env_remove("QGA_TARGET").env_remove("NO_COLOR").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The only JSON document of its output.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The output of a run that went well.
    pub fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.text()
    }

    /// Checks the exit code and that standard error says something.
    pub fn failed(self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(says), "nothing says {says:?}: {self:?}");
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }
}

/// Runs `qga` for a target.
pub fn run<A: AsRef<OsStr>>(target: &str, arguments: impl IntoIterator<Item = A>) -> Ended {
    run_with_input(target, arguments, b"")
}

/// As [`run`], with something on standard input.
pub fn run_with_input<A: AsRef<OsStr>>(target: &str, arguments: impl IntoIterator<Item = A>, input: &[u8]) -> Ended {
    let mut child = start(target, arguments);
    // A program that does not read its input may be gone before all is written.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    wait(child)
}

/// Starts `qga` for a target, its standard streams being pipes.
pub fn start<A: AsRef<OsStr>>(target: &str, arguments: impl IntoIterator<Item = A>) -> Child {
    let mut command = command();
    command.args(["-t", target]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("qga starts")
}

/// Waits for a run; one that hangs fails the test.
pub fn wait(mut child: Child) -> Ended {
    let started = Instant::now();
    let id = child.id();
    thread::scope(|scope| {
        let (done, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            if ended.recv_timeout(PATIENCE.saturating_sub(started.elapsed())).is_err() {
                signal(id, rustix::process::Signal::KILL);
            }
        });
        drop(child.stdin.take());
        let output = child.wait_with_output().expect("the output of qga");
        assert!(started.elapsed() < PATIENCE, "qga hung: {}", String::from_utf8_lossy(&output.stderr));
        let _ = done.send(());
        output.into()
    })
}

pub fn signal(process: u32, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_raw(i32::try_from(process).expect("a process id")).expect("not 0");
    // It may be gone already.
    let _ = rustix::process::kill_process(process, signal);
}

/// Waits until something holds.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "it never came to this: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A real agent on this machine and a directory that it shares with the test.
pub struct Guest {
    agent: Agent,
    pub directory: tempfile::TempDir,
}

impl Guest {
    /// The agent that `AGENT_UNDER_TEST` names, the original without it; `None` for one that runs elsewhere.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    pub fn start_with(options: &[&str]) -> Option<Self> {
        let agent = Agent::start(&Subject::under_test(), options).expect("an agent");
        let directory = tempfile::tempdir().expect("a directory");
        agent.is_local().then_some(Self { agent, directory })
    }

    pub fn target(&self) -> String {
        self.agent.directory().join("socket").display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn qga<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ended {
        run(&self.target(), arguments)
    }

    pub fn json<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Value {
        let mut all: Vec<std::ffi::OsString> = vec!["--json".into()];
        all.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        let ended = self.qga(all);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.json()
    }
}
