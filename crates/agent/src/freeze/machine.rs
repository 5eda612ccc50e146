//! The life of a freeze as plain values: which steps it takes in which order, what of it is on disk, what a guardian
//! may do, and what an agent does with what it finds at its start. Nothing is done here. What does it goes through
//! these steps and asks these functions, and the test beside this file goes through every order in which a host,
//! hooks, a deadline and kills can meet them. `docs/freeze.md` has the table.

use std::time::Duration;

use super::record::Told;

/// What a freeze does, one after the other. A failure at any of them is followed by the steps of a [thaw](THAW).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FreezeStep {
    /// The state file is written: [`Phase::Hooks`], every hook planned. Without it nothing else is done.
    WriteMarker,
    /// The hooks are called with `freeze`, each by [`HOOK`].
    CallHooks,
    /// The guardian has all descriptors and the freeze's identity.
    StartGuardian,
    /// The state file says [`Phase::Frozen`].
    MarkFrozen,
    /// The file systems are frozen.
    Freeze,
    /// The guardian learns that the host knows of it.
    Confirm,
}

/// The steps of a freeze.
pub const FREEZE: [FreezeStep; 6] = [
    FreezeStep::WriteMarker,
    FreezeStep::CallHooks,
    FreezeStep::StartGuardian,
    FreezeStep::MarkFrozen,
    FreezeStep::Freeze,
    FreezeStep::Confirm,
];

/// What a thaw does, one after the other, whoever wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThawStep {
    /// The guardian learns that the freeze ends: from here on it ends it itself, at once, if the agent is killed.
    Announce,
    /// The file systems are thawed.
    Thaw,
    /// The state file says how it ended; that of an early end is renamed to what is told to the host.
    MarkEnded,
    /// The guardian is let go and waited for.
    Release,
    /// The hooks are called with `thaw`, each by [`HOOK`].
    CallHooks,
    /// The state file is removed, unless its end is still to be told.
    RemoveMarker,
}

/// The steps of a thaw.
pub const THAW: [ThawStep; 6] = [
    ThawStep::Announce,
    ThawStep::Thaw,
    ThawStep::MarkEnded,
    ThawStep::Release,
    ThawStep::CallHooks,
    ThawStep::RemoveMarker,
];

/// How a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HookStep {
    /// A record is made that the hook will empty as it starts, and whose lock it will hold until it ends.
    Record,
    /// The state file says that it is about to be called.
    Note,
    /// It is started, and waited for.
    Run,
    /// The state file says that it has had its `thaw`.
    NoteEnd,
    /// The record is removed.
    Forget,
}

/// The steps of a hook's call.
pub const HOOK: [HookStep; 5] = [HookStep::Record, HookStep::Note, HookStep::Run, HookStep::NoteEnd, HookStep::Forget];

/// Why a freeze ended before the host said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The agent was killed.
    Killed,
    /// The agent did not do what it should have done.
    Stuck,
    /// The time limit was over.
    Deadline,
    /// The agent was told to end.
    AgentEnds,
}

impl Why {
    /// In words, after "because".
    pub fn text(self) -> &'static str {
        match self {
            Self::Killed => "the agent was killed",
            Self::Stuck => "the agent did not move any more",
            Self::Deadline => "fsfreeze-timeout was over",
            Self::AgentEnds => "the agent was told to end",
        }
    }
}

/// What the state file says of a freeze: one byte, changed in place, which needs no room on a disk that is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Hooks are called; nothing is frozen.
    Hooks,
    /// File systems are frozen, or may be.
    #[default]
    Frozen,
    /// Nothing is frozen any more; hooks may wait for their `thaw`.
    Thawed,
    /// As [`Thawed`](Self::Thawed), and the host is to be told.
    Early(Why),
}

impl Phase {
    const ALL: [(Self, u8); 7] = [
        (Self::Hooks, b'h'),
        (Self::Frozen, b'f'),
        (Self::Thawed, b't'),
        (Self::Early(Why::Killed), b'k'),
        (Self::Early(Why::Stuck), b's'),
        (Self::Early(Why::Deadline), b'd'),
        (Self::Early(Why::AgentEnds), b'e'),
    ];

    /// As it is written.
    pub fn byte(self) -> u8 {
        Self::ALL.iter().find(|(phase, _)| *phase == self).map_or(b'f', |(_, byte)| *byte)
    }

    /// As it was written. What nobody writes is believed to be frozen: to believe it costs less than not to.
    pub fn of_byte(byte: u8) -> Self {
        Self::ALL.iter().find(|(_, known)| *known == byte).map_or(Self::Frozen, |(phase, _)| *phase)
    }
}

/// What the state file says of a hook: one byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum HookState {
    /// It was not called.
    Planned,
    /// It was called with `freeze`, or was about to be.
    #[default]
    Freeze,
    /// It was called with `thaw`, or was about to be.
    Thaw,
    /// It has had its `thaw`.
    Done,
}

impl HookState {
    const ALL: [(Self, u8); 4] = [(Self::Planned, b'p'), (Self::Freeze, b'f'), (Self::Thaw, b't'), (Self::Done, b'd')];

    /// As it is written.
    pub fn byte(self) -> u8 {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or(b'f', |(_, byte)| *byte)
    }

    /// As it was written; `None` for what nobody writes.
    pub fn of_byte(byte: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == byte).map(|(state, _)| *state)
    }

    /// How far a hook of an agent that is gone is, by what the record of the last call tells. A hook that still runs was
    /// waited for before this is asked. It is noted before another record takes that one's place.
    #[must_use]
    pub fn settled(self, told: Told) -> Self {
        match (self, told) {
            // The `thaw` that was about to be called is the one that it gets, if it was started.
            (Self::Thaw, Told::Ended | Told::Runs) => Self::Done,
            (Self::Thaw, Told::Nothing | Told::NotStarted) => Self::Freeze,
            (known, _) => known,
        }
    }
}

/// What a guardian knows of its freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It is at work: no host knows of it.
    AtWork,
    /// The host knows of it.
    Frozen,
    /// The agent ends it, and this is how.
    Ending(Phase),
}

impl Stage {
    /// How long a guardian waits for another agent when its own is gone: only for a freeze that a host relies on.
    pub fn patience_without_agent(self, patience: Duration) -> Duration {
        if self == Self::Frozen { patience } else { Duration::ZERO }
    }

    /// Whether an agent that comes is given the freeze. Any other ends at once, and the agent waits for that.
    pub fn is_handed_over(self) -> bool {
        self == Self::Frozen
    }

    /// How a freeze has ended that its guardian has ended.
    pub fn ended_by_guardian(self, has_agent: bool, has_thawed: bool) -> Phase {
        match self {
            Self::Ending(phase) => phase,
            _ if !has_thawed => Phase::Thawed,
            _ if has_agent => Phase::Early(Why::Stuck),
            _ => Phase::Early(Why::Killed),
        }
    }
}

/// Whether a guardian may thaw: only what is frozen by its own freeze. `marker` is the identity that the state file has;
/// `told` that of the freeze whose early end waits to be told.
pub fn may_thaw(own: &str, marker: Option<&str>, told: Option<&str>) -> bool {
    match marker {
        Some(marker) => marker == own,
        // Somebody has removed it; unless the freeze has ended, what it has frozen still is.
        None => told != Some(own),
    }
}

/// What an agent does with what it finds. It holds the lock of the state directory, so no other agent is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// There is nothing.
    Nothing,
    /// The freeze is the new agent's from here on, with the guardian's descriptors.
    TakeOver,
    /// The guardian's freeze is over: it is let go. Then look again.
    Dismiss,
    /// What is named is opened anew; it may be frozen.
    Reopen,
    /// Nothing is frozen: hooks get their `thaw`, then the state file is removed.
    FinishHooks,
    /// The state file of an early end is renamed to what is told to the host. Then look again.
    FinishEarly,
}

/// What to do with a state file, by its identity and phase, and a guardian that hands over its freeze, by its identity.
pub fn recover(marker: Option<(&str, Phase)>, guardian: Option<&str>) -> Recovery {
    match (marker, guardian) {
        // No freeze begins before the one before it has ended: the guardian is the older one.
        (Some((marker, _)), Some(guardian)) if marker != guardian => Recovery::Dismiss,
        (Some((_, Phase::Frozen)) | None, Some(_)) => Recovery::TakeOver,
        (Some(_), Some(_)) => Recovery::Dismiss,
        (None, None) => Recovery::Nothing,
        (Some((_, Phase::Hooks | Phase::Thawed)), None) => Recovery::FinishHooks,
        (Some((_, Phase::Frozen)), None) => Recovery::Reopen,
        (Some((_, Phase::Early(_))), None) => Recovery::FinishEarly,
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "machine_table_tests.rs"]
mod table_tests;
