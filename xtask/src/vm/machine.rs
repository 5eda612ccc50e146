//! The QEMU process and its monitor.

use super::conversation::Conversation;
use super::image::Image;
use super::{pace, progress};
use crate::packages;
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running virtual machine: ends with this value.
pub struct Machine {
    process: Child,
    monitor: Conversation,
    /// Events that arrived while a reply was awaited.
    events: VecDeque<Value>,
}

/// The machine's hardware beyond what every guest has.
pub struct Hardware {
    /// As for QEMU's `-smp`.
    pub cpus: String,
    /// As for QEMU's `-m`.
    pub memory: String,
    /// Added to QEMU's command line.
    pub arguments: Vec<String>,
    /// Added to the kernel's command line.
    pub kernel_options: String,
}

impl Default for Hardware {
    fn default() -> Self {
        // Room for a processor, memory and devices that a case plugs in.
        Self {
            cpus: "2,maxcpus=4".into(),
            memory: "1024,slots=4,maxmem=4G".into(),
            // Disks of a kind that cannot be plugged in later; without a file behind them they take no room.
            arguments: [
                "-blockdev",
                "null-co,node-name=sata-disk,size=67108864,read-zeroes=on",
                "-device",
                "ich9-ahci,id=sata",
                "-device",
                "ide-hd,bus=sata.0,drive=sata-disk,serial=AHCI0",
                "-device",
                "ide-cd,bus=sata.2",
                "-blockdev",
                "null-co,node-name=sd-disk,size=67108864,read-zeroes=on",
                "-device",
                "sdhci-pci",
                "-device",
                "sd-card,drive=sd-disk",
                // The disks that cases plug in hang there.
                "-device",
                "virtio-scsi-pci,id=plugs",
            ]
            .map(Into::into)
            .into(),
            kernel_options: String::new(),
        }
    }
}

/// What a machine begins with.
pub enum Origin<'a> {
    /// The image, which it boots.
    Image,
    /// The state of another machine with the same hardware, which it goes on from.
    Snapshot(&'a Saved),
}

/// The state of a machine in two files.
pub struct Saved {
    /// Its root disk, on top of the image.
    pub disk: PathBuf,
    /// Its memory and its devices.
    pub memory: PathBuf,
}

/// The file of a machine's root disk, in its folder.
pub const ROOT_DISK: &str = "root.qcow2";

impl Machine {
    /// Starts QEMU; `folder` gets the disk overlay and all sockets, `folder/share` is seen by the guest.
    pub fn start(image: &Image, origin: &Origin<'_>, hardware: &Hardware, folder: &Path) -> Result<Self> {
        let at = |name: &str| folder.join(name).display().to_string();
        let overlay = at(ROOT_DISK);
        let (format, base) = match origin {
            Origin::Image => ("raw", image.root_disk()),
            Origin::Snapshot(saved) => ("qcow2", saved.disk.clone()),
        };
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(&base).arg(&overlay);
        progress::output(&mut create)?;

        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([option.into(), value.into()]);
        // There is no KVM where these tests run, and the same timing everywhere is worth more than speed.
        add("-accel", "tcg,thread=multi".into());
        add("-machine", "q35,sata=off".into());
        add("-cpu", "max".into());
        add("-smp", hardware.cpus.clone());
        add("-m", hardware.memory.clone());
        add("-display", "none".into());
        add("-kernel", image.kernel().display().to_string());
        add("-initrd", image.initrd().display().to_string());
        add("-append", format!("{KERNEL_OPTIONS} {}", hardware.kernel_options));
        add("-qmp", format!("unix:{},server=on,wait=off", at("qmp")));
        // First serial port: the console, a socket with a record of everything. Second: an agent's.
        add("-chardev", format!("{},logfile={}", socket("console", folder), at("console.log")));
        add("-serial", "chardev:console".into());
        add("-chardev", socket("serial", folder));
        add("-serial", "chardev:serial".into());
        add("-drive", format!("file={overlay},if=none,id=root,discard=unmap"));
        add("-device", "virtio-blk-pci,drive=root".into());
        for number in 1..=HOTPLUG_SLOTS {
            add("-device", format!("pcie-root-port,id=slot{number},chassis={number}"));
        }
        add("-netdev", "user,id=net,restrict=on".into());
        add("-device", "virtio-net-pci,netdev=net".into());
        add("-virtfs", format!("local,path={},mount_tag=host,security_model=none,readonly=on", at("share")));
        add("-device", "virtio-serial-pci,id=ports,max_ports=8".into());
        for (number, (id, name)) in [OUR_PORT, ORIGINAL_PORT, CONTROL_PORT].into_iter().enumerate() {
            add("-chardev", socket(id, folder));
            // Number 0 is for consoles.
            add("-device", format!("virtserialport,bus=ports.0,nr={},id={id},chardev={id},name={name}", number + 1));
        }

        if let Origin::Snapshot(saved) = origin {
            add("-incoming", format!("exec:cat '{}'", saved.memory.display()));
        }

        let errors = folder.join("qemu.log");
        let mut process = ends_with_us("qemu-system-x86_64")
            .arg("-nodefaults")
            .args(arguments)
            .args(&hardware.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let started = Self::open_monitor(&mut process, folder).map_err(|error| (error, &mut process));
        let monitor = match started {
            Ok(monitor) => monitor,
            Err((error, process)) => {
                // It may have ended already.
                let _ = process.kill();
                let _ = process.wait();
                return Err(error.context(format!("QEMU does not start: {}", progress::tail(&errors, 5))));
            }
        };
        let mut machine = Self { process, monitor, events: VecDeque::new() };
        if let Origin::Snapshot(_) = origin {
            let goes_on = machine.go_on();
            goes_on.with_context(|| format!("QEMU does not take the snapshot: {}", progress::tail(&errors, 5)))?;
        }
        Ok(machine)
    }

    /// Stops the machine and writes its memory and its devices to a file.
    pub fn save(&mut self, memory: &Path) -> Result<()> {
        self.qmp("stop", &json!({}))?;
        self.qmp("migrate-set-parameters", &json!({"max-bandwidth": 10_u64 << 30}))?;
        self.qmp("migrate", &json!({"uri": format!("exec:cat > '{}'", memory.display())}))?;
        self.wait_for_status("query-migrate", |status| match status {
            "completed" => Ok(true),
            "failed" | "cancelled" => Err(()),
            _ => Ok(false),
        })
    }

    /// Lets a machine run that was started from a snapshot, as soon as all of it is there.
    fn go_on(&mut self) -> Result<()> {
        self.wait_for_status("query-status", |status| Ok(status != "inmigrate"))?;
        self.qmp("cont", &json!({})).map(drop)
    }

    fn wait_for_status(&mut self, command: &str, is_over: impl Fn(&str) -> Result<bool, ()>) -> Result<()> {
        let deadline = Instant::now() + pace::BOOT_PATIENCE;
        loop {
            let reply = self.qmp(command, &json!({}))?;
            match is_over(reply["status"].as_str().unwrap_or_default()) {
                Ok(true) => return Ok(()),
                Err(()) => bail!("{reply}"),
                Ok(false) if Instant::now() > deadline => bail!("it does not end: {reply}"),
                Ok(false) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn open_monitor(process: &mut Child, folder: &Path) -> Result<Conversation> {
        let path = folder.join("qmp");
        while !path.exists() {
            if let Some(status) = process.try_wait()? {
                bail!("it ended with {status}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut monitor = Conversation::open(&path)?;
        monitor.line().context("no greeting from the monitor")?;
        monitor.ask(&json!({"execute": "qmp_capabilities"}))?;
        Ok(monitor)
    }

    /// Runs a command of QEMU's monitor.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.monitor.send_request(&json!({"execute": command, "arguments": arguments}))?;
        loop {
            let mut reply = self.monitor.reply()?;
            if reply.get("event").is_some() {
                self.events.push_back(reply);
            } else if let Some(result) = reply.get_mut("return") {
                return Ok(result.take());
            } else {
                bail!("QEMU refuses {command}: {reply}");
            }
        }
    }

    /// Forgets all events so far, so that the next one waited for is a new one.
    pub fn forget_events(&mut self) -> Result<()> {
        self.events.clear();
        while self.monitor.line_within(Duration::from_millis(50))?.is_some() {}
        Ok(())
    }

    /// Waits for an event of the monitor; other events until then are forgotten.
    pub fn wait_for_event(&mut self, name: &str, limit: Duration) -> Result<Value> {
        self.wait_for_event_of(name, &json!({}), limit)
    }

    /// Like [`Machine::wait_for_event`], for an event whose data has these members.
    pub fn wait_for_event_of(&mut self, name: &str, data: &Value, limit: Duration) -> Result<Value> {
        let is_meant = |event: &Value| {
            let mut members = data.as_object().into_iter().flatten();
            event["event"] == name && members.all(|(member, value)| event["data"][member] == *value)
        };
        let deadline = Instant::now() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                if is_meant(&event) {
                    return Ok(event);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.monitor.line_within(left)? {
                Some(line) => self.events.push_back(serde_json::from_slice(&line)?),
                None => bail!("no event {name} {data} within {} s", limit.as_secs()),
            }
        }
    }

    /// Whether the guest has switched itself off.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What every guest's kernel is told. To compress the memory of a guest that sleeps on its disk takes an emulated processor
/// minutes. systemd's own limits, 90 s for a device or a service, end a boot on a machine that is busy with other things.
pub const KERNEL_OPTIONS: &str = "console=ttyS0 quiet mitigations=off sysrq_always_enabled hibernate=nocompress \
    systemd.default_timeout_start_sec=1800 systemd.default_device_timeout_sec=1800 systemd.service_watchdogs=0";

/// How many devices a case can plug in: QEMU calls the buses `slot1` and so on.
pub const HOTPLUG_SLOTS: usize = 8;

/// The port that ours has: the one that a host gives a guest. QEMU's id, and the name in the guest.
pub const OUR_PORT: (&str, &str) = ("ours", "org.qemu.guest_agent.0");
/// The port of the original that ours is compared with.
pub const ORIGINAL_PORT: (&str, &str) = ("original", "org.qemu.guest_agent.1");
/// The port through which the tests look into the guest.
pub const CONTROL_PORT: (&str, &str) = ("control", "qga.control");

fn socket(id: &str, folder: &Path) -> String {
    format!("socket,id={id},path={},server=on,wait=off", folder.join(id).display())
}

/// A command that is killed when this program dies, however it dies: a forgotten guest eats a processor.
fn ends_with_us(program: &str) -> Command {
    if packages::is_installed("setpriv") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program]);
        command
    } else {
        Command::new(program)
    }
}
