//! The hardware clock: rtc(4).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// A date and a time of day as the clock has it, in whatever zone it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The year: 2026.
    pub year: i32,
    /// The month from 1 to 12.
    pub month: u8,
    /// The day of the month from 1 to 31.
    pub day: u8,
    /// The hour from 0 to 23.
    pub hour: u8,
    /// The minute from 0 to 59.
    pub minute: u8,
    /// The second from 0 to 59.
    pub second: u8,
}

/// The kernel's `struct rtc_time`; years from 1900, months from 0.
#[repr(C)]
#[derive(Default)]
struct RawTime {
    second: libc::c_int,
    minute: libc::c_int,
    hour: libc::c_int,
    day: libc::c_int,
    month: libc::c_int,
    year: libc::c_int,
    /// The drivers use neither this nor the next two.
    week_day: libc::c_int,
    year_day: libc::c_int,
    daylight_saving: libc::c_int,
}

/// What the clock says.
///
/// # Errors
/// `ENOTTY` if the file is no clock, `EINVAL` if what the clock says is no date, else what the driver says.
pub fn read(clock: impl AsFd) -> io::Result<Reading> {
    const RTC_RD_TIME: libc::c_ulong = libc::_IOR::<RawTime>(b'p' as u32, 9) as libc::c_ulong;
    let mut raw = RawTime::default();
    // SAFETY: ioctl(2) with this number writes the struct above, which has the kernel's layout of 36 bytes.
    let result = unsafe { libc::ioctl(clock.as_fd().as_raw_fd(), RTC_RD_TIME as _, &raw mut raw) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let small = |number: libc::c_int| u8::try_from(number).map_err(|_| io::ErrorKind::InvalidData);
    Ok(Reading {
        year: raw.year.saturating_add(1900),
        month: small(raw.month.saturating_add(1))?,
        day: small(raw.day)?,
        hour: small(raw.hour)?,
        minute: small(raw.minute)?,
        second: small(raw.second)?,
    })
}

/// Sets the clock.
///
/// # Errors
/// `ENOTTY` if the file is no clock, `EINVAL` if it cannot be set or not to this, `EACCES` without the right, else what
/// the driver says.
pub fn set(clock: impl AsFd, reading: Reading) -> io::Result<()> {
    const RTC_SET_TIME: libc::c_ulong = libc::_IOW::<RawTime>(b'p' as u32, 10) as libc::c_ulong;
    let raw = RawTime {
        second: reading.second.into(),
        minute: reading.minute.into(),
        hour: reading.hour.into(),
        day: reading.day.into(),
        month: libc::c_int::from(reading.month) - 1,
        year: reading.year.saturating_sub(1900),
        ..RawTime::default()
    };
    // SAFETY: ioctl(2) with this number reads the struct above, which has the kernel's layout of 36 bytes.
    let result = unsafe { libc::ioctl(clock.as_fd().as_raw_fd(), RTC_SET_TIME as _, &raw const raw) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{RawTime, Reading, read, set};
    use std::fs::File;

    #[test]
    fn the_time_has_the_kernels_layout() {
        assert_eq!(size_of::<RawTime>(), 36);
    }

    #[test]
    fn what_is_no_clock_is_refused() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(read(&null).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        let reading = Reading { year: 2026, month: 1, day: 1, hour: 0, minute: 0, second: 0 };
        assert_eq!(set(&null, reading).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
