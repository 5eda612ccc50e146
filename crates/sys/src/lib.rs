//! System calls with safe signatures. This is the only crate of the project that may say `unsafe`.
//!
//! Each function does one thing and decides nothing; what to do, when and whether is the agent's business. What rustix
//! offers is not wrapped here again.

pub mod allocator;
#[cfg(target_os = "linux")]
pub mod child;
#[cfg(unix)]
pub mod daemon;
#[cfg(unix)]
pub mod descriptor;
#[cfg(target_os = "linux")]
pub mod end;
#[cfg(target_os = "linux")]
pub mod filesystem;
#[cfg(unix)]
pub mod init;
#[cfg(all(target_os = "linux", feature = "lease"))]
pub mod lease;
#[cfg(target_os = "linux")]
pub mod loop_device;
#[cfg(target_os = "linux")]
pub mod nvme;
#[cfg(target_os = "linux")]
pub mod rtc;
#[cfg(unix)]
pub mod spawn;
