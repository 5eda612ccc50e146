//! Kinds of failure: few enough to have an exit code and an advice each.

use std::io;

use crate::error::{AgentError, is_full};

/// What kind of failure an [`Error`](crate::Error) is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The text names no target.
    BadTarget,
    /// The socket or device does not exist: the machine does not run, or it has no agent port there.
    NoSuchSocket,
    /// The socket exists and nobody listens: whoever made it is gone.
    NobodyListens,
    /// This user may not use the socket, the device, or libvirt.
    NotPermitted,
    /// Another user of the host could have put the socket or device where it is.
    NotTrusted,
    /// Another client holds the agent's port.
    Held,
    /// A program that is needed on the host is missing (`virsh`).
    NoTool,
    /// The management layer itself is not reached: libvirt's daemon, or a hypervisor that answers otherwise than it should.
    NoManager,
    /// There is no such domain.
    NoSuchDomain,
    /// The domain is not running: it is shut off.
    NotRunning,
    /// The domain is paused.
    Paused,
    /// The domain has suspended itself.
    Suspended,
    /// The domain has crashed.
    Crashed,
    /// The domain is not configured with an agent port.
    NoAgentPort,
    /// The port exists and no agent has opened it in the guest.
    NoAgent,
    /// The agent, or somebody on the way, was silent for too long.
    NoAnswer,
    /// The connection broke.
    ConnectionLost,
    /// What came is no reply of the protocol.
    NotUnderstood,
    /// The request cannot be written.
    BadRequest,
    /// The agent does not have the command: it is too old, or another system's.
    NoSuchCommand,
    /// The agent has the command and refuses it: it is on the block list, or the file systems are frozen.
    CommandRefused,
    /// A file or program in the guest does not exist.
    NoSuchFile,
    /// The guest's disk is full.
    GuestFull,
    /// The command failed in the guest.
    Guest,
    /// The host's disk is full.
    HostFull,
    /// Reading or writing on the host failed.
    Host,
    /// A file was changed while it was copied.
    Changed,
    /// A copy is not what was copied.
    Mismatch,
    /// The caller wanted an end.
    Stopped,
}

impl Kind {
    /// Every kind, for tables in documentation.
    pub const ALL: [Self; 29] = [
        Self::BadTarget,
        Self::NoSuchSocket,
        Self::NobodyListens,
        Self::NotPermitted,
        Self::NotTrusted,
        Self::Held,
        Self::NoTool,
        Self::NoManager,
        Self::NoSuchDomain,
        Self::NotRunning,
        Self::Paused,
        Self::Suspended,
        Self::Crashed,
        Self::NoAgentPort,
        Self::NoAgent,
        Self::NoAnswer,
        Self::ConnectionLost,
        Self::NotUnderstood,
        Self::BadRequest,
        Self::NoSuchCommand,
        Self::CommandRefused,
        Self::NoSuchFile,
        Self::GuestFull,
        Self::Guest,
        Self::HostFull,
        Self::Host,
        Self::Changed,
        Self::Mismatch,
        Self::Stopped,
    ];

    /// The exit code of a program that ends because of this, after sysexits(3): 64 usage, 66 no such target, 69 the
    /// agent is not reached, 70 refused by the agent, 71 failed in the guest, 73 a disk is full, 74 reading or writing
    /// on the host, 75 try again, 76 no sense in what came, 77 not permitted or not
    /// trusted, 130 stopped.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::BadTarget | Self::BadRequest => 64,
            Self::NoSuchSocket | Self::NoSuchDomain | Self::NoSuchFile => 66,
            Self::NobodyListens
            | Self::NoTool
            | Self::NoManager
            | Self::NotRunning
            | Self::Paused
            | Self::Suspended
            | Self::Crashed
            | Self::NoAgentPort
            | Self::NoAgent => 69,
            Self::NoSuchCommand | Self::CommandRefused => 70,
            Self::Guest => 71,
            Self::GuestFull | Self::HostFull => 73,
            Self::Host => 74,
            Self::Held | Self::NoAnswer | Self::ConnectionLost | Self::Changed | Self::Mismatch => 75,
            Self::NotUnderstood => 76,
            Self::NotPermitted | Self::NotTrusted => 77,
            Self::Stopped => 130,
        }
    }

    /// What a person can do about it, as a sentence; empty where the error says all.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::BadTarget => {
                "A target is a socket's path, libvirt:DOMAIN, pve:VMID, vsock:CID[:PORT], hybrid:PATH:PORT or \
                 serial:DEVICE."
            }
            Self::NoSuchSocket => "See that the machine runs, and that its agent port has this socket.",
            Self::NobodyListens => "The hypervisor that made the socket is gone; start the machine again.",
            Self::NotPermitted => "Try as root, or as a member of the group that owns the socket (libvirt, kvm).",
            Self::NotTrusted => {
                "Put it where only root, you or the machine's own account can write; --trust-socket connects all the same."
            }
            Self::Held => {
                "Another client is connected to the port (libvirt, Proxmox, a forgotten socat); end it first."
            }
            Self::NoTool => "Install virsh (package libvirt-clients).",
            Self::NoManager => "See that the service runs, and that the URI is the right one.",
            Self::NoSuchDomain => "'virsh list --all' names the domains; another URI has others.",
            Self::NotRunning => "Start it ('virsh start').",
            Self::Paused => {
                "Resume it ('virsh resume'); if it was paused by an error, 'virsh domstate --reason' names that."
            }
            Self::Suspended => "Wake it ('virsh dompmwakeup').",
            Self::Crashed => "End what is left of it ('virsh destroy') and start it again.",
            Self::NoAgentPort => {
                "Add a channel with the name org.qemu.guest_agent.0 to the machine and start it again."
            }
            Self::NoAgent => "Install and start the agent in the guest (package qemu-guest-agent).",
            Self::NoAnswer => {
                "The guest may be paused, starting or overloaded, its agent not running, or the port held by another \
                 client."
            }
            Self::ConnectionLost => "The agent or the machine ended; see whether it still runs.",
            Self::NotUnderstood => "What listens there is probably no guest agent.",
            Self::NoSuchCommand => "The guest's agent is too old for this, or its system does not have it.",
            Self::CommandRefused => {
                "The agent's block or allow list excludes the command, or the file systems are frozen."
            }
            Self::GuestFull => "Make room in the guest.",
            Self::HostFull => "Make room on the host.",
            Self::Changed => "Copy it while nothing writes to it.",
            Self::Mismatch => "Copy it again.",
            Self::BadRequest | Self::NoSuchFile | Self::Guest | Self::Host | Self::Stopped => "",
        }
    }

    /// Why a socket or device could not be opened.
    pub(crate) fn of_connect(source: &io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::NoSuchSocket,
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::NobodyListens,
            io::ErrorKind::PermissionDenied => Self::NotPermitted,
            io::ErrorKind::TimedOut | io::ErrorKind::ResourceBusy => Self::Held,
            _ => match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Self::NoSuchSocket,
                Some(rustix::io::Errno::AFNOSUPPORT) => Self::NoManager,
                _ => Self::NobodyListens,
            },
        }
    }

    /// What the agent's class and words mean. The words are those of all agents since 0.15.
    pub(crate) fn of_agent(error: &AgentError) -> Self {
        let words = &error.desc;
        match error.class.as_str() {
            "CommandNotFound" if words.contains("has not been found") => Self::NoSuchCommand,
            "CommandNotFound" | "CommandDisabled" => Self::CommandRefused,
            "Unsupported" => Self::NoSuchCommand,
            _ if words.contains("has been disabled") => Self::CommandRefused,
            _ if words.contains("is not currently supported") || words.contains("unsupported") => Self::NoSuchCommand,
            _ if words.contains("No such file or directory") => Self::NoSuchFile,
            _ if is_full(words) => Self::GuestFull,
            _ => Self::Guest,
        }
    }
}
