//! `qga cat` and `qga ls`: looking at the guest's files.

use std::io;

use qga_client::{AnyAgent, FileKind, GuestFile, OutputStream};
use serde::Serialize;

use crate::arguments::{List, Paths};
use crate::failure::{Failure, Result};
use crate::fleet::common_code;
use crate::output::table::{Cell, Table};
use crate::output::text::printable_bytes;
use crate::output::{NAME, Page, styled, units};
use crate::visit::Visit;

/// Longest file that `cat --json` holds.
const KEPT_BYTES: usize = 64 << 20;

pub fn cat(options: &Paths, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    for_each(&options.paths, visit, |path, visit| cat_one(&mut agent, path, visit))
}

fn cat_one(agent: &mut AnyAgent, path: &str, visit: &mut Visit<'_>) -> Result<()> {
    let handle = agent.open(path, "r")?;
    let act = format!("write {path} of the guest to the output");
    let mut kept = Vec::new();
    let json = visit.page.is_json();
    let page = &mut visit.page;
    let read = agent.read_to_end(handle, &act, &mut |bytes| {
        if json {
            if kept.len() + bytes.len() > KEPT_BYTES {
                let limit = KEPT_BYTES >> 20;
                return Err(io::Error::other(format!("it is longer than {limit} MiB, the most that --json takes")));
            }
            kept.extend_from_slice(bytes);
            return Ok(());
        }
        page.bytes(OutputStream::Stdout, bytes)
    });
    if !matches!(&read, Err(error) if error.needs_sync()) {
        agent.close(handle)?;
    }
    read?;
    if json { visit.page.json(&content_json(path, kept)) } else { Ok(()) }
}

/// Does it for each path, whatever becomes of the others, as cat and ls do. What fails is named at once; the exit code is
/// that of the failures if they all have the same.
fn for_each(
    paths: &[String],
    visit: &mut Visit<'_>,
    mut act: impl FnMut(&str, &mut Visit<'_>) -> Result<()>,
) -> Result<()> {
    let mut codes = Vec::new();
    for path in paths {
        // The mark of cp, by habit.
        let path = path.strip_prefix(':').filter(|path| !path.is_empty()).unwrap_or(path);
        let Err(failure) = act(path, visit) else { continue };
        // Nothing more would be answered, or be read.
        let is_over = match &failure {
            Failure::Client(error) => error.needs_sync(),
            Failure::OutputClosed => true,
            _ => false,
        };
        if is_over || paths.len() == 1 {
            return Err(failure);
        }
        codes.push(failure.exit_code());
        match failure.text() {
            Some(_) if visit.page.is_json() => {
                visit.page.json(&serde_json::json!({ "path": path, "error": failure.to_json() }))?;
            }
            Some(text) => visit.page.note(format!("qga: {text}")),
            None => {}
        }
    }
    common_code(&codes).map_or(Ok(()), |code| Err(Failure::Silent(code)))
}

fn content_json(path: &str, content: Vec<u8>) -> serde_json::Value {
    match String::from_utf8(content) {
        Ok(text) => serde_json::json!({ "path": path, "content": text }),
        Err(error) => {
            let encoded = base64_simd::STANDARD.encode_to_string(error.as_bytes());
            serde_json::json!({ "path": path, "content-base64": encoded })
        }
    }
}

/// A directory's entries, sorted by name; or a file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Listing {
    path: String,
    entries: Vec<Entry>,
    #[serde(skip)]
    is_directory: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    /// As it is, where it is text; else with its other bytes written out, and exactly in `name-base64`.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_base64: Option<String>,
    kind: &'static str,
    size: u64,
    /// Octal, as chmod takes it.
    mode: String,
    owner: String,
    group: String,
    modified_seconds: i64,
    #[serde(skip)]
    shown: String,
}

pub fn list(options: &List, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let mut listings = Vec::new();
    let looked_at = for_each(&options.paths, visit, |path, _| {
        listings.push(look(&mut agent, path, options)?);
        Ok(())
    });
    // As ls does it: the files first, then a directory after the other.
    listings.sort_by_key(|listing| listing.is_directory);
    show(&listings, options, &mut visit.page)?;
    looked_at
}

fn look(agent: &mut AnyAgent, path: &str, options: &List) -> Result<Listing> {
    let file = agent.stat_file(path, true)?;
    let is_directory = file.kind == FileKind::Directory;
    let mut files = if is_directory { agent.list_directory(path, false)? } else { vec![file] };
    if is_directory {
        files.retain(|file| options.all_names || !name_of(file).starts_with(b"."));
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let entries = files.iter().map(|file| entry(file, if is_directory { name_of(file) } else { &file.path }));
    Ok(Listing { path: path.to_owned(), entries: entries.collect(), is_directory })
}

fn show(listings: &[Listing], options: &List, page: &mut Page) -> Result<()> {
    if page.is_json() {
        let value = match (listings, options.paths.as_slice()) {
            ([], [_]) => return Ok(()),
            ([listing], [_]) => serde_json::to_value(&listing.entries),
            _ => serde_json::to_value(listings),
        };
        let value = value.map_err(|error| Failure::host("write the result as JSON", &io::Error::other(error)))?;
        return page.json(&value);
    }
    let (directories, files): (Vec<&Listing>, Vec<&Listing>) =
        listings.iter().partition(|listing| listing.is_directory);
    show_entries(&files.iter().flat_map(|listing| &listing.entries).collect::<Vec<_>>(), options, page)?;
    for (place, directory) in directories.iter().enumerate() {
        if options.paths.len() > 1 {
            if place > 0 || !files.is_empty() {
                page.line("")?;
            }
            page.line(format!("{}:", shown_name(directory.path.as_bytes())))?;
        }
        show_entries(&directory.entries.iter().collect::<Vec<_>>(), options, page)?;
    }
    Ok(())
}

fn show_entries(entries: &[&Entry], options: &List, page: &mut Page) -> Result<()> {
    if options.names {
        return entries.iter().try_for_each(|entry| page.line(&entry.shown));
    }
    if entries.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["mode", "owner", "group", "size", "modified", "name"]);
    for entry in entries {
        let shown = match entry.kind {
            "directory" => format!("{}/", styled(NAME, &entry.shown)),
            "link" => format!("{}@", entry.shown),
            "socket" => format!("{}=", entry.shown),
            "fifo" => format!("{}|", entry.shown),
            _ => entry.shown.clone(),
        };
        table.row(vec![
            Cell::text(format!("{}{}", letter(entry.kind), permissions(&entry.mode))),
            Cell::text(&entry.owner),
            Cell::text(&entry.group),
            Cell::bytes(entry.size),
            Cell::both(units::moment(entry.modified_seconds, 0), entry.modified_seconds.to_string()),
            Cell::both(shown, entry.shown.clone()),
        ]);
    }
    table.show(page)
}

fn name_of(file: &GuestFile) -> &[u8] {
    file.path.rsplit(|&byte| byte == b'/').next().unwrap_or(&file.path)
}

/// A name on one line, without anything that steers a terminal. Two names are never shown as the same text.
fn shown_name(name: &[u8]) -> String {
    let mut doubled = Vec::with_capacity(name.len());
    for &byte in name {
        doubled.push(byte);
        if byte == b'\\' {
            doubled.push(byte);
        }
    }
    printable_bytes(&doubled)
}

fn entry(file: &GuestFile, name: &[u8]) -> Entry {
    let text = std::str::from_utf8(name);
    Entry {
        shown: shown_name(name),
        name_base64: text.is_err().then(|| base64_simd::STANDARD.encode_to_string(name)),
        name: text.map_or_else(|_| shown_name(name), str::to_owned),
        kind: match file.kind {
            FileKind::File => "file",
            FileKind::Directory => "directory",
            FileKind::Link => "link",
            FileKind::Socket => "socket",
            FileKind::Fifo => "fifo",
            FileKind::CharacterDevice => "character-device",
            FileKind::BlockDevice => "block-device",
            FileKind::Other => "other",
        },
        size: file.size,
        mode: format!("{:04o}", file.mode),
        owner: file.owner.clone(),
        group: file.group.clone(),
        modified_seconds: file.modified_seconds,
    }
}

fn letter(kind: &str) -> char {
    match kind {
        "directory" => 'd',
        "link" => 'l',
        "file" => '-',
        "socket" => 's',
        "fifo" => 'p',
        "character-device" => 'c',
        "block-device" => 'b',
        _ => '?',
    }
}

/// `rwxr-xr-x`, with s and t where they are.
fn permissions(octal: &str) -> String {
    let mode = u32::from_str_radix(octal, 8).unwrap_or(0);
    let special = [(0o4000, 's'), (0o2000, 's'), (0o1000, 't')];
    let mut text = String::new();
    for (place, (bit, letter)) in special.into_iter().enumerate() {
        let bits = mode >> (6 - 3 * place) & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & bit != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_are_never_shown_as_one() {
        let names: [&[u8]; 6] = [b"a\\xff", b"a\xff", b"a\n", b"a\\n", b"a\\\\n", "a\u{9b}".as_bytes()];
        let shown: std::collections::HashSet<String> = names.iter().map(|name| shown_name(name)).collect();
        assert_eq!(shown.len(), names.len(), "{shown:?}");
        assert!(shown.iter().all(|name| !name.chars().any(char::is_control)), "{shown:?}");
    }

    #[test]
    fn permissions_are_written_as_ls_does() {
        for (mode, expected) in
            [("0755", "rwxr-xr-x"), ("4755", "rwsr-xr-x"), ("1777", "rwxrwxrwt"), ("2640", "rw-r-S---")]
        {
            assert_eq!(permissions(mode), expected, "{mode}");
        }
    }
}
