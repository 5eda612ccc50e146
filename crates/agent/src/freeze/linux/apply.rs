//! The freeze itself and the thaw: one file system after the other, in order, each with its time recorded.
//!
//! FIFREEZE waits for the disk and cannot be called off. So a thread does it, and the one that asked waits no longer than
//! it wants to: what the thread has frozen until then is thawed by the asker, and what it freezes later by the thread.

use std::io;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use qga_sys::filesystem;
use rustix::io::Errno;

use super::prepare::{Opened, Watch, in_time, start_helper, start_thread};
use crate::system::error::{Error, cause_text};
use crate::system::log::audit;

/// How often a wait looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(20);
/// How long all file systems together may take to freeze: from the first one on, programs stand still.
const FREEZE_PATIENCE: Duration = Duration::from_secs(60);
/// How long one may take to thaw before the others go on without it.
const THAW_PATIENCE: Duration = Duration::from_secs(5);

/// How often what could not be thawed is tried again.
pub const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// What the thread has done, for the one who waits.
#[derive(Default)]
struct Progress {
    results: Vec<(io::Result<()>, Duration)>,
    is_given_up: bool,
}

#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// What a freeze has come to.
#[derive(Debug)]
pub struct Freeze {
    /// What is frozen now, whatever the outcome.
    pub frozen: Vec<Opened>,
    /// What may still become frozen. Its thread thaws it then; the receiver fails when the thread has ended.
    pub late: Option<(Opened, Receiver<()>)>,
    /// Why it ended before all were frozen.
    pub outcome: Result<(), Error>,
}

/// Freezes in the given order.
pub fn freeze(opened: &[Opened], watch: Watch<'_>) -> Freeze {
    freeze_by(opened, watch, FREEZE_PATIENCE, |opened| filesystem::freeze(&*opened.held.file()?), thaw_once)
}

fn freeze_by(
    opened: &[Opened],
    watch: Watch<'_>,
    patience: Duration,
    freeze_one: impl Fn(&Opened) -> io::Result<()> + Send + 'static,
    thaw_one: impl Fn(&Opened) -> io::Result<()> + Send + 'static,
) -> Freeze {
    let shared = Arc::new(Shared::default());
    let (theirs, all) = (Arc::clone(&shared), opened.to_vec());
    let started = Instant::now();
    let (is_at_work, has_ended) = mpsc::channel();
    let thread = start_helper(move || {
        let _is_at_work = is_at_work;
        for opened in &all {
            let begun = Instant::now();
            let result = freeze_one(opened);
            let is_bad = result.as_ref().is_err_and(|error| !is_harmless(error));
            let mut progress = theirs.progress.lock().unwrap_or_else(PoisonError::into_inner);
            if progress.is_given_up {
                drop(progress);
                if result.is_ok() {
                    let _ = thaw_one(opened);
                    log::warn!("freeze: {} was frozen too late, and is thawed", opened.name.display());
                }
                return;
            }
            progress.results.push((result, begun.elapsed()));
            theirs.changed.notify_all();
            if is_bad {
                return;
            }
        }
    });
    if let Err(error) = thread {
        return Freeze { frozen: Vec::new(), late: None, outcome: Err(error) };
    }
    let mut frozen = Vec::new();
    let mut progress = shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = 0;
    let outcome = loop {
        while let Some((result, took)) = progress.results.get(taken) {
            let opened = &opened[taken];
            taken += 1;
            if let Err(error) = note(opened, result, *took, &mut frozen) {
                progress.is_given_up = true;
                return Freeze { frozen, late: None, outcome: Err(error) };
            }
        }
        let Some(next) = opened.get(taken) else { break Ok(()) };
        let why_not = watch().and_then(|()| {
            if started.elapsed() < patience {
                return Ok(());
            }
            let name = next.name.display();
            Err(Error::new(format!(
                "failed to freeze {name}: the file systems did not come to rest within {} s, so they were thawed",
                patience.as_secs()
            )))
        });
        if let Err(error) = why_not {
            break Err((error, next.clone()));
        }
        progress = shared.changed.wait_timeout(progress, TICK).unwrap_or_else(PoisonError::into_inner).0;
    };
    progress.is_given_up = outcome.is_err();
    match outcome {
        Ok(()) => Freeze { frozen, late: None, outcome: Ok(()) },
        Err((error, late)) => Freeze { frozen, late: Some((late, has_ended)), outcome: Err(error) },
    }
}

/// Sorts one result: frozen, left out with a reason, or the end of the freeze.
fn note(opened: &Opened, result: &io::Result<()>, took: Duration, frozen: &mut Vec<Opened>) -> Result<(), Error> {
    let name = opened.name.display();
    match result {
        Ok(()) => {
            audit(format_args!("freeze: {name}: frozen in {} ms", took.as_millis()));
            frozen.push(opened.clone());
            Ok(())
        }
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            log::warn!("freeze: {name}: somebody else has frozen it already, and may thaw it at any time");
            Ok(())
        }
        Err(error) if is_harmless(error) => {
            audit(format_args!("freeze: {name}: left out: a file system of its kind cannot be frozen"));
            Ok(())
        }
        Err(error) => Err(Error::io(format!("failed to freeze {name}"), error)),
    }
}

/// Whether a freeze goes on after this: the file system cannot be frozen by its nature, or is frozen already.
fn is_harmless(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::NOTTY, Errno::BUSY].iter().any(|known| error.raw_os_error() == Some(known.raw_os_error()))
}

/// What a thaw has done.
#[derive(Debug, Default)]
pub struct Thawed {
    /// File systems that were frozen and are no longer.
    pub count: usize,
    /// Those that may still be frozen, and why.
    pub failed: Vec<(Opened, String)>,
    /// Those that somebody else had thawed before.
    pub lost: Vec<Opened>,
}

/// Thaws, the last frozen first. With `repeatedly` each as often as it takes, for freezes that others have left.
pub fn thaw(frozen: Vec<Opened>, repeatedly: bool) -> Thawed {
    thaw_by(frozen, THAW_PATIENCE, move |opened| {
        thaw_once(opened)?;
        while repeatedly && thaw_once(opened).is_ok() {}
        Ok(())
    })
}

fn thaw_once(opened: &Opened) -> io::Result<()> {
    filesystem::thaw(&*opened.held.file()?)
}

/// Whether any of these is frozen: of what an agent that was killed has left nobody else can tell. Each is asked to
/// freeze, which one that is frozen refuses; one that is not is thawed again at once. The last frozen comes first: while
/// it is not frozen nothing that lies on a file of it waits for it.
pub fn is_any_frozen(opened: &[Opened]) -> bool {
    let all = opened.to_vec();
    let ask = move || {
        all.iter().rev().any(|opened| {
            let Ok(file) = opened.held.file() else { return true };
            match filesystem::freeze(&*file) {
                Ok(()) => {
                    let _ = filesystem::thaw(&*file);
                    false
                }
                Err(error) => error.raw_os_error() == Some(Errno::BUSY.raw_os_error()),
            }
        })
    };
    // One that does not tell is believed to be frozen.
    in_time("ask what is frozen", THAW_PATIENCE, &|| Ok(()), ask).unwrap_or(true)
}

/// Thaws one that could not be thawed, however long that takes.
pub fn thaw_at_last(opened: &Opened) {
    loop {
        match thaw_once(opened) {
            Ok(()) => break,
            // It is not frozen: another try came to an end.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => break,
            Err(_) => std::thread::sleep(RETRY_PAUSE),
        }
    }
}

fn thaw_by(
    mut frozen: Vec<Opened>,
    patience: Duration,
    thaw_one: impl Fn(&Opened) -> io::Result<()> + Send + Clone + 'static,
) -> Thawed {
    let mut thawed = Thawed::default();
    while !frozen.is_empty() {
        let (sender, receiver) = mpsc::channel();
        let (thaw_one, pending) = (thaw_one.clone(), frozen.clone());
        let thread = start_thread(move || {
            for opened in pending.iter().rev() {
                if sender.send(thaw_one(opened)).is_err() {
                    break;
                }
            }
        });
        if let Err(error) = thread {
            // Without a thread it is done here: a thaw that might hang is better than none.
            log::warn!("thaw: {}", error.desc);
            while let Some(opened) = frozen.pop() {
                let result = thaw_once(&opened);
                thawed.note(opened, result);
            }
            break;
        }
        while let Some(opened) = frozen.pop() {
            if let Ok(result) = receiver.recv_timeout(patience) {
                thawed.note(opened, result);
            } else {
                // Its thread stays with it; another one goes on with the rest.
                let reason = format!("it does not end within {} s", patience.as_secs());
                thawed.failed.push((opened, reason));
                break;
            }
        }
    }
    thawed
}

impl Thawed {
    /// What the host is told of a thaw that did not go as it should.
    pub fn problem(&self, is_unknown: bool) -> Option<Error> {
        if let Some((opened, cause)) = self.failed.first() {
            return Some(Error::new(format!(
                "failed to thaw {}: {cause} ({} file systems were thawed, {} were not and are tried again)",
                opened.name.display(),
                self.count,
                self.failed.len()
            )));
        }
        if self.lost.is_empty() || is_unknown {
            return None;
        }
        let names: Vec<_> = self.lost.iter().map(|opened| opened.name.display().to_string()).collect();
        Some(Error::new(format!(
            "{}: thawed before by somebody else, so what was copied after that is not consistent",
            names.join(", ")
        )))
    }

    fn note(&mut self, opened: Opened, result: io::Result<()>) {
        match result {
            Ok(()) => self.count += 1,
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => self.lost.push(opened),
            Err(error) => self.failed.push((opened, cause_text(&error))),
        }
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
