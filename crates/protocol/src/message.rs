//! Requests and replies: the envelope around a command.
//!
//! A request is an object with `execute`, and perhaps `arguments` and `id`; a reply is one line with `return` or
//! `error`, and the request's `id` if it had one. What the commands mean is the families' business.

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::args;
use crate::encode;
use crate::stream::cost_bytes;
use crate::syntax::{self, ECHO_BYTES_MAX};
use crate::value::{Kind, Value};

/// Put before the reply to a guest-sync-delimited: no UTF-8 text contains it.
pub const SENTINEL: u8 = 0xFF;

/// The class of an error; clients branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// Any failure.
    GenericError,
    /// The command is unknown or disabled.
    CommandNotFound,
}

/// A well-formed request.
#[derive(Debug, Clone)]
pub struct Request {
    text: Vec<u8>,
    cost_bytes: usize,
    execute: Range<usize>,
    arguments: Option<Range<usize>>,
    id: Option<Range<usize>>,
}

/// Why a message is no request: an error to send back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub desc: String,
    /// The text of the message's `id`, if it came as far as that.
    id: Option<Vec<u8>>,
    object: bool,
    is_reply: bool,
}

impl Refusal {
    /// A refusal of something that was not even an object.
    #[must_use]
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { desc: desc.into(), id: None, object: false, is_reply: false }
    }

    /// A refusal of a request that was understood, for a cause outside of it. Of its memory only that of the `id` is kept.
    #[must_use]
    pub fn of_request(desc: impl Into<String>, request: Request) -> Self {
        let Request { text, id, .. } = request;
        Self { desc: desc.into(), id: id.map(|id| only(text, id)), object: true, is_reply: false }
    }

    /// The same without the `id`, which says so: for one that there is no memory to send back.
    #[must_use]
    pub fn without_id(self) -> Self {
        let desc = format!("{} (its id is not sent back: there is no memory for it now)", self.desc);
        Self { desc, id: None, ..self }
    }

    /// What it costs in bytes until it is sent, at most.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let id = self.id.as_deref().unwrap_or_default();
        self.desc.len() + cost_bytes(id.len(), id.contains(&b'\\'), 0)
    }

    /// A byte that cannot stand where it stands; `token` ends with it.
    pub(crate) fn stray(token: &[u8]) -> Self {
        let mut shown = String::new();
        if token != [0] {
            for chunk in token[token.len().saturating_sub(ECHO_BYTES_MAX)..].utf8_chunks() {
                shown.push_str(chunk.valid());
                shown.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
            }
        }
        Self::generic(format!("JSON parse error, stray '{shown}'"))
    }

    /// Whether the message was an object, so that its sender waits for an answer to it.
    #[must_use]
    pub fn answers_an_object(&self) -> bool {
        self.object
    }

    /// Whether the message was a reply: an object of `return` or `error`, and perhaps `id`. To answer that would be to
    /// talk with oneself where a line gives back what is sent.
    #[must_use]
    pub fn answers_a_reply(&self) -> bool {
        self.is_reply
    }

    /// Writes the reply, a whole line.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, writer: impl Write) -> io::Result<()> {
        let id = self.id.as_ref().map(|id| Id(Value::new(id)));
        write_error(writer, ErrorClass::GenericError, &self.desc, id)
    }
}

/// A request's `id`, which is sent back in the reply: any JSON value. It is not copied before that.
#[derive(Debug, Clone, Copy)]
pub struct Id<'a>(Value<'a>);

/// A part of a text, in the memory of the whole; the rest of that is given back.
fn only(mut text: Vec<u8>, part: Range<usize>) -> Vec<u8> {
    text.truncate(part.end);
    text.drain(..part.start);
    text.shrink_to_fit();
    text
}

impl Request {
    /// Judges a message's text, which consists of whole tokens.
    pub(crate) fn from_text(text: Vec<u8>, cost_bytes: usize) -> Result<Self, Refusal> {
        syntax::check(&text).map_err(Refusal::generic)?;
        let message = Value::new(&text);
        if message.kind() != Kind::Object {
            return Err(Refusal::generic("QMP input must be a JSON object"));
        }
        let place = |value: Value<'_>| {
            let start = value.text().as_ptr().addr() - text.as_ptr().addr();
            start..start + value.text().len()
        };
        let (mut execute, mut arguments, mut id, mut wrong) = (None, None, None, None);
        let (mut has_result, mut has_other) = (false, false);
        for (name, value) in message.members() {
            match &*name {
                "return" | "error" => has_result = true,
                "id" => {}
                _ => has_other = true,
            }
            match (&*name, value.kind()) {
                ("id", _) => id = Some(place(value)),
                ("execute", Kind::Text) => execute = Some(place(value)),
                ("arguments", Kind::Object) => arguments = Some(place(value)),
                ("execute", _) => wrong = wrong.or(Some("QMP input member 'execute' must be a string".to_owned())),
                ("arguments", _) => wrong = wrong.or(Some("QMP input member 'arguments' must be an object".to_owned())),
                _ => wrong = wrong.or_else(|| Some(format!("QMP input member '{}' is unexpected", clip(&name)))),
            }
        }
        match (execute, wrong) {
            (Some(execute), None) => Ok(Self { text, cost_bytes, execute, arguments, id }),
            (_, wrong) => {
                let desc = wrong.unwrap_or_else(|| "QMP input lacks member 'execute'".to_owned());
                let id = id.map(|id| only(text, id));
                Err(Refusal { desc, id, object: true, is_reply: has_result && !has_other })
            }
        }
    }

    /// What the request costs in bytes until it is answered, at most.
    #[must_use]
    pub const fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }

    /// The command's name, known or not.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        Value::new(&self.text[self.execute.clone()]).as_text().unwrap_or_default()
    }

    /// The command, parsed from the arguments.
    ///
    /// # Errors
    /// What is wrong with the arguments, in the original's words.
    pub fn arguments<'a, C: Deserialize<'a>>(&'a self) -> Result<C, args::Error> {
        args::parse(self.argument_values())
    }

    /// The arguments as values; an empty object if the request has none.
    #[must_use]
    pub fn argument_values(&self) -> Value<'_> {
        self.arguments.clone().map_or(Value::new(b"{}"), |range| Value::new(&self.text[range]))
    }

    /// What to echo in the reply.
    #[must_use]
    pub fn id(&self) -> Option<Id<'_>> {
        self.id.clone().map(|range| Id(Value::new(&self.text[range])))
    }

    /// The size of the message in bytes, blanks left out.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }
}

/// At most a kilobyte of a name from outside, to be repeated in an error.
#[must_use]
pub fn clip(name: &str) -> &str {
    &name[..name.floor_char_boundary(ECHO_BYTES_MAX)]
}

/// Writes the reply of a command that has succeeded, a whole line.
///
/// # Errors
/// Those of the writer.
pub fn write_success<T: Serialize + ?Sized>(mut writer: impl Write, result: &T, id: Option<Id<'_>>) -> io::Result<()> {
    writer.write_all(BEGINNING)?;
    encode::write(&mut writer, result)?;
    end(writer, id)
}

/// Writes the reply of a command that has failed, a whole line. `desc` is any text.
///
/// # Errors
/// Those of the writer.
pub fn write_error(mut writer: impl Write, class: ErrorClass, desc: &str, id: Option<Id<'_>>) -> io::Result<()> {
    writer.write_all(b"{")?;
    if let Some(Id(id)) = id {
        writer.write_all(b"\"id\": ")?;
        encode::echo(&mut writer, id)?;
        writer.write_all(b", ")?;
    }
    writer.write_all(b"\"error\": ")?;
    encode::write(&mut writer, &Failure { class, desc: Cow::Borrowed(desc) })?;
    writer.write_all(b"}\n")
}

/// The `error` member of a reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure<'a> {
    /// What clients branch on.
    pub class: ErrorClass,
    /// What people read.
    pub desc: Cow<'a, str>,
}

/// What comes before the result.
const BEGINNING: &[u8] = b"{\"return\": ";

/// Appends what comes before the result in a reply that is written piece by piece.
pub fn begin(line: &mut Vec<u8>) {
    line.extend_from_slice(BEGINNING);
}

/// Writes what comes after the result.
///
/// # Errors
/// Those of the writer.
pub fn end(mut writer: impl Write, id: Option<Id<'_>>) -> io::Result<()> {
    if let Some(Id(id)) = id {
        writer.write_all(b", \"id\": ")?;
        encode::echo(&mut writer, id)?;
    }
    writer.write_all(b"}\n")
}
