//! Ctrl-C and its relatives as something to ask about, where a command has to end in order.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit_code::Code;
use crate::failure::{Failure, Result};

const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// The signals that ask this process to end. From its creation on they no longer end it by themselves, unless nobody
/// has asked after the one before: whoever waits for a silent agent can still be ended, by the second.
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    came: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    is_registered: Arc<AtomicBool>,
}

impl Interrupts {
    /// Begins at the first call; all calls give the same one.
    pub fn watch() -> Result<Self> {
        static WATCHED: OnceLock<Interrupts> = OnceLock::new();
        let watched = WATCHED.get_or_init(Self::default).clone();
        if !watched.is_registered.swap(true, Ordering::Relaxed) {
            watched.register().map_err(|error| Failure::host("watch for signals", &error))?;
        }
        Ok(watched)
    }

    fn register(&self) -> io::Result<()> {
        for signal in SIGNALS {
            let code = i32::from(Code::Stopped.number());
            signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&self.came))?;
            signal_hook::flag::register(signal, Arc::clone(&self.came))?;
        }
        Ok(())
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
    pub fn count(&self) -> usize {
        if self.came.swap(false, Ordering::Relaxed) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.count.load(Ordering::Relaxed)
    }
}
