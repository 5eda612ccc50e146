//! A machine's files as one text that people read and write.
//!
//! ```text
//! # A comment, at the beginning of a line alone.
//! /sys/devices/system/cpu/cpu0/                           a directory; those on the way to something are made anyway
//! /sys/devices/system/cpu/cpu1/online = 1                 a file of one line; with nothing behind ` =` an empty line
//! /sys/class/net/eth0 -> ../../devices/virtual/net/eth0   a symbolic link
//! /proc/stat:                                             a file of several lines, each with four blanks before it
//!     cpu  10 20 30 40
//!     cpu0 10 20 30 40
//! /run/utmp bytes:                                        a file of bytes, no line end is added: hexadecimal pairs,
//!     07 00*3 "pts/0" 00*27                               "text" and BYTE*COUNT, separated by blanks
//! /sys/devices/system/cpu/cpu{0..63}/online = {}          64 such files; `{}` behind the path is the number
//! /proc/interrupts:
//!     {0..255}: 0 0                                       256 such lines
//! ```
//!
//! There are no devices, permissions or sizes: what cannot be written so is not recorded.

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Makes the files of a recording below a directory.
///
/// # Panics
/// When a line is no line of a recording: the text tells which.
pub fn lay_out(name: &str, text: &str, directory: &Path) {
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let complain = |why: &str| -> ! { panic!("{name}:{}: {why}: {line}", index + 1) };
        let mut body = Vec::new();
        while let Some((_, content)) = lines.next_if(|(_, line)| line.starts_with("    ")) {
            body.push(&content[4..]);
        }
        let Some(entry) = Entry::read(line, &body) else { complain("not a line of a recording") };
        for (path, entry) in entry.repeated() {
            if let Err(why) = entry.create(&inside(directory, &path)) {
                complain(&why.to_string());
            }
        }
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq)]
enum Content {
    Directory,
    Link(String),
    Text(String),
    Bytes(Vec<u8>),
}

/// A path and what is there.
struct Entry {
    path: String,
    content: Content,
}

impl Entry {
    fn read(line: &str, body: &[&str]) -> Option<Self> {
        let entry = |path: &str, content| Some(Self { path: path.to_owned(), content });
        if !line.starts_with('/') {
            return None;
        }
        let line = line.trim_end();
        if let Some(path) = line.strip_suffix(" bytes:") {
            return entry(path, Content::Bytes(bytes(body)?));
        }
        if let Some((path, target)) = line.split_once(" -> ") {
            return body.is_empty().then(|| entry(path, Content::Link(target.to_owned())))?;
        }
        if let Some((path, text)) = line.split_once(" = ").or_else(|| Some((line.strip_suffix(" =")?, ""))) {
            return body.is_empty().then(|| entry(path, Content::Text(format!("{text}\n"))))?;
        }
        if let Some(path) = line.strip_suffix(':') {
            let lines = body.iter().flat_map(|line| match range(line) {
                None => vec![format!("{line}\n")],
                Some((before, numbers, after)) => numbers.map(|number| format!("{before}{number}{after}\n")).collect(),
            });
            return entry(path, Content::Text(lines.collect()));
        }
        body.is_empty().then(|| entry(line.strip_suffix('/')?, Content::Directory))?
    }

    /// One entry for each number of the range in the path; itself without a range.
    fn repeated(self) -> Vec<(String, Content)> {
        let Some((before, numbers, after)) = range(&self.path) else { return vec![(self.path, self.content)] };
        let content = |number: u32| match &self.content {
            Content::Text(text) => Content::Text(text.replace("{}", &number.to_string())),
            Content::Link(target) => Content::Link(target.replace("{}", &number.to_string())),
            other => other.clone(),
        };
        numbers.map(|number| (format!("{before}{number}{after}"), content(number))).collect()
    }
}

impl Content {
    fn create(&self, path: &Path) -> std::io::Result<()> {
        if let (Some(parent), false) = (path.parent(), *self == Self::Directory) {
            fs::create_dir_all(parent)?;
        }
        match self {
            Self::Directory => fs::create_dir_all(path),
            Self::Link(target) => symlink(target, path),
            Self::Text(text) => fs::write(path, text),
            Self::Bytes(bytes) => fs::write(path, bytes),
        }
    }
}

/// What stands before, in and behind `{FIRST..LAST}`.
fn range(text: &str) -> Option<(&str, RangeInclusive<u32>, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (numbers, after) = rest.split_once('}')?;
    let (first, last) = numbers.split_once("..")?;
    Some((before, first.parse().ok()?..=last.parse().ok()?, after))
}

/// A recording never reaches out of its directory.
fn inside(directory: &Path, path: &str) -> PathBuf {
    assert!(!path.split('/').any(|part| part == ".."), "a path with `..`: {path}");
    directory.join(path.trim_start_matches('/'))
}

fn bytes(body: &[&str]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for line in body {
        let mut rest = line.trim();
        while !rest.is_empty() {
            if let Some(quoted) = rest.strip_prefix('"') {
                let (text, after) = quoted.split_once('"')?;
                bytes.extend_from_slice(text.as_bytes());
                rest = after.trim_start();
                continue;
            }
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            let (byte, count) = word.split_once('*').unwrap_or((word, "1"));
            let byte = (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok())??;
            bytes.extend(std::iter::repeat_n(byte, count.parse().ok()?));
            rest = after.trim_start();
        }
    }
    Some(bytes)
}

#[test]
fn every_kind_of_line_is_laid_out() {
    let directory = tempfile::tempdir().unwrap();
    let text = "\
# Nothing.
/sys/bus/
/sys/cpu{0..2}/online = {}
/sys/class/cpu1 -> ../cpu1

/etc/empty =
/proc/stat:
    cpu  1
      2
    cpu{7..8} 0
/run/utmp bytes:
    07 00*3 \"a b\"
    ff
";
    lay_out("text", text, directory.path());
    let read = |path: &str| fs::read(directory.path().join(path)).unwrap();
    assert!(directory.path().join("sys/bus").is_dir());
    assert_eq!(read("sys/class/cpu1/online"), b"1\n");
    assert_eq!(read("etc/empty"), b"\n");
    assert_eq!(read("proc/stat"), b"cpu  1\n  2\ncpu7 0\ncpu8 0\n");
    assert_eq!(read("run/utmp"), b"\x07\0\0\0a b\xff");
}

#[test]
#[should_panic(expected = "text:2: not a line of a recording: what is this")]
fn a_line_that_means_nothing_is_told() {
    let directory = tempfile::tempdir().unwrap();
    lay_out("text", "/sys/\nwhat is this\n", directory.path());
}
