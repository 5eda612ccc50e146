//! `qga` and the `virsh` that it starts, which is a script here.

mod stage;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use stage::{command, signal, until};

/// Whether a process is there and not only waits for somebody to ask for its end.
fn is_running(process: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

#[test]
fn a_virsh_that_hangs_does_not_outlive_a_killed_qga() {
    let directory = tempfile::tempdir().unwrap();
    let virsh = directory.path().join("virsh");
    fs::write(&virsh, "#!/bin/sh\necho $$ >\"$0.new\"; mv \"$0.new\" \"$0.process\"; exec sleep 600\n").unwrap();
    fs::set_permissions(&virsh, fs::Permissions::from_mode(0o755)).unwrap();
    let mut qga = command();
    let mut qga = qga.args(["-t", "libvirt:web", "ping"]).env("QGA_VIRSH", &virsh).spawn().unwrap();
    let place = directory.path().join("virsh.process");
    until("virsh runs", || place.exists());
    let process = fs::read_to_string(place).unwrap().trim().to_owned();
    assert!(is_running(&process));
    signal(qga.id(), rustix::process::Signal::KILL);
    until("virsh has ended", || !is_running(&process));
    qga.wait().unwrap();
}
