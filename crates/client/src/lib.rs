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
//! The layers, each usable alone:
//!
//! * [`Target`] says where an agent is (a socket, libvirt, Proxmox VE, vsock, a serial device); [`discover`] finds some.
//!   [`Agent::connect`] goes there and synchronises; [`Error::kind`] tells why it does not work, with an exit code and an
//!   advice for each [`Kind`].
//! * A [`Transport`] carries requests and reply lines: [`Stream`] over bytes, [`Virsh`] through libvirt. [`Conversation`]
//!   is the first one's rules without I/O; `AsyncAgent` (feature `tokio`) is another driver of it.
//! * An [`Agent`] makes calls of it: [`call`](Agent::call) by type (the types are in [`protocol`]),
//!   [`call_raw`](Agent::call_raw) by name.
//! * Tasks of several calls: [`run`](Agent::run) and [`run_live`](Agent::run_live) for programs,
//!   [`download`](Agent::download), [`upload`](Agent::upload) and their `_tree`s for files,
//!   [`list_directory`](Agent::list_directory) and [`stat_file`](Agent::stat_file), [`Frozen`] for a freeze that ends.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use qga_client::{Agent, CopyOptions, Timeouts};
//!
//! let mut agent = Agent::connect(&"libvirt:web-1".parse()?, Timeouts::default())?;
//! let options = CopyOptions { resume: true, verify: true, ..CopyOptions::default() };
//! agent.upload("site.tar".as_ref(), "/srv/site.tar", options, &mut |progress| {
//!     println!("{} of {} bytes", progress.copied_bytes, progress.total_bytes);
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), qga_client::Error>(())
//! ```
//!
//! The library blocks and starts no thread. It works with every agent that speaks the protocol, so it leans on nothing
//! that only ours does: ids where they come back, programs of the guest where the protocol has no command. It never
//! asks for a piece of a file that would need a reply over 10 MiB, which libvirt would drop.
//!
//! The wire goes to one agent at a time in order: an [`Agent`] is used by one thread, several agents by several.

mod agent;
#[cfg(feature = "tokio")]
mod asynchronous;
mod connect;
mod conversation;
mod copy;
mod discover;
mod error;
mod file;
mod freeze;
mod guest_files;
mod kind;
mod lines;
mod patience;
mod program;
mod socket;
mod stream;
mod streamed;
mod target;
mod transport;
mod trust;
mod virsh;

pub use agent::{Agent, AnyAgent, Connection, Unanswered};
#[cfg(feature = "tokio")]
pub use asynchronous::AsyncAgent;
pub use connect::ConnectOptions;
pub use conversation::{Conversation, Ticket};
pub use copy::{Copied, CopyOptions, OnProgress, Progress, TreeReport};
pub use discover::{Discovery, Found, discover, search, search_libvirt};
pub use error::{AgentError, Error};
pub use file::{Give, PIECE_BYTES, Take};
pub use freeze::{Connect, Frozen};
pub use guest_files::{FileKind, GuestFile};
pub use kind::Kind;
pub use lines::Limits;
pub use patience::Patience;
pub use program::{Account, Exit, Output, Program, Terminal};
pub use qga_protocol as protocol;
pub use socket::SerialPort;
pub use stream::{Stream, Timeouts};
pub use streamed::{Console, Ended, Input, NO_TERMINAL, OutputStream, RunOptions, Wish};
pub use target::{DEFAULT_VSOCK_PORT, Target};
pub use transport::{Arguments, Capacity, Transport};
pub use virsh::Virsh;
