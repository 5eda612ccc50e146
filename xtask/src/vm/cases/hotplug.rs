//! The port is taken away and given back while the guest runs.

use super::Case;
use crate::vm::conversation::patience;
use crate::vm::guest::{Guest, our_port};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case { name: "hotplug_ours_answers_again_after_its_port_was_replugged", run: under_the_unit },
    Case { name: "hotplug_ours_without_a_unit_finds_its_port_again", run: without_a_unit },
];

fn unplug(guest: &mut Guest) -> Result<()> {
    guest.machine().qmp("device_del", &json!({"id": "ours"}))?;
    guest.machine().wait_for_event("DEVICE_DELETED", patience())?;
    guest.wait_until("the port is gone in the guest", |guest| {
        let result = guest.shell_result("grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name")?;
        Ok((result.status != 0).then_some(()))
    })
}

fn plug(guest: &mut Guest) -> Result<()> {
    guest.machine().qmp("device_add", &our_port()).map(drop)
}

fn under_the_unit(guest: &mut Guest) -> Result<()> {
    let before = guest.our_pid()?;
    unplug(guest)?;
    std::thread::sleep(Duration::from_secs(3));
    plug(guest)?;
    let started = Instant::now();
    guest.talk_to_ours().context("after the replug")?;
    let took = crate::style::duration(started.elapsed());
    let after = guest.our_pid()?;
    guest.note(format!("answers {took} after the replug; process {before}, then {after}"));
    Ok(())
}

/// Started by hand with --retry-path: no service manager brings it back, the agent itself must.
fn without_a_unit(guest: &mut Guest) -> Result<()> {
    // The unit would come with the port and take it.
    guest.shell(
        "systemctl mask --runtime --now qemu-guest-agent.service
         systemd-run --quiet --unit ours-by-hand --property RuntimeDirectory=ours-by-hand \
             /usr/sbin/qemu-ga --retry-path --statedir /run/ours-by-hand --pidfile /run/ours-by-hand/pid",
    )?;
    let outcome = replug_by_hand(guest);
    guest.shell(
        "systemctl stop ours-by-hand.service || true
         systemctl reset-failed ours-by-hand.service 2>/dev/null || true
         systemctl unmask --runtime qemu-guest-agent.service
         udevadm settle
         systemctl restart qemu-guest-agent.service",
    )?;
    guest.talk_to_ours()?;
    outcome
}

fn replug_by_hand(guest: &mut Guest) -> Result<()> {
    guest.talk_to_ours().context("before")?;
    let before = guest.unit_pid("ours-by-hand.service")?;
    for absent in [Duration::ZERO, Duration::from_secs(8)] {
        unplug(guest)?;
        // Longer than the original's one attempt after 5 s, in the second round.
        std::thread::sleep(absent);
        plug(guest)?;
        let started = Instant::now();
        guest.talk_to_ours().with_context(|| format!("after {} s without the port", absent.as_secs()))?;
        let took = crate::style::duration(started.elapsed());
        guest.note(format!("absent for {} s: answers {took} after the replug", absent.as_secs()));
    }
    let after = guest.unit_pid("ours-by-hand.service")?;
    ensure!(before == after, "process {before} became {after}");
    Ok(())
}
