//! Starts programs: posix_spawn(3).
//!
//! std's `Command` is not used because a host may send an environment that it cannot express: entries without `=`,
//! names twice. posix_spawn does not copy the process's memory map, so its time does not grow with the agent.
//!
//! A new process has a copy of every descriptor until it executes its file. So a script that is open for writing here
//! may still be open there after it was closed here, and then nobody can execute it (`ETXTBSY`). Two things see to it
//! that nobody notices: the new process closes the copies as its first act, before anything that can take long, and a
//! start that finds its file busy waits for the other starts under way before it tries again.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a busy file is tried again while other starts are under way. They give the file up within the time that it
/// takes to run a few instructions; one that hangs longer does so in execve(2), and has given it up.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

static UNDER_WAY: UnderWay =
    UnderWay { starts: Mutex::new(Starts { next: 0, numbers: Vec::new() }), ended: Condvar::new() };

/// The starts of this process that have not returned.
struct UnderWay {
    starts: Mutex<Starts>,
    ended: Condvar,
}

struct Starts {
    next: u64,
    /// In ascending order; as many as there are threads that start something.
    numbers: Vec<u64>,
}

/// One start, until dropped.
struct Start(u64);

impl UnderWay {
    fn lock(&self) -> MutexGuard<'_, Starts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Start {
        let mut starts = self.lock();
        let number = starts.next;
        starts.next += 1;
        starts.numbers.push(number);
        Start(number)
    }

    /// The number that the next start will have.
    fn next(&self) -> u64 {
        self.lock().next
    }

    /// Waits for a moment, or until all starts before a number have returned. Whether they have.
    fn wait_for_those_before(&self, number: u64) -> bool {
        let still = |starts: &mut Starts| starts.numbers.first().is_some_and(|oldest| *oldest < number);
        let waited = self.ended.wait_timeout_while(self.lock(), BUSY_PAUSE, still);
        let (mut starts, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !still(&mut starts)
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        UNDER_WAY.lock().numbers.retain(|number| *number != self.0);
        UNDER_WAY.ended.notify_all();
    }
}

/// What to start and with what.
#[derive(Debug)]
pub struct Program<'a> {
    /// The file to execute.
    pub file: &'a CStr,
    /// Its arguments, the first is its name.
    pub arguments: &'a [CString],
    /// Its whole environment, each entry as it is.
    pub environment: &'a [CString],
    /// Descriptors 0, 1 and 2. Each must be above 2 in this process.
    pub streams: [BorrowedFd<'a>; 3],
}

/// What tells later that a program was started, and whether it still runs, to somebody who knows no process id.
#[derive(Debug)]
pub struct Mark<'a> {
    /// A file that the new process empties, before it executes the program.
    pub emptied: &'a CStr,
    /// A descriptor that the program has open as its fourth. It must be above 2 in this process.
    pub inherited: BorrowedFd<'a>,
}

impl Program<'_> {
    /// Starts it in a session of its own, with every signal at its default and none blocked. Returns its process id.
    ///
    /// # Errors
    /// What execve(2) reports, or what the system lacks for a new process. `ETXTBSY` only if somebody else than a start
    /// under way has the file open for writing.
    pub fn start(&self) -> io::Result<i32> {
        self.start_with(None)
    }

    /// As [`start`](Self::start); the program leaves a mark that it was started, and inherits a descriptor.
    ///
    /// # Errors
    /// As [`start`](Self::start), and what opening the mark reports.
    pub fn start_marked(&self, mark: &Mark<'_>) -> io::Result<i32> {
        self.start_with(Some(mark))
    }

    fn start_with(&self, mark: Option<&Mark<'_>>) -> io::Result<i32> {
        let begun = Instant::now();
        let mut result = self.start_once(mark);
        let is_busy =
            |result: &io::Result<i32>| result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ETXTBSY));
        if is_busy(&result) {
            // What begins from now on has no copy of a descriptor that was closed before this start was asked for.
            let number = UNDER_WAY.next();
            loop {
                let have_returned = UNDER_WAY.wait_for_those_before(number);
                result = self.start_once(mark);
                if !is_busy(&result) || have_returned || begun.elapsed() > BUSY_PATIENCE {
                    break;
                }
            }
        }
        result
    }

    fn start_once(&self, mark: Option<&Mark<'_>>) -> io::Result<i32> {
        let _start = UNDER_WAY.begin();
        let arguments = pointers(self.arguments);
        let environment = pointers(self.environment);
        let actions = Actions::new(&self.streams, mark)?;
        let attributes = Attributes::new()?;
        let mut pid: libc::pid_t = 0;
        // SAFETY: the pointers lead to NUL-terminated strings and NULL-terminated arrays of them that live until the
        // call returns; actions and attributes are initialised; the child runs none of this process's code after it.
        check(unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.file.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        })?;
        Ok(pid)
    }
}

fn pointers(texts: &[CString]) -> Vec<*mut c_char> {
    texts.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// These functions return the error instead of setting errno.
fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// The first descriptor behind the standard streams.
const FIRST_OTHER: libc::c_int = 3;

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(streams: &[BorrowedFd<'_>; 3], mark: Option<&Mark<'_>>) -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the pointer leads to memory of the right type, which the call initialises.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised above. From here on `Drop` destroys it.
        let mut actions = Self(unsafe { actions.assume_init() });
        if let Some(mark) = mark {
            // On the number of standard input, which takes its place afterwards.
            let flags = libc::O_WRONLY | libc::O_TRUNC | libc::O_NOFOLLOW;
            // SAFETY: the actions are initialised; the path is NUL-terminated, and the call copies it.
            check(unsafe {
                libc::posix_spawn_file_actions_addopen(&raw mut actions.0, 0, mark.emptied.as_ptr(), flags, 0)
            })?;
        }
        for (number, stream) in (0..).zip(streams) {
            // SAFETY: the actions are initialised; the descriptors are plain numbers here.
            check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, stream.as_raw_fd(), number) })?;
        }
        let mut first_other = FIRST_OTHER;
        if let Some(mark) = mark {
            // SAFETY: the actions are initialised; the descriptors are plain numbers here. Onto itself it makes the
            // descriptor one that execve(2) leaves open, as onto another number.
            check(unsafe {
                libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, mark.inherited.as_raw_fd(), first_other)
            })?;
            first_other += 1;
        }
        // All of them are closed by execve(2) anyway, but that comes after what can take long in it.
        // SAFETY: the actions are initialised.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&raw mut actions.0, first_other) })?;
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the pointer leads to memory of the right type, which the call initialises.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised above. From here on `Drop` destroys it.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let mut set = MaybeUninit::uninit();
        // SAFETY: the pointer leads to a signal set, which the call initialises.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: attributes and set are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut attributes.0, set.as_ptr()) })?;
        // SAFETY: the pointer leads to a signal set.
        unsafe { libc::sigfillset(set.as_mut_ptr()) };
        // SAFETY: attributes and set are initialised.
        check(unsafe { libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, set.as_ptr()) })?;
        let flags = i32::from(libc::POSIX_SPAWN_SETSID) | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: the attributes are initialised; the flags are of posix_spawn's own.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags as libc::c_short) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::path::Path;

    use rustix::process::{Pid, WaitOptions, waitpid};

    use super::*;

    fn start(file: &Path) -> io::Result<()> {
        let file = CString::new(file.to_str().unwrap()).unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let streams = [null.as_fd(), null.as_fd(), null.as_fd()];
        let pid = Program { file: &file, arguments: std::slice::from_ref(&file), environment: &[], streams }.start()?;
        let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        Ok(())
    }

    fn create(file: &Path) -> File {
        let mut script = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(file).unwrap();
        script.write_all(b"#!/bin/sh\n").unwrap();
        script
    }

    #[test]
    fn a_file_that_was_written_and_closed_is_never_busy_while_others_start_programs() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = directory.path().join(number.to_string());
                scope.spawn(move || {
                    for _ in 0..100 {
                        drop(create(&file));
                        start(&file).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn a_file_that_stays_open_for_writing_is_busy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("script");
        let open = create(&file);
        assert_eq!(start(&file).unwrap_err().raw_os_error(), Some(libc::ETXTBSY));
        drop(open);
        start(&file).unwrap();
    }
}
