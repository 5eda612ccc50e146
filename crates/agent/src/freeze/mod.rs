//! A freeze, from its plan to its thaw, whatever dies in between. docs/freeze.md has the whole way.
//!
//! [`freezer`] has what is frozen and who ends it; [`linux`] how it is done.

mod attempt;
pub mod freezer;
pub mod hooks;
mod journal;
pub mod linux;
pub mod machine;
mod ownership;
pub mod record;
mod recovery;

pub use self::freezer::Freezer;
