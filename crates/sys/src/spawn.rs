//! Starts programs: posix_spawn(3).
//!
//! std's `Command` is not used because a host may send an environment that it cannot express: entries without `=`,
//! names twice. posix_spawn does not copy the process's memory map, so its time does not grow with the agent.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

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

impl Program<'_> {
    /// Starts it in a session of its own, with every signal at its default and none blocked. Returns its process id.
    ///
    /// # Errors
    /// What execve(2) reports, or what the system lacks for a new process.
    pub fn start(&self) -> io::Result<i32> {
        let arguments = pointers(self.arguments);
        let environment = pointers(self.environment);
        let actions = Actions::new(&self.streams)?;
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

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(streams: &[BorrowedFd<'_>; 3]) -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the pointer leads to memory of the right type, which the call initialises.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised above. From here on `Drop` destroys it.
        let mut actions = Self(unsafe { actions.assume_init() });
        for (number, stream) in (0..).zip(streams) {
            // SAFETY: the actions are initialised; the descriptors are plain numbers here.
            check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, stream.as_raw_fd(), number) })?;
        }
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
