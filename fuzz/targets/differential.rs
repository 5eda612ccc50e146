//! The same bytes to the original and to ours: both answer with the same sequence of successes and error classes.
//!
//! `FUZZ_ORIGINAL` and `FUZZ_OURS` name the sockets of two agents that `cargo xtask fuzz` has started with an allow list
//! of harmless commands. What differs on purpose is left out of the comparison: how many errors a burst of broken
//! bytes gives, brackets that do not match, numbers that no double holds.

#![no_main]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use qga_protocol::stream::Decoder;
use serde_json::Value;

/// More could fill the sockets with errors while nobody reads.
const LONGEST_INPUT: usize = 800;
/// Of the sync that ends each input.
const END: i64 = 0x5EED_0FF0_0DD5_1234;
const PATIENCE: Duration = Duration::from_secs(20);

fuzz_target!(|input: &[u8]| {
    static AGENTS: OnceLock<Mutex<[Agent; 2]>> = OnceLock::new();
    let input = &input[..input.len().min(LONGEST_INPUT)];
    // Agents run elsewhere: the decoder at work here is what shows the fuzzer new ground.
    let (mut decoder, mut rest) = (Decoder::default(), input);
    while decoder.next(&mut rest).is_some() {}
    if differs_on_purpose(input) {
        return;
    }
    let agents = AGENTS.get_or_init(|| Mutex::new([Agent::connect("FUZZ_ORIGINAL"), Agent::connect("FUZZ_OURS")]));
    let mut agents = agents.lock().expect("a panic ends the run");
    let [original, ours] = agents.each_mut().map(|agent| agent.ask(input));
    assert_eq!(original, ours, "the original and ours differ for {:?}", String::from_utf8_lossy(input));
});

/// A reply, as far as it is compared.
#[derive(Debug, PartialEq)]
enum Answer {
    Success(String),
    /// A class, and whether the request's id came back.
    Failure(String, bool),
    /// A run of errors in the JSON, of whatever length.
    NotJson,
}

struct Agent {
    name: &'static str,
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Agent {
    fn connect(name: &'static str) -> Self {
        let socket = std::env::var_os(name).unwrap_or_else(|| panic!("{name} names no socket"));
        let writer = UnixStream::connect(&socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        writer.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        let reader = BufReader::new(writer.try_clone().expect("a socket can be shared"));
        Self { name, writer, reader }
    }

    fn ask(&mut self, input: &[u8]) -> Vec<Answer> {
        let end = format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{END}}}}}\n");
        let request = [input, b"\n\xff", end.as_bytes()].concat();
        self.writer.write_all(&request).unwrap_or_else(|error| panic!("{} does not read: {error}", self.name));
        let mut answers = Vec::new();
        loop {
            let mut line = Vec::new();
            self.reader.read_until(b'\n', &mut line).unwrap_or_else(|error| panic!("{} is silent: {error}", self.name));
            assert!(!line.is_empty(), "{} closed the connection", self.name);
            let delimited = line.strip_prefix(b"\xff");
            let text = delimited.unwrap_or(&line);
            // The original writes infinity, which is no JSON; such inputs are not compared, but the line must be read.
            let Ok(reply) = serde_json::from_slice::<Value>(text) else {
                panic!("{} answered {:?}", self.name, String::from_utf8_lossy(&line))
            };
            if delimited.is_some() && reply["return"] == END {
                // The reset byte before the end is one error at most, and belongs to no answer.
                if answers.last() == Some(&Answer::NotJson) {
                    answers.pop();
                }
                return answers;
            }
            let answer = Answer::of(&reply, delimited.is_some());
            if answer != Answer::NotJson || answers.last() != Some(&Answer::NotJson) {
                answers.push(answer);
            }
        }
    }
}

impl Answer {
    fn of(reply: &Value, is_delimited: bool) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match reply.get("error") {
            Some(error) if text(&error["desc"]).starts_with("JSON ") => Self::NotJson,
            Some(error) if text(&error["desc"]) == "QMP input must be a JSON object" => Self::NotJson,
            Some(error) => Self::Failure(text(&error["class"]), reply.get("id").is_some()),
            None => {
                // A list of commands differs; a number that was given back does not.
                let kind = match &reply["return"] {
                    Value::Object(_) => "object".to_owned(),
                    other => other.to_string(),
                };
                Self::Success(format!("{kind}, delimited {is_delimited}, id {}", reply.get("id").is_some()))
            }
        }
    }
}

/// Whether the input has something that the two are known to take differently.
fn differs_on_purpose(input: &[u8]) -> bool {
    !brackets_match(input, true) || !brackets_match(input, false) || has_a_long_exponent(input)
}

/// Whether every closing bracket closes the innermost open one. Strings are honoured or not: in broken input nobody can
/// say where one starts.
fn brackets_match(input: &[u8], honour_strings: bool) -> bool {
    let (mut open, mut quote, mut escaped) = (Vec::new(), None, false);
    for &byte in input {
        if let (Some(mark), true) = (quote, honour_strings) {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                _ if byte == mark => quote = None,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' | b'\'' => quote = Some(byte),
            b'{' | b'[' => open.push(byte + 2),
            b'}' | b']' if open.pop().is_none_or(|expected| expected != byte) => return false,
            _ => {}
        }
    }
    true
}

/// `1e400` is infinity to the original, which then answers with what is no JSON.
fn has_a_long_exponent(input: &[u8]) -> bool {
    let is_exponent =
        |rest: &[u8]| rest.iter().filter(|byte| !matches!(byte, b'+' | b'-' | b'0')).take(3).all(u8::is_ascii_digit);
    input.split(|byte| byte.eq_ignore_ascii_case(&b'e')).skip(1).any(|rest| rest.len() >= 3 && is_exponent(rest))
        || input.split(|byte| !byte.is_ascii_digit()).any(|digits| digits.len() > 300)
}
