//! `cargo xtask demo`: the main job, shown. Builds the agent, starts it and does a host's work with it.
//!
//! Needs nothing but Rust; `--vm` does the same in a real guest over its virtio-serial port.

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
const FILE_BYTES: usize = 8 << 20;

/// `cargo xtask demo`.
pub fn main(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => on_this_machine(),
        [option] if option == "--vm" => in_a_guest(),
        _ => bail!("cargo xtask demo takes --vm or nothing"),
    }
}

fn on_this_machine() -> Result<()> {
    let program = build()?;
    title("An agent on a private socket, as a guest would run it on its port");
    let agent = Agent::start(&program, &[])?;
    say(&format!(
        "process {}, {}, first answer after {}",
        agent.pid(),
        agent.socket().display(),
        style::duration(agent.age())
    ));
    let mut host = connect(&agent.socket())?;
    let folder = agent.folder().display().to_string();
    information(&mut host)?;
    output_of_a_program(&mut host)?;
    file_there_and_back(&mut host, &folder)?;

    title("What the guest's administrator forbids is refused");
    let careful = Agent::start(&program, &["--block-rpcs=guest-exec,guest-file-open"])?;
    command("qemu-ga --block-rpcs=guest-exec,guest-file-open ...");
    refusal(&mut connect(&careful.socket())?)?;

    title("A stuck command does not make the agent deaf");
    match StuckProgram::create(agent.folder()) {
        Ok(stuck) => {
            let path = stuck.path().display().to_string();
            not_deaf(&mut host, &path)?;
            let mut other = connect(&agent.socket())?;
            timed_ping(&mut other, "another connection: ")?;
        }
        Err(error) => say(&style::warning(&format!("left out: {error:#}"))),
    }

    title("That was all");
    say("the same in a virtual machine, over a virtio-serial port:  cargo xtask demo --vm");
    say("every proof:                                               cargo xtask test");
    Ok(())
}

fn in_a_guest() -> Result<()> {
    let program = build()?;
    title("A guest whose unit starts the agent on its virtio-serial port");
    let guest = Guest::boot(&Boot { our_agent: program, hardware: Hardware::default() })?;
    let port = guest.our_agent();
    say(&format!("the host's end of the port: {}", port.display()));
    let mut host = connect(&port)?;
    information(&mut host)?;
    output_of_a_program(&mut host)?;
    file_there_and_back(&mut host, "/tmp")?;

    title("A stuck command does not make the agent deaf");
    let stuck = "/tmp/stuck";
    let holder = format!(
        "import fcntl, os, signal, time\nsignal.signal(signal.SIGIO, signal.SIG_IGN)\nopen('{stuck}', 'w').write('#!/bin/true\\n')\n\
         os.chmod('{stuck}', 0o755)\nfile = open('{stuck}')\nfcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
         open('{stuck}.held', 'w')\ntime.sleep(20)\n"
    );
    host.start_program(&qga_client::Program {
        path: "python3".to_owned(),
        arguments: vec!["-c".to_owned(), holder],
        ..Default::default()
    })?;
    let held = format!("until [ -e {stuck}.held ]; do sleep 0.1; done");
    ensure!(host.run("sh", &["-c", &held], None)?.exit.success(), "the guest cannot hold a lease");
    not_deaf(&mut host, stuck)?;

    title("What the guest's administrator forbids is refused");
    let configuration = "[general]\nblock-rpcs=guest-exec,guest-file-open\n";
    command("echo block-rpcs=guest-exec,guest-file-open >> /etc/qemu/qemu-ga.conf; systemctl restart qemu-guest-agent");
    host.run("mkdir", &["-p", "/etc/qemu"], None)?;
    host.write_file("/etc/qemu/qemu-ga.conf", configuration.as_bytes())?;
    // The agent ends before it could tell how the command ended; a service of its own outlives it.
    host.run("systemd-run", &["--on-active=1", "systemctl", "restart", "qemu-guest-agent"], None)?;
    drop(host);
    let mut host = wait_for_restart(&port)?;
    refusal(&mut host)?;

    title("That was all");
    say("every case in the virtual machine:  cargo xtask vm");
    Ok(())
}

fn build() -> Result<PathBuf> {
    title("The agent, built as it is shipped: one static file");
    let program = build::agent_binary()?;
    let size = std::fs::metadata(&program).with_context(|| format!("cannot find {}", program.display()))?.len();
    say(&format!("{} ({})", program.display(), style::bytes(size as f64)));
    Ok(program)
}

fn connect(socket: &Path) -> Result<Connection<UnixStream>> {
    let mut host = Connection::unix_with(socket, PATIENCE)?;
    host.sync()?;
    Ok(host)
}

fn information(host: &mut Connection<UnixStream>) -> Result<()> {
    title("What the agent says of itself");
    command("guest-info");
    let info = host.call_raw("guest-info", Value::Null)?;
    let commands = info["supported_commands"].as_array().context("guest-info lists no commands")?;
    let enabled = |entry: &&Value| entry["enabled"] == true;
    let names: Vec<&str> = commands.iter().filter(enabled).filter_map(|entry| entry["name"].as_str()).collect();
    say(&format!("level {}, {} commands:", info["version"].as_str().unwrap_or("?"), names.len()));
    let mut line = String::new();
    for name in names {
        if line.len() + name.len() > 96 {
            say(&format!("  {}", style::faint(&line)));
            line.clear();
        }
        line.push_str(name);
        line.push(' ');
    }
    say(&format!("  {}", style::faint(&line)));
    Ok(())
}

fn output_of_a_program(host: &mut Connection<UnixStream>) -> Result<()> {
    title("A program in the guest, with its output");
    for (shown, program, arguments, input) in [
        ("uname -srm", "uname", vec!["-srm"], None),
        ("echo from the host | tr a-z A-Z", "tr", vec!["a-z", "A-Z"], Some("from the host\n")),
        ("ls /nonexistent", "ls", vec!["/nonexistent"], None),
    ] {
        command(shown);
        let output = host.run(program, &arguments, input.map(str::as_bytes))?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            say(line);
        }
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            say(&style::warning(line));
        }
        say(&style::faint(&output.exit.to_string()));
    }
    Ok(())
}

fn file_there_and_back(host: &mut Connection<UnixStream>, folder: &str) -> Result<()> {
    title("A file to the guest and back");
    let path = format!("{folder}/from-the-host");
    let content = random_bytes(FILE_BYTES)?;
    let sum = checksum_here(&content)?;
    say(&format!("{} of noise with the SHA-256 {}", style::bytes(FILE_BYTES as f64), short(&sum)));

    let started = Instant::now();
    host.write_file(&path, &content)?;
    speed("written", started);
    command(&format!("sha256sum {path}"));
    let output = host.run("sha256sum", &[&path], None)?;
    let sum_there = String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned();
    ensure!(sum_there == sum, "the file in the guest has the SHA-256 {sum_there}");
    say(&format!("{} in the guest: {}", short(&sum_there), style::good("the same")));

    let started = Instant::now();
    let back = host.read_file(&path)?;
    speed("read back", started);
    ensure!(back == content, "what came back differs: its SHA-256 is {}", checksum_here(&back)?);
    say(&format!("{} again on the host: {}", short(&checksum_here(&back)?), style::good("the same")));
    Ok(())
}

fn speed(act: &str, started: Instant) {
    let taken = started.elapsed();
    let rate = style::bytes(FILE_BYTES as f64 / taken.as_secs_f64());
    say(&format!("{act} in {} ({rate}/s)", style::duration(taken)));
}

fn short(sum: &str) -> String {
    format!("{}...", &sum[..sum.len().min(16)])
}

fn random_bytes(count: usize) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = vec![0; count];
    let mut source = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes)
}

fn checksum_here(content: &[u8]) -> Result<String> {
    let start = || Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut process = start().context("cannot start sha256sum on the host")?;
    let mut input = process.stdin.take().context("sha256sum has no input")?;
    input.write_all(content).context("cannot feed sha256sum")?;
    drop(input);
    let output = process.wait_with_output().context("cannot read from sha256sum")?;
    Ok(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned())
}

fn refusal(host: &mut Connection<UnixStream>) -> Result<()> {
    command("guest-exec /bin/true");
    match host.call_raw("guest-exec", json!({ "path": "/bin/true" })) {
        Err(error) if error.agent().is_some_and(|error| error.class == "CommandNotFound") => {
            say(&style::warning(&error.to_string()));
        }
        Err(error) => return Err(error).context("the agent does not say that the command is blocked"),
        Ok(reply) => bail!("the agent ran a blocked command: {reply}"),
    }
    timed_ping(host, "what is allowed works: ")
}

/// Leaves a command hanging on the connection and goes on with it.
fn not_deaf(host: &mut Connection<UnixStream>, program: &str) -> Result<()> {
    command(&format!("guest-exec {program}   (the kernel lets its start wait; no answer comes)"));
    host.start("guest-exec", json!({ "path": program }))?;
    std::thread::sleep(Duration::from_secs(1));
    let started = Instant::now();
    host.sync().context("the agent is deaf")?;
    say(&format!("guest-sync-delimited on the same connection: answered in {}", style::duration(started.elapsed())));
    timed_ping(host, "the same connection: ")
}

fn timed_ping(host: &mut Connection<UnixStream>, where_: &str) -> Result<()> {
    let started = Instant::now();
    host.call_raw("guest-ping", Value::Null)?;
    let time = style::duration(started.elapsed());
    say(&format!("{where_}guest-ping answered in {time}"));
    Ok(())
}

/// Asks until the agent that comes back is the one with the new configuration.
fn wait_for_restart(port: &Path) -> Result<Connection<UnixStream>> {
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
            host.set_silence(PATIENCE.silence)?;
            return Ok(host);
        }
        ensure!(Instant::now() < deadline, "the agent did not come back with its new configuration");
    }
}

fn title(text: &str) {
    println!("\n{}", style::heading(text));
}

fn command(text: &str) {
    println!("  {} {}", style::faint(">"), style::bold(text));
}

fn say(text: &str) {
    println!("    {text}");
}
