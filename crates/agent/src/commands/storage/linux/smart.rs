//! What NVM Express disks say of their health.

use std::fs::File;

use qga_protocol::storage::{DiskSmart, NvmeSmart};

use crate::system::error::cause_text;

/// How long a controller may take.
const TIMEOUT_MILLISECONDS: u32 = 2000;

/// The health of a disk; `None` if it does not tell.
pub fn read(node: &str) -> Option<DiskSmart> {
    let page = File::open(node).and_then(|disk| qga_sys::nvme::smart_log(&disk, TIMEOUT_MILLISECONDS));
    match page {
        Ok(page) => Some(DiskSmart::Nvme(parse(&page))),
        Err(error) => {
            log::debug!("'{node}' does not tell its health: {}", cause_text(&error));
            None
        }
    }
}

/// Reads the log page as the NVM Express specification lays it out: numbers start with their lowest byte.
pub fn parse(page: &[u8; qga_sys::nvme::SMART_BYTES]) -> NvmeSmart {
    let half = |offset: usize| {
        let bytes = &page[offset..offset + 8];
        bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    NvmeSmart {
        critical_warning: i64::from(page[0]),
        temperature: i64::from(u16::from_le_bytes([page[1], page[2]])),
        available_spare: i64::from(page[3]),
        available_spare_threshold: i64::from(page[4]),
        percentage_used: i64::from(page[5]),
        data_units_read_lo: half(32),
        data_units_read_hi: half(40),
        data_units_written_lo: half(48),
        data_units_written_hi: half(56),
        host_read_commands_lo: half(64),
        host_read_commands_hi: half(72),
        host_write_commands_lo: half(80),
        host_write_commands_hi: half(88),
        controller_busy_time_lo: half(96),
        controller_busy_time_hi: half(104),
        power_cycles_lo: half(112),
        power_cycles_hi: half(120),
        power_on_hours_lo: half(128),
        power_on_hours_hi: half(136),
        unsafe_shutdowns_lo: half(144),
        unsafe_shutdowns_hi: half(152),
        media_errors_lo: half(160),
        media_errors_hi: half(168),
        number_of_error_log_entries_lo: half(176),
        number_of_error_log_entries_hi: half(184),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, read};

    #[test]
    fn numbers_stand_where_the_specification_has_them() {
        let mut page = [0; 512];
        page[..6].copy_from_slice(&[4, 0x43, 1, 100, 10, 3]);
        page[32..48].copy_from_slice(&[1, 2, 0, 0, 0, 0, 0, 0x80, 7, 0, 0, 0, 0, 0, 0, 0]);
        page[176] = 9;
        page[184] = 8;
        let smart = parse(&page);
        assert_eq!((smart.critical_warning, smart.temperature), (4, 323));
        assert_eq!((smart.available_spare, smart.available_spare_threshold, smart.percentage_used), (100, 10, 3));
        assert_eq!((smart.data_units_read_lo, smart.data_units_read_hi), (0x8000_0000_0000_0201, 7));
        assert_eq!((smart.number_of_error_log_entries_lo, smart.number_of_error_log_entries_hi), (9, 8));
    }

    #[test]
    fn what_is_no_disk_has_no_health() {
        assert!(read("/dev/null").is_none());
        assert!(read("/nonexistent").is_none());
    }
}
