//! File systems on loop devices in a mount namespace of the test's own, and agents that freeze them.
//!
//! A test starts itself once more below `unshare --mount`. Only what is named is frozen, never everything: the
//! namespace still shows the machine's own disks. Whatever a failed test has left frozen is thawed when the stage is
//! dropped, and by a watchdog if the test itself is killed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A hang is a failure, not a reason to wait for ever.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Says to a test that it runs in its namespace.
const INSIDE: &str = "QGA_FREEZE_STAGE";

/// Runs a test in a mount namespace of its own. `name` is the test's name.
pub fn in_namespace(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let can = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let has_namespaces = can(Command::new("unshare").args(["--mount", "true"]));
    if !has_namespaces || !Path::new("/dev/loop-control").exists() || !can(Command::new("mkfs.ext4").arg("-V")) {
        eprintln!("SKIPPED {name}: it needs root, mount namespaces, loop devices and mkfs.ext4");
        return;
    }
    let program = std::env::current_exe().expect("the test's own program");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "--"]).arg(program);
    let status = unshare.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1").status();
    assert!(status.expect("unshare starts").success(), "{name} fails in its namespace");
}

/// Runs a shell line that must succeed; its output.
pub fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).stdin(Stdio::null()).output().expect("sh starts");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{line}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Whether a shell line succeeds.
pub fn succeeds(line: &str) -> bool {
    Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().expect("sh starts").status.success()
}

/// Waits until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "it does not happen that {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The place of a test: two file systems, `a` and `b`, and a state directory of 64 KiB.
pub struct Stage {
    directory: tempfile::TempDir,
    watchdog: Child,
}

impl Stage {
    /// Makes it. The lines are the agents' configuration.
    pub fn new(configuration: &str) -> Self {
        let directory = tempfile::TempDir::with_prefix("qga-freeze-").expect("a directory");
        let at = directory.path().display();
        shell(&format!(
            "mount -t tmpfs -o size=64m stage '{at}'; cd '{at}'; mkdir state a b hooks
             mount -t tmpfs -o size=64k state state
             for name in a b; do
                 truncate -s 8M $name.img; mkfs.ext4 -qF $name.img; mount -o loop $name.img $name
             done"
        ));
        // Its input ends with the test, however long that takes and whatever ends it.
        let thaw = format!("trap '' INT HUP; read end; for name in a b; do fsfreeze -u '{at}'/$name; done");
        let watchdog = Command::new("setsid")
            .args(["--wait", "sh", "-c", &thaw])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid starts");
        let stage = Self { directory, watchdog };
        stage.configure(configuration);
        stage
    }

    /// Where it is.
    pub fn directory(&self) -> std::path::Display<'_> {
        self.directory.path().display()
    }

    /// A path of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Changes the configuration of agents that are started from now on.
    pub fn configure(&self, lines: &str) {
        let hooks = self.path("hooks");
        let text = format!("[general]\nfsfreeze-hook-dir={}\n{lines}\n", hooks.display());
        fs::write(self.path("agent.conf"), text).expect("a file can be written");
    }

    /// Starts an agent, which listens at a socket of this name.
    pub fn start(&self, name: &str) -> Agent {
        self.start_behind(&[], &Self::ours(), name)
    }

    /// The agent that is tested.
    pub fn ours() -> OsString {
        std::env::var_os("QGA_OURS").unwrap_or_else(|| env!("CARGO_BIN_EXE_qemu-ga").into())
    }

    /// As [`start`](Self::start), by a program in front that becomes the agent.
    pub fn start_behind(&self, front: &[&str], program: &OsStr, name: &str) -> Agent {
        let socket = self.path(name);
        let _ = fs::remove_file(&socket);
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("a file can be written");
        let mut words = front.iter().map(OsStr::new).chain([program]);
        let mut command = Command::new(words.next().unwrap_or(program));
        command.args(words).arg("-c").arg(self.path("agent.conf")).args(["-v", "-m", "unix-listen", "-p"]).arg(&socket);
        command.arg("-t").arg(self.path("state")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("the agent starts");
        let mut agent = Agent { child, socket, is_waited_for: false };
        let started = Instant::now();
        while UnixStream::connect(&agent.socket).is_err() {
            let ended = agent.child.try_wait().expect("a child");
            assert!(ended.is_none(), "the agent does not start: {}", self.log());
            assert!(started.elapsed() < PATIENCE, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    /// What the agents have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Whether a write to a file system comes back soon. What waits goes on when it is thawed.
    pub fn takes_writes(&self, name: &str) -> bool {
        let (path, done) = (self.path(name).join("probe"), self.path("probed"));
        let _ = fs::remove_file(&done);
        let line = format!("(touch '{}' && touch '{}') > /dev/null 2>&1 &", path.display(), done.display());
        shell(&line);
        // A frozen one takes none however long one waits; for one that is thawed `expect_writes` waits.
        std::thread::sleep(Duration::from_millis(300));
        done.exists()
    }

    /// Waits until a file system takes writes.
    pub fn expect_writes(&self, name: &str) {
        let done = self.path("written");
        let _ = fs::remove_file(&done);
        shell(&format!(
            "(touch '{}' && touch '{}') > /dev/null 2>&1 &",
            self.path(name).join("probe").display(),
            done.display()
        ));
        wait_until(&format!("{name} takes writes"), || done.exists());
    }

    /// The request to freeze these.
    pub fn freeze_request(&self, names: &[&str]) -> Value {
        let places: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": places}})
    }

    /// Installs a hook that runs these shell lines, `$1` is what it is told.
    pub fn hook(&self, name: &str, lines: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path("hooks").join(name);
        let new = self.path("hook.new");
        fs::write(&new, format!("#!/bin/sh\n{lines}\n")).expect("a file can be written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("a mode can be set");
        fs::rename(&new, &path).expect("a file can be renamed");
    }

    /// The lines of a file; none if there is no file.
    pub fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.path(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// The guardians of this namespace.
pub fn guardians() -> Vec<i32> {
    let own = fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let is_guardian = fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"--guard-freeze"));
        is_guardian && fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|found| found == own)
    })
    .collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agents' log:\n{}", self.log());
        }
        for pid in guardians() {
            succeeds(&format!("kill -9 {pid}"));
        }
        // Its input ends: it thaws, if there is anything to be thawed.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
        let at = self.directory.path().display();
        succeeds(&format!(
            "cd '{at}'; for name in a b; do for again in 1 2 3; do fsfreeze -u $name; done; umount -l $name; done
             cd /; umount -l '{at}/state'; umount -l '{at}'"
        ));
    }
}

/// An agent that runs.
pub struct Agent {
    child: Child,
    socket: PathBuf,
    is_waited_for: bool,
}

impl Agent {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection.
    pub fn connect(&self) -> Host {
        let stream = UnixStream::connect(&self.socket).expect("the agent listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        Host(BufReader::new(stream))
    }

    /// Asks over a connection of its own.
    pub fn ask(&self, request: &Value) -> Value {
        self.connect().ask(request)
    }

    /// Asks for a command without arguments.
    pub fn call(&self, command: &str) -> Value {
        self.ask(&json!({ "execute": command }))
    }

    /// What it says of itself.
    pub fn status(&self) -> Value {
        self.call("guest-fsfreeze-status")["return"].clone()
    }

    /// Thaws.
    pub fn thaw(&self) -> Value {
        self.call("guest-fsfreeze-thaw")
    }

    /// Ends it with a signal and waits until it has ended.
    pub fn end(mut self, signal: &str) {
        shell(&format!("kill -{signal} {}", self.pid()));
        self.child.wait().expect("a child");
        self.is_waited_for = true;
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !self.is_waited_for {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A connection to an agent.
pub struct Host(BufReader<UnixStream>);

impl Host {
    /// Sends a request.
    pub fn send(&mut self, request: &Value) {
        writeln!(self.0.get_mut(), "{request}").expect("the agent reads");
    }

    /// The next reply; `None` if the agent is gone.
    pub fn reply(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(1..) => Some(serde_json::from_str(&line).expect("a reply")),
            Ok(0) => None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the agent does not answer: {error}"),
        }
    }

    /// Sends a request and waits for its reply.
    pub fn ask(&mut self, request: &Value) -> Value {
        self.send(request);
        self.reply().expect("the agent answers")
    }
}
