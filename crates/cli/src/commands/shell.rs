//! `qga shell`: a shell in the guest on this terminal. The guest's own `script` makes a terminal for it where there is
//! one; without, it is a shell without a terminal, line by line.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::Receiver;

use qga_client::{Agent, Console, Input, OutputStream, Program, RunOptions, Target, Wish};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::exec::{self, Watcher, next_input, standard_input};
use super::guest;
use crate::arguments::{General, Shell};
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::interrupts::Interrupts;
use crate::output::Page;

/// Ctrl-], as telnet has it: ends the shell from this side.
const ESCAPE: u8 = 0x1D;

/// Starts $3, or the user's shell, on a terminal of $1 lines and $2 columns.
const ON_A_TERMINAL: &str = r#"export TERM="$4"; cd "${HOME:-/}" 2>/dev/null || cd /
inner="stty rows $1 cols $2 2>/dev/null; exec ${3:-${SHELL:-/bin/sh}} -i"
if command -v script >/dev/null 2>&1; then exec script -q -e -c "$inner" /dev/null; fi
echo "qga: the guest has no 'script', so this shell has no terminal" >&2
exec "${3:-${SHELL:-/bin/sh}}" -i"#;

pub fn run(options: &Shell, target: &Target, general: &General) -> Result<()> {
    if general.json {
        return Err(Failure::usage("a shell has no JSON form; use exec"));
    }
    let mut agent = Agent::connect(target, general.timeouts())?;
    let system = guest::system(&mut agent)?;
    if guest::is_windows(system.as_ref()) {
        return Err(Failure::told(
            Code::Refused,
            "a Windows guest has no shell that can be talked to through its agent",
            "Run single lines: qga exec --shell 'dir C:\\'",
        ));
    }
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let program = program(options, is_terminal);
    let page = Page::new(target.to_string(), None, false);
    if is_terminal {
        page.note(format!("a shell in {target}; Ctrl-] leaves it"));
    }
    let interrupts = Interrupts::watch()?;
    let _raw =
        is_terminal.then(Raw::begin).transpose().map_err(|error| Failure::host("set the terminal up", &error))?;
    let mut console =
        Shelled { input: standard_input(), interrupts: Watcher::new(interrupts), is_terminal, has_escaped: false };
    let run_options = RunOptions { interactive_input: true, ..RunOptions::default() };
    let ended = agent.run_live(&program, &run_options, &mut console)?;
    let was_stopped = console.interrupts.was_stopped();
    if console.has_escaped {
        return Ok(());
    }
    match exec::exit_code(ended, was_stopped) {
        0 => Ok(()),
        code => Err(Failure::Silent(code)),
    }
}

fn program(options: &Shell, is_terminal: bool) -> Program {
    if !is_terminal {
        let shell = options.shell.clone().unwrap_or_else(|| "/bin/sh".to_owned());
        return Program { path: shell, ..Program::default() };
    }
    let size = tcgetwinsize(io::stdout()).ok();
    let (rows, columns) = size.filter(|size| size.ws_row > 0).map_or((24, 80), |size| (size.ws_row, size.ws_col));
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
    let shell = options.shell.clone().unwrap_or_default();
    let words = ["-c", ON_A_TERMINAL, "qga", &rows.to_string(), &columns.to_string(), &shell, &terminal];
    Program { path: "/bin/sh".to_owned(), arguments: words.map(str::to_owned).into(), ..Program::default() }
}

struct Shelled {
    input: Receiver<io::Result<Vec<u8>>>,
    interrupts: Watcher,
    is_terminal: bool,
    has_escaped: bool,
}

impl Console for Shelled {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            OutputStream::Stdout => io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()),
            OutputStream::Stderr => io::stderr().write_all(bytes),
        }
    }

    fn input(&mut self) -> io::Result<Input> {
        let input = next_input(Some(&self.input))?;
        if let Input::Bytes(bytes) = &input
            && self.is_terminal
            && bytes.contains(&ESCAPE)
        {
            self.has_escaped = true;
            return Ok(Input::NotYet);
        }
        Ok(input)
    }

    fn wish(&mut self) -> Wish {
        // A shell with a terminal does not end for a TERM.
        if self.has_escaped { Wish::Kill } else { self.interrupts.wish() }
    }
}

/// The terminal in raw mode: every key goes to the guest.
struct Raw {
    before: Termios,
}

impl Raw {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing left to do if even this fails.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}
