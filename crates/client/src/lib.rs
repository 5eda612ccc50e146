//! Talks to a QEMU guest agent from the host, over any stream that leads to one.
//!
//! ```no_run
//! use qga_client::Connection;
//!
//! # fn main() -> Result<(), qga_client::Error> {
//! let mut agent = Connection::unix("/run/vm/agent.sock")?;
//! agent.sync()?;
//! let output = agent.run("uname", &["-r"], None)?;
//! print!("{}", String::from_utf8_lossy(&output.stdout));
//! # Ok(())
//! # }
//! ```
//!
//! The layers, each usable alone: [`Connection`] sends a request line and receives a reply line; [`Connection::call`]
//! and [`Connection::call_raw`] make a command of it; [`Connection::run`], [`Connection::read_file`] and
//! [`Connection::write_file`] make a host's task of several commands.
//!
//! The library blocks and starts no thread. It works with every agent that speaks the protocol, so it leans on nothing
//! that only ours does. It never sends a piece of a file that would need a reply over 10 MiB, which libvirt would drop.

mod connection;
mod error;
mod file;
mod lines;
mod program;

pub use connection::{Connection, Timeouts};
pub use error::{AgentError, Error};
pub use file::PIECE_BYTES;
pub use lines::Limits;
pub use program::{Exit, Output, Program};
