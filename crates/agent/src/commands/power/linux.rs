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

/// Why a way was not taken or did not work, behind its name: `systemctl poweroff: exit status 1`.
type Failure = String;
