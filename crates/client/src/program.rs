//! Programs in the guest: start one, wait for it, take its output.

use std::thread;
use std::time::{Duration, Instant};

use qga_protocol::Command;
use qga_protocol::base64::{Base64, Base64Text};
use qga_protocol::exec::{CaptureOutput, Exec, ExecStatus, Status};

use crate::agent::Agent;
use crate::error::Error;
use crate::transport::Transport;

/// A program to start.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// A path, or a name that is looked up in the guest's PATH. No shell is involved.
    pub path: String,
    /// Its arguments, without its name.
    pub arguments: Vec<String>,
    /// Its whole environment as `NAME=VALUE`; the agent's own if absent.
    pub environment: Option<Vec<String>>,
    /// What it reads; nothing if absent.
    pub input: Option<Vec<u8>>,
    /// Whether its output is kept for [`Output`].
    pub capture: bool,
    /// The directory that it starts in; the agent's own if absent. Needs a shell in the guest, and
    /// [`run_live`](Agent::run_live) or [`start_detached`](Agent::start_detached).
    pub directory: Option<String>,
    /// Whose program it is; the agent's own if absent. Needs what `directory` does.
    pub account: Option<Account>,
    /// The terminal that it runs on; none if absent. Only with [`run_live`](Agent::run_live).
    pub terminal: Option<Terminal>,
}

/// A user of the guest, as whom a program runs. HOME, USER, LOGNAME and SHELL are those of the guest's user database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// The user's name or number; the agent's own user if it is empty.
    pub name: String,
    /// Names of variables that stay as they are.
    pub kept_variables: Vec<String>,
    /// Whether the program starts in the user's home directory, unless [`Program::directory`] says another. An empty
    /// [`Program::path`] is the user's shell, on a terminal as a login shell.
    pub login: bool,
}

/// A terminal that is made for a program in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// Its height in lines at first.
    pub rows: u16,
    /// Its width in columns at first.
    pub columns: u16,
    /// What it understands: the value of TERM.
    pub kind: String,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code, 0 to 255.
    Code(i64),
    /// This signal ended it.
    Signal(i64),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

impl Exit {
    /// Whether it returned 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// Whether the agent dropped the end of `stdout`, over its limit of 16 MiB.
    pub stdout_truncated: bool,
    /// Whether the agent dropped the end of `stderr`.
    pub stderr_truncated: bool,
}

/// What came of waiting for a program.
#[derive(Debug)]
pub(crate) enum Waited {
    /// It has ended by itself.
    Ended(Output),
    /// It runs still, and is left as it is.
    TooLong,
    /// The caller did not want it any more.
    Unwanted,
}

impl<T: Transport> Agent<T> {
    /// Runs a program to its end, however long it takes, and returns what it wrote. `input`, if any, is what it reads.
    pub fn run(&mut self, program: &str, arguments: &[&str], input: Option<&[u8]>) -> Result<Output, Error> {
        let pid = self.start_program(&Program::captured(program, arguments, input))?;
        let mut pauses = self.patience().pauses();
        loop {
            if let Some(output) = self.program_output(pid)? {
                return Ok(output);
            }
            pauses.wait();
        }
    }

    /// As [`run`](Self::run), but gives up after `patience`: `None`. The program is left as it is; it may well hang where
    /// no signal reaches it, as on a file server that does not answer.
    pub fn run_within(
        &mut self,
        program: &str,
        arguments: &[&str],
        input: Option<&[u8]>,
        patience: Duration,
    ) -> Result<Option<Output>, Error> {
        match self.run_while(&Program::captured(program, arguments, input), patience, &mut || true)? {
            Waited::Ended(output) => Ok(Some(output)),
            Waited::TooLong | Waited::Unwanted => Ok(None),
        }
    }

    /// As [`run_within`](Self::run_within), but asks `go_on` between two looks at the program, which are some 100 ms apart at
    /// most. A program that is not wanted any more is ended, by SIGKILL if it does not heed SIGTERM.
    pub(crate) fn run_while(
        &mut self,
        program: &Program,
        patience: Duration,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Waited, Error> {
        const LONGEST_PAUSE: Duration = Duration::from_millis(100);
        let deadline = Instant::now().checked_add(patience);
        let pid = self.start_program(program)?;
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        loop {
            if let Some(output) = self.program_output(pid)? {
                return Ok(Waited::Ended(output));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Waited::TooLong);
            }
            if !go_on() {
                for signal in ["TERM", "KILL"] {
                    self.signal_program(pid, signal)?;
                    if self.reap(pid)? {
                        break;
                    }
                }
                return Ok(Waited::Unwanted);
            }
            thread::sleep(pauses.next(deadline));
        }
    }

    /// Starts a program and returns its number in the guest.
    pub fn start_program(&mut self, program: &Program) -> Result<i64, Error> {
        self.call(&program.command()).map(|started| started.pid)
    }

    /// What a program left, or `None` while it runs. The agent gives it out once.
    pub fn program_output(&mut self, pid: i64) -> Result<Option<Output>, Error> {
        Output::of(self.call(&Status { pid })?)
    }
}

impl Program {
    /// What it is called in a message.
    pub(crate) fn name(&self) -> &str {
        if self.path.is_empty() { "the user's shell" } else { &self.path }
    }

    /// A program whose output is kept.
    pub(crate) fn captured(program: &str, arguments: &[&str], input: Option<&[u8]>) -> Self {
        Self {
            path: program.to_owned(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: None,
            input: input.map(<[u8]>::to_vec),
            capture: true,
            ..Self::default()
        }
    }

    /// The command that starts it.
    pub(crate) fn command(&self) -> Exec<'static> {
        Exec {
            path: self.path.clone(),
            arg: Some(self.arguments.clone()),
            env: self.environment.clone(),
            input_data: self.input.as_deref().map(Base64Text::encode),
            capture_output: Some(CaptureOutput::Flag(self.capture)),
        }
    }
}

impl Output {
    /// What the agent says of a program; `None` while it runs.
    pub(crate) fn of(status: ExecStatus) -> Result<Option<Self>, Error> {
        if !status.exited {
            return Ok(None);
        }
        let exit = match (status.exitcode, status.signal) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => {
                return Err(Error::reply(Status::INFO.name, "it has neither an exit code nor a signal", b""));
            }
        };
        let bytes = |data: Option<Base64>| data.unwrap_or_default().0;
        Ok(Some(Self {
            exit,
            stdout: bytes(status.out_data),
            stderr: bytes(status.err_data),
            // The original says false when it did truncate and leaves the member out when not: its presence is the sign.
            stdout_truncated: status.out_truncated.is_some(),
            stderr_truncated: status.err_truncated.is_some(),
        }))
    }
}
