//! Texts from the guest: what a guest sends must not steer the reader's terminal.

use unicode_width::UnicodeWidthStr;

/// Whether a character steers a terminal, ends a line, or changes how its neighbours are read: control characters,
/// separators of lines, marks of direction, and what takes no room.
pub fn is_steering(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with what steers a terminal written out: `\n`, `\x1b`, `\u{202e}`.
pub fn printable(text: &str) -> String {
    if !text.chars().any(is_steering) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut shown, character| {
        push_printable(&mut shown, character);
        shown
    })
}

fn push_printable(shown: &mut String, character: char) {
    match character {
        '\n' => shown.push_str("\\n"),
        '\t' => shown.push_str("\\t"),
        '\r' => shown.push_str("\\r"),
        control if control.is_control() => shown.push_str(&format!("\\x{:02x}", u32::from(control))),
        steering if is_steering(steering) => shown.push_str(&format!("\\u{{{:x}}}", u32::from(steering))),
        other => shown.push(other),
    }
}

/// One line as [`printable`], except for colours and tabs: the last check of what was put together from a guest's words and
/// our styles.
pub fn printable_line(line: &str) -> String {
    if !line.chars().any(|character| is_steering(character) && character != '\t') {
        return line.to_owned();
    }
    let mut shown = String::with_capacity(line.len() + 8);
    let mut rest = line;
    while let Some(character) = rest.chars().next() {
        let taken = colour(rest).unwrap_or(character.len_utf8());
        match character {
            '\t' => shown.push('\t'),
            '\x1b' if taken > 1 => shown.push_str(&rest[..taken]),
            other => push_printable(&mut shown, other),
        }
        rest = &rest[taken..];
    }
    shown
}

/// How long the change of colour is that a text begins with: `ESC [ 1 ; 31 m`.
fn colour(text: &str) -> Option<usize> {
    const LONGEST_BYTES: usize = 32;
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.bytes().take(LONGEST_BYTES).position(|byte| !(byte.is_ascii_digit() || byte == b';'))?;
    (parameters.as_bytes()[end] == b'm').then_some(end + 3)
}

/// The lines of a program's output that are to stand behind a name: what goes back in a line, or to another, cannot take
/// the name's place. Colours stay, and end with their line. Bytes that are no text stay if no terminal obeys them.
pub fn output_lines(output: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for line in output.split_inclusive(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // A bar that is drawn again and again: each of its states is a line.
        lines.extend(line.split(|&byte| byte == b'\r').map(output_line));
    }
    lines
}

fn output_line(line: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(line.len() + 8);
    for chunk in line.utf8_chunks() {
        shown.extend_from_slice(printable_line(chunk.valid()).as_bytes());
        for &byte in chunk.invalid() {
            match byte {
                0x80..=0x9f => shown.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
                _ => shown.push(byte),
            }
        }
    }
    if shown.contains(&0x1b) {
        shown.extend_from_slice(b"\x1b[0m");
    }
    shown
}

/// As [`printable`], for a name that need not be text: other bytes are written as `\xff`.
pub fn printable_bytes(bytes: &[u8]) -> String {
    bytes.utf8_chunks().fold(String::new(), |mut shown, chunk| {
        shown.push_str(&printable(chunk.valid()));
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
        shown
    })
}

/// JSON with the characters escaped that it would allow as they are and that steer a terminal: it may obey U+009B.
pub fn json_text(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, character| {
        if character != '\n' && is_steering(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(character);
        }
        text
    })
}

/// Columns on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text in as many columns as given, its end cut off with an ellipsis if it must be.
pub fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut shown = String::new();
    for character in text.chars() {
        let next = format!("{shown}{character}");
        if width(&next) >= columns {
            break;
        }
        shown = next;
    }
    shown.push('…');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_text_does_not_steer_the_terminal() {
        assert_eq!(printable("a\nb\x1b[31m\u{9b}"), "a\\nb\\x1b[31m\\x9b");
        assert_eq!(printable_bytes(b"a\xff\n"), "a\\xff\\n");
        assert_eq!(printable("grün"), "grün");
    }

    #[test]
    fn what_reorders_or_hides_text_is_written_out() {
        assert_eq!(printable("a\u{202e}gpj.exe\u{200b}\u{2028}"), "a\\u{202e}gpj.exe\\u{200b}\\u{2028}");
        assert_eq!(printable_line("\x1b[1;31mred\x1b[0m\tx\x1b[2J\x1b[3"), "\x1b[1;31mred\x1b[0m\tx\\x1b[2J\\x1b[3");
        assert_eq!(printable_line("a\nb\rc"), "a\\nb\\rc");
    }

    #[test]
    fn output_cannot_forge_the_name_in_front_of_it() {
        let shown = output_lines(b"10%\r20%\r\nok\x1b[A\x1b[2Kforged\n\x1b[31mred\xff\x9b\n\nend");
        let shown: Vec<String> = shown.iter().map(|line| line.escape_ascii().to_string()).collect();
        let expected = ["10%", "20%", r"ok\\x1b[A\\x1b[2Kforged", r"\x1b[31mred\xff\\x9b\x1b[0m", "", "end"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn json_does_not_steer_the_terminal_and_means_the_same() {
        let value = serde_json::json!({ "a": "\u{9b}2J \u{7f} \x1b grün \u{202e} \u{e0041}" });
        let text = json_text(&format!("{value:#}"));
        assert!(!text.chars().any(|character| is_steering(character) && character != '\n'), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_long_text_is_cut_where_it_must_be() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("日本語", 4), "日…");
    }
}
