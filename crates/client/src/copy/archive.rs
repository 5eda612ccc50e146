//! Copies that keep everything, as `cp -a` does: owners, permissions, times, links, further names, extended attributes,
//! holes, FIFOs.
//!
//! tar on both sides knows how to keep all that; here stands what tar leaves open. What is copied is unpacked beside its
//! destination, in a directory that nobody else enters, and gets its place when all of it has come. The guest is not
//! trusted: what it sends is bounded by what it announced, and no device of its choice is made on the host.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use super::TreeReport;
use super::download::local;
use crate::error::Error;

/// Most that is kept of what a tar complains of.
pub(super) const MOST_SAID_BYTES: usize = 64 << 10;

/// Options of a GNU tar that unpacks what is to be kept. What is not kept is complained of.
pub(super) const UNPACKING: &[&str] =
    &["-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--delay-directory-restore"];

/// What tar and cp say when something has come without all that it had, or one thing among others could not be read.
const INCOMPLETE: &[&str] = &[
    ": Cannot change ",
    ": Cannot set ",
    ": Cannot utime",
    ": Cannot mknod",
    ": Cannot mkfifo",
    ": Cannot create symlink",
    ": Cannot hard link",
    ": setxattr",
    "file changed as we read it",
    "File removed before we read it",
    ": Permission denied",
    ": Operation not permitted",
    "Exiting with failure status",
    "can't change ",
    "can't set ",
];

/// What ends a copy, whatever else stands in the same line: names are the guest's choice, and may have words of
/// [`INCOMPLETE`].
const FATAL: &[&str] = &[
    "No space left on device",
    "Disk quota exceeded",
    "Input/output error",
    "File too large",
    "Read-only file system",
    "Unexpected EOF in archive",
    "short read",
];

/// What is lost where the guest's tar is a small one.
pub(super) const SMALL_TAR: &str = "the guest's tar is not GNU's: it keeps times to the second and none of directories, \
    no holes, no extended attributes and no ACLs";

/// A tar of the host at work.
pub(super) struct HostTar {
    child: Child,
    said: Option<JoinHandle<Vec<u8>>>,
}

impl HostTar {
    /// Packs `name`, which is in `directory`. With `is_plain`, for a tar in the guest that knows no more than names and
    /// contents.
    pub(super) fn pack(directory: &Path, name: &OsStr, is_plain: bool) -> io::Result<(Self, ChildStdout)> {
        let mut command = tar();
        command.args(["-c", "-f", "-", "--numeric-owner"]);
        if is_plain {
            command.arg("--format=gnu");
        } else {
            command.args(["--format=posix", "--sparse", "--xattrs", "--xattrs-include=*", "--acls"]);
        }
        // A backslash in a name is one.
        command.arg("--no-unquote").arg("-C").arg(directory).arg("--").arg(name);
        let mut tar = Self::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let output = tar.child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        Ok((tar, output))
    }

    /// Unpacks what is written to its input into a directory.
    pub(super) fn unpack(directory: &Path) -> io::Result<(Self, ChildStdin)> {
        let mut command = tar();
        command.args(["-x", "-f", "-"]).args(UNPACKING).arg("-C").arg(directory);
        let mut tar = Self::start(command.stdin(Stdio::piped()).stdout(Stdio::null()))?;
        let input = tar.child.stdin.take().ok_or_else(|| io::Error::other("no pipe"))?;
        Ok((tar, input))
    }

    fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), "this host has no tar, which keeps what -a asks for")
            }
            _ => error,
        })?;
        let errors = child.stderr.take();
        let said = thread::spawn(move || errors.map(read_some).unwrap_or_default());
        Ok(Self { child, said: Some(said) })
    }

    /// Waits for its end, and returns what it complained of. Its pipes must be closed.
    pub(super) fn finish(mut self) -> io::Result<Said> {
        let status = self.child.wait()?;
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        Ok(Said { is_success: status.success(), exit: status.to_string(), text: said, side: Side::Host })
    }
}

impl Drop for HostTar {
    fn drop(&mut self) {
        if self.said.is_some() {
            // It may have ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// GNU tar, which alone knows the options; its words are looked at.
fn tar() -> Command {
    let mut command = Command::new("tar");
    command.env("LC_ALL", "C").env_remove("TAR_OPTIONS");
    command
}

/// Whether the host's tar is GNU's.
pub(super) fn check_host_tar(act: &str) -> Result<(), Error> {
    let refusal = |cause: String| local(act, io::Error::new(io::ErrorKind::Unsupported, cause));
    let version = tar().arg("--version").stdin(Stdio::null()).output();
    match version {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("GNU tar") => Ok(()),
        Ok(_) => Err(refusal("a copy with -a needs GNU tar on this host, and its tar is another one".to_owned())),
        Err(error) => Err(refusal(format!("a copy with -a needs tar on this host: {error}"))),
    }
}

fn read_some(mut from: impl Read) -> Vec<u8> {
    let (mut said, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(size @ 1..) = from.read(&mut piece) {
        let room = MOST_SAID_BYTES.saturating_sub(said.len());
        said.extend_from_slice(&piece[..size.min(room)]);
    }
    said
}

/// Where a program has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Host,
    Guest,
}

/// How a tar or a cp has ended.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) is_success: bool,
    pub(super) exit: String,
    /// What it complained of, at most [`MOST_SAID_BYTES`].
    pub(super) text: Vec<u8>,
    pub(super) side: Side,
}

impl Said {
    /// Puts down what it could not keep; an error if there is more to it than that.
    pub(super) fn judge(&self, act: &str, path: &Path, report: &mut TreeReport) -> Result<(), Error> {
        let text = String::from_utf8_lossy(&self.text);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let is_bearable = |line: &&str| {
            let ends_the_copy = FATAL.iter().any(|known| line.ends_with(known));
            !ends_the_copy && INCOMPLETE.iter().any(|known| line.contains(known))
        };
        // What was cut off may have been the reason.
        let is_whole = self.text.len() < MOST_SAID_BYTES;
        let is_explained = is_whole && !lines.is_empty() && lines.iter().all(is_bearable);
        if !self.is_success && !is_explained {
            let worst = lines.iter().find(|line| !is_bearable(line)).or(lines.last());
            let cause = worst.map_or_else(|| self.exit.clone(), |line| (*line).to_owned());
            return Err(match self.side {
                Side::Guest => Error::Guest { act: act.to_owned(), cause },
                Side::Host => {
                    let is_full = [FATAL[0], FATAL[1]].iter().any(|full| cause.ends_with(full));
                    let kind = if is_full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
                    local(act, io::Error::new(kind, cause))
                }
            });
        }
        // What it says of itself is no file.
        let is_of_a_file = |line: &&&str| {
            !line.contains("Exiting with failure status")
                && !line.contains("Removing leading")
                && !line.contains("socket ignored")
                && !line.contains("time stamp")
        };
        report.skipped.extend(lines.iter().filter(is_of_a_file).map(|line| {
            let line = line.strip_prefix("tar: ").unwrap_or(line);
            (path.to_owned(), format!("not all of it was kept: {line}"))
        }));
        Ok(())
    }
}

/// What a walk over the host's files has found.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Bytes that the files take, holes left out.
    pub(super) stored_bytes: u64,
    /// Files with holes, and files with extended attributes.
    pub(super) with_holes: Vec<PathBuf>,
    pub(super) with_attributes: Vec<PathBuf>,
}

/// Counts what is at a path and below it, and names what no archive can hold.
pub(super) fn count(top: &Path, report: &mut TreeReport) -> io::Result<Counts> {
    let mut counts = Counts::default();
    let mut waiting = vec![top.to_owned()];
    let mut seen = HashSet::new();
    while let Some(path) = waiting.pop() {
        let there = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != top => continue,
            there => there?,
        };
        let kind = there.file_type();
        if kind.is_dir() {
            report.directories += 1;
            match fs::read_dir(&path) {
                Ok(inside) => waiting.extend(inside.flatten().map(|entry| entry.path())),
                // tar says so.
                Err(_) => continue,
            }
        } else if kind.is_symlink() {
            report.links += 1;
        } else if kind.is_socket() {
            report.skipped.push((path.clone(), "it is a socket".to_owned()));
        } else if kind.is_file() {
            report.files += 1;
            if seen.insert((there.dev(), there.ino())) {
                let stored = (there.blocks() * 512).min(there.len());
                report.bytes += there.len();
                counts.stored_bytes += stored;
                if there.len() > 64 << 10 && stored < there.len() / 2 {
                    counts.with_holes.push(path.clone());
                }
            }
        }
        let mut names = [0_u8; 4096];
        if !kind.is_symlink() && rustix::fs::llistxattr(&path, &mut names).is_ok_and(|size| size > 0) {
            counts.with_attributes.push(path);
        }
    }
    Ok(counts)
}

/// Removes what a guest must not make on a host: devices. Returns their paths below `top`.
pub(super) fn remove_devices(top: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        let there = fs::symlink_metadata(&path)?;
        let kind = there.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else if kind.is_block_device() || kind.is_char_device() {
            fs::remove_file(&path)?;
            removed.push(path.strip_prefix(top).unwrap_or(&path).to_owned());
        }
    }
    Ok(removed)
}

/// A directory of the host in which an archive is unpacked; it goes with this value.
pub(super) struct Stage {
    pub(super) directory: PathBuf,
}

impl Stage {
    /// One that nobody else enters, where `destination` is or comes to be.
    pub(super) fn beside(destination: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let place = match destination.parent() {
            _ if destination.is_dir() => destination,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = place.join(super::names::own_text("tree"));
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let stage = Self { directory };
        fs::DirBuilder::new().mode(0o700).create(stage.unpacked())?;
        Ok(stage)
    }

    pub(super) fn unpacked(&self) -> PathBuf {
        self.directory.join("t")
    }

    /// Gives what was unpacked its place. cp(1) knows what of two directories becomes one; links that are there below a
    /// directory are not followed, since an earlier copy from the same guest may have laid them.
    pub(super) fn put(&self, unpacked: &Path, destination: &Path) -> io::Result<Said> {
        let there = fs::symlink_metadata(unpacked)?;
        let is_tree = there.is_dir();
        let mut command = Command::new("cp");
        command.env("LC_ALL", "C").stdin(Stdio::null()).arg("-a");
        if destination.is_dir() {
            if !is_tree {
                return Err(super::place::refusal("it is a directory"));
            }
            command.args(["--remove-destination", "--"]).arg(unpacked.join(".")).arg(destination);
        } else if fs::symlink_metadata(destination).is_ok() {
            command.arg("-T").arg("--").arg(unpacked).arg(destination);
        } else {
            // A directory that its owner may not write to cannot be moved to another one.
            if fs::rename(unpacked, destination).is_ok() {
                return Ok(Said { is_success: true, exit: String::new(), text: Vec::new(), side: Side::Host });
            }
            command.arg("-T").arg("--").arg(unpacked).arg(destination);
        }
        let output = command.output()?;
        if is_tree && self.directory.parent() == Some(destination) {
            // What goes from a directory changes its time.
            self.remove();
            File::open(destination)?.set_modified(there.modified()?)?;
        }
        let (is_success, exit) = (output.status.success(), output.status.to_string());
        Ok(Said { is_success, exit, text: output.stderr, side: Side::Host })
    }

    fn remove(&self) {
        // Directories that their owner may not write to are made so first. What is left all the same has a name that says
        // what it was.
        if fs::remove_dir_all(&self.directory).is_err() && self.directory.exists() {
            let _ = Command::new("chmod").args(["-R", "u+rwX", "--"]).arg(&self.directory).status();
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The directory and the name under which tar is given what is copied: a directory by what is in it.
pub(super) fn as_packed(path: &Path) -> io::Result<(PathBuf, std::ffi::OsString, bool)> {
    let ends_with_slash = path.as_os_str().as_bytes().ends_with(b"/");
    let there = if ends_with_slash { path.metadata()? } else { fs::symlink_metadata(path)? };
    if there.is_dir() {
        return Ok((path.to_owned(), ".".into(), true));
    }
    let name = path.file_name().ok_or_else(|| super::place::refusal("it has no file name"))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut packed = std::ffi::OsString::from("./");
    packed.push(name);
    Ok((parent.to_owned(), packed, false))
}

/// Writes all of a piece to a tar; one that has ended says why itself.
pub(super) fn feed(input: &mut ChildStdin, piece: &[u8]) -> io::Result<bool> {
    match input.write_all(piece) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn judged(is_success: bool, text: &str, side: Side) -> Result<Vec<String>, Error> {
        let said = Said { is_success, exit: "exit code 2".to_owned(), text: text.into(), side };
        let mut report = TreeReport::default();
        said.judge("copy", Path::new("/x"), &mut report)?;
        Ok(report.skipped.into_iter().map(|(_, why)| why).collect())
    }

    #[test]
    fn what_is_not_kept_is_named_and_what_is_not_whole_is_an_error() {
        let owner = "tar: a: Cannot change ownership to uid 1, gid 1: Operation not permitted\n";
        let last = "tar: Exiting with failure status due to previous errors\n";
        let kept = judged(false, &[owner, last].concat(), Side::Guest).unwrap();
        assert!(kept.len() == 1 && kept[0].contains("a: Cannot change ownership"), "{kept:?}");
        assert_eq!(judged(true, "tar: s: socket ignored\n", Side::Host).unwrap(), [""; 0]);
        // A name may say anything.
        for (side, kind) in [(Side::Guest, Kind::GuestFull), (Side::Host, Kind::HostFull)] {
            let full = "tar: x: Cannot change y: Cannot write: No space left on device\n";
            let error = judged(false, &[owner, full, last].concat(), side).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
        judged(false, "", Side::Host).unwrap_err();
        judged(false, "tar: This does not look like a tar archive\n", Side::Host).unwrap_err();
        // What follows may have been worse.
        judged(false, &owner.repeat(MOST_SAID_BYTES / owner.len() + 1), Side::Guest).unwrap_err();
    }
}
