//! The programs that are told before a freeze and after a thaw: a script, as the original has it, and every program of
//! a directory.
//!
//! Each is called with one argument, `freeze` or `thaw`, and with /dev/null as its input. A program that was started
//! for a freeze is called for the thaw too, however it ended, and in reverse order: who comes last goes first. A
//! program that fails or takes too long ends the freeze. All of a directory is looked at before anything is started:
//! what others than root could have put there is refused, not left out, since a snapshot without it might be worthless.
//!
//! Nothing here runs while file systems are frozen: a program that waits for the disk would wait for the thaw, which
//! would wait for the program.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::journal::Journal;
use super::machine::{HOOK, HookState, HookStep};
use super::record::Record;
use crate::process::child::Exit;
use crate::process::system_tool::{Ended, Tool};
use crate::startup::config::DEFAULT_FSFREEZE_HOOK_DIR;
use crate::system::error::{Error, cause_text};
use crate::system::root::Root;
use crate::system::trusted_path::{self, Doubt};

/// What editors and package managers leave beside a program.
const IGNORED_ENDINGS: [&str; 14] = [
    "~",
    ".bak",
    ".orig",
    ".rpmnew",
    ".rpmorig",
    ".rpmsave",
    ".sample",
    ".dpkg-old",
    ".dpkg-new",
    ".dpkg-tmp",
    ".dpkg-dist",
    ".dpkg-bak",
    ".dpkg-backup",
    ".dpkg-remove",
];
/// Most lines of one call's output that go to the log.
const LOGGED_LINES_MAX: usize = 100;
/// Most bytes of the output that go into an error.
const ERROR_OUTPUT_BYTES_MAX: usize = 4096;

/// The bits of a mode that let somebody execute a file.
const ANYBODY_EXECUTES: u32 = 0o111;

/// The programs that are told before a freeze and after a thaw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    script: Option<PathBuf>,
    directory: Option<PathBuf>,
    patience_each: Duration,
}

/// The hooks that were started with `freeze`, in that order; each is to be called with `thaw`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran(Vec<PathBuf>);

impl Ran {
    /// What an earlier agent has noted.
    pub fn of(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }

    /// To be noted for a later agent.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }
}

/// What a hook is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Freeze,
    Thaw,
}

impl Verb {
    const fn word(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
        }
    }
}

impl Hooks {
    /// The script comes first; then the programs of the directory. The default directory may be missing, any other must
    /// be there. Each call may take `patience_each`.
    pub fn new(script: Option<PathBuf>, directory: Option<PathBuf>, patience_each: Duration) -> Self {
        Self { script, directory, patience_each }
    }

    /// The configured script.
    pub fn script(&self) -> Option<&Path> {
        self.script.as_deref()
    }

    /// How long each call may take.
    pub fn patience_each(&self) -> Duration {
        self.patience_each
    }

    /// The hooks that a freeze would call; none if they are not fit to be run, which the freeze itself tells.
    pub fn planned(&self, root: &Root) -> Vec<PathBuf> {
        self.all(root).unwrap_or_default()
    }

    /// Calls the hooks with `freeze`, in order, and stops at the first failure. Every hook that was started is in the
    /// result, so that it gets its `thaw`.
    ///
    /// `cancelled` is asked between and during the calls, and is true once a thaw has come in: then the hook that runs
    /// is killed and the error says so.
    pub fn freeze(&self, root: &Root, journal: &Journal, cancelled: &dyn Fn() -> bool) -> (Ran, Result<(), Error>) {
        let mut ran = Ran::default();
        let outcome = self.all(root).and_then(|hooks| {
            for hook in hooks {
                if cancelled() {
                    return Err(Error::new(format!(
                        "the freeze was given up for a thaw before fsfreeze hook '{}' was run",
                        hook.display()
                    )));
                }
                let (was_started, outcome) = self.call(root, &hook, Verb::Freeze, journal, cancelled);
                if was_started {
                    ran.0.push(hook);
                }
                outcome?;
            }
            Ok(())
        });
        (ran, outcome)
    }

    /// Calls what [`freeze`](Self::freeze) called with `thaw`, in reverse order. It goes on after a failure; the first
    /// one is the error.
    pub fn thaw(&self, root: &Root, journal: &Journal, ran: Ran) -> Result<(), Error> {
        let outcomes = ran.0.into_iter().rev().map(|hook| {
            self.check(root, &hook)?;
            self.call(root, &hook, Verb::Thaw, journal, &|| false).1
        });
        // All of them first: collecting into a result would stop at an error.
        let outcomes: Vec<Result<(), Error>> = outcomes.collect();
        outcomes.into_iter().collect()
    }

    /// All hooks in their order, each of them fit to be run.
    fn all(&self, root: &Root) -> Result<Vec<PathBuf>, Error> {
        let mut hooks: Vec<PathBuf> = self.script.iter().cloned().collect();
        if let Some(directory) = &self.directory {
            hooks.extend(programs_in(root, directory)?);
        }
        for hook in &hooks {
            self.check(root, hook)?;
        }
        Ok(hooks)
    }

    fn is_script(&self, hook: &Path) -> bool {
        self.script.as_deref() == Some(hook)
    }

    /// Whether only root decides what would be run: every step of the path and the program itself. The script may belong
    /// to a group, as with the original.
    fn check(&self, root: &Root, hook: &Path) -> Result<(), Error> {
        let refused = |reason: &str| Error::new(format!("fsfreeze hook '{}' is not run: {reason}", hook.display()));
        let missing = || io::Error::from(Errno::NOENT);
        let walk =
            match trusted_path::walk(root, hook).and_then(|walk| walk.is_there().then_some(walk).ok_or_else(missing)) {
                Ok(walk) => walk,
                // What starts it reports that it is missing.
                Err(_) if self.is_script(hook) => return Ok(()),
                Err(error) => return Err(refused(&cause_text(&error))),
            };
        let warn = |doubt: &Doubt| log::warn!("fsfreeze hook '{}': {doubt}", hook.display());
        match trusted_path::first_refusal(&walk, self.is_script(hook), warn) {
            Some(doubt) => Err(refused(&doubt.to_string())),
            None => Ok(()),
        }
    }

    /// Calls one hook, step by step, each noted before it is done: whether it was started, and how it went. A `freeze`
    /// that cannot be noted is not run, a `thaw` is.
    fn call(
        &self,
        root: &Root,
        hook: &Path,
        verb: Verb,
        journal: &Journal,
        cancelled: &dyn Fn() -> bool,
    ) -> (bool, Result<(), Error>) {
        let mut record = None;
        let mut called = (false, Ok(()));
        for step in HOOK {
            let noted = match (step, verb) {
                (HookStep::Record, _) => journal.record().map(|made| record = made),
                (HookStep::Note, Verb::Freeze) => journal.set_hook(hook, HookState::Freeze),
                (HookStep::Note, Verb::Thaw) => journal.set_hook(hook, HookState::Thaw),
                (HookStep::Run, _) => {
                    called = self.run(root, hook, verb, record.as_ref(), cancelled);
                    Ok(())
                }
                (HookStep::NoteEnd, Verb::Freeze) if !called.0 => journal.set_hook(hook, HookState::Planned),
                (HookStep::NoteEnd, Verb::Freeze) => Ok(()),
                (HookStep::NoteEnd, Verb::Thaw) => journal.set_hook(hook, HookState::Done),
                (HookStep::Forget, _) => {
                    if let Some(record) = record.take() {
                        record.remove();
                    }
                    Ok(())
                }
            };
            match noted {
                Ok(()) => {}
                Err(error) if verb == Verb::Freeze && !called.0 => {
                    if let Some(record) = record.take() {
                        record.remove();
                    }
                    let text = format!("fsfreeze hook '{}' is not run: {}", hook.display(), error.desc);
                    return (false, called.1.and(Err(Error::new(text))));
                }
                Err(error) => log::warn!("fsfreeze hook '{}' {}: {}", hook.display(), verb.word(), error.desc),
            }
        }
        called
    }

    /// Runs one hook: whether it was started, and how it went.
    fn run(
        &self,
        root: &Root,
        hook: &Path,
        verb: Verb,
        record: Option<&Record>,
        cancelled: &dyn Fn() -> bool,
    ) -> (bool, Result<(), Error>) {
        let name = if self.is_script(hook) { None } else { hook.file_name() };
        let named = name.map_or(String::new(), |name| format!("{}: ", name.to_string_lossy()));
        let failed = |cause: &str| {
            let error = Error::new(format!("child process has failed to execute fsfreeze hook: {named}{cause}"));
            log::warn!("fsfreeze hook '{}' {}: {cause}", hook.display(), verb.word());
            Err(error)
        };
        log::info!("fsfreeze hook '{}' {} begins", hook.display(), verb.word());
        let mark = record.map(Record::mark);
        let ended = match Tool::at(root.path(hook)).run_unless(
            cancelled,
            mark.as_ref(),
            &[verb.word()],
            b"",
            self.patience_each,
        ) {
            Ok(ended) => ended,
            Err(error) => {
                return (false, failed(&format!("failed to exec '{}': {}", hook.display(), cause_text(&error))));
            }
        };
        tell_output(hook, verb, &ended);
        let output = shortened(&ended.output);
        let or_output = |text: &str| if output.is_empty() { text.to_owned() } else { output.to_owned() };
        let with_output = |text: String| if output.is_empty() { text } else { format!("{text}: {output}") };
        let outcome = match ended.exit {
            Some(Exit::Code(0)) => {
                log::info!("fsfreeze hook '{}' {} has succeeded", hook.display(), verb.word());
                Ok(())
            }
            Some(Exit::Code(code)) => failed(&or_output(&format!("exit status {code}"))),
            Some(Exit::Signal(signal)) => {
                log::warn!("fsfreeze hook '{}' {}: ended by signal {signal}", hook.display(), verb.word());
                let of_hook = name.map_or(String::new(), |name| format!(" (fsfreeze hook {})", name.to_string_lossy()));
                Err(Error::new(with_output(format!("child process has terminated abnormally{of_hook}"))))
            }
            None if cancelled() => {
                let text = "was killed, because a thaw has come in";
                log::warn!("fsfreeze hook '{}' {} {text}", hook.display(), verb.word());
                Err(Error::new(format!("the freeze was given up: fsfreeze hook '{}' {text}", hook.display())))
            }
            None => {
                let seconds = self.patience_each.as_secs_f64();
                failed(&with_output(format!("it did not end within {seconds} s and was killed")))
            }
        };
        (true, outcome)
    }
}

/// The programs of a directory, by the bytes of their names.
fn programs_in(root: &Root, directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed =
        |cause: &str| Error::new(format!("the fsfreeze hooks of '{}' are not run: {cause}", directory.display()));
    let because = |error: io::Error| failed(&cause_text(&error));
    let walk = match trusted_path::walk(root, directory) {
        Ok(walk) if walk.is_there() => walk,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(because(error)),
        _ if directory == Path::new(DEFAULT_FSFREEZE_HOOK_DIR) => return Ok(Vec::new()),
        _ => return Err(because(Errno::NOENT.into())),
    };
    if walk.kind() != Some(FileType::Directory) {
        return Err(failed("it is no directory"));
    }
    if let Some(doubt) = walk.doubts().first() {
        return Err(failed(&doubt.to_string()));
    }
    let entries = fs::read_dir(root.path(walk.real())).map_err(because)?;
    let entries = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = entries.collect::<io::Result<Vec<_>>>().map_err(because)?;
    names.retain(|name| !is_ignored(name));
    names.sort();
    let paths = names.into_iter().map(|name| directory.join(name));
    paths
        .filter_map(|path| match is_program(root, &path) {
            Ok(true) => Some(Ok(path)),
            Ok(false) => {
                log::info!("'{}' is no fsfreeze hook: it is no executable file", path.display());
                None
            }
            Err(error) => Some(Err(Error::io(format!("fsfreeze hook '{}' is not run", path.display()), &error))),
        })
        .collect()
}

fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") || IGNORED_ENDINGS.iter().any(|ending| name.ends_with(ending.as_bytes()))
}

/// Whether a path leads to a regular file that can be executed.
fn is_program(root: &Root, path: &Path) -> io::Result<bool> {
    match root.canonical(path).and_then(|target| root.path(target).symlink_metadata()) {
        Ok(metadata) => Ok(metadata.is_file() && metadata.mode() & ANYBODY_EXECUTES != 0),
        // A link that leads nowhere, as after the removal of a package.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes what a hook said to the log, a line for each of its lines.
fn tell_output(hook: &Path, verb: Verb, ended: &Ended) {
    let level = if ended.exit == Some(Exit::Code(0)) { log::Level::Info } else { log::Level::Warn };
    let mut lines = ended.output.lines();
    for line in lines.by_ref().take(LOGGED_LINES_MAX) {
        log::log!(level, "fsfreeze hook '{}' {}: {line}", hook.display(), verb.word());
    }
    let left = lines.count();
    if left > 0 {
        log::log!(level, "fsfreeze hook '{}' {}: {left} more lines are left out", hook.display(), verb.word());
    }
}

/// What of the output fits into an error.
fn shortened(output: &str) -> &str {
    &output[..output.floor_char_boundary(ERROR_OUTPUT_BYTES_MAX)]
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
