//! Who is called for the thaw: notes each call of a hook in the state file, so that every `freeze` that was run, or may
//! have been, gets one `thaw`, whoever is killed meanwhile.

use std::path::{Path, PathBuf};

use super::linux::state_file::{Marker, MarkerFile};
use super::linux::thawed_early;
use super::machine::{HookState, Phase};
use super::record::Record;
use crate::system::error::{Error, cause_text};

/// The state file of a freeze, as far as it changes.
#[derive(Debug, Default)]
pub struct Journal {
    /// None where nothing is noted: hooks that are called though no freeze was.
    noted: Option<Noted>,
}

#[derive(Debug)]
struct Noted {
    file: MarkerFile,
    hooks: Vec<PathBuf>,
    record: PathBuf,
}

impl Journal {
    /// The notes of a freeze.
    pub fn of(marker: &Marker, file: MarkerFile, record: PathBuf) -> Self {
        let hooks = marker.hooks.iter().map(|(hook, _)| hook.clone()).collect();
        Self { noted: Some(Noted { file, hooks, record }) }
    }

    /// Whether there is a state file.
    pub fn has_marker(&self) -> bool {
        self.noted.is_some()
    }

    /// Notes how far the freeze is.
    pub fn set_phase(&self, phase: Phase) -> Result<(), Error> {
        let Some(noted) = &self.noted else { return Ok(()) };
        noted.file.set_phase(phase).map_err(|error| Error::io("cannot write to the state file of the freeze", &error))
    }

    /// Gives the freeze another identity.
    pub fn set_id(&self, id: &str) -> Result<(), Error> {
        let Some(noted) = &self.noted else { return Ok(()) };
        noted.file.set_id(id).map_err(|error| Error::io("cannot write to the state file of the freeze", &error))
    }

    /// Notes a hook's state. A hook that the state file does not have is none of this freeze's.
    pub fn set_hook(&self, hook: &Path, state: HookState) -> Result<(), Error> {
        let Some(noted) = &self.noted else { return Ok(()) };
        let Some(index) = noted.hooks.iter().position(|known| known == hook) else {
            return Err(Error::new("it came after the freeze had begun"));
        };
        noted.file.set_hook(index, state).map_err(|error| Error::new(format!("cannot note it: {}", cause_text(&error))))
    }

    /// The record of a call that is about to be made.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        let Some(noted) = &self.noted else { return Ok(None) };
        let failed = |error| {
            let place = noted.record.display();
            Error::new(format!("cannot make the record of its call, '{place}': {}", cause_text(&error)))
        };
        Record::create(&noted.record).map(Some).map_err(failed)
    }
}

/// Notes how a freeze has ended; the state file of an early end becomes what is told to the host.
pub fn mark_ended(path: &Path, journal: &Journal, how: Phase) {
    if !journal.has_marker() {
        return;
    }
    if let Err(error) = journal.set_phase(how) {
        log::warn!("'{}' still says that file systems are frozen: {}", path.display(), error.desc);
    }
    if matches!(how, Phase::Early(_))
        && let Err(error) = std::fs::rename(path, thawed_early(path))
    {
        log::warn!("cannot rename '{}': {}", path.display(), cause_text(&error));
    }
}
