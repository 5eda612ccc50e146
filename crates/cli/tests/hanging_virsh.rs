//! Signals while `virsh` hangs: every wait for it ends, it is killed, and the clean-up that goes through it too has an end.

mod stage;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use stage::{Ended, command, signal, until, wait};

/// Answers as virsh does, starts one program, and hangs at what is asked next.
const SCRIPT: &str = r#"#!/bin/sh
IFS= read -r request
hang() { echo $$ >>"${0%/*}/pids"; exec sleep 100000; }
case $request in
*guest-exec-status*) hang ;;
*"$QGA_TEST_HANGS_AT"*) hang ;;
*guest-exec*) echo '{"return": {"pid": 7}}' ;;
*) echo "error: internal error: unable to execute QEMU agent command 'x': Command x has been disabled: the command is not allowed" >&2 ;;
esac
"#;

struct Hanging {
    directory: tempfile::TempDir,
}

impl Hanging {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("virsh");
        fs::write(&program, SCRIPT).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    /// Starts `qga` with this `virsh` first in `PATH`, and waits until it hangs.
    fn start(&self, hangs_at: &str, arguments: &[&str]) -> Child {
        let path = format!("{}:{}", self.directory.path().display(), std::env::var("PATH").unwrap());
        let mut command = command();
        command.env("PATH", path).env("QGA_TEST_HANGS_AT", hangs_at).env_remove("QGA_VIRSH");
        command.args(["-t", "libvirt:web", "--timeout", "10000"]).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("virsh hangs", || !self.pids().is_empty());
        child
    }

    fn pids(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string(self.directory.path().join("pids")).unwrap_or_default();
        text.lines().map(|pid| Path::new("/proc").join(pid)).collect()
    }

    /// Sends signals, and waits for `qga` and every `virsh` to end.
    fn end(&self, child: Child, signals: &[Signal]) -> Ended {
        for one in signals {
            signal(child.id(), *one);
            // Two that come at once are one.
            thread::sleep(Duration::from_millis(300));
        }
        let ended = wait(child);
        for pid in self.pids() {
            until("virsh is gone", || !pid.exists());
        }
        ended
    }
}

#[test]
fn a_signal_ends_the_wait_for_a_virsh_that_hangs() {
    let local = tempfile::NamedTempFile::new().unwrap();
    let local = local.path().to_str().unwrap();
    for (hangs_at, arguments) in [
        ("guest-exec", &["exec", "true"][..]),
        ("guest-file-open", &["cp", local, ":/x"]),
        ("guest-fsfreeze-status", &["--yes", "freeze"]),
        ("guest-fsfreeze-status", &["freeze", "--run", "true"]),
        ("guest-ping", &["ping"]),
    ] {
        let hanging = Hanging::new();
        let child = hanging.start(hangs_at, arguments);
        let ended = hanging.end(child, &[Signal::INT, Signal::TERM]);
        // By the signal itself where nothing has to be put in order.
        assert!([None, Some(130)].contains(&ended.code), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn one_signal_is_enough_and_what_still_runs_is_named() {
    let hanging = Hanging::new();
    let child = hanging.start("nothing else", &["exec", "sleep", "100"]);
    let ended = hanging.end(child, &[Signal::INT]);
    ended.failed(130, "may still run in the guest, as process 7");
}
