//! Processors as sysfs shows them, their times from `/proc/stat`, the load from sysinfo(2).

use std::io::ErrorKind;

use qga_protocol::cpu::{CpuStats, LinuxCpuStats, LoadAverage, LogicalProcessor};

use crate::error::Error;
use crate::root::Root;

/// Has a directory `cpuN` for each processor, among others.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// How each processor spent its time.
const TIMES: &str = "/proc/stat";
/// The kernel's unit of time towards programs, `USER_HZ`, is 10 ms on every architecture that Rust has.
const TICK_MS: u64 = 10;
/// sysinfo(2) counts the load in parts of this many.
const LOAD_UNIT: f64 = 65536.0;

/// The processors that are there, by number.
pub fn processors(root: &Root) -> Result<Vec<LogicalProcessor>, Error> {
    let names =
        root.list(PROCESSORS).map_err(|cause| Error::io(format!("failed to list entries: {PROCESSORS}"), &cause))?;
    let mut numbers: Vec<i64> = names.iter().filter_map(|name| number_behind("cpu", name)).collect();
    numbers.sort_unstable();
    let mut processors = Vec::with_capacity(numbers.len());
    for number in numbers {
        let directory = format!("{PROCESSORS}/cpu{number}");
        let switch = format!("{directory}/online");
        let (online, can_offline) = match root.read(&switch) {
            Ok(state) => match state.first() {
                Some(state) => (*state != b'0', true),
                None => return Err(Error::new(format!("pread(\"{switch}\"): unexpected EOF"))),
            },
            Err(_) if !root.exists(&directory) => continue, // unplugged since the list was read
            Err(cause) if cause.kind() == ErrorKind::NotFound => (true, false),
            Err(cause) => return Err(Error::io(format!("open(\"{switch}\")"), &cause)),
        };
        processors.push(LogicalProcessor { logical_id: number, online, can_offline: Some(can_offline) });
    }
    Ok(processors)
}

/// How the processors that are switched on spent their time.
pub fn processor_times(root: &Root) -> Result<Vec<CpuStats>, Error> {
    let text = root.read_text(TIMES).map_err(|cause| Error::io(format!("open(\"{TIMES}\")"), &cause))?;
    Ok(text.lines().filter_map(times).map(CpuStats::Linux).collect())
}

/// A line of `/proc/stat`, if it is one processor's. Kernels added columns over the years, each at the end.
fn times(line: &str) -> Option<LinuxCpuStats> {
    let mut words = line.split_ascii_whitespace();
    let cpu = number_behind("cpu", words.next()?)?;
    let mut columns = words.map_while(|word| Some(word.parse::<u64>().ok()?.saturating_mul(TICK_MS)));
    Some(LinuxCpuStats {
        cpu,
        user: columns.next()?,
        nice: columns.next()?,
        system: columns.next()?,
        idle: columns.next()?,
        iowait: columns.next(),
        irq: columns.next(),
        softirq: columns.next(),
        steal: columns.next(),
        guest: columns.next(),
        guestnice: columns.next(),
    })
}

/// The load of this machine.
pub fn load_average() -> LoadAverage {
    let loads = rustix::system::sysinfo().loads.map(|load| load as f64 / LOAD_UNIT);
    LoadAverage { load1m: loads[0], load5m: loads[1], load15m: loads[2] }
}

/// The number in `cpu12`, but not in `cpu`, `cpufreq` or `cpu+1`.
fn number_behind(prefix: &str, name: &str) -> Option<i64> {
    let digits = name.strip_prefix(prefix)?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use qga_protocol::cpu::CpuStats;

    use super::{processor_times, processors, times};
    use crate::root::Root;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        for (path, text) in files {
            let path = root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (directory, root)
    }

    #[test]
    fn columns_that_an_old_kernel_lacks_are_left_out() {
        let oldest = times("cpu3 1 2 3 4").unwrap();
        assert_eq!((oldest.cpu, oldest.user, oldest.idle, oldest.iowait), (3, 10, 40, None));
        let with_irq = times("cpu0 1 2 3 4 5 6").unwrap();
        assert_eq!((with_irq.iowait, with_irq.irq, with_irq.softirq, with_irq.steal), (Some(50), Some(60), None, None));
        let newest = times("cpu0 1 2 3 4 5 6 7 8 9 10 11").unwrap();
        assert_eq!((newest.guest, newest.guestnice), (Some(90), Some(100)));
    }

    #[test]
    fn lines_that_are_no_processor_are_no_times() {
        for line in ["", "cpu  1 2 3 4", "cpu0", "cpu0 1 2 3", "cpu0 1 2 x 4", "cpux 1 2 3 4", "intr 1 2 3 4"] {
            assert_eq!(times(line), None, "{line}");
        }
        assert_eq!(times(&format!("cpu0 {} 0 0 0", u64::MAX)).unwrap().user, u64::MAX);
    }

    #[test]
    fn a_damaged_line_costs_only_itself() {
        let (_directory, root) = machine(&[("/proc/stat", "cpu  1 1 1 1\ncpu0 1\ncpu1 1 1 1 1\nctxt 5\n")]);
        let [CpuStats::Linux(only)] = &processor_times(&root).unwrap()[..] else { panic!("one processor") };
        assert_eq!(only.cpu, 1);
    }

    #[test]
    fn what_fails_is_told_with_its_file() {
        let (_directory, root) = machine(&[]);
        assert_eq!(
            processors(&root).unwrap_err().desc,
            "failed to list entries: /sys/devices/system/cpu: No such file or directory"
        );
        assert_eq!(processor_times(&root).unwrap_err().desc, "open(\"/proc/stat\"): No such file or directory");
        let (_directory, root) = machine(&[("/sys/devices/system/cpu/cpu7/online", "")]);
        assert_eq!(
            processors(&root).unwrap_err().desc,
            "pread(\"/sys/devices/system/cpu/cpu7/online\"): unexpected EOF"
        );
        let (_directory, root) = machine(&[("/sys/devices/system/cpu/cpu7/online/0", "")]);
        assert_eq!(
            processors(&root).unwrap_err().desc,
            "open(\"/sys/devices/system/cpu/cpu7/online\"): Is a directory"
        );
    }
}
