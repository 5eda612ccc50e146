//! The file that says that file systems are frozen (`qga.state.isfrozen` in the state directory): for the agent that comes
//! after one that was killed, and for the guardian.
//!
//! The original leaves it empty and looks at nothing but its existence, so either agent can take over from the other.
//! Ours writes into it what it is about to do, in lines `name=value`, before it does anything, and then changes single
//! bytes of it in place, for which a full disk has room. It belongs to one boot: after the next one nothing is
//! frozen any more, whatever a file on a disk says.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::freeze::machine::{HookState, Phase};
use crate::system::error::cause_text;
use crate::system::mounts::{DeviceNumber, unescape};
use crate::system::own_file;
use crate::system::root::Root;
use crate::system::whole_file;

/// Most bytes read of a file that somebody else may have written.
const MARKER_BYTES_MAX: u64 = 4 << 20;

/// What was frozen, when, and for how long.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marker {
    /// The freeze's identity, which no other freeze of this boot has.
    pub id: String,
    /// How far it is.
    pub phase: Phase,
    /// The kernel's number of this boot.
    pub boot_id: String,
    /// When, on the clock of [`now`].
    pub frozen_at: Duration,
    /// When the thaw comes by itself, on the same clock; `None` for never.
    pub deadline: Option<Duration>,
    /// The file systems and where they are mounted, in the order of the freeze.
    pub mounts: Vec<(DeviceNumber, PathBuf)>,
    /// The hooks of the freeze, in the order in which they are called, and how far each is.
    pub hooks: Vec<(PathBuf, HookState)>,
    /// The one among them that is the configured script.
    pub script: Option<PathBuf>,
    /// How long each of them may take.
    pub hook_patience: Duration,
}

/// A state file whose freeze is at work: what changes in it is changed in place.
#[derive(Debug)]
pub struct MarkerFile {
    file: File,
    places: Places,
}

/// Where in the file is what changes.
#[derive(Debug, Default)]
struct Places {
    /// The identity, and how long it is.
    id: Option<(u64, usize)>,
    phase: Option<u64>,
    hooks: Vec<u64>,
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
    // The directory may be one in which everybody can lay files. What is obeyed here has programs run.
    let file = match own_file::open(File::options().read(true), path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            log::warn!("'{}' says nothing of a freeze of this agent's: {}", path.display(), cause_text(&error));
            return Err(io::ErrorKind::NotFound.into());
        }
        opened => opened?,
    };
    // That it is there is believed all the same: to believe it costs less than not to.
    if own_file::is_writable_by_others(&file)? {
        log::warn!("'{}' may have been written by others than its owner: what it says is not obeyed", path.display());
        return Ok(Vec::new());
    }
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
            "boot-id={}\nid={}\nphase={}\nfrozen-at={}\ndeadline={}\n",
            self.boot_id,
            self.id,
            char::from(self.phase.byte()),
            self.frozen_at.as_secs(),
            self.deadline.map_or_else(|| "never".to_owned(), |deadline| deadline.as_secs().to_string())
        );
        for (device, path) in &self.mounts {
            let _ = writeln!(text, "mount={device} {}", escape(path));
        }
        for (hook, state) in &self.hooks {
            let _ = writeln!(text, "hook={} {}", char::from(state.byte()), escape(hook));
        }
        if let Some(script) = &self.script {
            let _ = writeln!(text, "script={}", escape(script));
        }
        let _ = writeln!(text, "hook-timeout={}", self.hook_patience.as_secs());
        text
    }

    /// Reads a file and keeps it open for its changes; `None` if it is none, or does not say which boot it belongs to.
    pub fn open(path: &Path) -> Option<(Self, MarkerFile)> {
        let bytes = read(path).ok()?;
        let (marker, places) = Self::parse_with_places(&bytes)?;
        // Opened for writing, which a frozen file system allows: only the writing itself would wait.
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32;
        let file = File::options().write(true).custom_flags(flags).open(path).ok()?;
        Some((marker, MarkerFile { file, places }))
    }

    /// Reads the file's content; `None` if it does not say which boot it belongs to.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::parse_with_places(bytes).map(|(marker, _)| marker)
    }

    /// Also where the phase is, and each hook's state.
    fn parse_with_places(bytes: &[u8]) -> Option<(Self, Places)> {
        let (mut marker, mut places) = (Self::default(), Places::default());
        let mut line_at = 0;
        for line in bytes.split(|byte| *byte == b'\n') {
            let begin = line_at;
            line_at += line.len() as u64 + 1;
            let Some(at) = line.iter().position(|byte| *byte == b'=') else { continue };
            let (name, value) = (&line[..at], &line[at + 1..]);
            let value_at = begin + at as u64 + 1;
            let seconds = || Some(Duration::from_secs(std::str::from_utf8(value).ok()?.parse().ok()?));
            match name {
                b"boot-id" => marker.boot_id = String::from_utf8_lossy(value).into_owned(),
                b"id" => {
                    marker.id = String::from_utf8_lossy(value).into_owned();
                    places.id = Some((value_at, value.len()));
                }
                b"phase" => {
                    if let [byte] = value {
                        (marker.phase, places.phase) = (Phase::of_byte(*byte), Some(value_at));
                    }
                }
                b"frozen-at" => marker.frozen_at = seconds().unwrap_or_default(),
                b"deadline" => marker.deadline = seconds(),
                b"mount" => marker.mounts.extend(mount(value)),
                b"hook" => {
                    // What does not say how far the hook is was written by an agent of an earlier version.
                    let (state, path) = match value {
                        [byte, b' ', path @ ..] => (HookState::of_byte(*byte).unwrap_or_default(), path),
                        path => (HookState::default(), path),
                    };
                    marker.hooks.push((unescape(path), state));
                    places.hooks.push(value_at);
                }
                b"script" => marker.script = Some(unescape(value)),
                b"hook-timeout" => marker.hook_patience = seconds().unwrap_or_default(),
                _ => {}
            }
        }
        (!marker.boot_id.is_empty()).then_some((marker, places))
    }

    /// Puts it into its place, whole or not at all, and keeps it open for its changes.
    pub fn create(&self, path: &Path) -> io::Result<MarkerFile> {
        let text = self.text();
        whole_file::write(path, text.as_bytes())?;
        // Nobody else writes it: the lock of the state directory is this process's.
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32;
        let file = File::options().write(true).custom_flags(flags).open(path)?;
        let places = Self::parse_with_places(text.as_bytes()).map_or_else(Places::default, |(_, places)| places);
        Ok(MarkerFile { file, places })
    }
}

impl MarkerFile {
    /// Notes how far the freeze is.
    pub fn set_phase(&self, phase: Phase) -> io::Result<()> {
        self.set(self.places.phase, &[phase.byte()])
    }

    /// Notes how far a hook is.
    pub fn set_hook(&self, index: usize, state: HookState) -> io::Result<()> {
        self.set(self.places.hooks.get(index).copied(), &[state.byte()])
    }

    /// Gives the freeze another identity, as long as the one before.
    pub fn set_id(&self, id: &str) -> io::Result<()> {
        match self.places.id {
            Some((place, length)) if length == id.len() => self.set(Some(place), id.as_bytes()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn set(&self, place: Option<u64>, bytes: &[u8]) -> io::Result<()> {
        // A file of an earlier version has no place for it.
        let Some(place) = place else { return Ok(()) };
        let written = rustix::io::pwrite(&self.file, bytes, place)?;
        if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
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
    use crate::freeze::machine::{HookState, Phase, Why};
    use crate::system::mounts::DeviceNumber;
    use crate::system::root::Root;
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::ffi::OsStringExt;
    use std::time::{Duration, SystemTime};

    fn example() -> Marker {
        Marker {
            id: "5-7".to_owned(),
            phase: Phase::Hooks,
            boot_id: "b1".to_owned(),
            frozen_at: Duration::from_secs(100),
            deadline: Some(Duration::from_secs(3700)),
            mounts: ["/".into(), "/a b\nmount=/c\\d".into(), OsString::from_vec(b"/x\xff=".to_vec()).into()]
                .map(|path| (DeviceNumber { major: 8, minor: 1 }, path))
                .to_vec(),
            hooks: vec![
                ("/etc/qemu/fsfreeze-hook".into(), HookState::Planned),
                ("/etc/qemu/fsfreeze-hook.d/a\nb".into(), HookState::Done),
            ],
            script: Some("/etc/qemu/fsfreeze-hook".into()),
            hook_patience: Duration::from_secs(60),
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
    fn what_changes_is_changed_in_place_by_whoever_has_the_file_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("marker");
        let file = example().create(&path).unwrap();
        let size = fs::metadata(&path).unwrap().len();
        file.set_phase(Phase::Frozen).unwrap();
        file.set_hook(0, HookState::Freeze).unwrap();
        let (found, later) = Marker::open(&path).unwrap();
        assert_eq!(
            (found.phase, found.hooks[0].1, found.hooks[1].1),
            (Phase::Frozen, HookState::Freeze, HookState::Done)
        );
        // It stays the same file under another name.
        let told = directory.path().join("told");
        fs::rename(&path, &told).unwrap();
        later.set_phase(Phase::Early(Why::Killed)).unwrap();
        file.set_hook(0, HookState::Thaw).unwrap();
        let found = Marker::open(&told).unwrap().0;
        assert_eq!((found.phase, found.hooks[0].1), (Phase::Early(Why::Killed), HookState::Thaw));
        assert_eq!(fs::metadata(&told).unwrap().len(), size);
        assert_eq!(Marker { phase: example().phase, hooks: example().hooks, ..found }, example());
    }

    #[test]
    fn the_file_of_an_earlier_version_is_understood() {
        let old = b"boot-id=b1\nfrozen-at=1\ndeadline=9\nmount=8:1 /\nhook=/etc/qemu/fsfreeze-hook\nhook-timeout=60\n";
        let marker = Marker::parse(old).unwrap();
        assert_eq!(marker.hooks, [("/etc/qemu/fsfreeze-hook".into(), HookState::Freeze)]);
        assert_eq!((marker.phase, marker.mounts.len()), (Phase::Frozen, 1));
        // It had no mounts while only hooks waited.
        assert!(Marker::parse(b"boot-id=b1\nhook=/x\n").unwrap().mounts.is_empty());
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
        example().create(&path).unwrap();
        assert_eq!(look(&root, &path), Found::Ours(example()));
        Marker { boot_id: "b0".to_owned(), ..example() }.create(&path).unwrap();
        assert_eq!(look(&root, &path), Found::Stale);
        // Anybody may have written to it: it says that something is frozen, and no more.
        example().create(&path).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o622)).unwrap();
        assert_eq!(look(&root, &path), Found::Unknown);
        assert!(Marker::open(&path).is_none());
        fs::remove_file(&path).unwrap();
        // The original's.
        fs::write(&path, "").unwrap();
        assert_eq!(look(&root, &path), Found::Unknown);
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(look(&root, &path), Found::Stale);
    }
}
