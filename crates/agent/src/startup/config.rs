//! The configuration: what the file and the command line set, and what follows from it for this run.
//!
//! [`Settings`] is what was given, word for word, with where it was given: it can be dumped and names the culprit in a
//! message. [`Configuration`] is what the agent runs by: defaults filled in, paths absolute (a daemon's directory is
//! `/`), lists turned into a [`Policy`]. A new key is a [`Key`], a field of both structs and a line in `resolve`; its
//! option is a line in `options.rs`.
//!
//! Order: built-in, then one file, then the command line, then socket activation.

use crate::startup::command_line::Environment;
use crate::startup::policy::{self, Policy};
use crate::system::error::StartFailure;
use crate::system::key_file::{self, KeyFile};
use crate::system::root::Root;
use crate::system::trusted_path::{self, Walk};
use crate::transport::vsock_peers::VsockPeers;
use rustix::fs::{FileType, Mode, OFlags};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that is read if neither `--config` nor `QGA_CONF` names one.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/qemu/qemu-ga.conf";
/// The port a hypervisor gives the agent.
pub const DEFAULT_VIRTIO_PATH: &str = "/dev/virtio-ports/org.qemu.guest_agent.0";
/// The first serial port.
pub const DEFAULT_SERIAL_PATH: &str = "/dev/ttyS0";
/// Where a daemon writes its process id.
pub const DEFAULT_PIDFILE: &str = "/var/run/qemu-ga.pid";
/// Where the counter of file handles and the mark of a frozen agent are kept.
pub const DEFAULT_STATEDIR: &str = "/var/run";
/// The program run around a freeze, if `--fsfreeze-hook` is given without a value.
pub const DEFAULT_FSFREEZE_HOOK: &str = "/etc/qemu/fsfreeze-hook";
/// The directory of programs run around a freeze, if neither it nor a single program is given.
pub const DEFAULT_FSFREEZE_HOOK_DIR: &str = "/etc/qemu/fsfreeze-hook.d";
/// How long each program around a freeze may take.
pub const DEFAULT_FSFREEZE_HOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a freeze may last: longer than any snapshot takes, shorter than anybody waits for a machine that hangs.
pub const DEFAULT_FSFREEZE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Seconds that `fsfreeze-hook-timeout` may be: a hook without any limit would be a freeze without an end.
const HOOK_TIMEOUT_SECONDS: RangeInclusive<u64> = 1..=86_400;
/// Seconds that `fsfreeze-timeout` may be; 0 is for never.
const FREEZE_TIMEOUT_SECONDS: RangeInclusive<u64> = 0..=31_536_000;

/// The only group the file has.
const GROUP: &str = "general";
/// No sensible file is larger; a device given by mistake would never end.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// How the host is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A port of a virtio-serial device.
    VirtioSerial,
    /// A serial port.
    IsaSerial,
    /// A listening unix socket.
    UnixListen,
    /// A listening `AF_VSOCK` socket.
    VsockListen,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::VirtioSerial, Self::IsaSerial, Self::UnixListen, Self::VsockListen];

    /// The word for it in options and file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VirtioSerial => "virtio-serial",
            Self::IsaSerial => "isa-serial",
            Self::UnixListen => "unix-listen",
            Self::VsockListen => "vsock-listen",
        }
    }

    /// The method with this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Where it is found if no path is given; the listening ones have no such place.
    #[must_use]
    pub const fn default_path(self) -> Option<&'static str> {
        match self {
            Self::VirtioSerial => Some(DEFAULT_VIRTIO_PATH),
            Self::IsaSerial => Some(DEFAULT_SERIAL_PATH),
            Self::UnixListen | Self::VsockListen => None,
        }
    }
}

/// A listening socket that the service manager opened for the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketActivation {
    /// Its number in this process: always 3, the first one handed over.
    pub descriptor: i32,
}

/// What the agent runs by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// How the host is reached.
    pub method: Method,
    /// Device, socket or `<cid>:<port>`; None under socket activation.
    pub path: Option<String>,
    /// None: stderr.
    pub logfile: Option<PathBuf>,
    /// Written by a daemon alone.
    pub pidfile: PathBuf,
    /// The program run around a freeze.
    pub fsfreeze_hook: Option<PathBuf>,
    /// The directory of programs run around a freeze. The default only if there is no single program either: the one
    /// that distributions ship runs that directory itself.
    pub fsfreeze_hook_dir: Option<PathBuf>,
    /// How long each of these programs may take.
    pub fsfreeze_hook_timeout: Duration,
    /// How long a freeze may last before the agent thaws by itself; None: for ever.
    pub fsfreeze_timeout: Option<Duration>,
    /// Who may connect to a vsock.
    pub vsock_peers: VsockPeers,
    /// Where the state files are.
    pub statedir: PathBuf,
    /// Log everything.
    pub verbose: bool,
    /// Go to the background.
    pub daemon: bool,
    /// Try again when the path is missing or fails.
    pub retry_path: bool,
    /// Which commands may be asked for.
    pub policy: Policy,
    /// The socket to serve instead of opening one.
    pub socket_activation: Option<SocketActivation>,
    /// What was odd while reading; to be logged once the log is open.
    pub warnings: Vec<String>,
}

/// A key of the configuration file. [`Key::ALL`] is the order of `--dump-conf`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `--daemonize`
    Daemon,
    /// `--method`
    Method,
    /// `--path`
    Path,
    /// `--logfile`
    Logfile,
    /// `--pidfile`
    Pidfile,
    /// `--fsfreeze-hook`
    FsfreezeHook,
    /// `--fsfreeze-hook-dir`
    FsfreezeHookDir,
    /// `--fsfreeze-hook-timeout`
    FsfreezeHookTimeout,
    /// `--fsfreeze-timeout`
    FsfreezeTimeout,
    /// `--vsock-peers`
    VsockPeers,
    /// `--statedir`
    Statedir,
    /// `--verbose`
    Verbose,
    /// `--retry-path`
    RetryPath,
    /// `--block-rpcs`
    BlockRpcs,
    /// `--allow-rpcs`
    AllowRpcs,
}

impl Key {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Daemon,
        Self::Method,
        Self::Path,
        Self::Logfile,
        Self::Pidfile,
        Self::FsfreezeHook,
        Self::FsfreezeHookDir,
        Self::FsfreezeHookTimeout,
        Self::FsfreezeTimeout,
        Self::VsockPeers,
        Self::Statedir,
        Self::Verbose,
        Self::RetryPath,
        Self::BlockRpcs,
        Self::AllowRpcs,
    ];

    /// The word for it in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Method => "method",
            Self::Path => "path",
            Self::Logfile => "logfile",
            Self::Pidfile => "pidfile",
            Self::FsfreezeHook => "fsfreeze-hook",
            Self::FsfreezeHookDir => "fsfreeze-hook-dir",
            Self::FsfreezeHookTimeout => "fsfreeze-hook-timeout",
            Self::FsfreezeTimeout => "fsfreeze-timeout",
            Self::VsockPeers => "vsock-peers",
            Self::Statedir => "statedir",
            Self::Verbose => "verbose",
            Self::RetryPath => "retry-path",
            Self::BlockRpcs => "block-rpcs",
            Self::AllowRpcs => "allow-rpcs",
        }
    }
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// On the command line, by this option (`--path`, `-p`).
    Option(String),
    /// In a configuration file.
    File {
        /// As it was named.
        path: String,
        /// Counted from 1.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(option) => write!(f, "option '{option}'"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
        }
    }
}

/// A value with where it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Word for word.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

/// What file and command line set, word for word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    daemon: bool,
    verbose: bool,
    retry_path: bool,
    method: Option<Given>,
    path: Option<Given>,
    logfile: Option<Given>,
    pidfile: Option<Given>,
    fsfreeze_hook: Option<Given>,
    fsfreeze_hook_dir: Option<Given>,
    fsfreeze_hook_timeout: Option<Given>,
    fsfreeze_timeout: Option<Given>,
    vsock_peers: Option<Given>,
    statedir: Option<Given>,
    block_lists: Vec<Given>,
    allow_lists: Vec<Given>,
    warnings: Vec<String>,
    /// Why the file may not be root's word: somebody else could change it.
    distrust: Option<String>,
}

impl Settings {
    /// Reads a configuration file; one that need not exist may be missing, but not be unreadable or wrong.
    pub fn of_file(path: &Path, must_exist: bool) -> Result<Self, StartFailure> {
        let shown = path.display().to_string();
        let act = format!("cannot read the configuration file '{shown}'");
        let read = || -> io::Result<(Walk, Vec<u8>)> {
            let walk = trusted_path::walk(&Root::host(), path)?;
            // Looked at before it is opened: opening a FIFO would wait for a writer.
            if walk.kind().is_some_and(|kind| kind != FileType::RegularFile) {
                return Err(io::Error::other("not a regular file"));
            }
            let file = File::from(walk.open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?);
            let mut bytes = Vec::new();
            file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes)?;
            Ok((walk, bytes))
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => Ok(Self::default()),
            Err(error) => Err(StartFailure::of(act, &error)),
            Ok((_, bytes)) if bytes.len() as u64 > MAX_CONFIG_BYTES => {
                Err(StartFailure::new(format!("{act}: it is larger than {MAX_CONFIG_BYTES} bytes")))
            }
            Ok((walk, bytes)) => {
                let mut settings = Self::of_bytes(&shown, &bytes)?;
                let mut warnings = Vec::new();
                let refusal = trusted_path::first_refusal(&walk, true, |doubt| warnings.push(doubt.to_string()));
                let obeys = "the agent, which is root, does what is in it";
                settings.distrust =
                    refusal.map(|doubt| format!("cannot obey the configuration file '{shown}': {doubt}; {obeys}"));
                settings
                    .warnings
                    .extend(warnings.iter().map(|text| format!("the configuration file '{shown}': {text}")));
                Ok(settings)
            }
        }
    }

    /// Reads a configuration file's content; `path` is what messages call it.
    pub fn of_bytes(path: &str, bytes: &[u8]) -> Result<Self, StartFailure> {
        let at = |line: usize| Origin::File { path: path.to_owned(), line };
        let failed = |problem: key_file::Problem| StartFailure::new(format!("{}: {}", at(problem.line), problem.text));
        let file = KeyFile::parse(bytes).map_err(failed)?;
        let mut settings = Self::default();
        for (group, line) in file.groups.iter().filter(|(group, _)| group != GROUP) {
            let group = group.escape_debug();
            settings
                .warn(&at(*line), &format!("unknown group '[{group}]' is ignored: the keys belong under '[{GROUP}]'"));
        }
        for entry in file.entries.iter().filter(|entry| entry.group == GROUP) {
            let origin = at(entry.line);
            if entry.key == "blacklist" {
                // Its name up to 8.x. Later versions ignore it, so that an old file blocks nothing any more.
                settings.warn(&origin, "the key 'blacklist' is now called 'block-rpcs'");
                settings.block_lists.push(Given { text: entry.text().map_err(failed)?, origin });
                continue;
            }
            let Some(key) = Key::ALL.into_iter().find(|key| key.name() == entry.key) else {
                let near = policy::nearest(&entry.key, Key::ALL.iter().map(|key| key.name()));
                let hint = near.map_or(String::new(), |near| format!(": did you mean '{near}'?"));
                settings.warn(&origin, &format!("unknown key '{}' is ignored{hint}", entry.key.escape_debug()));
                continue;
            };
            if file.last(GROUP, key.name()) != Some(entry) {
                settings.warn(&origin, &format!("the key '{}' is given again below: this one is ignored", key.name()));
            } else if let Some(switch) = settings.switch(key) {
                *switch = entry.boolean().map_err(failed)?;
            } else {
                settings.set(key, Given { text: entry.text().map_err(failed)?, origin });
            }
        }
        Ok(settings)
    }

    fn warn(&mut self, origin: &Origin, text: &str) {
        self.warnings.push(format!("{origin}: {text}"));
    }

    fn switch(&mut self, key: Key) -> Option<&mut bool> {
        match key {
            Key::Daemon => Some(&mut self.daemon),
            Key::Verbose => Some(&mut self.verbose),
            Key::RetryPath => Some(&mut self.retry_path),
            _ => None,
        }
    }

    fn value(&self, key: Key) -> Option<&Given> {
        match key {
            Key::Method => self.method.as_ref(),
            Key::Path => self.path.as_ref(),
            Key::Logfile => self.logfile.as_ref(),
            Key::Pidfile => self.pidfile.as_ref(),
            Key::FsfreezeHook => self.fsfreeze_hook.as_ref(),
            Key::FsfreezeHookDir => self.fsfreeze_hook_dir.as_ref(),
            Key::FsfreezeHookTimeout => self.fsfreeze_hook_timeout.as_ref(),
            Key::FsfreezeTimeout => self.fsfreeze_timeout.as_ref(),
            Key::VsockPeers => self.vsock_peers.as_ref(),
            Key::Statedir => self.statedir.as_ref(),
            Key::Daemon | Key::Verbose | Key::RetryPath | Key::BlockRpcs | Key::AllowRpcs => None,
        }
    }

    /// Turns on a key that is on or off.
    pub fn switch_on(&mut self, key: Key) {
        if let Some(switch) = self.switch(key) {
            *switch = true;
        }
    }

    /// Sets a key; lists add up, of everything else the last one counts.
    pub fn set(&mut self, key: Key, given: Given) {
        match key {
            Key::Method => self.method = Some(given),
            Key::Path => self.path = Some(given),
            Key::Logfile => self.logfile = Some(given),
            Key::Pidfile => self.pidfile = Some(given),
            Key::FsfreezeHook => self.fsfreeze_hook = Some(given),
            Key::FsfreezeHookDir => self.fsfreeze_hook_dir = Some(given),
            Key::FsfreezeHookTimeout => self.fsfreeze_hook_timeout = Some(given),
            Key::FsfreezeTimeout => self.fsfreeze_timeout = Some(given),
            Key::VsockPeers => self.vsock_peers = Some(given),
            Key::Statedir => self.statedir = Some(given),
            Key::BlockRpcs => self.block_lists.push(given),
            Key::AllowRpcs => self.allow_lists.push(given),
            Key::Daemon | Key::Verbose | Key::RetryPath => self.switch_on(key),
        }
    }

    fn method_name(&self) -> &str {
        self.method.as_ref().map_or(Method::VirtioSerial.name(), |given| &given.text)
    }

    /// What is connected to: as given, or the method's own place. None under socket activation.
    fn path_text(&self, activated: Option<Method>) -> Result<Option<String>, StartFailure> {
        if activated.is_some() {
            return Ok(None);
        }
        if let Some(given) = &self.path {
            return Ok(Some(given.text.clone()));
        }
        let name = self.method_name();
        match Method::of_name(name) {
            Some(method) => match method.default_path() {
                Some(path) => Ok(Some(path.to_owned())),
                None => Err(StartFailure::new(format!("the method '{name}' needs a path: give one with '--path'"))),
            },
            None => Err(self.unknown_method(name)),
        }
    }

    fn unknown_method(&self, name: &str) -> StartFailure {
        let origin = self.method.as_ref().map_or(String::new(), |given| format!("{}: ", given.origin));
        let names = Method::ALL.map(Method::name);
        let hint = match policy::nearest(name, names.into_iter()) {
            _ if names.contains(&name.trim()) => " (there is a blank around it)".to_owned(),
            Some(near) => format!(": did you mean '{near}'?"),
            None => String::new(),
        };
        let name = name.escape_debug();
        StartFailure::new(format!("{origin}unknown method '{name}'{hint}: there are {}", names.join(", ")))
    }

    /// How long each hook and a whole freeze may take.
    fn freeze_limits(&self) -> Result<(Duration, Option<Duration>), StartFailure> {
        let hook = self.seconds(Key::FsfreezeHookTimeout, &HOOK_TIMEOUT_SECONDS)?;
        let freeze = self.seconds(Key::FsfreezeTimeout, &FREEZE_TIMEOUT_SECONDS)?;
        Ok((
            hook.unwrap_or(DEFAULT_FSFREEZE_HOOK_TIMEOUT),
            Some(freeze.unwrap_or(DEFAULT_FSFREEZE_TIMEOUT)).filter(|limit| !limit.is_zero()),
        ))
    }

    /// Who may connect to a vsock.
    fn vsock_peers(&self) -> Result<VsockPeers, StartFailure> {
        let Some(Given { text, origin }) = &self.vsock_peers else { return Ok(VsockPeers::default()) };
        VsockPeers::parse(text)
            .map_err(|cause| StartFailure::new(format!("{origin}: {}: {cause}", Key::VsockPeers.name())))
    }

    /// The value of a key that is a time.
    fn seconds(&self, key: Key, range: &RangeInclusive<u64>) -> Result<Option<Duration>, StartFailure> {
        let Some(Given { text, origin }) = self.value(key) else { return Ok(None) };
        match text.parse() {
            Ok(seconds) if range.contains(&seconds) => Ok(Some(Duration::from_secs(seconds))),
            _ => Err(StartFailure::new(format!(
                "{origin}: the value '{}' of {} is no number of seconds from {} to {}",
                text.escape_debug(),
                key.name(),
                range.start(),
                range.end()
            ))),
        }
    }

    /// The file that gives these settings when it is read back. Names of methods and commands are not checked.
    pub fn dumped(&self, activated: Option<Method>) -> Result<String, StartFailure> {
        self.freeze_limits()?;
        self.vsock_peers()?;
        let mut text = format!("[{GROUP}]\n");
        let path = self.path_text(activated)?;
        let or = |key: Key, default: &str| Some(self.value(key).map_or(default, |given| &given.text).to_owned());
        for key in Key::ALL {
            let value = match key {
                Key::Daemon => Some(self.daemon.to_string()),
                Key::Verbose => Some(self.verbose.to_string()),
                Key::RetryPath => Some(self.retry_path.to_string()),
                Key::Method => {
                    Some(activated.map_or_else(|| self.method_name().to_owned(), |method| method.name().to_owned()))
                }
                Key::Path => path.clone(),
                // The original does not know the latter four: without them the dump is exactly its own.
                Key::Logfile
                | Key::FsfreezeHook
                | Key::FsfreezeHookDir
                | Key::FsfreezeHookTimeout
                | Key::FsfreezeTimeout
                | Key::VsockPeers => self.value(key).map(|given| given.text.clone()),
                Key::Pidfile => or(key, DEFAULT_PIDFILE),
                Key::Statedir => or(key, DEFAULT_STATEDIR),
                Key::BlockRpcs => Some(policy::dumped(&self.block_lists)),
                Key::AllowRpcs => Some(policy::dumped(&self.allow_lists)),
            };
            if let Some(value) = value {
                let _ = writeln!(text, "{}={}", key.name(), key_file::escape(&value));
            }
        }
        Ok(text)
    }

    /// What follows for this run.
    pub fn resolved(self, environment: &Environment, activated: Option<Method>) -> Result<Configuration, StartFailure> {
        if let Some(text) = &self.distrust {
            return Err(StartFailure::new(text.clone()));
        }
        let path = self.path_text(activated)?;
        let name = self.method_name();
        let method = match activated {
            Some(method) => method,
            None => Method::of_name(name).ok_or_else(|| self.unknown_method(name))?,
        };
        let place = |key: Key| self.value(key).map(|given| absolute(&environment.directory, Path::new(&given.text)));
        let path = path.map(|path| match method {
            // An empty name is the caller's to judge; joined to the directory it would mean that directory.
            Method::VirtioSerial | Method::IsaSerial | Method::UnixListen if !path.is_empty() => {
                absolute(&environment.directory, Path::new(&path)).to_string_lossy().into_owned()
            }
            _ => path,
        });
        let (fsfreeze_hook_timeout, fsfreeze_timeout) = self.freeze_limits()?;
        let fsfreeze_hook = place(Key::FsfreezeHook);
        let fsfreeze_hook_dir = match place(Key::FsfreezeHookDir) {
            None => fsfreeze_hook.is_none().then(|| DEFAULT_FSFREEZE_HOOK_DIR.into()),
            Some(given) => Some(given).filter(|given| !given.as_os_str().is_empty()),
        };
        let mut warnings = self.warnings.clone();
        if let (Some(hook), Some(directory)) = (&fsfreeze_hook, &fsfreeze_hook_dir)
            && hook.parent().map(|parent| parent.join("fsfreeze-hook.d")).as_ref() == Some(directory)
        {
            warnings.push(format!(
                "both '{}' and the directory '{}' are run around a freeze: if the former runs the latter, as the one \
                 that distributions ship does, everything there is run twice",
                hook.display(),
                directory.display()
            ));
        }
        let policy = Policy::from_lists(&self.allow_lists, &self.block_lists, &mut warnings)?;
        Ok(Configuration {
            method,
            path,
            logfile: place(Key::Logfile),
            pidfile: place(Key::Pidfile).unwrap_or_else(|| DEFAULT_PIDFILE.into()),
            fsfreeze_hook,
            fsfreeze_hook_dir,
            fsfreeze_hook_timeout,
            fsfreeze_timeout,
            vsock_peers: self.vsock_peers()?,
            statedir: place(Key::Statedir).unwrap_or_else(|| DEFAULT_STATEDIR.into()),
            verbose: self.verbose,
            daemon: self.daemon,
            retry_path: self.retry_path,
            policy,
            socket_activation: activated.map(|_| SocketActivation { descriptor: 3 }),
            warnings,
        })
    }
}

/// A path that still means the same after the daemon went to `/`. An empty one stays what it is: an error later.
fn absolute(directory: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::new() } else { directory.join(path) }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
