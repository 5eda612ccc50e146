//! A machine's files as they were collected: which of them belong to a recording, and what of their contents.
//!
//! Both by lists of what is taken, so that what nobody has thought of stays out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::logins;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory with nothing in it that is recorded.
    Directory,
    /// A symbolic link.
    Link(String),
    /// A file.
    File(Vec<u8>),
}

/// Files by their absolute paths in the machine.
pub type Files = BTreeMap<String, Content>;

/// Lines of a device's `uevent` that are read.
const UEVENT: [&str; 5] = ["MAJOR=", "MINOR=", "DEVNAME=", "DEVTYPE=", "DISKSEQ="];
/// Lines of udev's record of a device.
const UDEV: [&str; 6] = ["E:ID_SERIAL=", "E:ID_SERIAL_SHORT=", "E:ID_MODEL=", "E:ID_BUS=", "E:ID_PATH=", "E:DM_NAME="];
/// Lines of a session file of logind. Others tell from where somebody came and what desktop he uses.
const SESSION: [&str; 10] =
    ["UID=", "USER=", "ACTIVE=", "STATE=", "REMOTE=", "TYPE=", "CLASS=", "SERVICE=", "LEADER=", "REALTIME="];
/// File systems without a device of their own of which a guest agent may have to know.
const WITHOUT_DEVICE: [&str; 8] = ["btrfs", "overlay", "zfs", "bcachefs", "virtiofs", "9p", "nfs", "nfs4"];
/// The names under which the kernel tells of itself in `/proc/sys/kernel`.
const KERNEL: [&str; 4] = ["osrelease", "version", "hostname", "arch"];

/// Reads what was collected below a directory. Returns also how many files were left out, as they do not belong to a
/// recording.
pub fn read(directory: &Path) -> Result<(Files, usize)> {
    let mut files = Files::new();
    let mut left_out = 0;
    let mut pending = vec![String::new()];
    while let Some(parent) = pending.pop() {
        let path = if parent.is_empty() { directory.to_owned() } else { directory.join(&parent[1..]) };
        let entries = fs::read_dir(&path).with_context(|| format!("cannot list '{}'", path.display()))?;
        let mut is_empty = true;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list '{}'", path.display()))?;
            let Ok(name) = entry.file_name().into_string() else {
                left_out += 1;
                continue;
            };
            // The collector's own marks.
            if [".seen", ".device"].contains(&name.as_str()) {
                continue;
            }
            is_empty = false;
            let inside = format!("{parent}/{name}");
            let kind = entry.file_type().with_context(|| format!("cannot look at '{}'", entry.path().display()))?;
            if kind.is_dir() {
                pending.push(inside);
                continue;
            }
            let content = if kind.is_symlink() {
                fs::read_link(entry.path())
                    .ok()
                    .and_then(|target| target.into_os_string().into_string().ok())
                    .map(Content::Link)
            } else if kind.is_file() && may_be_file(&inside) {
                let bytes =
                    fs::read(entry.path()).with_context(|| format!("cannot read '{}'", entry.path().display()))?;
                Some(Content::File(bytes))
            } else {
                None
            };
            match content.filter(|content| is_wanted(&inside, content)) {
                Some(content) => drop(files.insert(inside, content)),
                None => left_out += 1,
            }
        }
        if is_empty && is_wanted(&parent, &Content::Directory) {
            files.insert(parent, Content::Directory);
        }
    }
    for name in ["/etc/os-release", "/etc/localtime"] {
        left_out -= usize::from(bring_home(directory, name, &mut files));
    }
    reduce(&mut files);
    Ok((files, left_out))
}

/// On some systems these files are links to places of which a recording knows nothing: then the file itself stands for
/// the link.
fn bring_home(directory: &Path, name: &str, files: &mut Files) -> bool {
    let mut path = name.to_owned();
    for _ in 0..8 {
        let inside = directory.join(path.trim_start_matches('/'));
        let Ok(target) = fs::read_link(&inside) else {
            let is_elsewhere = path != name && !files.contains_key(&path);
            return match fs::read(&inside) {
                Ok(bytes) if is_elsewhere => files.insert(name.to_owned(), Content::File(bytes)).is_some(),
                _ => false,
            };
        };
        path =
            plain(&format!("{}/", path.rsplit_once('/').map_or("", |(parent, _)| parent)), &target.to_string_lossy());
    }
    false
}

/// The path that a link means, without `..`.
fn plain(parent: &str, target: &str) -> String {
    let whole = if target.starts_with('/') { target.to_owned() } else { format!("{parent}{target}") };
    let mut words: Vec<&str> = Vec::new();
    for word in whole.split('/') {
        match word {
            "" | "." => {}
            ".." => drop(words.pop()),
            word => words.push(word),
        }
    }
    format!("/{}", words.join("/"))
}

/// Whether a file at a path may be opened at all.
fn may_be_file(path: &str) -> bool {
    is_wanted(path, &Content::File(Vec::new()))
}

fn is_wanted(path: &str, content: &Content) -> bool {
    let words: Vec<&str> = path.split('/').skip(1).collect();
    let is_link = matches!(content, Content::Link(_));
    let is_file = matches!(content, Content::File(_));
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    match words[..] {
        ["proc", "self", "mountinfo" | "mounts"] | ["proc", "diskstats" | "stat"] => !is_link,
        ["proc", process] => is_number(process) && !is_file,
        ["proc", "sys", "kernel", name] => is_file && KERNEL.contains(&name),
        ["etc", "os-release" | "localtime"] | ["usr", "lib", "os-release"] => true,
        ["usr", "share", "zoneinfo", ..] | ["etc", "zoneinfo", ..] => true,
        ["run", "utmp"] | ["var", "run", "utmp"] => is_file,
        ["run", "systemd", "sessions", name] => is_file && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        ["run", "udev", "data", name] => {
            is_file
                && name
                    .strip_prefix('b')
                    .and_then(|rest| rest.split_once(':'))
                    .is_some_and(|(major, minor)| is_number(major) && is_number(minor))
        }
        // A name for a device, and that it is there.
        ["dev", ..] => is_link || *content == Content::File(Vec::new()),
        ["sys", "block" | "dev" | "fs" | "class", ..] => !is_file,
        ["sys", "devices", .., parent, name] => match content {
            Content::Directory => true,
            Content::Link(_) => {
                ["driver", "device"].contains(&name)
                    || parent == "slaves"
                    || name.strip_prefix("nvme").is_some_and(is_number)
            }
            Content::File(_) => {
                [
                    "uevent",
                    "size",
                    "partition",
                    "serial",
                    "vpd_pg80",
                    "type",
                    "idVendor",
                    "online",
                    "state",
                    "removable",
                    "block_size_bytes",
                ]
                .contains(&name)
                    || (parent, name) == ("dm", "name")
            }
        },
        _ => false,
    }
}

/// Takes out of the files what no command reads.
fn reduce(files: &mut Files) {
    for (path, content) in files.iter_mut() {
        let Content::File(bytes) = content else { continue };
        let name = path.rsplit('/').next().unwrap_or_default();
        if path == "/proc/self/mountinfo" {
            *bytes = mounts(bytes);
        } else if path == "/proc/self/mounts" {
            *bytes = old_mounts(bytes);
        } else if path == "/proc/stat" {
            *bytes = lines(bytes, &["cpu"]);
        } else if name == "uevent" {
            *bytes = lines(bytes, &UEVENT);
        } else if path.starts_with("/run/udev/") {
            *bytes = lines(bytes, &UDEV);
        } else if path.starts_with("/run/systemd/") {
            *bytes = lines(bytes, &SESSION);
        }
    }
    for path in logins::FILES {
        let records = logins::rewritten(files, path, <[u8]>::to_vec);
        files.entry(path.to_owned()).and_modify(|content| *content = Content::File(records));
    }
    let processes = logins::processes(files);
    files.retain(|path, content| {
        let process = path.strip_prefix("/proc/").and_then(|rest| rest.parse::<u32>().ok());
        *content != Content::Directory || process.is_none_or(|process| process == 1 || processes.contains(&process))
    });
    // Directories that are on the way to something are made anyway.
    let parents: BTreeSet<String> =
        files.keys().flat_map(|path| path.match_indices('/').skip(1).map(|(end, _)| path[..end].to_owned())).collect();
    files.retain(|path, content| *content != Content::Directory || !parents.contains(path));
}

/// The lines that begin as one of the words.
fn lines(bytes: &[u8], starts: &[&str]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.filter(|line| starts.iter().any(|start| line.starts_with(start.as_bytes()))).collect::<Vec<_>>().concat()
}

/// The mounts that hold data, without their options: among these are names of users and servers.
fn mounts(bytes: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = words.iter().position(|word| *word == b"-");
        let (Some(dash), true) = (dash, words.len() >= 6) else { continue };
        let [kind, source, ..] = words[dash + 1..] else { continue };
        let kind_text = String::from_utf8_lossy(kind);
        let has_device = !words[2].starts_with(b"0:");
        if !has_device && !WITHOUT_DEVICE.contains(&&*kind_text) && !kind_text.starts_with("fuse") {
            continue;
        }
        let first = |options: &[u8]| options.split(|byte| *byte == b',').next().unwrap_or_default().to_vec();
        // What is no path of a device may be a server or somebody's directory.
        let source = if source.starts_with(b"/dev/") { source } else { kind };
        let (ids, options) = (words[..5].join(&b' '), first(words[5]));
        let option = first(words.get(dash + 3).copied().unwrap_or(b"rw"));
        kept.extend([&ids, &options, &b"-"[..], kind, source, &option].join(&b' '));
        kept.push(b'\n');
    }
    kept
}

/// The same of the list that kernels without mountinfo have: source, mount point, kind, options and two numbers.
fn old_mounts(bytes: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"/dev/")) {
        let [source, point, kind, options, ..] = line.split(|byte| *byte == b' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        let option = options.split(|byte| *byte == b',').next().unwrap_or_default();
        kept.extend([source, point, kind, option, &b"0"[..], &b"0"[..]].join(&b' '));
        kept.push(b'\n');
    }
    kept
}
