//! `cargo xtask screens`: what the command line shows of a real guest, as pictures for the documents.
//!
//! Boots a guest, drives `qga` in a real terminal (tmux) and keeps the screens in `docs/pictures`.

mod terminal;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::vm::guest::{Boot, Guest};
use crate::vm::machine::Hardware;

use terminal::Terminal;

/// `cargo xtask screens`.
pub fn main(_arguments: &[String]) -> Result<()> {
    let program = build::command_line_binary()?;
    let mut guest = Guest::boot(&Boot { our_agent: build::agent_binary()?, hardware: Hardware::default() })?;
    // An address and a name such as guests have them; nothing leads out of this one.
    guest.shell(
        "hostname web-1; card=$(ls /sys/class/net | grep -v lo | head -1)
         ip link set $card up; ip address add 192.0.2.10/24 dev $card; ip route add default via 192.0.2.1",
    )?;
    let pictures = build::workspace().join("docs/pictures");
    let (ours, original) = (guest.our_agent(), guest.original_agent());

    let mut terminal = Terminal::open(&program, 100, 34)?;
    terminal.say(&format!("export QGA_TARGET={}", ours.display()))?;
    // What a person would call them.
    let folder = guest.folder().join("guests");
    std::fs::create_dir(&folder).context("cannot make a folder for the sockets' names")?;
    for (name, socket) in [("web-1", &ours), ("web-2", &original)] {
        std::os::unix::fs::symlink(socket, folder.join(format!("{name}.sock"))).context("cannot name a socket")?;
    }
    terminal.say(&format!("cd {}; export QGA_TARGET=./web-1.sock", folder.display()))?;

    picture(&mut terminal, "qga info", Duration::from_secs(4), &pictures.join("info.svg"), "qga info")?;
    // Something to see: a busy processor, a busy disk, traffic of its own.
    terminal.say("qga exec -d -s 'timeout 40 sh -c \"while :; do dd if=/dev/zero of=/var/tmp/x bs=64k count=200 conv=fsync; done\"' > /dev/null 2>&1")?;
    picture(&mut terminal, "qga top -i 1", Duration::from_secs(25), &pictures.join("top.svg"), "qga top")?;
    terminal.press("q")?;
    terminal.clear()?;
    let sentence = "qga -t './web-*.sock' exec -- sh -c 'uname -r; uptime -p'";
    picture(&mut terminal, sentence, Duration::from_secs(6), &pictures.join("exec.svg"), "one command, two guests")
}

fn picture(terminal: &mut Terminal, command: &str, time: Duration, file: &Path, title: &str) -> Result<()> {
    terminal.clear()?;
    terminal.type_line(command)?;
    std::thread::sleep(time);
    let screen = terminal.screen()?;
    ensure!(screen.lines().count() > 3, "{command} shows nothing: {screen}");
    std::fs::write(file, terminal::draw(&screen, 100, title))
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}
