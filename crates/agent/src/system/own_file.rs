//! Files of the agent's own in the state directory, which may be one in which everybody can lay files: what another user
//! has laid there is not obeyed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Opens a regular file of the agent's user. Follows no link, and waits for nothing but the disk.
///
/// # Errors
/// What open(2) reports, and `PermissionDenied` for what is no regular file of the agent's user, with the reason.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let refused = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return refused("it is a link".to_owned());
        }
        opened => opened?,
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return refused("it is no regular file".to_owned());
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return refused(format!("it belongs to another user, {}", found.uid()));
    }
    Ok(file)
}

/// Whether others than its owner may have written to a file.
pub fn is_writable_by_others(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & 0o022 != 0)
}

#[cfg(test)]
mod tests {
    use super::open;
    use std::fs::OpenOptions;

    #[test]
    fn links_fifos_and_files_of_others_are_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let try_to_open =
            |name: &str| open(OpenOptions::new().read(true), &at(name)).map(drop).map_err(|e| e.to_string());
        std::fs::write(at("own"), "").unwrap();
        try_to_open("own").unwrap();
        std::os::unix::fs::symlink(at("own"), at("link")).unwrap();
        assert_eq!(try_to_open("link").unwrap_err(), "it is a link");
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        assert_eq!(try_to_open("fifo").unwrap_err(), "it is no regular file");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(at("own"), Some(12345), None).unwrap();
            assert_eq!(try_to_open("own").unwrap_err(), "it belongs to another user, 12345");
        }
    }
}
