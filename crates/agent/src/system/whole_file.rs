//! Files that are there whole or not at all: written under another name, then renamed.
//!
//! What was there stays when that fails, and nothing else is left behind, as on a full disk. Nothing is forced to the
//! disk: these files have to survive the agent, not the machine.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Puts a file into its place, for its owner alone to read. What a link of that name leads to is left alone.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(path);
    // What an agent of the same process number left when it was killed, or what somebody has laid there: it is not
    // written to, since it may be another name of some other file.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let write_all = |mut file: File| file.write_all(bytes);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(write_all)
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Named by the process, so that two agents given the same directory do not take each other's file away.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{}", std::process::id()));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::{temporary_name, write};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_file_that_cannot_be_put_into_its_place_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::create_dir_all(path.join("below")).unwrap();
        assert!(write(&path, b"new").is_err());
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
    }

    #[test]
    fn what_lies_in_the_way_is_replaced_and_never_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("file"), directory.path().join("other"));
        fs::write(&other, "other's").unwrap();
        for lay in [|target: &_, name: &_| symlink(target, name), |target: &_, name: &_| fs::hard_link(target, name)] {
            let lay: fn(&std::path::PathBuf, &std::path::PathBuf) -> std::io::Result<()> = lay;
            let _ = fs::remove_file(&path);
            lay(&other, &path).unwrap();
            lay(&other, &temporary_name(&path)).unwrap();
            write(&path, b"new").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
            assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
            assert_eq!(fs::read_to_string(&other).unwrap(), "other's");
        }
    }
}
