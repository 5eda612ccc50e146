//! Programs whose output is seen while they run.
//!
//! The protocol gives a program's output at its end, at most 16 MiB of it. So on a guest with a shell the program writes
//! to two files that nobody else can read, which are read as they grow, and whose names are removed as soon as they are
//! open: a host that dies leaves nothing behind. Input that is large or comes bit by bit goes the same way. Without a
//! shell (Windows) the output comes at the end.
//!
//! The output takes room in the guest's `/tmp` until the program ends.
//!
//! The price is the shell: starting one costs as much as starting a short program, and nothing else can open the files,
//! since an agent gives a program pipes whose content it keeps for itself until the end, or nothing. The rest is kept
//! small: nothing is asked for but the program's end while it is young, the shell starts no process of its own, and the
//! names are removed while the output is read. [`RunOptions::live`] is for those who do not want to pay it.

use std::io;
use std::time::{Duration, Instant};

use qga_protocol::Command;
use qga_protocol::file;

use crate::agent::Agent;
use crate::conversation::random_number;
use crate::error::Error;
use crate::kind::Kind;
use crate::patience::Patience;
use crate::program::{Exit, Output, Program};
use crate::transport::Transport;

/// The exit code by which the script says that a directory takes no file: `EX_CANTCREAT`.
const NO_FILE: i64 = 73;

/// Where the files are put: the first directory that takes them.
const DIRECTORIES: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/dev/shm"];

/// Starts a program ($3...) with its output in $1.out and $1.err, and fed from $1.in if $2 says so, until that name is
/// gone. With `set -C` a file or link that somebody put there is refused; the program keeps the umask and the shell's
/// process number. The umask comes from the kernel where it tells it: `$(umask)` would start a process. The
/// variables have names that the program's environment has not: a change of one of those would reach the program.
///
/// The feeding goes through a file that grows because an agent's write to a FIFO may be lost when it is full. The file
/// gets its name when all is open, so the name can go at any time after that. What feeds is nobody's child: a program
/// that waits for its children must not find one that it has not started.
const SCRIPT: &str = r#"qga_b=$1; qga_i=$2; shift 2
while read -r qga_k qga_m; do [ "$qga_k" != Umask: ] || break; done </proc/self/status
[ -n "$qga_m" ] || qga_m=$(umask)
umask 077; set -C
command exec 3>"$qga_b.out" || exit 73
command exec 4>"$qga_b.err" || exit 73
if [ -n "$qga_i" ]; then
: >"$qga_b.new" && mkfifo "$qga_b.fifo" || exit 73
( { exec 5<"$qga_b.new" >"$qga_b.fifo" 3>&- 4>&-
mv -f "$qga_b.new" "$qga_b.in"
while cat <&5 && kill -0 $$; do
[ -e "$qga_b.in" ] || { cat <&5; break; }
sleep 0.05 || sleep 1
done; } </dev/null 2>/dev/null & )
exec <"$qga_b.fifo"; rm -f "$qga_b.fifo"
fi
umask "$qga_m"; set +C
exec "$@" >&3 2>&4 3>&- 4>&-"#;

/// Input up to this size is sent with the request. QEMU's agent spins for ever when a program ends without reading
/// more than a pipe holds.
const INPUT_AT_ONCE_BYTES: usize = 60 << 10;

/// The console is asked for its wish, and the guest for output, at least that often.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// So long a program is young: most end before, and then its output is fetched once.
const YOUTH: Duration = Duration::from_millis(20);

/// Asked for at first: QEMU's agent makes room for all that is asked for, and clears it, before it reads.
const SMALL_READ_BYTES: usize = 64 << 10;

/// Which of a program's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What comes next on a program's standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing yet.
    NotYet,
    /// Nothing more.
    End,
}

/// What is to happen with a running program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It may run on.
    GoOn,
    /// It is asked to end (SIGTERM), and made to after [`RunOptions::grace`].
    Terminate,
    /// It is made to end at once (SIGKILL).
    Kill,
}

/// The host's end of a running program.
pub trait Console {
    /// Takes output as it comes. An error ends the program and the run.
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()>;

    /// Gives input, where [`RunOptions::interactive_input`] asks for it. Must not wait.
    fn input(&mut self) -> io::Result<Input> {
        Ok(Input::End)
    }

    /// Says whether the program may go on; asked at least ten times a second. Must not wait.
    fn wish(&mut self) -> Wish {
        Wish::GoOn
    }
}

/// Takes output alone.
impl<F: FnMut(OutputStream, &[u8]) -> io::Result<()>> Console for F {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        self(stream, bytes)
    }
}

/// How a program is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// After this time the program is ended; never if absent.
    pub time_limit: Option<Duration>,
    /// How long a program that was asked to end may take before it is made to.
    pub grace: Duration,
    /// Whether [`Console::input`] is what the program reads. [`Program::input`] comes first.
    pub interactive_input: bool,
    /// Whether output is handed on while the program runs, however much it is. Without, it comes at the end, at most
    /// 16 MiB of each stream; through libvirt, which drops a reply over 10 MiB, about 7 MiB of both together. A short
    /// program then takes a fraction of the time, since no shell is started in front of it. A program that leaves
    /// another one behind which holds its output counts as running for as long as that one does. Input that is interactive or
    /// long needs the shell all the same.
    pub live: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { time_limit: None, grace: Duration::from_secs(5), interactive_input: false, live: true }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// What became of the program. Under a shell, 127 says that it was not found and 126 that it could not be started.
    pub exit: Exit,
    /// Whether it was ended by the time limit.
    pub timed_out: bool,
    /// Whether the output came as it was written; if not, it came at the end and may be cut.
    pub was_live: bool,
    /// Whether the end of an output is missing, which was longer than the agent keeps.
    pub is_cut: bool,
}

/// A program that runs, and what is open for it.
struct Running {
    pid: i64,
    /// The files' common name without their endings.
    base: String,
    outputs: [Option<OutputFile>; 2],
    input: Feed,
    removal: Option<i64>,
}

/// What a program writes to, open for reading.
#[derive(Debug, Clone, Copy)]
struct OutputFile {
    handle: i64,
    /// How much to ask for: much only where there was more than little.
    next_bytes: usize,
}

/// The way into a program's standard input.
#[derive(Default)]
struct Feed {
    is_wanted: bool,
    handle: Option<i64>,
    pending: Vec<u8>,
    /// How much of `pending` is written.
    written: usize,
    has_ended: bool,
}

/// When a program is to be ended, and what was done about it.
struct Ending {
    deadline: Option<Instant>,
    grace: Duration,
    timed_out: bool,
    asked_at: Option<Instant>,
    killed_at: Option<Instant>,
    patience_with_killed: Duration,
}

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
        let mut ending = Ending::new(options, self.patience());
        let is_live = options.live || options.interactive_input || !fits_at_once(program);
        if is_live && self.serves(file::Open::INFO.name)? && self.serves(file::Read::INFO.name)? {
            for directory in DIRECTORIES {
                let Some(running) = self.start_under_shell(program, options, directory)? else { break };
                if let Some(ended) = self.attend(running, program, &mut ending, console)? {
                    return Ok(ended);
                }
            }
        }
        self.run_with_capture(program, &mut ending, console)
    }

    /// Sends a signal to a program that the agent started, and to its process group where it leads one.
    pub fn signal_program(&mut self, pid: i64, signal: &str) -> Result<(), Error> {
        let script = "kill -\"$1\" -\"$2\" 2>/dev/null || kill -\"$1\" \"$2\"";
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
        self.reap(killer)
    }

    /// Waits for a program that takes a moment, and forgets its result.
    fn reap(&mut self, pid: i64) -> Result<(), Error> {
        let started = Instant::now();
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        while self.program_output(pid)?.is_none() && started.elapsed() < self.patience().errand {
            pauses.wait();
        }
        Ok(())
    }

    /// `None` where there is no shell.
    fn start_under_shell(
        &mut self,
        program: &Program,
        options: &RunOptions,
        directory: &str,
    ) -> Result<Option<Running>, Error> {
        let base = format!("{directory}/.qga-{:016x}{:016x}", random_number(), random_number());
        let is_fed = options.interactive_input || !fits_at_once(program);
        let way_in = if is_fed { "fed" } else { "" };
        let mut arguments: Vec<String> = ["-c", SCRIPT, "qga", &base, way_in, &program.path].map(str::to_owned).into();
        arguments.extend(program.arguments.iter().cloned());
        let shell = Program {
            path: "/bin/sh".to_owned(),
            arguments,
            environment: program.environment.clone(),
            input: program.input.clone().filter(|_| !is_fed),
            capture: false,
        };
        let pid = match self.start_program(&shell) {
            Err(error) if is_not_there(&error) => return Ok(None),
            started => started?,
        };
        let input = Feed {
            is_wanted: is_fed,
            pending: program.input.clone().filter(|_| is_fed).unwrap_or_default(),
            has_ended: !options.interactive_input,
            ..Feed::default()
        };
        Ok(Some(Running { pid, base, outputs: [None; 2], input, removal: None }))
    }

    /// Serves a program until it has ended; `None` if the directory took no files.
    fn attend(
        &mut self,
        mut running: Running,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<Option<Ended>, Error> {
        let attended = self.attend_to_the_end(&mut running, program, ending, console);
        let attended = match attended {
            Err(error) if error.needs_sync() => return Err(error),
            Err(error) => {
                // The program must not run on unheard.
                self.signal_program(running.pid, "TERM")?;
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
    ) -> Result<Option<Ended>, Error> {
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        let started = Instant::now();
        loop {
            let output = self.program_output(running.pid)?;
            let is_young = started.elapsed() < YOUTH && !running.input.is_wanted;
            let mut has_moved = false;
            if output.is_some() || !is_young {
                self.open_outputs(running)?;
                has_moved = self.feed(running, console)?;
            }
            if let Some(output) = output {
                if output.exit == Exit::Code(NO_FILE) && running.outputs.iter().any(Option::is_none) {
                    return Ok(None);
                }
                self.pass_on_the_rest(running, console)?;
                let timed_out = ending.timed_out;
                return Ok(Some(Ended { exit: output.exit, timed_out, was_live: true, is_cut: false }));
            }
            has_moved |= self.pass_on(running, console)?;
            self.end_if_wanted(running.pid, program, ending, console)?;
            if has_moved {
                pauses.restart();
            } else {
                pauses.wait();
            }
        }
    }

    fn open_outputs(&mut self, running: &mut Running) -> Result<(), Error> {
        for (place, (_, name)) in running.outputs.iter_mut().zip(NAMES) {
            if place.is_none() {
                *place = match self.open(&format!("{}.{name}", running.base), "r") {
                    Err(error) if error.kind() == Kind::NoSuchFile => return Ok(()),
                    opened => Some(OutputFile { handle: opened?, next_bytes: SMALL_READ_BYTES }),
                };
            }
        }
        // The input's name says that there is more to come.
        if running.removal.is_none() && !running.input.is_wanted {
            running.removal = Some(self.remove_names(&running.base)?);
        }
        Ok(())
    }

    fn remove_names(&mut self, base: &str) -> Result<i64, Error> {
        let mut arguments = vec!["-f".to_owned(), "--".to_owned()];
        arguments.extend(["out", "err", "in", "new", "fifo"].map(|name| format!("{base}.{name}")));
        self.start_program(&Program { path: "rm".to_owned(), arguments, ..Program::default() })
    }

    /// Hands on what has come since the last time. Returns whether there was any.
    fn pass_on(&mut self, running: &mut Running, console: &mut dyn Console) -> Result<bool, Error> {
        let mut has_moved = false;
        for (file, (stream, _)) in running.outputs.iter_mut().zip(NAMES) {
            let Some(file) = file else { continue };
            let bytes = self.read_output(file)?.buf_b64.0;
            has_moved |= !bytes.is_empty();
            take_output(console, stream, &bytes)?;
        }
        Ok(has_moved)
    }

    /// Hands on all that a program has left that has ended.
    fn pass_on_the_rest(&mut self, running: &mut Running, console: &mut dyn Console) -> Result<(), Error> {
        for (file, (stream, _)) in running.outputs.iter_mut().zip(NAMES) {
            let Some(file) = file else { continue };
            loop {
                let piece = self.read_output(file)?;
                take_output(console, stream, &piece.buf_b64.0)?;
                if piece.eof || piece.buf_b64.0.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn read_output(&mut self, file: &mut OutputFile) -> Result<file::FileRead, Error> {
        let most = self.capacity().read_bytes;
        let asked = file.next_bytes.min(most);
        let piece = self.read_piece(file.handle, asked)?;
        file.next_bytes = if piece.buf_b64.0.len() == asked { most } else { SMALL_READ_BYTES };
        Ok(piece)
    }

    /// Writes the input that there is. Returns whether there was any.
    fn feed(&mut self, running: &mut Running, console: &mut dyn Console) -> Result<bool, Error> {
        const PIECES_AT_ONCE: usize = 16;
        let feed = &mut running.input;
        if !feed.is_wanted {
            return Ok(false);
        }
        let handle = match feed.handle {
            Some(handle) => handle,
            // A mode that does not create: the shell makes the file.
            None => match self.open(&format!("{}.in", running.base), "r+") {
                Err(error) if error.kind() == Kind::NoSuchFile => return Ok(false),
                opened => *feed.handle.insert(opened?),
            },
        };
        let mut has_moved = false;
        for _ in 0..PIECES_AT_ONCE {
            if feed.written == feed.pending.len() && !feed.has_ended {
                match console.input().map_err(|source| Error::Local { act: "read the input".to_owned(), source })? {
                    Input::Bytes(bytes) => (feed.pending, feed.written) = (bytes, 0),
                    Input::NotYet => break,
                    Input::End => feed.has_ended = true,
                }
            }
            let left = &feed.pending[feed.written..];
            if left.is_empty() && feed.has_ended {
                // QEMU's agent writes the last bytes when the handle is closed, and the names go after that.
                feed.close(self)?;
                running.removal = Some(self.remove_names(&running.base)?);
                return Ok(true);
            }
            let size = left.len().min(self.capacity().write_bytes);
            self.write_piece(handle, &left[..size])?;
            feed.written += size;
            has_moved |= size > 0;
        }
        if has_moved {
            self.call(&file::Flush { handle })?;
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
            let cause = "it, or another program that holds its output, is still there after SIGKILL".to_owned();
            return Err(Error::Guest { act: format!("end {} in the guest", program.path), cause });
        }
        Ok(())
    }

    fn clean_up(&mut self, running: &mut Running) -> Result<(), Error> {
        for file in running.outputs.iter_mut().filter_map(Option::take) {
            self.close(file.handle)?;
        }
        running.input.close(self)?;
        let removal = match running.removal.take() {
            Some(removal) => removal,
            None => self.remove_names(&running.base)?,
        };
        self.reap(removal)
    }

    /// Where there is no shell, or none is wanted: output comes at the end.
    fn run_with_capture(
        &mut self,
        program: &Program,
        ending: &mut Ending,
        console: &mut dyn Console,
    ) -> Result<Ended, Error> {
        let pid = self.start_program(&Program { capture: true, ..program.clone() })?;
        let mut pauses = self.patience().pauses().at_most(LONGEST_PAUSE);
        let output: Output = loop {
            if let Some(output) = self.program_output(pid)? {
                break output;
            }
            self.end_if_wanted(pid, program, ending, console)?;
            pauses.wait();
        };
        take_output(console, OutputStream::Stdout, &output.stdout)?;
        take_output(console, OutputStream::Stderr, &output.stderr)?;
        let is_cut = output.stdout_truncated || output.stderr_truncated;
        Ok(Ended { exit: output.exit, timed_out: ending.timed_out, was_live: false, is_cut })
    }
}

impl Feed {
    fn close<T: Transport>(&mut self, agent: &mut Agent<T>) -> Result<(), Error> {
        self.is_wanted = false;
        let Some(handle) = self.handle.take() else { return Ok(()) };
        agent.close(handle)
    }
}

impl Ending {
    fn new(options: &RunOptions, patience: Patience) -> Self {
        Self {
            deadline: options.time_limit.and_then(|limit| Instant::now().checked_add(limit)),
            grace: options.grace,
            timed_out: false,
            asked_at: None,
            killed_at: None,
            patience_with_killed: patience.killed,
        }
    }

    /// The signal to send now.
    fn signal_due(&mut self, wish: Wish) -> Option<&'static str> {
        let now = Instant::now();
        if self.killed_at.is_some() {
            return None;
        }
        let has_had_grace = self.asked_at.is_some_and(|asked_at| now.duration_since(asked_at) >= self.grace);
        if wish == Wish::Kill || has_had_grace {
            self.killed_at = Some(now);
            return Some("KILL");
        }
        let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
        if self.asked_at.is_none() && (is_late || wish == Wish::Terminate) {
            self.timed_out = is_late;
            self.asked_at = Some(now);
            return Some("TERM");
        }
        None
    }

    /// Whether even SIGKILL has not helped.
    fn is_hopeless(&self) -> bool {
        self.killed_at.is_some_and(|killed_at| killed_at.elapsed() > self.patience_with_killed)
    }
}

fn take_output(console: &mut dyn Console, stream: OutputStream, bytes: &[u8]) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let act = || format!("take the program's {}", if stream == OutputStream::Stdout { "output" } else { "errors" });
    console.output(stream, bytes).map_err(|source| Error::Local { act: act(), source })
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
