//! Files of `NAME=VALUE` lines in the shell's notation, as os-release(5) describes them.
//!
//! Read leniently: a line that is none costs only itself. Nothing is expanded and nothing is run.

use std::iter::Peekable;
use std::str::Chars;

/// The names and values of a text, in its order.
pub fn parse(text: &str) -> impl DoubleEndedIterator<Item = (&str, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().filter_map(assignment)
}

/// The value of a name; of several the last, as in the shell.
pub fn value(text: &str, name: &str) -> Option<String> {
    parse(text).rfind(|(known, _)| *known == name).map(|(_, value)| value)
}

fn assignment(line: &str) -> Option<(&str, String)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    Some((name.trim_end(), unquoted(value.trim_start())))
}

/// The shell's first word: pieces with and without quotes, up to a blank or `;` that stands outside of them. A quote
/// that is not closed reaches to the end of the line; in the middle of a word it stands for itself.
fn unquoted(text: &str) -> String {
    let mut value = String::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '\'' | '"' if !value.is_empty() && !rest.clone().any(|letter| letter == next) => value.push(next),
            '\'' => value.extend(rest.by_ref().take_while(|letter| *letter != '\'')),
            '"' => in_double_quotes(&mut rest, &mut value),
            '\\' => value.extend(rest.next()),
            ';' => break,
            blank if blank.is_whitespace() => break,
            letter => value.push(letter),
        }
    }
    value
}

fn in_double_quotes(rest: &mut Peekable<Chars<'_>>, value: &mut String) {
    while let Some(next) = rest.next() {
        match next {
            '"' => return,
            '\\' => value.push(rest.next_if(|letter| matches!(letter, '$' | '"' | '\\' | '`' | '\'')).unwrap_or('\\')),
            letter => value.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, value};

    fn check(line: &str, expected: &str) {
        assert_eq!(value(line, "X").as_deref(), Some(expected), "{line}");
    }

    #[test]
    fn values_are_the_shells_words() {
        check("X=plain", "plain");
        check("X=", "");
        check(r#"X="a b""#, "a b");
        check("X='single quoted'", "single quoted");
        check(r#"X="a 'b' c""#, "a 'b' c");
        check(r#"X="\$ \" \\ \` \' \n""#, r#"$ " \ ` ' \n"#);
        check(r"X='\n'", r"\n");
        check(r"X=a\ b", "a b");
        check(r#"X="a"'b'c"#, "abc");
        check("X=un quoted; x", "un");
        check("X=a;b", "a");
        check("X=x # comment", "x");
        check("X=\"Äö\u{1f427}\"", "Äö\u{1f427}");
    }

    #[test]
    fn damaged_lines_cost_only_themselves() {
        check("no assignment\n=x\n[section]\nX=1\n", "1");
        check("X=\"unterminated", "unterminated");
        check("X='unterminated", "unterminated");
        check("X=it's", "it's");
        check("X=5\" x", "5\"");
        check("X=back\\", "back");
        check("X=\"back\\", "back\\");
        check("  X = blanks \r\n", "blanks");
        check("\u{feff}X=1", "1");
        check("X=first\nX=last", "last");
        assert_eq!(value("export X=1", "X"), None);
        assert_eq!(value("# X=1", "X"), None);
        assert_eq!(parse("").count(), 0);
    }
}
