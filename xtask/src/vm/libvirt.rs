//! A guest that libvirt runs and drives: libvirtd, one domain with our agent in it, and virsh.
//!
//! The daemon gets processes and mounts of its own (`unshare`): it sees neither the host's libvirt, if there is one, nor
//! its message bus, keeps everything in our folder, and takes the machine with it when it ends.

use super::Skipped;
use super::conversation::Conversation;
use super::guest::{OUR_UNIT, ScriptResult, install_our_agent, run_script};
use super::image::Image;
use super::machine::{CONTROL_PORT, KERNEL_OPTIONS};
use super::pace::{self, BOOT_PATIENCE};
use super::progress;
use super::run::Place;
use crate::{original, packages};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What libvirt calls the guest.
pub const DOMAIN: &str = "guest";

/// Where the guest has its second disk.
pub const DATA: &str = "/data";

/// Size of the second disk.
const DATA_BYTES: u64 = 256 << 20;

/// Longer than a boot, or any command, takes on the slowest host.
const PATIENCE: Duration = BOOT_PATIENCE;

/// What libvirt waits for the agent's answer to its sync; its own five seconds are short for a busy host.
const AGENT_SECONDS: &str = "300";

/// Debian's packages, and a file of each.
const PACKAGES: &[(&str, &str)] = &[
    ("libvirt-daemon", "/usr/sbin/libvirtd"),
    ("libvirt-clients", "/usr/bin/virsh"),
    ("libvirt-daemon-driver-qemu", "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"),
];

/// Run inside the namespaces, as their first process: ends, and everything in there with it, when the daemon does or
/// standard input is closed.
const START: &str = r#"
for place in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt run; do
    mkdir -p "$1/own/$place" "/$place"
    mount --bind "$1/own/$place" "/$place"
done
# The driver asks for this user when it starts, whoever runs the machines; only some packages make it.
for database in passwd group; do
    cp "/etc/$database" "$1/own/$database"
    grep -q '^libvirt-qemu:' "$1/own/$database" || case $database in
        passwd) echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' ;;
        group) echo 'libvirt-qemu:x:64055:' ;;
    esac >> "$1/own/$database"
    mount --bind "$1/own/$database" "/etc/$database"
done
exec 3<&0
/usr/sbin/libvirtd --config "$1/libvirtd.conf" --pid-file "$1/libvirtd.pid" 3<&- &
daemon=$!
{ read -r _ || true; kill -KILL $daemon; } <&3 &
wait $daemon
"#;

/// As few parts of the host as possible: no control groups, no security labels, no log daemon.
const QEMU_CONF: &str = r#"
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
remember_owner = 0
dynamic_ownership = 0
stdio_handler = "file"
"#;

/// A running domain; it, its daemon and all files vanish with this value.
pub struct Domain {
    daemon: Child,
    /// `virsh event`, which writes down what libvirt notices.
    watcher: Child,
    control: Option<Conversation>,
    notes: Vec<String>,
    folder: tempfile::TempDir,
}

/// How a run of virsh ended.
struct Outcome {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Domain {
    fn boot(&mut self) -> Result<()> {
        let definition = self.path("domain.xml").display().to_string();
        let defined = self.run_virsh(&["define", &definition])?;
        ensure!(defined.success, "libvirt refuses the domain: {}", defined.stderr);
        self.virsh("start", &[])?;
        self.virsh("guest-agent-timeout", &["--timeout", AGENT_SECONDS])?;
        self.wait_until_up()
    }

    /// Runs a command of virsh on the domain and returns what it printed. It fails when virsh does, or when libvirt
    /// wrote down a complaint about the agent.
    pub fn virsh(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let complaints = self.complaints().len();
        let outcome = self.run_virsh(&[&[command, DOMAIN], arguments].concat())?;
        let Outcome { success, stdout, stderr } = outcome;
        ensure!(success, "virsh {command} {}: {stderr}{stdout}", arguments.join(" "));
        if let Some(news @ [_, ..]) = self.complaints().get(complaints..) {
            bail!("libvirt complains about virsh {command} {}: {}", arguments.join(" "), news.join("\n"));
        }
        Ok(stdout)
    }

    /// Runs a command that virsh must refuse, and returns its words.
    pub fn virsh_refused(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let outcome = self.run_virsh(&[&[command, DOMAIN], arguments].concat())?;
        ensure!(!outcome.success, "virsh {command} {} was not refused: {}", arguments.join(" "), outcome.stdout);
        Ok(outcome.stderr)
    }

    /// Runs a command of virsh, however it ends, and returns all it printed, without empty lines.
    pub fn virsh_said(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let Outcome { stdout, stderr, .. } = self.run_virsh(&[&[command, DOMAIN], arguments].concat())?;
        let lines = stdout.lines().chain(stderr.lines()).map(str::trim_end).filter(|line| !line.is_empty());
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Whether this version of a command of virsh has an option.
    pub fn virsh_has_option(&self, command: &str, option: &str) -> Result<bool> {
        Ok(self.run_virsh(&["help", command])?.stdout.contains(option))
    }

    fn run_virsh(&self, arguments: &[&str]) -> Result<Outcome> {
        let output = Command::new("timeout")
            .arg(PATIENCE.as_secs().to_string())
            .args(["virsh", "--connect", &uri(self.folder.path())])
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .context("cannot start virsh")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(Outcome { success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// What the daemon wrote down about talking to the agent.
    fn complaints(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("libvirtd.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(": qemuAgent")).map(Into::into).collect()
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

    /// Waits until the guest can be controlled and libvirt reaches the agent; its second disk is mounted then.
    fn wait_until_up(&mut self) -> Result<()> {
        // QEMU serves one client at a time: the old connection goes first.
        self.control = None;
        let mut control = Conversation::open(&self.path(CONTROL_PORT.0))?;
        control.synchronise(PATIENCE).context("the guest does not come up")?;
        self.control = Some(control);
        self.shell(&format!("mkdir -p {DATA}; mountpoint -q {DATA} || mount LABEL=data {DATA}"))?;
        self.wait_for_agent()
    }

    /// Waits until libvirt reaches the agent.
    pub fn wait_for_agent(&mut self) -> Result<()> {
        self.wait_until("libvirt reaches the agent", |domain| {
            domain.virsh("qemu-agent-command", &[r#"{"execute":"guest-ping"}"#]).map(Some)
        })
        .map(drop)
    }

    /// Runs `act` while the original agent has the place of ours.
    pub fn with_original<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.shell(&format!(
            "systemctl stop {OUR_UNIT}; systemd-run --quiet --collect --unit original-as-ours --property Restart=always \
             /opt/original/qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run"
        ))?;
        let outcome = self.wait_for_agent().and_then(|()| act(self));
        self.shell(&format!("systemctl stop original-as-ours; systemctl start {OUR_UNIT}"))?;
        self.wait_for_agent()?;
        outcome
    }

    /// Runs `restart`, which must make the guest boot anew, and waits until libvirt reaches the agent again.
    pub fn reboot(&mut self, restart: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.shell(BOOT_ID)?;
        let events = self.events("reboot").len();
        restart(self)?;
        self.wait_until("libvirt sees the guest reboot", |domain| {
            Ok((domain.events("reboot").len() > events).then_some(()))
        })?;
        self.wait_until_up()?;
        ensure!(self.shell(BOOT_ID)? != before, "the guest did not start anew");
        Ok(())
    }

    /// What libvirt has told so far of this kind of event, a line each.
    pub fn events(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path("events")).unwrap_or_default();
        text.lines().filter(|line| line.contains(&format!("event '{name}'"))).map(Into::into).collect()
    }

    /// Calls `probe` until it returns something; an error of the last try is the reason that is told.
    pub fn wait_until<T>(&mut self, what: &str, mut probe: impl FnMut(&mut Self) -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match probe(self) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) if Instant::now() > deadline => bail!("{what}: it does not come about"),
                Err(error) if Instant::now() > deadline => return Err(error.context(format!("waiting until {what}"))),
                Ok(None) | Err(_) => std::thread::sleep(Duration::from_millis(300)),
            }
        }
    }

    /// Something to print beside the case's result.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// A file in the domain's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The address at which virsh finds the daemon.
    pub fn uri(&self) -> String {
        uri(self.folder.path())
    }
}

impl Place for Domain {
    /// Starts libvirt and a guest from the image, and waits until libvirt reaches our agent in it.
    fn start(our_agent: &Path) -> Result<Self> {
        prepare_host()?;
        let image = Image::prepare()?;
        let folder = tempfile::Builder::new().prefix("qga-libvirt-").tempdir()?;
        install_our_agent(our_agent, &folder.path().join("share/root"))?;
        make_disks(&image, folder.path())?;
        let definition = include_str!("files/domain.xml")
            .replace("@OPTIONS@", KERNEL_OPTIONS)
            .replace("@KERNEL@", &image.kernel().display().to_string())
            .replace("@INITRD@", &image.initrd().display().to_string())
            .replace("@FOLDER@", &folder.path().display().to_string());
        fs::write(folder.path().join("domain.xml"), definition)?;
        println!("vm: starting libvirt and a guest in it");
        let started = Instant::now();
        let daemon = start_daemon(folder.path())?;
        // Ends with the daemon, whatever happens to us.
        let watcher = Command::new("virsh")
            .args(["--connect", &uri(folder.path()), "event", "--all", "--loop", "--timestamp"])
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("events"))?)
            .stderr(Stdio::null())
            .spawn()?;
        let mut domain = Self { daemon, watcher, control: None, notes: Vec::new(), folder };
        domain.boot().map_err(|error| error.context(domain.evidence()))?;
        pace::note_boot(started.elapsed());
        println!("vm: libvirt reaches the agent after {} s", started.elapsed().as_secs());
        Ok(domain)
    }

    fn clear_away(&mut self) -> Result<()> {
        let status = self.virsh_said("qemu-agent-command", &[r#"{"execute":"guest-fsfreeze-status"}"#])?;
        if status.contains("\"frozen\"") {
            self.virsh("domfsthaw", &[])?;
        }
        Ok(())
    }

    fn evidence(&mut self) -> String {
        let unit = match self.shell_result(&format!("systemctl status --no-pager --lines 8 {OUR_UNIT} 2>&1")) {
            Ok(result) => result.stdout,
            Err(error) => format!("{error:#}\n"),
        };
        let machine_log = format!("own/var/log/libvirt/qemu/{DOMAIN}.log");
        let logs = ["events", "libvirtd.log", &machine_log, "console.log"];
        let logs = logs.map(|name| format!("-- {name} --\n{}", progress::tail(&self.path(name), 8)));
        format!("-- unit --\n{unit}{}", logs.join("\n"))
    }

    fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Closing its standard input ends the first process of the namespaces; the kernel ends all others before that
        // one has gone, so nothing writes to the folder afterwards.
        drop(self.daemon.stdin.take());
        let _ = self.daemon.wait();
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

/// Installs libvirt where it is missing, and says what keeps it from running here.
pub(super) fn prepare_host() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Skipped::because("only root can give libvirt processes and mounts of its own"));
    }
    let missing = PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package);
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        // The version that goes with QEMU: both from the backports, where there are some.
        let installed = match original::backports() {
            Ok(Some(backports)) => packages::install(&missing, Some(&backports)),
            Ok(None) | Err(_) => packages::install(&missing, None),
        };
        installed.map_err(|error| Skipped::because(&format!("{error:#}")))?;
    }
    let mut attempt = Command::new("unshare");
    attempt.args(["--mount", "--pid", "--fork", "--mount-proc", "true"]);
    progress::output(&mut attempt)
        .map(drop)
        .map_err(|error| Skipped::because(&format!("no namespaces for libvirt: {error:#}")))
}

fn make_disks(image: &Image, folder: &Path) -> Result<()> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(image.root_disk());
    progress::output(create.arg(folder.join("root.qcow2")))?;
    let data = folder.join("data.img");
    File::create(&data)?.set_len(DATA_BYTES)?;
    progress::output(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "data"]).arg(&data)).map(drop)
}

/// Starts libvirtd and waits until it listens.
fn start_daemon(folder: &Path) -> Result<Child> {
    let configuration = format!(
        "unix_sock_dir = \"{0}\"\nunix_sock_rw_perms = \"0700\"\nauth_unix_rw = \"none\"\n\
         log_outputs = \"3:file:{0}/libvirtd.log\"\n",
        folder.display()
    );
    fs::write(folder.join("libvirtd.conf"), configuration)?;
    fs::create_dir_all(folder.join("own/etc/libvirt"))?;
    fs::write(folder.join("own/etc/libvirt/qemu.conf"), QEMU_CONF)?;
    let errors = folder.join("start.log");
    let mut daemon = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc", START, "start-libvirt"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(File::create(&errors)?)
        .spawn()
        .context("cannot start unshare")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if progress::output(Command::new("virsh").args(["--connect", &uri(folder), "version"])).is_ok() {
            return Ok(daemon);
        }
        let has_ended = daemon.try_wait()?.is_some();
        if has_ended || Instant::now() > deadline {
            drop(daemon.stdin.take());
            daemon.wait()?;
            let said = [progress::tail(&errors, 5), progress::tail(&folder.join("libvirtd.log"), 5)].join("\n");
            return Err(Skipped::because(&format!("libvirtd does not run here: {}", said.trim())));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn uri(folder: &Path) -> String {
    format!("qemu+unix:///system?socket={}", folder.join("libvirt-sock").display())
}
