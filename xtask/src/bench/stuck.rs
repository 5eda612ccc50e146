//! One client's command is stuck; how long do others, and the same client after a sync, wait for an answer?

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use qga_client::Timeouts;
use serde_json::{Value, json};

use super::table::{Row, Target, Unit};
use super::{Effort, Programs};
use crate::launch::Agent;
use crate::lease::StuckProgram;

/// What was promised for any answer.
const PROMISED_SECONDS: f64 = 0.05;
/// An agent that is silent for so long is called deaf.
const DEAF: Duration = Duration::from_secs(2);
/// A command counts as stuck some time after it has last got on; before, a synchronisation waits for it.
const STUCK_AFTER: Duration = Duration::from_millis(1500);
const LEASE_BREAK_TIME: &str = "/proc/sys/fs/lease-break-time";

/// The longest wait, in seconds; `None` if no answer came.
struct Waits {
    other: Option<f64>,
    same: Option<f64>,
}

/// Both agents with a stuck command.
pub fn measure(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    let _limit = LeaseLimit::at_least(Duration::from_secs(effort.stuck_seconds + 10));
    let stuck = Duration::from_secs(effort.stuck_seconds).min(LeaseLimit::now().saturating_sub(Duration::from_secs(5)));
    let original = waits(&programs.original, stuck)?;
    let ours = waits(&programs.ours, stuck)?;
    let row = |what: &str, original, ours| Row {
        name: format!("{} s stuck: {what}, at most", stuck.as_secs()),
        unit: Unit::Seconds,
        original,
        ours,
        target: Target::AtMost(PROMISED_SECONDS),
    };
    Ok(vec![row("ping, other client", original.other, ours.other), row("sync + ping, same", original.same, ours.same)])
}

fn waits(program: &Path, stuck: Duration) -> Result<Waits> {
    let agent = Agent::start(program, &[])?;
    let script = StuckProgram::create(agent.folder())?;

    let timeouts = Timeouts { connect: DEAF, silence: DEAF };
    let mut same = agent.connect_with(timeouts)?;
    same.start("guest-exec", json!({ "path": script.path() }))?;
    std::thread::sleep(STUCK_AFTER);

    let deadline = Instant::now() + stuck;
    let mut other = agent.connect_with(timeouts)?;
    let mut waits = Waits { other: Some(0.0), same: Some(0.0) };
    while Instant::now() < deadline && (waits.other.is_some() || waits.same.is_some()) {
        for (longest, connection, with_sync) in
            [(&mut waits.other, &mut other, false), (&mut waits.same, &mut same, true)]
        {
            let started = Instant::now();
            let mut answered = || -> Result<(), qga_client::Error> {
                if with_sync {
                    connection.sync()?;
                }
                connection.call_raw("guest-ping", Value::Null).map(|_| ())
            };
            if longest.is_some() {
                let answer = answered();
                let waited = started.elapsed().as_secs_f64();
                *longest = answer.ok().and(longest.map(|so_far| so_far.max(waited)));
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // The agent can be ended only when the program could start.
    drop(script);
    Ok(waits)
}

/// The kernel's time limit for leases, which root may lengthen for a while.
struct LeaseLimit {
    /// What to put back.
    before: Option<String>,
}

impl LeaseLimit {
    fn at_least(wanted: Duration) -> Self {
        let before = fs::read_to_string(LEASE_BREAK_TIME).unwrap_or_default();
        let changed = Self::now() < wanted && fs::write(LEASE_BREAK_TIME, wanted.as_secs().to_string()).is_ok();
        Self { before: changed.then_some(before) }
    }

    fn now() -> Duration {
        let text = fs::read_to_string(LEASE_BREAK_TIME).unwrap_or_default();
        Duration::from_secs(text.trim().parse().unwrap_or(45))
    }
}

impl Drop for LeaseLimit {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(LEASE_BREAK_TIME, before.trim());
        }
    }
}
