//! The command line on a node of Proxmox VE: the sockets of both agents' ports where such a node has them.

use std::path::Path;
use std::process::Command;

use super::Case;
use super::command_line::program;
use crate::vm::Skipped;
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};

pub const CASES: &[Case] = &[Case { name: "command_line_finds_the_machines_of_a_proxmox_node", run: on_a_node }];

/// Run in mounts of its own: /run is empty but for the socket of machine 101, if one is given.
const NODE: &str = r#"
mount -t tmpfs tmpfs /run
mkdir -p /var/run/qemu-server
[ -z "$1" ] || ln -s "$1" /var/run/qemu-server/101.qga
shift
exec "$@"
"#;

/// A command in mounts of its own, which vanish with it.
fn in_own_mounts() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--mount");
    command
}

/// All that a run on the node says, which must end with this code.
fn said(socket: Option<&Path>, arguments: &[&str], code: i32) -> Result<String> {
    let output = in_own_mounts()
        .args(["sh", "-ec", NODE, "node"])
        .arg(socket.unwrap_or(Path::new("")))
        .arg(program()?)
        .args(arguments)
        .env_remove("QGA_TARGET")
        .output()
        .context("cannot start unshare")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.code() == Some(code), "qga {} ended with {}: {said}", arguments.join(" "), output.status);
    Ok(said)
}

fn on_a_node(guest: &mut Guest) -> Result<()> {
    let probe = in_own_mounts().arg("true").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return Err(Skipped::because("this user may not have mounts of its own (unshare --mount)"));
    }
    let host_name = guest.shell("hostname")?;
    for port in [guest.our_agent(), guest.original_agent()] {
        let port = Some(port.as_path());
        ensure!(said(port, &["ping"], 0)?.starts_with("pve:101 answers"), "the only machine was not found by itself");
        ensure!(said(port, &["targets"], 0)?.contains("pve:101"), "the machine is not listed");
        let told = said(port, &["-t", "pve:101", "exec", "--", "sh", "-c", "hostname; exit 3"], 3)?;
        ensure!(told.trim_end() == host_name, "{told}");
        let told = said(port, &["-t", "pve:1*", "exec", "hostname"], 0)?;
        ensure!(told.trim_end() == format!("pve:101 | {host_name}"), "{told}");
        said(port, &["-t", "pve:101", "doctor"], 0)?;
    }
    let ours = guest.our_agent();
    for (socket, machine) in [(Some(ours.as_path()), "pve:102"), (None, "pve:101")] {
        for command in ["ping", "doctor"] {
            let told = said(socket, &["-t", machine, command], 66)?;
            ensure!(told.contains("the machine does not run on this node"), "{told}");
        }
    }
    ensure!(said(None, &["ping"], 66)?.contains("no agent was found on this host"), "something was found");
    Ok(())
}
