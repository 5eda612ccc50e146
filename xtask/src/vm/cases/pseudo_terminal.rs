//! The command line over a pseudo terminal: what QEMU makes of a machine's serial port on the host.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Case;
use super::command_line::{does_a_hosts_work, program, qga};
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] =
    &[Case { name: "command_line_reaches_both_agents_over_a_pseudo_terminal", run: both_agents }];

const AGENTS: [(&str, &str); 2] = [("ours", "/usr/sbin/qemu-ga"), ("the original", "/opt/original/qemu-ga")];

fn both_agents(guest: &mut Guest) -> Result<()> {
    let made = change_port(guest, &json!({"type": "pty", "data": {}}))?;
    let device = made["pty"].as_str().context("QEMU names no pseudo terminal")?.to_owned();
    let outcome = AGENTS.iter().try_for_each(|(name, program)| {
        with_agent(guest, program, |guest| converse(guest, &device)).with_context(|| (*name).to_owned())
    });
    let address = json!({"type": "unix", "data": {"path": guest.serial_port().display().to_string()}});
    let socket = json!({"type": "socket", "data": {"addr": address, "server": true, "wait": false}});
    outcome.and(change_port(guest, &socket).map(drop))
}

/// What stands behind the guest's second serial port from now on.
fn change_port(guest: &mut Guest, backend: &Value) -> Result<Value> {
    guest.machine().qmp("chardev-change", &json!({"id": "serial", "backend": backend}))
}

fn with_agent(guest: &mut Guest, program: &str, run: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    guest.shell(&format!(
        "systemd-run --quiet --unit serial-agent --property RuntimeDirectory=serial-agent \
             {program} -m isa-serial -p /dev/ttyS1 -t /run/serial-agent -f /run/serial-agent/pid"
    ))?;
    let outcome = run(guest);
    guest.shell("systemctl stop serial-agent.service || true")?;
    outcome
}

fn converse(guest: &mut Guest, device: &str) -> Result<()> {
    // A terminal as a person would have it: echoes, and takes some bytes for its own.
    let sane = Command::new("stty").args(["-F", device, "sane"]).status().context("cannot start stty")?;
    ensure!(sane.success(), "stty ended with {sane}");
    let host_name = guest.shell("hostname")?;
    let target = format!("serial:{device}");
    let target = Path::new(&target);
    does_a_hosts_work(target, &host_name, 30_000)?;

    let mut child = qga(target, &["exec", "--", "sh", "-c", "echo started; exec sleep 300"])?
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qga")?;
    let mut word = [0; 8];
    child.stdout.as_mut().context("no output")?.read_exact(&mut word).context("the program did not start")?;
    child.kill().context("cannot kill qga")?;
    child.wait().context("cannot wait for qga")?;
    for _ in 0..2 {
        // Neither what the killed one has left behind nor what the one before has set keeps the next one out.
        let output = without_privileges(program()?).arg("-t").arg(target).arg("ping").output()?;
        ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    guest.shell("pkill -x sleep || true").map(drop)
}

/// Runs a program as one to which the system denies what it denies to all but root.
fn without_privileges(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-sys_admin").arg(program);
    command
}
