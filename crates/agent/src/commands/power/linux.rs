//! Ending and pausing a Linux machine.

mod end;
mod first_process;
mod machine;
mod sleep;
#[cfg(test)]
mod staged;

pub use self::end::end;
pub use self::machine::ThisMachine;
pub use self::sleep::sleep;
