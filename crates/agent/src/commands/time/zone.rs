//! The local time zone: what `TZ` says, else `/etc/localtime`, else UTC.
//!
//! `TZ` is understood as the original understands it: an offset (`+05:30`), the name of a zone file, or a rule
//! (`CET-1CEST,M3.5.0,M10.5.0/3`). What cannot be understood is UTC, there as here. Everything is read anew at each call,
//! so a changed zone is seen at once.

use std::path::Path;

use qga_protocol::time::Timezone;
use tz::timezone::{TimeZoneSettings, Transition};
use tz::{LocalTimeType, TimeZone};

use crate::system::root::Root;

/// The zone where nothing else is said.
const LOCAL_TIME: &str = "/etc/localtime";
/// Has the zone files by name.
const ZONE_FILES: &str = "/usr/share/zoneinfo";
/// The name of the zone that everything falls back to.
const UTC: &str = "UTC";

/// The variables that say which zone is meant.
#[derive(Debug, Default)]
pub struct Environment {
    /// `TZ`.
    pub zone: Option<String>,
    /// `TZDIR`: where the zone files are instead.
    pub directory: Option<String>,
}

impl Environment {
    /// The agent's own.
    pub fn of_process() -> Self {
        let text = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self { zone: text("TZ"), directory: text("TZDIR") }
    }
}

/// A zone's rules.
#[derive(Debug)]
pub enum Zone {
    /// The same offset always, and what the zone calls itself.
    Fixed(String, i32),
    /// Offsets that change.
    Rules(TimeZone),
}

/// The machine's zone.
pub fn local(root: &Root, environment: &Environment) -> Zone {
    let zone = match &environment.zone {
        None => file(root, LOCAL_TIME),
        Some(text) => {
            let text = text.strip_prefix(':').unwrap_or(text);
            let directory = environment.directory.as_deref().unwrap_or(ZONE_FILES);
            fixed(text).or_else(|| named(root, directory, text)).or_else(|| rule(text))
        }
    };
    zone.unwrap_or_else(|| Zone::Fixed(UTC.to_owned(), 0))
}

/// The zone's name and offset at a time, in seconds since the epoch.
pub fn at(zone: &Zone, unix_time: i64) -> Timezone {
    let (name, offset_seconds) = match zone {
        Zone::Fixed(name, offset_seconds) => (name.clone(), *offset_seconds),
        Zone::Rules(rules) => {
            let found = rules.find_local_time_type(unix_time).ok().or_else(|| last(rules));
            found.map_or((UTC.to_owned(), 0), |found| (found.time_zone_designation().to_owned(), found.ut_offset()))
        }
    };
    Timezone { zone: Some(name), offset: i64::from(offset_seconds) }
}

/// What holds from the last change on, if nothing is said of the time after it: so in files that count leap seconds.
fn last(rules: &TimeZone) -> Option<&LocalTimeType> {
    let rules = rules.as_ref();
    let index = rules.transitions().last().map_or(0, Transition::local_time_type_index);
    rules.local_time_types().get(index)
}

fn file(root: &Root, path: impl AsRef<Path>) -> Option<Zone> {
    TimeZone::from_tz_data(&root.read(path).ok()?).ok().map(Zone::Rules)
}

fn named(root: &Root, directory: &str, name: &str) -> Option<Zone> {
    // An absolute name replaces the directory.
    if name.is_empty() { None } else { file(root, Path::new(directory).join(name)) }
}

/// A POSIX rule. The reader of files is one that finds none: they have had their turn.
fn rule(text: &str) -> Option<Zone> {
    let without_files = TimeZoneSettings::new(&[], |_| Err("no files here".into()));
    without_files.parse_posix_tz(text).ok().map(Zone::Rules)
}

/// `Z`, or hours and perhaps minutes east of UTC: `+05:30`, `-0330`, `+01`. West is negative here, unlike in a rule.
fn fixed(text: &str) -> Option<Zone> {
    if text == "Z" {
        return Some(Zone::Fixed(text.to_owned(), 0));
    }
    let (sign, digits) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => (1, text),
    };
    let (hours, minutes) = match (digits.len(), digits.as_bytes().get(2)) {
        (2, _) => (digits, "00"),
        (4, _) => digits.split_at_checked(2)?,
        (5, Some(b':')) => digits.split_once(':')?,
        _ => return None,
    };
    let number = |text: &str, limit: i32| -> Option<i32> {
        let all_digits = text.bytes().all(|byte| byte.is_ascii_digit());
        all_digits.then(|| text.parse().ok())?.filter(|number| *number < limit)
    };
    let offset_seconds = sign * (number(hours, 25)? * 3600 + number(minutes, 60)? * 60);
    Some(Zone::Fixed(text.to_owned(), offset_seconds))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::{Environment, at, local};
    use crate::system::root::Root;

    const JANUARY_2026: i64 = 1_768_000_000;
    const JULY_2026: i64 = 1_783_600_000;

    /// A zone file whose every word is in its last line, which is what current zone files have for the future.
    fn zone_file(rule: &str) -> Vec<u8> {
        let header = [b"TZif2".as_slice(), &[0; 15], &[0; 16], &[0, 0, 0, 1, 0, 0, 0, 4]].concat();
        let type_and_name = b"\0\0\0\0\0\0LMT\0";
        [&header, type_and_name.as_slice(), &header, type_and_name, b"\n", rule.as_bytes(), b"\n"].concat()
    }

    fn machine() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path("/usr/share/zoneinfo/Europe")).unwrap();
        fs::create_dir_all(root.path("/etc")).unwrap();
        let berlin = zone_file("CET-1CEST,M3.5.0,M10.5.0/3");
        fs::write(root.path("/usr/share/zoneinfo/Europe/Berlin"), berlin).unwrap();
        fs::write(root.path("/usr/share/zoneinfo/EST5EDT"), zone_file("EST5EDT,M3.2.0,M11.1.0")).unwrap();
        symlink("/usr/share/zoneinfo/Europe/Berlin", root.path("/etc/localtime")).unwrap();
        (directory, root)
    }

    fn check(variable: Option<&str>, unix_time: i64, zone: &str, offset: i64) {
        let (_directory, root) = machine();
        let environment = Environment { zone: variable.map(str::to_owned), directory: None };
        let found = at(&local(&root, &environment), unix_time);
        assert_eq!((found.zone.as_deref(), found.offset), (Some(zone), offset), "{variable:?} at {unix_time}");
    }

    #[test]
    fn the_offset_is_that_of_the_season() {
        check(None, JANUARY_2026, "CET", 3600);
        check(None, JULY_2026, "CEST", 7200);
        check(Some("EST5EDT"), JULY_2026, "EDT", -14400);
    }

    #[test]
    fn every_form_of_the_variable_is_understood() {
        for (variable, zone, offset) in [
            ("Europe/Berlin", "CET", 3600),
            (":Europe/Berlin", "CET", 3600),
            ("/usr/share/zoneinfo/Europe/Berlin", "CET", 3600),
            ("IST-5:30", "IST", 19800),
            ("<+03>-3", "+03", 10800),
            ("UTC+3", "UTC", -10800),
            ("EST5EDT,M3.2.0,M11.1.0", "EST", -18000),
            ("Z", "Z", 0),
            ("+05:30", "+05:30", 19800),
            ("-03", "-03", -10800),
            ("+0530", "+0530", 19800),
            ("05:30", "05:30", 19800),
        ] {
            check(Some(variable), JANUARY_2026, zone, offset);
        }
    }

    #[test]
    fn what_says_nothing_is_utc() {
        for variable in ["", ":", "bogus", "Europe", "../../..", "+5:30", "+é0", "99", "CET-1CEST", "Europe/Berlin\0"]
        {
            check(Some(variable), JANUARY_2026, "UTC", 0);
        }
    }

    #[test]
    fn a_file_without_a_word_of_the_future_goes_on_as_it_ends() {
        let (_directory, root) = machine();
        fs::write(root.path("/usr/share/zoneinfo/Europe/Berlin"), zone_file("")).unwrap();
        let found = at(&local(&root, &Environment::default()), JULY_2026);
        assert_eq!((found.zone.as_deref(), found.offset), (Some("LMT"), 0));
    }

    #[test]
    fn a_missing_or_damaged_zone_file_is_utc() {
        let (_directory, root) = machine();
        fs::remove_file(root.path("/etc/localtime")).unwrap();
        let whole = zone_file("CET-1");
        for bytes in [None, Some(&whole[..0]), Some(&whole[..30]), Some(&whole[..whole.len() - 3]), Some(b"garbage")] {
            if let Some(bytes) = bytes {
                fs::write(root.path("/etc/localtime"), bytes).unwrap();
            }
            let found = at(&local(&root, &Environment::default()), JANUARY_2026);
            assert_eq!((found.zone.as_deref(), found.offset), (Some("UTC"), 0), "{bytes:?}");
        }
    }
}
