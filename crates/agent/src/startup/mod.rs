//! What happens before the first request: the command line, the config file, the lists, the pid file, the way into the
//! background.

pub mod command_line;
pub mod config;
#[cfg(unix)]
pub mod daemon;
pub mod pid_file;
pub mod policy;
