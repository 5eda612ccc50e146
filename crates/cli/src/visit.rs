//! One target's turn: the way to its agent, and the page for its output.

use std::time::{Duration, Instant};

use qga_client::{Agent, AnyAgent, ConnectOptions, Kind, Target, Timeouts};

use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::interrupts::Interrupts;
use crate::output::Page;

/// What a command has at hand for one target.
#[derive(Debug)]
pub struct Visit<'a> {
    pub target: &'a Target,
    pub general: &'a General,
    pub page: Page,
}

impl Visit<'_> {
    /// Connects to the agent. Where signals are counted, they end every wait for it.
    pub fn connect(&self) -> Result<AnyAgent> {
        Ok(Agent::connect(self.target, self.general.interruptible_connection())?)
    }
}

impl General {
    /// When something that begins now and may take as long as an agent may be silent is over.
    pub fn deadline(&self) -> Instant {
        const A_DAY: Duration = Duration::from_secs(24 * 3600);
        Instant::now() + self.timeout.min(A_DAY)
    }

    /// As [`connection`](Self::connection), and signals end every wait for the agent. Not for a thaw.
    pub fn interruptible_connection(&self) -> ConnectOptions {
        ConnectOptions { give_up_when: Some(Interrupts::are_impatient), ..self.connection() }
    }

    /// How a connection is made.
    pub fn connection(&self) -> ConnectOptions {
        let connect = Timeouts::default().connect.min(self.timeout);
        let timeouts = Timeouts { connect, silence: self.timeout };
        ConnectOptions { timeouts, trusts_any_socket: self.trust_socket, give_up_when: None }
    }
}

/// A part of a larger answer that a guest may lack: too old, another system's, not allowed, failing.
pub fn optional<T>(part: std::result::Result<T, qga_client::Error>) -> Result<Option<T>> {
    match part {
        Ok(part) => Ok(Some(part)),
        Err(error) => match error.kind() {
            Kind::NoSuchCommand | Kind::CommandRefused | Kind::NoSuchFile | Kind::Guest => Ok(None),
            _ => Err(Failure::from(error)),
        },
    }
}
