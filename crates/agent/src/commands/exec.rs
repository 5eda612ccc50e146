//! guest-exec, guest-exec-status.
//!
//! Starting a program is all that happens here; [`crate::process::supervisor`] serves it while it runs.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use qga_protocol::base64::{Base64, Base64Text};
use qga_protocol::exec::{CaptureMode, CaptureOutput, Exec, ExecStarted, ExecStatus, Status};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::process::child::Exit;
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
        let words = std::iter::once(&self.path).chain(self.arg.iter().flatten());
        let quoted: Vec<String> = words.map(|word| format!("{word:?}")).collect();
        audit(format_args!("guest-exec called: {}", quoted.join(" ")));
        let failed = |cause: &str| Error::new(format!("Failed to execute child process “{}” ({cause})", self.path));
        let input = self.input_data.as_ref().map(Base64Text::decode).transpose()?;
        let place = call.agent.programs.reserve(&format!("Failed to execute child process “{}”", self.path))?;
        let input = input.map(|data| {
            Input::new(data, &call.agent.budget)
                .ok_or_else(|| failed("the input of other programs waits to be taken and fills the agent's memory"))
        });
        let input = input.transpose()?;
        let mode = self.capture_output.map_or(CaptureMode::None, CaptureOutput::mode);
        let (streams, started) = connect(mode, input).map_err(|cause| failed(&cause_text(&cause)))?;
        // Before the program runs: from its first word on it is safe from the agent's end.
        let ward = keeper::expect(started.output.each_ref().map(|output| output.as_ref().map(OwnedFd::as_fd)));
        let pid = match start(&self, &streams) {
            Ok(pid) => pid,
            Err(cause) => {
                ward.map(|ward| ward.ended(false));
                return Err(failed(&cause_text(&cause)));
            }
        };
        if let Some(ward) = &ward {
            ward.started(pid);
        }
        place.fill(Started { pid, ward, ..started });
        Ok(ExecStarted { pid: i64::from(pid) }.into())
    }
}

/// The descriptors for a program's standard streams, and our ends of those that are pipes.
fn connect(mode: CaptureMode, input: Option<Input>) -> io::Result<([OwnedFd; 3], Started)> {
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
    Ok(([stdin, stdout, stderr], Started { pid: 0, output: [out, err], input, ward: None }))
}

/// Our end alone: the program's end is another open file.
fn set_nonblocking(pipe: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?)
}

/// Starts the program where it is found first, as execvp(3) looks for it.
fn start(exec: &Exec<'_>, streams: &[OwnedFd; 3]) -> io::Result<i32> {
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
        match program.start() {
            Ok(pid) => return Ok(pid),
            Err(error) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
                // A script without a first line that says what runs it.
                let shell = text(SHELL);
                arguments.splice(..1, [shell.clone(), file]);
                let program =
                    qga_sys::spawn::Program { file: &shell, arguments: &arguments, environment: &environment, streams };
                return program.start();
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
    fn run(self, call: &Call<'_>) -> Result<Outcome<ExecStatus>, Error> {
        audit(format_args!("guest-exec-status called, pid: {}", self.pid));
        let pid = i32::try_from(self.pid).ok();
        let status = pid.and_then(|pid| call.agent.programs.status(pid).or_else(|| keeper::ask(pid)));
        let reply = match status {
            None => return Err(Error::new(format!("PID {} does not exist", self.pid))),
            Some(kept_output::Status::Running) => ExecStatus {
                exited: false,
                exitcode: None,
                signal: None,
                out_data: None,
                err_data: None,
                out_truncated: None,
                err_truncated: None,
            },
            Some(kept_output::Status::Ended(exit, [out, err])) => {
                let failed = |error| Error::io(format!("the output of program {} is lost", self.pid), &error);
                let data = |output: Output| -> Result<Option<Base64>, Error> {
                    let bytes = output.into_bytes().map_err(failed)?;
                    Ok((!bytes.is_empty()).then_some(Base64(bytes)))
                };
                let (exitcode, signal) = match exit {
                    Some(Exit::Code(code)) => (Some(i64::from(code)), None),
                    Some(Exit::Signal(signal)) => (None, Some(i64::from(signal))),
                    None => (None, None),
                };
                ExecStatus {
                    exited: true,
                    exitcode,
                    signal,
                    out_truncated: out.is_truncated().then_some(true),
                    err_truncated: err.is_truncated().then_some(true),
                    out_data: data(out)?,
                    err_data: data(err)?,
                }
            }
        };
        Ok(reply.into())
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
