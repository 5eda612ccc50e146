//! When a program is to be ended, and what was done about it.

use std::time::{Duration, Instant};

use super::{RunOptions, Wish};
use crate::patience::Patience;

#[derive(Debug)]
pub(super) struct Ending {
    deadline: Option<Instant>,
    grace: Duration,
    timed_out: bool,
    asked_at: Option<Instant>,
    killed_at: Option<Instant>,
    patience_with_killed: Duration,
    /// How long the agent may be silent without a time limit, if the transport knows.
    silence: Option<Duration>,
    shortened: Option<Duration>,
}

impl Ending {
    pub(super) fn new(options: &RunOptions, patience: Patience, silence: Option<Duration>) -> Self {
        Self {
            deadline: options.time_limit.and_then(|limit| Instant::now().checked_add(limit)),
            grace: options.grace,
            timed_out: false,
            asked_at: None,
            killed_at: None,
            patience_with_killed: patience.killed,
            silence,
            shortened: None,
        }
    }

    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out
    }

    /// The signal to send now.
    pub(super) fn signal_due(&mut self, wish: Wish) -> Option<&'static str> {
        let now = Instant::now();
        if self.killed_at.is_some() {
            return None;
        }
        let has_had_grace = self.asked_at.is_some_and(|asked_at| now.duration_since(asked_at) >= self.grace);
        if wish == Wish::Kill || has_had_grace {
            self.killed_at = Some(now);
            return Some("KILL");
        }
        let is_late = self.is_late();
        if self.asked_at.is_none() && (is_late || wish == Wish::Terminate) {
            self.timed_out = is_late;
            self.asked_at = Some(now);
            return Some("TERM");
        }
        None
    }

    /// Whether even SIGKILL has not helped.
    pub(super) fn is_hopeless(&self) -> bool {
        self.killed_at.is_some_and(|killed_at| killed_at.elapsed() > self.patience_with_killed)
    }

    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Whether somebody or the time limit wants an end.
    pub(super) fn is_wanted(&self, wish: Wish) -> bool {
        wish != Wish::GoOn || self.is_late()
    }

    /// As [`is_wanted`](Self::is_wanted), for a program that has ended and whose output is still being taken.
    pub(super) fn cuts(&mut self, wish: Wish) -> bool {
        self.timed_out |= self.is_late() && self.asked_at.is_none();
        // One that was asked to end has left its last words, which are wanted unless there is no end of them.
        match self.asked_at {
            Some(asked_at) => asked_at.elapsed() >= self.grace + self.patience_with_killed || wish == Wish::Kill,
            None => self.is_wanted(wish),
        }
    }

    /// How long the agent may be silent from now on, if that has changed: not beyond the time limit and what a program
    /// has to end.
    pub(super) fn silence_due(&mut self) -> Option<Duration> {
        let (deadline, silence) = (self.deadline?, self.silence?);
        let left = deadline.saturating_duration_since(Instant::now()) + self.grace;
        let due = left.min(silence);
        let current = self.shortened.unwrap_or(silence);
        // A system call for every question would be one too many.
        if due == current || current.abs_diff(due) < self.grace / 4 {
            return None;
        }
        self.shortened = Some(due);
        Some(due)
    }

    pub(super) fn has_shortened_silence(&self) -> bool {
        self.shortened.is_some()
    }

    pub(super) fn silence(&self) -> Duration {
        self.silence.unwrap_or(Duration::MAX)
    }
}
