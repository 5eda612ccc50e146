//! The options that all commands take.

#![allow(clippy::doc_markdown)] // these comments are the help, where backticks would show

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::output::units::parse_duration;

/// What all commands take.
#[derive(Debug, Clone, Args)]
pub struct General {
    /// Where the agent is; may be given several times.
    ///
    /// A socket's path, libvirt:DOMAIN, libvirt+URI:DOMAIN, pve:VMID, vsock:CID or vsock:CID:PORT, hybrid:PATH:PORT (Cloud
    /// Hypervisor, Firecracker) or serial:DEVICE. Lists with commas and patterns with * and ? name several. Without it
    /// the environment's QGA_TARGET counts, and without that the only agent that is found.
    #[arg(short, long = "target", value_name = "TARGET", global = true, help_heading = "General")]
    pub targets: Vec<String>,
    /// All agents that are found on this host.
    #[arg(long, global = true, help_heading = "General", conflicts_with = "targets")]
    pub all: bool,
    /// Connect also to a socket or device that another user of this host could have put in the agent's place. It is told
    /// everything that is sent, passwords too.
    #[arg(long, global = true, help_heading = "General")]
    pub trust_socket: bool,
    /// Print results as JSON.
    #[arg(long, global = true, help_heading = "General")]
    pub json: bool,
    /// Do not ask before something that cannot be taken back.
    #[arg(short, long, global = true, help_heading = "General")]
    pub yes: bool,
    /// How long an agent may be silent: 30, 500ms, 5m.
    #[arg(long, value_name = "TIME", default_value = "60", global = true, value_parser = parse_wait, help_heading = "General")]
    pub timeout: Duration,
    /// How many targets are served at a time.
    #[arg(long, value_name = "NUMBER", default_value = "16", global = true, value_parser = parse_jobs, help_heading = "General")]
    pub jobs: usize,
    /// When to use colours; NO_COLOR is heeded as well.
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true, help_heading = "General")]
    pub color: Colour,
}

/// A time that is some time: no time at all would be no wait, or none without an end.
pub fn parse_wait(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .and_then(|wait| if wait.is_zero() { Err("it must be longer than 0".to_owned()) } else { Ok(wait) })
}

fn parse_jobs(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&jobs| (1..=1024).contains(&jobs))
        .ok_or_else(|| "write a number from 1 to 1024".to_owned())
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal.
    Auto,
    /// In pipes as well.
    Always,
    /// Not at all.
    Never,
}
