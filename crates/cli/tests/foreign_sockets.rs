//! Sockets that another user of the host could have put where an agent's is wanted: nothing is sent there. Real second
//! users: a thread changes its own user, and the kernel takes that for the owner and for the server of what it makes.

mod stage;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use rustix::process::{Gid, Uid};
use stage::scripted::Scripted;
use stage::{Ended, run, run_with_input};

/// Users that no system has.
const MALLORY: u32 = 60_001;
const SERVICE: u32 = 60_002;

/// Directories that other users reach, and one in which they can make entries.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { directory: tempfile::Builder::new().prefix("qga-host").tempdir_in("/tmp").unwrap() };
        mode(host.directory.path(), 0o755);
        host.make("shared", 0o1777, 0);
        host
    }

    fn make(&self, name: &str, bits: u32, owner: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
        mode(&path, bits);
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, Permissions::from_mode(bits)).unwrap();
}

/// Does something as another user.
fn as_user<T: Send + 'static>(user: u32, act: impl FnOnce() -> T + Send + 'static) -> T {
    let become_user = move || {
        let (group, owner) = (Gid::from_raw(user), Uid::from_raw(user));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(owner, owner, owner).unwrap();
        act()
    };
    thread::spawn(become_user).join().unwrap()
}

/// An agent that a user has started at a path.
fn agent_of(user: u32, path: PathBuf) -> Scripted {
    as_user(user, move || Scripted::start_at(path))
}

/// `qga` as another user.
fn run_as(user: u32, host: &Host, arguments: &[&str]) -> Ended {
    let program = host.path("qga");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_qga"), &program).unwrap();
    }
    let mut command = std::process::Command::new(program);
    command.env_remove("QGA_TARGET").args(arguments).uid(user).gid(user).stdin(Stdio::null());
    command.output().unwrap().into()
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("not run: only root can start servers as other users");
    }
    is_root
}

fn refused(ended: Ended, says: &str) {
    assert!(ended.stderr.contains("nothing was sent"), "{ended:?}");
    ended.failed(77, says);
}

#[test]
fn a_password_is_not_told_to_another_users_server_in_a_shared_directory() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let fake = agent_of(MALLORY, host.path("shared/x.sock"));
    let password = ["--timeout", "20", "passwd", "root", "--stdin"];
    let belongs = format!("shared/x.sock belongs to user {MALLORY}");
    refused(run_with_input(&fake.target(), password, b"s3cret\n"), &belongs);
    refused(run(&format!("hybrid:{}:1", fake.target()), ["ping"]), &belongs);
    refused(run_as(SERVICE, &host, &["-t", &fake.target(), "ping"]), &belongs);
    // Whose directory it is in does not matter if anybody can make one of that name.
    as_user(MALLORY, {
        let path = host.path("shared/vm");
        move || fs::create_dir(path).unwrap()
    });
    let hidden = agent_of(MALLORY, host.path("shared/vm/x.sock"));
    refused(run(&hidden.target(), ["ping"]), &format!("shared/vm belongs to user {MALLORY}"));
    assert_eq!((fake.connections(), hidden.connections()), (0, 0));

    // By the user's own word, and for the other user.
    run(&fake.target(), ["--trust-socket", "ping"]).good();
    run_as(MALLORY, &host, &["-t", &fake.target(), "ping"]).good();
}

#[test]
fn a_link_that_another_user_has_made_is_not_followed() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let agent = Scripted::start_at(host.make("vm", 0o755, 0).join("x.sock"));
    let (link, to) = (host.path("shared/link.sock"), agent.path().to_owned());
    as_user(MALLORY, move || symlink(to, link).unwrap());
    let belongs = format!("link.sock belongs to user {MALLORY}");
    refused(run(&host.text("shared/link.sock"), ["ping"]), &belongs);
    refused(run(&format!("serial:{}", host.text("shared/link.sock")), ["ping"]), &belongs);
    assert_eq!(agent.connections(), 0);
    symlink("../vm/x.sock", host.path("shared/own.sock")).unwrap();
    run(&host.text("shared/own.sock"), ["ping"]).good();
}

#[test]
fn a_directory_in_which_others_can_replace_the_socket_is_refused() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    for (name, bits, group, says) in
        [("open", 0o777, 0, "every user can replace"), ("team", 0o770, 60_010, "group 60010 can replace")]
    {
        let directory = host.make(name, bits, 0);
        chown(&directory, Some(0), Some(group)).unwrap();
        let agent = Scripted::start_at(directory.join("x.sock"));
        refused(run(&agent.target(), ["ping"]), says);
        assert_eq!(agent.connections(), 0);
    }
    // Another user's directory with root's socket in it.
    let agent = Scripted::start_at(host.make("foreign", 0o755, MALLORY).join("x.sock"));
    refused(run(&agent.target(), ["ping"]), &format!("foreign belongs to user {MALLORY}"));
}

#[test]
fn the_sockets_of_hypervisors_with_accounts_of_their_own_are_used() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    // As below /var/lib/libvirt, or of a service of Cloud Hypervisor's.
    let own = agent_of(SERVICE, host.make("service", 0o750, SERVICE).join("x.sock"));
    run(&own.target(), ["ping"]).good();
    // libvirt's daemon makes the socket as root and gives it to the account.
    let given = Scripted::start_at(host.make("given", 0o755, SERVICE).join("x.sock"));
    chown(given.path(), Some(SERVICE), Some(SERVICE)).unwrap();
    run(&given.target(), ["ping"]).good();
    // Proxmox VE's and KubeVirt's are root's; a user's own are that user's.
    let root = Scripted::start_at(host.make("root", 0o755, 0).join("x.sock"));
    run(&root.target(), ["ping"]).good();
    run_as(SERVICE, &host, &["-t", &own.target(), "ping"]).good();
}

#[test]
fn a_server_that_runs_as_neither_root_nor_the_owner_is_refused() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let directory = host.make("moved", 0o755, MALLORY);
    let agent = agent_of(MALLORY, directory.join("x.sock"));
    for path in [&directory, agent.path()] {
        chown(path, Some(0), Some(0)).unwrap();
    }
    refused(run(&agent.target(), ["ping"]), &format!("a process of user {MALLORY} listens there"));
    assert!(agent.asked().is_empty());
}

#[test]
fn a_pattern_does_not_lead_to_another_users_socket() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    let fake = agent_of(MALLORY, host.path("shared/a.sock"));
    let agent = Scripted::start_at(host.path("shared/b.sock"));
    let ended = run(&host.text("shared/*.sock"), ["ping"]);
    assert!(ended.text().contains('b'), "{ended:?}");
    ended.failed(77, "another user may have put it there");
    assert_eq!((fake.connections(), agent.connections()), (0, 1));
}
