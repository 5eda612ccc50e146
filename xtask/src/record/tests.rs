//! Records machines that are recordings themselves, and one that is full of secrets.

#[path = "../../../crates/agent/tests/recorded/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::files::{Content, Files};
use super::{Recording, TREES, collect, text};
use crate::build;

/// How long a reply may take on the most loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Members of replies in which names and numbers of a machine are.
const NAMES: [&str; 8] = ["serial", "user", "host-name", "alias", "mountpoint", "pretty-name", "dependencies", "name"];

/// Lays a recording out, records that with and without names, and lays the results out: each with its text.
fn recorded_again(text: &str) -> [(tempfile::TempDir, String); 2] {
    let (before, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree::lay_out("before", text, before.path());
    let collected = collect(scratch.path(), Some(before.path())).unwrap();
    [true, false].map(|keep_names| {
        let (again, left_out) = Recording::of(&collected, keep_names).unwrap().written();
        assert!(left_out.is_empty(), "{left_out:?}");
        let after = tempfile::tempdir().unwrap();
        tree::lay_out("after", &again, after.path());
        (after, again)
    })
}

/// What the agent replies on a recorded machine.
fn replies<'a>(directory: &Path, commands: impl Iterator<Item = &'a String>) -> Map<String, Value> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let (root, state) = (qga_agent::root::Root::at(directory), tempfile::tempdir().unwrap());
    let state_path = state.path().to_owned();
    std::thread::spawn(move || qga_agent::serve_recorded(root, &state_path, theirs));
    let mut connection = BufReader::new(ours);
    let mut reply = |command: &str| {
        writeln!(connection.get_mut(), "{{\"execute\":\"{command}\"}}").unwrap();
        let mut line = String::new();
        connection.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    commands.map(|command| (command.clone(), reply(command))).collect()
}

fn recordings() -> Vec<PathBuf> {
    // Where a file is a directory and the like, nothing was recorded; the same device 160 times shows nothing more.
    let left_out = ["damaged.tree", "desktop-with-150-loop-devices.tree"];
    let entries = fs::read_dir(build::workspace().join(TREES)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "tree"));
    paths.retain(|path| !left_out.iter().any(|name| path.ends_with(name)));
    assert!(paths.len() >= 8);
    paths
}

/// The reply with every name in it the same.
fn without_names(value: &Value) -> Value {
    match value {
        Value::Array(elements) => elements.iter().map(without_names).collect(),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| {
                (name.clone(), if NAMES.contains(&name.as_str()) { Value::Null } else { without_names(value) })
            });
            Value::Object(members.collect())
        }
        other => other.clone(),
    }
}

#[test]
fn the_recording_of_a_recording_gets_the_same_replies() {
    for path in recordings() {
        let text = fs::read_to_string(&path).unwrap();
        let expected: Map<String, Value> =
            serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
        let asked: Vec<&String> = expected.keys().filter(|request| !request.contains("-set-")).collect();
        let [(with_names, _), (scrubbed, _)] = recorded_again(&text);
        let found = replies(with_names.path(), asked.iter().copied());
        for request in &asked {
            assert_eq!(found[*request], expected[*request], "{}: {request}", path.display());
        }
        let found = replies(scrubbed.path(), asked.iter().copied());
        for request in &asked {
            let (found, expected) = (without_names(&found[*request]), without_names(&expected[*request]));
            assert_eq!(found, expected, "{}: {request}", path.display());
        }
    }
}

/// Whatever is anywhere in a recorded machine: paths, what links say, contents.
fn everything(directory: &Path) -> String {
    let (mut all, mut pending) = (String::new(), vec![directory.to_owned()]);
    while let Some(parent) = pending.pop() {
        for entry in fs::read_dir(&parent).unwrap() {
            let path = entry.unwrap().path();
            all.push_str(&path.strip_prefix(directory).unwrap().to_string_lossy());
            all.push('\n');
            if path.is_symlink() {
                all.push_str(&fs::read_link(&path).unwrap().to_string_lossy());
            } else if path.is_dir() {
                pending.push(path);
            } else {
                all.push_str(&String::from_utf8_lossy(&fs::read(&path).unwrap()));
            }
            all.push('\n');
        }
    }
    all
}

/// A machine on which everything has a name.
const TELLING: &str = "\
/proc/self/mountinfo:
    25 1 254:0 / / rw - ext4 /dev/mapper/web--42--vg-root rw,errors=continue
    26 25 254:1 /@alice /home/alice/work rw - ext4 /dev/vda1 rw
    27 25 0:40 / /mnt/share rw - nfs files.example.org:/secret rw,addr=192.0.2.77,username=alice
    28 25 0:41 / /tmp rw - tmpfs tmpfs rw,uid=1234
    29 25 254:2 / /volumes/5f0c1e9a-7b1d-4a5e-9c3e-0123456789ab rw - xfs /dev/vda2 rw
/proc/sys/kernel/hostname = web-42.example.org
/proc/sys/kernel/version = #1 SMP on web-42
/etc/os-release:
    ID=web
    BUILD_ID=0123456789abcdef0123456789abcdef
/etc/shadow = root:$6$salt$hash:1::::::
/etc/machine-id = 00112233445566778899aabbccddeeff
/proc/1/environ = PASSWORD=hunter2
/proc/421/cmdline = mysql --password=hunter2
/run/systemd/sessions/1:
    UID=1000
    USER=alice
    STATE=active
    REMOTE_HOST=198.51.100.9
    LEADER=421
    DESKTOP=hunter2
/run/utmp bytes:
    07 00*3 a5 01 00*2 \"pts/0\" 00*31 \"alice\" 00*27 \"198.51.100.9\" 00*244 00*16 c6 33 64 09 00*32
    07 00*3 a6 01 00*2 \"pts/1\" 00*31 \"bo\" 00*30 00*308
/sys/block/vda -> ../devices/pci0000:00/0000:00:05.0/vda
/sys/dev/block/254:0 -> ../../devices/pci0000:00/0000:00:05.0/vda
/sys/devices/pci0000:00/0000:00:05.0/vda/uevent:
    MAJOR=254
    MINOR=0
    DEVNAME=vda
    PARTUUID=99999999-7b1d-4a5e-9c3e-0123456789ab
/sys/devices/pci0000:00/0000:00:05.0/vda/size = 20000
/sys/devices/pci0000:00/0000:00:05.0/vda/serial = WD-WCC4N7
/run/udev/data/b254:0:
    S:disk/by-id/ata-WDC_WD-WCC4N7
    E:ID_SERIAL_SHORT=WD-WCC4N7
    E:ID_SERIAL=WDC_RED_WD-WCC4N7
    E:ID_WWN=0x50014ee2b5a1c2d3
    E:DM_NAME=web--42--vg-root
/sys/block/sda -> ../devices/host0/0:0:0:0/block/sda
/sys/devices/host0/0:0:0:0/block/sda/uevent:
    MAJOR=8
    MINOR=0
    DEVNAME=sda
/sys/devices/host0/0:0:0:0/block/sda/device -> ../../../0:0:0:0
/sys/devices/host0/0:0:0:0/vpd_pg80 bytes:
    00 80 00 04 \"S7\" 00 \"9\"
/run/udev/data/b8:0:
    E:ID_SERIAL=0x50014ee2b5a1c2d3
    E:ID_MODEL=Disk
/sys/fs/btrfs/5f0c1e9a-7b1d-4a5e-9c3e-0123456789ab/devices/sda -> ../../../../devices/host0/0:0:0:0/block/sda
";

const SECRETS: [&str; 17] = [
    "web-42",
    "web--42",
    "example.org",
    "alice",
    "bo\0",
    "192.0.2.77",
    "198.51.100.9",
    "hunter2",
    "$6$",
    "00112233",
    "5f0c1e9a",
    "WCC4N7",
    "50014ee2b5a1c2d3",
    "S7\09",
    "99999999-7b1d",
    "0123456789abcdef",
    "/secret",
];

#[test]
fn nothing_that_tells_whose_machine_it_is_remains() {
    let [(as_it_is, _), (machine, text)] = recorded_again(TELLING);
    let all = everything(machine.path());
    // With names the recording has most of them: what is there is found.
    let with_names = everything(as_it_is.path());
    assert!(SECRETS.iter().filter(|secret| with_names.contains(**secret)).count() >= 9, "{with_names}");
    for secret in SECRETS {
        assert!(!all.contains(secret), "{secret:?} is still there:\n{text}");
    }
    assert!(
        text.starts_with("# A machine, recorded. Replaced: 1 host name, 2 user names, 3 serial numbers, "),
        "{text}"
    );
    for never in ["hunter2", "$6$", "198.51.100.9", "192.0.2.77", "/secret"] {
        assert!(!with_names.contains(never), "{never:?} is no name");
    }
}

#[test]
fn a_secret_has_the_same_new_value_in_every_place() {
    let [_, (machine, text)] = recorded_again(TELLING);
    let read = |path: &str| fs::read_to_string(machine.path().join(path)).unwrap();
    let disk = "sys/devices/pci0000:00/0000:00:05.0/vda";
    let serial = read(&format!("{disk}/serial")).trim().to_owned();
    assert_eq!((serial.len(), &serial[2..3]), (9, "-"), "{serial}");
    let record = read("run/udev/data/b254:0");
    let name = read("proc/sys/kernel/hostname").trim().to_owned();
    let first = name.split('.').next().unwrap().replace('-', "--");
    assert_eq!(
        record,
        format!("E:ID_SERIAL_SHORT={serial}\nE:ID_SERIAL=WDC_RED_{serial}\nE:DM_NAME={first}--vg-root\n"),
        "{text}"
    );
    let mounts = read("proc/self/mountinfo");
    assert!(mounts.contains(&format!("/dev/mapper/{first}--vg-root rw\n")), "{mounts}");
    let commands = ["guest-get-users", "guest-get-host-name", "guest-get-disks"].map(str::to_owned);
    let replies = replies(machine.path(), commands.iter());
    let users: BTreeSet<&str> = replies["guest-get-users"]["return"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["user"].as_str().unwrap())
        .collect();
    assert_eq!(users.iter().map(|user| user.len()).collect::<Vec<_>>().len(), 1, "{users:?}");
    let user = users.iter().next().unwrap();
    assert!(mounts.contains(&format!(" /@{user} /home/{user}/work ")), "{mounts}");
    assert_eq!(replies["guest-get-host-name"]["return"]["host-name"], name);
    let uuids: BTreeSet<String> =
        text.lines().filter_map(|line| line.split("/volumes/").nth(1)).map(|rest| rest[..36].to_owned()).collect();
    let uuid = uuids.iter().next().unwrap();
    assert!(machine.path().join("sys/fs/btrfs").join(uuid).exists(), "{text}");
    let [_, (_, again)] = recorded_again(TELLING);
    assert_eq!(again, text, "the next recording has other values");
}

#[test]
fn files_that_no_command_reads_stay_out() {
    let directory = tempfile::tempdir().unwrap();
    // As if somebody had given a whole system instead of what the script copied.
    let text = format!(
        "{TELLING}/sys/devices/pci0000:00/0000:00:05.0/vda/wwid = x\n/root/.ssh/id_ed25519 = key\n/dev/sdx = content\n"
    );
    tree::lay_out("whole", &text, directory.path());
    symlink("/etc/shadow", directory.path().join("proc/sys/kernel/arch")).unwrap();
    let recording = Recording::of(directory.path(), true).unwrap();
    let words = ["shadow", "environ", "cmdline", "machine-id", "wwid", ".ssh"];
    let is_odd = |path: &&String| path.starts_with("/dev/") || words.iter().any(|word| path.contains(word));
    let odd: Vec<&String> = recording.files.keys().filter(is_odd).collect();
    assert!(odd.is_empty(), "{odd:?}");
    assert!(recording.left_out >= 8, "{}", recording.left_out);
}

#[test]
fn mounts_of_an_old_kernel_are_recorded_without_their_options() {
    let text = "/proc/self/mounts:\n    rootfs / rootfs rw 0 0\n    /dev/sda1 /home/alice ext3 rw,data=ordered,user=alice 0 0\n";
    let [(with_names, _), (scrubbed, _)] = recorded_again(text);
    let read = |machine: &tempfile::TempDir| fs::read_to_string(machine.path().join("proc/self/mounts")).unwrap();
    assert_eq!(read(&with_names), "/dev/sda1 /home/alice ext3 rw 0 0\n");
    let clean = read(&scrubbed);
    assert!(clean.len() == 34 && clean.starts_with("/dev/sda1 /home/") && !clean.contains("alice"), "{clean}");
}

#[test]
fn a_directory_without_a_machine_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let error = Recording::of(directory.path(), false).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("has no files of a machine"), "{error}");
    let missing = Recording::of(&directory.path().join("nothing"), false).map(|_| ()).unwrap_err();
    assert!(format!("{missing:#}").contains("No such file or directory"), "{missing:#}");
}

#[test]
fn every_content_is_read_back_as_it_was() {
    let contents: [&[u8]; 16] = [
        b"",
        b"\n",
        b"x\n",
        b"x",
        b" x \n",
        b"a\nb\n",
        b"a\n\nb\n",
        b"a\r\nb\r\n",
        b"a -> b\n",
        b"x:\n",
        b"x bytes:\n",
        b"{0..9}\n",
        b"a {1..2}\nb\n",
        b"say \"x\"\n",
        b"\xff\xfe\0\0\0\0\0\0\0\0\0\0abc\n",
        b"a = b\n",
    ];
    let mut files: Files = contents
        .iter()
        .enumerate()
        .map(|(index, content)| (format!("/run/{index:02}"), Content::File(content.to_vec())))
        .collect();
    files.insert("/sys/empty".to_owned(), Content::Directory);
    files.insert("/sys/link".to_owned(), Content::Link("../x".to_owned()));
    files.insert("/sys/a = b".to_owned(), Content::Directory);
    for number in [0, 1, 2, 3, 7, 9, 10] {
        let state = if number == 2 { "offline\n" } else { "online\n" };
        files.insert(format!("/sys/devices/system/memory/memory{number}/state"), Content::File(state.into()));
        files.insert(format!("/sys/devices/system/cpu/cpu{number}"), Content::Directory);
    }
    let (text, left_out) = text::written("A test.", &files);
    assert_eq!(left_out, ["/sys/a = b"]);
    assert!(
        text.contains("/memory{0..1}/state = online\n/sys/devices/system/memory/memory2/state = offline\n"),
        "{text}"
    );
    let directory = tempfile::tempdir().unwrap();
    tree::lay_out("text", &text, directory.path());
    for (index, content) in contents.iter().enumerate() {
        let found = fs::read(directory.path().join(format!("run/{index:02}"))).unwrap();
        assert_eq!(found, *content, "{}\n{text}", String::from_utf8_lossy(content));
    }
    assert_eq!(fs::read(directory.path().join("sys/devices/system/memory/memory10/state")).unwrap(), b"online\n");
    assert_eq!(fs::read_dir(directory.path().join("sys/devices/system/cpu")).unwrap().count(), 7);
    assert!(directory.path().join("sys/empty").is_dir());
    assert_eq!(fs::read_link(directory.path().join("sys/link")).unwrap(), Path::new("../x"));
}
