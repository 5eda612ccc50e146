//! The file that says that file systems are frozen (`qga.state.isfrozen` in the state directory): for the agent that comes
//! after one that was killed, and for the guardian.
//!
//! The original leaves it empty and looks at nothing but its existence, so either agent can take over from the other.
//! Ours writes into it what it did, in lines `name=value`. It belongs to one boot: after the next one nothing is
//! frozen any more, whatever a file on a disk says.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::linux::mounts::{DeviceNumber, unescape};
use crate::root::Root;
use crate::whole_file;

/// Most bytes read of a file that somebody else may have written.
const MARKER_BYTES_MAX: u64 = 4 << 20;

/// What was frozen, when, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marker {
    /// The kernel's number of this boot.
    pub boot_id: String,
    /// When, on the clock of [`now`].
    pub frozen_at: Duration,
    /// When the thaw comes by itself, on the same clock; `None` for never.
    pub deadline: Option<Duration>,
    /// The frozen file systems and where they are mounted, in the order of the freeze; none before anything is frozen and
    /// after all is thawed.
    pub mounts: Vec<(DeviceNumber, PathBuf)>,
    /// Hooks that were run, or are about to be, and wait for their `thaw`.
    pub hooks: Vec<PathBuf>,
    /// The one among them that is the configured script.
    pub script: Option<PathBuf>,
    /// How long each of them may take.
    pub hook_patience: Duration,
    /// Why it was thawed before the host said so.
    pub reason: Option<String>,
}

/// What a marker found at start means.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Nothing,
    /// It is from an earlier boot.
    Stale,
    /// It is from this boot.
    Ours(Marker),
    /// It is from this boot, and not told what was frozen: the original's, or damaged.
    Unknown,
}

/// Time since the machine's start: the same for all processes, and not moved by anybody who sets the clock.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The kernel's number of this boot.
pub fn boot_id(root: &Root) -> String {
    root.read_text("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Looks at a marker.
pub fn look(root: &Root, path: &Path) -> Found {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        // Something is there: to believe it costs less than not to.
        Err(_) => return Found::Unknown,
    };
    match Marker::parse(&bytes) {
        Some(marker) if marker.boot_id == boot_id(root) => Found::Ours(marker),
        Some(_) => Found::Stale,
        None if was_written_before_boot(root, path) => Found::Stale,
        None => Found::Unknown,
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::File::options();
    let file = options.read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32).open(path)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MARKER_BYTES_MAX), &mut bytes)?;
    Ok(bytes)
}

/// Whether a file is older than this boot. The clock may have been set since, so only a clear case counts.
fn was_written_before_boot(root: &Root, path: &Path) -> bool {
    const DOUBT: Duration = Duration::from_secs(60);
    let Ok(written) = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) else { return false };
    let stat = root.read_text("/proc/stat").unwrap_or_default();
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    booted.is_some_and(|seconds| written + DOUBT < SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

impl Marker {
    /// The file's content.
    pub fn text(&self) -> String {
        let mut text = format!(
            "boot-id={}\nfrozen-at={}\ndeadline={}\n",
            self.boot_id,
            self.frozen_at.as_secs(),
            self.deadline.map_or_else(|| "never".to_owned(), |deadline| deadline.as_secs().to_string())
        );
        for (device, path) in &self.mounts {
            let _ = writeln!(text, "mount={device} {}", escape(path));
        }
        for (name, path) in
            self.hooks.iter().map(|hook| ("hook", hook)).chain(self.script.iter().map(|script| ("script", script)))
        {
            let _ = writeln!(text, "{name}={}", escape(path));
        }
        let _ = writeln!(text, "hook-timeout={}", self.hook_patience.as_secs());
        if let Some(reason) = &self.reason {
            let _ = writeln!(text, "reason={}", escape(Path::new(reason)));
        }
        text
    }

    /// Reads a file; `None` if it is none, or does not say which boot it belongs to.
    pub fn read(path: &Path) -> Option<Self> {
        Self::parse(&read(path).ok()?)
    }

    /// Reads the file's content; `None` if it does not say which boot it belongs to.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut marker = Self::default();
        for line in bytes.split(|byte| *byte == b'\n') {
            let Some(at) = line.iter().position(|byte| *byte == b'=') else { continue };
            let (name, value) = (&line[..at], &line[at + 1..]);
            let seconds = || Some(Duration::from_secs(std::str::from_utf8(value).ok()?.parse().ok()?));
            match name {
                b"boot-id" => marker.boot_id = String::from_utf8_lossy(value).into_owned(),
                b"frozen-at" => marker.frozen_at = seconds().unwrap_or_default(),
                b"deadline" => marker.deadline = seconds(),
                b"mount" => marker.mounts.extend(mount(value)),
                b"hook" => marker.hooks.push(unescape(value)),
                b"script" => marker.script = Some(unescape(value)),
                b"hook-timeout" => marker.hook_patience = seconds().unwrap_or_default(),
                b"reason" => marker.reason = Some(unescape(value).to_string_lossy().into_owned()),
                _ => {}
            }
        }
        (!marker.boot_id.is_empty()).then_some(marker)
    }

    /// Puts it into its place, whole or not at all.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        whole_file::write(path, self.text().as_bytes())
    }
}

/// Reads `254:1 /mnt`.
fn mount(value: &[u8]) -> Option<(DeviceNumber, PathBuf)> {
    let at = value.iter().position(|byte| *byte == b' ')?;
    let device = DeviceNumber::parse(std::str::from_utf8(&value[..at]).ok()?)?;
    Some((device, unescape(&value[at + 1..])))
}

/// A path on one line: what could end or confuse the line as the kernel writes it in its own list of mounts.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'!'..=b'[' | b']'..=b'~' => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\{byte:03o}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Found, Marker, look};
    use crate::linux::mounts::DeviceNumber;
    use crate::root::Root;
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::ffi::OsStringExt;
    use std::time::{Duration, SystemTime};

    fn example() -> Marker {
        Marker {
            boot_id: "b1".to_owned(),
            frozen_at: Duration::from_secs(100),
            deadline: Some(Duration::from_secs(3700)),
            mounts: ["/".into(), "/a b\nmount=/c\\d".into(), OsString::from_vec(b"/x\xff=".to_vec()).into()]
                .map(|path| (DeviceNumber { major: 8, minor: 1 }, path))
                .to_vec(),
            hooks: vec!["/etc/qemu/fsfreeze-hook".into()],
            script: Some("/etc/qemu/fsfreeze-hook".into()),
            hook_patience: Duration::from_secs(60),
            reason: Some("because\nof this".to_owned()),
        }
    }

    #[test]
    fn what_is_written_is_read_again_whatever_the_names() {
        assert_eq!(Marker::parse(example().text().as_bytes()), Some(example()));
        let never = Marker { deadline: None, ..example() };
        assert_eq!(Marker::parse(never.text().as_bytes()), Some(never));
        assert_eq!(Marker::parse(b""), None);
        assert_eq!(Marker::parse(b"\0\xff=\nmount=/a\n"), None);
    }

    #[test]
    fn a_marker_belongs_to_its_boot() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path("/proc/sys/kernel/random")).unwrap();
        fs::write(root.path("/proc/sys/kernel/random/boot_id"), "b1\n").unwrap();
        let booted = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        fs::write(root.path("/proc/stat"), format!("cpu 1 2\nbtime {booted}\n")).unwrap();
        let path = root.path("/marker");
        assert_eq!(look(&root, &path), Found::Nothing);
        example().write(&path).unwrap();
        assert_eq!(look(&root, &path), Found::Ours(example()));
        Marker { boot_id: "b0".to_owned(), ..example() }.write(&path).unwrap();
        assert_eq!(look(&root, &path), Found::Stale);
        // The original's.
        fs::write(&path, "").unwrap();
        assert_eq!(look(&root, &path), Found::Unknown);
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(look(&root, &path), Found::Stale);
    }
}
