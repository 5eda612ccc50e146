//! Where the host is: opens the configured channel and has each client served, by a function that it is handed.
//!
//! * [`device`]: virtio-serial and isa-serial, one host at a time, which may come back after it was gone;
//! * [`listener`]: unix and vsock sockets, many clients at once;
//! * [`link`]: the bytes to and from one client, and [`line_writer`]: whole lines to it.
//!
//! A channel that is lost is waited for. This module knows nothing of messages.

pub mod device;
pub mod line_writer;
pub mod link;
pub mod listener;
pub mod vsock_peers;

pub use self::link::Link;

use self::device::Device;
use self::line_writer::ServeClient;
use self::listener::Listener;

/// An open channel.
pub enum Channel {
    /// A port.
    Device(Device),
    /// A socket that clients connect to.
    Listener(Listener),
}

impl Channel {
    /// Serves the host for as long as the process lives, each client by `serve_client`.
    pub fn serve(self, serve_client: Box<ServeClient>) -> ! {
        match self {
            Self::Device(device) => device.serve(&*serve_client),
            Self::Listener(listener) => listener.serve(serve_client),
        }
    }
}
