//! guest-get-time, guest-get-timezone.

mod zone;

use qga_protocol::time::{GetTime, GetTimezone, Timezone};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::dispatch::Call;
use crate::error::Error;
use crate::registry::{Entry, Outcome, Run, family};

/// The family's commands.
pub const ENTRIES: &[Entry] = family![GetTime, GetTimezone];

impl Run for GetTime {
    fn run(self, _call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        Ok(nanoseconds(now()).into())
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

#[cfg(test)]
mod tests {
    use super::nanoseconds;
    use rustix::time::Timespec;

    #[test]
    fn time_is_told_in_microseconds() {
        assert_eq!(nanoseconds(Timespec { tv_sec: 2, tv_nsec: 3_004_999 }), 2_003_004_000);
        assert_eq!(nanoseconds(Timespec { tv_sec: -1, tv_nsec: 999_999_999 }), -1000);
        assert_eq!(nanoseconds(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }), i64::MAX);
    }
}
