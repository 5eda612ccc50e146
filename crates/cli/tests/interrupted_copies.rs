//! Ctrl-C while a copy waits for a checksum in the guest.

mod stage;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use qga_compliance::{Agent, Subject};
use stage::{run, signal, start, until, wait};

/// A `sha256sum` that says that it runs, by its process id in `running`, and ends only when it is told to.
fn put_endless_sum(directory: &Path) -> PathBuf {
    let running = directory.join("running");
    let script =
        format!("#!/bin/sh\necho $$ >{0}.new && mv {0}.new {0}\nwhile :; do sleep 0.1; done\n", running.display());
    let program = directory.join("sha256sum");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    running
}

#[test]
fn ctrl_c_ends_a_checksum_and_its_program() {
    let tools = tempfile::tempdir().unwrap();
    let running = put_endless_sum(tools.path());
    for tool in fs::read_dir("/usr/bin").unwrap().flatten() {
        // Ours is there already.
        let _ = symlink(tool.path(), tools.path().join(tool.file_name()));
    }
    let agent = Agent::start_with_programs(&Subject::under_test(), tools.path()).expect("an agent");
    if !agent.is_local() {
        return;
    }
    let target = agent.directory().join("socket").display().to_string();
    let files = tempfile::tempdir().unwrap();
    let (here, there) = (files.path().join("here"), files.path().join("there"));
    fs::write(&here, "content").unwrap();
    let (here, there) = (here.display().to_string(), there.display().to_string());
    for (from, to) in [(here.clone(), format!(":{there}")), (format!(":{here}"), there.clone())] {
        let child = start(&target, ["cp", "-c", &from, &to]);
        until("the checksum is under way", || running.exists());
        let program: u32 = fs::read_to_string(&running).unwrap().trim().parse().unwrap();
        signal(child.id(), rustix::process::Signal::INT);
        // It would never end by itself.
        let ended = wait(child);
        assert_eq!(ended.code, Some(130), "{ended:?}");
        until("the program in the guest has ended", || {
            let status = fs::read_to_string(format!("/proc/{program}/stat")).unwrap_or_default();
            status.is_empty() || status.contains(") Z ")
        });
        assert!(!Path::new(&there).exists());
        assert_eq!(fs::read_dir(files.path()).unwrap().count(), 1, "a half file is left");
        fs::remove_file(&running).unwrap();
    }
    // The agent is well, and so is the next copy.
    run(&target, ["cp", &here, &format!(":{there}")]).good();
}
