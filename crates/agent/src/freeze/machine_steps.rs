//! What agent and guardian do in the explored world, step by step.

use super::super::{
    FREEZE, FreezeStep, HOOK, HookState, HookStep, Phase, Recovery, Stage, THAW, ThawStep, Why, may_thaw, recover,
};
use super::{AGAIN, Act, Agent, Call, Doing, FREEZES, Guardian, HOOKS, Marker, Verb, World};
use crate::freeze::record::Told;

impl World {
    /// What the agent does. False if it cannot do that now.
    pub(super) fn act(&mut self, act: Act) -> bool {
        let Some(mut agent) = self.agent.take() else { return false };
        let done = self.act_by(&mut agent, act);
        // One that was told to end is gone when everything is thawed.
        self.agent = Some(agent);
        done
    }

    fn act_by(&mut self, agent: &mut Agent, act: Act) -> bool {
        let thawing = |how| Doing::Thawing { step: 0, call: None, how };
        match (agent.doing.clone(), act) {
            (Doing::Starting, Act::GoOn) => self.start(agent),
            (Doing::Idle, Act::Freeze) if self.next_id <= FREEZES => {
                agent.id = self.next_id;
                self.next_id += 1;
                (agent.ran, agent.has_guardian) = ([false; HOOKS], false);
                agent.doing = Doing::Freezing { step: 0, call: None };
                // A host that freezes anew has given up what was before.
                (self.relied_on, self.untold) = (None, None);
                true
            }
            (Doing::Idle, Act::Thaw) => {
                // It is told what ended early, once.
                let told = agent.tells.take();
                if told.is_some() {
                    self.told = None;
                }
                if let Some(untold) = self.untold {
                    assert_eq!(told, Some(untold), "an early end is not told: {self:?}");
                }
                (self.untold, self.relied_on) = (None, None);
                told.is_some()
            }
            (Doing::Frozen, Act::Thaw) => {
                agent.doing = thawing(Phase::Thawed);
                self.relied_on = None;
                true
            }
            (Doing::Frozen, Act::Deadline) => {
                agent.doing = thawing(Phase::Early(Why::Deadline));
                true
            }
            (Doing::Frozen, Act::AgentEnds) => {
                agent.doing = thawing(Phase::Early(Why::AgentEnds));
                true
            }
            (Doing::Freezing { step, call }, Act::GoOn) => self.freeze_on(agent, step, call),
            (Doing::Freezing { call, .. }, Act::Fail)
                if call.is_none_or(|call| HOOK[call.step] == HookStep::Record) =>
            {
                agent.doing = thawing(Phase::Thawed);
                true
            }
            (Doing::Thawing { step, call, how }, Act::GoOn) => self.thaw_on(agent, step, call, how),
            (Doing::Finishing { call, of_told, owed, has_asked }, Act::GoOn) => {
                let mut finishing = (call, of_told, owed, has_asked);
                match self.finish_on(&mut finishing) {
                    None => return false,
                    Some(true) => agent.doing = Doing::Idle,
                    Some(false) => {
                        let (call, of_told, owed, has_asked) = finishing;
                        agent.doing = Doing::Finishing { call, of_told, owed, has_asked };
                    }
                }
                true
            }
            _ => false,
        }
    }

    fn freeze_on(&mut self, agent: &mut Agent, step: usize, call: Option<Call>) -> bool {
        let mut on = Doing::Freezing { step: step + 1, call: None };
        match FREEZE[step] {
            FreezeStep::WriteMarker => {
                if self.is_full {
                    on = Doing::Idle;
                } else {
                    let hooks = [HookState::Planned; HOOKS];
                    self.marker = Some(Marker { id: agent.id, phase: Phase::Hooks, hooks });
                }
            }
            FreezeStep::CallHooks => {
                let call = call.unwrap_or(Call::begin(0, Verb::Freeze));
                if HOOK[call.step] == HookStep::Record && self.is_full {
                    return false;
                }
                let Some(next) = self.call(call, false) else { return false };
                if next.is_none() {
                    agent.ran[call.hook] = true;
                }
                let following = (call.hook + 1 < HOOKS).then_some(Call::begin(call.hook + 1, Verb::Freeze));
                if let Some(next) = next.or(following) {
                    on = Doing::Freezing { step, call: Some(next) };
                }
            }
            FreezeStep::StartGuardian => {
                if self.guardian.is_some() {
                    return false;
                }
                agent.has_guardian = true;
                self.guardian = Some(Guardian {
                    id: agent.id,
                    stage: Stage::AtWork,
                    has_agent: true,
                    is_reachable: true,
                    after: None,
                    finishing: None,
                });
            }
            FreezeStep::MarkFrozen => {
                if let Some(marker) = &mut self.marker {
                    marker.phase = Phase::Frozen;
                }
                (self.told, agent.tells) = (None, None);
            }
            FreezeStep::Freeze => {
                assert!(self.frozen.is_none(), "a freeze within another one: {self:?}");
                assert!(self.process.is_none(), "a hook at work while frozen: {self:?}");
                self.frozen = Some(agent.id);
            }
            FreezeStep::Confirm => {
                if let Some(guardian) = self.guardian.as_mut().filter(|guardian| guardian.has_agent) {
                    guardian.stage = Stage::Frozen;
                }
                // The reply goes out with it.
                self.relied_on = Some(agent.id);
                on = Doing::Frozen;
            }
        }
        agent.doing = on;
        true
    }

    fn thaw_on(&mut self, agent: &mut Agent, step: usize, call: Option<Call>, how: Phase) -> bool {
        let on = |step| Doing::Thawing { step, call: None, how };
        let is_early = matches!(how, Phase::Early(_));
        let mut next = on(step + 1);
        match THAW[step] {
            ThawStep::Announce => {
                if let Some(guardian) = self.guardian.as_mut().filter(|_| agent.has_guardian) {
                    guardian.stage = Stage::Ending(how);
                }
            }
            ThawStep::Thaw => {
                if self.thaw(agent.id) && is_early {
                    self.untold = self.relied_on.take();
                }
            }
            ThawStep::MarkEnded => {
                self.settle(agent.id, how);
                if is_early {
                    agent.tells = Some(agent.id);
                }
            }
            ThawStep::Release => {
                if agent.has_guardian {
                    self.guardian = None;
                    agent.has_guardian = false;
                }
            }
            ThawStep::CallHooks => {
                let last = |ran: &[bool; HOOKS]| ran.iter().rposition(|ran| *ran);
                let call = call.or_else(|| last(&agent.ran).map(|hook| Call::begin(hook, Verb::Thaw)));
                if let Some(call) = call {
                    let Some(after) = self.call(call, is_early) else { return false };
                    if after.is_none() {
                        agent.ran[call.hook] = false;
                    }
                    next = Doing::Thawing { step, call: after, how };
                }
            }
            ThawStep::RemoveMarker => {
                if !is_early {
                    self.marker = None;
                }
                next = Doing::Idle;
            }
        }
        agent.doing = next;
        true
    }

    /// An agent that starts looks at what is there.
    fn start(&mut self, agent: &mut Agent) -> bool {
        // One that no host relies on, or that has thawed, comes to its end by itself, and is waited for.
        if self.guardian.as_ref().is_some_and(|guardian| !guardian.stage.is_handed_over() || guardian.after.is_some()) {
            return false;
        }
        if let Some(unreachable) = self.guardian.take_if(|guardian| !guardian.is_reachable) {
            self.stopped.push(unreachable);
        }
        let name = |id: u8| id.to_string();
        let marker = self.marker.as_ref().map(|marker| (name(marker.id), marker.phase));
        let guardian = self.guardian.as_ref().map(|guardian| name(guardian.id));
        let known = marker.as_ref().map(|(id, phase)| (id.as_str(), *phase));
        let owed = |marker: &Marker| marker.hooks.map(|state| state == HookState::Freeze);
        match recover(known, guardian.as_deref()) {
            Recovery::Nothing => {
                let told = self.told.as_ref().map(|told| told.id);
                agent.tells = told;
                agent.doing = match told {
                    Some(_) => Doing::Finishing { call: None, of_told: true, owed: [false; HOOKS], has_asked: false },
                    None => Doing::Idle,
                };
            }
            Recovery::TakeOver => {
                let guardian = self.guardian.as_mut().expect("it was found");
                guardian.has_agent = true;
                (agent.id, agent.has_guardian) = (guardian.id, true);
                agent.ran = self.marker.as_ref().map_or([false; HOOKS], owed);
                agent.doing = Doing::Frozen;
            }
            Recovery::Dismiss => self.guardian = None,
            Recovery::Reopen => {
                let marker = self.marker.as_mut().expect("it was found");
                // From here on it is another freeze: a guardian that did not answer must not end it.
                let anew = marker.id + AGAIN;
                if self.frozen == Some(marker.id) {
                    self.frozen = Some(anew);
                    self.guardian = Some(Guardian {
                        id: anew,
                        stage: Stage::Frozen,
                        has_agent: true,
                        is_reachable: false,
                        after: None,
                        finishing: None,
                    });
                    agent.has_guardian = true;
                }
                if self.relied_on == Some(marker.id) {
                    self.relied_on = Some(anew);
                }
                if self.untold == Some(marker.id) {
                    self.untold = Some(anew);
                }
                marker.id = anew;
                (agent.id, agent.ran) = (marker.id, owed(marker));
                // It asks the kernel whether anything is frozen.
                agent.doing = if self.frozen.is_none() {
                    self.untold = self.relied_on.take().or(self.untold);
                    Doing::Thawing { step: 0, call: None, how: Phase::Early(Why::Killed) }
                } else {
                    Doing::Frozen
                };
            }
            Recovery::FinishHooks => {
                agent.doing = Doing::Finishing { call: None, of_told: false, owed: [false; HOOKS], has_asked: false };
            }
            Recovery::FinishEarly => self.told = self.marker.take(),
        }
        true
    }

    /// Calls hooks that were left. `None` if it waits, else whether it has come to the end.
    fn finish_on(&mut self, finishing: &mut (Option<Call>, bool, [bool; HOOKS], bool)) -> Option<bool> {
        let (call, of_told, owed, has_asked) = finishing;
        let told = self.told_by_record();
        let place = if *of_told { &mut self.told } else { &mut self.marker };
        let Some(marker) = place else { return Some(true) };
        if !*has_asked {
            if told == Told::Runs {
                return None;
            }
            marker.hooks = marker.hooks.map(|state| state.settled(told));
            *owed = marker.hooks.map(|state| state == HookState::Freeze);
            *has_asked = true;
            return Some(false);
        }
        let next = call.or_else(|| owed.iter().rposition(|owed| *owed).map(|hook| Call::begin(hook, Verb::Thaw)));
        let Some(current) = next else {
            self.record = None;
            if !*of_told {
                self.marker = None;
            }
            return Some(true);
        };
        let after = self.call(current, *of_told)?;
        if after.is_none() {
            owed[current.hook] = false;
        }
        *call = after;
        Some(false)
    }

    /// What the guardian does.
    pub(super) fn guard(&mut self) -> bool {
        let Some(mut guardian) = self.guardian.take() else { return false };
        let name = |id: u8| id.to_string();
        if let Some((call, of_told, owed)) = &mut guardian.finishing {
            let mut finishing = (*call, *of_told, *owed, true);
            match self.finish_on(&mut finishing) {
                None => return false,
                Some(true) => {}
                Some(false) => {
                    (*call, *of_told, *owed) = (finishing.0, finishing.1, finishing.2);
                    self.guardian = Some(guardian);
                }
            }
            return true;
        }
        if let Some((has_thawed, had_agent)) = guardian.after {
            let phase = guardian.stage.ended_by_guardian(had_agent, has_thawed);
            let is_frozen = self.marker.as_ref().is_some_and(|marker| marker.phase == Phase::Frozen);
            if is_frozen {
                self.settle(guardian.id, phase);
            }
            if self.agent.is_none() {
                // It has the lock of the state directory.
                let of_told = self.marker.is_none();
                let told = self.told_by_record();
                let place = if of_told { &mut self.told } else { &mut self.marker };
                if told == Told::Runs {
                    return false;
                }
                if let Some(marker) = place {
                    marker.hooks = marker.hooks.map(|state| state.settled(told));
                    let owed = marker.hooks.map(|state| state == HookState::Freeze);
                    guardian.finishing = Some((None, of_told, owed));
                    self.guardian = Some(guardian);
                }
            }
            return true;
        }
        // An agent that does not move is not in this world: there its guardian only waits.
        if guardian.has_agent {
            return false;
        }
        let marker = self.marker.as_ref().map(|marker| name(marker.id));
        let told = self.told.as_ref().map(|told| name(told.id));
        if may_thaw(&name(guardian.id), marker.as_deref(), told.as_deref()) {
            let is_ending = matches!(guardian.stage, Stage::Ending(Phase::Thawed));
            let has_thawed = self.thaw(guardian.id);
            if has_thawed && !is_ending {
                self.untold = self.relied_on.take().or(self.untold);
            }
            guardian.after = Some((has_thawed, false));
            self.guardian = Some(guardian);
        }
        true
    }
}
