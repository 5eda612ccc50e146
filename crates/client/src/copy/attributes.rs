//! What a file of the host has beside its content: owner, permissions, extended attributes.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// Extended attributes, by their names.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Gives a file exactly what another one has, its times excepted, or fails.
pub(super) fn give_those_of(there: &File, file: &File) -> io::Result<()> {
    let (wanted, own) = (there.metadata()?, file.metadata()?);
    if (wanted.uid(), wanted.gid()) != (own.uid(), own.gid()) {
        fchown(file, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    let (wanted_xattrs, own_xattrs) = (xattrs_of(there)?, xattrs_of(file)?);
    for (name, _) in own_xattrs.iter().filter(|(name, _)| !wanted_xattrs.iter().any(|(wanted, _)| wanted == name)) {
        fremovexattr(file, name.as_slice())?;
    }
    for (name, value) in wanted_xattrs.iter().filter(|wanted| !own_xattrs.contains(wanted)) {
        fsetxattr(file, name.as_slice(), value, XattrFlags::empty())?;
    }
    file.set_permissions(Permissions::from_mode(wanted.mode() & 0o7777))
}

/// A file system without extended attributes has none.
fn xattrs_of(file: &File) -> io::Result<Xattrs> {
    let names = match read_grown(|buffer| flistxattr(file, buffer)) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        names => names?,
    };
    let mut xattrs = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        match read_grown(|buffer| fgetxattr(file, name, buffer)) {
            Ok(value) => xattrs.push((name.to_vec(), value)),
            // Gone meanwhile, or not for this user.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(xattrs)
}

/// What a call writes into a buffer that is large enough. The kernel's own limit is 64 KiB.
fn read_grown(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    const MOST_BYTES: usize = 128 << 10;
    let mut buffer = vec![0; 4096];
    loop {
        match read(&mut buffer) {
            Ok(size) => {
                buffer.truncate(size);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < MOST_BYTES => buffer.resize(buffer.len() * 2, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The permissions of a new file, or of the copy of one with these. Read without changing the umask, which other threads
/// would notice.
pub(super) fn less_umask(mode: u32) -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mode & 0o777 & !mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}
