//! The one lock of commands that change the machine: freeze, trim, clocks, passwords, power.
//!
//! Readers do not take it. Whoever waits too long learns who holds it and since when.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::TICK;
use crate::system::error::Error;

/// The lock.
#[derive(Debug, Default)]
pub struct Exclusive {
    holder: Mutex<Option<Holder>>,
    released: Condvar,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    command: &'static str,
    since: Instant,
}

/// Holds the lock as long as it lives.
#[derive(Debug)]
pub struct Held<'a>(&'a Exclusive);

impl Exclusive {
    /// Takes the lock for `command`, or says after `patience` who holds it.
    pub fn acquire(&self, command: &'static str, patience: Duration) -> Result<Held<'_>, Error> {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = patience;
        // Bit by bit: a pause of the machine, in which nobody could release it, is to cost one of them only.
        while holder.is_some() && !left.is_zero() {
            let bit = left.min(TICK);
            holder = self.released.wait_timeout(holder, bit).unwrap_or_else(PoisonError::into_inner).0;
            left -= bit;
        }
        if let Some(Holder { command: other, since }) = *holder {
            return Err(Error::new(format!(
                "{command} was not started: {other} has been running for {} s, and both change the machine",
                since.elapsed().as_secs()
            )));
        }
        *holder = Some(Holder { command, since: Instant::now() });
        Ok(Held(self))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::Exclusive;
    use std::time::Duration;

    #[test]
    fn the_second_one_learns_who_holds_the_lock() {
        let lock = Exclusive::default();
        let held = lock.acquire("guest-fstrim", Duration::ZERO).unwrap();
        let error = lock.acquire("guest-set-time", Duration::from_millis(1)).unwrap_err();
        assert!(error.desc.starts_with("guest-set-time was not started: guest-fstrim has been running"), "{error:?}");
        drop(held);
        assert!(lock.acquire("guest-set-time", Duration::ZERO).is_ok());
    }

    #[test]
    fn a_panicking_holder_releases_the_lock() {
        let lock = Exclusive::default();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = lock.acquire("guest-fstrim", Duration::ZERO).unwrap();
            panic!("on purpose");
        }));
        assert!(result.is_err());
        assert!(lock.acquire("guest-set-time", Duration::ZERO).is_ok());
    }
}
