//! How long the client's tasks wait for the guest, in one place.

use std::thread;
use std::time::{Duration, Instant};

/// Who wants no pauses at all would keep a processor busy on each side.
const SHORTEST_PAUSE: Duration = Duration::from_micros(20);

/// How long an agent's tasks wait. Every wait after which the client gives something up is one of these, or one of
/// [`Timeouts`](crate::Timeouts), which are about the connection, or is said by the caller;
/// [`Agent::set_patience`](crate::Agent::set_patience) changes them. [`discover`](crate::discover) has no agent yet and
/// takes the default.
///
/// ```no_run
/// use std::time::Duration;
/// use qga_client::{Connection, Patience};
///
/// let mut agent = Connection::unix("/run/vm/agent.sock")?;
/// agent.set_patience(Patience { program: Duration::from_secs(5), ..Patience::default() });
/// # Ok::<(), qga_client::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a program of the guest that a task needs and that looks at one file: `stat`, `ln`, `chmod`. On a file server
    /// that does not answer it would take for ever. 60 s.
    pub program: Duration,
    /// What such a program gets beside for each MiB of a file that it reads, be the disk a slow one. 1 s.
    pub per_mebibyte: Duration,
    /// For one that walks through a tree. 10 min.
    pub tree: Duration,
    /// For one whose result is of no interest, as that of `kill`. 2 s.
    pub errand: Duration,
    /// For a program that runs live to be gone after SIGKILL. 10 s.
    pub killed: Duration,
    /// For a host that is silent, by what feeds an interactive program in the guest: then the host is gone, and the
    /// program is ended. The time of the guest's shell, which goes slower than a clock. 5 min.
    pub silent_host: Duration,
    /// For a thaw by [`Frozen`](crate::Frozen), which is tried again until then. 60 s.
    pub thaw: Duration,
    /// What `virsh` may take beside the time that libvirt waits for the agent. 30 s.
    pub virsh: Duration,
    /// For the answers that are still due when a connection is given up. QEMU's agent ends when a client leaves with one
    /// unread. 200 ms.
    pub farewell: Duration,
    /// The pause between the first two questions after a program; it grows by a quarter from each to
    /// the next, so that an end is noticed late by a small part of the program's time. 0.2 ms; never less than 20 µs.
    pub first_pause: Duration,
    /// The longest pause between two questions after a program. 250 ms; 100 ms at most while one runs live.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            program: Duration::from_secs(60),
            per_mebibyte: Duration::from_secs(1),
            tree: Duration::from_secs(600),
            errand: Duration::from_secs(2),
            killed: Duration::from_secs(10),
            silent_host: Duration::from_secs(300),
            thaw: Duration::from_secs(60),
            virsh: Duration::from_secs(30),
            farewell: Duration::from_millis(200),
            first_pause: Duration::from_micros(200),
            longest_pause: Duration::from_millis(250),
        }
    }
}

impl Patience {
    /// For a program that reads so many bytes.
    pub(crate) fn for_bytes(self, bytes: u64) -> Duration {
        let mebibytes = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        self.program.saturating_add(self.per_mebibyte.saturating_mul(mebibytes))
    }

    /// The pauses between questions after a program.
    pub(crate) fn pauses(self) -> Pauses {
        Pauses { first: self.first_pause, next: self.first_pause, longest: self.longest_pause }
    }
}

/// Pauses that grow: a short program is noticed at once, a long one is not asked after all the time.
#[derive(Debug)]
pub(crate) struct Pauses {
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// The same, none longer than this.
    pub(crate) fn at_most(self, longest: Duration) -> Self {
        Self { longest: self.longest.min(longest), ..self }
    }

    /// The next pause, cut short at a deadline.
    pub(crate) fn next(&mut self, deadline: Option<Instant>) -> Duration {
        let pause = self.next.min(self.longest).max(SHORTEST_PAUSE);
        self.next = pause * 5 / 4;
        deadline.map_or(pause, |deadline| pause.min(deadline.saturating_duration_since(Instant::now())))
    }

    pub(crate) fn wait(&mut self) {
        thread::sleep(self.next(None));
    }

    /// Begins anew, since something has happened.
    pub(crate) fn restart(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_end_at_the_deadline() {
        let patience = Patience {
            first_pause: Duration::from_millis(16),
            longest_pause: Duration::from_millis(22),
            ..Patience::default()
        };
        let mut pauses = patience.pauses();
        let first: Vec<u128> = (0..4).map(|_| pauses.next(None).as_millis()).collect();
        assert_eq!(first, [16, 20, 22, 22]);
        assert_eq!(pauses.next(Some(Instant::now())), Duration::ZERO);
        pauses.restart();
        assert_eq!(pauses.next(None), Duration::from_millis(16));
        assert_eq!(patience.pauses().at_most(Duration::from_millis(1)).next(None), Duration::from_millis(1));
    }

    #[test]
    fn reading_much_takes_its_time_and_never_overflows() {
        let patience = Patience::default();
        assert_eq!(patience.for_bytes(5 << 20), Duration::from_secs(65));
        assert!(patience.for_bytes(u64::MAX) >= patience.for_bytes(1 << 50));
    }
}
