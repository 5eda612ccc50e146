//! Ending and pausing the guest: `guest-shutdown`, `guest-suspend-*`.
//!
//! A success is not answered, for there may be nobody left to do it: the client learns it from the machine's state. A
//! failure is answered as usual.
//!
//! The family cannot wake a guest, nor can it tell in advance what the guest supports.

use crate::command;
use crate::command::{Command, Family, Nothing, Platforms};

/// The family's commands.
pub const FAMILY: Family =
    Family { name: "power", commands: &[Shutdown::INFO, SuspendDisk::INFO, SuspendRam::INFO, SuspendHybrid::INFO] };

command! {
    "guest-shutdown", since "0.15.0", reply Nothing, rules { success_response: false },
    /// Shuts the guest down. A success is not answered.
    ///
    /// On Linux and BSD services are stopped as by shutdown(8), at once; Windows closes programs by force. On Linux
    /// another program, a signal to the first process and at last the kernel alone serve where shutdown(8) does not. It
    /// waits for no other command.
    ///
    /// Errors: a mode that is none; no permission, or no way to shut down, with what was tried.
    pub struct Shutdown {
        /// `powerdown` turns the machine off, `halt` stops it without that, `reboot` starts it again; `powerdown` if
        /// absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<String>,
    }
}

command! {
    "guest-suspend-disk", since "1.1", reply Nothing,
    rules { success_response: false, exclusive: true, platforms: Platforms::NOT_BSD },
    /// Saves the guest's memory to its disk and turns the machine off: hibernation, ACPI's S4. A success is not
    /// answered.
    ///
    /// The guest needs swap space, or a hibernation file, for its memory, and resumes at its next start. On Linux it must
    /// know where to resume from.
    ///
    /// Errors: a guest that does not support it; what the system reports when it tries, for each way that was tried.
    pub struct SuspendDisk {}
}

command! {
    "guest-suspend-ram", since "1.1", reply Nothing,
    rules { success_response: false, exclusive: true, platforms: Platforms::NOT_BSD },
    /// Suspends the guest to memory: sleep, ACPI's S3. A success is not answered.
    ///
    /// The host wakes it (`system_wakeup` in QEMU's monitor). A Linux guest that could only idle, which the host cannot
    /// end, refuses.
    ///
    /// Errors: a guest that does not support it; what the system reports when it tries, for each way that was tried.
    pub struct SuspendRam {}
}

command! {
    "guest-suspend-hybrid", since "1.1", reply Nothing,
    rules { success_response: false, exclusive: true, platforms: Platforms::LINUX },
    /// Saves the guest's memory to its disk, then suspends to memory. A success is not answered.
    ///
    /// The guest is woken as after `guest-suspend-ram`; after a power loss it resumes as after `guest-suspend-disk`.
    ///
    /// Errors: a guest that does not support it; what the system reports when it tries, for each way that was tried.
    pub struct SuspendHybrid {}
}
