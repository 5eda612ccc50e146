//! Reads cases: conversations with an agent, written as text.
//!
//! ```text
//! # A comment.
//! == the name of a case is a sentence
//! $ printf 0123456789 > $dir/ten                          run by a shell in the agent's machine
//! guest-file-open path="$dir/ten"                         a request: a command, arguments as JSON
//! <- ok "$handle"                                         its reply; the variable gets the value
//! guest-file-read handle=$handle count=4
//! <- ok {"count": 4, "buf-b64": "b64:0123", "eof": false}
//! -> {"execute":"guest-ping","id":1}‹ff›                  any bytes
//! <- id 1 ok {}
//! <- error GenericError: JSON parse error, stray '�'      several replies, all of them
//! ```
//!
//! | line | meaning |
//! |---|---|
//! | `== NAME` | a case begins. `$dir` is an empty directory of its own |
//! | `needs a program: WHY` | not possible with an agent that runs already (small serial line, shared state): skipped there |
//! | `needs a fresh agent: WHY` | the same, and the agent is started anew before and after |
//! | `$ SCRIPT` | run by `sh` in `$dir`; must succeed |
//! | `= TEXT` | what the script printed, line by line |
//! | `-> BYTES`, `->> BYTES` | sent as they are (see `escape.rs`), with or without a newline; lines that follow each other are sent at once |
//! | `guest-NAME A=JSON B=JSON` | a request |
//! | `await-exit pid=$pid` | asks guest-exec-status until the program has ended; the last reply counts |
//! | `<- ok JSON` | a success with this value (see `pattern.rs`) |
//! | `<- error CLASS: TEXT`, `<- error CLASS ~ TEXT` | an error with this text, or with this in its text |
//! | `<- line: TEXT`, `<- line ~ TEXT` | a reply with these characters on the wire |
//! | `<- nothing` | no reply at all |
//! | `[original]`, `[ours]` before a script or request | done with this agent only |
//! | words before `ok`, `error`, `line` | `[original]`, `[ours]`: for this agent only; `sentinel`: 0xFF before it; `id JSON`: the echo; `many`; `N times`; `shorter than N bytes` |
//!
//! After the expected replies of a request nothing else may come. What is said must be complete, or be ended by
//! `‹ff›`: the test asks for a synchronisation next.

use serde_json::{Map, Value};

use crate::expectation::{Content, Expectation, Repeat, Text};
use crate::subject::Kind;

/// One named conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// A sentence.
    pub name: String,
    /// Why it is not for an agent that runs already.
    pub needs_program: Option<String>,
    /// Whether the agent is started anew before and after.
    pub needs_fresh_agent: bool,
    /// What happens.
    pub steps: Vec<Step>,
}

/// One line, or lines that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Where in the text it stands, from 1.
    pub line_number: usize,
    /// The agent it is done with; both if nothing is said.
    pub only: Option<Kind>,
    /// What is done.
    pub action: Action,
    /// What must come of it. Not used by scripts.
    pub expected: Vec<Expectation>,
}

/// What is done in a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Bytes are sent.
    Send(String),
    /// A command is sent: its name and the text of its arguments.
    Request(String, String),
    /// A program's end is waited for: the text of the arguments.
    AwaitExit(String),
    /// A script is run, which prints this, if it is said.
    Script(String, Option<String>),
}

impl Case {
    /// The case as one agent sees it.
    #[must_use]
    pub fn seen_by(&self, kind: Kind) -> Self {
        let mut seen = self.clone();
        seen.steps.retain(|step| step.only.is_none_or(|only| only == kind));
        for step in &mut seen.steps {
            step.only = None;
            step.expected.retain(|expectation| expectation.only.is_none_or(|only| only == kind));
            for expectation in &mut step.expected {
                expectation.only = None;
            }
        }
        seen
    }

    /// Whether the case expects something else of ours than of the original.
    #[must_use]
    pub fn deviates(&self) -> bool {
        let differs_by_reply = |step: &Step| step.expected.iter().any(|expectation| expectation.only.is_some());
        self.steps.iter().any(|step| step.only.is_some() || differs_by_reply(step))
    }
}

/// Reads the cases of a text.
///
/// # Panics
/// When a line is no line of a case: the text tells which.
#[must_use]
pub fn parse(table: &str, text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let complain = |what: &str| -> ! { panic!("cases/{table}.txt:{line_number}: {what}: {line}") };
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            if cases.iter().any(|case| case.name == name) {
                complain("this name is there twice");
            }
            cases.push(Case {
                name: name.to_owned(),
                needs_program: None,
                needs_fresh_agent: false,
                steps: Vec::new(),
            });
            continue;
        }
        let Some(case) = cases.last_mut() else { complain("a case begins with `== NAME`") };
        if let Some(reason) = line.strip_prefix("needs a program: ") {
            case.needs_program = Some(reason.to_owned());
        } else if let Some(reason) = line.strip_prefix("needs a fresh agent: ") {
            case.needs_program = Some(reason.to_owned());
            case.needs_fresh_agent = true;
        } else if let Some(printed) = line.strip_prefix("= ") {
            let Some(Step { action: Action::Script(_, output), .. }) = case.steps.last_mut() else {
                complain("`=` follows a script");
            };
            let output = output.get_or_insert_default();
            output.push_str(printed);
            output.push('\n');
        } else if let Some(reply) = line.strip_prefix("<- ") {
            let Some(step) = case.steps.last_mut() else { complain("a reply follows a request") };
            if matches!(step.action, Action::Script(..)) {
                complain("a reply follows a request");
            }
            match expectation(reply) {
                Ok(expectation) => step.expected.extend(expectation),
                Err(why) => complain(&why),
            }
        } else {
            let previous = case.steps.last_mut().filter(|step| step.expected.is_empty());
            if let (Some(bytes), Some(Step { action: Action::Send(sent), .. })) = (sent_bytes(line), previous) {
                sent.push_str(&bytes);
                continue;
            }
            let (only, words) = match line.strip_prefix("[original] ") {
                Some(words) => (Some(Kind::Original), words),
                None => line.strip_prefix("[ours] ").map_or((None, line), |words| (Some(Kind::Ours), words)),
            };
            let Some(action) = action(words) else { complain("not a line of a case") };
            case.steps.push(Step { line_number, only, action, expected: Vec::new() });
        }
    }
    cases
}

/// Turns `a=1 b="x y"` into an object.
pub fn arguments(text: &str) -> Result<Map<String, Value>, String> {
    let mut members = Map::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| format!("no `=` in `{rest}`"))?;
        let (value, after) = leading_json(after)?;
        members.insert(name.to_owned(), value);
        rest = after.trim_start();
    }
    Ok(members)
}

fn action(line: &str) -> Option<Action> {
    if let Some(script) = line.strip_prefix("$ ") {
        return Some(Action::Script(script.to_owned(), None));
    }
    if let Some(bytes) = sent_bytes(line) {
        return Some(Action::Send(bytes));
    }
    let (command, arguments) = line.split_once(' ').unwrap_or((line, ""));
    match command {
        "await-exit" => Some(Action::AwaitExit(arguments.to_owned())),
        _ if command.starts_with("guest-") => Some(Action::Request(command.to_owned(), arguments.to_owned())),
        _ => None,
    }
}

fn sent_bytes(line: &str) -> Option<String> {
    match line.strip_prefix("->> ") {
        Some(bytes) => Some(bytes.to_owned()),
        None => line.strip_prefix("-> ").map(|bytes| format!("{bytes}\n")),
    }
}

/// Reads what stands behind `<- `; nothing for `nothing`.
fn expectation(text: &str) -> Result<Option<Expectation>, String> {
    let mut expectation = Expectation {
        only: None,
        sentinel: false,
        id: None,
        shorter_than_bytes: None,
        repeat: Repeat::Times(1),
        content: Content::Return(Value::Null),
    };
    let mut rest = text;
    loop {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "[original]" => expectation.only = Some(Kind::Original),
            "[ours]" => expectation.only = Some(Kind::Ours),
            "sentinel" => expectation.sentinel = true,
            "many" => expectation.repeat = Repeat::Many,
            "id" => {
                let (id, behind) = leading_json(after)?;
                expectation.id = Some(id);
                rest = behind.trim_start();
                continue;
            }
            "nothing" if expectation.only.is_none() => return Ok(None),
            "nothing" => expectation.repeat = Repeat::Times(0),
            "ok" => {
                expectation.content =
                    Content::Return(serde_json::from_str(after).map_err(|error| format!("no JSON ({error})"))?);
            }
            "error" => {
                let (class, text) = leading_word(after);
                expectation.content = Content::Error(class, text?);
            }
            "line:" | "line" => expectation.content = Content::Line(leading_word(rest).1?),
            "shorter" => {
                let limit = after.strip_prefix("than ").and_then(|after| after.split_once(" bytes "));
                let (limit, behind) = limit.ok_or("`shorter than N bytes`")?;
                expectation.shorter_than_bytes = Some(limit.parse().map_err(|_| "no number behind `shorter than`")?);
                rest = behind;
                continue;
            }
            number if after.starts_with("times ") => {
                expectation.repeat = Repeat::Times(number.parse().map_err(|_| "no number before `times`")?);
                rest = &after["times ".len()..];
                continue;
            }
            _ => return Err(format!("`{word}` is no word of an expectation")),
        }
        if matches!(word, "ok" | "error" | "line:" | "line" | "nothing") {
            return Ok(Some(expectation));
        }
        rest = after;
    }
}

/// Splits `WORD: TEXT` and `WORD ~ TEXT`.
fn leading_word(text: &str) -> (String, Result<Text, String>) {
    let end = text.find([':', ' ']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let kind = if let Some(whole) = rest.strip_prefix(": ") {
        Ok(Text::Whole(whole.to_owned()))
    } else if let Some(part) = rest.strip_prefix(" ~ ") {
        Ok(Text::Part(part.to_owned()))
    } else {
        Err("a text follows `: ` (the whole) or ` ~ ` (a part)".to_owned())
    };
    (word.to_owned(), kind)
}

fn leading_json(text: &str) -> Result<(Value, &str), String> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    match values.next() {
        Some(Ok(value)) => Ok((value, &text[values.byte_offset()..])),
        Some(Err(error)) => Err(format!("no JSON ({error}) at `{text}`")),
        None => Err("a JSON value is missing".to_owned()),
    }
}
