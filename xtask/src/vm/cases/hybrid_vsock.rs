//! The command line over a vsock that a hypervisor offers as a unix socket. The hypervisors that do (Cloud Hypervisor,
//! Firecracker) need KVM; rust-vmm's `vhost-device-vsock` speaks the same beside QEMU, which needs none.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Case;
use super::command_line::{does_a_hosts_work, output, run};
use crate::vm::Skipped;
use crate::vm::guest::{Boot, Guest};
use crate::vm::machine::Hardware;
use crate::{build, packages};
use anyhow::{Context as _, Result, bail, ensure};

pub const CASES: &[Case] =
    &[Case { name: "command_line_reaches_both_agents_over_a_hypervisors_vsock_socket", run: over_the_socket }];

const PROGRAM: &str = "vhost-device-vsock";

/// The number that the guest's machine has.
const CID: u32 = 3;

const AGENTS: [(&str, &str, u32); 2] =
    [("ours", "/usr/sbin/qemu-ga", 1234), ("the original", "/opt/original/qemu-ga", 1235)];

/// What serves the machine's vsock device; ends with this value.
struct Device {
    process: Child,
    /// QEMU's end.
    control: PathBuf,
    /// The host's end.
    socket: PathBuf,
}

impl Device {
    fn start(folder: &Path) -> Result<Self> {
        let (control, socket) = (folder.join("control"), folder.join("vsock"));
        let process = Command::new(PROGRAM)
            .args(["--guest-cid", &CID.to_string(), "--socket"])
            .arg(&control)
            .arg("--uds-path")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start vhost-device-vsock")?;
        let mut device = Self { process, control, socket };
        while !device.control.exists() {
            if let Some(status) = device.process.try_wait()? {
                bail!("{PROGRAM} ended with {status}");
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(device)
    }

    fn target(&self, port: u32) -> PathBuf {
        format!("hybrid:{}:{port}", self.socket.display()).into()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // It ends with QEMU's connection.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The device's memory is the machine's: the other process must see it, which the shared guest is not made for.
fn hardware(device: &Device) -> Hardware {
    let mut hardware = Hardware { memory: "1024".into(), ..Hardware::default() };
    let chardev = format!("socket,id=vsock,path={}", device.control.display());
    hardware.arguments.extend(
        [
            "-object",
            "memory-backend-memfd,id=shared,size=1024M,share=on",
            "-machine",
            "memory-backend=shared",
            "-chardev",
            &chardev,
            "-device",
            "vhost-user-vsock-pci,chardev=vsock",
        ]
        .map(Into::into),
    );
    hardware
}

fn over_the_socket(_shared: &mut Guest) -> Result<()> {
    if !packages::is_installed(PROGRAM) {
        let reason = format!("{PROGRAM}, which plays the hypervisor, is not installed: cargo install {PROGRAM}");
        return Err(Skipped::because(&reason));
    }
    let folder = tempfile::tempdir()?;
    let device = Device::start(folder.path())?;
    let mut guest = Guest::boot(&Boot { our_agent: build::agent_binary()?, hardware: hardware(&device) })?;
    let host_name = guest.shell("hostname")?;
    for (name, program, port) in AGENTS {
        let target = device.target(port);
        let nobody = run(&target, &["ping"])?;
        let told = String::from_utf8_lossy(&nobody.stderr);
        ensure!(nobody.status.code() == Some(69) && told.contains("nobody listens on vsock port"), "{nobody:?}");
        guest.shell(&format!(
            "systemd-run --quiet --unit vsock-agent-{port} --property RuntimeDirectory=vsock-agent-{port} \
                 {program} -m vsock-listen -p {CID}:{port} -t /run/vsock-agent-{port} -f /run/vsock-agent-{port}/pid"
        ))?;
        guest.wait_until("the agent listens", |_| Ok(output(&target, &["ping"], 0).ok()))?;
        does_a_hosts_work(&target, &host_name, 2_000_000).with_context(|| name.to_owned())?;
        output(&target, &["doctor"], 0).with_context(|| name.to_owned())?;
    }
    Ok(())
}
