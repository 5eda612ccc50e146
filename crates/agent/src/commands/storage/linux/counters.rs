//! The counters of block devices: `/proc/diskstats`.

use qga_protocol::storage::{DiskStats, DiskStatsInfo};

use crate::system::error::Error;
use crate::system::root::Root;

/// Where the kernel counts.
const COUNTERS: &str = "/proc/diskstats";
/// Words of a line before its counters: two numbers and the name.
const WORDS_BEFORE: usize = 3;
/// Counters of a partition in kernels before 2.6.25.
const SHORT: usize = 4;

/// The counters of all block devices, in the kernel's order.
pub fn disk_stats(root: &Root) -> Result<Vec<DiskStatsInfo>, Error> {
    let text = root.read_text(COUNTERS).map_err(|error| Error::io(format!("open(\"{COUNTERS}\")"), &error))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// Reads a line; one that is shorter than the kernel ever wrote is passed over.
fn parse(line: &str) -> Option<DiskStatsInfo> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let counters = words.get(WORDS_BEFORE..).filter(|counters| counters.len() >= SHORT)?;
    let counter = |index: usize| counters.get(index)?.parse::<u64>().ok();
    let none = DiskStats {
        read_sectors: None,
        read_ios: None,
        read_merges: None,
        write_sectors: None,
        write_ios: None,
        write_merges: None,
        discard_sectors: None,
        discard_ios: None,
        discard_merges: None,
        flush_ios: None,
        read_ticks: None,
        write_ticks: None,
        discard_ticks: None,
        flush_ticks: None,
        ios_pgr: None,
        total_ticks: None,
        weight_ticks: None,
    };
    let stats = if counters.len() == SHORT {
        DiskStats {
            read_ios: counter(0),
            read_sectors: counter(1),
            write_ios: counter(2),
            write_sectors: counter(3),
            ..none
        }
    } else {
        DiskStats {
            read_ios: counter(0),
            read_merges: counter(1),
            read_sectors: counter(2),
            read_ticks: counter(3),
            write_ios: counter(4),
            write_merges: counter(5),
            write_sectors: counter(6),
            write_ticks: counter(7),
            ios_pgr: counter(8),
            total_ticks: counter(9),
            weight_ticks: counter(10),
            discard_ios: counter(11),
            discard_merges: counter(12),
            discard_sectors: counter(13),
            discard_ticks: counter(14),
            flush_ios: counter(15),
            flush_ticks: counter(16),
        }
    };
    Some(DiskStatsInfo {
        name: words[2].to_owned(),
        major: words[0].parse().ok()?,
        minor: words[1].parse().ok()?,
        stats,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn each_generation_of_lines_gives_what_it_counts() {
        let json = |line: &str| serde_json::to_value(parse(line).unwrap().stats).unwrap();
        let old = json("254 1 vda1 1 2 3 4");
        assert_eq!(old, serde_json::json!({"read-ios": 1, "read-sectors": 2, "write-ios": 3, "write-sectors": 4}));
        let count = |words: usize| {
            let counters: Vec<String> = (1..=words).map(|number| number.to_string()).collect();
            json(&format!("254 0 vda {}", counters.join(" "))).as_object().unwrap().len()
        };
        assert_eq!([count(11), count(15), count(17), count(19)], [11, 15, 17, 17]);
    }

    #[test]
    fn counters_have_64_bits() {
        let stats =
            parse("254 0 vda 1 2 3 4294967297 5 6 7 4294967297 0 18446744073709551615 4294967298").unwrap().stats;
        assert_eq!([stats.read_ticks, stats.write_ticks], [Some(4_294_967_297); 2]);
        assert_eq!([stats.total_ticks, stats.weight_ticks], [Some(u64::MAX), Some(4_294_967_298)]);
        assert_eq!(stats.discard_ios, None);
    }

    #[test]
    fn lines_that_are_no_device_are_passed_over() {
        for line in ["", "254 0 vda", "254 0 vda 1 2 3", "x 0 vda 1 2 3 4"] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(parse("254 0 vda 1 x 3 -4 5").unwrap().stats.read_merges, None);
    }
}
