//! How the time of a command grows with what it tells of: interfaces, file systems, processors. Each growth happens in
//! namespaces of its own, so that the machine is the same afterwards.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sched::CloneFlags;

use super::information::ask_times;
use super::loops::LoopFileSystems;
use super::measure::{Medians, both, row, take_turns, timed};
use super::namespace;
use super::table::{Row, Target, Unit};
use super::{Effort, Programs};

/// What a round should take at most, so that quick commands are asked often and slow ones once.
const ROUND_SECONDS: f64 = 0.03;
/// Calls a round.
const CALLS_MAX: u32 = 40;
/// How many times the cost of one more thing among many may be that of one more among few. What is not linear exceeds it
/// by far: between 10 and 1,000 a cost that grows with the square does so a hundred times.
const STILL_LINEAR: f64 = 2.0;

/// One command under growth.
struct Growing {
    command: &'static str,
    /// What was promised at the largest count.
    target: Target,
    /// What was measured, in order of the counts.
    points: Vec<Point>,
}

/// Both agents' seconds for one call.
#[derive(Clone, Copy)]
struct Point {
    count: usize,
    wall: [f64; 2],
    cpu: [f64; 2],
}

impl Growing {
    fn new(command: &'static str, target: Target) -> Self {
        Self { command, target, points: Vec::new() }
    }

    /// Measures it with as many things as there are now.
    fn measure(&mut self, programs: &Programs, effort: Effort, count: usize) -> Result<()> {
        let request = format!("{{\"execute\":\"{}\"}}", self.command);
        let mut subjects = both(programs)?;
        let mut slowest: f64 = 0.0;
        for subject in &mut subjects {
            ask_times(subject, &request, 1)?;
            let started = Instant::now();
            ask_times(subject, &request, 1)?;
            slowest = slowest.max(started.elapsed().as_secs_f64());
        }
        let calls = ((ROUND_SECONDS / slowest) as u32).clamp(1, CALLS_MAX);
        let rounds = effort.rounds(if slowest > ROUND_SECONDS { 10 } else { 30 });
        let medians = take_turns(rounds, calls.into(), &mut subjects, |subject| {
            timed(subject, |subject| ask_times(subject, &request, calls))
        })?;
        let Medians { original, ours } = medians;
        self.points.push(Point { count, wall: [original.wall, ours.wall], cpu: [original.cpu, ours.cpu] });
        Ok(())
    }

    fn rows(&self, things: &str) -> Vec<Row> {
        let most = self.points.last().map(|point| point.count);
        let time_row = |point: &Point| {
            let target = if Some(point.count) == most { self.target } else { Target::None };
            let name = format!("{}, {} {things}", self.command, point.count);
            row(&name, Unit::Seconds, point.wall[0], point.wall[1], target)
        };
        let mut rows: Vec<Row> = self.points.iter().map(time_row).collect();
        if let [few, .., more, most] = self.points[..] {
            // Processor time: a long call is more often interrupted by whatever else the machine does.
            let growth = |agent: usize| {
                let cost = |from: Point, to: Point| (to.cpu[agent] - from.cpu[agent]) / (to.count - from.count) as f64;
                // Among few, what each call costs anyway is part of the price: the difference there would be noise.
                cost(more, most).max(0.0) / cost(few, more).max(few.cpu[agent] / few.count as f64)
            };
            // How many times what one more costs among many is what it costs among few; the picture has no room for it.
            let name = format!("{}: growth", self.command);
            rows.push(row(&name, Unit::Times, growth(0), growth(1), Target::AtMost(STILL_LINEAR)));
        }
        rows
    }
}

/// Network interfaces: pairs that are linked to each other, each with addresses, in a network of their own.
pub fn interfaces(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    namespace::within(CloneFlags::CLONE_NEWNET, &["ip"], || {
        let mut growing = Growing::new("guest-network-get-interfaces", Target::RatioAtMost(0.02));
        let mut there = 0;
        for count in [10, 100, 1000] {
            let mut orders = String::new();
            for index in there..count {
                let (high, low) = (index >> 8, index & 255);
                let _ = write!(
                    orders,
                    "link add near{index} type veth peer name far{index}\naddress add 10.{high}.{low}.1/24 dev near{index}\n\
                     link set near{index} up\nlink set far{index} up\n"
                );
            }
            there = count;
            let folder = tempfile::tempdir().context("cannot make a folder")?;
            let file = folder.path().join("orders");
            fs::write(&file, orders).context("cannot write the orders for ip")?;
            namespace::run("ip", &[Path::new("-batch"), &file])?;
            growing.measure(programs, effort, count)?;
        }
        Ok(growing.rows("pairs"))
    })
}

/// File systems on loop devices, mounted where nobody else sees them.
pub fn file_systems(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    namespace::within(CloneFlags::CLONE_NEWNS, &["mount", "umount", "mke2fs", "losetup"], || {
        namespace::hide_mounts()?;
        let mut growing = [
            Growing::new("guest-get-fsinfo", Target::RatioAtMost(0.5)),
            Growing::new("guest-get-disks", Target::RatioAtMost(0.5)),
        ];
        let mut loops = LoopFileSystems::new()?;
        for count in [10, 50, 150] {
            loops.grow(count)?;
            for command in &mut growing {
                command.measure(programs, effort, count)?;
            }
        }
        Ok(growing.iter().flat_map(|command| command.rows("loop file systems")).collect())
    })
}

/// Processors: made-up directories over those of the machine.
pub fn processors(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    namespace::within(CloneFlags::CLONE_NEWNS, &["mount"], || {
        namespace::hide_mounts()?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        namespace::mount_memory(folder.path())?;
        let list = folder.path().join("cpu");
        let mut growing =
            [Growing::new("guest-get-vcpus", Target::None), Growing::new("guest-get-cpustats", Target::None)];
        for count in [64, 256, 512] {
            let mut times = String::from("cpu  1 2 3 4 5 6 7 8 9 10\n");
            for number in 0..count {
                let directory = list.join(format!("cpu{number}"));
                fs::create_dir_all(&directory).context("cannot make up a processor")?;
                fs::write(directory.join("online"), "1\n").context("cannot make up a processor")?;
                let _ = writeln!(times, "cpu{number} 1234567 2345 345678 456789012 5678 0 6789 0 0 0");
            }
            let stat = folder.path().join(format!("stat{count}"));
            fs::write(&stat, times).context("cannot make up the processors' times")?;
            namespace::bind(&list, Path::new("/sys/devices/system/cpu"))?;
            namespace::bind(&stat, Path::new("/proc/stat"))?;
            for command in &mut growing {
                command.measure(programs, effort, count)?;
            }
        }
        Ok(growing.iter().flat_map(|command| command.rows("processors")).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_with_the_square_is_not_called_linear() {
        let judged = |time: fn(f64) -> f64| {
            let point = |count: usize| Point { count, wall: [1.0; 2], cpu: [time(count as f64); 2] };
            let points = [10, 100, 1000].map(point).to_vec();
            let rows = Growing { command: "x", target: Target::RatioAtMost(1.0), points }.rows("things");
            assert_eq!(rows[2].met(), Some(true));
            assert_eq!([rows[0].met(), rows[1].met()], [None; 2]);
            rows[3].met()
        };
        assert_eq!(judged(|count| 1.0 + count), Some(true));
        assert_eq!(judged(|count| 100.0 + count), Some(true));
        assert_eq!(judged(|count| 100.0 + count * count), Some(false));
    }
}
