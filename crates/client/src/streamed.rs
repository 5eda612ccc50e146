//! Programs whose output is seen while they run.
//!
//! The protocol gives a program's output at its end, at most 16 MiB of it. So on a guest with a shell the program writes
//! to two files that nobody else can read, which are read as they grow, and whose names are removed as soon as they are
//! open. Input that is large or comes bit by bit goes the same way, a piece at a time, and a program with such input is
//! ended when its host is gone: [`Patience::silent_host`]. Without a shell (Windows) the output comes at the end.
//!
//! The output takes room in the guest's `/tmp` until the program ends.
//!
//! The price is the shell: starting one costs as much as starting a short program, and nothing else can open the files,
//! since an agent gives a program pipes whose content it keeps for itself until the end, or nothing. The rest is kept
//! small: nothing is asked for but the program's end while it is young, the shell starts no process of its own, and the
//! names are removed while the output is read. [`RunOptions::live`] is for those who do not want to pay it.

mod console;
mod ending;
mod feed;
mod output;
mod script;

use std::time::{Duration, Instant};

use qga_protocol::Command;
use qga_protocol::file;

use crate::agent::Agent;
use crate::error::Error;
use crate::kind::Kind;
use crate::program::{Exit, Output, Program};
use crate::transport::Transport;

pub use console::{Console, Ended, Input, OutputStream, RunOptions, Wish};

use ending::Ending;
use feed::Feed;
use output::{OutputFile, Sieve};

/// Where the files are put: the first directory that takes them.
const DIRECTORIES: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/dev/shm"];

/// Input up to this size is sent with the request. QEMU's agent spins for ever when a program ends without reading
/// more than a pipe holds.
const INPUT_AT_ONCE_BYTES: usize = 60 << 10;

/// The console is asked for its wish, and the guest for output, at least that often.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// So long a program is young: most end before, and then its output is fetched once.
const YOUTH: Duration = Duration::from_millis(20);

/// So long an agent that was silent may take to say that it hears again, before its program is left alone.
const LAST_SILENCE: Duration = Duration::from_secs(2);
/// For all that is done for it then, be the agent slow or the way to it (`virsh`) hang.
const LAST_WAIT: Duration = Duration::from_secs(8);

/// A program that runs, and what is open for it.
struct Running {
    pid: i64,
    /// The random name of the script in front of it.
    name: String,
    /// The files' common name without their endings.
    base: String,
    outputs: [Option<OutputFile>; 2],
    /// How it has ended, if it has, and what its script said.
    output: Option<Output>,
    input: Option<Feed>,
    /// Names that are left, and what removes them.
    are_names_left: bool,
    removal: Option<i64>,
}

/// [`Ended::not_started`] where a program was to have a terminal.
pub const NO_TERMINAL: &str = "the guest has neither script nor Python to make a terminal with";

/// [`Ended::not_started`] where a program was to be fed as it runs.
const NO_INPUT: &str = "the guest has no way to feed it: that takes /bin/sh, mkfifo and a directory for files";

const NAMES: [(OutputStream, &str); 2] = [(OutputStream::Stdout, "out"), (OutputStream::Stderr, "err")];

impl<T: Transport> Agent<T> {
    /// Runs a program to its end and hands its output to the console as it comes. [`Program::capture`] does not matter.
    ///
    /// ```no_run
    /// use std::io::Write;
    /// use qga_client::{Connection, OutputStream, Program, RunOptions};
    ///
    /// let mut agent = Connection::unix("/run/vm/agent.sock")?;
    /// agent.sync()?;
    /// let program = Program { path: "journalctl".into(), arguments: vec!["-b".into()], ..Program::default() };
    /// let mut print = |stream, bytes: &[u8]| match stream {
    ///     OutputStream::Stdout => std::io::stdout().write_all(bytes),
    ///     OutputStream::Stderr => std::io::stderr().write_all(bytes),
    /// };
    /// let ended = agent.run_live(&program, &RunOptions::default(), &mut print)?;
    /// println!("{}", ended.exit);
    /// # Ok::<(), qga_client::Error>(())
    /// ```
    pub fn run_live(
        &mut self,
        program: &Program,
        options: &RunOptions,
        console: &mut dyn Console,
    ) -> Result<Ended, Error> {
        let mut ending = Ending::new(options, self.patience(), self.silence());
        let ended = self.run_until(program, options, &mut ending, console);
        if ending.has_shortened_silence() {
            let restored = self.set_silence(ending.silence());
            if ended.is_ok() {
                restored?;
            }
        }
        ended
    }

    fn run_until(
        &mut self,
        program: &Program,
        options: &RunOptions,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<Ended, Error> {
        let needs_files = options.interactive_input || !fits_at_once(program) || program.terminal.is_some();
        if (options.live || needs_files) && self.serves(file::Open::INFO.name)? && self.serves(file::Read::INFO.name)? {
            for directory in DIRECTORIES {
                let Some(running) = self.start_under_shell(program, options, directory)? else { break };
                match self.attend(running, program, ending, console)? {
                    Attended::Ended(ended) => return Ok(ended),
                    Attended::NoFile => {}
                }
            }
        }
        if program.terminal.is_some() {
            let not_started = Some("the agent opens no files, or no directory takes one".to_owned());
            return Ok(Ended { not_started, ..ended(Exit::Code(126), ending, true) });
        }
        if options.interactive_input {
            // It would find an end at once, and do half of its work.
            return Ok(Ended { not_started: Some(NO_INPUT.to_owned()), ..ended(Exit::Code(126), ending, true) });
        }
        self.run_with_capture(program, ending, console)
    }

    /// Starts a program whose end is not waited for and whose output nobody takes, and returns its number in the guest.
    pub fn start_detached(&mut self, program: &Program) -> Result<i64, Error> {
        self.start_program(&script::plain(&script::name(), program))
    }

    /// Sends a signal to a program that the agent started, and to its process group where it leads one, else to what it has
    /// started.
    pub fn signal_program(&mut self, pid: i64, signal: &str) -> Result<(), Error> {
        // QEMU's agent starts programs in its own group: there what the program has started is looked for.
        let script = "k() { set -- \"$1\" $(cat /proc/\"$1\"/task/*/children 2>/dev/null); kill -\"$s\" \"$1\"; shift
for c; do (k \"$c\"); done; }
s=$1; kill -\"$1\" -\"$2\" 2>/dev/null || k \"$2\"";
        let arguments = ["-c", script, "qga", signal, &pid.to_string()].map(str::to_owned).to_vec();
        let killer = Program { path: "/bin/sh".to_owned(), arguments, ..Program::default() };
        let killer = match self.start_program(&killer) {
            Err(error) if is_not_there(&error) => {
                let arguments = ["/F", "/T", "/PID", &pid.to_string()].map(str::to_owned).to_vec();
                self.start_program(&Program { path: "taskkill".to_owned(), arguments, ..Program::default() })?
            }
            started => started?,
        };
        // Its own result is of no interest: the program may just have ended. But the agent keeps it until it is fetched.
        self.reap(killer).map(|_| ())
    }

    /// Waits for a program that takes a moment, and forgets its result. Says whether it has ended.
    pub(crate) fn reap(&mut self, pid: i64) -> Result<bool, Error> {
        let started = Instant::now();
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        loop {
            if self.program_output(pid)?.is_some() {
                return Ok(true);
            }
            if started.elapsed() >= self.patience().errand {
                return Ok(false);
            }
            pauses.wait();
        }
    }

    /// `None` where there is no shell.
    fn start_under_shell(
        &mut self,
        program: &Program,
        options: &RunOptions,
        directory: &str,
    ) -> Result<Option<Running>, Error> {
        let name = script::name();
        let base = format!("{directory}/.{name}");
        let is_fed = options.interactive_input || !fits_at_once(program) || program.terminal.is_some();
        let silent_host = self.patience().silent_host;
        let rounds = u64::try_from(silent_host.as_millis() / 50).unwrap_or(u64::MAX).clamp(1, 1 << 40);
        let shell = Program {
            path: "/bin/sh".to_owned(),
            arguments: script::outer(&name, &base, program, is_fed.then_some(rounds)),
            environment: program.environment.clone(),
            input: program.input.clone().filter(|_| !is_fed),
            // What the script says before the files are open; the program's output goes to those.
            capture: true,
            ..Program::default()
        };
        let pid = match self.start_program(&shell) {
            Err(error) if is_not_there(&error) => return Ok(None),
            started => started?,
        };
        let input = is_fed.then(|| {
            let pending = program.input.clone().unwrap_or_default();
            Feed::new(pending, !options.interactive_input, silent_host)
        });
        let outputs = [None, None];
        Ok(Some(Running { pid, name, base, outputs, output: None, input, are_names_left: true, removal: None }))
    }

    /// Serves a program until it has ended.
    fn attend(
        &mut self,
        mut running: Running,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<Attended, Error> {
        let attended = self.attend_to_the_end(&mut running, program, ending, console);
        let attended = match attended {
            Err(error) if error.needs_sync() => return Err(self.leave(&mut running, error)),
            Err(error) => {
                // The program must not run on unheard.
                self.end_unheard(running.pid, program, ending, console)?;
                Err(error)
            }
            attended => attended,
        };
        let cleaned = self.clean_up(&mut running);
        let attended = attended?;
        cleaned?;
        Ok(attended)
    }

    fn attend_to_the_end(
        &mut self,
        running: &mut Running,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<Attended, Error> {
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        let started = Instant::now();
        loop {
            if let Some(silence) = ending.silence_due() {
                self.set_silence(silence)?;
            }
            let has_moved = match self.attend_once(running, program, ending, console, started) {
                Ok(Step::Ended(attended)) => return Ok(attended),
                Ok(Step::Moved(has_moved)) => has_moved,
                // Frozen meanwhile: its agent serves again when it is thawed. Who wants an end gets one.
                Err(error) if error.kind() == Kind::CommandRefused && !ending.is_wanted(console.wish()) => false,
                Err(error) => return Err(error),
            };
            if has_moved {
                pauses.restart();
            } else {
                pauses.wait();
            }
        }
    }

    fn attend_once(
        &mut self,
        running: &mut Running,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
        started: Instant,
    ) -> Result<Step, Error> {
        let output = match running.output.take() {
            Some(output) => Some(output),
            None => self.program_output(running.pid)?,
        };
        if let Some(output) = output {
            // It is told once, and what follows may have to be tried again.
            let said = running.output.insert(output);
            let (exit, said) = (said.exit, String::from_utf8_lossy(&said.stdout).into_owned());
            return self.finish(running, exit, &said, program, ending, console).map(Step::Ended);
        }
        let mut has_moved = false;
        if started.elapsed() >= YOUTH || running.input.is_some() {
            self.open_outputs(running)?;
            // Not before the outputs are open: the end of the input removes their names.
            if let Some(input) = running.input.as_mut().filter(|_| !running.are_names_left) {
                has_moved = input.move_on(self, &running.base, console)?;
            }
        }
        has_moved |= self.pass_on(running, console)?;
        self.end_if_wanted(running.pid, program, ending, console)?;
        Ok(Step::Moved(has_moved))
    }

    /// Takes what a program has left that has ended.
    fn finish(
        &mut self,
        running: &mut Running,
        exit: Exit,
        said: &str,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<Attended, Error> {
        let words = said.trim_end().strip_prefix(&format!("{}: ", running.name));
        if words == Some(script::NO_FILE) {
            return Ok(Attended::NoFile);
        }
        if words == Some(script::NO_TERMINAL) {
            let not_started = Some(NO_TERMINAL.to_owned());
            return Ok(Attended::Ended(Ended { not_started, ..ended(Exit::Code(126), ending, true) }));
        }
        self.open_outputs(running)?;
        if running.outputs.iter().any(Option::is_none) {
            let act = format!("take the output of {} in the guest", program.name());
            let cause =
                format!("it has run and ended ({exit}), but the files of its output, {}.*, are gone", running.base);
            return Err(Error::Guest { act, cause });
        }
        let mut is_cut = false;
        for (file, (stream, _)) in running.outputs.iter_mut().zip(NAMES) {
            let Some(file) = file else { continue };
            is_cut |= !file.pass_on_the_rest(self, stream, console, ending)?;
        }
        let complaint = running.outputs.iter_mut().flatten().find_map(OutputFile::complaint);
        let Some(complaint) = complaint else {
            return Ok(Attended::Ended(Ended { is_cut, ..ended(exit, ending, true) }));
        };
        Ok(Attended::Ended(not_started(exit, &complaint, program, ending, true)))
    }

    fn open_outputs(&mut self, running: &mut Running) -> Result<(), Error> {
        for (place, (_, name)) in running.outputs.iter_mut().zip(NAMES) {
            if place.is_none() {
                *place = match self.open(&format!("{}.{name}", running.base), "r") {
                    Err(error) if error.kind() == Kind::NoSuchFile => return Ok(()),
                    opened => Some(OutputFile::new(opened?, &running.name)),
                };
            }
        }
        if !running.are_names_left {
            return Ok(());
        }
        match &mut running.input {
            None => running.removal = Some(self.remove_names(&running.base)?),
            // What feeds the program removes them, without a program more.
            Some(input) => {
                if !input.open(self, &running.base)? {
                    return Ok(());
                }
                input.release_names(self)?;
            }
        }
        running.are_names_left = false;
        Ok(())
    }

    fn remove_names(&mut self, base: &str) -> Result<i64, Error> {
        let mut arguments = vec!["-f".to_owned(), "--".to_owned()];
        arguments.extend(["out", "err", "in", "ctl", "tty", "fifo"].map(|name| format!("{base}.{name}")));
        self.start_program(&Program { path: "rm".to_owned(), arguments, ..Program::default() })
    }

    /// Hands on what has come since the last time. Returns whether there was any.
    fn pass_on(&mut self, running: &mut Running, console: &mut dyn Console) -> Result<bool, Error> {
        let mut has_moved = false;
        for (file, (stream, _)) in running.outputs.iter_mut().zip(NAMES) {
            let Some(file) = file else { continue };
            has_moved |= file.pass_on(self, stream, console)?;
        }
        Ok(has_moved)
    }

    fn end_if_wanted(
        &mut self,
        pid: i64,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<(), Error> {
        if let Some(signal) = ending.signal_due(console.wish()) {
            self.signal_program(pid, signal)?;
        }
        if ending.is_hopeless() {
            return Err(cannot_end(program));
        }
        Ok(())
    }

    /// Ends a program whose output is not wanted any more, and waits until it has ended.
    fn end_unheard(
        &mut self,
        pid: i64,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<(), Error> {
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        loop {
            // It may have ended, and been asked after, before.
            match self.program_output(pid) {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(()),
                Err(error) if error.needs_sync() => return Err(error),
                Err(_) => return Ok(()),
            }
            let wish = if console.wish() == Wish::Kill { Wish::Kill } else { Wish::Terminate };
            if let Some(signal) = ending.signal_due(wish) {
                self.signal_program(pid, signal)?;
            }
            if ending.is_hopeless() {
                return Err(cannot_end(program));
            }
            pauses.wait();
        }
    }

    /// Ends a program and removes its files if the agent hears again soon; otherwise says that the program is left.
    fn leave(&mut self, running: &mut Running, error: Error) -> Error {
        self.stop_giving_up();
        self.set_deadline(Instant::now().checked_add(LAST_WAIT));
        let ended = self
            .set_silence(LAST_SILENCE)
            .and_then(|()| self.sync())
            .and_then(|()| self.signal_program(running.pid, "KILL"))
            .and_then(|()| self.clean_up(running));
        self.set_deadline(None);
        match ended {
            Ok(()) => error,
            Err(_) => Error::LeftRunning { source: Box::new(error), pid: running.pid },
        }
    }

    fn clean_up(&mut self, running: &mut Running) -> Result<(), Error> {
        for file in running.outputs.iter_mut().filter_map(Option::take) {
            self.close(file.handle)?;
        }
        if let Some(input) = &mut running.input {
            input.close(self)?;
        }
        let removal = match running.removal.take() {
            Some(removal) => removal,
            None => self.remove_names(&running.base)?,
        };
        self.reap(removal).map(|_| ())
    }

    /// Where there is no shell, or none is wanted: output comes at the end.
    fn run_with_capture(
        &mut self,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<Ended, Error> {
        let name = script::name();
        let started = self.start_program(&Program { capture: true, ..script::plain(&name, program) });
        let pid = match started {
            Err(error) if is_not_startable(&error) => {
                let is_ours = program.directory.is_some() || program.account.is_some();
                let code = if is_not_there(&error) && !is_ours { 127 } else { 126 };
                let said = match error.agent() {
                    _ if is_ours => "qga: the guest has no shell, which a directory or a user needs".to_owned(),
                    said => said.map(|said| said.desc.clone()).unwrap_or_default(),
                };
                return Ok(not_started(Exit::Code(code), &said, program, ending, false));
            }
            started => started?,
        };
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        let output: Output = loop {
            if let Some(silence) = ending.silence_due() {
                self.set_silence(silence)?;
            }
            if let Some(output) = self.program_output(pid)? {
                break output;
            }
            self.end_if_wanted(pid, program, ending, console)?;
            pauses.wait();
        };
        let is_cut = output.stdout_truncated || output.stderr_truncated;
        let mut sieve = Sieve::new(&name);
        let stderr = sieve.sift(&output.stderr);
        if let Some(complaint) = sieve.complaint() {
            return Ok(not_started(output.exit, &complaint, program, ending, false));
        }
        output::take(console, OutputStream::Stdout, &output.stdout)?;
        output::take(console, OutputStream::Stderr, &stderr)?;
        output::take(console, OutputStream::Stderr, &sieve.rest())?;
        Ok(Ended { is_cut, ..ended(output.exit, ending, false) })
    }
}

/// What became of a program that is served.
enum Attended {
    Ended(Ended),
    /// It was not started, since the directory takes no files.
    NoFile,
}

/// What a look at a running program has shown.
enum Step {
    Moved(bool),
    Ended(Attended),
}

fn ended(exit: Exit, ending: &Ending, was_live: bool) -> Ended {
    Ended { exit, not_started: None, timed_out: ending.has_timed_out(), was_live, is_cut: false }
}

/// A shell's or an agent's words for a program that could not be started, in ours.
fn not_started(exit: Exit, complaint: &str, program: &Program, ending: &Ending, was_live: bool) -> Ended {
    let first = complaint.lines().next().unwrap_or_default().trim_end();
    let last = first.rsplit(": ").next().unwrap_or_default();
    let cause = if let Some(ours) = first.strip_prefix("qga: ") {
        ours.to_owned()
    } else if exit != Exit::Code(127) {
        // GLib has the cause in brackets.
        let cause = last.rsplit_once('(').map_or(last, |(_, cause)| cause.trim_end_matches(')'));
        let cause = cause.replace("cannot execute binary file", "it is no program");
        cause.replace("Exec format error", "it is no program for this machine")
    } else if program.path.contains('/') || program.path.is_empty() {
        // A script has a program of its own in its first line.
        "there is no such file, or what its first line names is missing".to_owned()
    } else {
        "no such program in PATH".to_owned()
    };
    let code = if exit == Exit::Code(127) { 127 } else { 126 };
    Ended { not_started: Some(cause), ..ended(Exit::Code(code), ending, was_live) }
}

fn cannot_end(program: &Program) -> Error {
    let cause = "it, or another program that holds its output, is still there after SIGKILL".to_owned();
    Error::Guest { act: format!("end {} in the guest", program.name()), cause }
}

/// Whether a program's input can go with the request that starts it.
fn fits_at_once(program: &Program) -> bool {
    program.input.as_ref().is_none_or(|input| input.len() <= INPUT_AT_ONCE_BYTES)
}

/// Whether a program could not be started because there is none.
fn is_not_there(error: &Error) -> bool {
    error.agent().is_some_and(|said| {
        let words = said.desc.as_str();
        words.contains("No such file or directory") || words.contains("cannot find")
    })
}

/// Whether the system refused to start a program.
fn is_not_startable(error: &Error) -> bool {
    is_not_there(error) || error.agent().is_some_and(|said| said.desc.contains("Failed to execute child process"))
}
