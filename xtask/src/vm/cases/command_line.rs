//! The command line `qga` with both agents over their ports, and with ours over vsock inside the guest.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use super::{Case, vsock};
use crate::build;
use crate::vm::guest::Guest;
use crate::vm::libvirt::Domain;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub const CASES: &[Case] = &[
    Case { name: "command_line_does_a_hosts_work_over_both_ports", run: both_ports },
    Case { name: "command_line_asks_several_guests_at_once", run: several },
    Case { name: "command_line_thaws_when_it_is_killed_while_the_guest_is_frozen", run: killed_while_frozen },
    Case { name: "command_line_is_thawed_when_its_command_fails", run: failing_command },
    Case { name: "command_line_inside_the_guest_reaches_a_vsock_and_finds_the_port", run: inside },
];

/// The domain that libvirt runs, reached through libvirt's own client.
pub fn through_libvirt(domain: &mut Domain) -> Result<()> {
    let target = format!("libvirt+{}:{}", domain.uri(), crate::vm::libvirt::DOMAIN);
    let target = Path::new(&target);
    let info: Value = serde_json::from_str(&output(target, &["--json", "info"], 0)?)?;
    ensure!(info["host-name"] == domain.virsh("domhostname", &["--source", "agent"])?.as_str(), "{info}");
    ensure!(output(target, &["exec", "--", "sh", "-c", "echo through libvirt; exit 3"], 3)? == "through libvirt\n");
    let pattern = format!("libvirt+{}:*", domain.uri());
    ensure!(output(Path::new(&pattern), &["exec", "echo", "found"], 0)?.ends_with("| found\n"), "no domain was found");

    let folder = tempfile::tempdir()?;
    let (here, back) = (folder.path().join("here"), folder.path().join("back"));
    let noise = noise(200_000);
    std::fs::write(&here, &noise)?;
    output(target, &["cp", "--checksum", &here.display().to_string(), ":/var/tmp/noise"], 0)?;
    output(target, &["cp", "--checksum", ":/var/tmp/noise", &back.display().to_string()], 0)?;
    ensure!(std::fs::read(&back)? == noise, "what came back differs");

    let status = |expected: &str| -> Result<()> {
        let status = output(target, &["freeze", "--status"], 0)?;
        ensure!(status.trim() == expected, "it is {status}");
        Ok(())
    };
    let mut child = qga(target, &["freeze", "--run", "sh", "-c", "echo frozen; exec sleep 300"])?
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qga")?;
    let mut word = [0; 6];
    child.stdout.as_mut().context("no output")?.read_exact(&mut word).context("qga did not freeze")?;
    status("frozen")?;
    child.kill().context("cannot kill qga")?;
    child.wait().context("cannot wait for qga")?;
    domain.wait_until("it is thawed", |_| Ok(status("thawed").ok()))?;

    let missing = format!("libvirt+{}:no-such-domain", domain.uri());
    output(Path::new(&missing), &["ping"], 66)?;
    output(Path::new(&missing), &["doctor"], 66).map(drop)
}

/// A file system that a case may freeze while the rest of the guest goes on.
const MAKE: &str = "mkdir -p /mnt/qga && truncate -s 64M /var/tmp/qga.img && mkfs.ext4 -q -F /var/tmp/qga.img && \
                    mount -o loop /var/tmp/qga.img /mnt/qga";
const CLEAN_UP: &str = "fsfreeze -u /mnt/qga 2> /dev/null; umount -l /mnt/qga; rm -rf /var/tmp/qga.img /mnt/qga";

/// The command line's program.
pub(super) fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<std::path::PathBuf, String>> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| build::command_line_binary().map_err(|error| format!("{error:#}")));
    program.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// A run of it for a target.
pub(super) fn qga(target: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program()?);
    command.arg("-t").arg(target).args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// How a run ended.
pub(super) fn run(target: &Path, arguments: &[&str]) -> Result<Output> {
    qga(target, arguments)?.output().context("cannot start qga")
}

/// The output of a run that must end with this code.
pub(super) fn output(target: &Path, arguments: &[&str], code: i32) -> Result<String> {
    let output = run(target, arguments)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(code),
        "qga {} ended with {}: {stdout}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

/// Bytes that no compression and no shift by a few of them leaves alike.
fn noise(count: usize) -> Vec<u8> {
    (0..count.div_ceil(4))
        .flat_map(|number| (number as u32).wrapping_mul(2_654_435_761).to_le_bytes())
        .take(count)
        .collect()
}

/// What a host wants of any way to an agent: that it answers, says which guest it is, runs programs, and takes and gives
/// files.
pub(super) fn does_a_hosts_work(target: &Path, host_name: &str, file_bytes: usize) -> Result<()> {
    ensure!(output(target, &["ping"], 0)?.contains("answers"), "no answer");
    let info: Value = serde_json::from_str(&output(target, &["--json", "info"], 0)?)?;
    ensure!(info["host-name"] == host_name, "{info}");
    let said = output(target, &["exec", "--", "sh", "-c", "echo from the guest; exit 3"], 3)?;
    ensure!(said == "from the guest\n", "{said:?}");

    let folder = tempfile::tempdir()?;
    let (here, back) = (folder.path().join("here"), folder.path().join("back"));
    let content = noise(file_bytes);
    std::fs::write(&here, &content)?;
    output(target, &["cp", "--checksum", &here.display().to_string(), ":/var/tmp/qga-noise"], 0)?;
    output(target, &["cp", "--checksum", ":/var/tmp/qga-noise", &back.display().to_string()], 0)?;
    ensure!(std::fs::read(&back)? == content, "what came back differs");
    output(target, &["exec", "rm", "/var/tmp/qga-noise"], 0).map(drop)
}

fn both_ports(guest: &mut Guest) -> Result<()> {
    let host_name = guest.shell("hostname")?;
    for (name, port) in [("ours", guest.our_agent()), ("the original", guest.original_agent())] {
        let act = || name.to_owned();
        does_a_hosts_work(&port, &host_name, 2_000_000).with_context(act)?;
        output(&port, &["exec", "--time-limit", "2", "sleep", "100"], 124).with_context(act)?;
        output(&port, &["doctor"], 0).with_context(act)?;
        for question in ["fs", "disks", "ip", "users", "time", "cpus", "memory", "metrics"] {
            ensure!(!output(&port, &["--json", question], 0).with_context(act)?.is_empty(), "{name}: {question}");
        }
    }
    Ok(())
}

fn several(guest: &mut Guest) -> Result<()> {
    let both = format!("{},{}", guest.our_agent().display(), guest.original_agent().display());
    let said = output(Path::new(&both), &["--json", "exec", "hostname"], 0)?;
    let lines: Vec<Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let host_name = format!("{}\n", guest.shell("hostname")?);
    ensure!(lines.len() == 2 && lines.iter().all(|line| line["result"]["stdout"] == host_name.as_str()), "{said}");
    Ok(())
}

/// Runs something with a file system to freeze.
fn with_file_system(guest: &mut Guest, run: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    guest.shell(MAKE)?;
    let outcome = run(guest);
    let cleaned = guest.shell(CLEAN_UP);
    outcome.and(cleaned.map(drop))
}

fn killed_while_frozen(guest: &mut Guest) -> Result<()> {
    with_file_system(guest, |guest| {
        for (name, port) in [("ours", guest.our_agent()), ("the original", guest.original_agent())] {
            let mark = "echo frozen; exec sleep 300";
            let mut child = qga(&port, &["freeze", "--mount", "/mnt/qga", "--run", "sh", "-c", mark])?
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start qga")?;
            let mut word = [0; 6];
            child.stdout.as_mut().context("no output")?.read_exact(&mut word).context("qga did not freeze")?;
            let was_held = !guest.takes_writes("/mnt/qga")?;
            child.kill().context("cannot kill qga")?;
            child.wait().context("cannot wait for qga")?;
            let killed = Instant::now();
            guest.wait_until(&format!("{name}: it is thawed"), |guest| {
                Ok(guest.takes_writes("/mnt/qga")?.then_some(()))
            })?;
            ensure!(was_held, "{name}: the guest was not frozen");
            ensure!(output(&port, &["freeze", "--status"], 0)? == "thawed\n", "{name}: the agent thinks it is frozen");
            guest.note(format!("{name}: thawed within {:.1} s", killed.elapsed().as_secs_f64()));
        }
        Ok(())
    })
}

fn failing_command(guest: &mut Guest) -> Result<()> {
    with_file_system(guest, |guest| {
        for port in [guest.our_agent(), guest.original_agent()] {
            output(&port, &["freeze", "--mount", "/mnt/qga", "--run", "exit 7; true"], 7)?;
            ensure!(guest.takes_writes("/mnt/qga")?, "{} holds the freeze", port.display());
        }
        Ok(())
    })
}

fn inside(guest: &mut Guest) -> Result<()> {
    // Without what only a debugger wants it is a tenth as long, and the way is slow.
    let folder = tempfile::tempdir()?;
    let small = folder.path().join("qga");
    std::fs::copy(program()?, &small)?;
    let stripped = Command::new("strip").arg(&small).status();
    ensure!(stripped.is_ok_and(|status| status.success()), "cannot strip qga");
    output(&guest.our_agent(), &["cp", &small.display().to_string(), ":/run/qga"], 0)?;
    let outcome = look_from_inside(guest);
    let cleaned = guest.shell("rm -f /run/qga");
    outcome.and(cleaned.map(drop))
}

fn look_from_inside(guest: &mut Guest) -> Result<()> {
    let diagnosis = guest.shell("/run/qga doctor --inside")?;
    ensure!(diagnosis.contains("the agent holds it"), "{diagnosis}");
    vsock::start_agent(guest)?;
    let said = guest.shell(
        "set -e
         timeout 600 sh -c 'until /run/qga -t vsock:1 ping; do sleep 0.2; done'
         head -c 300000 /dev/urandom > /run/noise
         /run/qga -t vsock:1 cp --checksum /run/noise :/run/there
         /run/qga -t vsock:1 cp --checksum :/run/there /run/back
         cmp /run/noise /run/back; rm /run/noise /run/there /run/back
         /run/qga -t vsock:1:1234 exec echo over vsock",
    );
    vsock::stop_agent(guest)?;
    ensure!(said?.ends_with("over vsock"), "nothing came over vsock");
    for (target, code, says) in [
        ("vsock:1:4321", 69, "nobody listens on vsock port 4321 in the guest"),
        ("vsock:77", 66, "no machine has the number 77"),
    ] {
        let result = guest.shell_result(&format!("/run/qga -t {target} ping"))?;
        let is_told = result.status == code && result.stderr.contains(says);
        ensure!(is_told, "{target}: status {}: {}", result.status, result.stderr);
    }
    Ok(())
}
