//! The state of a guest that has booted, from which the other guests of a run go on.
//!
//! A guest without KVM takes 12 s to boot on an idle machine and minutes beside others. So the first guest of a run with
//! several cases boots, comes to rest and is saved, and all guests are copies of it. The state has our agent in it, which
//! changes with nearly every run, and is not kept beyond the run.
//!
//! Guests with other hardware boot by themselves.

use super::guest::Guest;
use super::machine::{ROOT_DISK, Saved};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A saved guest.
pub struct Snapshot {
    saved: Saved,
    /// Goes with this value.
    _folder: tempfile::TempDir,
}

/// Whether there is to be one, and what became of it. The error is why guests boot all the same.
static SNAPSHOT: OnceLock<Result<Snapshot, String>> = OnceLock::new();
/// How many guests went on from it, and how many have booted.
static RESTORED: AtomicUsize = AtomicUsize::new(0);
static BOOTED: AtomicUsize = AtomicUsize::new(0);

impl Snapshot {
    /// That of this run; the first caller makes it and the others wait for it. Without one it is printed why.
    pub fn of_this_run(our_agent: &Path) -> Option<&'static Saved> {
        let snapshot = SNAPSHOT.get_or_init(|| {
            Self::take(our_agent).map_err(|error| {
                println!("vm: guests boot one by one, because there is no snapshot: {error:#}");
                format!("{error:#}")
            })
        });
        snapshot.as_ref().ok().map(|snapshot| &snapshot.saved)
    }

    fn take(our_agent: &Path) -> Result<Self> {
        let mut guest = Guest::boot(&super::guest::Boot::usual(our_agent))?;
        let started = Instant::now();
        // What starts late would start in each copy, and the copies want the processors for themselves.
        guest.shell_result("timeout 600 systemctl is-system-running --wait; udevadm settle; sync")?;
        let folder = tempfile::Builder::new().prefix("qga-vm-snapshot-").tempdir()?;
        let saved = Saved { disk: folder.path().join(ROOT_DISK), memory: folder.path().join("memory") };
        guest.machine().save(&saved.memory).context("saving a guest")?;
        // QEMU has written all of it out, and does not touch it any more.
        let disk = guest.folder().join(ROOT_DISK);
        fs::rename(&disk, &saved.disk).or_else(|_| fs::copy(&disk, &saved.disk).map(drop))?;
        let bytes = fs::metadata(&saved.memory)?.len() + fs::metadata(&saved.disk)?.len();
        println!("vm: saved the guest in {} s: {} MiB", started.elapsed().as_secs(), bytes >> 20);
        Ok(Self { saved, _folder: folder })
    }
}

/// Counts a guest for [`summary`].
pub fn note(is_restored: bool) {
    let count = if is_restored { &RESTORED } else { &BOOTED };
    count.fetch_add(1, Ordering::Relaxed);
}

/// How the guests of this run came up, and why there was no snapshot if there was to be one.
pub fn summary() -> String {
    let (restored, booted) = (RESTORED.load(Ordering::Relaxed), BOOTED.load(Ordering::Relaxed));
    let counts = format!("guests: {booted} booted, {restored} restored from a snapshot");
    match SNAPSHOT.get() {
        Some(Err(error)) => format!("{counts}; NO SNAPSHOT: {error}"),
        _ => counts,
    }
}
