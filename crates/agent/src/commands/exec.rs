//! guest-exec, guest-exec-status.
//!
//! Starting a program is all that happens here; [`crate::process::supervisor`] serves it while it runs.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use qga_protocol::exec::{CaptureMode, CaptureOutput, Exec, ExecStarted, ExecStatus, Status, StatusReply};
use qga_protocol::message::{Request, clip};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, getrlimit};

use crate::agent::Agent;
use crate::dispatch::Call;
use crate::dispatch::answer::Answer;
use crate::dispatch::handler::{Entry, Outcome, Run, Stream, family};
use crate::limits::memory_budget::Hold;
use crate::process::child::{Child, Exit};
use crate::process::client_programs::{Input, Started};
use crate::process::environment;
use crate::process::keeper;
use crate::process::kept_output;
use crate::process::kept_output::Output;
use crate::system::c_string::c_text as text;
use crate::system::error::{Error, cause_text};
use crate::system::log::audit;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![Status, Exec<'_>];

/// Where a program is looked for if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// What runs a file that is executable and of no format that the kernel knows.
const SHELL: &str = "/bin/sh";

impl Run for Exec<'_> {
    fn run(self, call: &Call<'_>) -> Result<Outcome<ExecStarted>, Error> {
        audit(format_args!("guest-exec called: {}", quoted(&self)));
        let failed = |cause: &str| Error::new(format!("Failed to execute child process “{}” ({cause})", self.path));
        let strings = strings_bytes(&self);
        if strings > strings_bytes_max() {
            // The kernel would say so too, after everything has been copied.
            return Err(failed(&cause_text(&Errno::TOOBIG.into())));
        }
        let mut copies = call.agent.budget.hold();
        if !copies.resize(strings * COPY_FACTOR) {
            return Err(failed("other requests fill the agent's memory: ask again later"));
        }
        let input = self.input_data.as_ref().map(|text| {
            // Before it is decoded, and until the program has taken it.
            let mut held = call.agent.budget.hold();
            if !held.resize(text.decoded_bytes_max()) {
                return Err(failed(
                    "other requests and the input of other programs fill the agent's memory: ask again later",
                ));
            }
            Ok(Input::new(text.decode()?, held))
        });
        let input = input.transpose()?;
        let place = call.agent.programs.reserve(&format!("Failed to execute child process “{}”", self.path))?;
        let mode = self.capture_output.map_or(CaptureMode::None, CaptureOutput::mode);
        let (streams, output, input) = connect(mode, input).map_err(|cause| failed(&cause_text(&cause)))?;
        // Before the program runs: from its first word on it is safe from the agent's end.
        let ward = keeper::expect(output.each_ref().map(|output| output.as_ref().map(OwnedFd::as_fd)));
        let child = match start(&self, &streams) {
            Ok(child) => child,
            Err(cause) => {
                ward.map(|ward| ward.ended(false));
                return Err(failed(&cause_text(&cause)));
            }
        };
        if let Some(ward) = &ward {
            ward.started(&child);
        }
        let pid = i64::from(child.pid().as_raw_pid());
        place.fill(Started { child, output, input, ward });
        Ok(ExecStarted { pid }.into())
    }
}

/// What the strings of a program cost while it is started, in parts of [`strings_bytes`]: a copy each, with what a small
/// allocation takes.
const COPY_FACTOR: usize = 6;

/// The program and its arguments as the log shows them: not more than fits into a line.
fn quoted(exec: &Exec<'_>) -> String {
    const BYTES_SHOWN: usize = 4 << 10;
    let mut shown = format!("{:?}", clip(&exec.path));
    for word in exec.arg.iter().flatten() {
        if shown.len() > BYTES_SHOWN {
            shown.push_str(" ...");
            break;
        }
        let _ = write!(shown, " {:?}", clip(word));
    }
    shown
}

/// What execve(2) counts of a program's arguments and environment: each string with its end, and a pointer to it.
fn strings_bytes(exec: &Exec<'_>) -> usize {
    let strings = exec.arg.iter().chain(&exec.env).flatten();
    strings.map(|string| string.len() + 1 + size_of::<usize>()).sum::<usize>() + exec.path.len()
}

/// The most of that which execve(2) takes: a quarter of the limit of the stack, within bounds (since Linux 4.13).
fn strings_bytes_max() -> usize {
    const LEAST: u64 = 128 << 10;
    const MOST: u64 = 6 << 20;
    let stack = getrlimit(Resource::Stack).current.unwrap_or(u64::MAX);
    usize::try_from((stack / 4).clamp(LEAST, MOST)).unwrap_or(usize::MAX)
}

/// The streams of a program, our ends of its output, and of its input with what is to be sent.
type Connected = ([OwnedFd; 3], [Option<OwnedFd>; 2], Option<(OwnedFd, Input)>);

/// The descriptors for a program's standard streams, and our ends of those that are pipes.
fn connect(mode: CaptureMode, input: Option<Input>) -> io::Result<Connected> {
    let null = || -> io::Result<OwnedFd> { Ok(File::options().read(true).write(true).open("/dev/null")?.into()) };
    let (stdin, input) = match input {
        None => (null()?, None),
        Some(mut input) => {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            set_nonblocking(&ours)?;
            input.widen(&ours);
            // Now, so that most programs have all of it whatever becomes of the agent.
            let is_sent = input.send(&ours);
            (theirs, (!is_sent).then_some((ours, input)))
        }
    };
    let output = |wanted: bool| -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        if !wanted {
            return Ok((null()?, None));
        }
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        set_nonblocking(&ours)?;
        Ok((theirs, Some(ours)))
    };
    let (stdout, out) = output(matches!(mode, CaptureMode::Stdout | CaptureMode::Separated | CaptureMode::Merged))?;
    let (stderr, err) = match mode {
        CaptureMode::Merged => (stdout.try_clone()?, None),
        _ => output(matches!(mode, CaptureMode::Stderr | CaptureMode::Separated))?,
    };
    Ok(([stdin, stdout, stderr], [out, err], input))
}

/// Our end alone: the program's end is another open file.
fn set_nonblocking(pipe: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?)
}

/// Starts the program where it is found first, as execvp(3) looks for it.
fn start(exec: &Exec<'_>, streams: &[OwnedFd; 3]) -> io::Result<Child> {
    let environment: Vec<OsString> = match &exec.env {
        Some(entries) => entries.iter().map(OsString::from).collect(),
        None => environment::of_programs(),
    };
    let search = environment.iter().find_map(|entry| entry.as_encoded_bytes().strip_prefix(b"PATH="));
    let search = search.map_or(DEFAULT_PATH.to_owned(), |path| String::from_utf8_lossy(path).into_owned());
    let environment = environment.into_iter().map(|entry| text(entry.into_vec())).collect::<Vec<_>>();
    let words = std::iter::once(&exec.path).chain(exec.arg.iter().flatten());
    let mut arguments = words.map(|word| text(word.as_bytes())).collect::<Vec<_>>();
    let [stdin, stdout, stderr] = streams;
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];

    let mut refused = io::Error::from(Errno::NOENT);
    for candidate in candidates(&exec.path, &search) {
        let file = text(candidate);
        let program =
            qga_sys::spawn::Program { file: &file, arguments: &arguments, environment: &environment, streams };
        match Child::start(&program, None) {
            Ok(child) => return Ok(child),
            Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
                // A script without a first line that says what runs it.
                let shell = text(SHELL);
                arguments.splice(..1, [shell.clone(), file]);
                let program =
                    qga_sys::spawn::Program { file: &shell, arguments: &arguments, environment: &environment, streams };
                return Child::start(&program, None);
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                _ if exec.path.contains('/') => return Err(error),
                // Not here; but what was here and may not be executed is the better reason.
                Some(Errno::NOENT | Errno::NOTDIR) => {}
                Some(Errno::ACCESS) => refused = error,
                _ => return Err(error),
            },
        }
    }
    Err(refused)
}

/// Where a program may be: the path itself if it has a slash, else each directory of the search path.
fn candidates(path: &str, search: &str) -> Vec<String> {
    if path.is_empty() {
        return Vec::new();
    }
    if path.contains('/') {
        return vec![path.to_owned()];
    }
    let in_directory = |directory: &str| match directory {
        "" => path.to_owned(),
        _ => format!("{directory}/{path}"),
    };
    // Trying a file that is not there would cost a process.
    search.split(':').map(in_directory).filter(|candidate| Path::new(candidate).exists()).collect()
}

impl Run for Status {
    /// A program that this agent does not know may be an earlier one's, whose keeper is asked.
    fn is_immediate(request: &Request, agent: &Agent) -> bool {
        let is_known = |status: Self| i32::try_from(status.pid).is_ok_and(|pid| agent.programs.knows(pid));
        request.arguments().map_or(true, is_known)
    }

    fn run(self, call: &Call<'_>) -> Result<Outcome<ExecStatus>, Error> {
        audit(format_args!("guest-exec-status called, pid: {}", self.pid));
        let pid = i32::try_from(self.pid).ok();
        let known = pid.and_then(|pid| call.agent.programs.status(pid));
        let status = match (known, pid) {
            (None, Some(pid)) => keeper::ask(pid)?,
            (known, _) => known,
        };
        let (exit, outputs) = match status {
            None => return Err(Error::new(format!("PID {} does not exist", self.pid))),
            Some(kept_output::Status::Running) => return Ok(RUNNING.into()),
            Some(kept_output::Status::Ended(exit, outputs)) => (exit, outputs),
        };
        let mut held = call.agent.budget.hold();
        // Counted, not asked for: the output is there already.
        held.resize(outputs.iter().map(Output::len).sum());
        let lost = |error| Error::io(format!("the output of program {} is lost", self.pid), &error);
        let piece = vec![0; outputs.iter().map(Output::len).max().unwrap_or(0).min(PIECE_BYTES)];
        let mut result = ResultStream { exit, outputs, piece, first: 0, _held: held };
        // What cannot be read is an error, and not half a reply.
        result.first = result.outputs[0].read_at(&mut result.piece, 0).map_err(lost)?;
        result.outputs[1].read_at(&mut [0], 0).map_err(lost)?;
        Ok(Outcome::Stream(Box::new(result)))
    }
}

/// What is told of a program that has not ended.
const RUNNING: ExecStatus = ExecStatus {
    exited: false,
    exitcode: None,
    signal: None,
    out_data: None,
    err_data: None,
    out_truncated: None,
    err_truncated: None,
};

/// Bytes of output that are read in one go. A multiple of three, so that their base64 needs no padding before the end.
const PIECE_BYTES: usize = 96 << 10;

/// The result of a program, made while it is sent.
struct ResultStream {
    exit: Option<Exit>,
    outputs: [Output; 2],
    piece: Vec<u8>,
    /// Bytes of standard output that have been read.
    first: usize,
    _held: Hold,
}

impl Stream for ResultStream {
    fn send(self: Box<Self>, mut answer: Answer<'_>, call: &Call<'_>) {
        let Self { exit, outputs, mut piece, first, _held } = *self;
        let (exitcode, signal) = match exit {
            Some(Exit::Code(code)) => (Some(i64::from(code)), None),
            Some(Exit::Signal(signal)) => (None, Some(i64::from(signal))),
            None => (None, None),
        };
        answer.begin_line();
        StatusReply::begin(answer.piece(), exitcode, signal);
        let mut read = Some(first);
        for (name, output) in ["out-data", "err-data"].into_iter().zip(&outputs) {
            let mut sent = 0;
            while sent < output.len() {
                let count = match read.take().map_or_else(|| output.read_at(&mut piece, sent), Ok) {
                    Ok(count) => count,
                    Err(error) => {
                        log::warn!("a result ended in the middle: {}", cause_text(&error));
                        break;
                    }
                };
                if sent == 0 {
                    StatusReply::begin_data(answer.piece(), name);
                } else if !answer.send_piece() {
                    return;
                }
                StatusReply::data(answer.piece(), &piece[..count]);
                call.note_progress();
                sent += count;
            }
            if sent > 0 {
                StatusReply::end_data(answer.piece());
            }
            read = None;
        }
        StatusReply::end(answer.piece(), outputs.each_ref().map(Output::is_truncated));
        answer.end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn only_bare_names_are_searched() {
        assert_eq!(candidates("/x/y", "/bin"), ["/x/y"]);
        assert_eq!(candidates("x/y", "/bin"), ["x/y"]);
        assert_eq!(candidates("", "/bin"), [""; 0]);
        assert_eq!(candidates("sh", "/nonexistent:/bin"), ["/bin/sh"]);
    }
}
