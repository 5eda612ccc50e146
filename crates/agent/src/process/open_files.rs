//! Handles: numbers that stand for open files, over all clients and never given out twice.

use std::collections::HashMap;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::system::error::Error;
use crate::system::state_directory::State;

/// Files that may be open at once.
const HANDLES_MAX: usize = 256;
/// How long a command waits for a file that another one uses.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// The open files.
pub struct Files {
    table: Mutex<Table>,
    counter: Mutex<State>,
}

#[derive(Default)]
struct Table {
    files: HashMap<i64, Arc<Slot>>,
    /// Places that are promised to opens under way.
    reserved: usize,
    /// Numbers that were promised to opens which failed; used first.
    spare: Vec<i64>,
}

/// One open file and who uses it.
struct Slot {
    state: Mutex<Use>,
    freed: Condvar,
}

enum Use {
    Free(OwnedFd),
    By(&'static str, Instant),
}

impl Files {
    /// None open; numbers go on where `state` says.
    pub fn new(state: State) -> Self {
        Self { table: Mutex::default(), counter: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises a place and a number for a file that is about to be opened. `act` begins the error's text.
    pub fn reserve(&self, act: &str) -> Result<Reserved<'_>, Error> {
        let mut table = self.lock();
        let open = table.files.len() + table.reserved;
        if open >= HANDLES_MAX {
            return Err(Error::new(format!(
                "{act}: Too many open files: {open} handles are open, guest-file-close frees them"
            )));
        }
        table.reserved += 1;
        // From here on `Drop` gives the place back.
        let mut reserved = Reserved { files: self, handle: table.spare.pop() };
        drop(table);
        if reserved.handle.is_none() {
            let mut counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
            reserved.handle = Some(counter.next_handle().map_err(|cause| Error::io(act, &cause))?);
        }
        Ok(reserved)
    }

    fn slot(&self, handle: i64) -> Result<Arc<Slot>, Error> {
        self.lock().files.get(&handle).cloned().ok_or_else(|| not_found(handle))
    }

    /// The file of a handle, for `command` alone until the result is dropped.
    pub fn take(&self, handle: i64, command: &'static str) -> Result<Taken, Error> {
        let slot = self.slot(handle)?;
        let state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = slot
            .freed
            .wait_timeout_while(state, BUSY_WAIT, |state| matches!(state, Use::By(..)))
            .unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, Use::By(command, Instant::now())) {
            Use::Free(file) => {
                drop(state);
                Ok(Taken { slot, file: Some(file) })
            }
            Use::By(other, since) => {
                *state = Use::By(other, since);
                Err(Error::new(format!(
                    "handle '{handle}' is busy: {other} has been running on it for {} s",
                    since.elapsed().as_secs()
                )))
            }
        }
    }

    /// Forgets a handle. Its file is closed as soon as no command uses it.
    pub fn close(&self, handle: i64) -> Result<(), Error> {
        let slot = self.lock().files.remove(&handle).ok_or_else(|| not_found(handle))?;
        drop(slot);
        Ok(())
    }
}

fn not_found(handle: i64) -> Error {
    Error::new(format!("handle '{handle}' has not been found"))
}

/// A promised place.
pub struct Reserved<'a> {
    files: &'a Files,
    handle: Option<i64>,
}

impl Reserved<'_> {
    /// Puts the file there; returns its handle.
    pub fn fill(mut self, file: OwnedFd) -> i64 {
        let slot = Slot { state: Mutex::new(Use::Free(file)), freed: Condvar::new() };
        let handle = self.handle.take().unwrap_or_default();
        self.files.lock().files.insert(handle, Arc::new(slot));
        handle
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut table = self.files.lock();
        table.reserved -= 1;
        table.spare.extend(self.handle);
    }
}

/// A file in use by one command.
pub struct Taken {
    slot: Arc<Slot>,
    file: Option<OwnedFd>,
}

impl Deref for Taken {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        self.file.as_ref().expect("the file is there until the value is dropped")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            *self.slot.state.lock().unwrap_or_else(PoisonError::into_inner) = Use::Free(file);
            self.slot.freed.notify_one();
        }
    }
}
