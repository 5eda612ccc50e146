//! `qga cat` and `qga ls`: looking at the guest's files.

use std::io;

use qga_client::{FileKind, GuestFile, OutputStream};
use serde::Serialize;

use crate::arguments::{List, Paths};
use crate::failure::Result;
use crate::output::table::{Cell, Table};
use crate::output::text::printable_bytes;
use crate::output::{NAME, Page, Show, styled, units};
use crate::visit::Visit;

/// Longest file that `cat --json` holds.
const KEPT_BYTES: usize = 64 << 20;

pub fn cat(options: &Paths, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    for path in &options.paths {
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
        if json {
            visit.page.json(&content_json(path, kept))?;
        }
    }
    Ok(())
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

/// A directory's entries, sorted by name.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Listing {
    entries: Vec<Entry>,
    #[serde(skip)]
    names_alone: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    name: String,
    kind: &'static str,
    size: u64,
    /// Octal, as chmod takes it.
    mode: String,
    owner: String,
    group: String,
    modified_seconds: i64,
}

impl Show for Listing {
    fn show(&self, page: &mut Page) -> Result<()> {
        if self.names_alone {
            return self.entries.iter().try_for_each(|entry| page.line(&entry.name));
        }
        let mut table = Table::new(&["mode", "owner", "group", "size", "modified", "name"]);
        for entry in &self.entries {
            let shown = match entry.kind {
                "directory" => format!("{}/", styled(NAME, &entry.name)),
                "link" => format!("{}@", entry.name),
                _ => entry.name.clone(),
            };
            table.row(vec![
                Cell::text(format!("{}{}", letter(entry.kind), permissions(&entry.mode))),
                Cell::text(&entry.owner),
                Cell::text(&entry.group),
                Cell::bytes(entry.size),
                Cell::both(units::moment(entry.modified_seconds, 0), entry.modified_seconds.to_string()),
                Cell::both(shown, entry.name.clone()),
            ]);
        }
        table.show(page)
    }
}

pub fn list(options: &List, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let file = agent.stat_file(&options.path, true)?;
    let mut files = match file.kind {
        FileKind::Directory => agent.list_directory(&options.path, false)?,
        _ => vec![file],
    };
    files.retain(|file| options.all_names || !name_of(file).starts_with(b"."));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let entries = files.iter().map(entry).collect();
    visit.page.report(&Listing { entries, names_alone: options.names })
}

fn name_of(file: &GuestFile) -> &[u8] {
    file.path.rsplit(|&byte| byte == b'/').next().unwrap_or(&file.path)
}

fn entry(file: &GuestFile) -> Entry {
    Entry {
        name: printable_bytes(name_of(file)),
        kind: match file.kind {
            FileKind::File => "file",
            FileKind::Directory => "directory",
            FileKind::Link => "link",
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
    fn permissions_are_written_as_ls_does() {
        for (mode, expected) in
            [("0755", "rwxr-xr-x"), ("4755", "rwsr-xr-x"), ("1777", "rwxrwxrwt"), ("2640", "rw-r-S---")]
        {
            assert_eq!(permissions(mode), expected, "{mode}");
        }
    }
}
