//! Where the system's files are: every reader of `/proc`, `/sys`, `/etc`, `/run` and `/dev` takes a [`Root`] first.
//!
//! On a live machine that is `/`; in tests it is a directory that holds a recorded machine. So a bug on somebody's
//! hardware becomes a recording and an expected reply. Reading is bounded: a file of the system that is larger than
//! anybody expects is an error, not memory.
//!
//! What cannot be recorded as files (netlink, ioctls, statvfs) does not come through here.

use std::cell::Cell;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::system::error::Error;

/// Most bytes of one file of the system.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// How much of a file is read at once when it is read line by line.
const LINES_BUFFER_BYTES: usize = 64 << 10;
/// What nearly no file of the kernel has more of.
const USUAL_FILE_BYTES: usize = 4096;
/// Most symbolic links followed on the way to a file, as in the kernel.
const LINKS_MAX: usize = 40;

thread_local! {
    /// What this thread lacked when it last read a file of the system in vain.
    static SHORTAGE: Cell<Option<Errno>> = const { Cell::new(None) };
}

/// Lets a reader run that takes what it cannot read for what is not there, as most of the system's files may be missing.
/// An error if it could not read something only because this process has no descriptor or memory left: what it found
/// would look like all there is.
pub fn complete<T>(read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    SHORTAGE.set(None);
    let found = read()?;
    match SHORTAGE.take() {
        None => Ok(found),
        Some(shortage) => Err(Error::io(
            "the reply would not be complete, since not all files of the system could be read",
            &shortage.into(),
        )),
    }
}

/// Takes note of what is lacking.
fn noted(error: io::Error) -> io::Error {
    let shortage = error.raw_os_error().map(Errno::from_raw_os_error);
    let shortage = shortage.filter(|errno| [Errno::MFILE, Errno::NFILE, Errno::NOMEM].contains(errno));
    if shortage.is_some() {
        SHORTAGE.set(shortage);
    }
    error
}

/// A prefix of all paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    directory: PathBuf,
}

impl Root {
    /// This machine.
    #[must_use]
    pub fn host() -> Self {
        Self::at("/")
    }

    /// The machine recorded below a directory.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Whether it is the machine that the agent runs on, so that system calls on paths mean the same as the files.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.directory == Path::new("/")
    }

    /// Where an absolute path of the machine is. Symbolic links on the way are not followed by this function.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.directory.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A file's bytes.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let file = fs::File::open(self.resolved(path.as_ref())?).map_err(noted)?;
        // Enough for nearly all of them, so that a file takes one call to read and one to see its end.
        let mut bytes = Vec::with_capacity(USUAL_FILE_BYTES);
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(noted)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than 4 MiB"));
        }
        Ok(bytes)
    }

    /// Hands over a file's lines, one after the other, so that a long file costs no memory. One of more than `bytes_max`
    /// bytes is an error, after the lines of those bytes.
    pub fn each_line(&self, path: impl AsRef<Path>, bytes_max: u64, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let file = fs::File::open(self.resolved(path.as_ref())?).map_err(noted)?;
        let mut reader = BufReader::with_capacity(LINES_BUFFER_BYTES, file.take(bytes_max + 1));
        let (mut line, mut bytes) = (Vec::new(), 0);
        loop {
            line.clear();
            let count = reader.read_until(b'\n', &mut line)? as u64;
            bytes += count;
            if bytes > bytes_max {
                let text = format!("the file is larger than {} MiB", bytes_max >> 20);
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
            }
            if count == 0 {
                return Ok(());
            }
            each(line.strip_suffix(b"\n").unwrap_or(&line));
        }
    }

    /// A file's text without the line end at its end; bytes that are no UTF-8 become U+FFFD.
    pub fn read_text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let text = String::from_utf8_lossy(&self.read(path)?).into_owned();
        Ok(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text))
    }

    /// Writes to a file of the kernel, all at once: nothing is made or cut off, since such a file takes orders.
    pub fn order(&self, path: impl AsRef<Path>, order: &str) -> io::Result<()> {
        fs::File::options().write(true).open(self.resolved(path.as_ref())?)?.write_all(order.as_bytes())
    }

    /// The names in a directory, in the kernel's own order: clients take the first entry that suits them, and know the
    /// original's replies, which have that order. The files of a recording have no such order, theirs is by name, as
    /// people count.
    pub fn list(&self, path: impl AsRef<Path>) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.resolved(path.as_ref())?).map_err(noted)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        // A list that breaks off is an error: what was read of it would look like all there is.
        let mut names = names.collect::<io::Result<Vec<String>>>()?;
        if !self.is_host() {
            names.sort_by_cached_key(|name| natural_key(name));
        }
        Ok(names)
    }

    /// Whether there is something at a path.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.resolved(path.as_ref()).is_ok_and(|path| path.symlink_metadata().is_ok())
    }

    /// What a symbolic link says.
    pub fn read_link(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        fs::read_link(self.path(path)).map_err(noted)
    }

    /// The path inside the machine after following all symbolic links, as realpath(3). What it leads to must exist.
    pub fn canonical(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let mut pending: Vec<PathBuf> = vec![path.as_ref().to_owned()];
        let mut found = PathBuf::from("/");
        let mut links = 0;
        while let Some(next) = pending.pop() {
            let mut components = next.components();
            let Some(component) = components.next() else { continue };
            pending.push(components.as_path().to_owned());
            match component {
                Component::RootDir | Component::Prefix(_) => found = PathBuf::from("/"),
                Component::CurDir => {}
                Component::ParentDir => {
                    found.pop();
                }
                Component::Normal(name) => {
                    let candidate = found.join(name);
                    if self.path(&candidate).symlink_metadata()?.is_symlink() {
                        links += 1;
                        if links > LINKS_MAX {
                            return Err(Errno::LOOP.into());
                        }
                        pending.push(self.read_link(&candidate)?);
                    } else {
                        found = candidate;
                    }
                }
            }
        }
        Ok(found)
    }

    /// Where a path leads, links followed inside the machine.
    fn resolved(&self, path: &Path) -> io::Result<PathBuf> {
        if self.is_host() { Ok(path.to_owned()) } else { Ok(self.path(self.canonical(path)?)) }
    }
}

/// A key by which names sort as people count: `sda2` before `sda10`.
pub(crate) fn natural_key(name: &str) -> Vec<(String, Option<u64>)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits_at = rest.find(|character: char| character.is_ascii_digit()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(digits_at);
        let digits_end = behind.find(|character: char| !character.is_ascii_digit()).unwrap_or(behind.len());
        let (digits, behind) = behind.split_at(digits_end);
        key.push((word.to_owned(), digits.parse().ok()));
        rest = behind;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::{Root, complete, natural_key, noted};
    use rustix::io::Errno;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[test]
    fn what_could_not_be_read_for_lack_of_descriptors_is_not_taken_for_missing() {
        let read = |errno: Errno| complete(|| Ok(noted(errno.into()).kind()));
        assert!(read(Errno::NOENT).is_ok());
        let text = read(Errno::MFILE).unwrap_err().desc;
        assert!(text.ends_with("not all files of the system could be read: Too many open files"), "{text}");
        // The next reply is not the worse for it.
        assert!(read(Errno::NOENT).is_ok());
    }

    #[test]
    fn links_stay_inside_the_machine() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path("/sys/devices/a")).unwrap();
        fs::create_dir_all(root.path("/sys/class")).unwrap();
        fs::write(root.path("/sys/devices/a/size"), "12\n").unwrap();
        symlink("../devices/a", root.path("/sys/class/relative")).unwrap();
        symlink("/sys/devices/a", root.path("/sys/class/absolute")).unwrap();
        symlink("loop", root.path("/sys/class/loop")).unwrap();
        for link in ["/sys/class/relative", "/sys/class/absolute"] {
            assert_eq!(root.canonical(link).unwrap(), Path::new("/sys/devices/a"));
            assert_eq!(root.read_text(Path::new(link).join("size")).unwrap(), "12");
        }
        assert_eq!(root.canonical("/sys/class/loop").unwrap_err().raw_os_error(), Some(40));
        assert!(root.canonical("/sys/nothing").is_err());
        assert_eq!(root.list("/sys/class").unwrap(), ["absolute", "loop", "relative"]);
    }

    #[test]
    fn names_sort_as_people_count() {
        let mut names = ["loop10", "sda", "loop2", "mmcblk0boot0", "sda10", "mmcblk0", "sda2"];
        names.sort_by_cached_key(|name| natural_key(name));
        assert_eq!(names, ["loop2", "loop10", "mmcblk0", "mmcblk0boot0", "sda", "sda2", "sda10"]);
        assert!(natural_key("x99999999999999999999999").len() == 1);
    }

    #[test]
    fn a_file_without_an_end_is_an_error() {
        assert!(Root::host().read("/dev/zero").is_err());
        assert!(Root::host().each_line("/dev/zero", 1 << 20, |_| panic!("there is no line")).is_err());
    }

    #[test]
    fn lines_are_handed_over_with_and_without_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::write(root.path("/lines"), "one\n\ntwo").unwrap();
        let mut lines = Vec::new();
        root.each_line("/lines", 8, |line| lines.push(line.to_vec())).unwrap();
        assert_eq!(lines, [&b"one"[..], b"", b"two"]);
        let error = root.each_line("/lines", 7, |_| {}).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
    }
}
