//! The cases that run in a guest.
//!
//! A new case: a function in one of the files and an entry in that file's `CASES`. A new file: its two lines here.
//! Cases share one guest and run in this order; each leaves both agents answering, and says what it measured by
//! [`Guest::note`] instead of asserting times. Where the original behaves worse, the table in `docs/` has the details.

mod accounts;
mod actions;
mod boot;
mod command_line;
mod compliance;
mod freeze;
mod freeze_promises;
mod freeze_stall;
mod hooks;
mod hotplug;
mod hybrid_vsock;
mod idle;
mod keys;
mod libvirt;
mod port;
mod power;
mod prometheus;
mod proxmox;
mod pseudo_terminal;
mod reboot;
mod reconnect;
mod serial;
mod sessions;
mod stream;
mod vsock;
mod zoo;

use super::guest::Guest;
use super::libvirt::Domain;
use anyhow::Result;

/// One case, in a place where cases run.
pub struct Case<Place = Guest> {
    /// A sentence, unique; the command line chooses by any part of it.
    pub name: &'static str,
    /// Shows it, or tells in the error what was found instead.
    pub run: fn(&mut Place) -> Result<()>,
}

/// All cases by family. After the one that wants a guest nobody has touched, those that last come first: at the end no
/// guest works long alone.
pub const ALL: &[&[Case]] = &[
    boot::CASES,
    freeze_promises::CASES,
    power::CASES,
    hooks::CASES,
    freeze::CASES,
    freeze_stall::CASES,
    accounts::CASES,
    keys::CASES,
    sessions::CASES,
    compliance::CASES,
    reboot::CASES,
    command_line::CASES,
    pseudo_terminal::CASES,
    proxmox::CASES,
    prometheus::CASES,
    hybrid_vsock::CASES,
    stream::CASES,
    zoo::CASES,
    actions::CASES,
    idle::CASES,
    hotplug::CASES,
    serial::CASES,
    vsock::CASES,
    reconnect::CASES,
    port::CASES,
];

/// The cases in a guest that libvirt runs, in order.
pub const OF_LIBVIRT: &[Case<Domain>] = libvirt::CASES;
