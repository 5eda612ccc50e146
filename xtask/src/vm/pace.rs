//! How slow this machine runs guests, and how long to wait because of it.
//!
//! A guest without KVM takes 12 s to boot on an idle machine and many times that beside other work. Each boot is measured,
//! and every wait for something in a guest follows the slowest one. A wait that is longer than needed costs time only
//! when something has failed already.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a boot takes on a machine that does nothing else.
const USUAL_BOOT: Duration = Duration::from_secs(15);
/// A machine slower than this is not waited for.
const SLOWEST: u32 = 40;
/// The machine may become busier after the last boot.
const RESERVE: u32 = 3;

/// The slowest boot of this run, in multiples of [`USUAL_BOOT`].
static SLOWNESS: AtomicU32 = AtomicU32::new(1);

/// A boot is waited for as long as the slowest machine needs, since nothing is known before the first one.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(USUAL_BOOT.as_secs() * SLOWEST as u64);

/// Takes note of what a boot took.
pub fn note_boot(took: Duration) {
    SLOWNESS.fetch_max(slowness_of(took), Ordering::Relaxed);
}

fn slowness_of(boot: Duration) -> u32 {
    u32::try_from(boot.as_secs().div_ceil(USUAL_BOOT.as_secs())).unwrap_or(SLOWEST).clamp(1, SLOWEST)
}

/// How many times slower than an idle machine this one is, 1 or more: for deadlines that are set in a guest and must not
/// be over before the case has looked.
pub fn slowness() -> u32 {
    SLOWNESS.load(Ordering::Relaxed)
}

/// How long to wait here for what takes at most `usual` on an idle machine.
pub fn patience(usual: Duration) -> Duration {
    usual * slowness() * RESERVE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_of_two_hundred_seconds_makes_every_wait_longer() {
        assert_eq!(slowness_of(Duration::ZERO), 1);
        assert_eq!(slowness_of(Duration::from_secs(15)), 1);
        assert_eq!(slowness_of(Duration::from_secs(16)), 2);
        assert_eq!(slowness_of(Duration::from_secs(200)), 14);
        assert_eq!(slowness_of(Duration::MAX), SLOWEST);
        assert!(patience(Duration::from_secs(20)) >= Duration::from_secs(60));
    }
}
