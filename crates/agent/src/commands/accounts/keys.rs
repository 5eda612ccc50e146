//! The text of an `authorized_keys` file: sshd(8). Lines that are not asked about stay as they are, byte for byte.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::system::error::Error;

/// What the names of key types begin with.
const TYPES: [&[u8]; 4] = [b"ssh-", b"ecdsa-", b"sk-", b"webauthn-"];
/// The least that a key takes in base64.
const KEY_BYTES_MIN: usize = 16;

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
pub fn listed(file: &[u8]) -> impl Iterator<Item = Cow<'_, str>> {
    file.split(|&byte| byte == b'\n').rev().filter_map(shown)
}

/// A line as it is listed: without blanks at its ends; nothing for a comment and for an empty line.
fn shown(line: &[u8]) -> Option<Cow<'_, str>> {
    let line = blanks_cut(line);
    (!line.is_empty() && !line.starts_with(b"#")).then(|| String::from_utf8_lossy(line))
}

fn blanks_cut(line: &[u8]) -> &[u8] {
    // The vertical tab is a blank for C, and not for Rust.
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let Some(start) = line.iter().position(|byte| !is_blank(byte)) else { return &[] };
    let end = line.iter().rposition(|byte| !is_blank(byte)).unwrap_or(start);
    &line[start..=end]
}

/// What decides whether somebody gets in: type and key, as the SSH server finds them in a line.
fn identity(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = blanks_cut(line);
    type_and_key(line).or_else(|| type_and_key(behind_options(line)))
}

fn type_and_key(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = text.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let (kind, key) = (words.next()?, words.next()?);
    let is_kind = TYPES.iter().any(|start| kind.starts_with(start));
    (is_kind && is_base64(key)).then(|| (kind, padding_cut(key)))
}

fn is_base64(word: &[u8]) -> bool {
    word.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='))
}

fn padding_cut(key: &[u8]) -> &[u8] {
    key.iter().rposition(|&byte| byte != b'=').map_or(&[], |end| &key[..=end])
}

/// What follows the first word of a line; blanks between quotes belong to it, and quotes may be escaped.
fn behind_options(line: &[u8]) -> &[u8] {
    let (mut is_quoted, mut at) = (false, 0);
    while let Some(byte) = line.get(at) {
        match byte {
            b'\\' if line.get(at + 1) == Some(&b'"') => at += 1,
            b'"' => is_quoted = !is_quoted,
            b' ' | b'\t' if !is_quoted => return &line[at..],
            _ => {}
        }
        at += 1;
    }
    &[]
}

/// Whether a text could be a key of a type that is not known here.
fn may_be_key(text: &str) -> bool {
    identity(text.as_bytes()).is_some()
        || text.split_ascii_whitespace().skip(1).any(|word| word.len() >= KEY_BYTES_MIN && is_base64(word.as_bytes()))
}

/// A file after a change.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// The content.
    pub bytes: Vec<u8>,
    /// It is what it was.
    pub is_same: bool,
}

/// The file with keys added that are not there yet.
pub fn with(mut file: Vec<u8>, added: &[String]) -> Changed {
    let known: HashSet<&[u8]> = file.split(|&byte| byte == b'\n').collect();
    let mut new: Vec<&[u8]> = Vec::new();
    let mut taken = HashSet::new();
    for key in added.iter().map(String::as_bytes) {
        if !key.is_empty() && !known.contains(key) && taken.insert(key) {
            new.push(key);
        }
    }
    drop(known);
    file.reserve_exact(new.iter().map(|key| key.len() + 1).sum::<usize>() + 1);
    for key in &new {
        if !file.is_empty() && !file.ends_with(b"\n") {
            file.push(b'\n');
        }
        file.extend_from_slice(key);
        file.push(b'\n');
    }
    Changed { bytes: file, is_same: new.is_empty() }
}

/// The file without keys: without the lines that are listed as such a text, and those with the same key under other
/// options or another comment. Nothing is removed if a text is neither a key nor a line: whoever sent it believes that
/// somebody cannot log in any more.
pub fn without(mut file: Vec<u8>, removed: &[String]) -> Result<Changed, Error> {
    let exact: HashSet<&[u8]> = removed.iter().map(String::as_bytes).collect();
    let texts: HashSet<Cow<'_, str>> = removed.iter().filter_map(|text| shown(text.as_bytes())).collect();
    let keys: HashSet<(&[u8], &[u8])> = removed.iter().filter_map(|text| identity(text.as_bytes())).collect();
    let mut found: HashSet<&str> = HashSet::new();
    let (mut kept, mut start) = (0, 0);
    while start < file.len() {
        let length = file[start..].iter().position(|&byte| byte == b'\n').map_or(file.len() - start, |at| at + 1);
        let line = &file[start..start + length];
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let text = shown(line);
        let known = text.as_deref().and_then(|text| texts.get(text));
        let is_key = text.is_some() && identity(line).is_some_and(|key| keys.contains(&key));
        if let Some(text) = known {
            found.insert(text);
        }
        if known.is_none() && !is_key && !exact.contains(line) {
            file.copy_within(start..start + length, kept);
            kept += length;
        }
        start += length;
    }
    if let Some(text) = texts.iter().find(|text| !found.contains(text.as_ref()) && !may_be_key(text)) {
        return Err(Error::new(format!(
            "invalid OpenSSH public key: '{text}' (nor is it a line of the file: nothing was removed)"
        )));
    }
    let is_same = kept == file.len();
    file.truncate(kept);
    Ok(Changed { bytes: file, is_same })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::{check, check_added, listed, with, without};

    fn owned(keys: &[&str]) -> Vec<String> {
        keys.iter().map(|&key| key.to_owned()).collect()
    }

    #[test]
    fn keys_are_listed_backwards_without_comments_and_blanks() {
        let told = |file: &[u8]| listed(file).map(Cow::into_owned).collect::<Vec<_>>();
        assert_eq!(told(b"A\n\n # not\n  B \t\r\n#C\nD"), ["D", "B", "A"]);
        assert_eq!(told(b"A\0B\nC\xff\n"), ["C\u{fffd}", "A\0B"]);
        assert!(told(b"\n \x0b\n").is_empty());
    }

    #[test]
    fn a_key_is_added_once_on_a_line_of_its_own() {
        let added = |file: &[u8], keys: &[&str]| {
            let changed = with(file.to_vec(), &owned(keys));
            assert_eq!(changed.is_same, changed.bytes == file);
            String::from_utf8(changed.bytes).unwrap()
        };
        assert_eq!(added(b"", &["A", "B", "A", ""]), "A\nB\n");
        assert_eq!(added(b"# mine\nA\n", &["B"]), "# mine\nA\nB\n");
        assert_eq!(added(b"A", &["B"]), "A\nB\n");
        assert_eq!(added(b"A\n\n", &["A"]), "A\n\n");
        assert_eq!(added(b"A\r\n", &["A"]), "A\r\nA\n");
    }

    fn removed(file: &[u8], keys: &[&str]) -> String {
        let changed = without(file.to_vec(), &owned(keys)).unwrap();
        assert_eq!(changed.is_same, changed.bytes == file);
        String::from_utf8_lossy(&changed.bytes).into_owned()
    }

    #[test]
    fn what_is_listed_can_be_removed_and_other_lines_stay() {
        assert_eq!(removed(b"A\n#x\n A\nA\t\r\nAA\nA\nB", &["A"]), "#x\nAA\nB");
        assert_eq!(removed(b"A\n", &[" A \r"]), "");
        assert_eq!(removed(b"\xff\0\nA\nB", &["B"]), "\u{fffd}\0\nA\n");
        assert_eq!(removed(b"\xff\0\nA\nB", &["\u{fffd}\0"]), "A\nB");
        // Neither blanks nor comments are listed.
        assert_eq!(removed(b"A\n\n # x\n#x\n", &["", " "]), "A\n # x\n#x\n");
        assert_eq!(removed(b"A\n # x\n#x\n", &[" # x"]), "A\n#x\n");
    }

    #[test]
    fn a_key_is_removed_whatever_stands_around_it() {
        let file = "ssh-rsa AAAA ann\nfrom=\"a b,ssh-rsa AAAA\",command=\"say \\\"ssh-rsa AAAA\\\"\" ssh-rsa\tAAAA== ann 2\r\n\
            restrict ssh-rsa AAAAB ann\nssh-dss AAAA ann\n# ssh-rsa AAAA ann\ncommand=\"ssh-rsa AAAA\" ssh-rsa BBBB\nssh-rsa";
        let rest = file.lines().skip(2).collect::<Vec<_>>().join("\n");
        for key in ["ssh-rsa AAAA", "ssh-rsa AAAA another comment", "restrict,pty \tssh-rsa  AAAA=", " ssh-rsa AAAA\r"]
        {
            assert_eq!(removed(file.as_bytes(), &[key]), rest, "{key}");
        }
        for key in ["ssh-rsa CCCC", "ssh-rsa AAA", "x \"ssh-rsa AAAA", "new-type AAAAAAAAAAAAAAAA ann"] {
            let outcome = without(file.as_bytes().to_vec(), &owned(&[key]));
            assert!(outcome.is_err() || outcome.unwrap().is_same, "{key}");
        }
    }

    #[test]
    fn what_is_neither_a_key_nor_a_line_is_not_said_to_be_removed() {
        let file = b"ssh-rsa AAAA ann\nodd line\n";
        for text in ["ann", "AAAA", "SHA256:abcdefghijklmnopqrstuvwxyz", "/home/ann/.ssh/id_rsa.pub", "odd"] {
            let error = without(file.to_vec(), &owned(&["ssh-rsa AAAA", text])).unwrap_err().desc;
            let expected = "(nor is it a line of the file: nothing was removed)";
            assert_eq!(error, format!("invalid OpenSSH public key: '{text}' {expected}"));
        }
        assert_eq!(removed(file, &["odd line"]), "ssh-rsa AAAA ann\n");
        assert_eq!(removed(file, &["ssh-rsa BBBB ann"]).as_bytes(), file);
        assert_eq!(removed(file, &["ssh-future AAAAAAAAAAAAAAAAAAAA ann"]).as_bytes(), file);
        assert_eq!(removed(file, &["future AAAAAAAAAAAAAAAAAAAA ann"]).as_bytes(), file);
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
