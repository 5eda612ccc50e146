//! What the kernel says of a running agent: processor time, memory, threads, descriptors.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The processor time of all its threads, ended ones included, in nanoseconds; its children's is not in it.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    let clock = nix::time::clock_getcpuclockid(pid).context("cannot find the agent's processor clock")?;
    let time = nix::time::clock_gettime(clock).context("cannot read the agent's processor clock")?;
    Ok(Duration::from(time))
}

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Holdings {
    /// Resident memory in bytes.
    pub resident: f64,
    /// The most resident memory it ever had.
    pub peak: f64,
    /// Threads.
    pub threads: f64,
    /// Open descriptors.
    pub descriptors: f64,
}

/// Reads them all.
pub fn holdings(pid: u32) -> Result<Holdings> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).context("cannot list the agent's descriptors")?.count();
    Ok(Holdings {
        resident: 1024.0 * field(&status, "VmRSS")?,
        peak: 1024.0 * field(&status, "VmHWM")?,
        threads: field(&status, "Threads")?,
        descriptors: descriptors as f64,
    })
}

fn field(text: &str, name: &str) -> Result<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("the kernel gives no {name} for the agent"))
}
