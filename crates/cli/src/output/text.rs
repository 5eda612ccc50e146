//! Texts from the guest: what a guest sends must not steer the reader's terminal.

use unicode_width::UnicodeWidthStr;

/// The text with control characters written out: `\n`, `\x1b`.
pub fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut shown, character| {
        match character {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            '\r' => shown.push_str("\\r"),
            control if control.is_control() => shown.push_str(&format!("\\x{:02x}", u32::from(control))),
            other => shown.push(other),
        }
        shown
    })
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

/// JSON with the control characters escaped that it would allow as they are: a terminal may obey U+009B.
pub fn json_text(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, character| {
        match character {
            '\u{7f}'..='\u{9f}' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            other => text.push(other),
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
    fn json_does_not_steer_the_terminal_and_means_the_same() {
        let value = serde_json::json!({ "a": "\u{9b}2J \u{7f} \x1b grün" });
        let text = json_text(&format!("{value:#}"));
        assert!(!text.chars().any(|character| character.is_control() && character != '\n'), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_long_text_is_cut_where_it_must_be() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("日本語", 4), "日…");
    }
}
