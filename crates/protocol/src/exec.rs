//! Running programs in the guest: `guest-exec`, `guest-exec-status`.
//!
//! A program is started, runs on its own, and its result is fetched by the process id, once. Its output is collected up
//! to a limit and handed over when it has ended.
//!
//! The family has no way to see the output of a running program, to send it a signal, to choose its user or working
//! directory, or to set it a time limit.

use serde::{Deserialize, Serialize};

use crate::base64::{self, Base64, Base64Text};
use crate::command::{Command, Family, Type, Wire};
use crate::{command, enumeration, object};

/// The family's commands.
pub const FAMILY: Family = Family { name: "exec", commands: &[Exec::INFO, Status::INFO] };

command! {
    "guest-exec", since "2.5", reply ExecStarted, rules { secret: &["env", "input-data"] },
    /// Starts a program and returns its process id as soon as it runs.
    ///
    /// No shell is involved: ask for one (`/bin/sh`, `-c`, ...) where its syntax is wanted. The program runs as the
    /// agent's user in the agent's working directory. Standard input is empty unless `input-data` is given; output is
    /// dropped unless `capture-output` asks for it. Stopping the agent does not stop the program.
    ///
    /// Errors: a program that is not found or cannot be started; input that is not base64 (nothing is started then);
    /// more results than the agent keeps that nobody fetched.
    pub struct Exec<'a> {
        /// The program. A name without a slash is searched in `PATH`: that of `env` if given, else the agent's.
        path: String,
        /// Its arguments, without the program's own name; none if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        arg: Option<Vec<String>>,
        /// Its whole environment as `NAME=VALUE`; an empty list is an empty environment. The agent's own if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        env: Option<Vec<String>>,
        /// What to send to its standard input, in base64; then the input is closed.
        #[serde(borrow, skip_serializing_if = "Option::is_none")]
        input_data: Option<Base64Text<'a>>,
        /// Which output to keep for `guest-exec-status`; none if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        capture_output: Option<CaptureOutput>,
    }
}

/// Which output of a program is kept: the name of a mode (since 8.0), or the boolean that older clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum CaptureOutput {
    /// True for both streams separately, false for none.
    Flag(bool),
    /// The mode.
    Mode(CaptureMode),
}

impl CaptureOutput {
    /// The mode that is meant.
    #[must_use]
    pub const fn mode(self) -> CaptureMode {
        match self {
            Self::Flag(true) => CaptureMode::Separated,
            Self::Flag(false) => CaptureMode::None,
            Self::Mode(mode) => mode,
        }
    }
}

impl Wire for CaptureOutput {
    const TYPE: Type = Type::Named("GuestExecCaptureOutput");
}

impl<'de> Deserialize<'de> for CaptureOutput {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const MODES: [CaptureMode; 5] =
            [CaptureMode::None, CaptureMode::Stdout, CaptureMode::Stderr, CaptureMode::Separated, CaptureMode::Merged];
        crate::args::alternate(
            deserializer,
            "GuestExecCaptureOutput",
            crate::args::Branches::default()
                .boolean(Self::Flag)
                .name(&["none", "stdout", "stderr", "separated", "merged"], |index| Self::Mode(MODES[index])),
        )
    }
}

enumeration! {
    /// Which output of a program is kept (since 8.0).
    pub enum CaptureMode as "GuestExecCaptureOutputMode" {
        /// None.
        None,
        /// Standard output; standard error is dropped.
        Stdout,
        /// Standard error; standard output is dropped.
        Stderr,
        /// Both, each for itself.
        Separated,
        /// Both as one stream in the order of writing, reported as standard output. Not on Windows.
        Merged,
    }
}

object! {
    /// What `guest-exec` returns.
    pub struct ExecStarted as "GuestExec" {
        /// The process id; what `guest-exec-status` asks for.
        pid: i64,
    }
}

command! {
    "guest-exec-status", since "2.5", reply ExecStatus, rules { immediate: true },
    /// Tells whether a program started by `guest-exec` has ended, and its result if so.
    ///
    /// The result is handed over once: after a reply with `exited` true the agent has forgotten the process id. Clients
    /// ask again until then. A process that the program left behind does not delay its end.
    ///
    /// Errors: a process id that is not from `guest-exec`, or whose result was fetched.
    pub struct Status {
        /// From `guest-exec`.
        pid: i64,
    }
}

object! {
    /// What `guest-exec-status` returns. While the program runs only `exited` is sent.
    pub struct ExecStatus as "GuestExecStatus" {
        /// Whether the program has ended.
        exited: bool,
        /// Its exit code, 0 to 255 (32 bit on Windows), if it ended by itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        exitcode: Option<i64>,
        /// The number of the signal that ended it, if one did; on Windows an exit code from 0xC0000000 up, which is
        /// an unhandled exception's code as a negative number.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i64>,
        /// What it wrote to standard output, at most 16 MiB (16777216 bytes); absent if nothing or not kept.
        #[serde(skip_serializing_if = "Option::is_none")]
        out_data: Option<Base64>,
        /// What it wrote to standard error, at most 16 MiB (16777216 bytes); absent if nothing or not kept.
        #[serde(skip_serializing_if = "Option::is_none")]
        err_data: Option<Base64>,
        /// True if `out-data` lacks what came after the limit. QEMU's agents before 10.2 send false in that case, and
        /// nothing otherwise.
        #[serde(skip_serializing_if = "Option::is_none")]
        out_truncated: Option<bool>,
        /// The same for `err-data`.
        #[serde(skip_serializing_if = "Option::is_none")]
        err_truncated: Option<bool>,
    }
}

#[cfg(test)]
mod tests {
    use super::{CaptureMode, CaptureOutput, Exec, ExecStatus};

    fn check(text: &str, expected: CaptureOutput, mode: CaptureMode) {
        let parsed: CaptureOutput = serde_json::from_str(text).unwrap();
        assert_eq!(parsed, expected);
        assert_eq!(parsed.mode(), mode);
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
    }

    #[test]
    fn capture_output_is_a_boolean_or_a_mode() {
        check("false", CaptureOutput::Flag(false), CaptureMode::None);
        check("true", CaptureOutput::Flag(true), CaptureMode::Separated);
        check("\"none\"", CaptureOutput::Mode(CaptureMode::None), CaptureMode::None);
        check("\"stdout\"", CaptureOutput::Mode(CaptureMode::Stdout), CaptureMode::Stdout);
        check("\"stderr\"", CaptureOutput::Mode(CaptureMode::Stderr), CaptureMode::Stderr);
        check("\"separated\"", CaptureOutput::Mode(CaptureMode::Separated), CaptureMode::Separated);
        check("\"merged\"", CaptureOutput::Mode(CaptureMode::Merged), CaptureMode::Merged);
    }

    #[test]
    fn capture_output_is_nothing_else() {
        for text in ["1", "[]", "{}", "\"all\"", "\"True\"", "\"\""] {
            assert!(serde_json::from_str::<CaptureOutput>(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn absent_arguments_are_left_out() {
        let text = r#"{"path":"/bin/true"}"#;
        let exec: Exec<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&exec).unwrap(), text);
    }

    #[test]
    fn a_running_program_has_no_result() {
        let status: ExecStatus = serde_json::from_str(r#"{"exited":false}"#).unwrap();
        assert_eq!(serde_json::to_string(&status).unwrap(), r#"{"exited":false}"#);
    }
}

/// The result of `guest-exec-status` for a program that has ended, in pieces: its text is that of an [`ExecStatus`], which
/// never has to exist whole.
///
/// ```
/// use qga_protocol::exec::StatusReply;
/// let mut result = Vec::new();
/// StatusReply::begin(&mut result, Some(0), None);
/// StatusReply::begin_data(&mut result, "out-data");
/// StatusReply::data(&mut result, b"abc");
/// StatusReply::data(&mut result, b"d");
/// StatusReply::end_data(&mut result);
/// StatusReply::end(&mut result, [true, false]);
/// let whole = br#"{"exited": true, "exitcode": 0, "out-data": "YWJjZA==", "out-truncated": true}"#;
/// assert_eq!(result, whole);
/// ```
#[derive(Debug)]
pub struct StatusReply;

impl StatusReply {
    /// What comes before the data: how the program ended, as far as that is known.
    pub fn begin(line: &mut Vec<u8>, exitcode: Option<i64>, signal: Option<i64>) {
        line.extend_from_slice(b"{\"exited\": true");
        for (name, number) in [("exitcode", exitcode), ("signal", signal)] {
            if let Some(number) = number {
                line.extend_from_slice(format!(", \"{name}\": {number}").as_bytes());
            }
        }
    }

    /// Begins `out-data` or `err-data`, in this order.
    pub fn begin_data(line: &mut Vec<u8>, name: &str) {
        line.extend_from_slice(format!(", \"{name}\": \"").as_bytes());
    }

    /// Some of the data. The length of all pieces but the last must be a multiple of three.
    pub fn data(line: &mut Vec<u8>, data: &[u8]) {
        base64::append(line, data);
    }

    /// Ends the data that was begun.
    pub fn end_data(line: &mut Vec<u8>) {
        line.push(b'"');
    }

    /// What comes after the data: whether standard output and standard error lack something.
    pub fn end(line: &mut Vec<u8>, truncated: [bool; 2]) {
        for (name, _) in ["out-truncated", "err-truncated"].into_iter().zip(truncated).filter(|(_, is)| *is) {
            line.extend_from_slice(format!(", \"{name}\": true").as_bytes());
        }
        line.push(b'}');
    }
}
