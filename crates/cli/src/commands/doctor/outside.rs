//! The way from the host to an agent, step by step.

use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use qga_client::{Agent, AnyAgent, ConnectOptions, Target, Timeouts};
use qga_protocol::fsfreeze::{FreezeStatus, Status};
use qga_protocol::session::{AgentInfo, Ping};

use super::Diagnosis;
use crate::commands::info;
use crate::exit_code::Code;
use crate::failure::Result;
use crate::general_options::General;
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
    if let Err(failure) = look_at_all(target, patience, general, &mut diagnosis) {
        diagnosis.failed(&failure);
    }
    diagnosis
}

fn look_at_all(target: &Target, patience: Duration, general: &General, diagnosis: &mut Diagnosis) -> Result<()> {
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
    let timeouts = Timeouts { connect: patience, silence: patience };
    let transport = target.connect(ConnectOptions { timeouts, ..general.connection() })?;
    match target {
        // Nothing has been connected to yet: each question is a run of virsh.
        Target::Libvirt { uri, domain } => look_at_libvirt(uri.as_deref(), domain, diagnosis)?,
        Target::Serial(_) => diagnosis.good(format!("{target} can be opened")),
        _ => diagnosis.good(format!("{target} can be connected to")),
    }
    let mut agent: AnyAgent = Agent::over(transport);
    agent.set_deadline(Some(Instant::now() + patience));
    agent.sync()?;
    let started = Instant::now();
    agent.call(&Ping {})?;
    diagnosis.good(format!("an agent answers, in {:.2} ms", started.elapsed().as_secs_f64() * 1000.0));

    // From here on every answer has a time of its own.
    agent.set_deadline(Some(Instant::now() + patience));
    // While it is frozen nearly all commands are refused, which has nothing to do with the lists.
    let status = optional(agent.call(&Status {}))?;
    if status != Some(FreezeStatus::Frozen) {
        agent.set_deadline(Some(Instant::now() + patience));
        if let Some(about) = optional(agent.info().cloned())? {
            look_at_commands(&about, diagnosis);
        } else {
            diagnosis.remark("the agent does not tell its commands", "Its block list forbids even guest-info.");
        }
    }
    match status {
        Some(FreezeStatus::Frozen) => {
            let advice = format!("A backup may be under way; if none is: qga -t {target} thaw");
            diagnosis.bad("the guest's file systems are frozen", advice, Code::Refused.number());
            return Ok(());
        }
        Some(FreezeStatus::Thawed) => diagnosis.good("its file systems are not frozen"),
        None => diagnosis.remark("it does not tell whether its file systems are frozen", ""),
    }
    agent.set_deadline(Some(Instant::now() + patience));
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

/// Asks libvirt itself, so that it can be told from the agent.
fn look_at_libvirt(uri: Option<&str>, domain: &str, diagnosis: &mut Diagnosis) -> Result<()> {
    let running = qga_client::search_libvirt(uri)?;
    diagnosis.good(format!("libvirt answers; {} of its domains run", running.len()));
    let is_this =
        |found: &qga_client::Found| matches!(&found.target, Target::Libvirt { domain: name, .. } if name == domain);
    // One that is named by its number or UUID is not in the list, and one that does not run is told of by the next step.
    if running.iter().any(is_this) {
        diagnosis.good(format!("the domain {domain} runs"));
    }
    Ok(())
}

fn look_at_commands(about: &AgentInfo, diagnosis: &mut Diagnosis) {
    if about.supported_commands.is_empty() {
        diagnosis.remark(format!("it is version {}, and does not tell its commands", about.version), "");
        return;
    }
    diagnosis.good(format!("it is version {}, with {} commands", about.version, about.supported_commands.len()));
    let mut is_complete = true;
    for (name, purpose) in NEEDED {
        let known = about.supported_commands.iter().find(|command| command.name == name);
        let problem = match known {
            Some(command) if command.enabled => continue,
            Some(_) => ("is disabled", "The agent's configuration in the guest (block-rpcs, allow-rpcs) says so."),
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
            trust_socket: false,
            yes: false,
            timeout: Duration::from_millis(300),
            jobs: 1,
            color: crate::general_options::Colour::Never,
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
