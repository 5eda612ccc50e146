//! Copies that keep everything, with a real agent and several kinds of tar in its guest.

mod stage;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use qga_client::{AnyAgent, Error, TreeReport};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, makedev, mknodat, setxattr};
use stage::{Guest, no_progress, noise};

/// Programs of a small guest.
const TOOLS: [&str; 20] = [
    "cat",
    "chmod",
    "cp",
    "dd",
    "df",
    "du",
    "find",
    "head",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mv",
    "readlink",
    "rm",
    "sleep",
    "stat",
    "sha256sum",
    "touch",
    "wc",
];

fn copy(agent: &mut AnyAgent, up: bool, from: &Path, to: &Path) -> Result<TreeReport, Error> {
    if up {
        agent.upload_archive(from, to.to_str().unwrap(), &mut no_progress)
    } else {
        agent.download_archive(from.to_str().unwrap(), to, &mut no_progress)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What of a file is to be the same in its copy.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    size: u64,
    /// Another name of the same file, the first in order.
    first_name: Option<PathBuf>,
    target: Option<PathBuf>,
    attribute: Option<Vec<u8>>,
    content: Option<u64>,
    device: u64,
    is_mostly_hole: bool,
}

fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// All that is at a path and below it.
fn look(top: &Path) -> BTreeMap<PathBuf, Kept> {
    let mut all = BTreeMap::new();
    let mut names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = waiting.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let there = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(top).unwrap().to_owned();
        let is_file = there.is_file();
        let first = (is_file && there.nlink() > 1)
            .then(|| names.entry((there.dev(), there.ino())).or_insert_with(|| name.clone()).clone());
        let mut value = [0; 64];
        let attribute = lgetxattr(&path, "user.note", &mut value).ok().map(|size| value[..size].to_vec());
        let kept = Kept {
            mode: there.mode(),
            owner: (there.uid(), there.gid()),
            modified: (there.mtime(), there.mtime_nsec()),
            size: if there.is_dir() { 0 } else { there.len() },
            first_name: first,
            target: there.is_symlink().then(|| fs::read_link(&path).unwrap()),
            attribute,
            content: is_file.then(|| sum(&fs::read(&path).unwrap())),
            device: if there.file_type().is_char_device() { there.rdev() } else { 0 },
            is_mostly_hole: is_file && there.blocks() * 512 < there.len() / 2,
        };
        all.insert(name, kept);
    }
    all
}

/// A tree with one of everything. Returns whether its file system has extended attributes of users.
fn make_tree(top: &Path) -> bool {
    fs::create_dir_all(top.join("a/empty")).unwrap();
    fs::write(top.join("a/file\nwith a line end"), noise(70_000)).unwrap();
    fs::write(top.join("a/large"), noise(3 << 20)).unwrap();
    fs::write(top.join("a/-x \\n"), b"").unwrap();
    fs::write(top.join(std::ffi::OsStr::from_bytes(b"not \xff text")), b"x").unwrap();
    fs::hard_link(top.join("a/large"), top.join("second name")).unwrap();
    symlink("a/large", top.join("link")).unwrap();
    symlink("/nowhere", top.join("broken link")).unwrap();
    let holes = File::create(top.join("holes")).unwrap();
    holes.write_all_at(b"middle", 16 << 20).unwrap();
    holes.set_len(32 << 20).unwrap();
    mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::write(top.join("setuid"), b"s").unwrap();
    if is_root() {
        chown(top.join("setuid"), Some(5001), Some(5002)).unwrap();
        lchown(top.join("link"), Some(5003), Some(5003)).unwrap();
        chown(top.join("a/empty"), Some(5001), None).unwrap();
    }
    fs::set_permissions(top.join("setuid"), Permissions::from_mode(0o6711)).unwrap();
    let has_attributes = setxattr(top.join("a/large"), "user.note", b"kept", XattrFlags::empty()).is_ok();
    let touch = |path: &str, when: &str| {
        let done = Command::new("touch").args(["-h", "-d", when, "--"]).arg(top.join(path)).status().unwrap();
        assert!(done.success());
    };
    touch("a/large", "2001-02-03 04:05:06.123456789");
    touch("link", "2002-02-03 04:05:06");
    fs::set_permissions(top.join("a"), Permissions::from_mode(0o2551)).unwrap();
    touch("a", "2003-02-03 04:05:06.5");
    touch(".", "2004-02-03 04:05:06");
    has_attributes
}

/// No directory in which an archive was unpacked is left.
fn assert_nothing_is_left(guest: &Guest) {
    let names = fs::read_dir(guest.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.as_bytes().ends_with(b".qga-partial")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn everything_is_kept_there_and_back() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let has_attributes = make_tree(&guest.path("tree"));
    let wanted = look(&guest.path("tree"));
    assert!(wanted[Path::new("holes")].is_mostly_hole);
    assert_eq!(wanted[Path::new("a/large")].attribute.is_some(), has_attributes);
    for (up, from, to) in
        [(true, "tree", "up"), (false, "up", "down"), (false, "tree/", "again"), (true, "tree/.", "dot")]
    {
        let report = copy(&mut agent, up, &guest.path(from), &guest.path(to)).unwrap();
        assert_eq!(report.skipped, [], "{from}");
        assert_eq!((report.files, report.directories, report.links), (7, 3, 2), "{report:?}");
        assert_eq!(look(&guest.path(to)), wanted, "{from} to {to}");
    }
    // A second time onto itself: what is there becomes what is copied, and no link in it is followed.
    fs::write(guest.path("outside"), b"safe").unwrap();
    for (up, from, to) in [(true, "tree", "up"), (false, "tree", "down")] {
        fs::set_permissions(guest.path(to).join("a"), Permissions::from_mode(0o700)).unwrap();
        fs::write(guest.path(to).join("a/large"), b"other").unwrap();
        fs::remove_file(guest.path(to).join("setuid")).unwrap();
        symlink(guest.path("outside"), guest.path(to).join("setuid")).unwrap();
        let report = copy(&mut agent, up, &guest.path(from), &guest.path(to)).unwrap();
        assert_eq!(report.skipped, [], "{from}");
        assert_eq!(look(&guest.path(to)), wanted, "{from} to {to}");
        assert_eq!(fs::read(guest.path("outside")).unwrap(), b"safe");
    }
    assert_nothing_is_left(&guest);
}

#[test]
fn one_thing_is_kept_as_it_is() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    make_tree(&guest.path("tree"));
    for name in ["a/large", "link", "broken link", "setuid", "fifo", "holes", "a/empty", "a/-x \\n"] {
        for up in [true, false] {
            let (from, to) = (guest.path("tree").join(name), guest.path("one"));
            let report = copy(&mut agent, up, &from, &to).unwrap();
            assert_eq!(report.skipped, [], "{name}");
            let (mut wanted, mut got) = (look(&from), look(&to));
            for kept in wanted.values_mut().chain(got.values_mut()) {
                // Its other name stays behind.
                kept.first_name = None;
            }
            assert_eq!(got, wanted, "{name} up: {up}");
            Command::new("rm").arg("-rf").arg(to).status().unwrap();
        }
    }
    // What is there is written to; a link is followed to it.
    for up in [true, false] {
        fs::write(guest.path("there"), b"old and longer than the new one").unwrap();
        symlink("there", guest.path("to there")).unwrap();
        copy(&mut agent, up, &guest.path("tree/setuid"), &guest.path("to there")).unwrap();
        assert!(fs::symlink_metadata(guest.path("to there")).unwrap().is_symlink());
        assert_eq!(look(&guest.path("there")), look(&guest.path("tree/setuid")));
        fs::remove_file(guest.path("to there")).unwrap();
        let error = copy(&mut agent, up, &guest.path("tree/setuid"), &guest.path("tree")).expect_err("a directory");
        assert!(error.to_string().contains("it is a directory"), "{error}");
        let error = copy(&mut agent, up, &guest.path("missing"), &guest.path("x")).expect_err("nothing there");
        assert!(error.to_string().contains("No such file or directory"), "{error}");
        let error = copy(&mut agent, up, &guest.path("tree"), &guest.path("missing/x")).expect_err("no place");
        assert!(error.to_string().to_lowercase().contains("no such file or directory"), "{error}");
    }
    assert_nothing_is_left(&guest);
}

#[test]
fn no_guest_makes_a_device_on_its_host() {
    let Some(guest) = Guest::start() else { return };
    if !is_root() {
        eprintln!("skipped: only root can make a device");
        return;
    }
    let mut agent = guest.connect();
    fs::create_dir(guest.path("tree")).unwrap();
    mknodat(CWD, guest.path("tree/null"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 3)).unwrap();
    fs::write(guest.path("tree/file"), b"x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("tree/socket")).unwrap();
    let report = copy(&mut agent, true, &guest.path("tree"), &guest.path("up")).unwrap();
    assert!(fs::symlink_metadata(guest.path("up/null")).unwrap().file_type().is_char_device());
    let [(path, why)] = &report.skipped[..] else { panic!("{report:?}") };
    assert_eq!((path, why.as_str()), (&guest.path("tree/socket"), "it is a socket"));
    let report = copy(&mut agent, false, &guest.path("up"), &guest.path("down")).unwrap();
    assert!(!guest.path("down/null").exists() && guest.path("down/file").exists());
    let [(path, why)] = &report.skipped[..] else { panic!("{report:?}") };
    assert!(*path == guest.path("up/null") && why.starts_with("it is a device"), "{report:?}");
    let report = copy(&mut agent, false, &guest.path("up/null"), &guest.path("one")).unwrap();
    assert_eq!(report.skipped.len(), 1);
    assert!(!guest.path("one").exists());
}

#[test]
fn a_small_tar_keeps_what_it_can_and_the_rest_is_named() {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let Some(busybox) = busybox else {
        eprintln!("skipped: there is no busybox here");
        return;
    };
    let programs = tempfile::tempdir().unwrap();
    for tool in TOOLS.into_iter().chain(["tar"]) {
        symlink(busybox, programs.path().join(tool)).unwrap();
    }
    let Some(guest) = Guest::start_with_programs(programs.path()) else { return };
    let mut agent = guest.connect();
    let has_attributes = make_tree(&guest.path("tree"));
    let report = copy(&mut agent, true, &guest.path("tree"), &guest.path("up")).unwrap();
    let why: Vec<&str> = report.skipped.iter().map(|(_, why)| why.as_str()).collect();
    assert!(why.iter().any(|why| why.ends_with("no holes")), "{report:?}");
    assert_eq!(why.iter().any(|why| why.ends_with("no extended attributes")), has_attributes, "{report:?}");
    let report = copy(&mut agent, false, &guest.path("tree"), &guest.path("down")).unwrap();
    assert_eq!((report.files, report.directories, report.links), (7, 3, 2), "{report:?}");
    assert!(report.skipped[0].1.contains("no extended attributes"), "{report:?}");
    let without = |to: &str| {
        let mut all = look(&guest.path(to));
        for kept in all.values_mut() {
            // Whole seconds, no holes, no attributes, no times of directories.
            (kept.modified.1, kept.is_mostly_hole, kept.attribute) = (0, false, None);
            if kept.content.is_none() {
                kept.modified.0 = 0;
            }
        }
        all
    };
    let wanted = without("tree");
    for to in ["up", "down"] {
        let got = without(to);
        for (name, kept) in &wanted {
            // A link's own time is kept by few.
            if kept.target.is_some() {
                assert_eq!(got[name].target, kept.target, "{to}");
            } else {
                assert_eq!(got.get(name), Some(kept), "{to}: {}", name.display());
            }
        }
        assert_eq!(got.len(), wanted.len());
    }
    assert_nothing_is_left(&guest);
}

#[test]
fn a_guest_without_tar_says_so() {
    let programs = tempfile::tempdir().unwrap();
    for tool in TOOLS {
        let found =
            ["/bin", "/usr/bin"].map(|place| Path::new(place).join(tool)).into_iter().find(|tool| tool.exists());
        symlink(found.unwrap(), programs.path().join(tool)).unwrap();
    }
    let Some(guest) = Guest::start_with_programs(programs.path()) else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("x"), b"x").unwrap();
    for up in [true, false] {
        let error = copy(&mut agent, up, &guest.path("x"), &guest.path("y")).expect_err("no tar");
        assert!(error.to_string().contains("the guest has no tar"), "{error}");
    }
    assert!(!guest.path("y").exists());
    assert_nothing_is_left(&guest);
}

#[test]
fn a_copy_that_is_stopped_leaves_nothing() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::create_dir(guest.path("tree")).unwrap();
    fs::write(guest.path("tree/large"), noise(40 << 20)).unwrap();
    let text = |name: &str| guest.path(name).to_str().unwrap().to_owned();
    let mut stop_within = |progress: qga_client::Progress<'_>| {
        if progress.copied_bytes > 1 << 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let error = agent.upload_archive(&guest.path("tree"), &text("up"), &mut stop_within).expect_err("stopped");
    assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
    let error = agent.download_archive(&text("tree"), &guest.path("down"), &mut stop_within).expect_err("stopped");
    assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
    assert!(!guest.path("up").exists() && !guest.path("down").exists());
    assert_nothing_is_left(&guest);
    // The agent is as before.
    copy(&mut agent, false, &guest.path("tree"), &guest.path("down")).unwrap();
}

/// A guest's tar can send what it likes.
#[test]
fn an_archive_that_means_harm_reaches_nothing_else_on_the_host() {
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| outside.path().join(name);
    fs::write(at("secret"), b"safe").unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |kind: tar::EntryType, name: &str, target: Option<&Path>, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let field = &mut header.as_gnu_mut().unwrap().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = target {
            header.set_link_name_literal(target.as_os_str().as_bytes()).unwrap();
        }
        header.set_cksum();
        archive.append(&header, content).unwrap();
    };
    put(tar::EntryType::Symlink, "./link", Some(outside.path()), b"");
    put(tar::EntryType::Regular, "./link/written", None, b"evil");
    put(tar::EntryType::Link, "./hard", Some(&at("secret")), b"");
    put(tar::EntryType::Regular, "./hard", None, b"evil");
    put(tar::EntryType::Regular, "../../written", None, b"evil");
    put(tar::EntryType::Regular, at("written").to_str().unwrap(), None, b"evil");
    let archive = archive.into_inner().unwrap();

    let programs = tempfile::tempdir().unwrap();
    for tool in TOOLS {
        let found =
            ["/bin", "/usr/bin"].map(|place| Path::new(place).join(tool)).into_iter().find(|tool| tool.exists());
        symlink(found.unwrap(), programs.path().join(tool)).unwrap();
    }
    fs::write(programs.path().join("archive"), archive).unwrap();
    let script = "#!/bin/sh\ncase $1 in --version) echo 'tar (GNU tar) 1.34';; *) cat \"${0%/*}/archive\";; esac\n";
    fs::write(programs.path().join("tar"), script).unwrap();
    fs::set_permissions(programs.path().join("tar"), Permissions::from_mode(0o755)).unwrap();
    let Some(guest) = Guest::start_with_programs(programs.path()) else { return };
    let mut agent = guest.connect();
    fs::create_dir_all(guest.path("tree")).unwrap();
    // Whether it is refused or comes without the harm in it.
    let report = copy(&mut agent, false, &guest.path("tree"), &guest.path("deep/er/down"));
    assert!(report.is_err(), "there is no directory for it");
    fs::create_dir_all(guest.path("deep/er")).unwrap();
    let report = copy(&mut agent, false, &guest.path("tree"), &guest.path("deep/er/down"));
    let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["secret"], "{report:?}");
    assert_eq!(fs::read(at("secret")).unwrap(), b"safe");
    for place in ["written", "deep/written", "deep/er/written"] {
        assert!(!guest.path(place).exists(), "{place}: {report:?}");
    }
    assert!(fs::metadata(at("secret")).unwrap().nlink() == 1 || !guest.path("deep/er/down/hard").exists());
}
