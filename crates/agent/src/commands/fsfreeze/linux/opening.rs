//! Before a freeze: opens the chosen file systems and writes out what is dirty, while nothing stands still yet.
//! Whatever hangs meanwhile hangs a thread of its own; who waits here can always stop waiting.
//!
//! A file system is opened once and kept open from before its freeze until after its thaw: so it is reached even if
//! something else is mounted over it, or if it is moved, in between.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::choice::Step;
use crate::error::{Error, cause_text};
use crate::lane::STACK_BYTES;
use crate::linux::mounts::DeviceNumber;

/// File systems that are written out at the same time.
const SIDE_BY_SIDE_MAX: usize = 16;
/// How often a wait looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(20);
/// How long the writing out of one round may take: a slow disk may have much to write, and nothing stands still yet.
const WRITE_OUT_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Written out as long as this or longer, new writes have come in worth writing out once more.
const WORTH_A_ROUND: Duration = Duration::from_millis(200);
/// Rounds of writing out, while something else writes as fast as the disk.
pub const ROUNDS_MAX: usize = 4;
/// An open file system.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The number that the kernel lists it with.
    pub device: DeviceNumber,
    /// Where it is mounted.
    pub name: PathBuf,
    /// Any file of it: the directory that it is mounted on.
    pub file: Arc<File>,
}

/// Asked while something is waited for; an error ends the waiting.
pub type Watch<'a> = &'a dyn Fn() -> Result<(), Error>;

/// Opens the file systems and writes out what is dirty, side by side, until there is little left. Those that are hidden
/// by others are not reached; they are named in the second list.
pub fn open(steps: Vec<Step>, watch: Watch<'_>) -> Result<(Vec<Opened>, Vec<PathBuf>), Error> {
    let names: Vec<_> = steps.iter().map(|step| step.name().to_owned()).collect();
    let devices: Vec<_> = steps.iter().map(|step| step.device).collect();
    let found = side_by_side(steps, open_one, &names, "open", watch)?;
    let (mut opened, mut hidden) = (Vec::new(), Vec::new());
    for ((name, device), result) in names.into_iter().zip(devices).zip(found) {
        match result {
            Ok(Some(file)) => opened.push(Opened { device, name, file: Arc::new(file) }),
            Ok(None) => hidden.push(name),
            Err(error) => return Err(Error::io(format!("failed to open {}", name.display()), &error)),
        }
    }
    Ok((opened, hidden))
}

/// Writes out what is dirty, in at most this many rounds, until a round has little to do.
pub fn write_out(opened: &[Opened], rounds: usize, watch: Watch<'_>) -> Result<(), Error> {
    let names: Vec<_> = opened.iter().map(|opened| opened.name.clone()).collect();
    for _ in 0..rounds {
        let started = Instant::now();
        let sync = |opened: &Opened| rustix::fs::syncfs(&*opened.file).map_err(io::Error::from);
        let results = side_by_side(opened.to_vec(), sync, &names, "write out", watch)?;
        for (name, result) in names.iter().zip(results) {
            // Whether that matters the freeze itself will tell.
            if let Err(error) = result {
                log::warn!("freeze: failed to write out {}: {}", name.display(), cause_text(&error));
            }
        }
        if started.elapsed() < WORTH_A_ROUND {
            break;
        }
    }
    Ok(())
}

/// A file system's file; `None` if each of its mount points leads to another one.
fn open_one(step: &Step) -> io::Result<Option<File>> {
    let mut failed = None;
    for (id, mountpoint) in &step.mounts {
        let mut options = File::options();
        // A mount point may be any kind of file, and a FIFO would wait for its other end.
        options.read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32);
        match options.open(mountpoint) {
            Ok(file) if leads_to(&file, *id, step) => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// Whether an open file lies on the file system: by its device, or by its mount where files have devices of their own.
fn leads_to(file: &File, mount_id: u32, step: &Step) -> bool {
    let is_device = |found: &std::fs::Metadata| {
        (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev())) == (step.device.major, step.device.minor)
    };
    file.metadata().is_ok_and(|found| is_device(&found)) || mount_of(file) == Some(mount_id)
}

/// The mount that a file was opened through: `proc_pid_fdinfo(5)`.
fn mount_of(file: &File) -> Option<u32> {
    use std::os::fd::AsRawFd as _;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// Does the same with each item on some threads; the results are in the items' order.
fn side_by_side<Item: Send + 'static, Found: Send + 'static>(
    items: Vec<Item>,
    work: impl Fn(&Item) -> Found + Send + Sync + Copy + 'static,
    names: &[PathBuf],
    act: &str,
    watch: Watch<'_>,
) -> Result<Vec<Found>, Error> {
    let started = Instant::now();
    let count = items.len();
    let (sender, receiver) = mpsc::channel();
    let pending = Arc::new(Mutex::new(items.into_iter().enumerate()));
    for _ in 0..count.min(SIDE_BY_SIDE_MAX) {
        let (sender, pending) = (sender.clone(), Arc::clone(&pending));
        start_thread(move || {
            loop {
                let next = pending.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((index, item)) = next else { break };
                if sender.send((index, work(&item))).is_err() {
                    // Nobody waits any more.
                    break;
                }
            }
        })?;
    }
    drop(sender);
    let mut found: Vec<Option<Found>> = (0..count).map(|_| None).collect();
    loop {
        match receiver.recv_timeout(TICK) {
            Ok((index, result)) => found[index] = Some(result),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => watch()?,
        }
        if started.elapsed() > WRITE_OUT_PATIENCE {
            break;
        }
    }
    match found.iter().position(Option::is_none) {
        None => Ok(found.into_iter().flatten().collect()),
        Some(index) => Err(Error::new(format!(
            "failed to {act} {}: it takes longer than {} s",
            names[index].display(),
            WRITE_OUT_PATIENCE.as_secs()
        ))),
    }
}

/// Does something that can hang, and waits for it no longer than wanted.
pub fn in_time<Found: Send + 'static>(
    act: &str,
    patience: Duration,
    watch: Watch<'_>,
    work: impl FnOnce() -> Found + Send + 'static,
) -> Result<Found, Error> {
    let started = Instant::now();
    let (sender, receiver) = mpsc::channel();
    start_thread(move || drop(sender.send(work())))?;
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(found) => return Ok(found),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::new(format!("failed to {act}"))),
            Err(RecvTimeoutError::Timeout) => watch()?,
        }
        if started.elapsed() > patience {
            return Err(Error::new(format!("failed to {act} within {} s", patience.as_secs())));
        }
    }
}

/// Starts a thread for something that can hang.
pub fn start_thread(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let builder = std::thread::Builder::new().name("freezing".to_owned()).stack_size(STACK_BYTES);
    builder.spawn(work).map(drop).map_err(|error| Error::io("failed to start a thread", &error))
}
