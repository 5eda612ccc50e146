//! Commands to NVM Express controllers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Bytes of a SMART log page.
pub const SMART_BYTES: usize = 512;

/// The kernel's `struct nvme_admin_cmd`.
#[repr(C)]
#[derive(Default)]
struct AdminCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    words_2_and_3: [u32; 2],
    metadata: u64,
    data: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    words_10_to_15: [u32; 6],
    timeout_milliseconds: u32,
    result: u32,
}

/// Reads the SMART log page of the controller of a disk.
///
/// # Errors
/// If the file is no NVM Express device, the caller may not, or the controller refuses.
pub fn smart_log(disk: &File, timeout_milliseconds: u32) -> io::Result<[u8; SMART_BYTES]> {
    const IOCTL_ADMIN_COMMAND: libc::c_ulong = 0xc048_4e41;
    const GET_LOG_PAGE: u8 = 2;
    const SMART_PAGE: u32 = 2;
    const RETAIN_EVENTS: u32 = 1 << 15;
    const LENGTH_IN_WORDS_LESS_ONE: u32 = (SMART_BYTES as u32 / 4 - 1) << 16;
    let mut page = [0_u8; SMART_BYTES];
    let mut command = AdminCommand {
        opcode: GET_LOG_PAGE,
        namespace: u32::MAX,
        data: page.as_mut_ptr() as u64,
        data_bytes: SMART_BYTES as u32,
        words_10_to_15: [SMART_PAGE | RETAIN_EVENTS | LENGTH_IN_WORDS_LESS_ONE, 0, 0, 0, 0, 0],
        timeout_milliseconds,
        ..AdminCommand::default()
    };
    // SAFETY: ioctl(2) with this number takes the struct above, which has the kernel's layout of 72 bytes; `data` points
    // to `data_bytes` bytes of ours that live until the call has returned. The number belongs to NVMe alone: other
    // drivers answer ENOTTY.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), IOCTL_ADMIN_COMMAND as _, &raw mut command) };
    match result {
        0 => Ok(page),
        // The controller's own status.
        1.. => Err(io::Error::other(format!("the controller refuses with status {result:#x}"))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::{AdminCommand, smart_log};
    use std::fs::File;

    #[test]
    fn the_command_has_the_kernels_layout() {
        assert_eq!(size_of::<AdminCommand>(), 72);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(smart_log(&File::open("/dev/null").unwrap(), 1000).is_err());
    }
}
