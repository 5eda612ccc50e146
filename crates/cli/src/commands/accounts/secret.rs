//! Passwords from the terminal, unseen, or from standard input; never from the command line, where others can read them.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};

use crate::exit_code::Code;
use crate::failure::{Failure, Result};

/// Asks twice.
pub fn from_terminal(user: &str) -> Result<String> {
    let no_terminal = |error: io::Error| {
        Failure::told(
            Code::Usage,
            format!("there is no terminal to ask for the password on: {error}"),
            "Say --stdin to read it from standard input.",
        )
    };
    let mut terminal = File::options().read(true).write(true).open("/dev/tty").map_err(no_terminal)?;
    let first = ask(&mut terminal, &format!("New password of {user}: "))?;
    let second = ask(&mut terminal, "Again: ")?;
    if first == second { Ok(first) } else { Err(Failure::usage("the two passwords differ; nothing was changed")) }
}

/// The first line.
pub fn from_standard_input() -> Result<String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(|error| Failure::host("read the password", &error))?;
    let password = line.strip_suffix('\n').unwrap_or(&line);
    if password.is_empty() {
        return Err(Failure::usage("there is no password on standard input"));
    }
    Ok(password.to_owned())
}

/// The terminal as it was, put back whatever happens.
struct Unseen<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Unseen<'a> {
    /// No echo, and Ctrl-C as a byte: a signal would end the process before the terminal is as it was.
    fn begin(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut unseen = before.clone();
        unseen.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        unseen.special_codes[SpecialCodeIndex::VMIN] = 1;
        unseen.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Flush, &unseen)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        // There is nothing left to do if even this fails.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

fn ask(terminal: &mut File, question: &str) -> Result<String> {
    let failed = |error: io::Error| Failure::host("ask for the password", &error);
    terminal.write_all(question.as_bytes()).map_err(failed)?;
    let line = {
        let unseen = Unseen::begin(terminal).map_err(failed)?;
        read_line(unseen.terminal)
    };
    terminal.write_all(b"\n").map_err(failed)?;
    let line = line.map_err(failed)?.ok_or_else(|| Failure::told(Code::Stopped, "nothing was changed", ""))?;
    let text = String::from_utf8(line).map_err(|_| Failure::usage("the password is not UTF-8"))?;
    if text.is_empty() { Err(Failure::usage("the password is empty; nothing was changed")) } else { Ok(text) }
}

/// A line with the usual keys; nothing if it was broken off.
fn read_line(mut terminal: impl Read) -> io::Result<Option<Vec<u8>>> {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const CTRL_H: u8 = 8;
    const CTRL_U: u8 = 21;
    const DELETE: u8 = 127;
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if terminal.read(&mut byte)? == 0 {
            return Ok(None);
        }
        match byte[0] {
            b'\n' | b'\r' => return Ok(Some(line)),
            CTRL_C | CTRL_D => return Ok(None),
            CTRL_U => line.clear(),
            // A character may be of several bytes.
            CTRL_H | DELETE => while line.pop().is_some_and(|byte| byte & 0xC0 == 0x80) {},
            other => line.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_the_usual_keys() {
        let check = |typed: &str, expected: Option<&str>| {
            let line = read_line(typed.as_bytes()).unwrap();
            assert_eq!(line.as_deref(), expected.map(str::as_bytes), "{typed:?}");
        };
        check("secret\n", Some("secret"));
        check("wrong\u{15}right\r", Some("right"));
        check("aü\u{7f}b\n", Some("ab"));
        check("sec\u{3}ret\n", None);
        check("", None);
    }
}
