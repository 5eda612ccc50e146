//! Passwords by chpasswd(8), keys in `.ssh/authorized_keys` of the user's home.

mod as_user;
mod key_file;
mod password;
pub mod users;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use self::as_user::Turn;
use self::key_file::{Directory, KeyFile};
pub use self::password::set as set_password;
use self::users::Account;
use crate::error::Error;
use crate::root::Root;

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

/// Whose file it is, what it is called, and where the home is on this machine.
fn located(root: &Root, user: &str) -> Result<(Account, Names, PathBuf), Error> {
    let account = users::find(root, user)?;
    let (names, home) = (Names::new(&account), root.path(&account.home));
    Ok((account, names, home))
}

/// The bytes of a user's key file.
pub fn key_file(root: &Root, user: &str) -> Result<Vec<u8>, Error> {
    let (account, names, home) = located(root, user)?;
    let act = format!("failed to read '{}'", names.file);
    let uid = account.uid;
    as_user::run(&account, &act, move |_| match current(&home, uid) {
        Ok(Some((_, file))) => Ok(file.bytes),
        Ok(None) => Err(names.not_read(&io::Error::from(Errno::NOENT))),
        Err(cause) => Err(names.not_read(&cause)),
    })
}

/// Changes a user's key file, or an empty one if there is none or it is reset.
pub fn add_keys(
    root: &Root,
    user: &str,
    reset: bool,
    change: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
) -> Result<(), Error> {
    let (account, names, home) = located(root, user)?;
    let act = format!("failed to write to '{}'", names.file);
    let owner = account.clone();
    as_user::run(&account, &act, move |turn| {
        let directory = match Directory::open(&home) {
            Ok(Some(directory)) => directory,
            Ok(None) => Directory::make(&home).map_err(|cause| names.not_created(&cause))?,
            Err(cause) if cause.kind() == ErrorKind::NotADirectory => {
                return Err(names.not_created(&Errno::EXIST.into()));
            }
            Err(cause) => return Err(names.not_read(&cause)),
        };
        let file = match directory.read(owner.uid) {
            Ok(file) => file,
            // What is there goes, whatever it is.
            Err(_) if reset => None,
            Err(cause) => return Err(names.not_read(&cause)),
        };
        let bytes = change(file.as_ref().filter(|_| !reset).map_or(&[], |file| &file.bytes));
        replace(&directory, file.as_ref(), &bytes, &owner, turn, &names)
    })
}

/// Changes a user's key file if there is one.
pub fn remove_keys(
    root: &Root,
    user: &str,
    change: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
) -> Result<(), Error> {
    let (account, names, home) = located(root, user)?;
    let act = format!("failed to write to '{}'", names.file);
    let owner = account.clone();
    as_user::run(&account, &act, move |turn| match current(&home, owner.uid) {
        Ok(Some((directory, file))) => replace(&directory, Some(&file), &change(&file.bytes), &owner, turn, &names),
        Ok(None) => Ok(()),
        Err(cause) if cause.kind() == ErrorKind::NotADirectory => Ok(()),
        Err(cause) => Err(names.not_read(&cause)),
    })
}

/// The key file, if it is there.
fn current(home: &Path, uid: u32) -> io::Result<Option<(Directory, KeyFile)>> {
    let Some(directory) = Directory::open(home)? else { return Ok(None) };
    Ok(directory.read(uid)?.map(|file| (directory, file)))
}

/// Writes the file if that changes anything.
fn replace(
    directory: &Directory,
    old: Option<&KeyFile>,
    bytes: &[u8],
    owner: &Account,
    turn: &Turn,
    names: &Names,
) -> Result<(), Error> {
    if old.is_some_and(|old| old.bytes == bytes && old.is_private) {
        return Ok(());
    }
    let label = old.and_then(|old| old.label.as_deref());
    directory.replace(bytes, label, owner.gid, || turn.take()).map_err(|cause| names.not_written(&cause))
}

#[cfg(test)]
#[path = "linux/tests.rs"]
mod tests;
