//! guest-get-time, guest-set-time, guest-get-timezone.

#[cfg(target_os = "linux")]
mod linux;
pub mod zone;

use qga_protocol::command::Nothing;
use qga_protocol::time::{GetTime, GetTimezone, SetTime, Timezone};
use rustix::time::{ClockId, Timespec, clock_gettime};

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::error::Error;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetTime, SetTime, GetTimezone];

impl Run for GetTime {
    fn run(self, _call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        Ok(nanoseconds(now()).into())
    }
}

impl Run for SetTime {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        let time = self.time.map(settable).transpose()?;
        os::set(&call.agent.root, time)?;
        Ok(Nothing {}.into())
    }
}

impl Run for GetTimezone {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Timezone>, Error> {
        let local = zone::local(&call.agent.root, &zone::Environment::of_process());
        Ok(zone::at(&local, now().tv_sec).into())
    }
}

fn now() -> Timespec {
    clock_gettime(ClockId::Realtime)
}

/// Nanoseconds since the epoch, in whole microseconds as the original tells them.
fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec / 1000 * 1000)
}

/// A time in nanoseconds since the epoch, if it is one of the years that the original takes. They are judged in UTC, so
/// that the same time is good in each guest.
fn settable(nanoseconds: i64) -> Result<Timespec, Error> {
    /// 2070-01-01 00:00:00 UTC.
    const END_SECONDS: i64 = 3_155_760_000;
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    if (0..END_SECONDS).contains(&seconds) {
        Ok(Timespec { tv_sec: seconds, tv_nsec: nanoseconds.rem_euclid(1_000_000_000) })
    } else {
        Err(Error::new(format!("Invalid time: {nanoseconds} ns since 1970 are not in the years 1970 to 2069")))
    }
}

#[cfg(test)]
mod tests {
    use super::{nanoseconds, settable};
    use rustix::time::Timespec;

    #[test]
    fn time_is_told_in_microseconds() {
        assert_eq!(nanoseconds(Timespec { tv_sec: 2, tv_nsec: 3_004_999 }), 2_003_004_000);
        assert_eq!(nanoseconds(Timespec { tv_sec: -1, tv_nsec: 999_999_999 }), -1000);
        assert_eq!(nanoseconds(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }), i64::MAX);
    }

    #[test]
    fn years_out_of_the_clocks_range_are_refused() {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        assert_eq!(settable(0).unwrap(), time(0, 0));
        assert_eq!(settable(1_445_289_855_123_456_789).unwrap(), time(1_445_289_855, 123_456_789));
        assert_eq!(settable(3_155_759_999_999_999_999).unwrap(), time(3_155_759_999, 999_999_999));
        for refused in [-1, i64::MIN, i64::MAX, 3_155_760_000_000_000_000] {
            let error = settable(refused).unwrap_err();
            assert_eq!(error.desc, format!("Invalid time: {refused} ns since 1970 are not in the years 1970 to 2069"));
        }
    }
}
