//! JSON texts of a guest in the form that a reader wants, piece by piece: one of 64 MiB takes no more memory for it.

use std::io::{self, Write};

use super::text::json_text;

/// Writes a JSON text that is known to be one: in one line, or in lines of which each but the first begins with `start`.
/// Characters that steer a terminal are escaped.
pub fn reformat(json: &str, start: Option<&str>, out: &mut impl Write) -> io::Result<()> {
    const MARKS: [char; 7] = ['{', '}', '[', ']', ',', ':', '"'];
    let mut depth = 0_usize;
    let mut is_just_open = false;
    let mut rest = json.trim_ascii_start();
    while let Some(first) = rest.chars().next() {
        let size = match first {
            '"' => text_end(rest),
            mark if MARKS.contains(&mark) => 1,
            _ => rest.find(|c: char| MARKS.contains(&c) || c.is_ascii_whitespace()).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(size);
        rest = after.trim_ascii_start();
        let is_end = matches!(first, '}' | ']');
        if let Some(start) = start {
            depth = if is_end { depth.saturating_sub(1) } else { depth };
            // What is empty ends where it began.
            if is_just_open != is_end {
                new_line(start, depth, out)?;
            }
            is_just_open = matches!(first, '{' | '[');
            depth += usize::from(is_just_open);
        }
        match (first, start) {
            ('"', _) => write_text(token, out)?,
            (',', Some(start)) => {
                out.write_all(b",")?;
                new_line(start, depth, out)?;
            }
            (':', Some(_)) => out.write_all(b": ")?,
            _ => out.write_all(token.as_bytes())?,
        }
    }
    Ok(())
}

/// How long the text is that begins with a quote.
fn text_end(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn write_text(mut text: &str, out: &mut impl Write) -> io::Result<()> {
    const PIECE_BYTES: usize = 64 << 10;
    while !text.is_empty() {
        let mut end = text.len().min(PIECE_BYTES);
        while !text.is_char_boundary(end) {
            end += 1;
        }
        out.write_all(json_text(&text[..end]).as_bytes())?;
        text = &text[end..];
    }
    Ok(())
}

fn new_line(start: &str, depth: usize, out: &mut impl Write) -> io::Result<()> {
    write!(out, "\n{start}")?;
    (0..depth).try_for_each(|_| out.write_all(b"  "))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written(json: &str, start: Option<&str>) -> String {
        let mut out = Vec::new();
        reformat(json, start, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_text_is_written_as_a_tree_of_it_would_be() {
        for value in [
            json!({ "a": [1, -2.5e3, true, null, "x, {y}: \"z\\" ], "b": {}, "c": [], "d": [[], {}, [1]], "e": "grün 😀" }),
            json!([]),
            json!("\\"),
            json!(7),
            json!([{ "a": { "b": [] } }, ""]),
        ] {
            let spaced = format!("  {}\n", value.to_string().replace(':', " : "));
            let lines = written(&value.to_string(), Some(""));
            assert_eq!(lines, format!("{value:#}"));
            assert_eq!(written(&lines, None), value.to_string());
            assert!(serde_json::from_str::<Value>(&written(&spaced, Some(""))).is_ok());
        }
        assert_eq!(written("{\"a\": [1]}", Some("web | ")), "{\nweb |   \"a\": [\nweb |     1\nweb |   ]\nweb | }");
    }

    #[test]
    fn a_long_text_does_not_steer_the_terminal() {
        let value = json!(format!("{}\u{9b}2J\u{202e}{}", "ü".repeat(70_000), "😀".repeat(70_000)));
        let text = written(&value.to_string(), None);
        assert!(!text.contains(['\u{9b}', '\u{202e}']));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
