use super::{Ended, OUTPUT_BYTES_MAX, Tool};
use crate::process::child::Exit;
use crate::system::root::Root;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// Puts a shell script into a machine. Another process writes it: one that another test starts at the same time would
/// have this process's descriptor for a moment, and a file that somebody writes cannot be executed.
pub fn write_script(root: &Root, path: &str, script: &str) {
    let file = root.path(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut writer = Command::new("/bin/sh");
    writer.args(["-c", "printf '#!/bin/sh\n%s\n' \"$1\" > \"$0\" && chmod 755 \"$0\""]).arg(file).arg(script);
    assert!(writer.status().unwrap().success());
}

fn run(script: &str, arguments: &[&str], input: &[u8], patience: Duration) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    write_script(&root, "/bin/it", script);
    Tool::find(&root, "it").unwrap().run(arguments, input, patience).unwrap()
}

#[test]
fn a_program_gets_its_input_and_leaves_its_output_and_code() {
    let ended = run("cat; echo \"$# $1\" >&2; exit 3", &["a b"], b"in\n", LONG);
    assert_eq!(ended, Ended { exit: Some(Exit::Code(3)), output: "in\n1 a b".to_owned() });
    let ended = run("kill -9 $$", &[], b"", LONG);
    assert_eq!(ended, Ended { exit: Some(Exit::Signal(9)), output: String::new() });
}

#[test]
fn the_environment_is_fixed() {
    let ended = run("echo \"$LC_ALL:$PATH:$HOME\"", &[], b"", LONG);
    assert_eq!(ended.output, "C:/usr/sbin:/usr/bin:/sbin:/bin:");
}

#[test]
fn a_program_that_takes_too_long_is_killed_with_what_it_started() {
    let started = Instant::now();
    let ended = run("echo begun; sleep 1000 & sleep 1000", &[], b"", Duration::from_millis(300));
    assert_eq!(ended, Ended { exit: None, output: "begun".to_owned() });
    assert!(started.elapsed() < LONG);
}

#[test]
fn who_holds_the_output_after_the_end_is_not_waited_for() {
    // The holder ends when the script is removed, which is after the end of the call.
    let script = "setsid sh -c \"while [ -e '$0' ]; do sleep 0.1; done\" & echo done";
    let ended = run(script, &[], b"", LONG);
    assert_eq!(ended, Ended { exit: Some(Exit::Code(0)), output: "done".to_owned() });
}

#[test]
fn large_input_and_output_pass_and_are_bounded() {
    let ended = run("cat", &[], &vec![b'x'; 1 << 20], LONG);
    assert_eq!((ended.exit, ended.output.len()), (Some(Exit::Code(0)), OUTPUT_BYTES_MAX));
    assert_eq!(run("exit 0", &[], &vec![b'x'; 1 << 20], LONG).exit, Some(Exit::Code(0)));
}

#[test]
fn busybox_serves_if_nothing_else_does() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    write_script(&root, "/bin/busybox", "echo \"$1 $2\"");
    assert_eq!(Tool::find(&root, "chpasswd").unwrap().run(&["-e"], b"", LONG).unwrap().output, "chpasswd -e");
    assert_eq!(Tool::find(&Root::at("/nonexistent"), "chpasswd"), None);
    assert_eq!(Tool::find_alone(&root, "chpasswd"), None);
    assert_eq!(Tool::of_busybox(&root, "halt").unwrap().to_string(), "busybox halt");
}

#[test]
fn a_failure_is_told_in_one_line() {
    let told = |exit, output: &str| Ended { exit, output: output.to_owned() }.failure(LONG);
    assert_eq!(told(Some(Exit::Code(0)), "noise"), None);
    assert_eq!(told(Some(Exit::Code(1)), "no\n\n  way").unwrap(), "exit status 1: no, way");
    assert_eq!(told(Some(Exit::Signal(9)), "").unwrap(), "ended by signal 9");
    assert_eq!(told(None, "").unwrap(), "did not end in 60 s and was killed");
    assert!(told(Some(Exit::Code(1)), &"x".repeat(1 << 16)).unwrap().len() < 600);
}
