//! Gives the free space of file systems back to their disks.
//!
//! Each file system is worked on by a thread of its own, one after the other. One that does not end in [`PATIENCE`] is
//! left to its thread, and as long as that hangs nobody asks the same file system again.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use qga_protocol::storage::{TrimReport, TrimResult};
use qga_sys::filesystem::TrimRange;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::system::blocking::BlockingThreads;
use crate::system::error::{Error, cause_text};
use crate::system::mounts::{self, Mount};
use crate::system::root::Root;

/// How long a file system may take. Large ones on slow disks take many minutes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Threads that trim, one for a mount point.
static TRIMMING: BlockingThreads = BlockingThreads::new("trim", 1, 64);

/// What becomes of a file system with these mounts.
type Trim = fn(&[Mount], u64) -> Result<TrimRange, String>;

/// Trims the file systems that have a block device. The last mounted is told first: clients know it like that.
/// `progress` is called after each.
pub fn trim(root: &Root, minimum_bytes: u64, progress: impl Fn()) -> Result<TrimReport, Error> {
    // The system call can only speak of the machine that it is made on.
    let of_one: Trim = if root.is_host() { of_one } else { |_, _| Err(UNSUPPORTED.to_owned()) };
    let mounted = mounts::all_with_devices(root)?;
    let mut paths = Vec::with_capacity(mounted.len());
    for mounts in mounted {
        let Some(mount) = mounts.first().cloned() else { continue };
        let outcome = within(PATIENCE, &mount.mountpoint, mounts, minimum_bytes, of_one);
        if let Err(error) = &outcome {
            log::info!("the file system at '{}' was not trimmed: {error}", mount.mountpoint.display());
        }
        progress();
        let path = mount.mountpoint.to_string_lossy().into_owned();
        paths.push(match outcome {
            Ok(range) => TrimResult {
                path,
                trimmed: Some(range.length as i64),
                minimum: Some(range.minimum as i64),
                error: None,
            },
            Err(error) => TrimResult { path, trimmed: None, minimum: None, error: Some(error) },
        });
    }
    paths.reverse();
    Ok(TrimReport { paths })
}

/// The error of a file system or of a disk that knows nothing of free space.
const UNSUPPORTED: &str = "trim not supported";

fn of_one(mounts: &[Mount], minimum_bytes: u64) -> Result<TrimRange, String> {
    let told = |act: &str, cause: &io::Error| format!("{act}: {}", cause_text(cause));
    let Some((first, others)) = mounts.split_first() else { return Err(UNSUPPORTED.to_owned()) };
    // What is mounted may be anything, even something that waits for somebody at the other end when it is opened. What
    // is mounted over it is another file system, with a line of its own.
    let file = first.open(others, OFlags::NONBLOCK | OFlags::NOCTTY).map_err(|cause| told("failed to open", &cause))?;
    let file = File::from(file);
    let mut range = TrimRange { start: 0, length: u64::MAX, minimum: minimum_bytes };
    match qga_sys::filesystem::trim(&file, &mut range) {
        Ok(()) => Ok(range),
        Err(cause)
            if [Errno::NOTTY, Errno::OPNOTSUPP]
                .map(|errno| Some(errno.raw_os_error()))
                .contains(&cause.raw_os_error()) =>
        {
            Err(UNSUPPORTED.to_owned())
        }
        Err(cause) => Err(told("failed to trim", &cause)),
    }
}

/// Trims one file system, and gives up on it after `patience`.
fn within(
    patience: Duration,
    mountpoint: &Path,
    mounts: Vec<Mount>,
    minimum_bytes: u64,
    of_one: Trim,
) -> Result<TrimRange, String> {
    let work = move || of_one(&mounts, minimum_bytes);
    TRIMMING
        .run(&mountpoint.to_string_lossy(), patience, work)
        .unwrap_or_else(|not_done| Err(format!("failed to trim: {not_done}")))
}

#[cfg(test)]
mod tests {
    use super::{TrimRange, of_one, trim, within};
    use crate::system::mounts::{self, Mount};
    use crate::system::root::Root;
    use std::cell::Cell;
    use std::fs;
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn each_device_is_told_once_and_the_last_mounted_first() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path("/proc/self")).unwrap();
        let mounts = "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n2 1 0:5 / /proc rw - proc proc rw\n\
                      3 1 254:2 / /a\\040b rw - xfs /dev/vda2 rw\n4 1 254:1 /x /bound rw - ext4 /dev/vda1 rw\n";
        fs::write(root.path("/proc/self/mountinfo"), mounts).unwrap();
        let steps = Cell::new(0);
        let report = trim(&root, 0, || steps.set(steps.get() + 1)).unwrap();
        let told: Vec<_> = report.paths.iter().map(|result| (result.path.as_str(), result.error.as_deref())).collect();
        assert_eq!(told, [("/a b", Some("trim not supported")), ("/", Some("trim not supported"))]);
        assert_eq!(steps.get(), 2);
    }

    #[test]
    fn what_cannot_be_trimmed_is_told_in_the_originals_words() {
        let all = mounts::all(&Root::host()).unwrap();
        let proc = all.into_iter().rfind(|mount| mount.mountpoint == Path::new("/proc")).unwrap();
        let gone = Mount { mountpoint: "/nonexistent".into(), ..proc.clone() };
        let covered = Mount { id: 0, device: mounts::DeviceNumber { major: 254, minor: 1_000_000 }, ..proc.clone() };
        let error = |mounts: &[Mount]| of_one(mounts, 0).unwrap_err();
        assert_eq!(error(std::slice::from_ref(&gone)), "failed to open: No such file or directory");
        assert_eq!(error(std::slice::from_ref(&proc)), "trim not supported");
        assert_eq!(error(std::slice::from_ref(&covered)), "failed to open: another file system is mounted over it");
        assert_eq!(error(&[covered, gone, proc.clone()]), "trim not supported");
        assert_eq!(within(LONG, Path::new("/proc"), vec![proc], 0, of_one).unwrap_err(), "trim not supported");
    }

    #[test]
    fn a_file_system_that_hangs_is_left_and_not_asked_again_until_it_answers() {
        static DEAD: Mutex<()> = Mutex::new(());
        fn hang(_: &[Mount], minimum: u64) -> Result<TrimRange, String> {
            drop(DEAD.lock().map_err(|_| "the test has failed".to_owned())?);
            Ok(TrimRange { start: 0, length: 1, minimum })
        }
        let point = Path::new("/hangs");
        let dead = DEAD.lock().unwrap();
        let error = within(Duration::from_millis(50), point, Vec::new(), 0, hang).unwrap_err();
        assert_eq!(error, "failed to trim: no end after 0 s");
        let error = within(LONG, point, Vec::new(), 0, hang).unwrap_err();
        assert_eq!(error, "failed to trim: an earlier attempt has not ended yet");
        drop(dead);
        let trimmed = loop {
            match within(LONG, point, Vec::new(), 7, hang) {
                Err(_) => std::thread::yield_now(),
                Ok(trimmed) => break trimmed,
            }
        };
        assert_eq!(trimmed, TrimRange { start: 0, length: 1, minimum: 7 });
    }
}
