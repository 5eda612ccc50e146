//! Programs in the guest: start one, wait for it, take its output.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::connection::{Connection, push_json_text};
use crate::error::Error;

/// The first wait between two questions; it grows until [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

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
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code, 0 to 255.
    Code(i64),
    /// This signal ended it.
    Signal(i64),
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

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
    out_data: Option<String>,
    err_data: Option<String>,
    // The original says `false` when it did truncate and leaves the member out when not: its presence is the sign.
    out_truncated: Option<bool>,
    err_truncated: Option<bool>,
}

impl<S: Read + Write> Connection<S> {
    /// Runs a program to its end and returns what it wrote. `input`, if any, is what it reads.
    pub fn run(&mut self, program: &str, arguments: &[&str], input: Option<&[u8]>) -> Result<Output, Error> {
        let pid = self.start_program(&Program {
            path: program.to_owned(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: None,
            input: input.map(<[u8]>::to_vec),
            capture: true,
        })?;
        let mut pause = SHORTEST_PAUSE;
        loop {
            if let Some(output) = self.program_output(pid)? {
                return Ok(output);
            }
            thread::sleep(pause);
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    /// Starts a program and returns its number in the guest.
    pub fn start_program(&mut self, program: &Program) -> Result<i64, Error> {
        const COMMAND: &str = "guest-exec";
        #[derive(Deserialize)]
        struct Started {
            pid: i64,
        }
        self.send_with(COMMAND, |request| {
            request.extend_from_slice(b"{\"path\":");
            push_json_text(request, &program.path);
            let lists = [("arg", Some(&program.arguments)), ("env", program.environment.as_ref())];
            for (name, list) in lists {
                if let Some(list) = list {
                    request.extend_from_slice(format!(",\"{name}\":{}", json!(list)).as_bytes());
                }
            }
            if let Some(input) = &program.input {
                request.extend_from_slice(b",\"input-data\":\"");
                base64_simd::STANDARD.encode_append(input, request);
                request.push(b'"');
            }
            request.extend_from_slice(format!(",\"capture-output\":{}}}", program.capture).as_bytes());
        })?;
        self.receive_reply::<Started>(COMMAND).map(|started| started.pid)
    }

    /// What a program left, or `None` while it runs. The agent gives it out once.
    pub fn program_output(&mut self, pid: i64) -> Result<Option<Output>, Error> {
        const COMMAND: &str = "guest-exec-status";
        self.send_with(COMMAND, |request| request.extend_from_slice(format!("{{\"pid\":{pid}}}").as_bytes()))?;
        let status: Status = self.receive_reply(COMMAND)?;
        if !status.exited {
            return Ok(None);
        }
        let exit = match (status.exitcode, status.signal) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => return Err(Error::reply(COMMAND, "it has neither an exit code nor a signal", b"")),
        };
        let decode = |text: Option<String>| {
            let text = text.unwrap_or_default();
            base64_simd::STANDARD
                .decode_to_vec(text.as_bytes())
                .map_err(|problem| Error::reply(COMMAND, problem, text.as_bytes()))
        };
        Ok(Some(Output {
            exit,
            stdout: decode(status.out_data)?,
            stderr: decode(status.err_data)?,
            stdout_truncated: status.out_truncated.is_some(),
            stderr_truncated: status.err_truncated.is_some(),
        }))
    }
}
