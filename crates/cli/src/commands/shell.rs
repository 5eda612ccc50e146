//! `qga shell`, and `qga exec -t`: a program in the guest on this terminal. The guest's `script` or Python makes a terminal
//! for it; without, it is a shell without a terminal, line by line.

use std::io::{self, IsTerminal, Write};

use qga_client::{Account, Agent, AnyAgent, Console, Input, OutputStream, Program, RunOptions, Target, Terminal, Wish};
use rustix::termios::tcgetwinsize;

use super::exec::{self, PiecesOfInput, Watcher, next_input, standard_input};
use super::guest;
use crate::arguments::Shell;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::interrupts::{Interrupts, Raw};
use crate::output::Page;

/// Ctrl-], as telnet has it: ends the program from this side, also when the guest does not answer.
const ESCAPE: u8 = 0x1D;

pub fn run(options: &Shell, target: &Target, general: &General) -> Result<()> {
    if general.json {
        return Err(Failure::usage("a shell has no JSON form; use exec"));
    }
    let mut agent = Agent::connect(target, general.connection())?;
    let system = guest::system(&mut agent)?;
    if guest::is_windows(system.as_ref()) {
        return Err(Failure::told(
            Code::Refused,
            "a Windows guest has no shell that can be talked to through its agent",
            "Run single lines: qga exec --shell 'dir C:\\'",
        ));
    }
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let page = Page::new(target.to_string(), None, false);
    if is_terminal {
        page.note(format!("a shell in {target}; Ctrl-] leaves it"));
    }
    let run_options = RunOptions { interactive_input: true, ..RunOptions::default() };
    let program = Program { terminal: is_terminal.then(terminal), ..program(options) };
    let input = input_for(&program);
    let mut stopped = on_terminal(&mut agent, &program, &run_options, Some(&input))?;
    if stopped.0.not_started.as_deref() == Some(qga_client::NO_TERMINAL) {
        page.note("the guest has neither script nor Python, so this shell has no terminal");
        // A shell without a terminal says nothing unless it is told to be interactive.
        let arguments = if program.path.is_empty() { vec!["-i".to_owned()] } else { program.arguments.clone() };
        let plain = Program { terminal: None, arguments, ..program };
        stopped = on_terminal(&mut agent, &plain, &run_options, Some(&input))?;
        return end(&page, "the shell", stopped, Ok(()));
    }
    end(&page, program.path.as_str(), stopped, Ok(()))
}

/// Says why the program was not started, if it was not, and makes a result of its end, or of `left` where the user has left
/// it by the key.
pub fn end(
    page: &Page,
    name: &str,
    (ended, was_stopped): (qga_client::Ended, bool),
    left: std::result::Result<(), Code>,
) -> Result<()> {
    if Interrupts::has_left() {
        return left.map_err(|code| Failure::Silent(code.number()));
    }
    exec::tell_if_not_started(page, if name.is_empty() { "the user's shell" } else { name }, &ended);
    match exec::exit_code(&ended, was_stopped) {
        0 => Ok(()),
        code => Err(Failure::Silent(code)),
    }
}

/// What comes from standard input for a program. To be called once: a second reader would wait behind the first one, which
/// takes what is typed next.
pub fn input_for(program: &Program) -> PiecesOfInput {
    let is_raw = program.terminal.is_some() && io::stdin().is_terminal();
    standard_input(if is_raw { look_for_escape } else { <[u8]>::len })
}

/// Runs a program with this side's terminal, or with what stands in its place. The input comes from [`input_for`].
pub fn on_terminal(
    agent: &mut AnyAgent,
    program: &Program,
    options: &RunOptions,
    input: Option<&PiecesOfInput>,
) -> Result<(qga_client::Ended, bool)> {
    let interrupts = Interrupts::watch()?;
    agent.give_up_when(Interrupts::are_impatient);
    let is_raw = program.terminal.is_some() && input.is_some() && io::stdin().is_terminal();
    let raw = is_raw.then(Raw::begin).transpose().map_err(|error| Failure::host("set the terminal up", &error))?;
    let has_terminal = program.terminal.is_some();
    let mut console = Shelled { input, interrupts: Watcher::new(interrupts), has_terminal };
    let ended = agent.run_live(program, options, &mut console);
    let was_stopped = console.interrupts.was_stopped();
    drop(raw);
    if Interrupts::has_left() {
        // The line that the program was on.
        let _ = writeln!(io::stderr());
    }
    Ok((ended?, was_stopped))
}

/// How many of the bytes are the guest's.
fn look_for_escape(bytes: &[u8]) -> usize {
    let Some(place) = bytes.iter().position(|&byte| byte == ESCAPE) else { return bytes.len() };
    Interrupts::leave();
    place
}

fn program(options: &Shell) -> Program {
    let account = Account { name: options.user.clone().unwrap_or_default(), login: true, ..Account::default() };
    let account = Some(account);
    match &options.shell {
        None => Program { account, ..Program::default() },
        Some(line) if line.contains(char::is_whitespace) => {
            let arguments = ["-c".to_owned(), format!("exec {line}")].into();
            Program { path: "/bin/sh".to_owned(), arguments, account, ..Program::default() }
        }
        Some(shell) => Program { path: shell.clone(), account, ..Program::default() },
    }
}

/// A terminal like this one.
pub fn terminal() -> Terminal {
    let (rows, columns) = window().unwrap_or((24, 80));
    let kind = std::env::var("TERM").ok().filter(|kind| !kind.is_empty()).unwrap_or_else(|| "xterm".to_owned());
    Terminal { rows, columns, kind }
}

fn window() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

struct Shelled<'a> {
    input: Option<&'a PiecesOfInput>,
    interrupts: Watcher,
    has_terminal: bool,
}

impl Console for Shelled<'_> {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            OutputStream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            OutputStream::Stderr => io::stderr().write_all(bytes),
        }
    }

    fn input(&mut self) -> io::Result<Input> {
        // A terminal that nobody types on is not at its end.
        if self.input.is_none() && self.has_terminal {
            return Ok(Input::NotYet);
        }
        next_input(self.input)
    }

    fn window(&mut self) -> Option<(u16, u16)> {
        self.has_terminal.then(window).flatten()
    }

    fn wish(&mut self) -> Wish {
        match self.interrupts.wish() {
            _ if Interrupts::has_left() => Wish::Kill,
            // A shell on a terminal does not end for a TERM.
            Wish::Terminate if self.has_terminal => Wish::Kill,
            wish => wish,
        }
    }
}
