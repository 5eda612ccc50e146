//! How a way to an agent is opened.

use crate::stream::Timeouts;

/// What holds while a connection is made. [`Timeouts`] alone are the same with the defaults for the rest.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions {
    /// How long is waited.
    pub timeouts: Timeouts,
    /// Whether a socket or device is used that another user of this host could have put in the agent's place. Without it
    /// such a one is refused with [`Kind::NotTrusted`](crate::Kind::NotTrusted), before anything is sent: a request may
    /// hold a password.
    ///
    /// Not trusted is a path through a directory that users other than root, the caller and the owner of the socket can
    /// write to, an entry of a shared directory with the sticky bit (`/tmp`) that belongs to neither root nor the caller,
    /// and a server that runs as neither of the three.
    pub trusts_any_socket: bool,
    /// Asked some ten times a second while the connection is made and afterwards, as by
    /// [`Agent::give_up_when`](crate::Agent::give_up_when).
    pub give_up_when: Option<fn() -> bool>,
}

impl From<Timeouts> for ConnectOptions {
    fn from(timeouts: Timeouts) -> Self {
        Self { timeouts, ..Self::default() }
    }
}
