//! Expands what cannot be typed in a case: bytes, repetitions, and the values of variables.
//!
//! | text | meaning |
//! |---|---|
//! | `‹ff›` | the byte 0xFF (in an expected text: the character U+00FF) |
//! | `‹fffd›` | the character U+FFFD, likewise any character by four to six digits |
//! | `‹ab x 1000›` | `ab` a thousand times |
//! | `$name` | the value of a variable that is bound; other dollar signs stay |

use std::collections::BTreeMap;

/// The values that a conversation has met so far.
pub type Variables = BTreeMap<String, String>;

/// The bytes of a line that is sent.
pub fn to_bytes(text: &str, variables: &Variables) -> Vec<u8> {
    let mut bytes = Vec::new();
    each_piece(&substitute(text, variables), |piece| match piece {
        Piece::Text(text) => bytes.extend_from_slice(text.as_bytes()),
        Piece::Byte(byte) => bytes.push(byte),
        Piece::Character(character) => bytes.extend_from_slice(character.to_string().as_bytes()),
        Piece::Repeated(text, count) => bytes.extend_from_slice(text.repeat(count).as_bytes()),
    });
    bytes
}

/// The characters of a text that is expected.
pub fn to_text(text: &str, variables: &Variables) -> String {
    let mut expanded = String::new();
    each_piece(&substitute(text, variables), |piece| match piece {
        Piece::Text(text) => expanded.push_str(text),
        Piece::Byte(byte) => expanded.push(char::from(byte)),
        Piece::Character(character) => expanded.push(character),
        Piece::Repeated(text, count) => expanded.push_str(&text.repeat(count)),
    });
    expanded
}

/// Replaces `$name` for every bound name; the longest name wins.
fn substitute(text: &str, variables: &Variables) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        replaced.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        let name_bytes = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        if let Some(value) = variables.get(&rest[..name_bytes]) {
            replaced.push_str(value);
            rest = &rest[name_bytes..];
        } else {
            replaced.push('$');
        }
    }
    replaced.push_str(rest);
    replaced
}

enum Piece<'a> {
    Text(&'a str),
    Byte(u8),
    Character(char),
    Repeated(&'a str, usize),
}

fn each_piece(text: &str, mut take: impl FnMut(Piece<'_>)) {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('‹') {
        take(Piece::Text(before));
        let (inside, after) = after.split_once('›').unwrap_or_else(|| panic!("`‹` without `›` in this case: {text}"));
        take(special(inside).unwrap_or_else(|| panic!("`‹{inside}›` means nothing in this case: {text}")));
        rest = after;
    }
    take(Piece::Text(rest));
}

fn special(inside: &str) -> Option<Piece<'_>> {
    if let Some((text, count)) = inside.rsplit_once(" x ") {
        return Some(Piece::Repeated(text, count.parse().ok()?));
    }
    let number = u32::from_str_radix(inside, 16).ok()?;
    if inside.len() == 2 { Some(Piece::Byte(number as u8)) } else { Some(Piece::Character(char::from_u32(number)?)) }
}
