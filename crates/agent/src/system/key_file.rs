//! Reads the `GLib` key-file dialect: `[group]`, `key=value`, `#` comments.
//!
//! Our own parser because an error has to name the line, and because the dialect differs from other ini files in what
//! people notice: blanks at the end of a value belong to it, `;` is no comment and no quotes are taken off, `\s` is a
//! blank, the truth values are `true`, `false`, `1` and `0` alone. A general ini library gets each of these wrong.
//!
//! What the keys mean is not known here.

use std::fmt::Write as _;

/// A whole file, in its own order.
#[derive(Debug, Default, PartialEq)]
pub struct KeyFile {
    /// Every `key=value` line; a repeated key appears as often as it stands in the file.
    pub entries: Vec<Entry>,
    /// Every group heading with its line.
    pub groups: Vec<(String, usize)>,
}

/// One `key=value` line.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The group it stands in.
    pub group: String,
    /// The key, with its language in brackets if it has one.
    pub key: String,
    /// The value as it stands in the file, escapes and all.
    pub raw_value: Vec<u8>,
    /// Counted from 1.
    pub line: usize,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there and what would be right.
    pub text: String,
}

impl KeyFile {
    /// Reads a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let mut file = Self::default();
        for (index, line_bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let line = index + 1;
            file.parse_line(line_bytes, line).map_err(|text| Problem { line, text })?;
        }
        Ok(file)
    }

    fn parse_line(&mut self, bytes: &[u8], line: usize) -> Result<(), String> {
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes).trim_ascii_start();
        if bytes.is_empty() || bytes[0] == b'#' {
            return Ok(());
        }
        if bytes.starts_with(b"\xef\xbb\xbf") {
            return Err("the file starts with a byte order mark: save it as UTF-8 without one".to_owned());
        }
        if bytes[0] == b'[' {
            if let Some(name) = bytes.trim_ascii_end().strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")) {
                let name = String::from_utf8_lossy(name).into_owned();
                if name.is_empty() || name.contains(['[', ']']) || name.contains(char::is_control) {
                    return Err(format!("'[{}]' is not a group name", name.escape_debug()));
                }
                self.groups.push((name, line));
                return Ok(());
            }
            return Err(format!("'{}' starts like a group but does not end with ']'", excerpt(bytes)));
        }
        let Some(equals) = bytes.iter().position(|&byte| byte == b'=') else {
            let hint = if bytes[0] == b';' { " (a comment starts with '#')" } else { "" };
            return Err(format!("'{}' is neither 'key=value' nor '[group]' nor a '#' comment{hint}", excerpt(bytes)));
        };
        let key = String::from_utf8_lossy(bytes[..equals].trim_ascii_end()).into_owned();
        if key.is_empty() {
            return Err(format!("'{}' has no key before the '='", excerpt(bytes)));
        }
        let (bare_key, language) = key.split_once('[').map_or((key.as_str(), None), |(bare, rest)| (bare, Some(rest)));
        let language_is_closed =
            language.is_none_or(|rest| rest.strip_suffix(']').is_some_and(|inner| !inner.contains(['[', ']'])));
        if bare_key.is_empty() || bare_key.contains(']') || !language_is_closed {
            return Err(format!("'{}' is not a key", key.escape_debug()));
        }
        let Some((group, _)) = self.groups.last() else {
            return Err(format!("the key '{}' stands before any group: put '[general]' above it", key.escape_debug()));
        };
        self.entries.push(Entry {
            group: group.clone(),
            key,
            raw_value: bytes[equals + 1..].trim_ascii_start().to_vec(),
            line,
        });
        Ok(())
    }

    /// The entry of a key that counts: the last one.
    #[must_use]
    pub fn last(&self, group: &str, key: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.group == group && entry.key == key)
    }
}

impl Entry {
    /// The value as text, escapes resolved.
    pub fn text(&self) -> Result<String, Problem> {
        let raw = std::str::from_utf8(&self.raw_value).map_err(|_| self.problem("a value that is not UTF-8"))?;
        let mut text = String::with_capacity(raw.len());
        let mut characters = raw.chars();
        while let Some(character) = characters.next() {
            if character == '\0' {
                return Err(self.problem("a NUL byte in its value"));
            }
            if character != '\\' {
                text.push(character);
                continue;
            }
            text.push(match characters.next() {
                Some('s') => ' ',
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('\\') => '\\',
                Some(other) => {
                    let what = format!(
                        "the unknown escape '\\{}' (known are \\s \\n \\t \\r \\\\; write a backslash as \\\\)",
                        other.escape_debug()
                    );
                    return Err(self.problem(&what));
                }
                None => return Err(self.problem("a single backslash at its end (write it as \\\\)")),
            });
        }
        Ok(text)
    }

    /// The value as truth value.
    pub fn boolean(&self) -> Result<bool, Problem> {
        match self.raw_value.trim_ascii_end() {
            b"true" | b"1" => Ok(true),
            b"false" | b"0" => Ok(false),
            other => Err(self.problem(&format!("the value '{}', which is none of true, false, 1, 0", excerpt(other)))),
        }
    }

    fn problem(&self, has: &str) -> Problem {
        Problem { line: self.line, text: format!("the key '{}' has {has}", self.key.escape_debug()) }
    }
}

/// A value as it is written into a key file, so that [`Entry::text`] gives it back.
#[must_use]
pub fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    let mut leading = true;
    for character in value.chars() {
        match character {
            // Only in front would they be lost: the reader skips blanks after the '='.
            ' ' if leading => escaped.push_str("\\s"),
            '\t' if leading => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\\' => escaped.push_str("\\\\"),
            other => escaped.push(other),
        }
        leading = leading && matches!(character, ' ' | '\t');
    }
    escaped
}

/// The beginning of a line for a message, so that a wrong file (a binary, say) makes no long one.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == 40 {
            shown.push_str("...");
            break;
        }
        let _ = write!(shown, "{}", character.escape_debug());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let file = KeyFile::parse(text.as_bytes()).map_err(|problem| format!("{}: {}", problem.line, problem.text))?;
        let value = file.last("general", "path").map(Entry::text).transpose();
        value.map(Option::unwrap_or_default).map_err(|problem| format!("{}: {}", problem.line, problem.text))
    }

    #[test]
    fn a_value_is_read_as_glib_reads_it() {
        for (text, value) in [
            ("[general]\npath=/x\n", "/x"),
            ("[general]\n  path = /x  \n", "/x  "),
            ("  [general]  \npath=/x", "/x"),
            ("[general]\r\npath=/x\r\n", "/x"),
            ("\n# hi\n  # ho\n   \n[general]\npath=/x\n", "/x"),
            ("[general]\npath=a\\sb\\tc\\\\d\\n\n", "a b\tc\\d\n"),
            ("[general]\npath=\"x\"\n", "\"x\""),
            ("[general]\npath=a=b # c\n", "a=b # c"),
            ("[general]\npath=1\n[other]\npath=2\n[general]\n", "1"),
            ("[general]\npath=1\npath=2\n", "2"),
            ("[general]\npath[de]=x\npath=y\n", "y"),
            ("[general]\npath=\n", ""),
            ("[general]\npath =\t a\n", "a"),
            ("", ""),
        ] {
            assert_eq!(read(text).as_deref(), Ok(value), "{text:?}");
        }
    }

    #[test]
    fn a_bad_line_is_named_with_its_number_and_what_would_be_right() {
        for (text, message) in [
            ("x=1\n", "1: the key 'x' stands before any group: put '[general]' above it"),
            (
                "[general]\n;c\n",
                "2: ';c' is neither 'key=value' nor '[group]' nor a '#' comment (a comment starts with '#')",
            ),
            ("[general]\n\nnonsense\n", "3: 'nonsense' is neither 'key=value' nor '[group]' nor a '#' comment"),
            ("[general\n", "1: '[general' starts like a group but does not end with ']'"),
            ("[general] x\n", "1: '[general] x' starts like a group but does not end with ']'"),
            ("[]\n", "1: '[]' is not a group name"),
            ("[general]\n =x\n", "2: '=x' has no key before the '='"),
            ("[general]\npath[=x\n", "2: 'path[' is not a key"),
            (
                "[general]\npath=\\q\n",
                "2: the key 'path' has the unknown escape '\\q' (known are \\s \\n \\t \\r \\\\; write a backslash as \\\\)",
            ),
            ("[general]\npath=a\\\n", "2: the key 'path' has a single backslash at its end (write it as \\\\)"),
            ("[general]\npath=a\0b\n", "2: the key 'path' has a NUL byte in its value"),
            ("\u{feff}[general]\n", "1: the file starts with a byte order mark: save it as UTF-8 without one"),
        ] {
            assert_eq!(read(text), Err(message.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error_only_where_they_are_used() {
        let file = KeyFile::parse(b"[general]\nother=\xff\npath=\xff\n").unwrap();
        assert_eq!(file.entries[0].key, "other");
        let problem = file.entries[1].text().unwrap_err();
        assert_eq!(problem.text, "the key 'path' has a value that is not UTF-8");
    }

    #[test]
    fn a_truth_value_is_one_of_four_words() {
        for (value, truth) in [
            ("true", Some(true)),
            ("1  ", Some(true)),
            ("false", Some(false)),
            ("0", Some(false)),
            ("yes", None),
            ("TRUE", None),
            ("", None),
        ] {
            let file = KeyFile::parse(format!("[general]\nverbose={value}\n").as_bytes()).unwrap();
            assert_eq!(file.entries[0].boolean().ok(), truth, "{value:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for value in [" x y ", "\t\tx", "a\nb\t\\c;d\u{1}", "", "  ", "\u{e9}"] {
            assert_eq!(read(&format!("[general]\npath={}\n", escape(value))).as_deref(), Ok(value));
        }
        assert_eq!(escape(" x y "), "\\sx y ");
        assert_eq!(escape("a\nb\t\\c;d"), "a\\nb\t\\\\c;d");
    }
}
