//! Processors as sysfs shows them, their times from `/proc/stat`, the load from sysinfo(2).

use std::io::ErrorKind;

use qga_protocol::cpu::{CpuStats, LinuxCpuStats, LoadAverage, LogicalProcessor};

use crate::system::error::Error;
use crate::system::root::Root;

/// Has a directory `cpuN` for each processor, among others.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// How each processor spent its time.
const TIMES: &str = "/proc/stat";
/// The kernel's unit of time towards programs, `USER_HZ`, is 10 ms on every architecture that Rust has.
const TICK_MS: u64 = 10;
/// sysinfo(2) counts the load in parts of this many.
const LOAD_UNIT: f64 = 65536.0;

/// The processors that are there, in the kernel's order.
pub fn processors(root: &Root) -> Result<Vec<LogicalProcessor>, Error> {
    let names =
        root.list(PROCESSORS).map_err(|cause| Error::io(format!("failed to list entries: {PROCESSORS}"), &cause))?;
    let mut processors = Vec::new();
    for number in names.iter().filter_map(|name| number_behind("cpu", name)) {
        let switch = match state_of_switch(root, &switch(number)) {
            Ok(None) | Err(_) if !root.exists(directory(number)) => continue, // unplugged since the list was read
            switch => switch?,
        };
        let (online, can_offline) = (switch.unwrap_or(true), Some(switch.is_some()));
        processors.push(LogicalProcessor { logical_id: number, online, can_offline });
    }
    Ok(processors)
}

/// Switches processors on and off in the order of the list until one fails. Returns how many have the wanted state now
/// and why the next one has not.
pub fn switch_processors(root: &Root, wanted: &[LogicalProcessor]) -> (usize, Option<Error>) {
    for (done, processor) in wanted.iter().enumerate() {
        if let Err(error) = switch_processor(root, processor.logical_id, processor.online) {
            return (done, Some(error));
        }
    }
    (wanted.len(), None)
}

fn switch_processor(root: &Root, number: i64, online: bool) -> Result<(), Error> {
    let (directory, switch) = (directory(number), switch(number));
    root.list(&directory).map_err(|cause| Error::io(format!("open(\"{directory}/\")"), &cause))?;
    match state_of_switch(root, &switch)? {
        Some(state) if state != online => root
            .order(&switch, if online { "1" } else { "0" })
            .map_err(|cause| Error::io(format!("pwrite(\"{switch}\")"), &cause)),
        None if !online => Err(Error::new(format!("logical processor #{number} can't be offlined"))),
        _ => Ok(()),
    }
}

/// Whether a processor is switched on; nothing if it has no switch, which means that it is always on.
fn state_of_switch(root: &Root, switch: &str) -> Result<Option<bool>, Error> {
    match root.read(switch) {
        Ok(state) => match state.first() {
            Some(state) => Ok(Some(*state != b'0')),
            None => Err(Error::new(format!("pread(\"{switch}\"): unexpected EOF"))),
        },
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io(format!("open(\"{switch}\")"), &cause)),
    }
}

fn directory(number: i64) -> String {
    format!("{PROCESSORS}/cpu{number}")
}

fn switch(number: i64) -> String {
    format!("{PROCESSORS}/cpu{number}/online")
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

    use qga_protocol::cpu::{CpuStats, LogicalProcessor};

    use super::{processor_times, processors, switch_processors, times};
    use crate::system::root::Root;

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

    fn switched(root: &Root, wanted: &[(i64, bool)]) -> (usize, String) {
        let processor = |&(logical_id, online)| LogicalProcessor { logical_id, online, can_offline: None };
        let wanted: Vec<LogicalProcessor> = wanted.iter().map(processor).collect();
        let (done, error) = switch_processors(root, &wanted);
        (done, error.map(|error| error.desc).unwrap_or_default())
    }

    #[test]
    fn processors_are_switched_until_one_fails() {
        let (_directory, root) = machine(&[
            ("/sys/devices/system/cpu/cpu0/topology/core_id", "0\n"),
            ("/sys/devices/system/cpu/cpu1/online", "1\n"),
            ("/sys/devices/system/cpu/cpu2/online", "0\n"),
            ("/sys/devices/system/cpu/cpu3/online", "1\n"),
        ]);
        assert_eq!(switched(&root, &[]), (0, String::new()));
        assert_eq!(switched(&root, &[(0, true), (1, false), (2, true), (3, true)]), (4, String::new()));
        let cannot = "logical processor #0 can't be offlined".to_owned();
        assert_eq!(switched(&root, &[(1, true), (0, false), (3, false)]), (1, cannot.clone()));
        assert_eq!(switched(&root, &[(0, false), (3, false)]), (0, cannot));
        let states: Vec<bool> = processors(&root).unwrap().iter().map(|processor| processor.online).collect();
        assert_eq!(states, [true; 4]);
        for number in [4, -1, i64::MIN] {
            let unknown = format!("open(\"/sys/devices/system/cpu/cpu{number}/\"): No such file or directory");
            assert_eq!(switched(&root, &[(number, true)]), (0, unknown));
        }
    }

    #[test]
    fn a_processor_that_has_the_state_already_is_not_written_to() {
        let (_directory, root) = machine(&[("/sys/devices/system/cpu/cpu1/online", "1 as before\n")]);
        assert_eq!(switched(&root, &[(1, true)]), (1, String::new()));
        assert_eq!(root.read_text("/sys/devices/system/cpu/cpu1/online").unwrap(), "1 as before");
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
