//! The log page in which an NVM Express disk tells its health: any 512 bytes are numbers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qga_agent::fuzzing;

fuzz_target!(|input: &[u8]| {
    let mut page = [0; 512];
    let length = input.len().min(page.len());
    page[..length].copy_from_slice(&input[..length]);
    let health = serde_json::to_value(fuzzing::nvme_health(&page)).expect("a health can be told");
    let members = health.as_object().expect("a health has members");
    assert!(members.values().all(|value| value.is_u64()), "a count is negative: {health}");
    assert_eq!(members["temperature"], u64::from(u16::from_le_bytes([page[1], page[2]])));
});
