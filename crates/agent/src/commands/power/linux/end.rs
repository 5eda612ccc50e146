//! Powering down, halting, rebooting: by whichever program the system has for it, by a signal to its first process, at
//! last by the kernel alone.

use std::fmt;
use std::time::Duration;

use super::super::target_state::End;
use super::first_process::{FirstProcess, tell};
use super::machine::{Failure, Machine};
use crate::process::child::Exit;
use crate::process::system_tool::Tool;
use crate::system::error::{Error, cause_text};
use crate::system::root::Root;

/// How long a program may take. It orders the end and does not wait for it; where the service manager does not answer,
/// it waits half a minute for that.
const PATIENCE: Duration = Duration::from_secs(60);
/// A program that was ended by somebody may be the first thing that the end of the machine has ended, and the agent the
/// next: a harsher way must wait for that.
const LAST_WAIT: Duration = Duration::from_secs(30);
/// What users who are logged in read.
const MESSAGE: &str = "hypervisor initiated shutdown";

/// Something that may end the machine.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// A program and its arguments.
    Tool(Tool, Vec<&'static str>),
    /// A signal to the first process.
    Signal(i32),
    /// reboot(2).
    Kernel,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tool(tool, arguments) => {
                write!(f, "{tool}")?;
                arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
            }
            Self::Signal(number) => write!(f, "signal {number} to the first process"),
            Self::Kernel => f.write_str("reboot(2)"),
        }
    }
}

/// The ways that a machine has, in the order in which they are tried; or why it has not.
fn ways(root: &Root, end: End) -> Vec<Result<Way, Failure>> {
    let (flags, name): (&[&str], _) = match end {
        End::PowerDown => (&["-h", "-P", "+0", MESSAGE], "poweroff"),
        End::Halt => (&["-h", "-H", "+0", MESSAGE], "halt"),
        End::Reboot => (&["-r", "+0", MESSAGE], "reboot"),
    };
    let first_process = FirstProcess::of(root);
    let missing = |name: &str| format!("{name}: not found");
    let shutdown = Tool::find_alone(root, "shutdown").map(|tool| Way::Tool(tool, flags.to_vec()));
    let systemctl = if first_process == FirstProcess::Systemd {
        Tool::find_alone(root, "systemctl").map(|tool| Way::Tool(tool, vec![name])).ok_or(missing("systemctl"))
    } else {
        Err("systemctl: systemd does not run".to_owned())
    };
    let alone = Tool::find_alone(root, name).map(|tool| Way::Tool(tool, Vec::new()));
    // To another first process it would send signals that mean something else there, and call that a success.
    let busybox = if first_process == FirstProcess::Busybox {
        Tool::of_busybox(root, name).map(|tool| Way::Tool(tool, Vec::new())).ok_or(missing("busybox"))
    } else {
        Err(format!("busybox {name}: its init does not run"))
    };
    let signal = first_process.signal(end).map(Way::Signal);
    vec![
        shutdown.ok_or(missing("shutdown")),
        systemctl,
        alone.ok_or(missing(name)),
        busybox,
        signal.ok_or("a signal to the first process: it is none that is known".to_owned()),
        Ok(Way::Kernel),
    ]
}

/// Ends the machine. After a success it is about to go down, and the agent with it.
pub fn end(machine: &impl Machine, end: End) -> Result<(), Error> {
    let mut failures = Vec::new();
    for way in ways(machine.root(), end) {
        let outcome = way.and_then(|way| take(machine, &way, end).map_err(|why| format!("{way}: {why}")));
        match outcome {
            Ok(()) => return Ok(()),
            Err(failure) => failures.push(failure),
        }
        let failure = &failures[failures.len() - 1];
        log::warn!("{failure}");
        // Somebody wants the machine to go on: that is no fault of the way, and no reason to take a harder one.
        if failure.contains("inhibit") {
            break;
        }
    }
    let act = match end {
        End::PowerDown => "power down",
        End::Halt => "halt",
        End::Reboot => "reboot",
    };
    Err(Error::new(format!("failed to {act}: {}", failures.join("; "))))
}

fn take(machine: &impl Machine, way: &Way, end: End) -> Result<(), Failure> {
    match way {
        Way::Tool(tool, arguments) => {
            let ended = machine.run(tool, arguments, PATIENCE).map_err(|cause| cause_text(&cause))?;
            if matches!(ended.exit, Some(Exit::Signal(_))) {
                machine.wait(LAST_WAIT);
            }
            ended.failure(PATIENCE).map_or(Ok(()), Err)
        }
        Way::Signal(number) => tell(machine, *number),
        Way::Kernel => Err(cause_text(&machine.end_by_kernel(end))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::target_state::End;
    use super::super::staged::Staged;
    use super::{end, ways};
    use std::os::unix::fs::symlink;

    /// A machine with empty files at these paths.
    fn with(paths: &[&str], answers: &[(&'static str, i32, &'static str)]) -> Staged {
        let staged = Staged::new(answers);
        for path in paths {
            staged.put(path, "");
        }
        staged
    }

    fn told(staged: &Staged, how: End) -> Vec<String> {
        ways(&staged.root, how).iter().filter_map(|way| way.as_ref().ok()).map(ToString::to_string).collect()
    }

    const SYSTEMD: &[&str] = &[
        "/run/systemd/system/x",
        "/usr/sbin/shutdown",
        "/usr/bin/systemctl",
        "/usr/sbin/poweroff",
        "/usr/sbin/halt",
        "/usr/sbin/reboot",
        "/bin/busybox",
    ];

    #[test]
    fn a_machine_with_systemd_has_its_programs_its_signals_and_the_kernel() {
        let staged = with(SYSTEMD, &[]);
        let message = "+0 hypervisor initiated shutdown";
        let check = |how, flags: &str, name: &str, signal: i32| {
            let expected = [
                format!("shutdown {flags} {message}"),
                format!("systemctl {name}"),
                name.to_owned(),
                format!("signal {signal} to the first process"),
                "reboot(2)".to_owned(),
            ];
            assert_eq!(told(&staged, how), expected);
        };
        check(End::PowerDown, "-h -P", "poweroff", 38);
        check(End::Halt, "-h -H", "halt", 37);
        check(End::Reboot, "-r", "reboot", 39);
    }

    #[test]
    fn a_machine_with_busybox_uses_it() {
        let staged = with(&["/bin/busybox", "/usr/bin/systemctl", "/proc/1/comm"], &[]);
        symlink("/bin/busybox", staged.root.path("/proc/1/exe")).unwrap();
        let expected = ["busybox reboot", "signal 15 to the first process", "reboot(2)"];
        assert_eq!(told(&staged, End::Reboot), expected);
        assert_eq!(told(&staged, End::Halt)[1], "signal 10 to the first process");
        assert_eq!(told(&staged, End::PowerDown)[1], "signal 12 to the first process");
    }

    #[test]
    fn the_first_way_that_works_is_the_last_that_is_tried() {
        let staged = with(SYSTEMD, &[]);
        end(&staged, End::Reboot).unwrap();
        assert_eq!(staged.done(), ["shutdown -r +0 hypervisor initiated shutdown"]);

        let staged = with(SYSTEMD, &[("shutdown", 1, "no"), ("systemctl", 4, "")]);
        end(&staged, End::PowerDown).unwrap();
        let expected = ["shutdown -h -P +0 hypervisor initiated shutdown", "systemctl poweroff", "poweroff "];
        assert_eq!(staged.done(), expected);
    }

    #[test]
    fn without_any_program_the_first_process_is_told_and_the_kernel_is_left_alone() {
        let staged = with(&["/run/systemd/system/x"], &[]);
        end(&staged, End::Halt).unwrap();
        assert_eq!(staged.done(), ["signal 37"]);
    }

    #[test]
    fn what_somebody_inhibits_is_not_done_in_a_harder_way() {
        let staged = with(SYSTEMD, &[("shutdown", 1, "Operation inhibited by \"updater\" (PID 12)")]);
        let error = end(&staged, End::PowerDown).unwrap_err();
        assert!(error.desc.ends_with("exit status 1: Operation inhibited by \"updater\" (PID 12)"), "{error:?}");
        assert_eq!(staged.done().len(), 1);
    }

    #[test]
    fn when_nothing_works_the_error_tells_every_way() {
        let staged = with(&["/sbin/shutdown"], &[("shutdown", 1, "shutdown:\nyou must be root")]);
        let error = end(&staged, End::PowerDown).unwrap_err();
        assert_eq!(
            error.desc,
            "failed to power down: shutdown -h -P +0 hypervisor initiated shutdown: exit status 1: shutdown:, you must \
             be root; systemctl: systemd does not run; poweroff: not found; busybox poweroff: its init does not run; a \
             signal to the first process: it is none that is known; reboot(2): Operation not permitted"
        );
        assert_eq!(staged.done().last().unwrap(), "PowerDown by the kernel");
    }
}
