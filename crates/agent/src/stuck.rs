//! Commands that were given up on and still run: counted, bounded, and named in errors.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::error::Error;

/// Threads that may hang in commands given up on before no further command that could hang is started.
const STUCK_MAX: usize = 16;

/// The commands.
#[derive(Debug, Default)]
pub struct Stuck(Mutex<Vec<(String, Instant)>>);

impl Stuck {
    /// A command was given up on.
    pub fn add(&self, name: &str, since: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), since));
    }

    /// It has ended after all.
    pub fn remove(&self, name: &str, since: Instant) {
        let mut commands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = commands.iter().position(|known| known.0 == name && known.1 == since) {
            commands.swap_remove(index);
        }
    }

    /// Refuses another command that could hang if too many do.
    pub fn admit(&self, name: &str) -> Result<(), Error> {
        let commands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((oldest, since)) = commands.iter().min_by_key(|(_, since)| *since) else { return Ok(()) };
        if commands.len() < STUCK_MAX {
            return Ok(());
        }
        Err(Error::new(format!(
            "{name} was not started: {} commands have been given up on and still run, the oldest of them {oldest} \
             for {} s",
            commands.len(),
            since.elapsed().as_secs()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::{STUCK_MAX, Stuck};
    use std::time::Instant;

    #[test]
    fn too_many_stuck_commands_refuse_another_until_one_ends() {
        let (stuck, now) = (Stuck::default(), Instant::now());
        for _ in 0..STUCK_MAX {
            assert!(stuck.admit("guest-exec").is_ok());
            stuck.add("guest-file-read", now);
        }
        let error = stuck.admit("guest-exec").unwrap_err();
        assert!(error.desc.contains("the oldest of them guest-file-read"), "{error:?}");
        stuck.remove("guest-file-read", now);
        assert!(stuck.admit("guest-exec").is_ok());
    }
}
