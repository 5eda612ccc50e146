//! The way to standard output and standard error: for one target as it comes, for several line by line with the
//! target's name in front.

use std::io::{self, IsTerminal, Write};

use anstream::AutoStream;
use qga_client::OutputStream;
use serde::Serialize;
use serde_json::{Value, json};

use super::json::reformat;
use super::table::Table;
use super::text::{json_text, output_lines, printable, printable_line};
use super::{FAINT, NAME, styled};
use crate::failure::{Failure, Result};

/// A result that is shown to people as well as to programs.
pub trait Show: Serialize {
    /// Writes it for people.
    fn show(&self, page: &mut Page) -> Result<()>;
}

/// Where the output of one target's command goes.
#[derive(Debug)]
pub struct Page {
    /// The name in front of each line; none for a single target.
    prefix: Option<String>,
    /// The target's full name, for JSON.
    target: String,
    json: bool,
    /// Output of a program that is no whole line yet, for each stream.
    unfinished: [Vec<u8>; 2],
}

impl Page {
    pub fn new(target: String, prefix: Option<String>, json: bool) -> Self {
        let prefix = prefix.map(|prefix| printable(&prefix));
        Self { prefix, target, json, unfinished: [Vec::new(), Vec::new()] }
    }

    /// Whether a person reads the output: it is then wide, coloured and in handy units.
    pub fn is_for_people(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether this target's output stands alone.
    pub fn is_alone(&self) -> bool {
        self.prefix.is_none()
    }

    /// The name in front of this target's lines, where there are several.
    pub fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    /// Columns of the terminal that are free for a line.
    pub fn columns(&self) -> usize {
        let prefix = self.prefix.as_ref().map_or(0, |prefix| prefix.len() + 3);
        usize::from(terminal_columns().unwrap_or(NO_TERMINAL_COLUMNS)).saturating_sub(prefix)
    }

    /// Writes a result as JSON or for people.
    pub fn report(&mut self, result: &impl Show) -> Result<()> {
        if self.json { self.json_of(result) } else { result.show(self) }
    }

    /// Writes a result of the protocol as JSON, or as a table for people.
    pub fn report_as<R: Serialize>(&mut self, result: &R, table: impl FnOnce(&R) -> Table) -> Result<()> {
        if self.json { self.json_of(result) } else { table(result).show(self) }
    }

    fn json_of(&mut self, result: &impl Serialize) -> Result<()> {
        let value = serde_json::to_value(result)
            .map_err(|error| Failure::host("write the result as JSON", &io::Error::other(error)))?;
        self.json(&value)
    }

    /// Writes a JSON result: alone as it is, among several in one line with the target's name.
    pub fn json(&mut self, value: &Value) -> Result<()> {
        let text = if self.is_alone() {
            format!("{value:#}")
        } else {
            json!({ "target": self.target, "ok": true, "result": value }).to_string()
        };
        write_line(&json_text(&text))
    }

    /// Writes a JSON text of a guest's, however long, without a copy of it: in lines for people, in one where several
    /// targets' results stand side by side or `is_short` asks for it.
    pub fn document(&mut self, json: &str, is_short: bool) -> Result<()> {
        let mut stdout = io::BufWriter::new(io::stdout().lock());
        let written = match (&self.prefix, self.json) {
            (Some(_), true) => {
                let target = json_text(&json!(self.target).to_string());
                write!(stdout, "{{\"target\":{target},\"ok\":true,\"result\":")
                    .and_then(|()| reformat(json, None, &mut stdout))
                    .and_then(|()| stdout.write_all(b"}"))
            }
            (Some(prefix), false) => {
                let start = line_start(prefix);
                let form = if is_short { None } else { Some(start.as_str()) };
                stdout.write_all(start.as_bytes()).and_then(|()| reformat(json, form, &mut stdout))
            }
            (None, _) => reformat(json, if is_short { None } else { Some("") }, &mut stdout),
        };
        let written = written.and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
        written.map_err(|error| Failure::host("write the output", &error))
    }

    /// Writes why there is no result among those of other targets, for programs.
    pub fn json_failure(&mut self, failure: &Failure) {
        let line = json!({ "target": self.target, "ok": false, "error": failure.to_json() });
        // Who does not read the results does not read this either.
        let _ = writeln!(io::stdout(), "{}", json_text(&line.to_string()));
    }

    /// Writes a line for people.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<()> {
        let text = printable_line(text.as_ref());
        match &self.prefix {
            None => write_line(&text),
            Some(prefix) => write_line(&format!("{} {} {text}", styled(NAME, prefix), styled(FAINT, "|"))),
        }
    }

    /// Writes a remark beside the result, to standard error.
    pub fn note(&self, text: impl AsRef<str>) {
        let prefix = self.prefix.as_ref().map(|prefix| format!("{prefix}: ")).unwrap_or_default();
        let text = printable_line(&format!("{prefix}{}", text.as_ref()));
        let _ = writeln!(anstream::stderr().lock(), "{}", styled(FAINT, text));
    }

    /// Writes bytes of a program or file as they are; among several targets line by line.
    pub fn bytes(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        let Some(prefix) = self.prefix.clone() else {
            return match stream {
                OutputStream::Stdout => write_and_flush(&mut io::stdout().lock(), bytes),
                OutputStream::Stderr => write_and_flush(&mut io::stderr().lock(), bytes),
            };
        };
        let unfinished = &mut self.unfinished[usize::from(stream == OutputStream::Stderr)];
        unfinished.extend_from_slice(bytes);
        let end = match unfinished.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            // A line without an end must not take all memory.
            None if unfinished.len() > LONGEST_LINE_BYTES => unfinished.len(),
            None => return Ok(()),
        };
        let lines: Vec<u8> = unfinished.drain(..end).collect();
        write_prefixed(stream, &prefix, &lines)
    }

    /// Writes what is left of lines without an end.
    pub fn finish(&mut self) -> io::Result<()> {
        let Some(prefix) = self.prefix.clone() else { return Ok(()) };
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let rest = std::mem::take(&mut self.unfinished[usize::from(stream == OutputStream::Stderr)]);
            if !rest.is_empty() {
                write_prefixed(stream, &prefix, &rest)?;
            }
        }
        Ok(())
    }
}

/// Where there is no terminal nothing needs to be cut off.
const NO_TERMINAL_COLUMNS: u16 = 10_000;

const LONGEST_LINE_BYTES: usize = 64 << 10;

/// Columns of the terminal on standard output, if it is one.
pub fn terminal_columns() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

fn write_line(text: &str) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| Failure::host("write the output", &error))
}

fn write_and_flush(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// What stands in front of each line of one target among several.
fn line_start(prefix: &str) -> String {
    let is_coloured = AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
    if is_coloured { format!("{} {} ", styled(NAME, prefix), styled(FAINT, "|")) } else { format!("{prefix} | ") }
}

fn write_prefixed(stream: OutputStream, prefix: &str, lines: &[u8]) -> io::Result<()> {
    let start = line_start(prefix);
    let mut text = Vec::with_capacity(lines.len() + start.len());
    for line in output_lines(lines) {
        text.extend_from_slice(start.as_bytes());
        text.extend_from_slice(&line);
        text.push(b'\n');
    }
    match stream {
        OutputStream::Stdout => write_and_flush(&mut io::stdout().lock(), &text),
        OutputStream::Stderr => write_and_flush(&mut io::stderr().lock(), &text),
    }
}
