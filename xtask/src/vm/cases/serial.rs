//! An agent on a plain serial port.

use super::Case;
use crate::vm::conversation::{Conversation, patience};
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[Case { name: "serial_agent_answers_also_after_a_hang_up", run: on_the_second_port }];

fn on_the_second_port(guest: &mut Guest) -> Result<()> {
    guest.shell(
        "systemd-run --quiet --unit serial-agent --property RuntimeDirectory=serial-agent \
             /usr/sbin/qemu-ga -m isa-serial -p /dev/ttyS1 -t /run/serial-agent -f /run/serial-agent/pid",
    )?;
    let outcome = converse(guest);
    guest.shell("systemctl stop serial-agent.service || true")?;
    outcome
}

fn converse(guest: &mut Guest) -> Result<()> {
    let mut first = Conversation::open(&guest.serial_port())?;
    first.synchronise(patience())?;
    first.call("guest-ping", &json!({}))?;
    // More than any buffer on the way: 64 KiB of id there and back.
    let id = "0123456789abcdef".repeat(4096);
    let reply = first.ask(&json!({"execute": "guest-ping", "id": id}))?;
    ensure!(reply["id"] == id.as_str(), "a long id does not come back whole");
    first.send(br#"{"execute": "guest-pi"#)?;
    drop(first);

    let mut second = Conversation::open(&guest.serial_port())?;
    second.synchronise(patience()).context("after the host came back")?;
    second.call("guest-ping", &json!({}))?;

    let before = guest.unit_pid("serial-agent.service")?;
    // TIOCVHANGUP: what a modem's lost carrier does, every open descriptor of the port is dead from here on.
    guest.shell(
        "python3 -c 'import fcntl, os
port = os.open(\"/dev/ttyS1\", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
fcntl.ioctl(port, 0x5437)'",
    )?;
    second.synchronise(patience()).context("after the hang-up")?;
    second.call("guest-ping", &json!({}))?;
    let after = guest.unit_pid("serial-agent.service")?;
    ensure!(before == after, "process {before} became {after}");
    Ok(())
}
