use super::{Choice, choose};
use crate::system::mounts::{self, DeviceNumber};
use crate::system::root::Root;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// A machine: mounts as the kernel lists them, and devices as `name slave slave` or `loopN=/backing/file`.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    fn new(mounts: &str, devices: &[(&str, &str)]) -> Self {
        let machine = Self { directory: tempfile::tempdir().unwrap() };
        machine.write("/proc/self/mountinfo", mounts);
        for (minor, (name, beneath)) in devices.iter().enumerate() {
            let is_virtual = name.starts_with("dm-") || name.starts_with("md") || name.starts_with("loop");
            let path = if is_virtual {
                format!("/sys/devices/virtual/block/{name}")
            } else {
                format!("/sys/devices/pci/block/{name}")
            };
            let number = format!("7:{minor}");
            machine.write(&format!("{path}/uevent"), &format!("MAJOR=7\nMINOR={minor}\nDEVNAME={name}\n"));
            machine.link(&format!("/sys/dev/block/{number}"), &format!("../..{}", path.strip_prefix("/sys").unwrap()));
            machine.link(&format!("/sys/class/block/{name}"), &format!("../..{}", path.strip_prefix("/sys").unwrap()));
            if let Some(file) = beneath.strip_prefix('=') {
                machine.write(&format!("{path}/loop/backing_file"), &format!("{file}\n"));
            } else {
                for slave in beneath.split_whitespace() {
                    machine.link(&format!("{path}/slaves/{slave}"), &format!("../../{slave}"));
                }
            }
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.root().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn root(&self) -> Root {
        Root::at(self.directory.path())
    }

    fn choose(&self, names: Option<&[&str]>) -> Choice {
        let names = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let root = self.root();
        choose(&root, &mounts::all(&root).unwrap(), names.as_deref(), &|_, device| {
            // What the kernel would tell stands beside the path.
            DeviceNumber::parse(&root.read_text(device.join("loop/told")).ok()?)
        })
    }

    fn chosen(&self, names: Option<&[&str]>) -> Vec<String> {
        self.choose(names).steps.iter().map(|step| step.name().display().to_string()).collect()
    }
}

const PLAIN: &str = "\
20 1 7:0 / / rw - ext4 /dev/sda rw
21 20 0:5 / /proc rw - proc proc rw
22 20 0:6 / /tmp rw - tmpfs tmpfs rw
23 20 7:1 / /var rw - xfs /dev/sdb rw
24 23 7:1 /lib /var/also rw - xfs /dev/sdb rw
25 20 0:40 / /net rw - nfs4 server:/x rw
26 20 7:2 / /cdrom ro - iso9660 /dev/sr0 ro
27 20 0:41 / /merged rw - overlay overlay rw
28 20 0:42 / /pool rw - zfs pool rw
";

#[test]
fn each_file_system_on_a_disk_is_held_once_the_last_mounted_first() {
    let machine = Machine::new(PLAIN, &[("sda", ""), ("sdb", ""), ("sr0", "")]);
    assert_eq!(machine.chosen(None), ["/cdrom", "/var", "/"]);
    let choice = machine.choose(None);
    assert_eq!(choice.steps[1].mounts, [(23, "/var".into()), (24, "/var/also".into())]);
}

#[test]
fn what_people_could_miss_is_told_and_what_nobody_would_is_not() {
    let machine = Machine::new(PLAIN, &[("sda", ""), ("sdb", ""), ("sr0", "")]);
    let left_out: Vec<_> = machine.choose(None).left_out.into_iter().map(|(path, _)| path).collect();
    assert_eq!(left_out, [Path::new("/net"), Path::new("/pool")]);
}

#[test]
fn a_file_system_on_a_file_comes_before_the_one_that_has_the_file() {
    // Mounted in the wrong order for a freeze that only turns it round: /home was mounted after what lies on its file.
    let mounts = "\
20 1 7:0 / / rw - ext4 /dev/sda rw
21 20 7:4 / /on-dm rw - ext4 /dev/dm-0 rw
22 20 7:2 / /on-loop rw - ext4 /dev/loop0 rw
23 20 7:1 / /home rw - ext4 /dev/sdb rw
24 20 7:5 / /plain rw - ext4 /dev/sdc rw
";
    let machine = Machine::new(
        mounts,
        &[
            ("sda", ""),
            ("sdb", ""),
            ("loop0", "=/home/disk.img"),
            ("loop1", "=/on-loop/inner.img"),
            ("dm-0", "loop1"),
            ("sdc", ""),
        ],
    );
    assert_eq!(machine.chosen(None), ["/on-dm", "/on-loop", "/plain", "/home", "/"]);
}

#[test]
fn a_file_that_is_gone_or_out_of_sight_still_counts_and_a_circle_ends() {
    let mounts = "\
20 1 7:0 / / rw - ext4 /dev/loop0 rw
21 20 7:1 / /a rw - ext4 /dev/loop1 rw
22 20 7:2 / /b rw - ext4 /dev/sda rw
";
    let devices = [("loop0", "=/a/root.img"), ("loop1", "=/root.img (deleted)"), ("sda", "")];
    let machine = Machine::new(mounts, &devices);
    assert_eq!(machine.chosen(None).len(), 3);
    assert_eq!(machine.chosen(None)[2], "/b");
}

#[test]
fn a_file_is_found_by_its_device_where_its_path_leads_elsewhere() {
    // What /dev/sdb holds was mounted elsewhere when the loop device was made: the path is of that time.
    let mounts = "\
20 1 7:0 / / rw - ext4 /dev/sda rw
21 20 7:2 / /inner rw - ext4 /dev/loop0 rw
22 20 7:1 / /now-here rw - ext4 /dev/sdb rw
";
    let machine = Machine::new(mounts, &[("sda", ""), ("sdb", ""), ("loop0", "=/inner.img")]);
    machine.write("/sys/devices/virtual/block/loop0/loop/told", "7:1");
    assert_eq!(machine.chosen(None), ["/inner", "/now-here", "/"]);
    let deeper = mounts.replace("7:1 / /now-here rw - ext4 /dev/sdb", "7:3 / /now-here rw - ext4 /dev/loop1");
    let machine =
        Machine::new(&deeper, &[("sda", ""), ("sdb", ""), ("loop0", "=/inner.img"), ("loop1", "=/outer.img")]);
    assert_eq!(machine.chosen(None), ["/now-here", "/inner", "/"], "by the paths both lie on the first one");
    machine.write("/sys/devices/virtual/block/loop0/loop/told", "7:3");
    assert_eq!(machine.chosen(None), ["/inner", "/now-here", "/"]);
    // A number that no mount has: the path is all there is.
    machine.write("/sys/devices/virtual/block/loop0/loop/told", "0:77");
    assert_eq!(machine.chosen(None), ["/now-here", "/inner", "/"]);
}

#[test]
fn subvolumes_of_a_btrfs_are_one_file_system() {
    let mounts = "\
20 1 0:30 /@ / rw - btrfs /dev/sda rw
21 20 0:30 /@home /home rw - btrfs /dev/sda rw
22 20 0:31 / /gone rw - btrfs /dev/nothing rw
23 20 0:32 / /cache rw - bcachefs /dev/sdb:/dev/sdc rw
";
    let machine = Machine::new(mounts, &[("sda", ""), ("sdb", ""), ("sdc", "")]);
    assert_eq!(machine.chosen(None), ["/cache", "/"]);
    assert_eq!(machine.chosen(Some(&["/home"])), ["/"]);
}

#[test]
fn names_lead_to_file_systems_however_they_are_written() {
    let machine = Machine::new(PLAIN, &[("sda", ""), ("sdb", ""), ("sr0", "")]);
    fs::create_dir_all(machine.root().path("/var")).unwrap();
    machine.link("/link", "/var");
    for name in ["/var", "/var/", "/var/also", "//var", "/link"] {
        assert_eq!(machine.chosen(Some(&[name])), ["/var"], "{name}");
    }
    assert_eq!(machine.chosen(Some(&["/var", "/var/also", "/"])), ["/var", "/"]);
    assert_eq!(machine.chosen(Some(&[])), [""; 0]);
    let choice = machine.choose(Some(&["/var/lib", "/tmp", "var", ""]));
    assert!(choice.steps.is_empty(), "{choice:?}");
    let reasons: Vec<_> = choice.left_out.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(reasons[0], "no file system is mounted there");
    assert_eq!(reasons[1], "tmpfs: it is not on a disk of this machine");
    assert_eq!(reasons.len(), 4);
}

#[test]
fn a_name_means_the_upper_one_of_two_at_the_same_place() {
    let mounts = "\
20 1 7:0 / / rw - ext4 /dev/sda rw
21 20 7:1 / /mnt rw - ext4 /dev/sdb rw
22 21 7:2 / /mnt rw - ext4 /dev/sdc rw
";
    let machine = Machine::new(mounts, &[("sda", ""), ("sdb", ""), ("sdc", "")]);
    let choice = machine.choose(Some(&["/mnt"]));
    assert_eq!(choice.steps.len(), 1);
    assert_eq!(choice.steps[0].mounts, [(22, "/mnt".into())]);
}

#[test]
fn names_with_blanks_and_newlines_are_names() {
    let mounts = "20 1 7:0 / / rw - ext4 /dev/sda rw\n21 20 7:1 / /a\\040b\\012c rw - ext4 /dev/sdb rw\n";
    let machine = Machine::new(mounts, &[("sda", ""), ("sdb", "")]);
    assert_eq!(machine.chosen(Some(&["/a b\nc"])), ["/a b\nc"]);
}
