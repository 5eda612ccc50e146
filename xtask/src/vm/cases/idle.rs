//! No host at the other end: the agent waits without working, and is there as soon as the host is.

use super::Case;
use crate::vm::conversation::Conversation;
use crate::vm::guest::{Guest, Usage};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case { name: "idle_without_a_host_costs_nothing", run: without_host },
    Case { name: "idle_with_a_silent_host_costs_nothing", run: with_silent_host },
    Case { name: "idle_agent_answers_soon_after_the_host_connects", run: answers_after_connect },
];

const WATCHED: Duration = Duration::from_secs(10);

/// Half of a hundredth of a processor: on a busy host interrupts of the guest are counted as somebody's time.
const ALLOWED_TICKS: u64 = 5;
/// The kernel tells of a host that comes by a signal or not at all, so a look now and then is allowed; the original
/// looks ten times a second.
const ALLOWED_SLEEPS: u64 = 2 * WATCHED.as_secs();

/// How often an agent that does not look idle is looked at again.
const LOOKS: u32 = 3;

/// A thread of the agent that has nothing to do ends within this time, and takes what it has cost with it.
const SETTLED: Duration = Duration::from_secs(12);

fn watch(guest: &mut Guest, pid: u32) -> Result<Usage> {
    sleep(SETTLED);
    let before = guest.usage(pid)?;
    sleep(WATCHED);
    let after = guest.usage(pid)?;
    let sleeps = after.sleeps.checked_sub(before.sleeps).context("a thread ended meanwhile")?;
    Ok(Usage { cpu_ticks: after.cpu_ticks.saturating_sub(before.cpu_ticks), sleeps, ..after })
}

fn ensure_idle(guest: &mut Guest) -> Result<()> {
    let pid = guest.our_pid()?;
    let is_idle = |used: &Usage| used.cpu_ticks <= ALLOWED_TICKS && used.sleeps <= ALLOWED_SLEEPS;
    let mut used = watch(guest, pid)?;
    // An agent that works without cause does so every time; a busy host does not.
    for _ in 0..LOOKS {
        if is_idle(&used) {
            break;
        }
        guest.note(format!("not idle, looked at again: {used:?}"));
        used = watch(guest, pid)?;
    }
    let seconds = WATCHED.as_secs();
    guest.note(format!("{seconds} s: {} ticks of 10 ms, woken up {} times", used.cpu_ticks, used.sleeps));
    ensure!(is_idle(&used), "not idle: {used:?} within {seconds} s");
    Ok(())
}

fn without_host(guest: &mut Guest) -> Result<()> {
    // Somebody was there, and has left.
    guest.talk_to_ours()?;
    sleep(Duration::from_secs(1));
    ensure_idle(guest)
}

fn with_silent_host(guest: &mut Guest) -> Result<()> {
    let host = guest.talk_to_ours()?;
    ensure_idle(guest)?;
    drop(host);
    Ok(())
}

fn answers_after_connect(guest: &mut Guest) -> Result<()> {
    let mut note = String::from("first answer after");
    for _ in 0..5 {
        sleep(Duration::from_secs(2));
        let started = Instant::now();
        let mut host = Conversation::open(&guest.our_agent())?;
        let reply = host.ask(&json!({"execute": "guest-ping"}))?;
        ensure!(reply == json!({"return": {}}), "answered {reply}");
        note.push(' ');
        note.push_str(&crate::style::duration(started.elapsed()));
    }
    guest.note(note);
    Ok(())
}
