use super::{Machine as Files, add_keys, key_file, remove_keys};
use crate::commands::accounts::keys;
use crate::limits::memory_budget::Budget;
use crate::system::error::Error;
use crate::system::root::Root;
use rustix::fs::{FileType, Mode, mknodat};
use rustix::process::geteuid;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

#[path = "link_tests.rs"]
mod links;

/// A user that no system has.
const ANN: u32 = 61_234;

/// A machine with the user ann, whose home is there and empty. Without root it is whoever runs the test.
struct Machine {
    _directory: tempfile::TempDir,
    root: Root,
    budget: Budget,
    uid: u32,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = Root::at(directory.path());
        let uid = if geteuid().is_root() { ANN } else { geteuid().as_raw() };
        let machine = Self { _directory: directory, root, budget: Budget::default(), uid };
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

    fn files(&self) -> Files<'_> {
        Files { root: &self.root, budget: &self.budget }
    }

    fn get(&self) -> Result<String, Error> {
        key_file(&self.files(), "ann").map(|file| String::from_utf8(file.bytes).unwrap())
    }

    fn add(&self, key: &str, reset: bool) -> Result<(), Error> {
        let key = vec![key.to_owned()];
        add_keys(&self.files(), "ann", reset, move |file| Ok(keys::with(file, &key)))
    }

    fn remove(&self, key: &str) -> Result<(), Error> {
        let key = vec![key.to_owned()];
        remove_keys(&self.files(), "ann", move |file| keys::without(file, &key))
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

/// Runs a test with all rights, and with those of an agent in the `SELinux` domain of Fedora and RHEL, which may not act as
/// another user.
fn with_each_right(test: impl Fn(&Machine) + Sync) {
    test(&Machine::new());
    if is_root("give up rights") {
        confined(|| test(&Machine::new()));
    }
}

/// Does something with the rights of that domain. They are a thread's, and those of the threads that it starts.
fn confined(act: impl FnOnce() + Send) {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let left = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::SYS_ADMIN
        // For what the tests prepare.
        | CapabilitySet::MKNOD;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
            set_capabilities(None, sets).unwrap();
            act();
        });
    });
}

fn is_root(needed_for: &str) -> bool {
    if !geteuid().is_root() {
        println!("skipped: only root can {needed_for}");
    }
    geteuid().is_root()
}

#[test]
fn keys_come_and_go() {
    with_each_right(|machine| {
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
    });
}

#[test]
fn a_change_makes_the_file_private_and_no_change_leaves_it() {
    with_each_right(|machine| {
        machine.with_file(Some("# mine\nA\n"));
        fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o644)).unwrap();
        machine.add("A", false).unwrap();
        machine.expect_file("# mine\nA\n");
        let before = machine.file().metadata().unwrap().ino();
        machine.add("A", false).unwrap();
        machine.remove("ssh-rsa B").unwrap();
        assert_eq!(machine.file().metadata().unwrap().ino(), before);
    });
}

#[test]
fn what_is_in_the_way_is_named() {
    with_each_right(|machine| {
        fs::write(machine.path("/home/ann/.ssh"), "").unwrap();
        let text = "failed to create directory '/home/ann/.ssh': File exists";
        assert_eq!(machine.add("A", false).unwrap_err().desc, text);
        machine.remove("A").unwrap();
        fs::rename(machine.path("/home/ann"), machine.path("/home/bob")).unwrap();
        let text = "failed to create directory '/home/ann/.ssh': No such file or directory";
        assert_eq!(machine.add("A", false).unwrap_err().desc, text);
        machine.remove("A").unwrap();
        assert!(machine.get().unwrap_err().desc.ends_with("No such file or directory"));
    });
}

#[test]
fn nothing_but_a_plain_file_is_opened_for_long() {
    with_each_right(|machine| {
        machine.with_file(None);
        let make =
            |kind, device| mknodat(rustix::fs::CWD, machine.file(), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
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
        machine.expect_refusal("it is not a regular file");
        fs::remove_file(machine.file()).unwrap();
        if is_root("make a device") {
            // The endless one.
            make(FileType::CharacterDevice, rustix::fs::makedev(1, 5));
            fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o666)).unwrap();
            machine.expect_refusal("it is not a regular file");
        }
    });
}

#[test]
fn another_name_of_a_file_of_roots_gives_nobody_its_content() {
    with_each_right(|machine| {
        machine.with_file(None);
        fs::hard_link(machine.path("/secret/authorized_keys"), machine.file()).unwrap();
        if geteuid().is_root() {
            machine.expect_refusal("the file belongs to root, and the user may not read it");
            // Nor when the first name is gone, and it looks like any other file.
            fs::rename(machine.path("/secret/authorized_keys"), machine.path("/secret/old")).unwrap();
            fs::remove_file(machine.path("/secret/old")).unwrap();
            assert!(machine.get().unwrap_err().desc.contains("the user may not read it"));
            assert!(machine.add("A", false).is_err());
        }
        machine.add("A", true).unwrap();
        machine.expect_file("A\n");
        // A backup that is made of links.
        fs::hard_link(machine.file(), machine.path("/home/ann/other")).unwrap();
        machine.add("B", false).unwrap();
        machine.expect_file("A\nB\n");
        assert_eq!(fs::read_to_string(machine.path("/home/ann/other")).unwrap(), "A\n");
    });
}

#[test]
fn an_endless_file_is_refused() {
    with_each_right(|machine| {
        machine.with_file(Some("A\n"));
        fs::File::options().write(true).open(machine.file()).unwrap().set_len(1 << 40).unwrap();
        machine.expect_refusal("larger than 64 MiB");
    });
}

#[test]
fn nothing_is_read_or_changed_for_a_user_that_is_somebody_elses() {
    if !is_root("give files away") {
        return;
    }
    with_each_right(|machine| {
        machine.with_file(Some("A\n"));
        chown(machine.file(), Some(ANN + 1), None).unwrap();
        machine.expect_refusal("belongs to another user");
        chown(machine.file(), Some(0), None).unwrap();
        fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o600)).unwrap();
        machine.expect_refusal("the user may not read it");
        fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o644)).unwrap();
        machine.add("B", false).unwrap();
        machine.expect_file("A\nB\n");
        chown(machine.path("/home/ann/.ssh"), Some(ANN + 1), None).unwrap();
        fs::set_permissions(machine.path("/home/ann/.ssh"), fs::Permissions::from_mode(0o700)).unwrap();
        machine.expect_refusal("");
        fs::set_permissions(machine.path("/home/ann/.ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(machine.add("C", false).unwrap_err().desc.contains("'.ssh' belongs to another user"));
        // Where anybody may put files, root's name on the directory says nothing.
        chown(machine.path("/home/ann/.ssh"), Some(0), None).unwrap();
        chown(machine.path("/home/ann"), Some(ANN), None).unwrap();
        fs::set_permissions(machine.path("/home/ann/.ssh"), fs::Permissions::from_mode(0o777)).unwrap();
        chown(machine.file(), Some(0), Some(0)).unwrap();
        fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(machine.get().is_err() && machine.add("C", false).is_err());
    });
}

/// Owner and mode.
fn owner_and_mode(path: &Path) -> (u32, u32) {
    let found = path.symlink_metadata().unwrap();
    (found.uid(), found.mode() & 0o7777)
}

#[test]
fn a_home_of_roots_gets_a_directory_of_the_users() {
    if !is_root("give files away") {
        return;
    }
    with_each_right(|machine| {
        chown(machine.path("/home/ann"), Some(0), Some(0)).unwrap();
        machine.add("A", false).unwrap();
        machine.expect_file("A\n");
        assert_eq!(owner_and_mode(&machine.path("/home/ann/.ssh")), (ANN, 0o700));
        let names: Vec<_> = fs::read_dir(machine.path("/home/ann")).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    });
}

#[test]
fn keys_that_root_keeps_for_a_user_stay_roots() {
    if !is_root("give files away") {
        return;
    }
    with_each_right(|machine| {
        machine.with_file(Some("A\n"));
        for path in ["/home/ann/.ssh", "/home/ann/.ssh/authorized_keys"] {
            chown(machine.path(path), Some(0), Some(0)).unwrap();
        }
        fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o644)).unwrap();
        machine.add("B", false).unwrap();
        assert_eq!(machine.get().unwrap(), "A\nB\n");
        assert_eq!(owner_and_mode(&machine.file()), (0, 0o644));
        assert_eq!(owner_and_mode(&machine.path("/home/ann/.ssh")), (0, 0o755));
        let before = machine.file().metadata().unwrap().ino();
        machine.add("B", false).unwrap();
        assert_eq!(machine.file().metadata().unwrap().ino(), before);
        machine.remove("A").unwrap();
        assert_eq!(machine.get().unwrap(), "B\n");
        // The user could have moved it there from elsewhere.
        fs::set_permissions(machine.file(), fs::Permissions::from_mode(0o600)).unwrap();
        machine.expect_refusal("the user may not read it");
        // Nobody can have.
        chown(machine.path("/home/ann"), Some(0), Some(0)).unwrap();
        machine.add("C", false).unwrap();
        assert_eq!(owner_and_mode(&machine.file()), (ANN, 0o600));
    });
}

/// Makes ann root: the machine's paths are root's then.
fn make_root(machine: &Machine) {
    fs::write(machine.path("/etc/passwd"), "ann:x:0:0::/home/ann:/bin/sh\n").unwrap();
    chown(machine.path("/home/ann"), Some(0), Some(0)).unwrap();
}

#[test]
fn a_backup_that_shares_roots_key_file_keeps_what_it_has() {
    if !is_root("be root") {
        return;
    }
    let machine = Machine::new();
    make_root(&machine);
    machine.with_file(Some("A\n"));
    for path in ["/home/ann/.ssh", "/home/ann/.ssh/authorized_keys"] {
        chown(machine.path(path), Some(0), Some(0)).unwrap();
    }
    fs::hard_link(machine.file(), machine.path("/secret/backup")).unwrap();
    machine.add("B", false).unwrap();
    assert_eq!(machine.get().unwrap(), "A\nB\n");
    assert_eq!(fs::read_to_string(machine.path("/secret/backup")).unwrap(), "A\n");
}

#[test]
fn many_thousands_of_keys_are_kept_and_the_memory_is_given_back() {
    with_each_right(|machine| {
        let line = format!("ssh-rsa {} ann\n", "A".repeat(370));
        let content = line.repeat((9 << 20) / line.len());
        machine.with_file(Some(&content));
        machine.add("B", false).unwrap();
        machine.expect_file(&format!("{content}B\n"));
        assert_eq!(machine.get().unwrap().len(), content.len() + 2);
        // All but what the file needs is taken by somebody else.
        let held = machine.budget.hold_of(crate::limits::memory_budget::TOTAL_BYTES_MAX - content.len()).unwrap();
        assert!(machine.get().unwrap_err().desc.contains("leave no memory"));
        assert!(machine.remove("B").unwrap_err().desc.contains("leave no memory"));
        drop(held);
        machine.remove("B").unwrap();
        machine.expect_file(&content);
        assert!(machine.budget.hold_of(crate::limits::memory_budget::TOTAL_BYTES_MAX).is_some(), "it is still held");
    });
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
    for is_confined in [false, true] {
        let machine = Machine::new();
        machine.with_file(Some("A\n"));
        let swap = "while :; do mv .ssh real; ln -s ../../secret .ssh; rm .ssh; mv real .ssh; \
            mv .ssh/authorized_keys .ssh/k; ln -s ../../../secret/authorized_keys .ssh/authorized_keys; \
            ln -f .ssh/k .ssh/second; mv .ssh/k .ssh/authorized_keys; rm .ssh/second; done 2>/dev/null";
        let attacker = Attacker::start(&machine.path("/home/ann"), swap);
        if is_confined {
            confined(|| meet(&machine));
        } else {
            meet(&machine);
        }
        drop(attacker);
        machine.expect_secret();
    }
}

/// Works on keys until the attacker has been in the way.
fn meet(machine: &Machine) {
    let mut refused_count = 0;
    for round in 0..100_000 {
        if round > 400 && refused_count > 0 {
            break;
        }
        let results = [machine.add(&format!("K{round}"), round % 7 == 0), machine.remove("ssh-rsa K3")];
        refused_count += results.iter().filter(|done| done.is_err()).count();
        if let Ok(file) = machine.get() {
            assert!(!file.contains("SECRET"), "{file}");
        }
    }
    assert!(refused_count > 0, "the attacker was never in the way");
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
