//! Looks at a message's text in place: a [`Value`] is a piece of a message that has been found good.
//!
//! Nothing is copied but strings with escapes; a 60 MB argument is a slice of the message that brought it.

use std::borrow::Cow;

/// A value inside a message.
#[derive(Debug, Clone, Copy)]
pub struct Value<'a> {
    text: &'a [u8],
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Boolean,
    /// Any number.
    Number,
    /// A string.
    Text,
    /// `[...]`
    List,
    /// `{...}`
    Object,
}

impl<'a> Value<'a> {
    /// `text` is one value, checked, perhaps with blanks around it.
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text: text.trim_ascii() }
    }

    /// The text as it was sent, blanks left out.
    #[must_use]
    pub fn text(self) -> &'a [u8] {
        self.text
    }

    /// What it is.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.text.first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::List,
            Some(b'"' | b'\'') => Kind::Text,
            Some(b't' | b'f') => Kind::Boolean,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            _ => Kind::Null,
        }
    }

    /// The boolean, if it is one.
    #[must_use]
    pub fn as_bool(self) -> Option<bool> {
        (self.kind() == Kind::Boolean).then(|| self.text == b"true")
    }

    /// The number, if it is written without a fraction or an exponent and fits.
    #[must_use]
    pub fn as_i64(self) -> Option<i64> {
        self.number()?.parse().ok()
    }

    /// The number, if it is written without sign, fraction and exponent and fits.
    #[must_use]
    pub fn as_u64(self) -> Option<u64> {
        self.number()?.parse().ok()
    }

    /// The number, if it is one.
    #[must_use]
    pub fn as_f64(self) -> Option<f64> {
        self.number()?.parse().ok()
    }

    fn number(self) -> Option<&'a str> {
        if self.kind() == Kind::Number { std::str::from_utf8(self.text).ok() } else { None }
    }

    /// The string, if it is one; borrowed unless something in it is escaped.
    #[must_use]
    pub fn as_text(self) -> Option<Cow<'a, str>> {
        if self.kind() != Kind::Text {
            return None;
        }
        decode_text(self.text).ok()
    }

    /// The elements of a list; none if it is something else.
    pub fn elements(self) -> impl Iterator<Item = Value<'a>> {
        let is_list = self.kind() == Kind::List;
        let mut position = usize::from(is_list);
        std::iter::from_fn(move || {
            if !is_list {
                return None;
            }
            let (value, end) = value_at(self.text, position)?;
            position = token_at(self.text, end).map_or(end, |(_separator, after)| after);
            Some(value)
        })
    }

    /// The members of an object; none if it is something else.
    pub fn members(self) -> impl Iterator<Item = (Cow<'a, str>, Value<'a>)> {
        let is_object = self.kind() == Kind::Object;
        let mut position = usize::from(is_object);
        std::iter::from_fn(move || {
            if !is_object {
                return None;
            }
            let (key, end) = value_at(self.text, position)?;
            let (_colon, start) = token_at(self.text, end)?;
            let (value, end) = value_at(self.text, start)?;
            position = token_at(self.text, end).map_or(end, |(_separator, after)| after);
            Some((key.as_text()?, value))
        })
    }
}

/// The value that starts at `position` or after blanks, and where it ends. `None` at a closing bracket or the end.
fn value_at(text: &[u8], position: usize) -> Option<(Value<'_>, usize)> {
    let (token, mut end) = token_at(text, position)?;
    let start = end - token.len();
    let mut depth = match token[0] {
        b'{' | b'[' => 1,
        b'}' | b']' => return None,
        _ => 0,
    };
    while depth > 0 {
        let (token, after) = token_at(text, end)?;
        match token[0] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        end = after;
    }
    Some((Value::new(&text[start..end]), end))
}

/// The token at `position` or after blanks, and where it ends. The text consists of whole tokens.
pub(crate) fn token_at(text: &[u8], position: usize) -> Option<(&[u8], usize)> {
    let start = position + text.get(position..)?.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let rest = &text[start..];
    let length = match rest[0] {
        quote @ (b'"' | b'\'') => quoted_length(rest, quote),
        b'a'..=b'z' => rest.iter().take_while(|byte| byte.is_ascii_lowercase()).count(),
        b'-' | b'0'..=b'9' => number_length(rest),
        _ => 1,
    };
    Some((&rest[..length], start + length))
}

fn quoted_length(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(found) = rest.get(at..).and_then(|tail| memchr::memchr2(quote, b'\\', tail)) {
        at += found;
        if rest[at] == quote {
            return at + 1;
        }
        at += 2;
    }
    rest.len()
}

/// A quoted string, decoded; borrowed where nothing in it is escaped. The error is in the original's wording.
pub(crate) fn decode_text(token: &[u8]) -> Result<Cow<'_, str>, String> {
    let quote = token[0];
    let Ok(inner) = std::str::from_utf8(&token[1..token.len() - 1]) else {
        return Err("invalid UTF-8 sequence in string".to_owned());
    };
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner));
    }
    let mut decoded = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        decoded.push_str(&rest[..at]);
        let (character, used) = decode_escape(&rest[at..], quote)?;
        decoded.push(character);
        rest = &rest[at + used..];
    }
    decoded.push_str(rest);
    Ok(Cow::Owned(decoded))
}

/// The decoder ends a number where the grammar does: `1-1` is two of them, and so is `0e5` a number and a word.
fn number_length(rest: &[u8]) -> usize {
    let digits = |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(rest[0] == b'-');
    let is_zero = rest.get(at) == Some(&b'0');
    at += if is_zero { 1 } else { digits(at) };
    let has_fraction = rest.get(at) == Some(&b'.');
    if has_fraction {
        at += 1 + digits(at + 1);
    }
    if matches!(rest.get(at), Some(b'e' | b'E')) && (has_fraction || !is_zero) {
        at += 1;
        at += usize::from(matches!(rest.get(at), Some(b'+' | b'-')));
        at += digits(at);
    }
    at
}

/// The character that the escape at the start of `text` stands for, and how many bytes the escape has. `quote` follows
/// the text: the original shows it where an escape is cut short.
fn decode_escape(text: &str, quote: u8) -> Result<(char, usize), String> {
    let plain = match text.as_bytes().get(1) {
        Some(b'"') => '"',
        Some(b'\'') => '\'',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return decode_unicode_escape(text, quote),
        _ => return Err("invalid escape sequence in string".to_owned()),
    };
    Ok((plain, 2))
}

fn decode_unicode_escape(text: &str, quote: u8) -> Result<(char, usize), String> {
    let unit = |from: usize| -> Option<u32> {
        let bytes = text.as_bytes().get(from..from + 6)?;
        let is_escape = bytes.starts_with(b"\\u") && bytes[2..].iter().all(u8::is_ascii_hexdigit);
        is_escape.then(|| u32::from_str_radix(text.get(from + 2..from + 6)?, 16).ok()).flatten()
    };
    let refuse = |shown: &str| Err(format!("{shown} is not a valid Unicode character"));
    let Some(first) = unit(0) else {
        // Shown as the original does: six characters from the backslash on, the quote included.
        let shown: String = text.chars().chain(std::iter::once(quote as char)).take(6).collect();
        return refuse(&shown);
    };
    let (code, used) = match first {
        0xD800..=0xDBFF => match unit(6) {
            Some(second @ 0xDC00..=0xDFFF) => (0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00), 12),
            _ => return refuse(&text[..6]),
        },
        code => (code, 6),
    };
    let is_noncharacter = (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE;
    match char::from_u32(code) {
        Some(character) if !is_noncharacter => Ok((character, used)),
        _ => refuse(&text[..used]),
    }
}
