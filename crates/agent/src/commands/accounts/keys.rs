//! The text of an `authorized_keys` file: sshd(8). Lines that are not asked about stay as they are, byte for byte.

use std::collections::HashSet;

use crate::error::Error;

/// Refuses what is no line of its own, or a comment.
pub fn check(keys: &[String]) -> Result<(), Error> {
    refuse(keys, |key| key.starts_with('#') || key.contains('\n'))
}

/// Refuses also what shows another key on a terminal than it is. A carriage return may end a key: files from Windows
/// have them, and the SSH server skips them.
pub fn check_added(keys: &[String]) -> Result<(), Error> {
    check(keys)?;
    refuse(keys, |key| key.strip_suffix('\r').unwrap_or(key).chars().any(|sign| sign.is_control() && sign != '\t'))
}

fn refuse(keys: &[String], is_bad: impl Fn(&str) -> bool) -> Result<(), Error> {
    match keys.iter().find(|key| is_bad(key)) {
        Some(key) => Err(Error::new(format!("invalid OpenSSH public key: '{key}'"))),
        None => Ok(()),
    }
}

/// The keys in a file, the last one first.
pub fn listed(file: &[u8]) -> Vec<String> {
    let lines = file.split(|&byte| byte == b'\n').rev().map(blanks_cut);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    keys.map(|key| String::from_utf8_lossy(key).into_owned()).collect()
}

fn blanks_cut(line: &[u8]) -> &[u8] {
    // The vertical tab is a blank for C, and not for Rust.
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let Some(start) = line.iter().position(|byte| !is_blank(byte)) else { return &[] };
    let end = line.iter().rposition(|byte| !is_blank(byte)).unwrap_or(start);
    &line[start..=end]
}

/// The file with keys added that are not there yet.
pub fn with(file: &[u8], added: &[String]) -> Vec<u8> {
    let mut known: HashSet<&[u8]> = file.split(|&byte| byte == b'\n').collect();
    let mut text = file.to_vec();
    for key in added.iter().map(String::as_bytes) {
        if key.is_empty() || !known.insert(key) {
            continue;
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(key);
        text.push(b'\n');
    }
    text
}

/// The file without keys.
pub fn without(file: &[u8], removed: &[String]) -> Vec<u8> {
    let removed: HashSet<&[u8]> = removed.iter().map(String::as_bytes).collect();
    let lines = file.split_inclusive(|&byte| byte == b'\n');
    lines.filter(|line| !removed.contains(line.strip_suffix(b"\n").unwrap_or(line))).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::{check, check_added, listed, with, without};

    fn owned(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn keys_are_listed_backwards_without_comments_and_blanks() {
        assert_eq!(listed(b"A\n\n # not\n  B \t\r\n#C\nD"), ["D", "B", "A"].map(str::to_owned));
        assert_eq!(listed(b"A\0B\nC\xff\n"), ["C\u{fffd}", "A\0B"]);
        assert!(listed(b"\n \x0b\n").is_empty());
    }

    #[test]
    fn a_key_is_added_once_on_a_line_of_its_own() {
        let added = |file: &[u8], keys: &[&str]| String::from_utf8(with(file, &owned(keys))).unwrap();
        assert_eq!(added(b"", &["A", "B", "A", ""]), "A\nB\n");
        assert_eq!(added(b"# mine\nA\n", &["B"]), "# mine\nA\nB\n");
        assert_eq!(added(b"A", &["B"]), "A\nB\n");
        assert_eq!(added(b"A\n\n", &["A"]), "A\n\n");
        assert_eq!(added(b"A\r\n", &["A"]), "A\r\nA\n");
    }

    #[test]
    fn every_equal_line_is_removed_and_no_other() {
        let removed = |file: &[u8], keys: &[&str]| without(file, &owned(keys));
        assert_eq!(removed(b"A\n#x\n A\nA\nB", &["A"]), b"#x\n A\nB");
        assert_eq!(removed(b"\xff\0\nA\nB", &["B", "nothing"]), b"\xff\0\nA\n");
        assert_eq!(removed(b"A\r\nB\n", &["A"]), b"A\r\nB\n");
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for key in ["#A", "A\nB", "A\n"] {
            assert_eq!(check(&owned(&["ok", key])).unwrap_err().desc, format!("invalid OpenSSH public key: '{key}'"));
        }
        assert!(check(&owned(&["", "A\u{1b}[2K", "command=\"x\" ssh-rsa A\tme\r"])).is_ok());
        for key in ["A\u{1b}[2K", "A\0B", "A\rB", "\u{85}"] {
            assert!(check_added(&owned(&[key])).is_err(), "{key:?}");
        }
        assert!(check_added(&owned(&["", "command=\"x\" ssh-rsa A\tme\r"])).is_ok());
    }
}
