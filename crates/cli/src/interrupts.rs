//! Ctrl-C and its relatives as something to ask about, where a command has to end in order.
//!
//! The first signal asks for an end, the second for a quick one; both are for the command, which cleans up. The third ends
//! the process where it stands, with the terminal as it was: whatever hangs, nobody is held.

use std::io::{self, IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit_code::Code;
use crate::failure::{Failure, Result};

const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// With so many nothing is waited for any more.
const ENOUGH: usize = 3;

/// So long after the first signal a silent agent is not waited for any more: who sends one alone waits too.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

static COUNT: AtomicUsize = AtomicUsize::new(0);
static FIRST: OnceLock<Instant> = OnceLock::new();
static HAS_LEFT: AtomicBool = AtomicBool::new(false);
/// The terminal as it was before it was made raw.
static TERMINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// The signals that ask this process to end. From its creation on they no longer end it by themselves. Those that the
/// process was started to ignore, as by `nohup`, stay ignored.
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    is_registered: Arc<AtomicBool>,
}

impl Interrupts {
    /// Begins at the first call; all calls give the same one.
    pub fn watch() -> Result<Self> {
        static WATCHED: OnceLock<Interrupts> = OnceLock::new();
        let watched = WATCHED.get_or_init(Self::default).clone();
        if !watched.is_registered.swap(true, Ordering::Relaxed) {
            register().map_err(|error| Failure::host("watch for signals", &error))?;
        }
        Ok(watched)
    }

    /// From now on the signals do nothing.
    pub fn ignore() -> Result<()> {
        for signal in SIGNALS {
            signal_hook::flag::register(signal, Arc::default())
                .map_err(|error| Failure::host("ignore signals", &error))?;
        }
        Ok(())
    }

    /// How often one came.
    #[allow(clippy::unused_self)] // they count from the watch on, which the value proves
    pub fn count(&self) -> usize {
        COUNT.load(Ordering::Relaxed)
    }

    /// Whether an agent that is silent is not to be waited for any more.
    pub fn are_impatient() -> bool {
        HAS_LEFT.load(Ordering::Relaxed)
            || COUNT.load(Ordering::Relaxed) > 1
            || FIRST.get().is_some_and(|first| first.elapsed() > LONGEST_WAIT)
    }

    /// The user has left by a key, which counts as an end without delay.
    pub fn leave() {
        HAS_LEFT.store(true, Ordering::Relaxed);
    }

    pub fn has_left() -> bool {
        HAS_LEFT.load(Ordering::Relaxed)
    }
}

fn register() -> io::Result<()> {
    let (mut reader, writer) = UnixStream::pair()?;
    let ignored = ignored_signals();
    for signal in SIGNALS.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0) {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    // The thread ends with the process.
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut byte = [0];
        while reader.read_exact(&mut byte).is_ok() {
            let _ = FIRST.set(Instant::now());
            if COUNT.fetch_add(1, Ordering::Relaxed) + 1 >= ENOUGH {
                restore_terminal();
                std::process::exit(i32::from(Code::Stopped.number()));
            }
        }
    })?;
    Ok(())
}

/// The signals that this process ignores, as bits. Without `/proc` none is known to be.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The terminal in raw mode: every key goes to the guest. It is as before when this is dropped, and when a third signal
/// ends the process.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    pub fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore_terminal();
    }
}

fn restore_terminal() {
    let before = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before
        && io::stdin().is_terminal()
    {
        // Not after what is still to be written: a terminal that nobody reads would hold us. There is nothing left to do
        // if even this fails.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}
