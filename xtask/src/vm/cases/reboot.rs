//! The guest starts anew: by its own will, and by the host's reset.

use super::Case;
use crate::vm::guest::Guest;
use anyhow::Result;
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "reboot_both_agents_answer_again", run: of_its_own_will },
    Case { name: "reset_both_agents_answer_again", run: by_the_host },
];

fn of_its_own_will(guest: &mut Guest) -> Result<()> {
    // Clients that stay connected throughout: their connection is to QEMU, not to the guest.
    let (mut ours, mut original) = (guest.talk_to_ours()?, guest.talk_to_original()?);
    // Not at once: the script's own end must still be told.
    guest.reboot(|guest| guest.shell("systemd-run --quiet --on-active=1 systemctl reboot").map(drop))?;
    for host in [&mut ours, &mut original] {
        host.synchronise(crate::vm::pace::BOOT_PATIENCE)?;
        host.call("guest-ping", &json!({}))?;
    }
    Ok(())
}

fn by_the_host(guest: &mut Guest) -> Result<()> {
    guest.reboot(|guest| guest.machine().qmp("system_reset", &json!({})).map(drop))?;
    guest.talk_to_original()?;
    let mut host = guest.talk_to_ours()?;
    host.call("guest-ping", &json!({}))?;
    Ok(())
}
