//! Names of agents: where one is, as a text that people write and read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::connect::ConnectOptions;
use crate::error::Error;
use crate::kind::Kind;
use crate::socket;
use crate::transport::Transport;
use crate::virsh::Virsh;

/// The port of `vsock:CID` without one. The protocol assigns none; this is the one that QEMU's examples use.
pub const DEFAULT_VSOCK_PORT: u32 = 1234;

/// Where an agent is.
///
/// ```
/// use qga_client::Target;
///
/// let target: Target = "libvirt+qemu+ssh://host/system:web-1".parse()?;
/// assert_eq!(target, Target::Libvirt { uri: Some("qemu+ssh://host/system".into()), domain: "web-1".into() });
/// assert_eq!("unix:/run/a.sock".parse::<Target>()?.to_string(), "/run/a.sock");
/// # Ok::<(), qga_client::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// `/PATH`, `./PATH`, `NAME.sock`, `DIRECTORY/NAME` or `unix:PATH`: a unix socket behind which the agent or its port is.
    Unix(PathBuf),
    /// `libvirt:DOMAIN`, `libvirt+URI:DOMAIN`: through libvirt.
    Libvirt {
        /// The connection; virsh's own choice if absent.
        uri: Option<String>,
        /// The domain's name, number or UUID.
        domain: String,
    },
    /// `pve:VMID`: the socket that Proxmox VE makes for a machine on this node.
    Proxmox(u32),
    /// `vsock:CID` or `vsock:CID:PORT`: an agent that listens on a vsock port.
    Vsock {
        /// The machine's number.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// `hybrid:PATH:PORT`: a vsock port behind Cloud Hypervisor's or Firecracker's unix socket.
    Hybrid {
        /// The unix socket.
        path: PathBuf,
        /// The port in the guest.
        port: u32,
    },
    /// `serial:DEVICE`: a serial device or pseudo terminal of the host.
    Serial(PathBuf),
}

impl Target {
    /// Opens the way to the agent, with [`Timeouts`](crate::Timeouts) or more [`ConnectOptions`]. Nothing has been said to
    /// it yet.
    pub fn connect(&self, options: impl Into<ConnectOptions>) -> Result<Box<dyn Transport + Send>, Error> {
        let options = options.into();
        let timeouts = options.timeouts;
        let mut transport: Box<dyn Transport + Send> = match self {
            Self::Unix(path) => Box::new(socket::unix(path, options)?),
            Self::Proxmox(vm) => {
                Box::new(socket::unix(&proxmox_socket(*vm), options).map_err(|error| without_socket(*vm, error))?)
            }
            Self::Vsock { cid, port } => Box::new(socket::vsock(*cid, *port, timeouts)?),
            Self::Hybrid { path, port } => Box::new(socket::hybrid(path, *port, options)?),
            Self::Serial(path) => Box::new(socket::serial(path, options)?),
            Self::Libvirt { uri, domain } => Box::new(Virsh::new(uri.as_deref(), domain, timeouts.silence)),
        };
        if options.give_up_when.is_some() {
            transport.give_up_when(options.give_up_when);
        }
        Ok(transport)
    }

    /// How many clients are connected to the target's unix socket, this one and those in its queue included; `None`
    /// where there is no such socket or the system does not tell.
    #[must_use]
    pub fn clients(&self) -> Option<usize> {
        match self {
            Self::Unix(path) | Self::Hybrid { path, .. } => socket::clients(path),
            Self::Proxmox(vm) => socket::clients(&proxmox_socket(*vm)),
            _ => None,
        }
    }

    /// Whether the target's text is like a pattern, in which `*` stands for any text and `?` for one character.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        let text = self.to_string();
        is_like(&text, pattern) || pattern.strip_prefix("unix:").is_some_and(|pattern| is_like(&text, pattern))
    }
}

pub(crate) const PROXMOX_SOCKETS: &str = "/var/run/qemu-server";

pub(crate) fn proxmox_socket(vm: u32) -> PathBuf {
    Path::new(PROXMOX_SOCKETS).join(format!("{vm}.qga"))
}

/// Proxmox VE makes the socket when the machine starts, if its configuration wants an agent.
fn without_socket(vm: u32, error: Error) -> Error {
    if error.kind() != Kind::NoSuchSocket {
        return error;
    }
    let cause = format!(
        "the machine does not run on this node, or has had no agent port since its start (qm set {vm} --agent 1 makes one \
         for the next)"
    );
    Error::Unreachable { target: format!("pve:{vm}"), kind: Kind::NoSuchSocket, cause }
}

fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut pattern_at) = (0, 0);
    // Where the last star stood, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(pattern_at) {
            Some('*') => {
                star = Some((pattern_at, at));
                pattern_at += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == text[at] => {
                at += 1;
                pattern_at += 1;
            }
            _ => match &mut star {
                Some((star_at, taken)) => {
                    *taken += 1;
                    at = *taken;
                    pattern_at = *star_at + 1;
                }
                None => return false,
            },
        }
    }
    pattern[pattern_at..].iter().all(|&rest| rest == '*')
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) if path.is_absolute() || path.starts_with(".") => write!(f, "{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Libvirt { uri: None, domain } => write!(f, "libvirt:{domain}"),
            Self::Libvirt { uri: Some(uri), domain } => write!(f, "libvirt+{uri}:{domain}"),
            Self::Proxmox(vm) => write!(f, "pve:{vm}"),
            Self::Vsock { cid, port } if *port == DEFAULT_VSOCK_PORT => write!(f, "vsock:{cid}"),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Hybrid { path, port } => write!(f, "hybrid:{}:{port}", path.display()),
            Self::Serial(path) => write!(f, "serial:{}", path.display()),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|problem| Error::Target { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<Target, String> {
    if text.starts_with('/') || text.starts_with("./") || text.starts_with("../") || is_socket_name(text) {
        return Ok(Target::Unix(text.into()));
    }
    if let Some(rest) = text.strip_prefix("libvirt+") {
        // The URI has colons of its own; a domain's name has none in practice.
        let (uri, domain) = rest.rsplit_once(':').ok_or("write libvirt+URI:DOMAIN")?;
        if !uri.contains(":/") {
            return Err(format!("{uri:?} is no URI; write libvirt+qemu:///system:DOMAIN"));
        }
        return Ok(Target::Libvirt { uri: Some(uri.to_owned()), domain: named("a domain", domain)? });
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err("it is neither a socket's path (with a '/' in it, or .sock at its end) nor KIND:NAME".to_owned());
    };
    match scheme {
        "unix" => Ok(Target::Unix(named("a path", rest)?.into())),
        "libvirt" => Ok(Target::Libvirt { uri: None, domain: named("a domain", rest)? }),
        "pve" => Ok(Target::Proxmox(number("the machine's number", rest)?)),
        "vsock" => {
            let (cid, port) = rest.split_once(':').map_or((rest, None), |(cid, port)| (cid, Some(port)));
            let port = port.map_or(Ok(DEFAULT_VSOCK_PORT), |port| number("the port", port))?;
            Ok(Target::Vsock { cid: number("the CID", cid)?, port })
        }
        "hybrid" => {
            let (path, port) = rest.rsplit_once(':').ok_or("write hybrid:PATH:PORT")?;
            Ok(Target::Hybrid { path: named("a path", path)?.into(), port: number("the port", port)? })
        }
        "serial" => Ok(Target::Serial(named("a device", rest)?.into())),
        _ => Err(format!("{scheme:?} is none of unix, libvirt, pve, vsock, hybrid, serial")),
    }
}

/// A path that needs no `unix:` in front to be known as one: `web-1.sock`, `machines/web-1`.
fn is_socket_name(text: &str) -> bool {
    let is_socket = |ending: &std::ffi::OsStr| ending == "sock" || ending == "socket";
    !text.contains(':') && (text.contains('/') || Path::new(text).extension().is_some_and(is_socket))
}

fn named(what: &str, text: &str) -> Result<String, String> {
    if text.is_empty() { Err(format!("{what} is missing")) } else { Ok(text.to_owned()) }
}

fn number(what: &str, text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{what} is a number, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_it_is_written() {
        for text in [
            "/run/a.sock",
            "./a.sock",
            "unix:a.sock",
            "libvirt:web-1",
            "libvirt+qemu:///system:web-1",
            "libvirt+qemu+ssh://root@host:22/system:web-1",
            "pve:101",
            "vsock:3",
            "vsock:3:99",
            "hybrid:/run/v:s.sock:1024",
            "serial:/dev/ttyS1",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_sockets_name_needs_nothing_in_front() {
        for text in ["web-1.sock", "machines/web-1", "a b.socket"] {
            assert_eq!(text.parse::<Target>().unwrap(), Target::Unix(text.into()));
        }
        assert!("web-1:1.sock".parse::<Target>().is_err());
    }

    #[test]
    fn what_is_no_target_is_told_why() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("", "neither a socket's path");
        check("web-1", "neither a socket's path");
        check("tcp:host:1", "\"tcp\" is none of unix");
        check("unix:", "a path is missing");
        check("libvirt:", "a domain is missing");
        check("libvirt+system:web", "is no URI");
        check("pve:web", "the machine's number is a number, not \"web\"");
        check("vsock:-1", "the CID is a number");
        check("vsock:3:", "the port is a number, not \"\"");
        check("hybrid:/a.sock", "write hybrid:PATH:PORT");
    }

    #[test]
    fn a_pattern_finds_what_it_says() {
        let check = |text: &str, pattern: &str, expected| {
            assert_eq!(text.parse::<Target>().unwrap().matches(pattern), expected, "{text} like {pattern}");
        };
        check("libvirt:web-1", "libvirt:web-*", true);
        check("libvirt:web-1", "libvirt:web-1", true);
        check("libvirt:web-1", "libvirt:*b-?", true);
        check("libvirt:web-1", "libvirt:*a*", false);
        check("libvirt:web-12", "libvirt:web-?", false);
        check("/run/a.sock", "unix:/run/*.sock", true);
        check("/run/a.sock", "*", true);
    }
}
