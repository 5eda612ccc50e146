//! Loop devices, whose content is a file: loop(4).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The kernel's `struct loop_info64`.
#[repr(C)]
struct Status {
    device: u64,
    inode: u64,
    special_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption_type: u32,
    encryption_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    encryption_name: [u8; 64],
    encryption_key: [u8; 32],
    initial: [u64; 2],
}

/// The number of the device that the file behind a loop device lies on: `st_dev` of stat(2). Asks the file's file system.
///
/// # Errors
/// `ENXIO` if there is no file behind it, `ENOTTY` if this is no loop device.
pub fn backing_device(loop_device: impl AsFd) -> io::Result<u64> {
    const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
    let mut status = std::mem::MaybeUninit::<Status>::zeroed();
    // SAFETY: ioctl(2) with this number writes the struct above, which has the kernel's layout of 232 bytes.
    let result = unsafe { libc::ioctl(loop_device.as_fd().as_raw_fd(), LOOP_GET_STATUS64 as _, status.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, which is a value of each of its members, and the kernel writes no other.
    Ok(unsafe { status.assume_init() }.device)
}

#[cfg(test)]
mod tests {
    use super::{Status, backing_device};

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<Status>(), 232);
    }

    #[test]
    fn what_is_no_loop_device_is_an_error() {
        let file = std::fs::File::open("/dev/null").expect("every system has it");
        assert!(backing_device(file).is_err());
    }
}
