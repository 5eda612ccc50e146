//! The records of utmp(5), as far as a recording needs them: user, process and time; where somebody came from is left out.

use std::collections::BTreeSet;
use std::ops::Range;

use super::files::{Content, Files};

/// Where the records may be.
pub const FILES: [&str; 2] = ["/run/utmp", "/var/run/utmp"];

const TYPE: Range<usize> = 0..2;
const PROCESS: Range<usize> = 4..8;
/// The terminal and its abbreviation.
const LINE: Range<usize> = 8..44;
const USER: Range<usize> = 44..76;
/// Names that are no users, in records of the system itself.
const OF_THE_SYSTEM: [&[u8]; 5] = [b"reboot", b"shutdown", b"runlevel", b"LOGIN", b"root"];

/// How long a record is, and where its time stands.
struct Layout {
    bytes: usize,
    time: Range<usize>,
}

fn layout(files: &Files) -> Layout {
    let Some(Content::File(machine)) = files.get("/proc/sys/kernel/arch") else { return SHORT };
    match machine.trim_ascii() {
        b"aarch64" | b"s390x" | b"loongarch64" => Layout { bytes: 400, time: 344..360 },
        _ => SHORT,
    }
}

const SHORT: Layout = Layout { bytes: 384, time: 340..348 };

fn records(files: &Files) -> impl Iterator<Item = &[u8]> {
    FILES.iter().flat_map(|path| records_in(files, path))
}

fn records_in<'a>(files: &'a Files, path: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let bytes: &[u8] = if let Some(Content::File(bytes)) = files.get(path) { bytes } else { &[] };
    bytes.chunks_exact(layout(files).bytes)
}

fn user(record: &[u8]) -> &[u8] {
    record[USER].split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The processes that sessions belong to.
pub fn processes(files: &Files) -> BTreeSet<u32> {
    let in_records =
        records(files).map(|record| u32::from_ne_bytes(record[PROCESS].try_into().expect("the range has four bytes")));
    let in_sessions =
        files.iter().filter(|(path, _)| path.starts_with("/run/systemd/sessions/")).filter_map(|(_, content)| {
            let Content::File(bytes) = content else { return None };
            String::from_utf8_lossy(bytes).lines().find_map(|line| line.strip_prefix("LEADER=")?.parse().ok())
        });
    in_records.chain(in_sessions).collect()
}

/// The users, root apart.
pub fn users(files: &Files) -> Vec<Vec<u8>> {
    let names = records(files).map(user).filter(|name| !name.is_empty() && !OF_THE_SYSTEM.contains(name));
    names.map(<[u8]>::to_vec).collect()
}

/// The records in a file with nothing in them but what a recording needs, and users by other names.
pub fn rewritten(files: &Files, path: &str, rename: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let layout = layout(files);
    let mut bytes = Vec::new();
    for record in records_in(files, path) {
        let mut kept = vec![0; layout.bytes];
        for range in [TYPE, PROCESS, LINE, layout.time.clone()] {
            kept[range.clone()].copy_from_slice(&record[range]);
        }
        let name = user(record);
        let name = if OF_THE_SYSTEM.contains(&name) { name.to_vec() } else { rename(name) };
        kept[USER][..name.len()].copy_from_slice(&name);
        bytes.extend(kept);
    }
    bytes
}
