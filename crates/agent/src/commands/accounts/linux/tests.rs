use super::{add_keys, key_file, remove_keys};
use crate::commands::accounts::keys;
use crate::error::Error;
use crate::root::Root;
use rustix::fs::{FileType, Mode, mknodat};
use rustix::process::geteuid;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A user that no system has.
const ANN: u32 = 61_234;

/// A machine with the user ann, whose home is there and empty. Without root it is whoever runs the test.
struct Machine {
    _directory: tempfile::TempDir,
    root: Root,
    uid: u32,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = Root::at(directory.path());
        let uid = if geteuid().is_root() { ANN } else { geteuid().as_raw() };
        let machine = Self { _directory: directory, root, uid };
        fs::create_dir_all(machine.path("/etc")).unwrap();
        let passwd = format!("root:x:0:0::/root:/bin/sh\nann:x:{uid}:{uid}::/home/ann:/bin/sh\n");
        fs::write(machine.path("/etc/passwd"), passwd).unwrap();
        fs::create_dir_all(machine.path("/secret")).unwrap();
        fs::write(machine.path("/secret/authorized_keys"), "SECRET\n").unwrap();
        fs::set_permissions(machine.path("/secret/authorized_keys"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir_all(machine.path("/home/ann")).unwrap();
        machine.give("/home/ann");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path(path)
    }

    fn file(&self) -> PathBuf {
        self.path("/home/ann/.ssh/authorized_keys")
    }

    fn give(&self, path: &str) {
        if geteuid().is_root() {
            chown(self.path(path), Some(self.uid), Some(self.uid)).unwrap();
        }
    }

    /// A `.ssh` of ann's, with a file in it if there is content.
    fn with_file(&self, content: Option<&str>) {
        fs::create_dir(self.path("/home/ann/.ssh")).unwrap();
        self.give("/home/ann/.ssh");
        if let Some(content) = content {
            fs::write(self.file(), content).unwrap();
            self.give("/home/ann/.ssh/authorized_keys");
        }
    }

    fn get(&self) -> Result<String, Error> {
        key_file(&self.root, "ann").map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn add(&self, key: &str, reset: bool) -> Result<(), Error> {
        let key = vec![key.to_owned()];
        add_keys(&self.root, "ann", reset, move |file| keys::with(file, &key))
    }

    fn remove(&self, key: &str) -> Result<(), Error> {
        let key = vec![key.to_owned()];
        remove_keys(&self.root, "ann", move |file| keys::without(file, &key))
    }

    fn expect_file(&self, content: &str) {
        let found = self.file().symlink_metadata().unwrap();
        assert!(found.is_file());
        assert_eq!((found.mode() & 0o7777, found.uid(), found.nlink()), (0o600, self.uid, 1));
        assert_eq!(fs::read_to_string(self.file()).unwrap(), content);
        self.expect_nothing_left();
    }

    fn expect_nothing_left(&self) {
        let names = fs::read_dir(self.file().parent().unwrap()).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("authorized_keys.")).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Nothing outside the home has been read or changed.
    fn expect_secret(&self) {
        let found = self.path("/secret/authorized_keys").symlink_metadata().unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, geteuid().as_raw()));
        assert_eq!(fs::read_to_string(self.path("/secret/authorized_keys")).unwrap(), "SECRET\n");
        let names: Vec<_> = fs::read_dir(self.path("/secret")).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(self.path("/secret").metadata().unwrap().uid(), geteuid().as_raw());
    }

    /// Every command is refused with this in the text, and does nothing.
    fn expect_refusal(&self, cause: &str) {
        let errors = [self.get().map(drop), self.add("A", false), self.remove("SECRET")];
        for error in errors.map(|done| done.unwrap_err().desc) {
            assert!(error.contains(cause) && error.contains("/home/ann/.ssh"), "{error}");
            assert!(!error.contains("SECRET"), "{error}");
        }
        self.expect_secret();
    }
}

fn is_root(needed_for: &str) -> bool {
    if !geteuid().is_root() {
        println!("skipped: only root can {needed_for}");
    }
    geteuid().is_root()
}

#[test]
fn keys_come_and_go() {
    let machine = Machine::new();
    let text = machine.get().unwrap_err().desc;
    let path = "/home/ann/.ssh/authorized_keys";
    assert_eq!(text, format!("failed to read '{path}': Failed to open file “{path}”: No such file or directory"));
    machine.remove("A").unwrap();
    assert!(!machine.path("/home/ann/.ssh").exists());
    machine.add("A", false).unwrap();
    let found = machine.path("/home/ann/.ssh").metadata().unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o700, machine.uid, found.gid()));
    machine.expect_file("A\n");
    machine.add("B", false).unwrap();
    machine.expect_file("A\nB\n");
    assert_eq!(machine.get().unwrap(), "A\nB\n");
    machine.remove("A").unwrap();
    machine.expect_file("B\n");
    machine.add("C", true).unwrap();
    machine.expect_file("C\n");
}

#[test]
fn a_change_makes_the_file_private_and_no_change_leaves_it() {
    let machine = Machine::new();
    machine.with_file(Some("# mine\nA\n"));
    fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o644)).unwrap();
    machine.add("A", false).unwrap();
    machine.expect_file("# mine\nA\n");
    let before = machine.file().metadata().unwrap().ino();
    machine.add("A", false).unwrap();
    machine.remove("B").unwrap();
    assert_eq!(machine.file().metadata().unwrap().ino(), before);
}

#[test]
fn what_is_in_the_way_is_named() {
    let machine = Machine::new();
    fs::write(machine.path("/home/ann/.ssh"), "").unwrap();
    let text = "failed to create directory '/home/ann/.ssh': File exists";
    assert_eq!(machine.add("A", false).unwrap_err().desc, text);
    machine.remove("A").unwrap();
    fs::rename(machine.path("/home/ann"), machine.path("/home/bob")).unwrap();
    let text = "failed to create directory '/home/ann/.ssh': No such file or directory";
    assert_eq!(machine.add("A", false).unwrap_err().desc, text);
    machine.remove("A").unwrap();
    assert!(machine.get().unwrap_err().desc.ends_with("No such file or directory"));
}

#[test]
fn a_linked_directory_is_not_followed() {
    let machine = Machine::new();
    symlink(machine.path("/secret"), machine.path("/home/ann/.ssh")).unwrap();
    machine.expect_refusal("'.ssh' is a symbolic link");
    assert!(machine.add("A", true).is_err());
    machine.expect_secret();
}

#[test]
fn a_linked_file_is_not_followed_and_a_reset_replaces_the_link() {
    let machine = Machine::new();
    machine.with_file(None);
    symlink(machine.path("/secret/authorized_keys"), machine.file()).unwrap();
    machine.expect_refusal("'authorized_keys' is a symbolic link");
    machine.add("A", true).unwrap();
    machine.expect_file("A\n");
    machine.expect_secret();
}

#[test]
fn nothing_but_a_plain_file_is_opened_for_long() {
    let machine = Machine::new();
    machine.with_file(None);
    let make = |kind, device| mknodat(rustix::fs::CWD, machine.file(), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    make(FileType::Fifo, 0);
    machine.give("/home/ann/.ssh/authorized_keys");
    machine.expect_refusal("it is not a regular file");
    fs::remove_file(machine.file()).unwrap();
    fs::create_dir(machine.file()).unwrap();
    machine.expect_refusal("Is a directory");
    assert!(machine.add("A", true).unwrap_err().desc.contains("Is a directory"));
    machine.expect_nothing_left();
    fs::remove_dir(machine.file()).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(machine.file()).unwrap();
    machine.give("/home/ann/.ssh/authorized_keys");
    machine.expect_refusal("No such device or address");
    fs::remove_file(machine.file()).unwrap();
    if is_root("make a device") {
        // The endless one.
        make(FileType::CharacterDevice, rustix::fs::makedev(1, 5));
        fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o666)).unwrap();
        machine.expect_refusal("it is not a regular file");
    }
}

#[test]
fn a_file_with_another_name_is_not_read() {
    let machine = Machine::new();
    machine.with_file(None);
    fs::hard_link(machine.path("/secret/authorized_keys"), machine.file()).unwrap();
    let cause = if geteuid().is_root() { "Permission denied" } else { "a hard link" };
    machine.remove("SECRET").unwrap_err();
    assert!(machine.get().unwrap_err().desc.contains(cause));
    machine.add("A", true).unwrap();
    machine.expect_file("A\n");
    machine.expect_secret();
    fs::hard_link(machine.file(), machine.path("/home/ann/other")).unwrap();
    machine.expect_refusal("a hard link");
}

#[test]
fn an_endless_file_is_refused() {
    let machine = Machine::new();
    machine.with_file(Some("A\n"));
    fs::File::options().write(true).open(machine.file()).unwrap().set_len(1 << 40).unwrap();
    machine.expect_refusal("larger than 4 MiB");
}

#[test]
fn nothing_is_done_that_the_user_may_not_do() {
    if !is_root("give files away") {
        return;
    }
    let machine = Machine::new();
    machine.with_file(Some("A\n"));
    chown(machine.path("/home/ann/.ssh"), Some(0), Some(0)).unwrap();
    let text = machine.add("B", false).unwrap_err().desc;
    assert_eq!(text, "failed to write to '/home/ann/.ssh/authorized_keys': Permission denied");
    assert_eq!(machine.get().unwrap(), "A\n");
    machine.give("/home/ann/.ssh");
    chown(machine.file(), Some(ANN + 1), None).unwrap();
    machine.expect_refusal("belongs to another user");
    chown(machine.file(), Some(0), None).unwrap();
    fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o644)).unwrap();
    machine.add("B", false).unwrap();
    machine.expect_file("A\nB\n");
    chown(machine.path("/home/ann"), Some(0), Some(0)).unwrap();
    fs::rename(machine.path("/home/ann/.ssh"), machine.path("/home/ann/was")).unwrap();
    let text = machine.add("A", false).unwrap_err().desc;
    assert_eq!(text, "failed to create directory '/home/ann/.ssh': Permission denied");
}

/// Ends the process with the test.
struct Attacker(Child);

impl Attacker {
    /// A process of ann's.
    fn start(home: &Path, script: &str) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).current_dir(home).uid(ANN).gid(ANN);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_swapped_meanwhile_leads_nowhere() {
    if !is_root("run a process of another user") {
        return;
    }
    let machine = Machine::new();
    machine.with_file(Some("A\n"));
    let swap = "while :; do mv .ssh real; ln -s ../../secret .ssh; rm .ssh; mv real .ssh; \
        mv .ssh/authorized_keys .ssh/k; ln -s ../../../secret/authorized_keys .ssh/authorized_keys; \
        ln -f .ssh/k .ssh/second; mv .ssh/k .ssh/authorized_keys; rm .ssh/second; done 2>/dev/null";
    let attacker = Attacker::start(&machine.path("/home/ann"), swap);
    let mut refused_count = 0;
    for round in 0..100_000 {
        if round > 400 && refused_count > 0 {
            break;
        }
        let results = [machine.add(&format!("K{round}"), round % 7 == 0), machine.remove("K3")];
        refused_count += results.iter().filter(|done| done.is_err()).count();
        if let Ok(file) = machine.get() {
            assert!(!file.contains("SECRET"), "{file}");
        }
    }
    drop(attacker);
    assert!(refused_count > 0, "the attacker was never in the way");
    machine.expect_secret();
}

#[test]
fn the_label_stays() {
    if !is_root("label files") {
        return;
    }
    let machine = Machine::new();
    machine.with_file(Some("A\n"));
    let passwd = "ann:x:0:0::/home/ann:/bin/sh\n";
    fs::write(machine.path("/etc/passwd"), passwd).unwrap();
    chown(machine.file(), Some(0), Some(0)).unwrap();
    let label = b"unconfined_u:object_r:ssh_home_t:s0\0";
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(error) = rustix::fs::setxattr(machine.file(), "security.selinux", label, flags) {
        println!("skipped: files cannot be labelled here: {error}");
        return;
    }
    machine.add("B", false).unwrap();
    let mut found = [0; 64];
    let length = rustix::fs::getxattr(machine.file(), "security.selinux", &mut found[..]).unwrap();
    assert_eq!(&found[..length], label);
}
