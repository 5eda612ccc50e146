//! The client's tasks with a real agent: the one that `AGENT_UNDER_TEST` names, the original without it.

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use qga_client::{
    AnyAgent, Console, CopyOptions, Error, Exit, FileKind, Input, Kind, OutputStream, Program, Progress, RunOptions,
    Target, Timeouts, TreeReport, Wish,
};
use qga_compliance::{Agent, Subject};

/// An agent and a directory that it shares with the test.
struct Guest {
    agent: Agent,
    directory: tempfile::TempDir,
}

impl Guest {
    /// `None` for an agent that runs elsewhere: these tests look at its files.
    fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    fn start_with(options: &[&str]) -> Option<Self> {
        let subject = Subject::under_test();
        subject.program()?;
        let agent = Agent::start(&subject, options).unwrap();
        let directory = tempfile::tempdir().unwrap();
        agent.is_local().then_some(Self { agent, directory })
    }

    fn target(&self) -> Target {
        Target::Unix(self.agent.directory().join("socket"))
    }

    fn connect(&self) -> AnyAgent {
        qga_client::Agent::connect(&self.target(), Timeouts::default()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

fn shell(script: &str) -> Program {
    Program { path: "sh".to_owned(), arguments: vec!["-c".to_owned(), script.to_owned()], ..Program::default() }
}

fn no_progress(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Bytes that repeat nowhere near.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Keeps what a program writes, feeds it, and ends it when told.
#[derive(Default)]
struct Recorder {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// The pieces in which it came.
    pieces: Vec<Vec<u8>>,
    input: Vec<Vec<u8>>,
    /// What to do once there is output.
    then: Option<Wish>,
}

impl Console for Recorder {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
        match stream {
            OutputStream::Stdout => self.stdout.extend(bytes),
            OutputStream::Stderr => self.stderr.extend(bytes),
        }
        self.pieces.push(bytes.to_vec());
        Ok(())
    }

    fn input(&mut self) -> std::io::Result<Input> {
        Ok(self.input.pop().map_or(Input::End, Input::Bytes))
    }

    fn wish(&mut self) -> Wish {
        self.then.filter(|_| !self.stdout.is_empty()).unwrap_or(Wish::GoOn)
    }
}

/// What the client's own programs leave in the guest's `/tmp`.
fn leftovers() -> Vec<PathBuf> {
    let name = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".qga-"));
    fs::read_dir("/tmp").unwrap().flatten().map(|entry| entry.path()).filter(name).collect()
}

#[test]
fn a_program_gives_its_output_and_its_exit() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let program = Program { input: Some(b"given".to_vec()), ..shell("cat; echo wrong >&2; umask; exit 3") };
    let ended = agent.run_live(&program, &RunOptions::default(), &mut seen).unwrap();
    assert_eq!(ended.exit, Exit::Code(3));
    assert!(ended.was_live && !ended.timed_out);
    let umask = agent.run("sh", &["-c", "umask"], None).unwrap().stdout;
    assert_eq!(seen.stdout, [b"given".as_slice(), &umask].concat(), "the program has the agent's umask");
    assert_eq!(seen.stderr, b"wrong\n");
}

#[test]
fn an_agent_that_opens_no_files_gives_the_output_at_the_end() {
    let Some(guest) = Guest::start_with(&["-b", "guest-file-open"]) else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let ended = agent.run_live(&shell("echo out; echo wrong >&2; exit 5"), &RunOptions::default(), &mut seen).unwrap();
    assert_eq!((ended.exit, ended.was_live), (Exit::Code(5), false));
    assert_eq!((seen.stdout.as_slice(), seen.stderr.as_slice()), (b"out\n".as_slice(), b"wrong\n".as_slice()));
    assert_eq!(agent.read_file("/etc/hostname").unwrap_err().kind(), Kind::CommandRefused);
}

#[test]
fn an_agent_that_starts_no_programs_gives_its_files() {
    let Some(guest) = Guest::start_with(&["-b", "guest-exec"]) else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("source"), noise(100_000)).unwrap();
    agent.download(&guest.text("source"), &guest.path("copy"), CopyOptions::default(), &mut no_progress).unwrap();
    assert_eq!(fs::read(guest.path("copy")).unwrap(), noise(100_000));
    let refused = agent.upload(&guest.path("source"), &guest.text("up"), CopyOptions::default(), &mut no_progress);
    assert_eq!(refused.unwrap_err().kind(), Kind::CommandRefused);
    assert_eq!(names(&guest), ["copy", "source"]);
}

#[test]
fn a_program_that_a_signal_ends_says_so_and_a_missing_one_is_127() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut exit = |program: &Program| {
        let mut seen = Recorder::default();
        agent.run_live(program, &RunOptions::default(), &mut seen).unwrap().exit
    };
    assert_eq!(exit(&shell("kill -9 $$")), Exit::Signal(9));
    assert_eq!(exit(&Program { path: "/nonexistent/program".to_owned(), ..Program::default() }), Exit::Code(127));
    assert_eq!(exit(&shell("exit 73")), Exit::Code(73), "the script's own code means nothing else");
}

#[test]
fn output_comes_while_the_program_runs() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    // It ends only when its output has been seen: the test hangs where output comes at the end alone.
    let sign = guest.path("seen");
    let script = format!("echo first; while [ ! -e {} ]; do sleep 0.02; done; echo second", sign.display());
    let mut pieces = Vec::new();
    let mut take = |_: OutputStream, bytes: &[u8]| {
        pieces.push(bytes.to_vec());
        fs::write(&sign, "")
    };
    let options = RunOptions { time_limit: Some(Duration::from_secs(60)), ..RunOptions::default() };
    let ended = agent.run_live(&shell(&script), &options, &mut take).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    assert_eq!(pieces, [b"first\n", b"second\n".as_slice()]);
}

#[test]
fn large_output_comes_whole_and_nothing_is_left_in_the_guest() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let size = 40 << 20;
    let script = format!("head -c {size} /dev/zero; head -c 100000 /dev/zero >&2");
    let before = leftovers();
    let ended = agent.run_live(&shell(&script), &RunOptions::default(), &mut seen).unwrap();
    assert_eq!((ended.exit, ended.is_cut), (Exit::Code(0), false));
    assert_eq!((seen.stdout.len(), seen.stderr.len()), (size, 100_000));
    // Other tests of this file have files of their own there for a moment.
    let mut left: Vec<PathBuf> = leftovers().into_iter().filter(|path| !before.contains(path)).collect();
    for _ in 0..200 {
        left.retain(|path| path.exists());
        std::thread::sleep(Duration::from_millis(if left.is_empty() { 0 } else { 50 }));
    }
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn input_is_fed_while_the_program_reads() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let pieces: Vec<Vec<u8>> = vec![noise(300_000), b"line\n".to_vec(), Vec::new(), noise(5000)];
    let mut seen = Recorder { input: pieces.iter().rev().cloned().collect(), ..Recorder::default() };
    let options = RunOptions { interactive_input: true, ..RunOptions::default() };
    let ended = agent.run_live(&shell("sleep 0.1; cat"), &options, &mut seen).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    assert!(seen.stdout == pieces.concat(), "{} bytes came back", seen.stdout.len());
}

#[test]
fn large_input_that_nobody_reads_does_no_harm() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let mut seen = Recorder::default();
    let program = Program { input: Some(noise(1 << 20)), ..shell("head -c 3 | wc -c") };
    let ended = agent.run_live(&program, &RunOptions::default(), &mut seen).unwrap();
    assert_eq!(ended.exit, Exit::Code(0));
    assert_eq!(String::from_utf8_lossy(&seen.stdout).trim(), "3");
    agent.call_raw("guest-ping", serde_json::Value::Null).unwrap();
}

#[test]
fn a_program_is_ended_at_its_time_limit_and_on_wish() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let limited = RunOptions { time_limit: Some(Duration::from_millis(100)), ..RunOptions::default() };
    let ended = agent.run_live(&shell("exec sleep 600"), &limited, &mut Recorder::default()).unwrap();
    assert_eq!((ended.exit, ended.timed_out), (Exit::Signal(15), true));

    let deaf = RunOptions { grace: Duration::from_millis(100), ..RunOptions::default() };
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done";
    let mut seen = Recorder { then: Some(Wish::Terminate), ..Recorder::default() };
    let ended = agent.run_live(&shell(script), &deaf, &mut seen).unwrap();
    assert_eq!((ended.exit, ended.timed_out), (Exit::Signal(9), false));
}

#[test]
fn a_program_whose_output_nobody_takes_is_ended() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let gone = guest.path("gone");
    let script = format!("trap 'echo > {}; exit' TERM; echo x; while :; do sleep 0.05; done", gone.display());
    let mut refuse = |_: OutputStream, _: &[u8]| Err(std::io::ErrorKind::BrokenPipe.into());
    let error = agent.run_live(&shell(&script), &RunOptions::default(), &mut refuse).unwrap_err();
    assert!(error.to_string().starts_with("cannot take the program's output: "), "{error}");
    while !gone.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    agent.call_raw("guest-ping", serde_json::Value::Null).unwrap();
}

#[test]
fn a_file_goes_there_and_back_with_mode_and_checksum() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let options = CopyOptions { verify: true, ..CopyOptions::default() };
    for size in [0, 1, (1 << 20) - 1, 1 << 20, (9 << 20) + 5] {
        let content = noise(size);
        let source = guest.path("source");
        fs::write(&source, &content).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o751)).unwrap();
        let mut seen = 0;
        let mut progress = |progress: Progress<'_>| {
            assert_eq!(progress.total_bytes, size as u64);
            seen = progress.copied_bytes;
            ControlFlow::Continue(())
        };
        let there = guest.text("in the guest\n\"x\"");
        let copied = agent.upload(&source, &there, options, &mut progress).unwrap();
        assert_eq!((copied.bytes, copied.resumed_at), (size as u64, 0));
        assert_eq!(seen, size as u64);
        assert_eq!(fs::metadata(&there).unwrap().permissions().mode() & 0o7777, 0o751);

        let back = guest.path("back");
        let copied = agent.download(&there, &back, options, &mut no_progress).unwrap();
        assert!(copied.sha256.is_some());
        assert!(fs::read(&back).unwrap() == content, "{size} bytes came back otherwise");
        assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o7777, 0o751);
    }
    assert_eq!(names(&guest), ["back", "in the guest\n\"x\"", "source"]);
}

fn names(guest: &Guest) -> Vec<String> {
    let entries = fs::read_dir(guest.directory.path()).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_copy_that_was_broken_off_goes_on() {
    let Some(guest) = Guest::start() else { return };
    let content = noise(8 << 20);
    fs::write(guest.path("source"), &content).unwrap();
    let options = CopyOptions { resume: true, verify: true, ..CopyOptions::default() };
    for way in ["up", "down"] {
        let (source, there) = (guest.path("source"), guest.text(way));
        let copy = |progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>| {
            let mut agent = guest.connect();
            match way {
                "up" => agent.upload(&source, &there, options, progress),
                _ => agent.download(source.to_str().unwrap(), there.as_ref(), options, progress),
            }
        };
        let mut half = |progress: Progress<'_>| {
            if progress.copied_bytes >= 4 << 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = copy(&mut half).unwrap_err();
        assert!(matches!(&error, Error::Stopped { kept: Some(kept), .. } if kept.contains("qga-partial")), "{error}");
        assert!(!guest.path(way).exists(), "nothing half-written has the final name");
        let copied = copy(&mut no_progress).unwrap();
        assert!(copied.resumed_at > 0, "{way} began anew");
        assert!(fs::read(guest.path(way)).unwrap() == content, "{way} is something else");
    }
    assert_eq!(names(&guest), ["down", "source", "up"]);
}

#[test]
fn a_partial_file_of_something_else_is_not_gone_on_from() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("source"), noise(1000)).unwrap();
    fs::write(guest.path(".up.qga-partial"), b"something else").unwrap();
    fs::write(guest.path(".down.qga-partial"), b"something else").unwrap();
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    let up = agent.upload(&guest.path("source"), &guest.text("up"), options, &mut no_progress).unwrap();
    let down = agent.download(&guest.text("source"), &guest.path("down"), options, &mut no_progress).unwrap();
    assert_eq!((up.resumed_at, down.resumed_at), (0, 0));
    assert_eq!(fs::read(guest.path("up")).unwrap(), noise(1000));
    assert_eq!(fs::read(guest.path("down")).unwrap(), noise(1000));
}

#[test]
fn a_link_under_the_partial_name_is_not_followed() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("victim"), b"keep").unwrap();
    fs::write(guest.path("source"), b"new").unwrap();
    for name in [".up.qga-partial", ".down.qga-partial"] {
        std::os::unix::fs::symlink(guest.path("victim"), guest.path(name)).unwrap();
    }
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    agent.upload(&guest.path("source"), &guest.text("up"), options, &mut no_progress).unwrap();
    agent.download(&guest.text("source"), &guest.path("down"), options, &mut no_progress).unwrap();
    assert_eq!(fs::read(guest.path("victim")).unwrap(), b"keep");
    assert_eq!(names(&guest), ["down", "source", "up", "victim"]);
}

#[test]
fn a_file_that_changes_while_it_is_copied_is_not_kept() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let source = guest.path("source");
    for way in ["up", "down"] {
        fs::write(&source, noise(6 << 20)).unwrap();
        let mut is_changed = false;
        let mut change = |_: Progress<'_>| {
            if !is_changed {
                let mut file = fs::OpenOptions::new().append(true).open(&source).unwrap();
                file.write_all(b"more").unwrap();
                is_changed = true;
            }
            ControlFlow::Continue(())
        };
        let options = CopyOptions::default();
        let error = match way {
            "up" => agent.upload(&source, &guest.text(way), options, &mut change),
            _ => agent.download(source.to_str().unwrap(), &guest.path(way), options, &mut change),
        };
        assert_eq!(error.unwrap_err().kind(), Kind::Changed);
    }
    assert_eq!(names(&guest), ["source"]);
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left() {
    let Some(guest) = Guest::start() else { return };
    let Some(small) = SmallDisk::mount() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("source"), noise(6 << 20)).unwrap();
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    let there = small.0.path().join("x");
    let error = agent.upload(&guest.path("source"), there.to_str().unwrap(), options, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), Kind::GuestFull, "{error}");
    agent.call_raw("guest-ping", serde_json::Value::Null).unwrap();
    let error = agent.download(&guest.text("source"), &there, options, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFull, "{error}");
    assert_eq!(fs::read_dir(small.0.path()).unwrap().count(), 0);
}

/// A file system of 2 MiB; goes with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(directory.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn what_cannot_be_copied_is_told_why() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let options = CopyOptions::default();
    fs::write(guest.path("source"), "x").unwrap();
    fs::create_dir(guest.path("directory")).unwrap();
    let mut check = |up: bool, from: &str, to: &str, expected: &str| {
        let (from, to) = (guest.path(from), guest.path(to));
        let error = if up {
            agent.upload(&from, to.to_str().unwrap(), options, &mut no_progress)
        } else {
            agent.download(from.to_str().unwrap(), &to, options, &mut no_progress)
        };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    for up in [true, false] {
        check(up, "missing", "x", "No such file or directory");
        check(up, "directory", "x", "it is a directory");
        check(up, "source", "directory", "it is a directory");
        check(up, "source", "missing/x", "No such file or directory");
    }
    drop(agent);
    assert_eq!(names(&guest), ["directory", "source"]);
}

#[test]
fn a_device_a_socket_and_a_fifo_stay_what_they_are() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("source"), "x").unwrap();
    let made = std::process::Command::new("mkfifo").arg(guest.path("fifo")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("socket")).unwrap();
    std::os::unix::fs::symlink("/dev/null", guest.path("device")).unwrap();
    let before = names(&guest);
    for name in ["fifo", "socket", "device"] {
        let options = CopyOptions::default();
        let up = agent.upload(&guest.path("source"), &guest.text(name), options, &mut no_progress);
        let down = agent.download(&guest.text("source"), &guest.path(name), options, &mut no_progress);
        for error in [up.unwrap_err(), down.unwrap_err()] {
            assert!(error.to_string().contains("it is a device, a socket or a FIFO"), "{error}");
        }
        assert!(!guest.path(name).metadata().unwrap().is_file());
    }
    assert_eq!(names(&guest), before);
    for up in [true, false] {
        std::os::unix::fs::symlink("/nonexistent/x", guest.path("dangling")).unwrap();
        let (from, to) = (guest.path("source"), guest.path("dangling"));
        let copied = if up {
            agent.upload(&from, to.to_str().unwrap(), CopyOptions::default(), &mut no_progress)
        } else {
            agent.download(from.to_str().unwrap(), &to, CopyOptions::default(), &mut no_progress)
        };
        assert_eq!(copied.unwrap().bytes, 1);
        fs::remove_file(to).unwrap();
    }
}

#[test]
fn two_copies_to_one_name_do_not_mix() {
    let (Some(guest), Some(other)) = (Guest::start(), Guest::start()) else { return };
    let long = noise(6 << 20);
    let (source, short, there) = (guest.path("source"), guest.path("short"), guest.path("x"));
    fs::write(&source, &long).unwrap();
    fs::write(&short, "short").unwrap();
    for (up, resume) in [(true, false), (true, true), (false, false), (false, true)] {
        let options = CopyOptions { resume, ..CopyOptions::default() };
        let copy = |guest: &Guest, from: &PathBuf, progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>| {
            let mut agent = guest.connect();
            if up {
                agent.upload(from, there.to_str().unwrap(), options, progress)
            } else {
                agent.download(from.to_str().unwrap(), &there, options, progress)
            }
        };
        let mut second = None;
        let first = copy(&guest, &source, &mut |progress| {
            if progress.copied_bytes >= 2 << 20 && second.is_none() {
                second = Some(copy(&other, &short, &mut no_progress));
            }
            ControlFlow::Continue(())
        });
        let (first, second) = (first.map_err(|error| error.to_string()), second.unwrap());
        let second = second.map_err(|error| error.to_string());
        let is_refused = |error: &String| error.contains("another copy to the same file is at work");
        let content = fs::read(&there).unwrap();
        match (up, resume) {
            // Each has a partial file of its own; the last one to end gives the content.
            (true, false) => assert!(first.is_ok() && second.is_ok() && content == long, "{first:?} {second:?}"),
            (true, true) => {
                assert!(first.as_ref().is_err_and(is_refused) && second.is_ok(), "{first:?} {second:?}");
                assert_eq!(content, b"short");
            }
            (false, _) => {
                assert!(first.is_ok() && second.as_ref().is_err_and(is_refused), "{first:?} {second:?}");
                assert!(content == long);
            }
        }
        fs::remove_file(&there).unwrap();
        assert_eq!(names(&guest), ["short", "source"]);
    }
}

#[test]
fn a_tree_goes_there_and_back() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let top = guest.path("tree");
    fs::create_dir_all(top.join("a/empty")).unwrap();
    fs::write(top.join("a/file\nwith a line end"), noise(70_000)).unwrap();
    fs::write(top.join("a/read only"), b"r").unwrap();
    fs::set_permissions(top.join("a/read only"), fs::Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o550)).unwrap();
    std::os::unix::fs::symlink("a/read only", top.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", top.join("outside")).unwrap();
    let odd = top.join(std::ffi::OsStr::from_bytes(b"not \xff text"));
    fs::write(&odd, b"x").unwrap();

    let check = |report: &TreeReport, copy: &str, skipped: usize| {
        assert_eq!((report.files, report.directories, report.links), (2, 3, 2), "{report:?}");
        assert_eq!(report.bytes, 70_001);
        assert_eq!(report.skipped.len(), skipped, "{report:?}");
        let copy = guest.path(copy);
        assert!(fs::read(copy.join("a/file\nwith a line end")).unwrap() == noise(70_000));
        let mode = |path: PathBuf| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(copy.join("a/read only")), mode(copy.join("a"))), (0o400, 0o550));
        assert!(copy.join("a/empty").is_dir());
        assert_eq!(fs::read_link(copy.join("link")).unwrap(), PathBuf::from("a/read only"));
        assert_eq!(fs::read_link(copy.join("outside")).unwrap(), PathBuf::from("/etc"));
    };
    let options = CopyOptions::default();
    let report = agent.upload_tree(&top, &guest.text("up"), options, &mut no_progress).unwrap();
    check(&report, "up", 1);
    let report = agent.download_tree(&guest.text("up"), &guest.path("down"), options, &mut no_progress).unwrap();
    check(&report, "down", 0);
    let report = agent.download_tree(&guest.text("tree"), &guest.path("again"), options, &mut no_progress).unwrap();
    check(&report, "again", 1);
}

#[test]
fn files_of_the_guest_are_listed() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("b\nc"), b"12345").unwrap();
    fs::create_dir_all(guest.path("d/e")).unwrap();
    let directory = guest.directory.path().to_str().unwrap().to_owned();
    let mut files = agent.list_directory(&directory, false).unwrap();
    files.retain(|file| file.kind == FileKind::Directory);
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].path_text().unwrap(), guest.text("d"));
    let link = guest.path("l");
    std::os::unix::fs::symlink("d", &link).unwrap();
    assert_eq!(agent.stat_file(&guest.text("l"), false).unwrap().kind, FileKind::Link);
    assert_eq!(agent.stat_file(&guest.text("l"), true).unwrap().kind, FileKind::Directory);
    assert_eq!(agent.list_directory(&guest.text("l"), true).unwrap().len(), 1, "a link is entered");
}

#[test]
fn an_agent_tells_what_it_serves() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    assert!(agent.serves("guest-exec").unwrap());
    assert!(!agent.serves("guest-no-such-command").unwrap());
    let error = agent.call_raw("guest-no-such-command", serde_json::Value::Null).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSuchCommand);
}

#[test]
fn a_port_that_another_client_holds_is_named() {
    // One client at a time is what QEMU's ports do; a listener that never accepts does the same.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let _other = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let timeouts = Timeouts { silence: Duration::from_millis(50), ..Timeouts::default() };
    let error = qga_client::Agent::connect(&Target::Unix(path), timeouts).unwrap_err();
    assert_eq!(error.kind(), Kind::Held, "{error}");
}
