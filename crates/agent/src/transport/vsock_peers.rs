//! Who may connect to a vsock that the agent listens on.
//!
//! Where the kernel has vsock's loopback, every user of the guest can connect to it, and whoever may talk to the agent is
//! root by `guest-exec`. The kernel tells where a connection comes from, and nobody can forge that: the host alone has
//! [`HOST`].

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The host's number, with all hypervisors.
const HOST: u32 = 2;
/// Refusals are told at most this often: whoever is refused can try again at once.
const QUIET: Duration = Duration::from_secs(60);

/// The context ids of those who may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockPeers {
    /// Everybody.
    Any,
    /// These.
    These(BTreeSet<u32>),
}

impl Default for VsockPeers {
    /// The host alone.
    fn default() -> Self {
        Self::These(BTreeSet::from([HOST]))
    }
}

impl VsockPeers {
    /// Reads `any`, or numbers separated by commas, semicolons or blanks.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == "any" {
            return Ok(Self::Any);
        }
        let mut peers = BTreeSet::new();
        for word in text.split([',', ';', ' ', '\t']).filter(|word| !word.is_empty()) {
            let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
            let number = if is_number { word.parse().ok() } else { None };
            peers.insert(number.ok_or_else(|| {
                let word = word.escape_debug();
                format!("'{word}' is no context id: numbers from 0 to 4294967295 are wanted, as in '2,3', or 'any'")
            })?);
        }
        if peers.is_empty() {
            return Err("no context id is given: numbers are wanted, as in '2' for the host, or 'any'".to_owned());
        }
        Ok(Self::These(peers))
    }

    /// Whether a peer may connect.
    pub fn allow(&self, cid: u32) -> bool {
        match self {
            Self::Any => true,
            Self::These(peers) => peers.contains(&cid),
        }
    }
}

/// Tells of refusals, but not of each.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    count: u64,
    told_at: Option<Instant>,
}

impl Refusals {
    /// Notes a refusal. A text to log, if it is time for one.
    pub fn note(&self, cid: u32, port: u32, now: Instant) -> Option<String> {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if untold.told_at.is_some_and(|told_at| now.saturating_duration_since(told_at) < QUIET) {
            untold.count += 1;
            return None;
        }
        let others = match untold.count {
            0 => String::new(),
            count => format!(", after {count} others that were not told"),
        };
        *untold = Untold { count: 0, told_at: Some(now) };
        let who = if cid == 1 { " (a program of this guest)" } else { "" };
        Some(format!(
            "refused a connection from vsock context id {cid}{who}, port {port}{others}: only the host may connect, and \
             whom 'vsock-peers' names"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{QUIET, Refusals, VsockPeers};
    use std::time::Instant;

    #[test]
    fn the_host_alone_may_connect_unless_others_are_named() {
        let allowed = |peers: &VsockPeers| [0, 1, 2, 3, u32::MAX].map(|cid| peers.allow(cid));
        assert_eq!(allowed(&VsockPeers::default()), [false, false, true, false, false]);
        assert_eq!(allowed(&VsockPeers::parse("2, 3;4294967295").unwrap()), [false, false, true, true, true]);
        assert_eq!(allowed(&VsockPeers::parse(" 1").unwrap()), [false, true, false, false, false]);
        assert_eq!(allowed(&VsockPeers::parse("any").unwrap()), [true; 5]);
        for text in ["", " ", ",", "host", "2,any", "-1", "+2", "0x2", "4294967296"] {
            assert!(VsockPeers::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refusals_are_told_now_and_then_with_their_number() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let first = refusals.note(1, 1023, start).unwrap();
        assert!(
            first.starts_with("refused a connection from vsock context id 1 (a program of this guest), port 1023:")
        );
        for _ in 0..1000 {
            assert_eq!(refusals.note(1, 1024, start), None);
        }
        let later = refusals.note(7, 5, start + QUIET).unwrap();
        assert!(
            later.starts_with("refused a connection from vsock context id 7, port 5, after 1000 others"),
            "{later}"
        );
    }
}
