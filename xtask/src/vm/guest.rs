//! A guest that is up: both agents side by side on ports of their own, a way to run scripts in it, its monitor.

use super::conversation::{Conversation, patience};
use super::disk::Disk;
use super::image::Image;
use super::machine::{CONTROL_PORT, Hardware, Machine, ORIGINAL_PORT, OUR_PORT, Origin, Saved};
use super::pace::{self, BOOT_PATIENCE};
use super::progress;
use super::run::Place;
use super::snapshot::{self, Snapshot};
use super::stage::Kind;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Our unit, as systemd calls it.
pub const OUR_UNIT: &str = "qemu-guest-agent.service";

/// What ours brings to the guest besides the program, as its package would.
const OUR_FILES: &[(&str, &str)] = &[
    ("packaging/systemd/qemu-guest-agent.service", "usr/lib/systemd/system/qemu-guest-agent.service"),
    ("packaging/udev/60-qemu-guest-agent.rules", "usr/lib/udev/rules.d/60-qemu-guest-agent.rules"),
];

/// The two agents that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// QEMU's.
    Original,
    /// This project's.
    Ours,
}

impl Agent {
    /// In the order in which they are asked.
    pub const BOTH: [Self; 2] = [Self::Original, Self::Ours];
}

/// How to boot a guest.
pub struct Boot {
    /// Our agent's program, which must run in the guest: built static, or with the libraries that Debian has.
    pub our_agent: PathBuf,
    /// The machine.
    pub hardware: Hardware,
}

impl Boot {
    /// With the hardware that guests have but for a reason.
    pub fn usual(our_agent: &Path) -> Self {
        Self { our_agent: our_agent.to_owned(), hardware: Hardware::default() }
    }
}

/// A running guest; it and its files vanish with this value.
pub struct Guest {
    machine: Machine,
    our_agent: PathBuf,
    control: Option<Conversation>,
    notes: Vec<String>,
    /// What the running case has made and plugged in.
    stage: Vec<Kind>,
    disks: Vec<Disk>,
    changed_units: Vec<String>,
    folder: tempfile::TempDir,
}

/// What a script in the guest left.
#[derive(Debug)]
pub struct ScriptResult {
    /// Exit status; 128 + N when a signal N ended it.
    pub status: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl ScriptResult {
    /// The output without the last line end; a status other than 0 is an error that names the script.
    pub(super) fn into_output(self, script: &str) -> Result<String> {
        let Self { status, stdout, stderr } = self;
        ensure!(status == 0, "in the guest, status {status}: {}\n{stdout}{stderr}", script.trim());
        Ok(stdout.trim_end().to_owned())
    }
}

/// The cost of a process in the guest so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Processor time of all its threads, in hundredths of a second.
    pub cpu_ticks: u64,
    /// How often its threads went to sleep of their own will.
    pub sleeps: u64,
    /// Memory at this moment.
    pub resident_kib: u64,
    /// The most memory since the start or the last [`Guest::forget_peak`].
    pub peak_kib: u64,
}

impl Guest {
    /// Builds the image if there is none, boots it with our agent in it, and waits until the guest can be controlled.
    pub fn boot(boot: &Boot) -> Result<Self> {
        println!("vm: booting the guest");
        let started = Instant::now();
        let guest = Self::start_from(&Origin::Image, boot)?;
        snapshot::note(false);
        pace::note_boot(started.elapsed());
        println!("vm: up after {} s", started.elapsed().as_secs());
        Ok(guest)
    }

    /// Goes on from a saved guest with the usual hardware.
    fn restore(saved: &Saved, our_agent: &Path) -> Result<Self> {
        let started = Instant::now();
        let mut guest = Self::start_from(&Origin::Snapshot(saved), &Boot::usual(our_agent))?;
        // It has stood still since it was saved.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        guest.shell(&format!("date -s @{}.{:09}", now.as_secs(), now.subsec_nanos()))?;
        snapshot::note(true);
        println!("vm: restored a guest in {:.1} s", started.elapsed().as_secs_f32());
        Ok(guest)
    }

    fn start_from(origin: &Origin<'_>, boot: &Boot) -> Result<Self> {
        let image = Image::prepare()?;
        let folder = tempfile::Builder::new().prefix("qga-vm-").tempdir()?;
        install_our_agent(&boot.our_agent, &folder.path().join("share/root"))?;
        let machine = Machine::start(&image, origin, &boot.hardware, folder.path())?;
        let mut guest = Self {
            machine,
            our_agent: boot.our_agent.clone(),
            control: None,
            notes: Vec::new(),
            stage: Vec::new(),
            disks: Vec::new(),
            changed_units: Vec::new(),
            folder,
        };
        if let Err(error) = guest.connect_control() {
            bail!("the guest does not come up: {error:#}\n{}", guest.console_tail(40));
        }
        Ok(guest)
    }

    /// The host's end of the original agent's port.
    pub fn original_agent(&self) -> PathBuf {
        self.folder().join(ORIGINAL_PORT.0)
    }

    /// The host's end of our agent's port.
    pub fn our_agent(&self) -> PathBuf {
        self.folder().join(OUR_PORT.0)
    }

    /// The host's end of the guest's second serial port, /dev/ttyS1.
    pub fn serial_port(&self) -> PathBuf {
        self.folder().join("serial")
    }

    /// Where the sockets and logs of this guest are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Connects to one of the two and synchronises.
    pub fn talk_to(&self, agent: Agent) -> Result<Conversation> {
        match agent {
            Agent::Original => self.talk_to_original(),
            Agent::Ours => self.talk_to_ours(),
        }
    }

    /// Connects to our agent and synchronises.
    pub fn talk_to_ours(&self) -> Result<Conversation> {
        let mut conversation = Conversation::open(&self.our_agent())?;
        conversation.synchronise(patience()).context("our agent")?;
        Ok(conversation)
    }

    /// Connects to the original agent and synchronises.
    pub fn talk_to_original(&self) -> Result<Conversation> {
        let mut conversation = Conversation::open(&self.original_agent())?;
        conversation.synchronise(patience()).context("the original agent")?;
        Ok(conversation)
    }

    /// The monitor of the machine.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Runs a script in the guest as root, through an agent that no test touches, and returns its output without the
    /// last line end. A status other than 0 is an error.
    pub fn shell(&mut self, script: &str) -> Result<String> {
        self.shell_result(script)?.into_output(script)
    }

    /// Runs a script in the guest as root, however it ends.
    pub fn shell_result(&mut self, script: &str) -> Result<ScriptResult> {
        let Some(control) = &mut self.control else { bail!("the guest cannot be controlled") };
        run_script(control, script)
    }

    /// The process that our unit runs at the moment.
    pub fn our_pid(&mut self) -> Result<u32> {
        self.unit_pid(OUR_UNIT)
    }

    /// The main process of a unit, which must be running.
    pub fn unit_pid(&mut self, unit: &str) -> Result<u32> {
        let text = self.shell(&format!("systemctl show --property MainPID --value {unit}"))?;
        let pid: u32 = text.parse().with_context(|| format!("not a process number: {text:?}"))?;
        ensure!(pid != 0, "{unit} is not running:\n{}", self.shell_result(&format!("systemctl status {unit}"))?.stdout);
        Ok(pid)
    }

    /// What a process has cost so far.
    pub fn usage(&mut self, pid: u32) -> Result<Usage> {
        // The name in parentheses is cut off: it may contain blanks. User and system time are fields 14 and 15.
        let script = format!(
            "sed 's/.*) //' /proc/{pid}/stat | awk '{{print $12 + $13}}'
             cat /proc/{pid}/task/*/status | awk '/^voluntary_ctxt/ {{n += $2}} END {{print n}}'
             awk '/^VmRSS/ {{print $2}}' /proc/{pid}/status
             awk '/^VmHWM/ {{print $2}}' /proc/{pid}/status"
        );
        let text = self.shell(&script)?;
        let numbers: Vec<u64> = text.lines().map_while(|line| line.parse().ok()).collect();
        match numbers[..] {
            [cpu_ticks, sleeps, resident_kib, peak_kib] => Ok(Usage { cpu_ticks, sleeps, resident_kib, peak_kib }),
            _ => bail!("no usage of process {pid}: {text:?}"),
        }
    }

    /// Lets the peak memory of a process start anew at what it uses now.
    pub fn forget_peak(&mut self, pid: u32) -> Result<()> {
        self.shell(&format!("echo 5 > /proc/{pid}/clear_refs")).map(drop)
    }

    /// Calls `probe` until it returns something; an error of the last try is the reason that is told.
    pub fn wait_until<T>(&mut self, what: &str, mut probe: impl FnMut(&mut Self) -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + patience();
        loop {
            let outcome = probe(self);
            match outcome {
                Ok(Some(value)) => return Ok(value),
                Ok(None) if Instant::now() > deadline => bail!("{what} does not come about"),
                Err(error) if Instant::now() > deadline => return Err(error.context(format!("waiting until {what}"))),
                Ok(None) | Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// Something to print beside the case's result: a measured value, a difference to the original.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The kinds of file systems that the running case has made.
    pub(super) fn stage(&mut self) -> &mut Vec<Kind> {
        &mut self.stage
    }

    /// The disks that the running case has plugged in.
    pub(super) fn disks(&mut self) -> &mut Vec<Disk> {
        &mut self.disks
    }

    /// The units that the running case has changed.
    pub(super) fn changed_units(&mut self) -> &mut Vec<String> {
        &mut self.changed_units
    }

    /// Runs `restart`, which must make the guest boot anew, and waits until it can be controlled again.
    pub fn reboot(&mut self, restart: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.shell(BOOT_ID)?;
        self.machine.forget_events()?;
        restart(self)?;
        self.machine.wait_for_event("RESET", BOOT_PATIENCE)?;
        self.connect_control()?;
        let now = self.shell(BOOT_ID)?;
        ensure!(now != before, "the guest did not start anew");
        Ok(())
    }

    /// Puts another guest in the place of this one, whatever state it is in. The case must have nothing plugged in.
    pub fn renew(&mut self) -> Result<()> {
        self.replace_with(Self::start)
    }

    /// As [`Guest::renew`], with one that has booted: an SD card does not survive a snapshot.
    pub fn renew_by_boot(&mut self) -> Result<()> {
        self.replace_with(|our_agent| Self::boot(&Boot::usual(our_agent)))
    }

    fn replace_with(&mut self, start: impl FnOnce(&Path) -> Result<Self>) -> Result<()> {
        ensure!(self.stage.is_empty() && self.disks.is_empty(), "the case has made what would be lost");
        let notes = std::mem::take(&mut self.notes);
        *self = start(&self.our_agent.clone())?;
        self.notes = notes;
        Ok(())
    }

    /// The end of what the guest printed on its console.
    pub fn console_tail(&self, lines: usize) -> String {
        format!("-- console --\n{}", progress::tail(&self.folder().join("console.log"), lines))
    }

    fn connect_control(&mut self) -> Result<()> {
        // QEMU serves one client at a time: the old connection goes first.
        self.control = None;
        let mut control = Conversation::open(&self.folder().join(CONTROL_PORT.0))?;
        control.synchronise(BOOT_PATIENCE)?;
        self.control = Some(control);
        Ok(())
    }
}

impl Place for Guest {
    fn start(our_agent: &Path) -> Result<Self> {
        match Snapshot::of_this_run(our_agent) {
            Some(saved) => Self::restore(saved, our_agent),
            None => Self::boot(&Boot::usual(our_agent)),
        }
    }

    fn clear_away(&mut self) -> Result<()> {
        self.clear_stage()
    }

    fn evidence(&mut self) -> String {
        let script = format!(
            "systemctl status --no-pager --lines 8 {OUR_UNIT} 2>&1
             systemctl status --no-pager --lines 2 original-agent | head -3
             ls -l /dev/virtio-ports
             head -7 /sys/kernel/debug/virtio-ports/vport*p1
             dmesg --level err,warn | tail -5"
        );
        let state = match self.shell_result(&script) {
            Ok(result) => result.stdout,
            Err(error) => format!("{error:#}\n"),
        };
        format!("-- units --\n{state}{}", self.console_tail(5))
    }

    fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

/// Runs a script as root through an agent, however it ends.
pub(super) fn run_script(control: &mut Conversation, script: &str) -> Result<ScriptResult> {
    let arguments = json!({"path": "/bin/sh", "arg": ["-c", script], "capture-output": true});
    let pid = control.call("guest-exec", &arguments)?["pid"].clone();
    let deadline = Instant::now() + BOOT_PATIENCE;
    let mut pause = Duration::from_millis(10);
    loop {
        let status = control.call("guest-exec-status", &json!({"pid": pid}))?;
        if status["exited"] == true {
            let text = |name: &str| -> Result<String> {
                let bytes = decode(status[name].as_str().unwrap_or_default())?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            };
            let by_signal = status["signal"].as_i64().map_or(-1, |signal| 128 + signal);
            return Ok(ScriptResult {
                status: status["exitcode"].as_i64().unwrap_or(by_signal),
                stdout: text("out-data")?,
                stderr: text("err-data")?,
            });
        }
        ensure!(Instant::now() < deadline, "does not end in the guest: {}", script.trim());
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Decodes what an agent sent as base64.
pub fn decode(base64: &str) -> Result<Vec<u8>> {
    base64_simd::STANDARD.decode_to_vec(base64).context("bad base64")
}

/// The arguments of QEMU's `device_add` that plug our port (again).
pub fn our_port() -> Value {
    let (id, name) = OUR_PORT;
    json!({"driver": "virtserialport", "bus": "ports.0", "nr": 1, "id": id, "chardev": id, "name": name})
}

/// Lays our agent's files out as its package would, under `root`.
pub(super) fn install_our_agent(program: &Path, root: &Path) -> Result<()> {
    let copy = |from: &Path, to: &str, mode: u32| -> Result<()> {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    copy(program, "usr/sbin/qemu-ga", 0o755)?;
    for (from, to) in OUR_FILES {
        copy(&crate::build::workspace().join(from), to, 0o644)?;
    }
    Ok(())
}
