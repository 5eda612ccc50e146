//! The clock that runs while the machine is off: rtc(4).
//!
//! It counts whole seconds. Reading and setting wait for the right moment of a second, as hwclock(8) does, so that
//! neither clock loses what the other knows.

use std::fs::File;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use qga_sys::rtc::{self, Reading};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use tz::UtcDateTime;

use super::super::zone::{self, Environment, Zone};
use crate::system::root::{Root, natural_key};

/// Where the kernel lists the clocks. The nodes have the same names.
const CLOCKS: &str = "/sys/class/rtc";
/// Clocks by the order in which they are taken, before others that there may be: those that hwclock(8) takes.
const NAMES: [&str; 2] = ["rtc0", "rtc"];
/// How long the next second may take to come.
const SECOND_PATIENCE: Duration = Duration::from_secs(2);
/// By how much the moment for setting it may be missed, and how often it is waited for.
const MOMENT_MISSED: Duration = Duration::from_millis(10);
const MOMENT_TRIES: u32 = 3;
/// How often it is looked whether it has come, or whether another program has left the clock.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// The clock.
pub struct HardwareClock {
    /// Its node.
    pub path: String,
    file: File,
    /// The zone that its time is meant in; UTC if absent.
    zone: Option<Zone>,
    /// How long after it was set it begins its next second.
    first_second: Duration,
}

/// Why the clock at a path does not do what it should.
pub type Failure = (String, io::Error);

/// Whether a failure to set the clock says that it is one that nobody can set.
pub fn is_only_read(cause: &io::Error) -> bool {
    [Errno::INVAL, Errno::NOTTY, Errno::OPNOTSUPP]
        .iter()
        .any(|known| cause.raw_os_error() == Some(known.raw_os_error()))
}

impl HardwareClock {
    /// Opens the machine's clock; `None` if it has none.
    pub fn open(root: &Root, environment: &Environment) -> Result<Option<Self>, Failure> {
        let mut names: Vec<String> = NAMES.map(str::to_owned).into();
        let mut others = root.list(CLOCKS).unwrap_or_default();
        others.sort_by_cached_key(|name| natural_key(name));
        names.extend(others);
        for name in names {
            let path = format!("/dev/{name}");
            match open_when_free(root, &path) {
                Ok(file) => {
                    let zone = keeps_local_time(root).then(|| zone::local(root, environment));
                    return Ok(Some(Self { path, file, zone, first_second: first_second(root, &name) }));
                }
                Err(cause) if is_missing(&cause) => {}
                Err(cause) => return Err((path, cause)),
            }
        }
        Ok(None)
    }

    /// Sets it to the system clock.
    pub fn follow_system_clock(&self) -> io::Result<()> {
        let mut tries_left = MOMENT_TRIES;
        loop {
            let now = clock_gettime(ClockId::Realtime);
            let (pause, seconds) = moment(now.tv_sec, now.tv_nsec, self.first_second);
            let planned = Instant::now() + pause;
            thread::sleep(pause);
            tries_left -= 1;
            // On a busy machine a sleep can be far too long.
            if planned.elapsed() < MOMENT_MISSED || tries_left == 0 {
                let reading = shown(seconds + self.offset_seconds(seconds)).ok_or(Errno::RANGE)?;
                return rtc::set(&self.file, reading);
            }
        }
    }

    /// Waits until its next second begins. Returns it in seconds since the epoch.
    pub fn next_second(&self) -> io::Result<i64> {
        let (started, first) = (Instant::now(), rtc::read(&self.file)?);
        loop {
            let reading = rtc::read(&self.file)?;
            if reading != first {
                return meant(reading, |seconds| self.offset_seconds(seconds)).ok_or(Errno::RANGE.into());
            }
            if started.elapsed() > SECOND_PATIENCE {
                return Err(io::Error::other("it stands still"));
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// How far it is ahead of UTC at a time.
    fn offset_seconds(&self, seconds: i64) -> i64 {
        self.zone.as_ref().map_or(0, |zone| zone::at(zone, seconds).offset)
    }
}

fn open_when_free(root: &Root, path: &str) -> io::Result<File> {
    let started = Instant::now();
    loop {
        match File::open(root.path(path)) {
            // The kernel lets one program at a time have it.
            Err(cause) if cause.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                if started.elapsed() > SECOND_PATIENCE {
                    return Err(cause);
                }
                thread::sleep(BETWEEN_LOOKS);
            }
            outcome => return outcome,
        }
    }
}

fn is_missing(cause: &io::Error) -> bool {
    [Errno::NOENT, Errno::NODEV, Errno::NXIO].iter().any(|known| cause.raw_os_error() == Some(known.raw_os_error()))
}

/// Whether the clock has the local time, as beside some other systems: the third line of adjtime(5).
fn keeps_local_time(root: &Root) -> bool {
    root.read_text("/etc/adjtime").is_ok_and(|text| text.lines().nth(2).map(str::trim) == Some("LOCAL"))
}

/// The clock of a PC begins its next second half a second after it was set, others a whole one.
fn first_second(root: &Root, name: &str) -> Duration {
    // Without a number it is a link to the first one.
    let name = if name == "rtc" { "rtc0" } else { name };
    let driver = root.read_text(format!("{CLOCKS}/{name}/name")).unwrap_or_default();
    if driver.starts_with("rtc_cmos") { Duration::from_millis(500) } else { Duration::from_secs(1) }
}

/// When the clock is to be set, counted from a time, and to which second, so that its seconds begin with the time's.
fn moment(seconds: i64, nanoseconds: i64, first_second: Duration) -> (Duration, i64) {
    const SECOND: Duration = Duration::from_secs(1);
    let since_second = Duration::from_nanos(nanoseconds.unsigned_abs());
    // The part of each second at which it is right to set it.
    let part = SECOND.saturating_sub(first_second);
    match part.checked_sub(since_second) {
        Some(pause) => (pause, seconds),
        None => ((part + SECOND).saturating_sub(since_second), seconds + 1),
    }
}

/// What a clock shows at a time in its own zone.
fn shown(seconds: i64) -> Option<Reading> {
    let time = UtcDateTime::from_timespec(seconds, 0).ok()?;
    Some(Reading {
        year: time.year(),
        month: time.month(),
        day: time.month_day(),
        hour: time.hour(),
        minute: time.minute(),
        second: time.second(),
    })
}

/// The time since the epoch that a clock means which is ahead of UTC by `offset_seconds` of that time.
fn meant(reading: Reading, offset_seconds: impl Fn(i64) -> i64) -> Option<i64> {
    let Reading { year, month, day, hour, minute, second } = reading;
    let as_utc = UtcDateTime::new(year, month, day, hour, minute, second, 0).ok()?.unix_time();
    // A change of the offset between the two moves the first guess, not the second.
    let guess = as_utc - offset_seconds(as_utc);
    Some(as_utc - offset_seconds(guess))
}

#[cfg(test)]
mod tests {
    use super::{HardwareClock, first_second, is_only_read, keeps_local_time, meant, moment, shown};
    use crate::commands::time::zone::Environment;
    use crate::system::root::Root;
    use qga_sys::rtc::Reading;
    use std::fs;
    use std::io;
    use std::time::Duration;

    const AUTUMN: Reading = Reading { year: 2026, month: 11, day: 21, hour: 16, minute: 5, second: 59 };

    fn machine(path: &str, text: &str) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path(path).parent().unwrap()).unwrap();
        fs::write(root.path(path), text).unwrap();
        (directory, root)
    }

    #[test]
    fn a_time_and_what_the_clock_shows_become_each_other() {
        assert_eq!(shown(1_795_277_159), Some(AUTUMN));
        assert_eq!(meant(AUTUMN, |_| 0), Some(1_795_277_159));
        assert_eq!(meant(AUTUMN, |_| 3600), Some(1_795_273_559));
        assert_eq!(meant(Reading { month: 13, ..AUTUMN }, |_| 0), None);
        assert_eq!(meant(Reading { year: i32::MAX, ..AUTUMN }, |_| 0).and_then(shown).map(|shown| shown.day), Some(21));
    }

    #[test]
    fn local_time_is_understood_on_both_sides_of_a_change() {
        // Ahead by two hours before a time, by one from it on.
        const CHANGE: i64 = 1_792_976_400;
        let offset = |seconds: i64| if seconds < CHANGE { 7200 } else { 3600 };
        for seconds in [CHANGE - 86_400, CHANGE - 3601, CHANGE + 3600, CHANGE + 86_400] {
            let reading = shown(seconds + offset(seconds)).unwrap();
            assert_eq!(meant(reading, offset), Some(seconds));
        }
    }

    #[test]
    fn the_clock_is_set_when_its_seconds_will_begin_with_the_systems() {
        let half = Duration::from_millis(500);
        assert_eq!(moment(7, 200_000_000, half), (Duration::from_millis(300), 7));
        assert_eq!(moment(7, 500_000_000, half), (Duration::ZERO, 7));
        assert_eq!(moment(7, 800_000_000, half), (Duration::from_millis(700), 8));
        let whole = Duration::from_secs(1);
        assert_eq!(moment(7, 0, whole), (Duration::ZERO, 7));
        assert_eq!(moment(7, 1, whole), (Duration::from_nanos(999_999_999), 8));
    }

    #[test]
    fn what_the_system_says_of_its_clock_is_heeded() {
        assert!(keeps_local_time(&machine("/etc/adjtime", "0.0 0 0\n0\nLOCAL\n").1));
        assert!(!keeps_local_time(&machine("/etc/adjtime", "0.0 0 0\n0\nUTC\n").1));
        assert!(!keeps_local_time(&machine("/etc/adjtime", "LOCAL").1));
        assert_eq!(first_second(&machine("/sys/class/rtc/rtc0/name", "rtc_cmos rtc_cmos\n").1, "rtc").as_millis(), 500);
        assert_eq!(
            first_second(&machine("/sys/class/rtc/rtc1/name", "rtc-pl031 9010000.pl031\n").1, "rtc1").as_secs(),
            1
        );
    }

    #[test]
    fn a_machine_without_a_clock_and_one_that_is_none_are_told_apart() {
        let (_directory, root) = machine("/etc/adjtime", "");
        assert!(HardwareClock::open(&root, &Environment::default()).unwrap().is_none());
        let (_directory, root) = machine("/dev/rtc", "");
        let clock = HardwareClock::open(&root, &Environment::default()).unwrap().unwrap();
        assert_eq!(clock.path, "/dev/rtc");
        assert!(is_only_read(&clock.follow_system_clock().unwrap_err()));
        assert_eq!(clock.next_second().unwrap_err().raw_os_error(), Some(25));
        assert!(!is_only_read(&io::Error::from_raw_os_error(5)));
    }
}
