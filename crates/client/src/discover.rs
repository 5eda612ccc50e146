//! Finding agents: whatever on this host looks like the way to one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::kind::Kind;
use crate::socket;
use crate::target::{PROXMOX_SOCKETS, Target};
use crate::virsh;

/// The name that the agent's port has everywhere.
const PORT_NAME: &str = "org.qemu.guest_agent.0";

/// Where libvirt's daemons keep the sockets of channels, a folder for each machine.
const LIBVIRT_CHANNELS: [&str; 2] = ["/run/libvirt/qemu/channel", "/var/lib/libvirt/qemu/channel/target"];

/// An agent that may be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Where it is.
    pub target: Target,
    /// How it was found, for people: `running libvirt domain`.
    pub description: String,
}

/// What was found, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Discovery {
    /// The agents, each once; what the environment's `QGA_TARGET` names stands first and alone.
    pub found: Vec<Found>,
    /// Places that could not be looked at: libvirt without permission, for example. That there is no libvirt is none.
    /// Sockets that another user may have put there ([`Kind::NotTrusted`]) are named here and not among the agents.
    pub problems: Vec<Error>,
}

/// Looks for agents on this host. Nothing is said to any of them.
///
/// `QGA_TARGET` alone counts where it is set. Otherwise: running libvirt domains, Proxmox VE's sockets, and libvirt's
/// sockets where libvirt itself cannot be asked.
#[must_use]
pub fn discover() -> Discovery {
    if let Some(text) = std::env::var_os("QGA_TARGET").filter(|text| !text.is_empty()) {
        let text = text.to_string_lossy();
        return match text.parse() {
            Ok(target) => {
                let description = "named by QGA_TARGET".to_owned();
                Discovery { found: vec![Found { target, description }], problems: Vec::new() }
            }
            Err(error) => Discovery { found: Vec::new(), problems: vec![error] },
        };
    }
    search()
}

/// As [`discover`], whatever the environment says.
#[must_use]
pub fn search() -> Discovery {
    let mut found = BTreeSet::new();
    let mut problems = Vec::new();
    let is_listed = match search_libvirt(None) {
        Ok(domains) => {
            found.extend(domains);
            true
        }
        Err(error) => {
            if !matches!(error.kind(), Kind::NoTool | Kind::NoManager) {
                problems.push(error);
            }
            false
        }
    };
    let mut sockets = proxmox(Path::new(PROXMOX_SOCKETS));
    if !is_listed {
        sockets.extend(LIBVIRT_CHANNELS.into_iter().flat_map(|folder| libvirt_sockets(Path::new(folder))));
    }
    for (path, socket) in sockets {
        match socket::look_at(&path) {
            Err(error) if error.kind() == Kind::NotTrusted => problems.push(error),
            // Another problem is told to whoever connects.
            _ => drop(found.insert(socket)),
        }
    }
    Discovery { found: found.into_iter().collect(), problems }
}

/// The running domains of a libvirt connection, of virsh's own choice without one.
pub fn search_libvirt(uri: Option<&str>) -> Result<Vec<Found>, Error> {
    let found = |domain| Found {
        target: Target::Libvirt { uri: uri.map(str::to_owned), domain },
        description: "running libvirt domain".to_owned(),
    };
    Ok(virsh::running_domains(uri)?.into_iter().map(found).collect())
}

/// `VMID.qga` in Proxmox VE's folder.
fn proxmox(folder: &Path) -> Vec<(PathBuf, Found)> {
    let found = |path: PathBuf| {
        let vm = path.file_name()?.to_str()?.strip_suffix(".qga")?.parse().ok()?;
        Some((path, Found { target: Target::Proxmox(vm), description: "Proxmox VE machine".to_owned() }))
    };
    entries(folder).into_iter().filter_map(found).collect()
}

/// `MACHINE/org.qemu.guest_agent.0` in a folder of libvirt's.
fn libvirt_sockets(folder: &Path) -> Vec<(PathBuf, Found)> {
    let socket = |machine: PathBuf| {
        let path = machine.join(PORT_NAME);
        let is_socket = fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket());
        let name = machine.file_name()?.to_string_lossy().into_owned();
        let description = format!("agent port of libvirt's machine {name}");
        is_socket.then(|| (path.clone(), Found { target: Target::Unix(path), description }))
    };
    entries(folder).into_iter().filter_map(socket).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map_or_else(|_| Vec::new(), |found| found.flatten().map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn sockets_are_found_where_hypervisors_put_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["101.qga", "102.qmp", "x.qga"] {
            fs::write(path.join(name), "").unwrap();
        }
        let found: Vec<Target> = proxmox(path).into_iter().map(|(_, found)| found.target).collect();
        assert_eq!(found, [Target::Proxmox(101)]);

        for name in ["1-web", "2-without"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        let socket = path.join("1-web").join(PORT_NAME);
        let _listener = UnixListener::bind(&socket).unwrap();
        let found: Vec<Target> = libvirt_sockets(path).into_iter().map(|(_, found)| found.target).collect();
        assert_eq!(found, [Target::Unix(socket)]);
        assert_eq!(libvirt_sockets(Path::new("/nonexistent")), []);
    }
}
