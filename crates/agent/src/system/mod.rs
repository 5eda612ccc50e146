//! The ground of the agent: the system's files and the ways to read them, and what the agent itself leaves on the system.
//! Nothing here knows a command, a client or a freeze.

#[cfg(target_os = "linux")]
pub mod block_devices;
pub mod blocking;
pub mod c_string;
pub mod error;
pub mod key_file;
pub mod log;
#[cfg(target_os = "linux")]
pub mod mounts;
#[cfg(target_os = "linux")]
pub mod netlink;
pub mod own_file;
pub mod rendezvous;
pub mod root;
pub mod state_directory;
pub mod trusted_path;
pub mod whole_file;
