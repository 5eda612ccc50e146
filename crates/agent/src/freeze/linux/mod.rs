//! Freezing on Linux: what is chosen, how it is done, and who watches over it.

pub mod apply;
pub mod guardian;
pub mod held;
pub mod plan;
pub mod prepare;
pub mod state_file;

use std::path::{Path, PathBuf};

/// Where an agent that comes later meets the guardian.
pub fn meeting(marker: &Path) -> PathBuf {
    marker.with_file_name("qga.state.guardian")
}

/// What a marker is renamed to when what it tells of was thawed without a `guest-fsfreeze-thaw`: the next agent tells it
/// to the host.
pub fn thawed_early(marker: &Path) -> PathBuf {
    marker.with_file_name("qga.state.thawed")
}

/// Which agent the state directory belongs to.
pub fn ownership(marker: &Path) -> PathBuf {
    marker.with_file_name("qga.state.lock")
}

/// The record of the hook that is at work.
pub fn record(marker: &Path) -> PathBuf {
    marker.with_file_name("qga.state.hook")
}
