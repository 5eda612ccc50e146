//! A place where a test starts agents by shell lines of its own, and from which nothing is left behind.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qga_compliance::{Agent, Connection, Failure, Kind, PATIENCE, Subject, Tally};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The cases of one table; each gets a stage of its own.
pub struct Cases {
    subject: Subject,
    tally: Tally,
}

impl Cases {
    /// A table without cases yet.
    pub fn new(table: &str) -> Self {
        Self { subject: Subject::under_test(), tally: Tally::new(table) }
    }

    /// Runs a case, or skips it if the agent runs already.
    pub fn case(&mut self, name: &str, run: impl FnOnce(&Stage) -> Result<(), Failure>) {
        let Some(program) = self.subject.program() else {
            self.tally.skip(name, "the agent runs already and cannot be started with options");
            return;
        };
        let outcome = Stage::new(program, self.subject.kind).and_then(|stage| run(&stage));
        self.tally.record(name, outcome);
    }

    /// Counts a case that this machine cannot run.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.tally.skip(name, reason);
    }

    /// Tells the numbers and fails if a case failed.
    pub fn finish(self) {
        self.tally.finish();
    }
}

/// A directory, `$dir` in lines, and the agent, `$agent`. What was started here ends with it.
pub struct Stage {
    directory: TempDir,
    program: PathBuf,
    /// Whose behaviour to expect.
    pub kind: Kind,
}

/// How a line ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
    directory: String,
}

/// An agent that serves. Dropped, it is killed.
pub struct Serving<'a> {
    stage: &'a Stage,
    child: Child,
}

impl Stage {
    fn new(program: &Path, kind: Kind) -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("qga-stage-").map_err(|error| format!("no directory: {error}"))?;
        Ok(Self { directory, program: program.to_owned(), kind })
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The text with the directory in place of `$dir`.
    pub fn expand(&self, text: &str) -> String {
        text.replace("$dir", &self.directory.path().display().to_string())
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<(), Failure> {
        fs::write(self.path(name), content).map_err(|error| format!("cannot write {name}: {error}"))
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Result<String, Failure> {
        fs::read(self.path(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|error| format!("cannot read {name}: {error}"))
    }

    fn spawn(&self, line: &str, input: Stdio) -> Result<Child, Failure> {
        let file = |name: &str| File::create(self.path(name)).map_err(|error| format!("cannot create {name}: {error}"));
        Agent::command(Path::new("/bin/sh"), self.directory.path())
            .args(["-c", line])
            .env("agent", &self.program)
            .env("dir", self.directory.path())
            .stdin(input)
            .stdout(file("standard-output")?)
            .stderr(file("standard-error")?)
            .spawn()
            .map_err(|error| format!("cannot run sh: {error}"))
    }

    /// Runs a line that ends by itself.
    pub fn run(&self, line: &str) -> Result<Ended, Failure> {
        self.wait_for_end(self.spawn(line, Stdio::null())?)
            .map_err(|failure| format!("{failure}\nthe line: {}", self.expand(line)))
    }

    fn wait_for_end(&self, mut child: Child) -> Result<Ended, Failure> {
        let status = until("the process does not end", || {
            child.try_wait().map_err(|error| format!("cannot wait for the process: {error}"))
        });
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        Ok(Ended {
            status: status?,
            output: self.read("standard-output")?,
            errors: self.read("standard-error")?,
            directory: self.expand("$dir"),
        })
    }

    /// Starts a line that becomes an agent (`exec $agent ...`).
    pub fn start(&self, line: &str) -> Result<Serving<'_>, Failure> {
        Ok(Serving { stage: self, child: self.spawn(line, Stdio::null())? })
    }

    /// Starts a line with something open as its standard input.
    pub fn start_with(&self, line: &str, input: impl Into<Stdio>) -> Result<Serving<'_>, Failure> {
        Ok(Serving { stage: self, child: self.spawn(line, input.into())? })
    }

    /// Starts an agent on `$dir/socket` with state in `$dir` and further options, and waits until it listens.
    pub fn serve(&self, options: &str) -> Result<Serving<'_>, Failure> {
        let mut serving = self.start(&format!("exec $agent {SOCKET} {options}"))?;
        serving.wait_until_it_listens("socket")?;
        Ok(serving)
    }

    /// The same, with SIGHUP as a service has it: whoever runs the tests by nohup(1) has it ignored, and passes that on.
    pub fn serve_with_hangups(&self, options: &str) -> Result<Serving<'_>, Failure> {
        let mut serving = self.start(&format!("exec env --default-signal=HUP $agent {SOCKET} {options}"))?;
        serving.wait_until_it_listens("socket")?;
        Ok(serving)
    }

    /// Connects to a socket in the directory without a word.
    pub fn connect_to(&self, socket: &str) -> Result<Connection, Failure> {
        let stream =
            UnixStream::connect(self.path(socket)).map_err(|error| format!("cannot connect to {socket}: {error}"))?;
        Connection::new(stream)
    }

    /// Waits for a pid file of a daemon and returns the number in it.
    pub fn daemon_id(&self, file: &str) -> Result<u32, Failure> {
        until("there is no pid file with a number", || {
            Ok(self.read(file).ok().and_then(|text| text.trim_end().parse().ok()))
        })
    }
}

/// How to serve on `$dir/socket` with nothing outside `$dir`.
pub const SOCKET: &str = "-m unix-listen -p $dir/socket -t $dir -f $dir/pid";

impl Drop for Stage {
    /// Kills what still runs: daemons are nobody's children, but the directory is in their environment.
    fn drop(&mut self) {
        let mark = format!("dir={}", self.directory.path().display());
        let Ok(entries) = fs::read_dir("/proc") else { return };
        for entry in entries.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
                let _ = signal(id, Signal::KILL);
            }
        }
    }
}

impl Ended {
    fn expand(&self, text: &str) -> String {
        text.replace("$dir", &self.directory)
    }

    /// Whether the exit code is this and both outputs have these parts, in which `$dir` is the directory.
    pub fn check(&self, code: i32, output: &[&str], errors: &[&str]) -> Result<(), Failure> {
        let complain = |what: &str| {
            let Self { status, output, errors, .. } = self;
            Err(format!("{what}\n{status}\nstandard output: {output}\nstandard error: {errors}"))
        };
        if self.status.code() != Some(code) {
            return complain(&format!("expected the exit code {code}"));
        }
        if let Some(part) = output.iter().find(|part| !self.output.contains(&self.expand(part))) {
            return complain(&format!("expected on standard output: {part}"));
        }
        if let Some(part) = errors.iter().find(|part| !self.errors.contains(&self.expand(part))) {
            return complain(&format!("expected on standard error: {part}"));
        }
        Ok(())
    }
}

impl Serving<'_> {
    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Connects to `$dir/socket` and makes a fresh start.
    pub fn connect(&self) -> Result<Connection, Failure> {
        let mut host = self.stage.connect_to("socket")?;
        host.resynchronise().map_err(|failure| format!("{failure}\nthe agent said: {}", self.said()))?;
        Ok(host)
    }

    /// What it has written to its standard error.
    pub fn said(&self) -> String {
        self.stage.read("standard-error").unwrap_or_default()
    }

    /// Its status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal.
    pub fn signal(&self, which: Signal) -> Result<(), Failure> {
        signal(self.id(), which)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Result<ExitStatus, Failure> {
        let child = &mut self.child;
        until("the agent does not end", || child.try_wait().map_err(|error| error.to_string()))
    }

    /// Sends a signal and waits for the end.
    pub fn end_by(&mut self, which: Signal) -> Result<ExitStatus, Failure> {
        self.signal(which)?;
        self.wait()
    }

    /// Waits until it accepts connections at a socket of the stage.
    pub fn wait_until_it_listens(&mut self, socket: &str) -> Result<(), Failure> {
        let path = self.stage.path(socket);
        let (child, stage) = (&mut self.child, self.stage);
        until("the agent does not listen", || {
            if UnixStream::connect(&path).is_ok() {
                return Ok(Some(()));
            }
            match child.try_wait() {
                Ok(Some(status)) => {
                    Err(format!("the agent ended ({status}): {}", stage.read("standard-error").unwrap_or_default()))
                }
                _ => Ok(None),
            }
        })
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer.
pub fn until<T>(complaint: &str, mut ask: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > PATIENCE {
            return Err(complaint.to_owned());
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// Sends a signal to a process.
pub fn signal(id: u32, which: Signal) -> Result<(), Failure> {
    let process = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(|| format!("{id} is no process"))?;
    kill_process(process, which).map_err(|error| format!("cannot signal {id}: {error}"))
}

/// Whether a process is there and no zombie; its files and locks are given up only when its last thread has ended.
pub fn is_alive(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let has_threads = fs::read_dir(format!("/proc/{id}/task")).is_ok_and(|tasks| tasks.count() > 1);
    // Behind the name, which may have blanks.
    status.rsplit_once(") ").is_some_and(|(_, rest)| has_threads || !rest.starts_with('Z'))
}

/// `Ok` if the condition holds.
pub fn expect(condition: bool, complaint: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(complaint()) }
}

/// Whether a process ended with this exit code.
pub fn expect_code(status: ExitStatus, code: i32) -> Result<(), Failure> {
    expect(status.code() == Some(code), || format!("expected the exit code {code}: {status}"))
}

/// Whether a process was ended by this signal.
pub fn expect_killed(status: ExitStatus, by: Signal) -> Result<(), Failure> {
    expect(status.signal() == Some(by.as_raw()), || format!("expected the end by {by:?}: {status}"))
}
