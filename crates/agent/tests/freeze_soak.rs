//! Freezes and thaws, round after round, under writers, while agent, guardian, hook or several of them are killed at random
//! moments, the state directory fills up and a second agent comes. After each round: nothing is frozen, every hook has
//! had one `thaw` for each `freeze`, and every early end was told.
//!
//! `QGA_SOAK_ROUNDS=2000` runs more rounds than the test command does; `QGA_SOAK_SEED` repeats a run's choices.

#[allow(dead_code, reason = "not every test uses all of it")]
#[path = "freeze/stage.rs"]
mod stage;

use std::time::Duration;

use self::stage::{Agent, Stage, guardians, in_namespace, shell, succeeds, wait_until};
use serde_json::{Value, json};

/// Rounds within the test command.
const ROUNDS: u64 = 30;
/// Rounds after which the size of an agent must not have changed any more.
const FLAT_ROUNDS: usize = 60;

/// Notes what it is told; says when it finds another one at work.
const HOOK: &str = "
at=$(dirname \"$0\")/..
exec 8> $at/at-work
flock -n 8 || echo overlap >> $at/said
echo \"$1 ${0##*/}\" >> $at/said
echo $$ > $at/hook-pid
sleep 0.0$(($$ % 5))";

/// Kills a hook and what it has started, itself last: by its end the agent takes it for gone, and the lock by which hooks
/// find each other is inherited.
fn kill_hook(pid: &str) {
    succeeds(&format!(
        "kill -STOP -- -{pid} || exit 0
         pkill -KILL -P {pid}
         while pgrep -r D,R,S,T -P {pid} > /dev/null; do sleep 0.001; done
         kill -KILL -- -{pid}"
    ));
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

struct Soak {
    stage: Stage,
    chance: Chance,
    agent: Option<Agent>,
    kills: usize,
    refusals: usize,
    early: usize,
}

impl Soak {
    fn agent(&mut self) -> &Agent {
        self.agent.get_or_insert_with(|| self.stage.start("agent"))
    }

    fn kill_agent(&mut self) {
        self.kills += 1;
        if let Some(agent) = self.agent.take() {
            agent.end("KILL");
        }
    }

    fn kill_guardian(&mut self) {
        self.kills += 1;
        for pid in guardians() {
            succeeds(&format!("kill -9 {pid}"));
        }
    }

    /// Kills somebody, or nobody, after a moment.
    fn kill_at_random(&mut self) {
        std::thread::sleep(Duration::from_millis(self.chance.below(60)));
        match self.chance.below(8) {
            0 | 1 => self.kill_agent(),
            2 => self.kill_guardian(),
            3 => {
                self.kill_agent();
                self.kill_guardian();
            }
            4 => {
                self.kills += 1;
                if let Some(pid) = self.stage.lines("hook-pid").first() {
                    kill_hook(pid);
                }
            }
            _ => {}
        }
    }

    /// Asks, and kills meanwhile; the reply, if there is one.
    fn ask(&mut self, request: &Value) -> Option<Value> {
        let mut host = self.agent().connect();
        host.send(request);
        self.kill_at_random();
        host.reply()
    }

    fn round(&mut self) {
        let fill = self.stage.path("state/full");
        // An agent that has never run there does not start without room for its counter of handles.
        if self.chance.below(8) == 0 && self.agent.is_some() {
            succeeds(&format!("dd if=/dev/zero of='{}' bs=1k 2> /dev/null", fill.display()));
        }
        if self.chance.below(8) == 0 && self.agent.is_some() {
            let second = self.stage.start("second");
            let refused = second.ask(&self.stage.freeze_request(&["a"]));
            let text = refused["error"]["desc"].as_str().unwrap_or_default();
            assert!(text.starts_with("another agent"), "{refused}");
            self.refusals += 1;
        }
        let request = self.stage.freeze_request(&["a", "b"]);
        let is_relied_on = self.ask(&request).is_some_and(|reply| reply["return"].as_i64().is_some_and(|n| n > 0));
        self.kill_at_random();
        if self.chance.below(12) == 0 {
            // Longer than the time limit.
            std::thread::sleep(Duration::from_secs(3));
        }
        let was_frozen = self.agent().status() == "frozen";
        let thaw = json!({"execute": "guest-fsfreeze-thaw"});
        let thawed = if was_frozen { self.ask(&thaw) } else { None };
        let _ = std::fs::remove_file(fill);
        self.come_to_rest();
        // What the host relied on and has not ended itself is told to it.
        if is_relied_on && !was_frozen {
            let told = self.agent().call("guest-fsfreeze-thaw");
            assert!(told["error"]["desc"].as_str().unwrap_or_default().contains("thawed before"), "not told: {told}");
            self.early += 1;
        } else if thawed.is_none() {
            self.agent().call("guest-fsfreeze-thaw");
        }
        let _ = std::fs::remove_file(self.stage.path("said"));
    }

    /// Nothing is frozen any more, and every hook has had its thaw.
    fn come_to_rest(&mut self) {
        if self.agent().status() == "frozen" {
            let thawed = self.agent().thaw();
            assert!(thawed["return"].is_i64() || thawed["error"].is_object(), "{thawed}");
        }
        let state = |name: &str| self.stage.path("state").join(name);
        let (marker, record) = (state("qga.state.isfrozen"), state("qga.state.hook"));
        // The state file of an early end has another name until it is told, from before the hooks are called.
        let early = state("qga.state.thawed");
        let is_owed = |line: &str| line.starts_with("hook=f ") || line.starts_with("hook=t ");
        let owes = || std::fs::read_to_string(&early).is_ok_and(|text| text.lines().any(is_owed));
        wait_until("the hooks are called", || {
            !marker.exists() && !record.exists() && guardians().is_empty() && !owes()
        });
        self.stage.expect_writes("a");
        self.stage.expect_writes("b");
        let said = self.stage.lines("said");
        for hook in ["10-first", "20-second"] {
            let told: Vec<_> = said.iter().filter_map(|line| line.strip_suffix(hook)).map(str::trim).collect();
            let is_paired = told.chunks(2).all(|pair| pair == ["freeze", "thaw"] || pair == ["thaw"]);
            assert!(is_paired, "{hook} was told {told:?} of {said:?}\n{}", self.stage.log());
        }
        assert!(!said.iter().any(|line| line == "overlap"), "two hooks at once: {said:?}");
    }

    /// An agent's memory in KiB, and its threads.
    fn size(&mut self) -> (u64, u64) {
        let pid = self.agent().pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        (value("VmRSS"), value("Threads"))
    }
}

#[test]
fn whatever_is_killed_nothing_stays_frozen_and_every_hook_has_its_thaw() {
    in_namespace("whatever_is_killed_nothing_stays_frozen_and_every_hook_has_its_thaw", || {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let rounds = number("QGA_SOAK_ROUNDS").unwrap_or(ROUNDS);
        let seed = number("QGA_SOAK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("QGA_SOAK_SEED={seed}");
        let stage = Stage::new("fsfreeze-timeout=2");
        for name in ["10-first", "20-second"] {
            stage.hook(name, HOOK);
        }
        for name in ["a", "b"] {
            let at = stage.path(name);
            shell(&format!(
                "(while [ ! -e '{}' ]; do echo data > '{}/written'; sleep 0.01; done) > /dev/null 2>&1 &",
                stage.path("enough").display(),
                at.display()
            ));
        }
        let chance = Chance(seed);
        let mut soak = Soak { stage, chance, agent: None, kills: 0, refusals: 0, early: 0 };
        for round in 0..rounds {
            soak.round();
            if round % 100 == 99 {
                eprintln!("{} rounds, {} kills, {} early ends told", round + 1, soak.kills, soak.early);
            }
        }
        soak.kill_agent();
        soak.stage.configure("");
        let mut sizes = Vec::new();
        for _ in 0..FLAT_ROUNDS {
            let request = soak.stage.freeze_request(&["a", "b"]);
            assert_eq!(soak.agent().ask(&request), json!({"return": 2}));
            assert_eq!(soak.agent().thaw(), json!({"return": 2}));
            sizes.push(soak.size());
        }
        let (early, late) = (sizes[FLAT_ROUNDS / 3], sizes[FLAT_ROUNDS - 1]);
        assert!(late.0 < early.0 + 1024, "the agent's memory grows from {} to {} KiB", early.0, late.0);
        assert!(late.1 <= early.1 + 2, "the agent's threads grow from {} to {}", early.1, late.1);
        std::fs::write(soak.stage.path("enough"), "").expect("a file can be written");
        eprintln!(
            "{rounds} rounds, {} kills, {} second agents refused, {} early ends told, {late:?} KiB and threads",
            soak.kills, soak.refusals, soak.early
        );
    });
}
