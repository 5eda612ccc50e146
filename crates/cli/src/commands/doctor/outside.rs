//! The way from the host to an agent, step by step.

use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use qga_client::{Agent, AnyAgent, Target, Timeouts};
use qga_protocol::fsfreeze::{FreezeStatus, Status};
use qga_protocol::session::{AgentInfo, Ping};

use super::Diagnosis;
use crate::arguments::General;
use crate::commands::info;
use crate::exit_code::Code;
use crate::failure::Result;
use crate::output::units;
use crate::visit::optional;

/// How long an agent may take that is well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Commands that other commands of this program stand on, and for what.
const NEEDED: [(&str, &str); 5] = [
    ("guest-exec", "exec, shell, ls, cp of directories"),
    ("guest-file-open", "cp, cat, live output of exec"),
    ("guest-fsfreeze-freeze", "consistent snapshots"),
    ("guest-get-fsinfo", "fs, info"),
    ("guest-network-get-interfaces", "ip, info"),
];

pub fn look(target: &Target, general: &General) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let patience = PATIENCE.min(general.timeout);
    if let Err(failure) = look_at_all(target, patience, &mut diagnosis) {
        diagnosis.failed(&failure);
    }
    diagnosis
}

fn look_at_all(target: &Target, patience: Duration, diagnosis: &mut Diagnosis) -> Result<()> {
    if let Target::Unix(path) = target
        && let Ok(metadata) = path.metadata()
        && !metadata.file_type().is_socket()
    {
        diagnosis.bad(
            format!("{target} is no socket"),
            "Name the socket of the machine's port org.qemu.guest_agent.0.",
            Code::Usage.number(),
        );
        return Ok(());
    }
    let transport = target.connect(Timeouts { connect: patience, silence: patience })?;
    diagnosis.good(format!("{target} can be connected to"));
    let mut agent: AnyAgent = Agent::over(transport);
    agent.sync()?;
    let started = Instant::now();
    agent.call(&Ping {})?;
    diagnosis.good(format!("an agent answers, in {:.2} ms", started.elapsed().as_secs_f64() * 1000.0));

    if let Some(about) = optional(agent.info().cloned())? {
        look_at_commands(&about, diagnosis);
    } else {
        diagnosis.remark("the agent does not tell its commands", "Its block list forbids even guest-info.");
    }
    match optional(agent.call(&Status {}))? {
        Some(FreezeStatus::Frozen) => {
            let advice = format!("A backup may be under way; if none is: qga -t {target} thaw");
            diagnosis.bad("the guest's file systems are frozen", advice, Code::Refused.number());
            return Ok(());
        }
        Some(FreezeStatus::Thawed) => diagnosis.good("its file systems are not frozen"),
        None => diagnosis.remark("it does not tell whether its file systems are frozen", ""),
    }
    look_at_clock(&mut agent, target, diagnosis)?;
    if let Some(clients) = target.clients().filter(|&clients| clients > 1) {
        let others = clients - 1;
        diagnosis.remark(
            format!("{others} other clients are connected to the same socket"),
            "Where a hypervisor made the socket it serves one at a time; the others wait.",
        );
    }
    Ok(())
}

fn look_at_commands(about: &AgentInfo, diagnosis: &mut Diagnosis) {
    diagnosis.good(format!("it is version {}, with {} commands", about.version, about.supported_commands.len()));
    let mut is_complete = true;
    for (name, purpose) in NEEDED {
        let known = about.supported_commands.iter().find(|command| command.name == name);
        let problem = match known {
            Some(command) if command.enabled => continue,
            Some(_) => ("is disabled", "The agent's configuration in the guest (block-rpcs, allow-rpcs) says so."),
            None if about.supported_commands.is_empty() => continue,
            None => ("is missing", "The agent is too old for it, or its system does not have it."),
        };
        is_complete = false;
        diagnosis.remark(format!("{name} {}, which is needed for: {purpose}", problem.0), problem.1);
    }
    if is_complete {
        diagnosis.good("it has what the commands here need");
    }
}

fn look_at_clock(agent: &mut AnyAgent, target: &Target, diagnosis: &mut Diagnosis) -> Result<()> {
    const TOLERANCE_SECONDS: f64 = 2.0;
    let Some(clock) = optional(info::clock(agent))? else { return Ok(()) };
    let ahead = clock.ahead_seconds;
    if ahead.abs() <= TOLERANCE_SECONDS {
        diagnosis.good("its clock is right");
        return Ok(());
    }
    let side = if ahead > 0.0 { "ahead" } else { "behind" };
    diagnosis.remark(
        format!("its clock is {} {side}", units::span(ahead.abs() as u64)),
        format!("Start a time service in the guest, or set it: qga -t {target} time --sync"),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn diagnose(target: &str) -> Diagnosis {
        let general = General {
            targets: Vec::new(),
            all: false,
            json: false,
            yes: false,
            timeout: Duration::from_millis(300),
            jobs: 1,
            color: crate::arguments::Colour::Never,
        };
        look(&target.parse().unwrap(), &general)
    }

    #[test]
    fn a_port_without_an_agent_is_told_from_no_port() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let check = |target: &str, code| {
            let diagnosis = diagnose(target);
            assert_eq!(diagnosis.exit_code, code, "{diagnosis:?}");
            assert_eq!(diagnosis.checks.last().unwrap().verdict, Verdict::Bad);
        };
        check(&path("none"), 66);
        std::fs::write(path("file"), "").unwrap();
        check(&path("file"), 64);
        drop(std::os::unix::net::UnixListener::bind(path("left")).unwrap());
        check(&path("left"), 69);
        let _silent = std::os::unix::net::UnixListener::bind(path("silent")).unwrap();
        check(&path("silent"), 75);
    }
}
