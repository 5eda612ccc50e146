//! Says what replies are expected, and compares one that came.

use serde_json::Value;

use crate::escape::{Variables, to_text};
use crate::pattern::{matches, shorten_text};
use crate::subject::Kind;
use crate::tally::Failure;

/// A reply line.
#[derive(Debug, Clone)]
pub struct Received {
    /// The line without newline and sentinel.
    pub line: Vec<u8>,
    /// Whether the byte 0xFF stood before it.
    pub sentinel: bool,
    /// The line as JSON, if it is.
    pub json: Option<Value>,
}

impl Received {
    /// Takes a line apart.
    #[must_use]
    pub fn new(mut line: Vec<u8>) -> Self {
        let sentinel = line.first() == Some(&0xff);
        if sentinel {
            line.remove(0);
        }
        let json = serde_json::from_slice(&line).ok();
        Self { line, sentinel, json }
    }

    /// The line as text, cut where nobody reads on.
    #[must_use]
    pub fn shown(&self) -> String {
        let sentinel = if self.sentinel { "0xFF " } else { "" };
        format!("{sentinel}{}", shorten_text(&String::from_utf8_lossy(&self.line)))
    }

    /// The class of an error reply.
    #[must_use]
    pub fn error_class(&self) -> Option<&str> {
        self.json.as_ref()?.get("error")?.get("class")?.as_str()
    }

    /// The text of an error reply.
    #[must_use]
    pub fn error_text(&self) -> Option<&str> {
        self.json.as_ref()?.get("error")?.get("desc")?.as_str()
    }

    /// The value of a successful reply.
    #[must_use]
    pub fn returned(&self) -> Option<&Value> {
        self.json.as_ref()?.get("return")
    }
}

/// A text that is expected as a whole or as a part.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    /// This and nothing else.
    Whole(String),
    /// This somewhere.
    Part(String),
}

/// What kind of line.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A success with this value (a pattern).
    Return(Value),
    /// An error of this class.
    Error(String, Text),
    /// Any line with this text on the wire.
    Line(Text),
}

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Exactly so many times.
    Times(usize),
    /// Once or more.
    Many,
}

/// One expected reply, or several alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// The agent it holds for; both if nothing is said.
    pub only: Option<Kind>,
    /// Whether the byte 0xFF must stand before it.
    pub sentinel: bool,
    /// The echoed id (a pattern); nothing means that there must be none.
    pub id: Option<Value>,
    /// How long the line must not be.
    pub shorter_than_bytes: Option<usize>,
    /// How often.
    pub repeat: Repeat,
    /// What.
    pub content: Content,
}

impl Expectation {
    /// Whether the reply is the expected one. Returns what another agent's reply must be equal to.
    pub fn check(&self, reply: &Received, variables: &mut Variables) -> Result<Value, Failure> {
        if reply.sentinel != self.sentinel {
            return Err(
                if self.sentinel { "the byte 0xFF is missing before it" } else { "a byte 0xFF before it" }.into()
            );
        }
        if let Some(limit) = self.shorter_than_bytes.filter(|limit| reply.line.len() >= *limit) {
            return Err(format!("{} bytes; expected less than {limit}", reply.line.len()));
        }
        if let Content::Line(text) = &self.content {
            check_text(text, &String::from_utf8_lossy(&reply.line), variables)?;
            return Ok(Value::Null);
        }
        let Some(Value::Object(members)) = &reply.json else { return Err("not a JSON object".to_owned()) };
        let masked_id = match (&self.id, members.get("id")) {
            (None, None) => Value::Null,
            (Some(pattern), Some(id)) => matches(pattern, id, variables).map_err(|why| format!("id: {why}"))?,
            (None, Some(_)) => return Err("an `id` that was not sent".to_owned()),
            (Some(_), None) => return Err("the `id` is missing".to_owned()),
        };
        let main_member = if matches!(self.content, Content::Return(_)) { "return" } else { "error" };
        let Some(found) = members.get(main_member) else { return Err(format!("member `{main_member}` is missing")) };
        if let Some(name) = members.keys().find(|name| *name != "id" && *name != main_member) {
            return Err(format!("member `{name}` is too many"));
        }
        match &self.content {
            Content::Return(pattern) => {
                let masked = matches(pattern, found, variables)?;
                Ok(serde_json::json!({ "return": masked, "id": masked_id }))
            }
            Content::Error(class, text) => {
                let Some(found_text) = reply.error_text() else { return Err("an error without `desc`".to_owned()) };
                if reply.error_class() != Some(class) {
                    return Err(format!("expected the class {class}"));
                }
                if found.as_object().is_some_and(|error| error.len() != 2) {
                    return Err("an error has `class` and `desc`, nothing else".to_owned());
                }
                check_text(text, found_text, variables)?;
                Ok(serde_json::json!({ "error": class, "id": masked_id }))
            }
            Content::Line(_) => Ok(Value::Null),
        }
    }

    /// The expectation in the words of a case.
    #[must_use]
    pub fn shown(&self) -> String {
        let text = match &self.content {
            Content::Return(pattern) => format!("ok {pattern}"),
            Content::Error(class, Text::Whole(text)) => format!("error {class}: {text}"),
            Content::Error(class, Text::Part(text)) => format!("error {class} ~ {text}"),
            Content::Line(Text::Whole(text)) => format!("line: {text}"),
            Content::Line(Text::Part(text)) => format!("line ~ {text}"),
        };
        let sentinel = if self.sentinel { "sentinel " } else { "" };
        let id = self.id.as_ref().map_or_else(String::new, |id| format!("id {id} "));
        shorten_text(&format!("{sentinel}{id}{text}"))
    }
}

fn check_text(expected: &Text, found: &str, variables: &Variables) -> Result<(), Failure> {
    let (fits, expected, how) = match expected {
        Text::Whole(text) => {
            let text = to_text(text, variables);
            (found == text, text, "expected the text")
        }
        Text::Part(text) => {
            let text = to_text(text, variables);
            (found.contains(&text), text, "expected in the text")
        }
    };
    if fits { Ok(()) } else { Err(format!("{how}: {}", shorten_text(&expected))) }
}
