//! File systems on loop devices: made for one measurement, and gone with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::namespace::{output, run};

/// Small, but more than the least that mke2fs accepts.
const IMAGE_BYTES: u64 = 1 << 20;
/// Removes loop devices that nobody uses by their numbers: there is a system call, but no program for it everywhere.
const REMOVE: &str = "open(my $control, '+<', '/dev/loop-control') or exit; ioctl($control, 0x4C81, 0 + $_) for @ARGV;";

/// Mounted file systems, each on a device of its own. The caller is in a mount namespace that nobody else is in.
pub struct LoopFileSystems {
    folder: TempDir,
    /// A file system to copy.
    master: PathBuf,
    mounted: Vec<PathBuf>,
    /// Names of the devices that have been made, not only used.
    devices: Vec<PathBuf>,
}

impl LoopFileSystems {
    /// None yet.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("qga-loops-").tempdir().context("cannot make a folder")?;
        let master = folder.path().join("image");
        let file = fs::File::create(&master).context("cannot make an image")?;
        file.set_len(IMAGE_BYTES).context("cannot make an image")?;
        run(
            "mke2fs",
            &[
                "-q".as_ref(),
                "-F".as_ref(),
                "-t".as_ref(),
                "ext4".as_ref(),
                "-O".as_ref(),
                "^has_journal".as_ref(),
                master.as_path(),
            ],
        )?;
        Ok(Self { folder, master, mounted: Vec::new(), devices: Vec::new() })
    }

    /// Mounts more of them until there are `count`.
    pub fn grow(&mut self, count: usize) -> Result<()> {
        for number in self.mounted.len()..count {
            let image = self.folder.path().join(format!("image{number}"));
            let place = self.folder.path().join(format!("mounted{number}"));
            fs::copy(&self.master, &image).context("cannot copy an image")?;
            fs::create_dir(&place).context("cannot make a mount point")?;
            let before = devices();
            run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_path(), &place])?;
            self.mounted.push(place);
            let device = output(
                "losetup",
                &[
                    "--noheadings".as_ref(),
                    "--output".as_ref(),
                    "NAME".as_ref(),
                    "--associated".as_ref(),
                    image.as_path(),
                ],
            )?;
            let device = PathBuf::from(device.trim());
            if !before.contains(&device) {
                self.devices.push(device);
            }
        }
        Ok(())
    }
}

fn devices() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries.map(|entry| Path::new("/dev").join(entry.file_name())).collect()
}

impl Drop for LoopFileSystems {
    fn drop(&mut self) {
        // A device is free again as soon as nothing of it is mounted.
        for place in &self.mounted {
            let _ = run("umount", &[place]);
        }
        let numbers = self.devices.iter().filter_map(|device| device.to_str()?.strip_prefix("/dev/loop"));
        // One that stays is empty, and the next measurement uses it.
        let _ = Command::new("perl").args(["-e", REMOVE]).args(numbers).stdin(Stdio::null()).status();
    }
}
