//! Before a freeze: opens the chosen file systems and writes out what is dirty, while nothing stands still yet.
//! Whatever hangs meanwhile hangs a thread of its own; who waits here can always stop waiting.
//!
//! A file system is opened once and held from before its freeze until after its thaw: so it is reached even if
//! something else is mounted over it, or if it is moved or unmounted, in between.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::held::Held;
use super::plan::Step;
use crate::system::blocking::STACK_BYTES;
use crate::system::error::{Error, cause_text};
use crate::system::mounts::{self, DeviceNumber, Mount};
use crate::system::root::Root;

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
/// How often a file system that is not where it was chosen is looked for again.
const LOOKS_MAX: usize = 3;
/// How long the list of mounts may take.
const LIST_PATIENCE: Duration = Duration::from_secs(30);
/// Most threads that may wait for disks on behalf of freezes. Those of a disk that hangs stay until it answers, whatever
/// becomes of the freeze that started them.
const HELPERS_MAX: usize = 64;
/// Those that there are.
static HELPERS: Helpers = Helpers { count: AtomicUsize::new(0) };

/// An open file system.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The number that the kernel lists it with.
    pub device: DeviceNumber,
    /// Where it is mounted.
    pub name: PathBuf,
    /// Any file of it: the directory that it is mounted on.
    pub held: Arc<Held>,
}

/// Asked while something is waited for; an error ends the waiting.
pub type Watch<'a> = &'a dyn Fn() -> Result<(), Error>;

/// What became of the chosen file systems.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that are held now, in the order of the steps.
    pub opened: Vec<Opened>,
    /// Those that are hidden by others, and cannot be reached.
    pub hidden: Vec<PathBuf>,
    /// Those that are mounted nowhere any more.
    pub gone: Vec<PathBuf>,
}

/// Opens the file systems, side by side. What is not where it was is looked for in the list of mounts again: it may be
/// gone, or elsewhere.
pub fn open(steps: Vec<Step>, watch: Watch<'_>) -> Result<Found, Error> {
    open_by(steps, watch, || mounts::all(&Root::host()))
}

fn open_by(
    steps: Vec<Step>,
    watch: Watch<'_>,
    list: impl Fn() -> Result<Vec<Mount>, Error> + Send + Copy + 'static,
) -> Result<Found, Error> {
    let mut found = Found::default();
    let mut opened: Vec<(usize, Opened)> = Vec::new();
    let mut pending: Vec<(usize, Step)> = steps.into_iter().enumerate().collect();
    for look in 1.. {
        let names: Vec<_> = pending.iter().map(|(_, step)| step.name().to_owned()).collect();
        let results = side_by_side(pending.clone(), |(_, step)| open_one(step), &names, "open", watch)?;
        let mut missed = Vec::new();
        for ((index, step), result) in pending.into_iter().zip(results) {
            match result {
                Ok(Some(file)) => {
                    let name = step.name().to_owned();
                    opened.push((index, Opened { device: step.device, name, held: Arc::new(file) }));
                }
                Ok(None) => missed.push((index, step, None)),
                Err(error) => missed.push((index, step, Some(error))),
            }
        }
        if missed.is_empty() {
            break;
        }
        let now = in_time("read the list of mounts", LIST_PATIENCE, watch, list)??;
        pending = Vec::new();
        for (index, step, error) in missed {
            let at = now.iter().filter(|mount| mount.device == step.device);
            let mounts: Vec<_> = at.map(|mount| (mount.id, mount.mountpoint.clone())).collect();
            if mounts.is_empty() {
                found.gone.push(step.name().to_owned());
            } else if mounts != step.mounts && look < LOOKS_MAX {
                pending.push((index, Step { mounts, ..step }));
            } else if let Some(error) = error {
                return Err(Error::io(format!("failed to open {}", step.name().display()), &error));
            } else {
                found.hidden.push(step.name().to_owned());
            }
        }
        if pending.is_empty() {
            break;
        }
    }
    opened.sort_by_key(|(index, _)| *index);
    found.opened = opened.into_iter().map(|(_, opened)| opened).collect();
    Ok(found)
}

/// Writes out what is dirty, in at most this many rounds, until a round has little to do.
pub fn write_out(opened: &[Opened], rounds: usize, watch: Watch<'_>) -> Result<(), Error> {
    let names: Vec<_> = opened.iter().map(|opened| opened.name.clone()).collect();
    for _ in 0..rounds {
        let started = Instant::now();
        let sync = |opened: &Opened| Ok(rustix::fs::syncfs(&*opened.held.file()?)?);
        let results: Vec<io::Result<()>> = side_by_side(opened.to_vec(), sync, &names, "write out", watch)?;
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

/// A file system, held; `None` if each of its mount points leads to another one.
fn open_one(step: &Step) -> io::Result<Option<Held>> {
    let mut failed = None;
    for (id, mountpoint) in &step.mounts {
        let mut options = File::options();
        // A mount point may be any kind of file, and a FIFO would wait for its other end.
        options.read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32);
        match options.open(mountpoint) {
            Ok(file) if mounts::lies_on(&file, step.device, *id) => return Ok(Some(Held::without_mount(file))),
            Ok(_) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(None), Err)
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
        start_helper(move || {
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
    start_helper(move || drop(sender.send(work())))?;
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

/// Threads that wait for disks on behalf of freezes.
struct Helpers {
    count: AtomicUsize,
}

impl Helpers {
    fn start(&'static self, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        /// Counts itself out, also if the work panics or does not begin.
        struct Counted(&'static Helpers);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self);
        if before >= HELPERS_MAX {
            return Err(Error::new(format!(
                "{HELPERS_MAX} threads of earlier freezes still wait for disks that do not answer: nothing more is \
                 begun until some of them do"
            )));
        }
        start_thread(move || {
            let _counted = counted;
            work();
        })
    }
}

/// Starts a thread that waits for a disk on behalf of a freeze; an error if too many of former ones still do.
pub fn start_helper(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    HELPERS.start(work)
}

/// Starts a thread for something that can hang.
pub fn start_thread(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let builder = std::thread::Builder::new().name("freezing".to_owned()).stack_size(STACK_BYTES);
    builder.spawn(work).map(drop).map_err(|error| Error::io("failed to start a thread", &error))
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
