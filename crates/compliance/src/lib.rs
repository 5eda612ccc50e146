//! Asks a running agent, as a host would, and tells whether it answers as the original does.
//!
//! A black box: nothing of the agent is linked in here, only bytes go in and come out. The cases are text, one file
//! a family in `cases/` (the language is told in [`conversation`]); what needs more than a conversation, such as own
//! options or two connections, is a function in `tests/`. `tests/FAMILY.rs` runs `cases/FAMILY.txt`.
//!
//! `AGENT_UNDER_TEST` chooses the agent ([`subject`]); `AGENT_PEER` names a second one that is asked the same and
//! must answer alike. A wanted difference states both answers and has its reason in `deviations.toml`
//! ([`deviations`]).
//!
//! **A new case**: write it into `cases/FAMILY.txt`, see it pass against the original, then run it against ours.

mod agent;
mod connection;
pub mod conversation;
pub mod deviations;
mod escape;
mod expectation;
mod pattern;
pub mod place;
mod run;
pub mod subject;
mod tally;

pub use agent::Agent;
pub use connection::{Connection, PATIENCE, ReadFailure};
pub use deviations::deviation;
pub use expectation::{Expectation, Received};
pub use run::{check, check_with};
pub use subject::{Kind, Subject};
pub use tally::{Failure, Tally};
