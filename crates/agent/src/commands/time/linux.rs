//! Sets the system clock, and the hardware clock with it or from it, without hwclock(8).
//!
//! The hardware clock is asked by a thread of its own with a deadline: the driver of a clock at the end of a slow bus may
//! hang in the kernel, and the client is to learn that the system clock was set all the same.

mod hardware_clock;

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_settime};

use self::hardware_clock::HardwareClock;
use super::zone::Environment;
use crate::system::blocking::BlockingThreads;
use crate::system::error::{Error, cause_text};
use crate::system::root::Root;

/// How long the hardware clock may take, of which two seconds may be waiting for its next second.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread that asks the hardware clock.
static CLOCK: BlockingThreads = BlockingThreads::new("clock", 1, 1);

/// Sets the system clock to a time and the hardware clock, if there is one, to the system clock; without a time, sets
/// the system clock to the hardware clock.
pub fn set(root: &Root, time: Option<Timespec>) -> Result<(), Error> {
    if cfg!(test) || !root.is_host() {
        return Err(Error::new("the clock of a recorded machine cannot be set"));
    }
    match time {
        Some(time) => {
            set_system_clock(time).map_err(|cause| Error::io("Failed to set time to guest", &cause))?;
            set_hardware_clock(root)
        }
        None => set_from_hardware_clock(root),
    }
}

fn set_system_clock(time: Timespec) -> io::Result<()> {
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn set_hardware_clock(root: &Root) -> Result<(), Error> {
    let failed = |why: &str| {
        Err(Error::new(format!("failed to set hardware clock to system time: {why} (the system clock is set)")))
    };
    let root = root.clone();
    let outcome = CLOCK.run("", PATIENCE, move || match HardwareClock::open(&root, &Environment::of_process()) {
        Ok(Some(clock)) => clock.follow_system_clock().map_err(|cause| (clock.path, cause)),
        Ok(None) => {
            log::info!("there is no hardware clock to set");
            Ok(())
        }
        Err(failure) => Err(failure),
    });
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err((path, cause))) if hardware_clock::is_only_read(&cause) => {
            log::info!("{path} cannot be set: {}", cause_text(&cause));
            Ok(())
        }
        Ok(Err((path, cause))) => failed(&format!("{path}: {}", cause_text(&cause))),
        Err(not_done) => failed(&not_done.to_string()),
    }
}

fn set_from_hardware_clock(root: &Root) -> Result<(), Error> {
    let failed = |why: &str| Err(Error::new(format!("failed to set system time from hardware clock: {why}")));
    let root = root.clone();
    let outcome = CLOCK.run("", PATIENCE, move || {
        let Some(clock) = HardwareClock::open(&root, &Environment::of_process())? else { return Ok(None) };
        // The system clock is set here, at the beginning of the hardware clock's second.
        let set = clock.next_second().map(|seconds| set_system_clock(Timespec { tv_sec: seconds, tv_nsec: 0 }));
        set.map(Some).map_err(|cause| (clock.path, cause))
    });
    match outcome {
        Ok(Ok(Some(Ok(())))) => Ok(()),
        Ok(Ok(Some(Err(cause)))) => Err(Error::io("Failed to set time to guest", &cause)),
        Ok(Ok(None)) => failed("there is none, neither /dev/rtc0 nor /dev/rtc nor another"),
        Ok(Err((path, cause))) => failed(&format!("{path}: {}", cause_text(&cause))),
        Err(not_done) => failed(&not_done.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::{CLOCK, set};
    use crate::system::root::Root;
    use std::sync::Mutex;
    use std::time::Duration;

    #[test]
    fn the_clock_of_the_machine_that_tests_run_on_is_left_alone() {
        for root in [Root::host(), Root::at("/nonexistent")] {
            assert_eq!(set(&root, None).unwrap_err().desc, "the clock of a recorded machine cannot be set");
        }
    }

    #[test]
    fn a_clock_that_hangs_is_given_up_on_and_not_asked_again_until_it_answers() {
        static DEAD: Mutex<()> = Mutex::new(());
        const LONG: Duration = Duration::from_secs(60);
        let dead = DEAD.lock().unwrap();
        let hang = || drop(DEAD.lock());
        assert_eq!(CLOCK.run("", Duration::from_millis(50), hang).unwrap_err().to_string(), "no end after 0 s");
        assert_eq!(CLOCK.run("", LONG, || 1).unwrap_err().to_string(), "an earlier attempt has not ended yet");
        drop(dead);
        while !matches!(CLOCK.run("", LONG, || 2), Ok(2)) {
            std::thread::yield_now();
        }
    }
}
