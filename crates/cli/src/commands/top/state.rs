//! What the screen shows: rates from two samples, and their past.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use qga_protocol::cpu::LinuxCpuStats;

use crate::commands::sample::{Sample, is_whole_disk, modes};

/// How many values of the past are kept; more than any screen has columns.
const PAST: usize = 512;

/// The parts of a processor's time in the last interval, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Busy {
    pub number: i64,
    pub user: f64,
    pub system: f64,
    pub waiting: f64,
    pub stolen: f64,
}

impl Busy {
    pub fn all(&self) -> f64 {
        self.user + self.system + self.stolen
    }
}

/// A disk or an interface: bytes in and out per second, and how much they were.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    pub name: String,
    pub inward: f64,
    pub outward: f64,
    /// Both together.
    pub past: VecDeque<u64>,
    /// Inward and outward as last counted.
    counters: (u64, u64),
}

/// All that is on the screen.
#[derive(Debug)]
pub struct State {
    pub title: String,
    pub interval: Duration,
    pub is_paused: bool,
    pub problem: Option<String>,
    pub latest: Option<Sample>,
    pub processors: Vec<Busy>,
    /// All processors together, in thousandths.
    pub busy_past: VecDeque<u64>,
    pub disks: Vec<Traffic>,
    pub interfaces: Vec<Traffic>,
    looks: u64,
}

impl State {
    pub fn new(title: String, interval: Duration) -> Self {
        Self {
            title,
            interval,
            is_paused: false,
            problem: None,
            latest: None,
            processors: Vec::new(),
            busy_past: VecDeque::new(),
            disks: Vec::new(),
            interfaces: Vec::new(),
            looks: 0,
        }
    }

    /// How many samples were heard.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// All processors together, from 0 to 1.
    pub fn busy(&self) -> f64 {
        let count = self.processors.len().max(1) as f64;
        self.processors.iter().map(Busy::all).sum::<f64>() / count
    }

    pub fn hear(&mut self, sample: Sample) {
        self.problem = None;
        self.looks += 1;
        let before = self.latest.as_ref();
        let seconds = before.map_or(0.0, |before| sample.taken.duration_since(before.taken).as_secs_f64());
        let earlier = before.and_then(|before| before.processors.as_deref()).unwrap_or_default();
        self.processors = busy(earlier, sample.processors.as_deref().unwrap_or_default());
        if before.is_some() {
            let thousandths = (self.busy() * 1000.0).round() as u64;
            push(&mut self.busy_past, thousandths);
        }
        let all = sample.disks.as_deref().unwrap_or_default();
        let disks = all.iter().filter(|disk| is_whole_disk(disk, all)).map(|disk| {
            let bytes = |sectors: Option<u64>| sectors.unwrap_or(0).saturating_mul(512);
            (disk.name.clone(), (bytes(disk.stats.read_sectors), bytes(disk.stats.write_sectors)))
        });
        follow(&mut self.disks, disks.collect(), seconds);
        let interfaces = sample.interfaces.iter().flatten().filter(|interface| interface.name != "lo");
        let interfaces = interfaces.filter_map(|interface| {
            let statistics = interface.statistics.as_ref()?;
            Some((interface.name.clone(), (statistics.rx_bytes, statistics.tx_bytes)))
        });
        follow(&mut self.interfaces, interfaces.collect(), seconds);
        self.latest = Some(sample);
    }
}

fn push(past: &mut VecDeque<u64>, value: u64) {
    if past.len() == PAST {
        past.pop_front();
    }
    past.push_back(value);
}

fn busy(before: &[LinuxCpuStats], now: &[LinuxCpuStats]) -> Vec<Busy> {
    let mut processors: Vec<Busy> = now
        .iter()
        .map(|now| {
            let earlier = before.iter().find(|before| before.cpu == now.cpu).map(modes);
            // Counters of a processor that was off and on again may be smaller; and idle times go back at times.
            let spent = modes(now).map(|(mode, time)| {
                let earlier =
                    earlier.and_then(|modes| modes.iter().find(|(other, _)| *other == mode).map(|(_, time)| *time));
                (mode, earlier.map_or(0, |earlier| time.saturating_sub(earlier)) as f64)
            });
            let all: f64 = spent.iter().map(|(_, time)| time).sum();
            let part = |names: &[&str]| {
                let time: f64 = spent.iter().filter(|(mode, _)| names.contains(mode)).map(|(_, time)| time).sum();
                if all > 0.0 { time / all } else { 0.0 }
            };
            Busy {
                number: now.cpu,
                user: part(&["user", "nice"]),
                system: part(&["system", "irq", "softirq"]),
                waiting: part(&["iowait"]),
                stolen: part(&["steal"]),
            }
        })
        .collect();
    processors.sort_by_key(|processor| processor.number);
    processors
}

/// Turns counters into rates; what is gone is dropped, what is new starts at nothing.
fn follow(known: &mut Vec<Traffic>, counted: Vec<(String, (u64, u64))>, seconds: f64) {
    let mut before: BTreeMap<String, Traffic> =
        known.drain(..).map(|traffic| (traffic.name.clone(), traffic)).collect();
    for (name, counters) in counted {
        let traffic = match before.remove(&name) {
            Some(mut traffic) if seconds > 0.0 => {
                let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
                traffic.inward = rate(counters.0, traffic.counters.0);
                traffic.outward = rate(counters.1, traffic.counters.1);
                push(&mut traffic.past, (traffic.inward + traffic.outward) as u64);
                Traffic { counters, ..traffic }
            }
            _ => Traffic { name, counters, ..Traffic::default() },
        };
        known.push(traffic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let mut known = Vec::new();
        follow(&mut known, vec![("sda".to_owned(), (1000, 0)), ("gone".to_owned(), (5, 5))], 0.0);
        follow(&mut known, vec![("sda".to_owned(), (3000, 500)), ("new".to_owned(), (9, 9))], 2.0);
        assert_eq!(known.len(), 2);
        assert_eq!((known[0].inward, known[0].outward), (1000.0, 250.0));
        assert_eq!(known[0].past, [1250]);
        assert!(known[1].past.is_empty());
        // The counter began anew.
        follow(&mut known, vec![("sda".to_owned(), (0, 0))], 2.0);
        assert!(known[0].inward.abs() < f64::EPSILON);
    }
}
