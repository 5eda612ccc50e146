//! Replaces what tells whose machine it is: names of host and users, serial numbers, UUIDs, MAC addresses, world wide
//! names. Each by a made-up value of the same form, the same in every place.
//!
//! A made-up value depends on the order in which secrets are found and on their form alone, so nobody can work back from
//! it.

use std::collections::{BTreeMap, BTreeSet};

use super::files::{Content, Files};
use super::logins;

/// Serial numbers shorter than this are replaced where they stand, and not looked for elsewhere: they may be a part of
/// anything.
const TELLING_BYTES_MIN: usize = 6;
/// Names shorter than this likewise.
const NAME_BYTES_MIN: usize = 3;
/// Hexadecimal digits in a row that are no number.
const LONG_HEXADECIMAL: usize = 16;
/// How often another value is made up if one is taken.
const ATTEMPTS: u64 = 64;
/// Directories whose next word is a user's name.
const HOMES: [&[u8]; 3] = [b"home", b"media", b"Users"];

/// What a secret is, for the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The name of the host.
    HostName,
    /// A user's name.
    User,
    /// A disk's serial number.
    Serial,
    /// UUIDs, world wide names, MAC addresses.
    Identifier,
}

impl Kind {
    /// The kind in words, for one and for many.
    pub const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::HostName => ("host name", "host names"),
            Self::User => ("user name", "user names"),
            Self::Serial => ("serial number", "serial numbers"),
            Self::Identifier => ("UUID, WWN or MAC address", "UUIDs, WWNs and MAC addresses"),
        }
    }
}

/// Secrets and what stands for them.
#[derive(Debug, Default)]
pub struct Scrubber {
    replacements: BTreeMap<Vec<u8>, (Kind, Vec<u8>)>,
    taken: BTreeSet<Vec<u8>>,
}

/// The files without secrets, and how many secrets of each kind there were.
pub fn scrubbed(files: &Files) -> (Files, BTreeMap<Kind, usize>) {
    let mut scrubber = Scrubber::default();
    scrubber.gather(files);
    let mut clean = Files::new();
    for (path, content) in files {
        let new_path = scrubber.name(path, path);
        let content = match content {
            Content::Directory => Content::Directory,
            Content::Link(target) => Content::Link(scrubber.name(path, target)),
            Content::File(bytes) => Content::File(scrubber.file(files, path, bytes)),
        };
        clean.insert(new_path, content);
    }
    let mut counts = BTreeMap::new();
    for (kind, _) in scrubber.replacements.values() {
        *counts.entry(*kind).or_default() += 1;
    }
    // However many forms its name has, it is one host.
    counts.entry(Kind::HostName).and_modify(|count| *count = 1);
    (clean, counts)
}

/// The last word of a path.
fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The value of a line `NAME=VALUE`.
fn value<'a>(bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(name.as_bytes())).filter(|value| !value.is_empty())
}

/// Files of numbers and of the distribution, in which a name or serial number could only be found by mistake.
fn is_plain(path: &str) -> bool {
    let numbers =
        ["uevent", "size", "partition", "type", "online", "state", "removable", "block_size_bytes", "idVendor"];
    path.starts_with("/etc/")
        || path.starts_with("/usr/")
        || ["/proc/stat", "/proc/diskstats"].contains(&path)
        || (path.starts_with("/proc/sys/") && !["hostname", "version"].contains(&name_of(path)))
        || (path.starts_with("/sys/") && numbers.contains(&name_of(path)))
}

impl Scrubber {
    fn gather(&mut self, files: &Files) {
        for (path, content) in files {
            let Content::File(bytes) = content else { continue };
            match name_of(path) {
                "hostname" => self.add_host(bytes.trim_ascii()),
                "serial" if path.starts_with("/sys/") => {
                    let serial = bytes.trim_ascii();
                    // A hub that is a part of its controller has the controller's place instead.
                    if !path.split('/').any(|word| word.as_bytes() == serial) {
                        self.add(Kind::Serial, serial);
                    }
                }
                // Behind a head of four bytes.
                "vpd_pg80" => self.add(Kind::Serial, bytes.get(4..).unwrap_or_default().trim_ascii()),
                _ if path.starts_with("/run/udev/") => self.add_udev(bytes),
                _ if path.starts_with("/run/systemd/sessions/") => {
                    if let Some(user) = value(bytes, "USER=").filter(|user| *user != b"root") {
                        self.add(Kind::User, user);
                    }
                }
                "mountinfo" | "mounts" => self.add_homes(bytes),
                _ => {}
            }
        }
        for user in logins::users(files) {
            self.add(Kind::User, &user);
        }
        for (path, content) in files {
            self.add_identifiers(path.as_bytes());
            match content {
                Content::Directory => {}
                Content::Link(target) => self.add_identifiers(target.as_bytes()),
                // A zone file is numbers, and not one's own.
                Content::File(bytes) if !bytes.starts_with(b"TZif") => self.add_identifiers(bytes),
                Content::File(_) => {}
            }
        }
    }

    /// Notes a secret. What has no letters and digits, or only the same one, is none.
    fn add(&mut self, kind: Kind, secret: &[u8]) {
        let variety: BTreeSet<u8> = secret.iter().copied().filter(u8::is_ascii_alphanumeric).collect();
        let digits = secret.strip_prefix(b"0x").unwrap_or(secret);
        let is_nothing = variety.len() < 2 && secret.len() > 1 || digits.iter().all(|digit| *digit == b'0');
        if variety.is_empty() || is_nothing || self.replacements.contains_key(secret) {
            return;
        }
        let seed = self.replacements.len() as u64;
        let mut made_up = secret.to_vec();
        for attempt in 0..ATTEMPTS {
            made_up = same_form(secret, seed * ATTEMPTS + attempt);
            if made_up != secret && !self.taken.contains(&made_up) && !self.replacements.contains_key(&made_up) {
                break;
            }
        }
        self.taken.insert(made_up.clone());
        self.replacements.insert(secret.to_vec(), (kind, made_up));
    }

    /// The host's name, its first part, and both as the device mapper writes them.
    fn add_host(&mut self, name: &[u8]) {
        if name.is_empty() || name == b"localhost" || name == b"(none)" {
            return;
        }
        let first = name.split(|byte| *byte == b'.').next().unwrap_or_default();
        self.add(Kind::HostName, first);
        let Some((_, made_up)) = self.replacements.get(first).cloned() else { return };
        let doubled = |name: &[u8]| name.split(|byte| *byte == b'-').collect::<Vec<_>>().join(&b"--"[..]);
        self.replacements.insert(doubled(first), (Kind::HostName, doubled(&made_up)));
        if name.len() > first.len() {
            let rest = same_form(&name[first.len()..], u64::MAX);
            self.replacements.insert(name.to_vec(), (Kind::HostName, [made_up, rest].concat()));
        }
    }

    /// udev joins model and serial number into one; the model is none of anybody's.
    fn add_udev(&mut self, bytes: &[u8]) {
        let short = value(bytes, "E:ID_SERIAL_SHORT=");
        let whole = value(bytes, "E:ID_SERIAL=");
        let model = value(bytes, "E:ID_MODEL=").unwrap_or_default();
        if let Some(short) = short {
            self.add(Kind::Serial, short);
        }
        let Some(whole) = whole else { return };
        let rest = whole.strip_prefix(model).and_then(|rest| rest.strip_prefix(b"_"));
        match (short, rest) {
            (Some(short), _) if find(whole, short).is_some() => {}
            (_, Some(rest)) if !model.is_empty() => self.add(Kind::Serial, rest),
            // Only the model.
            _ if whole == model => {}
            _ => self.add(Kind::Serial, whole),
        }
    }

    fn add_homes(&mut self, mountinfo: &[u8]) {
        for word in mountinfo.split(u8::is_ascii_whitespace) {
            let parts: Vec<&[u8]> = word.split(|byte| *byte == b'/').collect();
            for pair in parts.windows(2) {
                if HOMES.contains(&pair[0])
                    && pair[1].iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
                {
                    self.add(Kind::User, pair[1]);
                }
            }
        }
    }

    fn add_identifiers(&mut self, text: &[u8]) {
        let mut at = 0;
        while at < text.len() {
            let starts_word = at == 0 || !text[at - 1].is_ascii_alphanumeric();
            let length = if starts_word { identifier(&text[at..]) } else { 0 };
            if length > 0 {
                self.add(Kind::Identifier, &text[at..at + length]);
            }
            at += length.max(1);
        }
    }

    fn file(&self, files: &Files, path: &str, bytes: &[u8]) -> Vec<u8> {
        if logins::FILES.contains(&path) {
            return logins::rewritten(files, path, |name| self.known(name));
        }
        if bytes.starts_with(b"TZif") {
            return bytes.to_vec();
        }
        let is_serial = name_of(path) == "serial" || path.starts_with("/run/udev/");
        if name_of(path) == "vpd_pg80" {
            let (head, serial) = bytes.split_at(bytes.len().min(4));
            return [head, &self.in_place(serial)].concat();
        }
        if name_of(path) == "hostname" || is_serial || path.starts_with("/run/systemd/") {
            let lines = bytes.split_inclusive(|byte| *byte == b'\n').map(|line| self.line(line));
            return self.applied(path, &lines.collect::<Vec<_>>().concat());
        }
        self.applied(path, bytes)
    }

    /// A line of `NAME=VALUE`, or a value alone, with the value replaced if it is a secret however short.
    fn line(&self, line: &[u8]) -> Vec<u8> {
        let name_end = line.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
        let is_name = line[..name_end].starts_with(b"E:ID_SERIAL") || line[..name_end].starts_with(b"USER=");
        if name_end > 0 && !is_name {
            return line.to_vec();
        }
        [&line[..name_end], &self.in_place(&line[name_end..])].concat()
    }

    /// A value with the blanks around it.
    fn in_place(&self, bytes: &[u8]) -> Vec<u8> {
        let value = bytes.trim_ascii();
        let start = bytes.len() - bytes.trim_ascii_start().len();
        [&bytes[..start], &self.known(value), &bytes[start + value.len()..]].concat()
    }

    fn known(&self, value: &[u8]) -> Vec<u8> {
        self.replacements.get(value).map_or_else(|| value.to_vec(), |(_, made_up)| made_up.clone())
    }

    /// A path, or what a link at that path says. In sysfs they are the kernel's own words.
    fn name(&self, path: &str, text: &str) -> String {
        let is_free = path.starts_with("/dev/");
        let clean = self.replaced(text.as_bytes(), |kind| is_free || kind == Kind::Identifier);
        String::from_utf8_lossy(&clean).into_owned()
    }

    /// What is in a file.
    fn applied(&self, path: &str, text: &[u8]) -> Vec<u8> {
        self.replaced(text, |kind| match kind {
            Kind::Identifier => true,
            Kind::Serial => !is_plain(path),
            Kind::HostName | Kind::User => !is_plain(path) && is_about_names(path),
        })
    }

    /// A text with every secret replaced that may stand in it; of those that begin at a place the longest.
    fn replaced(&self, text: &[u8], may_be: impl Fn(Kind) -> bool) -> Vec<u8> {
        let all = self.replacements.iter().map(|(secret, (kind, made_up))| (secret, *kind, made_up));
        let mut secrets: Vec<_> = all.filter(|(secret, kind, _)| may_be(*kind) && is_telling(secret, *kind)).collect();
        secrets.sort_by_key(|(secret, ..)| std::cmp::Reverse(secret.len()));
        let mut clean = Vec::with_capacity(text.len());
        let mut at = 0;
        'places: while at < text.len() {
            for (secret, kind, made_up) in &secrets {
                if text[at..].starts_with(secret) && (*kind == Kind::Serial || is_word(text, at, secret.len())) {
                    clean.extend_from_slice(made_up);
                    at += secret.len();
                    continue 'places;
                }
            }
            clean.push(text[at]);
            at += 1;
        }
        clean
    }
}

/// Whether the made-up value of a secret may be put wherever the secret is found.
fn is_telling(secret: &[u8], kind: Kind) -> bool {
    match kind {
        Kind::Serial => secret.len() >= TELLING_BYTES_MIN,
        Kind::HostName | Kind::User => secret.len() >= NAME_BYTES_MIN,
        Kind::Identifier => true,
    }
}

/// Whether names of hosts and users may stand in a file.
fn is_about_names(path: &str) -> bool {
    !path.starts_with("/sys/") || path.ends_with("/dm/name")
}

fn is_word(text: &[u8], at: usize, length: usize) -> bool {
    let is_outside = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric());
    is_outside(at.checked_sub(1).and_then(|before| text.get(before))) && is_outside(text.get(at + length))
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len().max(1)).position(|window| window == wanted)
}

/// The length of the UUID, MAC address or long hexadecimal number that a text begins with; 0 if with none.
fn identifier(text: &[u8]) -> usize {
    let digits =
        |at: usize| text.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let ends = |at: usize| text.get(at).is_none_or(|byte| !byte.is_ascii_alphanumeric());
    // The device mapper doubles dashes.
    for dash in [&b"-"[..], b"--"] {
        let mut at = 0;
        for (index, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
            if index > 0 {
                if !text.get(at..).is_some_and(|rest| rest.starts_with(dash)) {
                    break;
                }
                at += dash.len();
            }
            if digits(at) != length {
                break;
            }
            at += length;
            if index == 4 && ends(at) {
                return at;
            }
        }
    }
    let mut at = 0;
    let mut pairs = 0;
    while digits(at) == 2 {
        pairs += 1;
        at += 2;
        if text.get(at) != Some(&b':') {
            break;
        }
        at += 1;
    }
    if pairs >= 6 && ends(at) && text[at - 1] != b':' {
        return at;
    }
    let start = if text.starts_with(b"0x") { 2 } else { 0 };
    let length = digits(start);
    let run = &text[start..start + length];
    let is_number = run.iter().all(u8::is_ascii_digit) || run.iter().all(u8::is_ascii_alphabetic);
    if length >= LONG_HEXADECIMAL && !is_number && ends(start + length) { start + length } else { 0 }
}

/// Digits for digits, letters for letters; hexadecimal ones if all are.
fn same_form(secret: &[u8], seed: u64) -> Vec<u8> {
    let start = if secret.starts_with(b"0x") { 2 } else { 0 };
    let is_hexadecimal = secret[start..].iter().filter(|byte| byte.is_ascii_alphanumeric()).all(u8::is_ascii_hexdigit)
        && secret.iter().any(u8::is_ascii_digit);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut next = |count: u8| {
        // Xorshift: any sequence will do that has nothing to do with the secret.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 % count
    };
    let letters = if is_hexadecimal { 6 } else { 26 };
    let made_up = secret[start..].iter().map(|byte| match byte {
        b'0'..=b'9' => b'0' + next(10),
        b'a'..=b'z' => b'a' + next(letters),
        b'A'..=b'Z' => b'A' + next(letters),
        0x80.. => b'a' + next(26),
        other => *other,
    });
    secret[..start].iter().copied().chain(made_up).collect()
}
