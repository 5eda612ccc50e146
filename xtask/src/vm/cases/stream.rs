//! Replies of many megabytes through a port, to hosts that read them and hosts that do not.

use super::Case;
use crate::vm::guest::{Guest, decode};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case { name: "stream_of_48_mb_costs_little_memory", run: big_read },
    Case { name: "stream_to_a_host_that_stops_reading_does_not_spin", run: host_stops_reading },
    Case { name: "stream_to_a_host_that_leaves_is_dropped", run: host_leaves },
];

/// The most that one read may ask for.
const COUNT: usize = 48 << 20;

/// Numbered lines, so that no block of the file is like another.
const MAKE_FILE: &str = "[ -e /var/tmp/numbers ] || seq -f %015.0f 1 3145728 > /var/tmp/numbers";

fn open_file(guest: &mut Guest) -> Result<(crate::vm::conversation::Conversation, Value)> {
    guest.shell(MAKE_FILE)?;
    let mut host = guest.talk_to_ours()?;
    let handle = host.call("guest-file-open", &json!({"path": "/var/tmp/numbers"}))?;
    Ok((host, handle))
}

fn read_request(handle: &Value) -> Value {
    json!({"execute": "guest-file-read", "arguments": {"handle": handle, "count": COUNT}})
}

fn big_read(guest: &mut Guest) -> Result<()> {
    let pid = guest.our_pid()?;
    let (mut host, handle) = open_file(guest)?;
    guest.forget_peak(pid)?;
    let before = guest.usage(pid)?;
    let started = Instant::now();
    let reply = host.ask(&read_request(&handle))?;
    let took = started.elapsed();
    let after = guest.usage(pid)?;
    host.call("guest-file-close", &json!({"handle": handle}))?;
    let (peak, ticks) = (after.peak_kib - before.resident_kib, after.cpu_ticks - before.cpu_ticks);
    guest.note(format!("{peak} KiB of memory, {ticks} ticks of 10 ms, {}", crate::style::duration(took)));

    let result = &reply["return"];
    let bytes = decode(result["buf-b64"].as_str().with_context(|| format!("no data: {}", reply["error"]))?)?;
    ensure!(result["count"] == COUNT && bytes.len() == COUNT, "{} bytes, {} told", bytes.len(), result["count"]);
    for (line, number) in bytes.chunks(16).zip(1..) {
        ensure!(line == format!("{number:015}\n").as_bytes(), "line {number} is {}", line.escape_ascii());
    }
    ensure!(peak < 4096, "{peak} KiB of memory for a read");
    Ok(())
}

/// More than the clock's interrupts, which are counted as somebody's time; a loop would take all of it.
const ALLOWED_TICKS: u64 = 10;

/// The processor time of a process within `time`: the least of some looks, since a busy host makes any of them look worse.
fn least_ticks(guest: &mut Guest, pid: u32, time: Duration) -> Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..4 {
        let before = guest.usage(pid)?.cpu_ticks;
        sleep(time);
        // A thread that ended meanwhile has taken its time with it.
        least = least.min(guest.usage(pid)?.cpu_ticks.saturating_sub(before));
        if least <= ALLOWED_TICKS {
            break;
        }
    }
    Ok(least)
}

fn host_stops_reading(guest: &mut Guest) -> Result<()> {
    let pid = guest.our_pid()?;
    let (mut host, handle) = open_file(guest)?;
    host.send_request(&read_request(&handle))?;
    host.read_some(1 << 20)?;
    // What is on the way still fills some buffers.
    sleep(Duration::from_secs(2));
    let ticks = least_ticks(guest, pid, Duration::from_secs(5))?;
    let resident_kib = guest.usage(pid)?.resident_kib;
    guest.note(format!("5 s with a host that does not read: {ticks} ticks of 10 ms, {resident_kib} KiB"));

    guest.shell(&format!("kill -TERM {pid}"))?;
    // The next process must have the port open before the host leaves: QEMU, holding back what the last one wrote, would
    // else forget to take up again.
    let ended = guest.wait_until("SIGTERM ends the agent and its unit starts it anew", |guest| {
        let next = guest.our_pid()?;
        let open = guest.shell_result(&format!("readlink /proc/{next}/fd/* | grep vport"))?;
        Ok((next != pid && open.status == 0).then_some(()))
    });
    if ended.is_err() {
        guest.shell(&format!("kill -KILL {pid}"))?;
    }
    drop(host);
    guest.talk_to_ours()?;
    ended?;
    ensure!(ticks <= ALLOWED_TICKS, "{ticks} ticks of 10 ms in 5 s with nothing to do");
    Ok(())
}

/// The next client gets answers, also when it comes so soon that the agent hardly notices the change.
fn host_leaves(guest: &mut Guest) -> Result<()> {
    let pid = guest.our_pid()?;
    for absent in [Duration::ZERO, Duration::ZERO, Duration::from_secs(3)] {
        let (mut host, handle) = open_file(guest)?;
        host.send_request(&read_request(&handle))?;
        host.read_some(1 << 20)?;
        // The agent now waits for the host to take more.
        sleep(Duration::from_secs(1));
        drop(host);
        if !absent.is_zero() {
            let ticks = least_ticks(guest, pid, absent)?;
            ensure!(ticks <= ALLOWED_TICKS, "{ticks} ticks of 10 ms in {absent:?} without a host");
        }
        let mut next = guest.talk_to_ours().with_context(|| format!("{absent:?} after the host has left"))?;
        next.call("guest-file-close", &json!({"handle": handle})).context("the handle outlives the client")?;
    }
    ensure!(guest.our_pid()? == pid, "the agent was restarted meanwhile");
    Ok(())
}
