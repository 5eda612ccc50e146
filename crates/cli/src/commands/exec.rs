//! `qga exec`: a program in the guest as if it ran here.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use qga_client::{AnyAgent, Console, Ended, Exit, Input, OutputStream, Program, RunOptions, Wish};
use serde_json::{Value, json};

use super::guest;
use crate::arguments::{Exec, General};
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::fleet;
use crate::interrupts::Interrupts;
use crate::output::Page;
use crate::target::Selection;
use crate::visit::Visit;

/// Changes to the directory $1, then becomes the rest.
const IN_DIRECTORY: &str = "cd -- \"$1\" && shift && exec \"$@\"";

/// Most output that is kept for `--json`, of each stream.
const KEPT_BYTES: usize = 64 << 20;

pub fn run(options: &Exec, selection: &Selection, general: &General) -> Result<()> {
    if options.stdin && (selection.is_open || selection.targets.len() > 1) {
        return Err(Failure::usage("--stdin is for one target: the input can be read only once"));
    }
    fleet::visit(selection, general, &|visit| run_one(options, visit))
}

fn run_one(options: &Exec, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let program = program(options, &mut agent, &visit.page)?;
    if options.detach {
        let pid = agent.start_program(&program)?;
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
    let json = visit.page.is_json();
    // Not before: who waits for a connection may be ended by the first signal.
    let interrupts = Interrupts::watch()?;
    let mut console = Terminal {
        page: &mut visit.page,
        kept: json.then(<[Vec<u8>; 2]>::default),
        input: options.stdin.then(standard_input),
        interrupts: Watcher::new(interrupts),
    };
    let ended = agent.run_live(&program, &run_options, &mut console)?;
    let (was_stopped, kept) = (console.interrupts.was_stopped(), console.kept.take());
    if ended.is_cut {
        visit.page.note("the end of the output is missing: it is longer than the agent keeps");
    }
    if let Some(kept) = kept {
        visit.page.json(&result_json(ended, kept))?;
    } else if ended.timed_out {
        visit.page.note("the time limit ended the program");
    }
    match exit_code(ended, was_stopped) {
        0 => Ok(()),
        code => Err(Failure::Silent(code)),
    }
}

/// What the process ends with: the program's exit code, 128 and the signal's number, or the reason why it was ended.
pub fn exit_code(ended: Ended, was_stopped: bool) -> u8 {
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
    if let Some(directory) = &options.directory {
        let shell = ["/bin/sh", "-c", IN_DIRECTORY, "sh", directory];
        words.splice(0..0, shell.map(str::to_owned));
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
    Ok(Program { path, arguments: words, environment, ..Program::default() })
}

/// The agent's environment, which its programs inherit; nothing where it cannot be read.
fn agents_environment(agent: &mut AnyAgent) -> Result<Option<Vec<String>>> {
    let text = guest::small_file(agent, "/proc/self/environ")?;
    Ok(text.map(|text| text.split('\0').filter(|variable| variable.contains('=')).map(str::to_owned).collect()))
}

/// The environment with variables added; the last one of a name stays.
fn with_variables(mut environment: Vec<String>, added: &[String]) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in added {
        environment.retain(|other| name(other) != name(variable));
        environment.push(variable.clone());
    }
    environment
}

fn result_json(ended: Ended, [stdout, stderr]: [Vec<u8>; 2]) -> Value {
    let (exit_code, signal) = match ended.exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
    };
    let mut value = json!({
        "exit-code": exit_code,
        "signal": signal,
        "timed-out": ended.timed_out,
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
    input: Option<Receiver<io::Result<Vec<u8>>>>,
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

/// What has come from the thread that reads standard input.
pub fn next_input(input: Option<&Receiver<io::Result<Vec<u8>>>>) -> io::Result<Input> {
    let Some(input) = input else { return Ok(Input::End) };
    match input.try_recv() {
        Ok(Ok(bytes)) => Ok(Input::Bytes(bytes)),
        Ok(Err(error)) => Err(error),
        Err(TryRecvError::Empty) => Ok(Input::NotYet),
        Err(TryRecvError::Disconnected) => Ok(Input::End),
    }
}

/// Reads standard input on a thread of its own, a few pieces ahead. The thread ends with the process.
pub fn standard_input() -> Receiver<io::Result<Vec<u8>>> {
    const PIECES_AHEAD: usize = 4;
    let (sender, receiver) = sync_channel(PIECES_AHEAD);
    thread::spawn(move || read_into(&sender));
    receiver
}

fn read_into(sender: &SyncSender<io::Result<Vec<u8>>>) {
    const PIECE_BYTES: usize = 64 << 10;
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let piece = match io::stdin().lock().read(&mut buffer) {
            Ok(0) => return,
            Ok(size) => Ok(buffer[..size].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let is_last = piece.is_err();
        if sender.send(piece).is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(exit: Exit, timed_out: bool) -> Ended {
        Ended { exit, timed_out, was_live: true, is_cut: false }
    }

    #[test]
    fn the_programs_end_is_passed_on() {
        assert_eq!(exit_code(ended(Exit::Code(0), false), false), 0);
        assert_eq!(exit_code(ended(Exit::Code(3), false), false), 3);
        assert_eq!(exit_code(ended(Exit::Code(0x1_0000), false), false), 255);
        assert_eq!(exit_code(ended(Exit::Signal(9), false), false), 137);
        assert_eq!(exit_code(ended(Exit::Signal(15), true), false), 124);
        assert_eq!(exit_code(ended(Exit::Signal(15), false), true), 130);
    }

    #[test]
    fn output_that_is_no_text_is_not_lost() {
        let value = result_json(ended(Exit::Code(1), false), [b"text\n".to_vec(), b"\xff".to_vec()]);
        assert_eq!(value["stdout"], "text\n");
        assert_eq!(value["stderr-base64"], "/w==");
        assert_eq!(value["stderr"], Value::Null);
    }
}
