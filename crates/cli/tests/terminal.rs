//! `qga shell` and `qga exec -it` on a real terminal, and what signals do to a run: the terminal is restored, nothing is
//! left, nobody is held.

mod stage;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;
use stage::scripted::{Answer, Scripted};
use stage::{Guest, command, run, signal, start, until, wait};

/// This side of a terminal, and a `qga` on the other.
struct Seat {
    master: OwnedFd,
    slave: OwnedFd,
    keys: File,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Seat {
    fn start(target: &str, arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        resize(&master, 33, 101);
        let stream = || Stdio::from(slave.try_clone().unwrap());
        let mut command = command();
        command.args(["-t", target]).args(arguments).env("TERM", "vt220");
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().expect("qga starts");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, copy) = (File::from(master.try_clone().unwrap()), Arc::clone(&shown));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(size @ 1..) = screen.read(&mut buffer) {
                copy.lock().unwrap().extend_from_slice(&buffer[..size]);
            }
        });
        let keys = File::from(master.try_clone().unwrap());
        Self { master, slave: slave.into(), keys, shown, child }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn shows(&self, text: &str) {
        until(&format!("the terminal shows {text:?}"), || self.text().contains(text));
    }

    fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Waits for the end, and checks that the terminal is as it was.
    fn end(mut self) -> Option<i32> {
        let code = wait(self.child).code;
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "the terminal is left raw");
        self.keys.flush().unwrap();
        code
    }
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn a_shell_is_a_login_of_the_user_and_its_window_follows() {
    let Some(guest) = Guest::start() else { return };
    let mut seat = Seat::start(&guest.target(), &["shell"]);
    seat.shows("leaves it");
    until("the terminal is raw", || seat.is_raw());
    seat.types("echo [$HOME:$PWD:$TERM:$(stty size)] [${SHELL:+shell}${USER:+user}]; test -t 0 && echo with'-'tty\r");
    let home = std::process::Command::new("sh").args(["-c", "getent passwd $(id -u) | cut -d: -f6"]).output().unwrap();
    let home = String::from_utf8(home.stdout).unwrap().trim().to_owned();
    seat.shows(&format!("[{home}:{home}:vt220:33 101] [shelluser]"));
    seat.shows("with-tty");
    resize(&seat.master, 44, 120);
    seat.types("until [ \"$(stty size)\" = '44 120' ]; do sleep 0.1; done; echo larg'er'\r");
    seat.shows("larger");
    seat.types("exit 6\r");
    assert_eq!(seat.end(), Some(6));
}

#[test]
fn exec_it_is_a_program_on_a_terminal() {
    let Some(guest) = Guest::start() else { return };
    let mut seat =
        Seat::start(&guest.target(), &["exec", "-it", "sh", "-c", "stty size; read -r word; echo got:$word"]);
    seat.shows("33 101");
    seat.types("word\r");
    seat.shows("got:word");
    assert_eq!(seat.end(), Some(0));
    let seat = Seat::start(&guest.target(), &["exec", "-it", "no-such-program"]);
    seat.shows("qga: cannot run no-such-program in the guest: no such program in PATH");
    assert_eq!(seat.end(), Some(127));
    run(&guest.target(), ["exec", "-it", "sh"]).failed(64, "no terminal");
    run(&guest.target(), ["exec", "-t", &guest.target(), "--", "true"]).failed(64, "The target comes before");
}

#[test]
fn a_signal_ends_a_shell_and_restores_the_terminal() {
    let Some(guest) = Guest::start() else { return };
    let pid = guest.path("pid");
    let mut seat = Seat::start(&guest.target(), &["shell", "-s", "sh -i"]);
    seat.shows("leaves it");
    seat.types(&format!("trap '' HUP TERM; echo $$ >{}; echo sta'rted'\r", pid.display()));
    seat.shows("started");
    assert!(seat.is_raw());
    signal(seat.child.id(), Signal::TERM);
    assert_eq!(seat.end(), Some(130));
}

#[test]
fn the_escape_leaves_a_shell_whose_guest_hangs() {
    // Its programs start and are never heard of again.
    let agent = Scripted::start()
        .answering("guest-get-osinfo", Answer::Value(json!({ "id": "debian" })))
        .answering("guest-exec", Answer::Value(json!({ "pid": 7 })))
        .answering("guest-exec-status", Answer::Silence);
    let mut seat = Seat::start(&agent.target(), &["shell"]);
    seat.shows("leaves it");
    until("it has asked after its program", || agent.acts().contains(&"guest-exec-status".to_owned()));
    seat.types("\x1d");
    let shown = Arc::clone(&seat.shown);
    assert_eq!(seat.end(), Some(130));
    // What stands in the terminal at the end is read a moment later.
    let says = "may still run in the guest, as process 7";
    until(says, || String::from_utf8_lossy(&shown.lock().unwrap()).contains(says));
}

#[test]
fn the_escape_is_an_end_in_order_for_a_shell_and_none_for_a_program() {
    let Some(guest) = Guest::start() else { return };
    for (arguments, code) in [(&["shell", "-s", "cat"][..], 0), (&["exec", "-it", "cat"], 130)] {
        let mut seat = Seat::start(&guest.target(), arguments);
        until("the terminal is raw", || seat.is_raw());
        seat.types("word\r");
        seat.shows("word");
        seat.types("\x1d");
        assert_eq!(seat.end(), Some(code), "{arguments:?}");
    }
}

/// An agent whose programs find nothing that makes a terminal; it ends with this.
struct Plain {
    directory: tempfile::TempDir,
    agent: Child,
}

impl Plain {
    /// `None` for an agent that runs elsewhere.
    fn start() -> Option<Self> {
        const TOOLS: [&str; 11] =
            ["sh", "cat", "rm", "sleep", "mkfifo", "stty", "id", "getent", "setpriv", "su", "true"];
        let subject = qga_compliance::Subject::under_test();
        let program = subject.program()?;
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for tool in TOOLS {
            let found = std::env::split_paths(&path).map(|place| place.join(tool)).find(|place| place.exists());
            std::os::unix::fs::symlink(found.expect(tool), directory.path().join(tool)).unwrap();
        }
        let at = |name: &str| directory.path().join(name);
        let mut command = qga_compliance::Agent::command(program, directory.path());
        command.args(["-m", "unix-listen", "-p"]).arg(at("socket")).arg("-t").arg(directory.path());
        let agent = command.arg("-f").arg(at("pid")).env("PATH", directory.path()).spawn().unwrap();
        let started = Self { directory, agent };
        until("the agent listens", || fs::exists(started.target()).unwrap());
        Some(started)
    }

    fn target(&self) -> String {
        self.directory.path().join("socket").display().to_string()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

#[test]
fn a_shell_without_a_terminal_gets_every_line_from_the_first_on() {
    let Some(guest) = Plain::start() else { return };
    let mut seat = Seat::start(&guest.target(), &["shell", "-s", "sh"]);
    seat.shows("so this shell has no terminal");
    for number in 1..=3 {
        seat.types(&format!("echo {number}'.line'\n"));
        seat.shows(&format!("{number}.line"));
    }
    seat.types("exit 7\n");
    assert_eq!(seat.end(), Some(7));
}

#[test]
fn signals_wake_a_run_whose_guest_hangs() {
    let agent = Scripted::start()
        .answering("guest-exec", Answer::Value(json!({ "pid": 7 })))
        .answering("guest-exec-status", Answer::Silence);
    let is_asked = || agent.acts().contains(&"guest-exec-status".to_owned());
    let child = start(&agent.target(), ["--timeout", "1h", "exec", "true"]);
    until("it has asked after its program", is_asked);
    signal(child.id(), Signal::INT);
    signal(child.id(), Signal::TERM);
    wait(child).failed(130, "no answer to guest-exec-status; the program may still run in the guest, as process 7");
}

#[test]
fn a_time_limit_holds_while_the_agent_is_silent() {
    let agent = Scripted::start()
        .answering("guest-exec", Answer::Value(json!({ "pid": 7 })))
        .answering("guest-exec-status", Answer::Silence);
    let child = start(&agent.target(), ["--timeout", "1h", "exec", "-l", "1", "true"]);
    wait(child).failed(75, "the program may still run in the guest, as process 7");
}

#[test]
fn two_signals_at_once_clean_up() {
    let Some(guest) = Guest::start() else { return };
    let pid = guest.path("pid");
    let script = format!(
        "trap '' TERM; echo $$ $(readlink /proc/$$/fd/1) >{}; echo up; while :; do sleep 0.05; done",
        pid.display()
    );
    let mut child = start(&guest.target(), ["exec", "sh", "-c", &script]);
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    signal(child.id(), Signal::INT);
    signal(child.id(), Signal::TERM);
    assert_eq!(wait(child).code, Some(130));
    let text = fs::read_to_string(pid).unwrap();
    let pid = text.split_ascii_whitespace().next().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
}

#[test]
fn a_signal_that_is_ignored_from_the_start_stays_ignored() {
    let Some(guest) = Guest::start() else { return };
    let go_on = guest.text("go-on");
    let script = format!("echo up; until [ -e {go_on} ]; do sleep 0.01; done; echo through");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_qga"), "-t", &guest.target()]);
    command.args(["exec", "sh", "-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    signal(child.id(), Signal::HUP);
    signal(child.id(), Signal::HUP);
    signal(child.id(), Signal::HUP);
    fs::write(go_on, "").unwrap();
    assert_eq!(wait(child).good(), "through\n");
}

#[test]
fn a_reader_that_leaves_ends_even_a_program_that_does_not_want_to() {
    let Some(guest) = Guest::start() else { return };
    let pid = guest.path("pid");
    let script = format!("trap '' TERM; echo $$ >{}; while :; do echo line; sleep 0.05; done", pid.display());
    let mut child = start(&guest.target(), ["exec", "sh", "-c", &script]);
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 5]).unwrap();
    drop(output);
    assert_eq!(wait(child).code, Some(141));
    let pid = fs::read_to_string(pid).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
    assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
}

/// A guest with one file, which comes slowly.
fn slow_guest(socket: &std::path::Path) -> Scripted {
    const PIECES: usize = 60;
    let record = format!("//81a4 {} 17 1 8 512 9,a\nroot\nroot\n/x\n", 3 * PIECES);
    let said = json!({ "exited": true, "exitcode": 0, "out-data": encode(record.as_bytes()) });
    let left = std::sync::atomic::AtomicUsize::new(PIECES);
    Scripted::start_at(socket)
        .answering("guest-exec", Answer::Value(json!({ "pid": 7 })))
        .answering("guest-exec-status", Answer::Value(said))
        .answering("guest-file-open", Answer::Value(json!(1000)))
        .answering(
            "guest-file-read",
            Answer::from_fn(move |_| {
                thread::sleep(std::time::Duration::from_millis(30));
                let left = left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                Answer::Value(json!({ "count": 3, "buf-b64": "YWJj", "eof": left <= 1 }))
            }),
        )
}

fn encode(bytes: &[u8]) -> String {
    serde_json::to_value(qga_protocol::base64::Base64(bytes.to_vec())).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn copies_of_several_targets_have_a_line_of_progress_each() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let _guests = ["one.sock", "two.sock", "three.sock", "four.sock"].map(|name| slow_guest(&place(name)));
    let targets = |one, other| format!("{},{}", place(one).display(), place(other).display());
    let to = directory.path().join("copies");
    let arguments = ["cp", ":/x", to.to_str().unwrap()];
    let seat = Seat::start(&targets("one.sock", "two.sock"), &arguments);
    seat.shows("one  /x");
    seat.shows("two  /x");
    let shown = Arc::clone(&seat.shown);
    assert_eq!(seat.end(), Some(0));
    until("it is summed up", || String::from_utf8_lossy(&shown.lock().unwrap()).contains("2 targets"));
    for name in ["one/x", "two/x"] {
        assert_eq!(fs::read(to.join(name)).unwrap(), b"abc".repeat(60), "{name}");
    }
    // A pipe is no place for it.
    let ended = run(&targets("three.sock", "four.sock"), arguments);
    assert!(ended.code == Some(0) && !ended.stderr.contains('%') && !ended.stderr.contains('\u{1b}'), "{ended:?}");
}
