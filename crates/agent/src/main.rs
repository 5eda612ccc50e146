//! qemu-ga: the guest agent. See the library for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    qga_agent::main()
}
