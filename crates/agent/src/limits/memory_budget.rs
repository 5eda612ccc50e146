//! How much memory clients may hold, all together: requests and what becomes of them, what they give to programs, what is
//! kept of the output of programs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may be held at once. The largest of all requests of one client fits: a program's input of 48 MiB as a message of
/// 64 MiB with escapes, which has a copy without them.
pub const TOTAL_BYTES_MAX: usize = 180 << 20;
/// What every client may hold whatever the others do.
const CLIENT_BYTES_FREE: usize = 256 << 10;

/// The sum over all clients.
#[derive(Debug, Clone, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// Some of it, until dropped.
#[derive(Debug)]
pub struct Hold {
    budget: Budget,
    bytes: usize,
    free_bytes: usize,
}

impl Budget {
    /// A hold of nothing yet.
    pub fn hold(&self) -> Hold {
        self.hold_with_free(CLIENT_BYTES_FREE)
    }

    /// A hold of nothing yet, of which so many bytes are there whatever others hold.
    pub fn hold_with_free(&self, free_bytes: usize) -> Hold {
        Hold { budget: self.clone(), bytes: 0, free_bytes }
    }

    /// A hold of so many bytes, if they are there.
    #[cfg(test)]
    pub fn hold_of(&self, bytes: usize) -> Option<Hold> {
        let mut hold = self.hold();
        hold.resize(bytes);
        (self.0.load(Ordering::Relaxed) <= TOTAL_BYTES_MAX).then_some(hold)
    }
}

impl Hold {
    /// Changes how much is held. False if that is too much: then the holder should let go.
    pub fn resize(&mut self, bytes: usize) -> bool {
        if bytes == self.bytes {
            return true;
        }
        let total = if bytes > self.bytes {
            let more = bytes - self.bytes;
            self.budget.0.fetch_add(more, Ordering::Relaxed) + more
        } else {
            self.budget.0.fetch_sub(self.bytes - bytes, Ordering::Relaxed)
        };
        self.bytes = bytes;
        bytes <= self.free_bytes || total <= TOTAL_BYTES_MAX
    }

    /// What it is a part of.
    pub fn budget(&self) -> Budget {
        self.budget.clone()
    }

    /// How many bytes more could be held now.
    pub fn room(&self) -> usize {
        let free = self.free_bytes.saturating_sub(self.bytes);
        TOTAL_BYTES_MAX.saturating_sub(self.budget.0.load(Ordering::Relaxed)).max(free)
    }

    /// A new hold in the place of this one, which is returned with all that it holds.
    pub fn split_off(&mut self) -> Self {
        let new = self.budget.hold_with_free(self.free_bytes);
        std::mem::replace(self, new)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, CLIENT_BYTES_FREE, TOTAL_BYTES_MAX};

    #[test]
    fn one_client_can_use_it_up_and_small_messages_still_pass() {
        let budget = Budget::default();
        let (mut large, mut small) = (budget.hold(), budget.hold());
        assert!(large.resize(TOTAL_BYTES_MAX));
        assert!(small.resize(CLIENT_BYTES_FREE));
        assert!(!small.resize(CLIENT_BYTES_FREE + 1));
        assert!(budget.hold_of(1).is_none());
        drop(large);
        assert!(budget.hold_of(1).is_some());
        assert!(small.resize(CLIENT_BYTES_FREE + 2));
        assert!(small.resize(0));
        drop(small);
        assert_eq!(budget.0.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}
