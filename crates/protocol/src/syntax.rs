//! Judges the text of one message: grammar, strings, numbers, duplicate keys, in the original's wording.
//!
//! The text comes from [`crate::stream`], so it consists of whole tokens. Nothing is built: the text itself, once found
//! good, is what [`crate::value::Value`] looks at. No recursion: depth costs a byte of memory a level.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::value::{decode_text, token_at};

/// Longest piece of the input that an error repeats, in bytes.
pub(crate) const ECHO_BYTES_MAX: usize = 1000;

/// Keys of one object up to which comparing each with each is cheaper than a hash table.
const KEYS_COMPARED_MAX: usize = 16;

/// One level of nesting.
enum Level<'a> {
    List,
    Object(Keys<'a>),
}

/// The keys seen so far in one object.
#[derive(Default)]
struct Keys<'a> {
    few: Vec<Cow<'a, str>>,
    many: HashSet<Cow<'a, str>>,
}

impl<'a> Keys<'a> {
    /// False if the key is there already.
    fn insert(&mut self, key: Cow<'a, str>) -> bool {
        if self.many.is_empty() {
            if self.few.contains(&key) {
                return false;
            }
            self.few.push(key);
            if self.few.len() > KEYS_COMPARED_MAX {
                self.many.extend(self.few.drain(..));
            }
            return true;
        }
        self.many.insert(key)
    }
}

/// What the grammar wants next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Value,
    ValueOrListEnd,
    KeyOrObjectEnd,
    Key,
    Colon,
    Separator,
}

/// Ok if `message` is one well-formed value, else what the original says of it.
pub(crate) fn check(message: &[u8]) -> Result<(), String> {
    let mut levels: Vec<Level<'_>> = Vec::new();
    let mut want = Want::Value;
    let mut position = 0;
    while let Some((token, end)) = token_at(message, position) {
        position = end;
        want = match want {
            Want::Colon if token == b":" => Want::Value,
            Want::Colon => return Err(error("missing : in object pair")),
            Want::Separator => match (levels.last(), token) {
                (Some(Level::List), b"]") | (Some(Level::Object(_)), b"}") => {
                    levels.pop();
                    Want::Separator
                }
                (Some(Level::List), b",") => Want::Value,
                (Some(Level::Object(_)), b",") => Want::Key,
                (Some(Level::List), _) => return Err(error("expected separator in list")),
                (Some(Level::Object(_)), _) => return Err(error("expected separator in dict")),
                (None, _) => return Err(error("expecting value")),
            },
            Want::KeyOrObjectEnd if token == b"}" => {
                levels.pop();
                Want::Separator
            }
            Want::Key | Want::KeyOrObjectEnd => {
                let Some(Level::Object(keys)) = levels.last_mut() else { return Err(error("expecting value")) };
                match token[0] {
                    b'"' | b'\'' => {
                        if !keys.insert(text(token)?) {
                            return Err(error("duplicate key"));
                        }
                        Want::Colon
                    }
                    b'{' | b'[' => return Err(error("key is not a string in object")),
                    _ => {
                        check_scalar(token)?;
                        return Err(error("key is not a string in object"));
                    }
                }
            }
            Want::ValueOrListEnd if token == b"]" => {
                levels.pop();
                Want::Separator
            }
            Want::Value | Want::ValueOrListEnd => match token[0] {
                b'{' => {
                    levels.push(Level::Object(Keys::default()));
                    Want::KeyOrObjectEnd
                }
                b'[' => {
                    levels.push(Level::List);
                    Want::ValueOrListEnd
                }
                b'"' | b'\'' => {
                    text(token)?;
                    Want::Separator
                }
                _ => {
                    check_scalar(token)?;
                    Want::Separator
                }
            },
        };
    }
    if want == Want::Separator && levels.is_empty() { Ok(()) } else { Err(error("expecting value")) }
}

fn error(what: &str) -> String {
    format!("JSON parse error, {what}")
}

fn text(token: &[u8]) -> Result<Cow<'_, str>, String> {
    decode_text(token).map_err(|what| error(&what))
}

/// A number or a keyword.
fn check_scalar(token: &[u8]) -> Result<(), String> {
    match token {
        b"true" | b"false" | b"null" => Ok(()),
        [b'a'..=b'z', ..] => {
            let shown = String::from_utf8_lossy(&token[..token.len().min(ECHO_BYTES_MAX)]);
            Err(error(&format!("invalid keyword '{shown}'")))
        }
        [b'-' | b'0'..=b'9', ..] => {
            let text = std::str::from_utf8(token).unwrap_or_default();
            match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(()),
                _ => Err(error(&format!("number '{}' is out of range", &text[..text.len().min(ECHO_BYTES_MAX)]))),
            }
        }
        _ => Err(error("expecting value")),
    }
}
