//! Sizes, spans and moments as people write and read them.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

/// `1.5 GiB`: three digits at least where there are as many.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for name in UNITS {
        value /= 1024.0;
        unit = name;
        if value < 1000.0 {
            break;
        }
    }
    if value < 9.995 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// `3 d 4 h`: the two largest units.
pub fn span(seconds: u64) -> String {
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(parts.len() - 1);
    let shown = parts[first..].iter().take(2).filter(|(count, _)| *count > 0 || seconds == 0);
    shown.map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}

/// A duration as it is written on the command line: `30`, `1.5s`, `200ms`, `5m`, `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(format!("{unit:?} is no unit: write ms, s, m, h or d")),
    };
    let number: f64 = number.trim().parse().map_err(|_| "write a number of seconds, or 200ms, 5m, 2h".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "it is negative or too long".to_owned())
}

/// `2026-05-01 12:00:00 +02:00`, for an offset from UTC in seconds.
pub fn moment(unix_seconds: i64, offset_seconds: i32) -> String {
    // A guest may name any number for either.
    let shown = Timestamp::from_second(unix_seconds).and_then(|moment| {
        let zone = TimeZone::fixed(Offset::from_seconds(offset_seconds)?);
        Ok(moment.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string())
    });
    shown.unwrap_or_else(|_| format!("@{unix_seconds}"))
}

/// A moment as it is written on the command line, in nanoseconds since 1970: `@SECONDS`, or `2026-05-01T12:00:00Z` with
/// `Z`, `+02:00` or nothing (which is UTC) at its end.
pub fn parse_moment(text: &str) -> Result<i64, String> {
    const WRITE: &str = "write @SECONDS since 1970 or 2026-05-01T12:00:00+02:00";
    if let Some(seconds) = text.strip_prefix('@') {
        let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
        let whole: i64 = whole.parse().map_err(|_| WRITE.to_owned())?;
        let nanos = format!("{fraction:0<9}");
        let nanos: i64 = nanos.get(..9).and_then(|nanos| nanos.parse().ok()).ok_or(WRITE)?;
        return whole.checked_mul(1_000_000_000).and_then(|whole| whole.checked_add(nanos)).ok_or_else(|| WRITE.into());
    }
    if !text.contains(['T', 't', ' ']) {
        return Err(WRITE.to_owned());
    }
    let in_utc = || text.parse::<DateTime>().and_then(|time| time.to_zoned(TimeZone::UTC)).map(|time| time.timestamp());
    let moment = text.parse::<Timestamp>().or_else(|_| in_utc()).map_err(|_| WRITE.to_owned())?;
    i64::try_from(moment.as_nanosecond()).map_err(|_| "the protocol has times from 1678 to 2262".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let check = |count, expected: &str| assert_eq!(bytes(count), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1_500_000, "1.4 MiB");
        check(1 << 30, "1.0 GiB");
        check(20 << 30, "20 GiB");
        check(1010 << 20, "1.0 GiB");
        check(u64::MAX, "16 EiB");
    }

    #[test]
    fn spans_have_their_two_largest_units() {
        let check = |seconds, expected: &str| assert_eq!(span(seconds), expected);
        check(0, "0 s");
        check(61, "1 min 1 s");
        check(3600, "1 h");
        check(273_600, "3 d 4 h");
    }

    #[test]
    fn durations_are_read_with_and_without_unit() {
        let check = |text, expected: Option<u64>| {
            assert_eq!(parse_duration(text).ok().map(|duration| duration.as_millis() as u64), expected, "{text}");
        };
        check("30", Some(30_000));
        check("1.5s", Some(1_500));
        check("200ms", Some(200));
        check("5m", Some(300_000));
        check("2h", Some(7_200_000));
        check("-1", None);
        check("x", None);
        check("5 weeks", None);
    }

    #[test]
    fn moments_are_read_as_they_are_written() {
        assert_eq!(moment(0, 0), "1970-01-01 00:00:00 +00:00");
        assert_eq!(moment(1_777_629_600, 7200), "2026-05-01 12:00:00 +02:00");
        assert_eq!(moment(1_777_629_600, -9000), "2026-05-01 07:30:00 -02:30");
        assert_eq!(moment(i64::MAX, 0), format!("@{}", i64::MAX));
        assert_eq!(moment(0, i32::MIN), "@0");
        let check = |text, expected: Option<i64>| assert_eq!(parse_moment(text).ok(), expected, "{text}");
        check("@0", Some(0));
        check("@1.5", Some(1_500_000_000));
        check("2026-05-01T12:00:00+02:00", Some(1_777_629_600_000_000_000));
        check("2026-05-01 10:00:00Z", Some(1_777_629_600_000_000_000));
        check("2026-05-01T10:00:00", Some(1_777_629_600_000_000_000));
        check("2026-05-01T10:00:00.5Z", Some(1_777_629_600_500_000_000));
        check("2026-05-01T07:30:00-02:30", Some(1_777_629_600_000_000_000));
        check("2026-05-01T12:00:00+02", Some(1_777_629_600_000_000_000));
        check("2026-13-01T10:00:00", None);
        check("2026-02-29T10:00:00", None);
        check("2026-05-01", None);
        check("2026-05-01T10:00:00+99:00", None);
        check("9000-01-01T10:00:00Z", None);
        check("noon", None);
    }
}
