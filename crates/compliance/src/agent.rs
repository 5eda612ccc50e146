//! Starts an agent on a private unix socket, or borrows one that runs already, and ends what it started.
//!
//! Nothing is left behind: sockets, state and logs live in a temporary directory that goes with the [`Agent`].

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::connection::{Connection, PATIENCE};
use crate::subject::{Access, Kind, Subject};
use crate::tally::Failure;

/// One agent behind a borrowed socket is talked to by one test at a time.
static BORROWED: Mutex<()> = Mutex::new(());

/// A running agent. Dropping it ends the process, if it was started here.
#[derive(Debug)]
pub struct Agent {
    subject: Subject,
    options: Vec<String>,
    /// Where its programs are looked for, if not where they usually are.
    programs: Option<PathBuf>,
    running: Option<Running>,
    directory: TempDir,
    _turn: Option<MutexGuard<'static, ()>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
}

impl Agent {
    /// Starts the subject with the options a test needs beside socket, state directory and pid file; an agent that
    /// runs already is borrowed (then `options` must be empty).
    pub fn start(subject: &Subject, options: &[&str]) -> Result<Self, Failure> {
        Self::launch_new(subject, options, None)
    }

    /// As [`start`](Self::start), for an agent in whose guest there are no other programs than those in a directory, but for
    /// `/bin/sh`.
    pub fn start_with_programs(subject: &Subject, programs: &Path) -> Result<Self, Failure> {
        Self::launch_new(subject, &[], Some(programs.to_owned()))
    }

    fn launch_new(subject: &Subject, options: &[&str], programs: Option<PathBuf>) -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("qga-compliance-").map_err(|error| format!("no directory: {error}"))?;
        let turn = match subject.access {
            Access::Socket(_) if !options.is_empty() => {
                return Err(format!("an agent that runs already cannot be given the options {options:?}"));
            }
            Access::Socket(_) => Some(BORROWED.lock().unwrap_or_else(PoisonError::into_inner)),
            Access::Program(_) => None,
        };
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut agent = Self { subject: subject.clone(), options, programs, running: None, directory, _turn: turn };
        agent.launch()?;
        Ok(agent)
    }

    /// The command that starts a program as a test does: own configuration path, fixed locale, no activation, nothing
    /// inherited that changes the answers. Tests of options add to it.
    #[must_use]
    pub fn command(program: &Path, directory: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(directory)
            .env("QGA_CONF", directory.join("no-configuration"))
            .env("LC_ALL", "C.UTF-8")
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .stdin(Stdio::null());
        command
    }

    /// The agent's private directory: socket `socket`, state, `pid`, and what it wrote to its standard outputs as `output`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whose answers to expect.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.subject.kind
    }

    /// Whether the agent shares this machine's files and processes with the test.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.running.is_some()
    }

    /// The process, or nothing for a borrowed agent.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Everything the agent has written to its standard outputs.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(self.directory.path().join("output"))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A new connection, resynchronised so that leftovers of earlier clients are gone.
    pub fn connect(&self) -> Result<Connection, Failure> {
        let mut connection = self.connect_as_is()?;
        connection.resynchronise()?;
        Ok(connection)
    }

    /// A new connection on which nothing has been said yet.
    pub fn connect_as_is(&self) -> Result<Connection, Failure> {
        let path = self.socket_path();
        let stream =
            UnixStream::connect(&path).map_err(|error| format!("cannot connect to {}: {error}", path.display()))?;
        Connection::new(stream)
    }

    /// Whether the process has ended, with its status; a borrowed agent never has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.running.as_mut().and_then(|running| running.child.try_wait().ok().flatten())
    }

    /// Starts the agent anew in the same directory if it is gone.
    pub fn revive(&mut self) -> Result<(), Failure> {
        if self.ended().is_some() {
            self.launch()?;
        }
        Ok(())
    }

    /// Ends the process with a signal and starts it anew in the same directory.
    pub fn restart(&mut self, signal: Signal) -> Result<(), Failure> {
        self.end(signal);
        self.launch()
    }

    fn socket_path(&self) -> PathBuf {
        match &self.subject.access {
            Access::Program(_) => self.directory.path().join("socket"),
            Access::Socket(path) => path.clone(),
        }
    }

    fn launch(&mut self) -> Result<(), Failure> {
        let Some(program) = self.subject.program() else { return Ok(()) };
        let directory = self.directory.path();
        let output = File::options()
            .create(true)
            .append(true)
            .open(directory.join("output"))
            .and_then(|output| Ok((output.try_clone()?, output)))
            .map_err(|error| format!("no file for the agent's output: {error}"))?;
        let mut command = Self::command(program, directory);
        if let Some(programs) = &self.programs {
            command.env("PATH", programs);
        }
        let child = command
            .args(["-m", "unix-listen", "-p"])
            .arg(self.socket_path())
            .arg("-t")
            .arg(directory)
            .arg("-f")
            .arg(directory.join("pid"))
            .args(&self.options)
            .stdout(output.0)
            .stderr(output.1)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        self.running = Some(Running { child });
        self.wait_until_it_listens()
    }

    fn wait_until_it_listens(&mut self) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            // A connection without a word harms neither agent.
            if UnixStream::connect(self.socket_path()).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                return Err(format!("the agent ended at its start ({status}); it said: {}", self.output()));
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("the agent does not listen after {PATIENCE:?}; it said: {}", self.output()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut running) = self.running.take() else { return };
        if let Some(process) = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(process, signal);
        }
        let told = Instant::now();
        while running.child.try_wait().is_ok_and(|status| status.is_none()) {
            if told.elapsed() > Duration::from_secs(5) {
                let _ = running.child.kill();
                let _ = running.child.wait();
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        // The old socket file would let a wait for the next start succeed too early.
        let _ = std::fs::remove_file(self.socket_path());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end(Signal::TERM);
    }
}
