//! Goes through every order in which a host, hooks, a deadline, a full disk and kills can meet a freeze. The world below
//! has what the real one has: a state file, a record, a lock, processes. What happens in it is decided by the functions
//! and step lists of the module, which the agent and its guardian go by as well.

use std::collections::HashSet;

use super::{HOOK, HookState, HookStep, Phase, Stage, may_thaw};
use crate::freeze::record::Told;

#[path = "machine_steps.rs"]
mod steps;

const HOOKS: usize = 2;
/// Freezes that the host asks for, kills, and other things that go wrong, in one run of the world.
const FREEZES: u8 = 2;
const KILLS: u8 = 2;
/// What the identity of a freeze becomes when it is opened anew.
const AGAIN: u8 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Verb {
    Freeze,
    Thaw,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Marker {
    id: u8,
    phase: Phase,
    hooks: [HookState; HOOKS],
}

/// Where a call of a hook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Call {
    hook: usize,
    step: usize,
    verb: Verb,
    is_started: bool,
}

impl Call {
    fn begin(hook: usize, verb: Verb) -> Self {
        Self { hook, step: 0, verb, is_started: false }
    }
}

/// A hook's process, whoever started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    hook: usize,
    verb: Verb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Record {
    NotStarted,
    Started,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Doing {
    /// Looks at what is there.
    Starting,
    Idle,
    Freezing {
        step: usize,
        call: Option<Call>,
    },
    Frozen,
    Thawing {
        step: usize,
        call: Option<Call>,
        how: Phase,
    },
    /// Calls hooks that were left; whether the state file is removed then.
    Finishing {
        call: Option<Call>,
        of_told: bool,
        owed: [bool; HOOKS],
        has_asked: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Agent {
    doing: Doing,
    /// The freeze that it holds.
    id: u8,
    has_guardian: bool,
    /// Hooks that it has called with `freeze`.
    ran: [bool; HOOKS],
    /// What it will tell the host.
    tells: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Guardian {
    id: u8,
    stage: Stage,
    has_agent: bool,
    /// Whether an agent that comes later finds it.
    is_reachable: bool,
    /// It has thawed, and has still to note it, and then to call hooks.
    after: Option<(bool, bool)>,
    finishing: Option<(Option<Call>, bool, [bool; HOOKS])>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    agent: Option<Agent>,
    guardian: Option<Guardian>,
    marker: Option<Marker>,
    told: Option<Marker>,
    record: Option<Record>,
    process: Option<Process>,
    /// The freeze by which the file system is frozen.
    frozen: Option<u8>,
    is_full: bool,
    // What the host knows, and what is left of the budget.
    next_id: u8,
    kills: u8,
    /// The freeze that the host was answered for and that it has not ended.
    relied_on: Option<u8>,
    /// One that ended early, and of which the host has heard nothing yet.
    untold: Option<u8>,
    /// Hooks whose `freeze` may have run, and hooks whose `freeze` has, without a `thaw` since.
    owed: [bool; HOOKS],
    has_run: [bool; HOOKS],
    /// A `thaw` was called on a full disk: if it is not known whether it was, it is called again.
    is_unrecorded: bool,
    is_guardian_killed: bool,
    /// An orphan that was stopped: nobody reaches it, and it goes on some time.
    stopped: Vec<Guardian>,
    stops: u8,
}

impl World {
    fn new() -> Self {
        let agent = Agent { doing: Doing::Starting, id: 0, has_guardian: false, ran: [false; HOOKS], tells: None };
        Self {
            agent: Some(agent),
            guardian: None,
            marker: None,
            told: None,
            record: None,
            process: None,
            frozen: None,
            is_full: false,
            next_id: 1,
            kills: KILLS,
            relied_on: None,
            untold: None,
            owed: [false; HOOKS],
            has_run: [false; HOOKS],
            is_unrecorded: false,
            is_guardian_killed: false,
            stopped: Vec::new(),
            stops: 1,
        }
    }

    fn told_by_record(&self) -> Told {
        match (self.record, self.process) {
            (None, _) => Told::Nothing,
            (Some(_), Some(_)) => Told::Runs,
            (Some(Record::NotStarted), None) => Told::NotStarted,
            (Some(Record::Started), None) => Told::Ended,
        }
    }

    /// A hook's process begins.
    fn spawn(&mut self, hook: usize, verb: Verb) {
        assert!(self.process.is_none() || self.is_unrecorded, "two hooks at once: {self:?}");
        match verb {
            Verb::Freeze => {
                assert!(!self.has_run[hook], "a second `freeze` without a `thaw`: {self:?}");
                (self.owed[hook], self.has_run[hook]) = (true, true);
            }
            Verb::Thaw => {
                assert!(self.owed[hook] || self.is_unrecorded, "a `thaw` without a `freeze`: {self:?}");
                assert!(self.frozen.is_none(), "a `thaw` while something is frozen: {self:?}");
                (self.owed[hook], self.has_run[hook]) = (false, false);
            }
        }
        self.process = Some(Process { hook, verb });
        if self.record.is_some() {
            self.record = Some(Record::Started);
        }
    }

    fn note_hook(&mut self, of_told: bool, hook: usize, state: HookState) {
        let place = if of_told { &mut self.told } else { &mut self.marker };
        if let Some(marker) = place {
            marker.hooks[hook] = state;
        }
    }

    /// One step of a call. `None` if it waits for the hook; else whether there is more of it.
    #[allow(clippy::option_option, reason = "waiting, at its end, and going on are three")]
    fn call(&mut self, call: Call, of_told: bool) -> Option<Option<Call>> {
        let next = Call { step: call.step + 1, ..call };
        match HOOK[call.step] {
            HookStep::Record => {
                // On a full disk a `freeze` is not called without it (that is another way on); a `thaw` is.
                self.record = (!self.is_full).then_some(Record::NotStarted);
                self.is_unrecorded |= self.is_full;
            }
            HookStep::Note => {
                let state = if call.verb == Verb::Freeze { HookState::Freeze } else { HookState::Thaw };
                // From here on it may have run, for all that anybody knows later.
                self.owed[call.hook] |= call.verb == Verb::Freeze;
                self.note_hook(of_told, call.hook, state);
            }
            HookStep::Run => match self.process {
                None if !call.is_started => {
                    self.spawn(call.hook, call.verb);
                    return Some(Some(Call { is_started: true, ..call }));
                }
                // One that a kill has left without a record cannot be waited for.
                Some(_) if !call.is_started && self.is_unrecorded => {
                    self.spawn(call.hook, call.verb);
                    return Some(Some(Call { is_started: true, ..call }));
                }
                Some(_) => return None,
                None => return Some(Some(next)),
            },
            HookStep::NoteEnd => {
                if call.verb == Verb::Thaw {
                    self.note_hook(of_told, call.hook, HookState::Done);
                }
            }
            HookStep::Forget => {
                self.record = None;
                return Some(None);
            }
        }
        Some(Some(next))
    }

    fn settle(&mut self, id: u8, how: Phase) {
        if let Some(marker) = &mut self.marker
            && marker.id == id
        {
            marker.phase = how;
            if matches!(how, Phase::Early(_)) {
                self.told = self.marker.take();
            }
        }
    }

    fn thaw(&mut self, id: u8) -> bool {
        let Some(frozen) = self.frozen else { return false };
        assert_eq!(frozen, id, "another freeze is ended: {self:?}");
        self.frozen = None;
        true
    }

    /// Every world that can come next.
    fn next(&self) -> Vec<Self> {
        let mut found = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self) -> bool| {
            let mut world = self.clone();
            if change(&mut world) && world != *self {
                found.push(world);
            }
        };
        // The hook's process comes to its end, by itself or by a kill.
        add(&|world| world.process.take().is_some());
        // The disk of the state directory fills up, or has room again.
        add(&|world| {
            world.is_full = !world.is_full;
            true
        });
        if self.kills > 0 {
            add(&|world| {
                world.kills -= 1;
                if let Some(guardian) = &mut world.guardian {
                    guardian.has_agent = false;
                }
                world.agent.take().is_some()
            });
            add(&|world| {
                world.kills -= 1;
                if let Some(agent) = &mut world.agent {
                    agent.has_guardian = false;
                }
                world.is_guardian_killed = true;
                world.guardian.take().is_some()
            });
            add(&|world| {
                let is_orphan = |guardian: &Guardian| {
                    !guardian.has_agent && guardian.after.is_none() && guardian.finishing.is_none()
                };
                if world.stops == 0 || world.agent.is_some() || !world.guardian.as_ref().is_some_and(is_orphan) {
                    return false;
                }
                world.stops -= 1;
                world.stopped.extend(world.guardian.take());
                true
            });
        }
        if self.agent.is_none() && self.guardian.as_ref().is_none_or(|guardian| guardian.finishing.is_none()) {
            add(&|world| {
                world.agent = World::new().agent;
                true
            });
        }
        // The host, the deadline, a signal; and the agent goes on.
        for act in [Act::Freeze, Act::Thaw, Act::Deadline, Act::AgentEnds, Act::GoOn, Act::Fail] {
            add(&|world| world.act(act));
        }
        add(&Self::guard);
        add(&Self::go_on_after_stop);
        found
    }

    /// A guardian that was stopped goes on, and finds its time over.
    fn go_on_after_stop(&mut self) -> bool {
        let Some(guardian) = self.stopped.pop() else { return false };
        let name = |id: u8| id.to_string();
        let marker = self.marker.as_ref().map(|marker| name(marker.id));
        let told = self.told.as_ref().map(|told| name(told.id));
        if !may_thaw(&name(guardian.id), marker.as_deref(), told.as_deref()) {
            return true;
        }
        let has_thawed = self.thaw(guardian.id);
        if has_thawed && !matches!(guardian.stage, Stage::Ending(Phase::Thawed)) {
            self.untold = self.relied_on.take().or(self.untold);
        }
        if self.marker.as_ref().is_some_and(|marker| marker.phase == Phase::Frozen) {
            self.settle(guardian.id, guardian.stage.ended_by_guardian(false, has_thawed));
        }
        true
    }

    /// Whether it comes to rest if nothing happens but what must.
    fn comes_to_rest(&self) -> bool {
        let mut world = self.clone();
        for _ in 0..1000 {
            if world.is_at_rest() {
                return true;
            }
            let before = world.clone();
            world.process = None;
            if world.agent.is_none() && world.guardian.is_none() {
                world.agent = Self::new().agent;
            }
            // The host has gone away: the time limit ends what is frozen.
            let is_over = [Act::GoOn, Act::Fail, Act::Deadline].into_iter().any(|act| world.act(act));
            if !world.guard() && !is_over && world == before {
                return false;
            }
        }
        false
    }

    fn is_at_rest(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.doing == Doing::Idle) && self.guardian.is_none()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Freeze,
    Thaw,
    Deadline,
    AgentEnds,
    GoOn,
    /// What is being done fails, or is called off.
    Fail,
}

impl World {
    /// What holds in every world.
    fn check(&self) {
        if let Some(agent) = &self.agent
            && let Doing::Frozen = agent.doing
        {
            assert!(self.frozen == Some(agent.id), "a status of frozen is not true: {self:?}");
        }
        if let Some(frozen) = self.frozen {
            let has_agent = self.agent.as_ref().is_some_and(|agent| agent.id == frozen && agent.doing != Doing::Idle);
            let has_guardian = self.guardian.as_ref().is_some_and(|guardian| guardian.id == frozen);
            let is_marked =
                self.marker.as_ref().is_some_and(|marker| marker.id == frozen && marker.phase == Phase::Frozen);
            assert!(has_agent || has_guardian || is_marked, "frozen, and nobody knows: {self:?}");
            let is_unguarded = self.is_guardian_killed || !self.stopped.is_empty();
            assert!(has_agent || has_guardian || is_unguarded, "frozen, and nobody ends it: {self:?}");
        }
        assert!(self.comes_to_rest(), "nobody gets on: {self:?}");
        if self.is_at_rest() {
            assert!(self.frozen.is_none(), "an agent at rest, and something is frozen: {self:?}");
            assert!(self.owed == [false; HOOKS], "a hook without its `thaw`: {self:?}");
        }
    }
}

#[test]
fn no_order_of_events_strands_a_guest_or_leaves_a_hook_without_its_thaw() {
    // Each world and the one that it came from; the nearest ones first, so that what is found is short.
    let mut worlds: Vec<(World, usize)> = vec![(World::new(), 0)];
    let mut seen: HashSet<World> = worlds.iter().map(|(world, _)| world.clone()).collect();
    let mut at = 0;
    while at < worlds.len() {
        let world = worlds[at].0.clone();
        let explored = std::panic::catch_unwind(|| {
            world.check();
            world.next()
        });
        let Ok(next) = explored else {
            let mut way = vec![at];
            while let Some(last) = way.last().filter(|last| **last > 0) {
                way.push(worlds[*last].1);
            }
            for step in way.iter().rev() {
                eprintln!("{:?}", worlds[*step].0);
            }
            panic!("the last of these {} worlds breaks a promise", way.len());
        };
        for world in next {
            if seen.insert(world.clone()) {
                worlds.push((world, at));
            }
        }
        at += 1;
    }
    // It is really all of them, and not the first few.
    assert!(worlds.len() > 10_000, "only {} worlds", worlds.len());
    eprintln!("{} worlds", worlds.len());
}
