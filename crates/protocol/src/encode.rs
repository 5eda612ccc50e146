//! Writes JSON as the original does: one line, `", "` and `": "` as separators, ASCII only, doubles with 17 digits.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};

use crate::value::{Kind, Value};

/// Appends `value` to `line`.
pub fn append<T: Serialize + ?Sized>(line: &mut Vec<u8>, value: &T) {
    let start = line.len();
    if value.serialize(&mut Serializer::with_formatter(&mut *line, Notation)).is_err() {
        // The schema's types have string keys and no fallible parts, and a Vec takes every byte.
        debug_assert!(false, "a reply that cannot be written");
        line.truncate(start);
        line.extend_from_slice(b"null");
    }
}

/// Writes `value` as it is serialized.
///
/// # Errors
/// Those of the writer: the schema's types have string keys and no fallible parts.
pub(crate) fn write<T: Serialize + ?Sized>(writer: impl Write, value: &T) -> io::Result<()> {
    Ok(value.serialize(&mut Serializer::with_formatter(writer, Notation))?)
}

/// Writes a value that came in, in the notation of what goes out. Numbers stay as they were typed. A text with escapes is
/// decoded first, and copied for that; nothing else is.
///
/// # Errors
/// Those of the writer.
pub(crate) fn echo(mut writer: impl Write, value: Value<'_>) -> io::Result<()> {
    let mut position = 0;
    while let Some((token, end)) = crate::value::token_at(value.text(), position) {
        match token {
            b"," => writer.write_all(b", ")?,
            b":" => writer.write_all(b": ")?,
            [b'"' | b'\'', ..] => {
                debug_assert_eq!(Value::new(token).kind(), Kind::Text);
                let text = Value::new(token).as_text().unwrap_or_default();
                write(&mut writer, &text)?;
            }
            _ => writer.write_all(token)?,
        }
        position = end;
    }
    Ok(())
}

/// The original's notation.
struct Notation;

impl Formatter for Notation {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(seventeen_digits(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|character: char| character >= '\x7f') {
            writer.write_all(&rest.as_bytes()[..at])?;
            let Some(character) = rest[at..].chars().next() else { break };
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04X}")?;
            }
            rest = &rest[at + character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        let short: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"/",
            CharEscape::Backspace => b"\\b",
            CharEscape::FormFeed => b"\\f",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::AsciiControl(byte) => return write!(writer, "\\u{byte:04X}"),
        };
        writer.write_all(short)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// A double with 17 significant digits, as `%.17g` of printf(3): exact, and without a point where it is whole.
fn seventeen_digits(value: f64) -> String {
    let scientific = format!("{value:.16e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return "0".to_owned() };
    let Ok(exponent) = exponent.parse::<i32>() else { return "0".to_owned() };
    let trim = |text: &str| -> String {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
    };
    if (-4..17).contains(&exponent) {
        let decimals = usize::try_from(16 - exponent).unwrap_or(0);
        trim(&format!("{value:.decimals$}"))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::{append, seventeen_digits};

    #[test]
    fn doubles_look_as_in_c() {
        for (value, expected) in [
            (0.1, "0.10000000000000001"),
            (1.0, "1"),
            (-0.0, "-0"),
            (1_445_289_850.0, "1445289850"),
            (1_445_289_855.123_456, "1445289855.123456"),
            (0.552_246_093_75, "0.55224609375"),
            (18_446_744_073_709_551_616.0, "1.8446744073709552e+19"),
            (1e-5, "1.0000000000000001e-05"),
            (123_456.0, "123456"),
        ] {
            assert_eq!(seventeen_digits(value), expected);
        }
    }

    #[test]
    fn text_is_ascii_with_upper_case_escapes() {
        let mut line = Vec::new();
        append(&mut line, "a/\"\\\u{8}\u{c}\n\r\t\u{1f}\u{7f}\u{e9}\u{1F600}z");
        assert_eq!(String::from_utf8(line).unwrap(), r#""a/\"\\\b\f\n\r\t\u001F\u007F\u00E9\uD83D\uDE00z""#);
    }
}
