//! The guest's clock: `guest-get-time`, `guest-set-time`, `guest-get-timezone`.
//!
//! The family leaves out who keeps the clock right in between, which is the guest's own time service, and does not set
//! the time zone.

use crate::command::{Command, Family, Nothing};
use crate::{command, object};

/// The family's commands.
pub const FAMILY: Family = Family { name: "time", commands: &[GetTime::INFO, SetTime::INFO, GetTimezone::INFO] };

command! {
    "guest-get-time", since "1.5", reply i64, rules { immediate: true },
    /// Returns the guest's time in nanoseconds since 1970-01-01 00:00:00 UTC, precise to a microsecond.
    pub struct GetTime {}
}

command! {
    "guest-set-time", since "1.5", reply Nothing, rules { exclusive: true },
    /// Sets the guest's time, as after a pause or a migration during which its clock stood still.
    ///
    /// With `time` the system clock is set to it and, where there is one, the hardware clock too. Without, the system
    /// clock is set from the hardware clock; Windows, where that cannot be read, asks its time service to synchronise.
    /// Either waits up to a second for the moment at which the hardware clock's next second begins.
    ///
    /// Errors: a time that the clock cannot take (before 1970 or from 2070 on, in UTC); no permission; no hardware clock
    /// to read, or on Windows no time service; a hardware clock that fails, after the system clock has been set.
    pub struct SetTime {
        /// Nanoseconds since 1970-01-01 00:00:00 UTC. On Windows the clock takes whole milliseconds. From the hardware
        /// clock if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        time: Option<i64>,
    }
}

command! {
    "guest-get-timezone", since "2.10", reply Timezone,
    /// Returns the guest's time zone as it is now, daylight saving time included.
    ///
    /// Errors: a zone that cannot be determined.
    pub struct GetTimezone {}
}

object! {
    /// What `guest-get-timezone` returns.
    pub struct Timezone as "GuestTimezone" {
        /// The zone's abbreviation, `CET` or `+11`; on Windows its name. Not an identifier such as `Europe/Berlin`.
        #[serde(skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
        /// Seconds east of UTC, negative west of it.
        offset: i64,
    }
}
