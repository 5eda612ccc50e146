//! Makes an agent's command stuck without any privilege: a program that cannot start.
//!
//! This process holds a lease on a script and does not give it back when the agent's `execve` asks for it. The kernel
//! lets the agent wait until its own time limit for leases, 45 s by default.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A program whose start waits as long as this value lives.
pub struct StuckProgram {
    path: PathBuf,
    _held: File,
}

impl StuckProgram {
    /// Creates it in this folder.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("stuck");
        fs::write(&path, "#!/bin/true\n").context("cannot write the script")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("cannot make the script executable")?;
        let held = File::open(&path).context("cannot open the script")?;
        qga_sys::lease::hold_write_lease(&held).context("cannot take a lease on the script")?;
        Ok(Self { path, _held: held })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
