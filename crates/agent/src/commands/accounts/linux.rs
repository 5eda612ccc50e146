//! Passwords by chpasswd(8), keys in `.ssh/authorized_keys` of the user's home.

mod as_user;
mod key_file;
mod password;
pub mod users;
mod walk;

use std::io::{self, ErrorKind};
use std::mem::take;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::geteuid;

use self::as_user::{Failure, Rights};
use self::key_file::{KeyFile, Place, Task};
pub use self::password::set as set_password;
use self::users::Account;
use super::keys::Changed;
use crate::limits::memory_budget::{Budget, Hold};
use crate::system::error::Error;
use crate::system::root::Root;

/// Where things are, for a reader of an error.
struct Names {
    directory: String,
    file: String,
}

impl Names {
    fn new(account: &Account) -> Self {
        let directory = format!("{}/{}", account.home.display(), key_file::DIRECTORY);
        let file = format!("{directory}/{}", key_file::FILE);
        Self { directory, file }
    }

    fn not_read(&self, cause: &io::Error) -> Error {
        let act = if cause.kind() == ErrorKind::IsADirectory { "Error reading file" } else { "Failed to open file" };
        Error::io(format!("failed to read '{0}': {act} “{0}”", self.file), cause)
    }

    fn not_created(&self, cause: &io::Error) -> Error {
        Error::io(format!("failed to create directory '{}'", self.directory), cause)
    }

    fn not_written(&self, cause: &io::Error) -> Error {
        Error::io(format!("failed to write to '{}'", self.file), cause)
    }
}

/// What went wrong at which step.
enum Fault {
    NotRead(io::Error),
    NotCreated(io::Error),
    NotWritten(io::Error),
    /// Nothing that other rights would change.
    Refused(Error),
}

impl Fault {
    fn cause(&self) -> Option<&io::Error> {
        match self {
            Self::NotRead(cause) | Self::NotCreated(cause) | Self::NotWritten(cause) => Some(cause),
            Self::Refused(_) => None,
        }
    }

    /// Whether the kernel alone says no, without a reason of our own.
    fn is_denial(&self) -> bool {
        let denials = [Errno::ACCESS, Errno::PERM].map(|errno| Some(errno.raw_os_error()));
        self.cause().is_some_and(|cause| denials.contains(&cause.raw_os_error()))
    }

    fn told(self, names: &Names) -> Error {
        match self {
            Self::NotRead(cause) => names.not_read(&cause),
            Self::NotCreated(cause) => names.not_created(&cause),
            Self::NotWritten(cause) => names.not_written(&cause),
            Self::Refused(error) => error,
        }
    }
}

/// A user's key file: content, and what it takes of the agent's memory.
pub struct Content {
    /// The content.
    pub bytes: Vec<u8>,
    _hold: Hold,
}

/// What changes a file's content.
pub trait Change: Fn(Vec<u8>) -> Result<Changed, Error> + Send + Sync + 'static {}

impl<T: Fn(Vec<u8>) -> Result<Changed, Error> + Send + Sync + 'static> Change for T {}

/// Does something with the files of a user: with the user's rights, and if that fails with the agent's own, which get
/// further where the agent may not act as somebody else, where the disk is full for all but root, and where a directory is
/// root's. A file server may know only the user, so the agent's rights cannot be all.
fn serve<T: Send + 'static>(
    machine: &Machine<'_>,
    user: &str,
    act: &str,
    work: impl Fn(&Task<'_>) -> Result<T, Fault> + Send + Sync + 'static,
) -> Result<T, Error> {
    let account = users::find(machine.root, user)?;
    let names = Names::new(&account);
    let act = format!("{act} '{}'", names.file);
    let work = Arc::new(work);
    let attempt = |rights| {
        let (work, owner, root, budget) =
            (Arc::clone(&work), account.clone(), machine.root.clone(), machine.budget.clone());
        as_user::run(rights, &account, &act, move |turn| {
            work(&Task { account: &owner, root: &root, rights, budget: &budget, turn })
        })
    };
    let first = if account.uid == geteuid().as_raw() {
        None
    } else {
        match attempt(Rights::User) {
            Ok(done) => return Ok(done),
            Err(Failure::GivenUp(error) | Failure::Failed(Fault::Refused(error))) => return Err(error),
            Err(failure) => Some(failure),
        }
    };
    let fault = match attempt(Rights::Agent) {
        Ok(done) => return Ok(done),
        Err(Failure::GivenUp(error)) => return Err(error),
        Err(Failure::NotBegun(cause)) => Fault::NotRead(cause),
        Err(Failure::Failed(fault)) => fault,
    };
    Err(match first {
        // The user gets further than that.
        Some(Failure::Failed(first)) if fault.is_denial() => first.told(&names),
        Some(Failure::NotBegun(cause)) if fault.is_denial() => {
            let told = fault.told(&names).desc;
            Error::new(format!("{told} (the agent cannot act as user id {} either: {cause})", account.uid))
        }
        _ => fault.told(&names),
    })
}

/// Where the files are, and what memory there is for them.
pub struct Machine<'a> {
    /// Where the system's files are.
    pub root: &'a Root,
    /// What all clients share.
    pub budget: &'a Budget,
}

/// A user's key file.
pub fn key_file(machine: &Machine<'_>, user: &str) -> Result<Content, Error> {
    serve(machine, user, "failed to read", |task| match current(task) {
        Ok(Some((_, file))) => Ok(Content { bytes: file.bytes, _hold: file.hold }),
        Ok(None) => Err(Fault::NotRead(Errno::NOENT.into())),
        Err(cause) => Err(Fault::NotRead(cause)),
    })
}

/// Changes a user's key file, or an empty one if there is none or it is reset.
pub fn add_keys(machine: &Machine<'_>, user: &str, reset: bool, change: impl Change) -> Result<(), Error> {
    serve(machine, user, "failed to write to", move |task| {
        let place = match task.find() {
            Ok(Some(place)) => place,
            Ok(None) => task.make().map_err(Fault::NotCreated)?,
            Err(cause) if cause.kind() == ErrorKind::NotADirectory => {
                return Err(Fault::NotCreated(Errno::EXIST.into()));
            }
            Err(cause) => return Err(Fault::NotRead(cause)),
        };
        let mut file = match task.read(&place) {
            Ok(file) => file,
            // What is there goes, whatever it is.
            Err(_) if reset => None,
            Err(cause) => return Err(Fault::NotRead(cause)),
        };
        let before = file.as_mut().map(|file| take(&mut file.bytes)).filter(|_| !reset).unwrap_or_default();
        let changed = change(before).map_err(Fault::Refused)?;
        replace(task, &place, file.as_ref().filter(|_| !reset), &changed)
    })
}

/// Changes a user's key file if there is one.
pub fn remove_keys(machine: &Machine<'_>, user: &str, change: impl Change) -> Result<(), Error> {
    serve(machine, user, "failed to write to", move |task| match current(task) {
        Ok(Some((place, mut file))) => {
            let changed = change(take(&mut file.bytes)).map_err(Fault::Refused)?;
            replace(task, &place, Some(&file), &changed)
        }
        Ok(None) => Ok(()),
        Err(cause) if cause.kind() == ErrorKind::NotADirectory => Ok(()),
        Err(cause) => Err(Fault::NotRead(cause)),
    })
}

/// The key file, if it is there.
fn current(task: &Task<'_>) -> io::Result<Option<(Place, KeyFile)>> {
    let Some(place) = task.find()? else { return Ok(None) };
    Ok(task.read(&place)?.map(|file| (place, file)))
}

/// Writes the file if that changes anything.
fn replace(task: &Task<'_>, place: &Place, old: Option<&KeyFile>, changed: &Changed) -> Result<(), Fault> {
    if old.is_some_and(|old| changed.is_same && old.is_private) {
        return Ok(());
    }
    task.replace(place, old, &changed.bytes).map_err(Fault::NotWritten)
}

#[cfg(test)]
#[path = "linux/tests.rs"]
mod tests;
