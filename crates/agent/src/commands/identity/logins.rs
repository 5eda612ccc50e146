//! Who logged in: the records of utmp(5) and the session files of systemd-logind.
//!
//! utmp's records have the layout that glibc gives them, whatever libc this program is linked with: it is other
//! programs that write them.

use std::ops::Range;

use super::assignments;
use crate::system::root::{Root, natural_key};

/// Where the records may be.
pub const UTMP: [&str; 2] = ["/run/utmp", "/var/run/utmp"];
/// Where logind keeps a file for each session.
pub const SESSIONS: &str = "/run/systemd/sessions";
/// The record of a user's session.
const USER_PROCESS: i16 = 7;

/// A session.
#[derive(Debug, Clone, PartialEq)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The process that ends with the session; 0 if it is not known.
    pub process: i32,
    /// When it began, in seconds since the epoch.
    pub time_seconds: f64,
}

/// How a record of utmp is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    bytes: usize,
    /// Where the seconds begin.
    time_at: usize,
    /// Bytes of each of the two numbers of a time.
    time_bytes: usize,
}

/// The same on 32 and 64 bit: a signed number of seconds that wraps in 2038.
const SHORT_TIMES: Record = Record { bytes: 384, time_at: 340, time_bytes: 4 };
/// Architectures that never had 32 bit programs to get on with.
const LONG_TIMES: Record = Record { bytes: 400, time_at: 344, time_bytes: 8 };
/// The layout on this architecture.
pub const RECORD: Record = if cfg!(any(target_arch = "aarch64", target_arch = "s390x", target_arch = "loongarch64")) {
    LONG_TIMES
} else {
    SHORT_TIMES
};

const TYPE: Range<usize> = 0..2;
const PROCESS: Range<usize> = 4..8;
const USER: Range<usize> = 44..76;

/// The sessions in utmp's records. What follows the last whole record is left alone.
pub fn of_utmp(records: &[u8], layout: Record) -> Vec<Login> {
    records.chunks_exact(layout.bytes).filter_map(|record| login(record, layout)).collect()
}

fn login(record: &[u8], layout: Record) -> Option<Login> {
    let kind = i16::from_ne_bytes(record.get(TYPE)?.try_into().ok()?);
    // A name of 32 bytes fills its place without an end.
    let name = record.get(USER)?.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
    if kind != USER_PROCESS {
        return None;
    }
    let number = |index: usize| -> Option<i64> {
        let start = layout.time_at + index * layout.time_bytes;
        let bytes = record.get(start..start + layout.time_bytes)?;
        match layout.time_bytes {
            // Without a sign they last until 2106; nobody logged in before 1970.
            4 => Some(i64::from(u32::from_ne_bytes(bytes.try_into().ok()?))),
            _ => Some(i64::from_ne_bytes(bytes.try_into().ok()?)),
        }
    };
    Some(Login {
        user: String::from_utf8_lossy(name).into_owned(),
        process: i32::from_ne_bytes(record.get(PROCESS)?.try_into().ok()?),
        time_seconds: number(0)? as f64 + number(1)? as f64 / 1e6,
    })
}

/// The files of logind's sessions. Beside each is a FIFO with an ending, which nobody may open.
pub fn session_names(root: &Root) -> Vec<String> {
    let mut names = root.list(SESSIONS).unwrap_or_default();
    names.retain(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    names.sort_by_cached_key(|name| natural_key(name));
    names
}

/// The session in a file of logind's, if somebody is using the machine in it: not a login screen, a service of the
/// user's, a job of cron's, or what is left after a logout.
pub fn of_session(text: &str) -> Option<Login> {
    let value = |name: &str| assignments::value(text, name);
    let is_person = value("CLASS").is_some_and(|class| class == "user" || class.starts_with("user-"));
    let is_interactive = value("TYPE").is_some_and(|kind| kind != "unspecified");
    let has_begun = value("STATE").is_some_and(|state| state == "active" || state == "online");
    if !(is_person && is_interactive && has_begun) {
        return None;
    }
    Some(Login {
        user: value("USER").filter(|user| !user.is_empty())?,
        process: value("LEADER").and_then(|leader| leader.parse().ok()).unwrap_or(0),
        time_seconds: value("REALTIME")?.parse::<u64>().ok()? as f64 / 1e6,
    })
}

#[cfg(test)]
mod tests {
    use super::{LONG_TIMES, Login, Record, SHORT_TIMES, of_session, of_utmp};

    fn record(layout: Record, kind: i16, process: i32, user: &[u8], seconds: i64, microseconds: i64) -> Vec<u8> {
        let mut record = vec![0; layout.bytes];
        record[..2].copy_from_slice(&kind.to_ne_bytes());
        record[4..8].copy_from_slice(&process.to_ne_bytes());
        record[44..44 + user.len()].copy_from_slice(user);
        record[76..80].copy_from_slice(b"host");
        for (index, number) in [seconds, microseconds].into_iter().enumerate() {
            let at = layout.time_at + index * layout.time_bytes;
            match layout.time_bytes {
                4 => record[at..at + 4].copy_from_slice(&(number as u32).to_ne_bytes()),
                _ => record[at..at + 8].copy_from_slice(&number.to_ne_bytes()),
            }
        }
        record
    }

    #[test]
    fn both_layouts_are_read() {
        for layout in [SHORT_TIMES, LONG_TIMES] {
            let bytes = record(layout, 7, 42, b"bob", 1_445_289_855, 123_456);
            let expected = Login { user: "bob".to_owned(), process: 42, time_seconds: 1_445_289_855.123_456 };
            assert_eq!(of_utmp(&bytes, layout), [expected]);
        }
    }

    #[test]
    fn times_after_2038_are_right() {
        for layout in [SHORT_TIMES, LONG_TIMES] {
            let bytes = record(layout, 7, 42, b"bob", 2_500_000_000, 0);
            assert_eq!(of_utmp(&bytes, layout)[0].time_seconds.total_cmp(&2_500_000_000.0), std::cmp::Ordering::Equal);
        }
    }

    #[test]
    fn a_name_that_fills_its_place_ends_there() {
        let name = [b'a'; 32];
        let logins = of_utmp(&record(SHORT_TIMES, 7, 1, &name, 1, 0), SHORT_TIMES);
        assert_eq!(logins[0].user.as_bytes(), name);
        let logins = of_utmp(&record(SHORT_TIMES, 7, 1, b"\xff\xfe", 1, 0), SHORT_TIMES);
        assert_eq!(logins[0].user, "\u{fffd}\u{fffd}");
    }

    #[test]
    fn other_records_and_torn_ones_are_left_out() {
        let bytes = [
            record(SHORT_TIMES, 2, 0, b"reboot", 1, 0),
            record(SHORT_TIMES, 8, 5, b"", 1, 0),
            record(SHORT_TIMES, 7, 6, b"", 1, 0),
            record(SHORT_TIMES, 7, 7, b"torn", 1, 0)[..383].to_vec(),
        ];
        assert_eq!(of_utmp(&bytes.concat(), SHORT_TIMES), []);
        assert_eq!(of_utmp(&[], SHORT_TIMES), []);
    }

    const SESSION: &str = "# This is private data.\nUID=1000\nUSER=alice\nACTIVE=1\nSTATE=active\nREMOTE=1\nTYPE=tty\nCLASS=user\n\
         SERVICE=sshd\nLEADER=421\nREALTIME=1762771234567890\nMONOTONIC=5\n";

    #[test]
    fn a_session_of_logind_is_a_login() {
        let expected = Login { user: "alice".to_owned(), process: 421, time_seconds: 1_762_771_234.567_89 };
        assert_eq!(of_session(SESSION), Some(expected));
    }

    #[test]
    fn sessions_in_which_nobody_works_are_no_logins() {
        for (old, new) in [
            ("CLASS=user", "CLASS=greeter"),
            ("CLASS=user", "CLASS=manager"),
            ("CLASS=user", "CLASS=background"),
            ("TYPE=tty", "TYPE=unspecified"),
            ("STATE=active", "STATE=closing"),
            ("STATE=active", "STATE=opening"),
            ("USER=alice\n", ""),
            ("USER=alice", "USER="),
            ("REALTIME=1762771234567890", "REALTIME=yesterday"),
        ] {
            assert!(SESSION.contains(old));
            assert_eq!(of_session(&SESSION.replace(old, new)), None, "{new}");
        }
        assert_eq!(of_session(""), None);
    }
}
