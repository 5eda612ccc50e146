//! An agent that listens on a vsock, reached from inside the guest through the kernel's loopback.

use super::Case;
use crate::vm::Skipped;
use crate::vm::guest::Guest;
use anyhow::{Result, ensure};

pub const CASES: &[Case] = &[
    Case { name: "vsock_agent_serves_clients_one_after_the_other_and_at_once", run: over_loopback },
    Case { name: "vsock_serves_the_host_alone_unless_others_are_named", run: only_the_host },
    Case { name: "vsock_address_errors_name_the_address", run: wrong_address },
];

/// 16 clients at once, then one after the other; half a request and an unread reply are left behind.
const CLIENTS: &str = r#"
import json, socket, time
def connect():
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(60)
    s.connect((1, 1234))
    return s
def ask(s, identity):
    s.sendall(json.dumps({"execute": "guest-ping", "id": identity}).encode() + b"\n")
    line = b""
    while not line.endswith(b"\n"):
        piece = s.recv(4096)
        assert piece, "closed"
        line += piece
    assert json.loads(line) == {"return": {}, "id": identity}, line
deadline = time.time() + 600
while True:
    try:
        ask(connect(), "first")
        break
    except OSError:
        assert time.time() < deadline, "no agent"
        time.sleep(0.2)
silent = connect()
silent.sendall(b'{"execute": "guest-pi')
for number in range(20):
    ask(connect(), number)
clients = [connect() for number in range(16)]
for number, client in enumerate(clients):
    ask(client, number)
unread = connect()
unread.sendall(b'{"execute": "guest-info"}')
time.sleep(0.5)
unread.close()
ask(connect(), "last")
"#;

/// Starts one more of ours, on port 1234 of the kernel's loopback; skips the case where there is none.
pub fn start_agent(guest: &mut Guest) -> Result<()> {
    let module = guest.shell_result("modprobe vsock_loopback")?;
    if module.status != 0 {
        return Err(Skipped::because(&format!("the guest's kernel has no vsock loopback: {}", module.stderr.trim())));
    }
    guest.shell(
        "systemd-run --quiet --unit vsock-agent --property RuntimeDirectory=vsock-agent \
             /usr/sbin/qemu-ga -m vsock-listen -p 1:1234 --vsock-peers 1 -t /run/vsock-agent -f /run/vsock-agent/pid",
    )?;
    Ok(())
}

/// A user of the guest connects, asks for a program that runs as root, and tells what came.
const INTRUDER: &str = r#"
import socket, sys, time
deadline = time.time() + 100
while True:
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(100)
    try:
        s.connect((1, 1235))
        break
    except OSError:
        assert time.time() < deadline, "no agent"
        time.sleep(0.2)
try:
    s.sendall(b"{\"execute\": \"guest-exec\", \"arguments\": {\"path\": \"/usr/bin/touch\", \"arg\": [\"/run/pwned\"]}}\n")
    print("answered" if s.recv(4096) else "closed")
except OSError:
    print("closed")
"#;

fn only_the_host(guest: &mut Guest) -> Result<()> {
    let module = guest.shell_result("modprobe vsock_loopback")?;
    if module.status != 0 {
        return Err(Skipped::because(&format!("the guest's kernel has no vsock loopback: {}", module.stderr.trim())));
    }
    for (unit, agent, peers, expected) in [
        ("vsock-original", "/opt/original/qemu-ga", "", "answered"),
        ("vsock-guarded", "/usr/sbin/qemu-ga", "", "closed"),
        ("vsock-open", "/usr/sbin/qemu-ga", "--vsock-peers any", "answered"),
    ] {
        guest.shell(&format!(
            "systemd-run --quiet --unit {unit} --property RuntimeDirectory={unit} {agent} -m vsock-listen \
             -p 4294967295:1235 {peers} -t /run/{unit} -f /run/{unit}/pid"
        ))?;
        let intruder = INTRUDER.replace('\'', "'\\''");
        let result =
            guest.shell_result(&format!("timeout 150 setpriv --reuid nobody --clear-groups python3 -c '{intruder}'"));
        let said = guest.shell(&format!("journalctl --boot --unit {unit}.service --no-pager"));
        guest.shell(&format!("systemctl stop {unit}.service || true; rm -f /run/pwned"))?;
        let result = result?;
        ensure!(result.stdout.trim() == expected, "{agent} {peers}: {}{}", result.stdout, result.stderr);
        let is_told = said?.contains("refused a connection from vsock context id 1 (a program of this guest)");
        ensure!(is_told == (expected == "closed"), "{agent} {peers}: the log tells of a refusal: {is_told}");
    }
    Ok(())
}

/// Ends it, if it has not ended.
pub fn stop_agent(guest: &mut Guest) -> Result<()> {
    guest.shell("systemctl stop vsock-agent.service || true").map(drop)
}

fn over_loopback(guest: &mut Guest) -> Result<()> {
    start_agent(guest)?;
    let result = guest.shell_result(&format!("timeout 1500 python3 -c '{}'", CLIENTS.replace('\'', "'\\''")));
    let pid = guest.unit_pid("vsock-agent.service");
    stop_agent(guest)?;
    let result = result?;
    ensure!(result.status == 0, "status {}: {}{}", result.status, result.stdout, result.stderr);
    pid.map(drop)
}

fn wrong_address(guest: &mut Guest) -> Result<()> {
    for address in ["abc", "1:", "1:x", "99999:1234"] {
        let result = guest.shell_result(&format!(
            "mkdir -p /run/second-agent; timeout 600 /usr/sbin/qemu-ga -m vsock-listen -p {address} -t /run/second-agent"
        ))?;
        let known = ["error parsing address", "Failed to parse port", "Cannot assign requested address"];
        let said = known.iter().any(|text| result.stderr.contains(text));
        ensure!(result.status == 1 && said, "{address}: status {}: {}", result.status, result.stderr);
    }
    Ok(())
}
