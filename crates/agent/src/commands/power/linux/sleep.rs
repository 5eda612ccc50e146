//! Suspending to disk, to memory, to both: by systemd, by pm-utils, at last by the kernel alone.
//!
//! A machine is only sent to sleep if the host can wake it. The kernel's `s2idle`, in which the processors idle, looks
//! to the host like a machine that runs; its `system_wakeup` does not end it.

use std::time::Duration;

use super::super::target_state::Sleep;
use super::first_process::FirstProcess;
use super::machine::{Failure, Machine};
use crate::process::system_tool::Tool;
use crate::system::error::{Error, cause_text};
use crate::system::root::Root;

/// What the kernel can do, and where it is ordered.
const STATE: &str = "/sys/power/state";
/// What it does when memory is to sleep.
const MEM_SLEEP: &str = "/sys/power/mem_sleep";
/// What it does after it has written memory to the disk.
const DISK: &str = "/sys/power/disk";
/// The device that the kernel looks for memory on, or `0:0`.
const RESUME: &str = "/sys/power/resume";
/// How long a program may take while the machine is awake: drivers may need half a minute for either way.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long systemd may take before it begins: programs that want to end something first get five seconds by default.
const BEGIN_PATIENCE: Duration = Duration::from_secs(20);
/// How long after the begin of a wait it is looked again.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// Words in systemd's answers that say that somebody wants the machine not to sleep. That is no fault of the way.
const FORBIDDEN: [&str; 3] = ["masked", "disabled by", "inhibit"];

/// What each way calls a mode.
struct Names {
    /// The wanted state, for an error.
    act: &'static str,
    systemctl: &'static str,
    unit: &'static str,
    pm_flag: &'static str,
    pm_tool: &'static str,
}

fn names(sleep: Sleep) -> Names {
    match sleep {
        Sleep::Disk => Names {
            act: "suspend to disk",
            systemctl: "hibernate",
            unit: "systemd-hibernate.service",
            pm_flag: "--hibernate",
            pm_tool: "pm-hibernate",
        },
        Sleep::Ram => Names {
            act: "suspend to memory",
            systemctl: "suspend",
            unit: "systemd-suspend.service",
            pm_flag: "--suspend",
            pm_tool: "pm-suspend",
        },
        Sleep::Hybrid => Names {
            act: "suspend to disk and memory",
            systemctl: "hybrid-sleep",
            unit: "systemd-hybrid-sleep.service",
            pm_flag: "--suspend-hybrid",
            pm_tool: "pm-suspend-hybrid",
        },
    }
}

/// The words of one of the kernel's lists, `s2idle [deep]`, and the one in brackets.
fn choices(text: &str) -> (Vec<&str>, Option<&str>) {
    let bare = |word| str::trim_matches(word, ['[', ']']);
    let chosen = text.split_whitespace().find(|word| word.starts_with('[')).map(bare);
    (text.split_whitespace().map(bare).collect(), chosen)
}

/// Why the machine cannot sleep like that, whoever asks the kernel for it.
fn unsupported(root: &Root, sleep: Sleep) -> Option<String> {
    let Ok(state) = root.read_text(STATE) else { return Some(format!("the kernel has no {STATE}")) };
    let states = choices(&state).0;
    if matches!(sleep, Sleep::Ram | Sleep::Hybrid) {
        if !states.contains(&"mem") {
            return Some(format!("{STATE} does not offer 'mem'"));
        }
        // Kernels before 4.10 have no such list, and offer 'mem' only where there is such a sleep.
        if let Ok(kinds) = root.read_text(MEM_SLEEP)
            && !choices(&kinds).0.contains(&"deep")
        {
            return Some(format!("{MEM_SLEEP} does not offer 'deep', and the host cannot end another sleep"));
        }
    }
    if matches!(sleep, Sleep::Disk | Sleep::Hybrid) && !states.contains(&"disk") {
        return Some(format!("{STATE} does not offer 'disk'"));
    }
    // After the other one the machine goes on from memory, unless that has lost its power.
    if sleep == Sleep::Disk { no_way_back_from_disk(root) } else { None }
}

/// Why memory that is written to the disk would be lost. Neither the kernel nor systemd before its version 255 asks:
/// without a device to resume from they write to any swap space, and the machine starts anew next time.
fn no_way_back_from_disk(root: &Root) -> Option<String> {
    let has_device = root.read_text(RESUME).is_ok_and(|device| device.trim() != "0:0");
    let line = root.read_text("/proc/cmdline").unwrap_or_default();
    let is_told_at_start = line.split_whitespace().any(|word| word.starts_with("resume="));
    // There systemd tells the next start by a variable of the firmware.
    let is_told_by_firmware = root.exists("/sys/firmware/efi");
    if has_device || is_told_at_start || is_told_by_firmware {
        None
    } else {
        Some(format!("neither {RESUME} nor resume= at its start says from which device it would go on"))
    }
}

/// Lets the machine sleep. Returns when it is awake again.
pub fn sleep(machine: &impl Machine, sleep: Sleep) -> Result<(), Error> {
    if let Some(why) = unsupported(machine.root(), sleep) {
        return Err(Error::new(format!("the requested suspend mode is not supported by the guest: {why}")));
    }
    let _deep = if sleep == Sleep::Disk { None } else { Choice::make(machine, MEM_SLEEP, "deep") };
    let mut failures = Vec::new();
    for way in [by_systemd, by_pm_utils, by_kernel] {
        match way(machine, sleep) {
            Ok(()) => return Ok(()),
            Err(failure) => failures.push(failure),
        }
        let failure = &failures[failures.len() - 1];
        log::warn!("{failure}");
        if FORBIDDEN.iter().any(|word| failure.contains(word)) {
            break;
        }
    }
    Err(Error::new(format!("failed to {}: {}", names(sleep).act, failures.join("; "))))
}

/// A choice in one of the kernel's lists that is taken back when this is dropped.
struct Choice<'a, M: Machine> {
    machine: &'a M,
    list: &'static str,
    former: String,
}

impl<'a, M: Machine> Choice<'a, M> {
    /// Chooses a word if another one is chosen.
    fn make(machine: &'a M, list: &'static str, word: &str) -> Option<Self> {
        let text = machine.root().read_text(list).ok()?;
        let (_, Some(former)) = choices(&text) else { return None };
        if former == word {
            return None;
        }
        if let Err(cause) = machine.order(list, word) {
            log::warn!("cannot choose '{word}' in {list}: {}", cause_text(&cause));
            return None;
        }
        Some(Self { machine, list, former: former.to_owned() })
    }
}

impl<M: Machine> Drop for Choice<'_, M> {
    fn drop(&mut self) {
        if let Err(cause) = self.machine.order(self.list, &self.former) {
            log::warn!("cannot choose '{}' in {} again: {}", self.former, self.list, cause_text(&cause));
        }
    }
}

fn by_systemd(machine: &impl Machine, sleep: Sleep) -> Result<(), Failure> {
    let names = names(sleep);
    if FirstProcess::of(machine.root()) != FirstProcess::Systemd {
        return Err("systemctl: systemd does not run".to_owned());
    }
    let systemctl = Tool::find_alone(machine.root(), "systemctl").ok_or("systemctl: not found")?;
    let target = format!("{}.target", names.systemctl);
    // The order itself may be taken all the same, and its failure be told to the journal alone.
    let show = ["show", "-p", "LoadState", &target, "sleep.target", names.unit];
    if let Ok(ended) = machine.run(&systemctl, &show, PATIENCE)
        && ended.output.lines().any(|line| line == "LoadState=masked")
    {
        return Err(format!("systemctl {}: {target}, sleep.target or {} is masked", names.systemctl, names.unit));
    }
    let (former, asleep_before) = (Unit::look(machine, &systemctl, names.unit), machine.time_asleep());
    run(machine, &systemctl, &[names.systemctl])?;
    // The order is taken; it may take a while until it is carried out, and only its unit tells how that went.
    let mut awaited = Duration::ZERO;
    let mut has_begun = false;
    loop {
        let unit = Unit::look(machine, &systemctl, names.unit);
        if unit.state == "failed" && unit != former {
            return Err(format!("systemctl {}: {} failed: {}", names.systemctl, names.unit, unit.result));
        }
        has_begun |= unit.state == "activating";
        let has_slept = machine.time_asleep() > asleep_before + BETWEEN_LOOKS;
        if unit.state != "activating" && (has_begun || has_slept) {
            return Ok(());
        }
        if awaited >= if has_begun { PATIENCE } else { BEGIN_PATIENCE } {
            log::warn!("systemd has taken the order '{}', but not told how it went", names.systemctl);
            return Ok(());
        }
        machine.wait(BETWEEN_LOOKS);
        awaited += BETWEEN_LOOKS;
    }
}

/// What systemd tells of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    state: String,
    result: String,
    begun: String,
}

impl Unit {
    fn look(machine: &impl Machine, systemctl: &Tool, unit: &str) -> Self {
        const ARGUMENTS: [&str; 7] =
            ["show", "-p", "ActiveState", "-p", "Result", "-p", "ExecMainStartTimestampMonotonic"];
        let arguments = [&ARGUMENTS[..], &[unit]].concat();
        let Ok(ended) = machine.run(systemctl, &arguments, PATIENCE) else { return Self::default() };
        let value = |name: &str| {
            let found = ended.output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_default().to_owned()
        };
        Self { state: value("ActiveState"), result: value("Result"), begun: value("ExecMainStartTimestampMonotonic") }
    }
}

fn by_pm_utils(machine: &impl Machine, sleep: Sleep) -> Result<(), Failure> {
    let names = names(sleep);
    let probe = Tool::find_alone(machine.root(), "pm-is-supported").ok_or("pm-is-supported: not found")?;
    let tool = Tool::find_alone(machine.root(), names.pm_tool).ok_or(format!("{}: not found", names.pm_tool))?;
    run(machine, &probe, &[names.pm_flag])?;
    run(machine, &tool, &[])
}

fn run(machine: &impl Machine, tool: &Tool, arguments: &[&str]) -> Result<(), Failure> {
    let words = [&[tool.to_string().as_str()], arguments].concat().join(" ");
    let ended = machine.run(tool, arguments, PATIENCE).map_err(|cause| format!("{words}: {}", cause_text(&cause)))?;
    ended.failure(PATIENCE).map_or(Ok(()), |why| Err(format!("{words}: {why}")))
}

fn by_kernel(machine: &impl Machine, sleep: Sleep) -> Result<(), Failure> {
    let root = machine.root();
    let _after_writing = if sleep == Sleep::Ram {
        None
    } else {
        if !has_swap_on_disk(root) {
            return Err(format!("{STATE}: there is no swap space on a disk"));
        }
        let kinds = root.read_text(DISK).unwrap_or_default();
        let (kinds, chosen) = choices(&kinds);
        if sleep == Sleep::Hybrid {
            if !kinds.contains(&"suspend") {
                return Err(format!("{DISK} does not offer 'suspend'"));
            }
            Choice::make(machine, DISK, "suspend")
        } else if chosen.is_some_and(|chosen| chosen != "platform") {
            // Somebody may have left a kind that does not turn the machine off.
            Choice::make(machine, DISK, if kinds.contains(&"platform") { "platform" } else { "shutdown" })
        } else {
            None
        }
    };
    let order = if sleep == Sleep::Ram { "mem" } else { "disk" };
    machine.order(STATE, order).map_err(|cause| format!("'{order}' to {STATE}: {}", cause_text(&cause)))
}

/// Whether the kernel has a disk to write memory to. Compressed memory is none.
fn has_swap_on_disk(root: &Root) -> bool {
    let swaps = root.read_text("/proc/swaps").unwrap_or_default();
    // The first line has the headings.
    swaps.lines().skip(1).any(|line| !line.starts_with("/dev/zram"))
}

#[cfg(test)]
#[path = "sleep_tests.rs"]
mod tests;
