//! Programs in the guest of a real agent: their output, their input, their end.

mod stage;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use qga_client::{CopyOptions, Exit, Kind, OutputStream, Program, RunOptions, Wish};
use stage::{Guest, Recorder, leftovers, no_progress, noise, shell};

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
fn a_program_gets_its_environment_as_it_was_given() {
    let Some(guest) = Guest::start() else { return };
    let environment: Vec<String> = ["b=1", "i=2", "k=3", "m=4"].map(str::to_owned).into();
    let program =
        Program { environment: Some(environment.clone()), ..shell("echo $b$i$k$m; exec 2>&-; ls /proc/$$/fd") };
    let mut seen = Recorder::default();
    guest.connect().run_live(&program, &RunOptions::default(), &mut seen).unwrap();
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(text.starts_with("1234\n0\n1\n"), "{text}");
    assert!(!text.contains("\n3\n"), "the shell's own descriptors are not the program's: {text}");
}

#[test]
fn output_may_be_taken_at_the_end() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let options = RunOptions { live: false, time_limit: Some(Duration::from_secs(60)), ..RunOptions::default() };
    let mut run = |program: &Program| {
        let mut seen = Recorder::default();
        let ended = agent.run_live(program, &options, &mut seen).unwrap();
        (ended, seen)
    };
    // It is the agent's own child, with no shell and no files in between.
    let program =
        Program { input: Some(b"given".to_vec()), ..shell("cat; readlink /proc/$$/fd/1; echo wrong >&2; exit 3") };
    let (ended, seen) = run(&program);
    assert_eq!((ended.exit, ended.was_live, ended.is_cut), (Exit::Code(3), false, false));
    assert!(seen.stdout.starts_with(b"givenpipe:["), "{}", String::from_utf8_lossy(&seen.stdout));
    assert_eq!(seen.stderr, b"wrong\n");

    let (ended, seen) = run(&shell("head -c 17000000 /dev/zero"));
    assert_eq!((ended.exit, ended.is_cut, seen.stdout.len()), (Exit::Code(0), true, 16 << 20));

    let (ended, seen) = run(&Program { input: Some(noise(200_000)), ..shell("wc -c") });
    assert!(ended.was_live, "long input needs the shell all the same");
    assert_eq!(seen.stdout, b"200000\n");
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
    assert_eq!(fs::read_dir(guest.directory.path()).unwrap().count(), 2, "nothing half-written is left");
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
