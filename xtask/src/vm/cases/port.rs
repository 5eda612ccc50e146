//! The port is there, but not as expected: held by somebody else, without its link.

use super::Case;
use crate::vm::guest::{Guest, OUR_UNIT};
use anyhow::{Context as _, Result, ensure};

pub const CASES: &[Case] = &[
    Case { name: "port_held_by_another_agent_is_an_error_that_says_so", run: held_by_another },
    Case { name: "port_is_found_by_name_where_udev_made_no_link", run: found_by_name },
];

fn held_by_another(guest: &mut Guest) -> Result<()> {
    let result = guest.shell_result(
        "mkdir -p /run/second-agent
         timeout 30 /usr/sbin/qemu-ga -p /dev/virtio-ports/org.qemu.guest_agent.1 -t /run/second-agent",
    )?;
    guest.note(format!("status {}: {}", result.status, result.stderr.trim().replace('\n', " | ")));
    ensure!(result.status == 1, "status {}, stderr: {}", result.status, result.stderr);
    for word in ["/dev/virtio-ports/org.qemu.guest_agent.1", "Device or resource busy"] {
        ensure!(result.stderr.contains(word), "no {word:?} in: {}", result.stderr);
    }
    guest.talk_to_original().context("the holder of the port")?;
    Ok(())
}

fn found_by_name(guest: &mut Guest) -> Result<()> {
    guest.shell("rm /dev/virtio-ports/org.qemu.guest_agent.0")?;
    // The unit is bound to the link's device unit, which systemd keeps: it asks udev, not the file system.
    let restarted = guest.shell(&format!("systemctl restart {OUR_UNIT}"));
    let answer = restarted.and_then(|_| guest.talk_to_ours().map(drop));
    guest.shell(
        "udevadm trigger --settle --action=add --subsystem-match=virtio-ports
         ls /dev/virtio-ports/org.qemu.guest_agent.0",
    )?;
    answer
}
