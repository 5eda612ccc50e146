//! The guest's side of the way: the port, who holds it, how its agent is configured.

use std::fs;
use std::path::{Path, PathBuf};

use super::Diagnosis;
use crate::exit_code::Code;

/// The name that the agent's port has everywhere.
const PORT_NAME: &str = "org.qemu.guest_agent.0";

/// Whether this machine is a virtual one with ports.
pub fn is_guest(root: &Path) -> bool {
    root.join("sys/class/virtio-ports").exists()
}

pub fn look(root: &Path) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let Some(device) = port(root, &mut diagnosis) else { return diagnosis };
    look_at_holder(root, &device, &mut diagnosis);
    look_at_configuration(root, &mut diagnosis);
    diagnosis
}

/// The port's device, `/dev/vport1p1`.
fn port(root: &Path, diagnosis: &mut Diagnosis) -> Option<PathBuf> {
    let not_reached = Code::NotReached.number();
    let ports = entries(&root.join("sys/class/virtio-ports"));
    let names: Vec<(String, String)> = ports
        .iter()
        .filter_map(|port| {
            let name = fs::read_to_string(port.join("name")).ok()?.trim().to_owned();
            Some((port.file_name()?.to_string_lossy().into_owned(), name))
        })
        .collect();
    let Some((device, _)) = names.iter().find(|(_, name)| name == PORT_NAME) else {
        let advice = "Add a channel with this name to the machine on its host, and start it again.";
        if names.is_empty() {
            diagnosis.bad(format!("this machine has no port {PORT_NAME}, nor any other"), advice, not_reached);
        } else {
            let others: Vec<&str> = names.iter().map(|(_, name)| name.as_str()).collect();
            let text = format!("this machine has no port {PORT_NAME}; it has {}", others.join(", "));
            diagnosis.bad(text, advice, not_reached);
        }
        return None;
    };
    diagnosis.good(format!("the machine has the port {PORT_NAME}: /dev/{device}"));
    if !root.join("dev/virtio-ports").join(PORT_NAME).exists() {
        diagnosis.remark(
            format!("/dev/virtio-ports/{PORT_NAME} is missing"),
            "udev makes it; without udev start the agent with --path naming the device itself.",
        );
    }
    Some(Path::new("/dev").join(device))
}

fn look_at_holder(root: &Path, device: &Path, diagnosis: &mut Diagnosis) {
    let holders = holders(root, device);
    if let Some((pid, command)) = holders.first() {
        let program = command.split(' ').next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default();
        if name == "qemu-ga" {
            diagnosis.good(format!("the agent holds it: process {pid}, {command}"));
        } else {
            diagnosis.bad(
                format!("process {pid} holds it, and is no agent: {command}"),
                "End it; the port serves one program only.",
                Code::TryAgain.number(),
            );
        }
        return;
    }
    let is_installed = ["usr/sbin/qemu-ga", "usr/bin/qemu-ga", "usr/local/sbin/qemu-ga", "usr/local/bin/qemu-ga"]
        .iter()
        .any(|path| root.join(path).exists());
    let running = processes(root).into_iter().find(|(_, command)| {
        command.split(' ').next().and_then(|program| program.rsplit('/').next()) == Some("qemu-ga")
    });
    let (text, advice) = match (running, is_installed) {
        (Some((pid, command)), _) => (
            format!("an agent runs, process {pid}, and does not hold the port: {command}"),
            "It was started for another path, or without the right to open the port; see its log.",
        ),
        (None, true) => (
            "nobody holds the port: the agent is installed and does not run".to_owned(),
            "systemctl start qemu-guest-agent; systemctl status qemu-guest-agent tells why it ended.",
        ),
        (None, false) => {
            ("nobody holds the port: no agent is installed".to_owned(), "Install the package qemu-guest-agent.")
        }
    };
    diagnosis.bad(text, advice, Code::NotReached.number());
}

fn look_at_configuration(root: &Path, diagnosis: &mut Diagnosis) {
    for path in ["etc/qemu/qemu-ga.conf", "etc/sysconfig/qemu-ga", "etc/default/qemu-guest-agent"] {
        let Ok(text) = fs::read_to_string(root.join(path)) else { continue };
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let lists = lines.filter(|line| {
            ["block-rpcs", "blacklist", "allow-rpcs", "BLACKLIST_RPC", "FILTER_RPC_ARGS"]
                .iter()
                .any(|key| line.contains(key))
        });
        for list in lists
            .filter(|line| line.split_once('=').is_some_and(|(_, value)| !value.trim_matches(['"', ' ']).is_empty()))
        {
            diagnosis.remark(format!("/{path} limits what the agent does: {list}"), "");
        }
    }
}

/// Who has the device open.
fn holders(root: &Path, device: &Path) -> Vec<(u32, String)> {
    let mut found = processes(root);
    found.retain(|(pid, _)| {
        let open = entries(&root.join("proc").join(pid.to_string()).join("fd"));
        open.iter().any(|descriptor| fs::read_link(descriptor).is_ok_and(|path| path == device))
    });
    found
}

/// Every process with its command line.
fn processes(root: &Path) -> Vec<(u32, String)> {
    let process = |path: PathBuf| {
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let command = fs::read(path.join("cmdline")).ok()?;
        let words: Vec<String> = command
            .split(|&byte| byte == 0)
            .filter(|word| !word.is_empty())
            .map(crate::output::text::printable_bytes)
            .collect();
        (!words.is_empty()).then(|| (pid, words.join(" ")))
    };
    entries(&root.join("proc")).into_iter().filter_map(process).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map_or_else(|_| Vec::new(), |found| found.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// A guest's files: its ports, and a process with its command line and what it has open.
    fn guest(ports: &[&str], process: Option<(&str, &str)>, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        for (index, name) in ports.iter().enumerate() {
            write(&format!("sys/class/virtio-ports/vport1p{index}/name"), &format!("{name}\n"));
        }
        if let Some((command, open)) = process {
            write("proc/7/cmdline", &command.replace(' ', "\0"));
            fs::create_dir_all(root.path().join("proc/7/fd")).unwrap();
            std::os::unix::fs::symlink(open, root.path().join("proc/7/fd/3")).unwrap();
        }
        for (path, content) in files {
            write(path, content);
        }
        root
    }

    fn check(guest: &tempfile::TempDir, code: u8, expected: &str) {
        let diagnosis = look(guest.path());
        assert_eq!(diagnosis.exit_code, code, "{diagnosis:?}");
        let is_there = diagnosis.checks.iter().any(|check| check.text.contains(expected));
        assert!(is_there, "nothing says {expected:?}: {diagnosis:?}");
        assert_eq!(code == 0, diagnosis.checks.iter().all(|check| check.verdict != Verdict::Bad));
    }

    #[test]
    fn each_cause_is_told_from_the_others() {
        let agent = "/usr/sbin/qemu-ga -m virtio-serial";
        check(&guest(&[], None, &[]), 69, "nor any other");
        check(&guest(&["com.redhat.spice.0"], None, &[]), 69, "it has com.redhat.spice.0");
        check(&guest(&[PORT_NAME], None, &[]), 69, "no agent is installed");
        check(&guest(&[PORT_NAME], None, &[("usr/sbin/qemu-ga", "")]), 69, "does not run");
        check(&guest(&[PORT_NAME], Some((agent, "/dev/ttyS0")), &[]), 69, "does not hold the port");
        check(&guest(&[PORT_NAME], Some(("cat /dev/vport1p0", "/dev/vport1p0")), &[]), 75, "is no agent");
        check(&guest(&[PORT_NAME], Some((agent, "/dev/vport1p0")), &[]), 0, "the agent holds it: process 7");
        let config = [("etc/qemu/qemu-ga.conf", "[general]\n#block-rpcs=a\nblock-rpcs=guest-exec\n")];
        check(&guest(&[PORT_NAME], Some((agent, "/dev/vport1p0")), &config), 0, "block-rpcs=guest-exec");
    }
}
