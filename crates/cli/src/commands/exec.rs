//! `qga exec`: a program in the guest as if it ran here.

use std::io::{self, IsTerminal, Read};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use qga_client::{Account, AnyAgent, Console, Ended, Exit, Input, OutputStream, Program, RunOptions, Wish};
use serde_json::{Value, json};

use super::{guest, shell};
use crate::arguments::Exec;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::fleet;
use crate::general_options::General;
use crate::interrupts::Interrupts;
use crate::output::Page;
use crate::target::Selection;
use crate::visit::Visit;

/// Shells that read their lines from standard input.
const SHELLS: [&str; 9] = ["sh", "ash", "bash", "csh", "dash", "fish", "ksh", "tcsh", "zsh"];

/// Most output that is kept for `--json`, of each stream.
const KEPT_BYTES: usize = 64 << 20;

pub fn run(options: &Exec, selection: &Selection, general: &General) -> Result<()> {
    check(options)?;
    let is_for_many = selection.is_open || selection.targets.len() > 1;
    if options.stdin && is_for_many {
        return Err(Failure::usage("--stdin is for one target: the input can be read only once"));
    }
    if options.tty && is_for_many {
        return Err(Failure::usage("--tty is for one target: this terminal shows one program at a time"));
    }
    if options.tty && general.json {
        return Err(Failure::usage("a program on a terminal has no JSON form; leave -t or --json out"));
    }
    fleet::visit(selection, general, &|visit| run_one(options, visit))
}

/// Finds what was meant otherwise: behind `exec`, -t asks for a terminal, as docker's does, and names no target.
fn check(options: &Exec) -> Result<()> {
    let first = &options.program[0];
    let is_target = || {
        let has_scheme = ["libvirt", "pve:", "vsock:", "hybrid:", "serial:", "unix:"];
        options.program.get(1).is_some_and(|word| word == "--")
            || has_scheme.iter().any(|scheme| first.starts_with(scheme))
            || std::fs::metadata(first).is_ok_and(|file| std::os::unix::fs::FileTypeExt::is_socket(&file.file_type()))
    };
    if options.tty && is_target() {
        return Err(Failure::told(
            Code::Usage,
            format!("behind exec, -t asks for a terminal, and {first:?} would be the program"),
            format!("The target comes before: qga -t {first} exec ...; or write --target {first}."),
        ));
    }
    if options.tty && options.stdin && !io::stdin().is_terminal() {
        return Err(Failure::told(
            Code::Usage,
            "the input is no terminal, which -t with -i asks for",
            "Without -t the program reads the input as it is: qga exec -i PROGRAM",
        ));
    }
    Ok(())
}

fn run_one(options: &Exec, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let program = program(options, &mut agent, &visit.page)?;
    if options.detach {
        let pid = agent.start_detached(&program)?;
        return if visit.page.is_json() {
            visit.page.json(&json!({ "pid": pid }))
        } else {
            visit.page.line(pid.to_string())
        };
    }
    let run_options = RunOptions {
        time_limit: options.time_limit,
        interactive_input: options.stdin,
        live: !options.at_end,
        ..RunOptions::default()
    };
    if options.tty {
        let input = options.stdin.then(|| shell::input_for(&program));
        let ended = shell::on_terminal(&mut agent, &program, &run_options, input.as_ref())?;
        return shell::end(&visit.page, &options.program[0], ended, Err(Code::Stopped));
    }
    let json = visit.page.is_json();
    // Not before: who waits for a connection may be ended by the first signal.
    let interrupts = Interrupts::watch()?;
    agent.give_up_when(Interrupts::are_impatient);
    let mut console = Terminal {
        page: &mut visit.page,
        kept: json.then(<[Vec<u8>; 2]>::default),
        input: options.stdin.then(|| standard_input(<[u8]>::len)),
        interrupts: Watcher::new(interrupts),
    };
    let ended = agent.run_live(&program, &run_options, &mut console)?;
    let (was_stopped, kept) = (console.interrupts.was_stopped(), console.kept.take());
    if ended.is_cut {
        let why = if ended.was_live { "it was not waited for" } else { "it is longer than the agent keeps" };
        visit.page.note(format!("the end of the output is missing: {why}"));
    }
    if let Some(kept) = kept {
        visit.page.json(&result_json(&ended, kept))?;
    } else if ended.timed_out {
        visit.page.note("the time limit ended the program");
    } else {
        tell_if_not_started(&visit.page, &options.program[0], &ended);
        hint_at_shell(options, &visit.page);
    }
    match exit_code(&ended, was_stopped) {
        0 => Ok(()),
        code => Err(Failure::Silent(code)),
    }
}

/// Says in our words why a program was not started.
pub fn tell_if_not_started(page: &Page, program: &str, ended: &Ended) {
    if let Some(cause) = &ended.not_started {
        page.note(format!("qga: cannot run {program} in the guest: {cause}"));
    }
}

/// A shell that is given nothing to read ends at once, with success.
fn hint_at_shell(options: &Exec, page: &Page) {
    let [program] = options.program.as_slice() else { return };
    let name = program.rsplit('/').next().unwrap_or_default();
    if !options.stdin && !options.shell && SHELLS.contains(&name) {
        page.note(format!(
            "{name} had no input to read its lines from; 'qga shell' opens a shell, exec -i passes input on"
        ));
    }
}

/// What the process ends with: the program's exit code, 128 and the signal's number, or the reason why it was ended.
pub fn exit_code(ended: &Ended, was_stopped: bool) -> u8 {
    if ended.timed_out {
        return Code::TimeLimit.number();
    }
    if was_stopped {
        return Code::Stopped.number();
    }
    match ended.exit {
        // Windows has exit codes of 32 bits; what is not 0 must not become it.
        Exit::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Exit::Signal(signal) => u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX),
    }
}

fn program(options: &Exec, agent: &mut AnyAgent, page: &Page) -> Result<Program> {
    let mut words = options.program.clone();
    if options.shell {
        let line = words.join(" ");
        let system = guest::system(agent)?;
        let shell = if guest::is_windows(system.as_ref()) { ["cmd.exe", "/c"] } else { ["/bin/sh", "-c"] };
        words = vec![shell[0].to_owned(), shell[1].to_owned(), line];
    }
    // The protocol replaces the whole environment, so what is to be kept of it goes along.
    let own = match (options.clear_env, options.env.is_empty()) {
        (true, _) => Some(Vec::new()),
        (false, true) => None,
        (false, false) => agents_environment(agent)?,
    };
    let environment = own.map(|own| with_variables(own, &options.env));
    if environment.is_none() && !options.env.is_empty() {
        page.note("the agent does not tell its environment: the guest's users can see the variables with ps");
        if words[0].contains('=') {
            return Err(Failure::usage(format!("--env does not go with the program name {:?}", words[0])));
        }
        words.splice(0..0, ["env".to_owned()].into_iter().chain(options.env.iter().cloned()));
    }
    let path = words.remove(0);
    let account = options.user.clone().map(|name| Account {
        name,
        kept_variables: options.env.iter().map(|variable| name_of(variable).to_owned()).collect(),
        login: false,
    });
    let (directory, terminal) = (options.directory.clone(), options.tty.then(shell::terminal));
    Ok(Program { path, arguments: words, environment, directory, account, terminal, ..Program::default() })
}

/// The agent's environment, which its programs inherit; nothing where it cannot be read.
fn agents_environment(agent: &mut AnyAgent) -> Result<Option<Vec<String>>> {
    let text = guest::small_file(agent, "/proc/self/environ")?;
    Ok(text.map(|text| text.split('\0').filter(|variable| variable.contains('=')).map(str::to_owned).collect()))
}

fn name_of(variable: &str) -> &str {
    variable.split('=').next().unwrap_or_default()
}

/// The environment with variables added; the last one of a name stays.
fn with_variables(mut environment: Vec<String>, added: &[String]) -> Vec<String> {
    for variable in added {
        environment.retain(|other| name_of(other) != name_of(variable));
        environment.push(variable.clone());
    }
    environment
}

fn result_json(ended: &Ended, [stdout, stderr]: [Vec<u8>; 2]) -> Value {
    let (exit_code, signal) = match ended.exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
    };
    let mut value = json!({
        "exit-code": exit_code,
        "signal": signal,
        "timed-out": ended.timed_out,
        "not-started": ended.not_started,
        "output-is-cut": ended.is_cut || stdout.len() >= KEPT_BYTES || stderr.len() >= KEPT_BYTES,
    });
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        // Text where it is text; otherwise its bytes, so that nothing is lost.
        match String::from_utf8(bytes) {
            Ok(text) => value[name] = text.into(),
            Err(error) => {
                value[format!("{name}-base64")] = base64_simd::STANDARD.encode_to_string(error.as_bytes()).into();
            }
        }
    }
    value
}

/// The first signal asks the program to end, the second one makes it.
pub struct Watcher {
    interrupts: Interrupts,
}

impl Watcher {
    pub fn new(interrupts: Interrupts) -> Self {
        Self { interrupts }
    }

    pub fn wish(&self) -> Wish {
        match self.interrupts.count() {
            0 => Wish::GoOn,
            1 => Wish::Terminate,
            _ => Wish::Kill,
        }
    }

    pub fn was_stopped(&self) -> bool {
        self.interrupts.count() > 0
    }
}

struct Terminal<'a> {
    page: &'a mut Page,
    /// For `--json`: what came so far.
    kept: Option<[Vec<u8>; 2]>,
    input: Option<PiecesOfInput>,
    interrupts: Watcher,
}

impl Console for Terminal<'_> {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        let Some(kept) = &mut self.kept else { return self.page.bytes(stream, bytes) };
        let kept = &mut kept[usize::from(stream == OutputStream::Stderr)];
        let room = KEPT_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }

    fn input(&mut self) -> io::Result<Input> {
        next_input(self.input.as_ref())
    }

    fn wish(&mut self) -> Wish {
        self.interrupts.wish()
    }
}

/// What the thread that reads standard input has read, piece by piece.
pub type PiecesOfInput = Receiver<io::Result<Vec<u8>>>;

/// What has come from the thread that reads standard input.
pub fn next_input(input: Option<&PiecesOfInput>) -> io::Result<Input> {
    let Some(input) = input else { return Ok(Input::End) };
    match input.try_recv() {
        Ok(Ok(bytes)) => Ok(Input::Bytes(bytes)),
        Ok(Err(error)) => Err(error),
        Err(TryRecvError::Empty) => Ok(Input::NotYet),
        Err(TryRecvError::Disconnected) => Ok(Input::End),
    }
}

/// Reads standard input on a thread of its own, some pieces ahead. The thread ends with the process, or where `ours` says
/// that not all of a piece is input.
pub fn standard_input(ours: fn(&[u8]) -> usize) -> PiecesOfInput {
    const PIECES_AHEAD: usize = 256;
    let (sender, receiver) = sync_channel(PIECES_AHEAD);
    thread::spawn(move || read_into(&sender, ours));
    receiver
}

fn read_into(sender: &SyncSender<io::Result<Vec<u8>>>, ours: fn(&[u8]) -> usize) {
    const PIECE_BYTES: usize = 64 << 10;
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let (piece, is_last) = match io::stdin().lock().read(&mut buffer) {
            Ok(0) => return,
            Ok(size) => {
                let taken = ours(&buffer[..size]);
                (Ok(buffer[..taken].to_vec()), taken < size)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => (Err(error), true),
        };
        if sender.send(piece).is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(exit: Exit, timed_out: bool) -> Ended {
        Ended { exit, not_started: None, timed_out, was_live: true, is_cut: false }
    }

    #[test]
    fn the_programs_end_is_passed_on() {
        assert_eq!(exit_code(&ended(Exit::Code(0), false), false), 0);
        assert_eq!(exit_code(&ended(Exit::Code(3), false), false), 3);
        assert_eq!(exit_code(&ended(Exit::Code(0x1_0000), false), false), 255);
        assert_eq!(exit_code(&ended(Exit::Signal(9), false), false), 137);
        assert_eq!(exit_code(&ended(Exit::Signal(15), true), false), 124);
        assert_eq!(exit_code(&ended(Exit::Signal(15), false), true), 130);
    }

    #[test]
    fn output_that_is_no_text_is_not_lost() {
        let value = result_json(&ended(Exit::Code(1), false), [b"text\n".to_vec(), b"\xff".to_vec()]);
        assert_eq!(value["stdout"], "text\n");
        assert_eq!(value["stderr-base64"], "/w==");
        assert_eq!(value["stderr"], Value::Null);
    }
}
