//! The host's end of the port is closed and opened: what one client left must not reach the next.

use super::Case;
use crate::vm::conversation::{Conversation, patience};
use crate::vm::guest::Guest;
use crate::vm::pace;
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::thread::sleep;
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case { name: "reconnect_after_half_a_request_resynchronises", run: half_request_then_sync },
    Case { name: "reconnect_forgets_half_a_request", run: half_request_is_forgotten },
    Case { name: "reconnect_never_delivers_the_reply_of_a_client_that_left", run: reply_of_the_dead },
    Case { name: "reconnect_a_hundred_times", run: many_times },
];

/// Gives the guest time to notice that the host has come or gone.
fn let_the_guest_notice() {
    sleep(Duration::from_secs(2) * pace::slowness());
}

/// Both agents must manage this: it is what `guest-sync-delimited` is for.
fn half_request_then_sync(guest: &mut Guest) -> Result<()> {
    for path in [guest.original_agent(), guest.our_agent()] {
        let mut first = Conversation::open(&path)?;
        first.send(br#"{"execute": "guest-exec", "arguments": {"path": "/bin/tru"#)?;
        drop(first);
        let mut second = Conversation::open(&path)?;
        second.synchronise(patience())?;
        second.call("guest-ping", &json!({}))?;
    }
    Ok(())
}

fn half_request_is_forgotten(guest: &mut Guest) -> Result<()> {
    let mut first = guest.talk_to_ours()?;
    first.send(br#"{"execute": "guest-pi"#)?;
    let_the_guest_notice();
    drop(first);
    let_the_guest_notice();
    let mut second = Conversation::open(&guest.our_agent())?;
    let reply = second.ask(&json!({"execute": "guest-ping", "id": "second"}))?;
    ensure!(reply == json!({"return": {}, "id": "second"}), "the second client is told {reply}");
    Ok(())
}

/// The agent is stopped while the first client asks and leaves, so that it must answer into the void.
fn reply_of_the_dead(guest: &mut Guest) -> Result<()> {
    guest.talk_to_ours()?;
    let pid = guest.our_pid()?;
    guest.shell(&format!("kill -STOP {pid}"))?;
    let asked = (|| {
        let mut first = Conversation::open(&guest.our_agent())?;
        first.send_request(&json!({"execute": "guest-info", "id": "first"}))?;
        // QEMU must have handed the request to the guest before the connection is gone.
        let_the_guest_notice();
        drop(first);
        let_the_guest_notice();
        anyhow::Ok(())
    })();
    guest.shell(&format!("kill -CONT {pid}"))?;
    asked?;
    let_the_guest_notice();
    let mut second = Conversation::open(&guest.our_agent())?;
    let reply = second.ask(&json!({"execute": "guest-ping", "id": "second"})).context("the second client")?;
    ensure!(reply["id"] == "second", "the second client is told {}", reply["id"]);
    Ok(())
}

fn many_times(guest: &mut Guest) -> Result<()> {
    let pid = guest.our_pid()?;
    let mut before = guest.usage(pid)?;
    for round in 0..110 {
        if round == 10 {
            // By now everything that one round needs has been loaded.
            before = guest.usage(pid)?;
        }
        let mut host = guest.talk_to_ours().with_context(|| format!("round {round}"))?;
        // Every second client leaves a reply unread.
        host.send_request(&json!({"execute": "guest-ping"}))?;
        if round % 2 == 0 {
            host.reply()?;
        }
    }
    guest.talk_to_ours()?;
    ensure!(guest.our_pid()? == pid, "the agent was restarted meanwhile");
    let after = guest.usage(pid)?;
    guest.note(format!("resident {} KiB before, {} KiB after", before.resident_kib, after.resident_kib));
    ensure!(after.resident_kib < before.resident_kib + 1024, "memory grew: {before:?}, then {after:?}");
    Ok(())
}
