//! Our unit and udev rule, as packaged: who starts the agent, who starts it again.

use super::Case;
use crate::vm::guest::{Guest, OUR_UNIT};
use anyhow::{Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case { name: "boot_starts_ours_by_its_udev_rule_and_unit", run: started_at_boot },
    Case { name: "unit_restarts_a_killed_agent", run: restarted_when_killed },
    Case { name: "unit_restart_spares_programs_of_the_host", run: programs_survive },
    Case { name: "unit_is_restarted_by_a_program_of_its_own_agent", run: restarts_itself },
    Case { name: "unit_stops_the_agent_at_once_and_cleanly", run: stops_cleanly },
];

fn started_at_boot(guest: &mut Guest) -> Result<()> {
    guest.talk_to_ours()?;
    let properties = guest.shell(&format!(
        "systemctl show --property ActiveState,SubState,FragmentPath,UnitFileState,NRestarts {OUR_UNIT}"
    ))?;
    for expected in [
        "ActiveState=active",
        "SubState=running",
        "FragmentPath=/lib/systemd/system/qemu-guest-agent.service",
        "NRestarts=0",
        // Nobody enabled it: the udev rule alone wants it.
        "UnitFileState=disabled",
    ] {
        let found = properties.lines().any(|line| line.replace("=/usr/lib/", "=/lib/") == expected);
        ensure!(found, "no {expected} in:\n{properties}");
    }
    let udev = guest.shell("udevadm info --query property /dev/virtio-ports/org.qemu.guest_agent.0")?;
    ensure!(udev.contains("SYSTEMD_WANTS=qemu-guest-agent.service"), "the port wants no unit:\n{udev}");
    ensure!(udev.lines().any(|line| line.starts_with("TAGS=") && line.contains(":systemd:")), "no tag:\n{udev}");
    let pid = guest.our_pid()?;
    let program = guest.shell(&format!("readlink /proc/{pid}/exe"))?;
    ensure!(program == "/usr/sbin/qemu-ga", "the unit runs {program}");
    let version = guest.talk_to_ours()?.call("guest-info", &json!({}))?["version"].clone();
    guest.note(format!("version {version}, process {pid}"));
    Ok(())
}

fn restarted_when_killed(guest: &mut Guest) -> Result<()> {
    let before = guest.our_pid()?;
    guest.shell(&format!("kill -KILL {before}"))?;
    let after = guest.wait_until("the unit runs a new process", |guest| {
        let pid = guest.our_pid()?;
        Ok((pid != before).then_some(pid))
    })?;
    guest.talk_to_ours()?;
    guest.note(format!("process {before}, then {after}"));
    Ok(())
}

fn programs_survive(guest: &mut Guest) -> Result<()> {
    let mut host = guest.talk_to_ours()?;
    let arguments = json!({"path": "/bin/sleep", "arg": ["1000"], "capture-output": true});
    let pid = host.call("guest-exec", &arguments)?["pid"].clone();
    drop(host);
    guest.shell(&format!("systemctl restart {OUR_UNIT}"))?;
    guest.talk_to_ours()?;
    let alive = guest.shell_result(&format!("readlink /proc/{pid}/exe; kill {pid}"))?;
    ensure!(alive.stdout.contains("sleep"), "process {pid} is gone after the restart: {alive:?}");
    Ok(())
}

/// As an update of the agent's own package does, for both ends of an agent: whether it was told to end or was killed.
fn restarts_itself(guest: &mut Guest) -> Result<()> {
    for is_told in [true, false] {
        let before = guest.our_pid()?;
        let end = if is_told { format!("systemctl restart {OUR_UNIT}") } else { format!("kill -KILL {before}") };
        guest.shell("rm -f /root/updated")?;
        let script = format!(
            "echo unpacking; sleep 1; {end}; sleep 3; echo configuring; echo warned >&2; \
             touch /root/updated; exit 7"
        );
        let mut host = guest.talk_to_ours()?;
        let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true});
        let pid = host.call("guest-exec", &arguments)?["pid"].clone();
        drop(host);
        guest.wait_until("the program has done its work", |guest| {
            Ok((guest.shell_result("test -e /root/updated")?.status == 0).then_some(()))
        })?;
        let after = guest.our_pid()?;
        ensure!(before != after, "{end}: process {before} has not ended");
        let status = guest.wait_until("the new agent tells the end", |guest| {
            let status = guest.talk_to_ours()?.call("guest-exec-status", &json!({"pid": pid}))?;
            Ok((status["exited"] == true).then_some(status))
        })?;
        let expected = json!({
            "exited": true, "exitcode": 7,
            "out-data": "dW5wYWNraW5nCmNvbmZpZ3VyaW5nCg==", "err-data": "d2FybmVkCg==",
        });
        ensure!(status == expected, "{end}: the new agent says {status}");
    }
    let kernel = guest.shell("uname -r")?;
    guest.note(format!("Linux {kernel}"));
    Ok(())
}

fn stops_cleanly(guest: &mut Guest) -> Result<()> {
    guest.shell(&format!("systemctl stop {OUR_UNIT}"))?;
    let result = guest.shell(&format!("systemctl show --property Result,ExecMainStatus {OUR_UNIT}"))?;
    guest.shell(&format!("systemctl start {OUR_UNIT}"))?;
    guest.talk_to_ours()?;
    ensure!(result.contains("Result=success") && result.contains("ExecMainStatus=0"), "stopped with {result}");
    Ok(())
}
