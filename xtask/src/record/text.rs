//! Writes files as the text of a recording; `crates/agent/tests/recorded/tree.rs` reads it.

use std::fmt::Write as _;

use super::files::{Content, Files};

/// Columns after which a line of bytes goes on in the next.
const COLUMNS: usize = 110;

/// Directories whose names are counted.
const FAMILIES: [&str; 2] = ["/sys/devices/system/cpu/cpu", "/sys/devices/system/memory/memory"];

/// The text of a recording. Paths that it cannot express are left out and returned.
pub fn written(comment: &str, files: &Files) -> (String, Vec<String>) {
    let mut text = String::new();
    for line in comment.lines() {
        let _ = writeln!(text, "# {line}");
    }
    let mut left_out = Vec::new();
    let (numbered, others): (Vec<_>, Vec<_>) = files.iter().partition(|(path, _)| Numbered::of(path).is_some());
    let mut family_before = "";
    for (path, content) in others {
        let is_strange = [" -> ", " = ", "\n", "\r"].iter().any(|sign| path.contains(sign));
        if is_strange || path.ends_with([' ', ':', '=']) || range_in(path) {
            left_out.push(path.clone());
            continue;
        }
        let family = family(path);
        if family != family_before {
            text.push('\n');
            family_before = family;
        }
        entry(path, content, &mut text);
    }
    fold(&numbered, &mut text);
    (text, left_out)
}

/// A path among those of which a machine has hundreds that say the same.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Numbered<'a> {
    before: &'a str,
    after: &'a str,
    number: u32,
}

impl<'a> Numbered<'a> {
    fn of(path: &'a str) -> Option<Self> {
        FAMILIES.iter().find_map(|before| {
            let rest = path.strip_prefix(before)?;
            let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
            let (number, after) = rest.split_at(end);
            let has_no_zeros = number == "0" || !number.starts_with('0');
            Some(Self { before, after, number: number.parse().ok().filter(|_| has_no_zeros)? })
        })
    }
}

/// Writes processors and memory blocks, those in a row with the same content in one line.
fn fold(files: &[(&String, &Content)], text: &mut String) {
    let mut sorted: Vec<(Numbered<'_>, &Content)> =
        files.iter().filter_map(|(path, content)| Some((Numbered::of(path)?, *content))).collect();
    sorted.sort_by(|one, other| one.0.cmp(&other.0));
    let mut rest = &sorted[..];
    let mut before = "";
    while let Some((first, content)) = rest.first() {
        let goes_on = |pair: &[(Numbered<'_>, &Content)]| {
            let (one, other) = (&pair[0].0, &pair[1].0);
            pair[0].1 == pair[1].1
                && one.after == other.after
                && one.before == other.before
                && one.number + 1 == other.number
        };
        let length = 1 + rest.windows(2).take_while(|pair| goes_on(pair)).count();
        let numbers = match length {
            1 => first.number.to_string(),
            _ => format!("{{{}..{}}}", first.number, rest[length - 1].0.number),
        };
        if first.before != before {
            text.push('\n');
            before = first.before;
        }
        entry(&format!("{}{numbers}{}", first.before, first.after), content, text);
        rest = &rest[length..];
    }
}

fn entry(path: &str, content: &Content, text: &mut String) {
    match content {
        Content::Directory => _ = writeln!(text, "{path}/"),
        Content::Link(target) => _ = writeln!(text, "{path} -> {target}"),
        Content::File(bytes) => file(path, bytes, text),
    }
}

/// Files of one device, or of one part of the system, stand together.
fn family(path: &str) -> &str {
    if path.starts_with("/sys/devices/") {
        let parent = path.find("/slaves").or_else(|| path.rfind('/')).map_or(path, |end| &path[..end]);
        return parent.trim_end_matches("/dm");
    }
    path.match_indices('/').nth(3).map_or(path, |(end, _)| &path[..end])
}

fn file(path: &str, bytes: &[u8], text: &mut String) {
    let is_text = |content: &&str| !content.contains(|sign: char| sign.is_control() && !"\n\t".contains(sign));
    let lines = std::str::from_utf8(bytes).ok().filter(is_text).and_then(|content| content.strip_suffix('\n'));
    let _ = match lines {
        Some("") => writeln!(text, "{path} ="),
        Some(line) if fits_in_a_line(line) => writeln!(text, "{path} = {line}"),
        Some(lines) if !lines.split('\n').any(|line| range_in(line) || line.trim().is_empty()) => {
            let _ = writeln!(text, "{path}:");
            lines.split('\n').try_for_each(|line| writeln!(text, "    {line}"))
        }
        _ => {
            let _ = writeln!(text, "{path} bytes:");
            notation(bytes).iter().try_for_each(|line| writeln!(text, "    {line}"))
        }
    };
}

fn fits_in_a_line(line: &str) -> bool {
    !line.contains('\n') && !line.contains(" -> ") && !line.ends_with(':') && line.trim() == line
}

/// Whether the reader would take something for `{FIRST..LAST}`.
fn range_in(text: &str) -> bool {
    text.split_once('{').and_then(|(_, rest)| rest.split_once('}')).is_some_and(|(numbers, _)| numbers.contains(".."))
}

/// Bytes as texts in quotes, hexadecimal pairs and `PAIR*COUNT`.
fn notation(bytes: &[u8]) -> Vec<String> {
    let is_text = |byte: &u8| (byte.is_ascii_graphic() || *byte == b' ') && *byte != b'"';
    let (mut lines, mut line, mut rest) = (Vec::new(), String::new(), bytes);
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|byte| *byte == first).count();
        let letters = rest.iter().take_while(|byte| is_text(byte)).count();
        let (word, length) = if letters > 1 && same < 9 {
            let length = letters.min(COLUMNS);
            (format!("\"{}\"", String::from_utf8_lossy(&rest[..length])), length)
        } else if same > 2 {
            (format!("{first:02x}*{same}"), same)
        } else {
            (format!("{first:02x}"), 1)
        };
        if !line.is_empty() && line.len() + word.len() > COLUMNS {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
        rest = &rest[length..];
        if *first == b'\n' {
            lines.push(std::mem::take(&mut line));
        }
    }
    lines.extend((!line.is_empty()).then_some(line));
    lines
}
