//! What an earlier agent has left: file systems that it froze, hooks that wait for their `thaw`.

use std::path::Path;
use std::time::{Duration, Instant};

use super::freezer::{Hold, Settings};
use super::hooks::{Hooks, Ran};
use super::linux::guardian::{Deadline, Guardian, Met, TakenOver};
use super::linux::marker::{self, Marker};
use super::linux::opening::{self, Opened};
use super::linux::{choice, meeting};
use crate::config::Failure;
use crate::error::Error;
use crate::linux::mounts;
use crate::root::Root;

/// How long a new agent may take to open again what an earlier one has frozen.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

impl Hold {
    /// What an earlier agent has frozen: from its guardian, or opened anew.
    pub(super) fn resumed(root: &Root, settings: &Settings, marker: &Marker) -> Result<Self, Failure> {
        let held = |frozen: Vec<Opened>, guardian, deadline| Self {
            opened: frozen.clone(),
            frozen,
            guardian,
            ran: Ran::of(marker.hooks.clone()),
            has_marker: true,
            frozen_at: marker.frozen_at,
            deadline,
            ..Self::default()
        };
        match Guardian::meet(&meeting(&settings.marker)) {
            Met::Guardian(TakenOver { guardian, opened, deadline }) => {
                // Of a freeze that was still at work no host knows: it ends at once.
                let deadline = match deadline {
                    Deadline::AtWork(_) => Some(marker::now()),
                    Deadline::Frozen(deadline) => deadline,
                };
                Ok(held(opened, Some(guardian), deadline))
            }
            Met::Owned => Err(Failure::new(format!(
                "another agent holds file systems frozen: '{}' is its state file (-t names another directory for it)",
                settings.marker.display()
            ))),
            Met::Nobody => {
                let frozen = opened_again(root, marker);
                // Without a meeting point: making that could wait for what is frozen.
                let guardian = Guardian::start(&frozen, Deadline::Frozen(marker.deadline), &settings.marker, None).ok();
                Ok(held(frozen, guardian, marker.deadline))
            }
        }
    }
}

/// What a state file names, opened by its device: it may be mounted elsewhere by now.
fn opened_again(root: &Root, marker: &Marker) -> Vec<Opened> {
    let Ok(mounts) = mounts::all(root) else { return Vec::new() };
    let mut steps = choice::choose(root, &mounts, None, &choice::unasked).steps;
    // The order of the freeze.
    steps.retain(|step| marker.mounts.iter().any(|(device, _)| *device == step.device));
    steps.sort_by_key(|step| marker.mounts.iter().position(|(device, _)| *device == step.device));
    open_each(steps)
}

/// Every file system that could be frozen, opened.
pub fn all_opened(root: &Root) -> Result<Vec<Opened>, Error> {
    if !root.is_host() {
        return Ok(Vec::new());
    }
    Ok(open_each(choice::choose(root, &mounts::all(root)?, None, &choice::unasked).steps))
}

/// Opens what can be opened: one that cannot must not keep the others frozen.
fn open_each(steps: Vec<choice::Step>) -> Vec<Opened> {
    let started = Instant::now();
    let watch = || if started.elapsed() < OPEN_PATIENCE { Ok(()) } else { Err(Error::new("it does not open")) };
    let open = |step: choice::Step| match opening::open(vec![step.clone()], &watch) {
        Ok(found) if !found.opened.is_empty() => found.opened,
        Ok(_) => {
            log::warn!("thaw: {}: something else is mounted over it", step.name().display());
            Vec::new()
        }
        Err(error) => {
            log::warn!("thaw: {}", error.desc);
            Vec::new()
        }
    };
    steps.into_iter().flat_map(open).collect()
}

/// Runs the hooks that an agent before this one has left without their `thaw`; then the file that named them says
/// `after`, or is removed.
pub fn run_left_hooks(path: &Path, marker: Marker, after: Option<Marker>) {
    let path = path.to_owned();
    let started = opening::start_thread(move || {
        let hooks = Hooks::new(marker.script.clone(), None, marker.hook_patience);
        if let Err(error) = hooks.thaw(&Root::host(), Ran::of(marker.hooks)) {
            log::warn!("thaw: {}", error.desc);
        }
        match after {
            Some(after) => drop(after.write(&path)),
            None => drop(std::fs::remove_file(&path)),
        }
    });
    if let Err(error) = started {
        log::warn!("hooks wait for their thaw: {}", error.desc);
    }
}
