//! `cargo xtask demo`: the main job, shown. Builds the agent and the command line, and does a host's work with both.
//!
//! Needs nothing but Rust; `--vm` does the same in a real guest over its virtio-serial port, and freezes it too.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qga_client::{Connection, Timeouts};
use serde_json::{Value, json};

use crate::launch::Agent;
use crate::lease::StuckProgram;
use crate::vm::guest::{Boot, Guest};
use crate::vm::machine::Hardware;
use crate::{build, style};

/// What a stuck agent may take at most before the demo says so.
const PATIENCE: Timeouts = Timeouts { connect: Duration::from_secs(10), silence: Duration::from_secs(30) };
const FILE_BYTES: usize = 32 << 20;
/// A guest without KVM moves bytes slowly.
const FILE_BYTES_IN_A_GUEST: usize = 4 << 20;

/// `cargo xtask demo`.
pub fn main(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => on_this_machine(),
        [option] if option == "--vm" => in_a_guest(),
        _ => bail!("cargo xtask demo takes --vm or nothing"),
    }
}

/// The command line, and the target that it is for.
struct Host {
    program: PathBuf,
    target: PathBuf,
    folder: tempfile::TempDir,
}

impl Host {
    fn new(program: PathBuf, target: &Path) -> Result<Self> {
        // Short names in what is shown.
        let folder = tempfile::Builder::new().prefix("qga-demo-").tempdir()?;
        let name = folder.path().join("web.sock");
        std::os::unix::fs::symlink(target, &name).context("cannot give the socket a name")?;
        Ok(Self { program, target: name, folder })
    }

    /// Shows a command and runs it on this terminal.
    fn show(&self, arguments: &[&str]) -> Result<i32> {
        let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        command(&format!("qga {}", words.join(" ")));
        let status = self.command(arguments).status().context("cannot start qga")?;
        Ok(status.code().unwrap_or(-1))
    }

    /// As [`show`](Self::show), for one that must succeed.
    fn run(&self, arguments: &[&str]) -> Result<()> {
        let code = self.show(arguments)?;
        ensure!(code == 0, "qga {} ended with {code}", arguments.join(" "));
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.folder.path()).env("QGA_TARGET", &self.target).args(arguments);
        command
    }
}

fn quoted(word: &str) -> String {
    if word.contains(|character: char| character.is_whitespace() || "*$;|&'".contains(character)) {
        format!("'{}'", word.replace('\'', "'\\''"))
    } else {
        word.to_owned()
    }
}

fn on_this_machine() -> Result<()> {
    let (program, command_line) = build()?;
    title("An agent on a private socket, as a guest would run it on its port");
    let agent = Agent::start(&program, &[])?;
    say(&format!("process {}, first answer after {}", agent.pid(), style::duration(agent.age())));
    let host = Host::new(command_line, &agent.socket())?;
    let folder = agent.folder().display().to_string();
    a_hosts_work(&host, &folder, FILE_BYTES)?;

    title("Many guests at once");
    let other = Agent::start(&program, &[])?;
    std::os::unix::fs::symlink(other.socket(), host.folder.path().join("db.sock")).context("cannot name a socket")?;
    host.run(&["-t", "./*.sock", "exec", "--", "sh", "-c", "echo one of them; uptime"])?;

    title("What the guest's administrator forbids is refused, and the doctor knows why");
    let careful = Agent::start(&program, &["--block-rpcs=guest-exec,guest-file-open"])?;
    let careful_host = Host::new(host.program.clone(), &careful.socket())?;
    refusal(&careful_host)?;

    title("A stuck command does not make the agent deaf");
    match StuckProgram::create(agent.folder()) {
        Ok(stuck) => {
            not_deaf(&agent.socket(), &stuck.path().display().to_string())?;
            host.run(&["ping"])?;
        }
        Err(error) => say(&style::warning(&format!("left out: {error:#}"))),
    }

    title("That was all");
    say("the same in a virtual machine, with a freeze:  cargo xtask demo --vm");
    say("all that qga can do:                           docs/qga.md");
    say("every proof:                                   cargo xtask test");
    Ok(())
}

fn in_a_guest() -> Result<()> {
    let (program, command_line) = build()?;
    title("A guest whose unit starts the agent on its virtio-serial port");
    let guest = Guest::boot(&Boot { our_agent: program, hardware: Hardware::default() })?;
    let port = guest.our_agent();
    say(&format!("the host's end of the port: {}", port.display()));
    let host = Host::new(command_line, &port)?;
    a_hosts_work(&host, "/var/tmp", FILE_BYTES_IN_A_GUEST)?;
    freeze(&host)?;

    title("A stuck command does not make the agent deaf");
    let stuck = "/tmp/stuck";
    let holder = format!(
        "import fcntl, os, signal, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nopen('{stuck}', 'w').write('#!/bin/true\\n')\n\
         os.chmod('{stuck}', 0o755)\nfile = open('{stuck}')\nfcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
         open('{stuck}.held', 'w')\ntime.sleep(20)\n"
    );
    let mut agent = connect(&port)?;
    agent.start_program(&qga_client::Program {
        path: "python3".to_owned(),
        arguments: vec!["-c".to_owned(), holder],
        ..Default::default()
    })?;
    let held = format!("until [ -e {stuck}.held ]; do sleep 0.1; done");
    ensure!(agent.run("sh", &["-c", &held], None)?.exit.success(), "the guest cannot hold a lease");
    drop(agent);
    not_deaf(&port, stuck)?;
    host.run(&["ping"])?;

    title("What the guest's administrator forbids is refused, and the doctor knows why");
    let configuration = "[general]\nblock-rpcs=guest-exec,guest-file-open\n";
    std::fs::write(host.folder.path().join("qemu-ga.conf"), configuration).context("cannot write a configuration")?;
    host.run(&["exec", "mkdir", "-p", "/etc/qemu"])?;
    host.run(&["cp", "qemu-ga.conf", ":/etc/qemu/"])?;
    // The agent ends before it could tell how the command ended; a service of its own outlives it.
    host.run(&["exec", "systemd-run", "--quiet", "--on-active=1", "systemctl", "restart", "qemu-guest-agent"])?;
    wait_for_restart(&port)?;
    refusal(&host)?;

    title("That was all");
    say("every case in the virtual machine:  cargo xtask vm");
    Ok(())
}

fn build() -> Result<(PathBuf, PathBuf)> {
    title("The agent, built as it is shipped: one static file; and the command line for its host");
    let program = build::agent_binary()?;
    let size = std::fs::metadata(&program).with_context(|| format!("cannot find {}", program.display()))?.len();
    say(&format!("{} ({})", program.display(), style::bytes(size as f64)));
    let command_line = build::command_line_binary()?;
    say(&command_line.display().to_string());
    Ok((program, command_line))
}

fn a_hosts_work(host: &Host, folder: &str, file_bytes: usize) -> Result<()> {
    title("A guest on one screen");
    host.run(&["info"])?;

    title("A program in the guest: its output as it comes, its exit code");
    host.run(&["exec", "--", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done"])?;
    let code = host.show(&["exec", "ls", "/nonexistent"])?;
    say(&style::faint(&format!("exit code {code}")));
    ensure!(code == 2, "ls ended with {code}");

    title("A file to the guest and back, with checksums");
    let content = random_bytes(file_bytes)?;
    std::fs::write(host.folder.path().join("noise"), &content).context("cannot write a file")?;
    let there = format!(":{folder}/noise");
    host.run(&["cp", "--checksum", "noise", &there])?;
    host.run(&["cp", "--checksum", &there, "back"])?;
    let back = std::fs::read(host.folder.path().join("back")).context("cannot read what came back")?;
    ensure!(back == content, "what came back differs");
    host.run(&["ls", folder])
}

/// A freeze that is held by a process that is killed.
fn freeze(host: &Host) -> Result<()> {
    title("A freeze ends whatever happens: here qga is killed while a snapshot is taken");
    command("qga freeze --run sleep 60 &   kill -9 %1");
    let mut child =
        host.command(&["freeze", "--run", "sleep", "60"]).stdin(Stdio::null()).spawn().context("cannot start qga")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = || -> Result<String> {
        let output = host.command(&["freeze", "--status"]).output().context("cannot start qga")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // QEMU serves one client at a time; the freezing one must have let go before another is heard.
    std::thread::sleep(Duration::from_secs(5));
    child.kill().context("cannot kill qga")?;
    child.wait().context("cannot wait for qga")?;
    loop {
        let now = status()?;
        if now == "thawed" {
            break;
        }
        ensure!(Instant::now() < deadline, "the guest is still {now}");
        std::thread::sleep(Duration::from_millis(200));
    }
    host.run(&["freeze", "--status"])
}

fn refusal(host: &Host) -> Result<()> {
    let code = host.show(&["exec", "true"])?;
    ensure!(code == 70, "a blocked command ended with {code}");
    host.show(&["doctor"]).map(drop)
}

/// Leaves a command hanging on the connection and goes on with it.
fn not_deaf(socket: &Path, program: &str) -> Result<()> {
    let mut host = connect(socket)?;
    command(&format!("guest-exec {program}   (the kernel lets its start wait; no answer comes)"));
    host.start("guest-exec", json!({ "path": program }))?;
    std::thread::sleep(Duration::from_secs(1));
    let started = Instant::now();
    host.sync().context("the agent is deaf")?;
    say(&format!("guest-sync-delimited on the same connection: answered in {}", style::duration(started.elapsed())));
    let started = Instant::now();
    host.call_raw("guest-ping", Value::Null)?;
    say(&format!("the same connection: guest-ping answered in {}", style::duration(started.elapsed())));
    Ok(())
}

fn connect(socket: &Path) -> Result<Connection<UnixStream>> {
    let mut host = Connection::unix_with(socket, PATIENCE)?;
    host.sync()?;
    Ok(host)
}

/// Asks until the agent that comes back is the one with the new configuration.
fn wait_for_restart(port: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let timeouts = Timeouts { silence: Duration::from_secs(2), ..PATIENCE };
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let mut host = Connection::unix_with(port, timeouts)?;
        let info = host.sync().and_then(|()| host.call_raw("guest-info", Value::Null));
        let is_blocked = info.ok().is_some_and(|info| {
            let commands = info["supported_commands"].as_array().cloned().unwrap_or_default();
            commands.iter().any(|entry| entry["name"] == "guest-exec" && entry["enabled"] == false)
        });
        if is_blocked {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the agent did not come back with its new configuration");
    }
}

fn random_bytes(count: usize) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = vec![0; count];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes)
}

fn title(text: &str) {
    println!("\n{}", style::heading(text));
}

fn command(text: &str) {
    println!("  {} {}", style::faint(">"), style::bold(text));
    // What qga prints comes behind it.
    let _ = std::io::stdout().flush();
}

fn say(text: &str) {
    println!("    {text}");
}
