//! Links on the way to a key file: whose are followed, and how far.

use super::{ANN, Machine, is_root, make_root, owner_and_mode, with_each_right};
use rustix::process::geteuid;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

/// A link in ann's home, of ann's own making or left there by root.
fn link(machine: &Machine, target: &str, path: &Path, is_anns: bool) {
    symlink(target, path).unwrap();
    if is_anns && geteuid().is_root() {
        std::os::unix::fs::lchown(path, Some(machine.uid), Some(machine.uid)).unwrap();
    }
}

#[test]
fn a_linked_directory_of_another_user_is_not_used() {
    for is_anns in [true, false] {
        with_each_right(|machine| {
            link(machine, "/secret", &machine.path("/home/ann/.ssh"), is_anns);
            machine.expect_refusal("a symbolic link");
            assert!(machine.add("A", true).is_err());
            machine.expect_secret();
        });
    }
}

#[test]
fn a_link_to_what_the_user_may_not_read_gives_nobody_its_content_and_a_reset_replaces_it() {
    for (is_anns, target) in [(true, "/secret/authorized_keys"), (false, "../../../secret/authorized_keys")] {
        with_each_right(|machine| {
            machine.with_file(None);
            link(machine, target, &machine.file(), is_anns);
            if geteuid().is_root() {
                machine.expect_refusal(if is_anns { "the user may not read it" } else { "is a symbolic link" });
            }
            machine.add("A", true).unwrap();
            machine.expect_file("A\n");
            machine.expect_secret();
        });
    }
}

#[test]
fn links_of_the_users_own_lead_as_far_as_the_user_could_go() {
    if !is_root("be another user") {
        return;
    }
    for rights in [[true, false], [false, true]] {
        with_each_right(|machine| {
            let [is_closed, is_shared] = rights;
            machine.with_file(None);
            // A folder of ann's own, but behind a door of root's.
            fs::create_dir_all(machine.path("/vault/ann")).unwrap();
            fs::write(machine.path("/vault/ann/keys"), "A\n").unwrap();
            for path in ["/vault/ann", "/vault/ann/keys"] {
                machine.give(path);
            }
            let mode = if is_closed { 0o700 } else { 0o711 };
            fs::set_permissions(machine.path("/vault"), fs::Permissions::from_mode(mode)).unwrap();
            link(machine, "/vault/ann/keys", &machine.file(), true);
            let got = machine.get();
            assert_eq!(got.is_ok(), is_shared, "{got:?}");
            let added = machine.add("B", false);
            assert_eq!(added.is_ok(), is_shared, "{added:?}");
            let content = fs::read_to_string(machine.path("/vault/ann/keys")).unwrap();
            assert_eq!(content, if is_shared { "A\nB\n" } else { "A\n" });
            assert!(machine.file().is_symlink());
        });
    }
    with_each_right(|machine| {
        machine.with_file(None);
        link(machine, "/proc/self/environ", &machine.file(), true);
        fs::create_dir_all(machine.path("/proc/self")).unwrap();
        assert!(machine.get().is_err());
        fs::remove_file(machine.file()).unwrap();
        link(machine, "authorized_keys", &machine.file(), true);
        machine.expect_refusal("Too many levels of symbolic links");
    });
}

#[test]
fn links_of_roots_own_are_written_through() {
    if !is_root("be root") {
        return;
    }
    let target = "/etc/priv/authorized_keys";
    for link in ["file", "directory", "home", "nothing yet"] {
        let machine = Machine::new();
        make_root(&machine);
        fs::create_dir(machine.path("/etc/priv")).unwrap();
        if link != "nothing yet" {
            fs::write(machine.path(target), "A\n").unwrap();
        }
        let ssh = machine.path("/home/ann/.ssh");
        match link {
            "directory" => symlink("/etc/priv", &ssh).unwrap(),
            "home" => {
                fs::remove_dir(machine.path("/home/ann")).unwrap();
                fs::create_dir(machine.path("/etc/home")).unwrap();
                symlink("../etc/home", machine.path("/home/ann")).unwrap();
                symlink("../priv", machine.path("/etc/home/.ssh")).unwrap();
            }
            _ => {
                fs::create_dir(&ssh).unwrap();
                symlink(target, ssh.join("authorized_keys")).unwrap();
            }
        }
        machine.add("A", false).unwrap();
        machine.add("B", false).unwrap();
        machine.remove("A").unwrap();
        assert_eq!(fs::read_to_string(machine.path(target)).unwrap(), "B\n", "{link}");
        assert_eq!(owner_and_mode(&machine.path(target)), (0, 0o600));
        assert_eq!(machine.get().unwrap(), "B\n");
        let links = [ssh.clone(), ssh.join("authorized_keys"), machine.path("/home/ann")];
        let expected = if link == "home" { 2 } else { 1 };
        assert_eq!(links.iter().filter(|path| path.is_symlink()).count(), expected, "{link}");
        let names: Vec<_> = fs::read_dir(machine.path("/etc/priv")).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        // Not where somebody else could change where it leads, or what is there.
        for path in ["/etc/priv", "/etc"] {
            chown(machine.path(path), Some(ANN), None).unwrap();
            let error = machine.add("C", false).unwrap_err().desc;
            assert!(error.contains("a symbolic link"), "{link}, {path}: {error}");
            assert!(machine.get().is_err());
            assert_eq!(fs::read_to_string(machine.path(target)).unwrap(), "B\n");
            chown(machine.path(path), Some(0), None).unwrap();
        }
        fs::set_permissions(machine.path("/home"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(machine.add("C", false).is_err(), "{link}");
        assert_eq!(fs::read_to_string(machine.path(target)).unwrap(), "B\n");
    }
}

#[test]
fn root_keeps_a_users_keys_elsewhere() {
    if !is_root("give files away") {
        return;
    }
    with_each_right(|machine| {
        chown(machine.path("/home/ann"), Some(0), Some(0)).unwrap();
        fs::create_dir_all(machine.path("/etc/ssh/ann")).unwrap();
        fs::write(machine.path("/etc/ssh/ann/authorized_keys"), "A\n").unwrap();
        symlink("/etc/ssh/ann", machine.path("/home/ann/.ssh")).unwrap();
        machine.add("B", false).unwrap();
        assert_eq!(machine.get().unwrap(), "A\nB\n");
        assert_eq!(owner_and_mode(&machine.path("/etc/ssh/ann/authorized_keys")), (0, 0o644));
        assert!(machine.path("/home/ann/.ssh").is_symlink());
    });
}
