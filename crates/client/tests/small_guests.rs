//! Trees to and from guests whose tar is not GNU's: busybox's, one that says nothing of itself, none; and one in which all
//! programs are busybox's. Needs busybox (Debian: busybox or busybox-static).

mod stage;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use qga_client::{AnyAgent, CopyOptions, Progress, TreeReport};
use stage::{Guest, noise};

/// A guest's programs, as links in a directory.
enum Programs {
    /// The machine's own, but tar is busybox's.
    BusyboxTar,
    /// The machine's own, but tar is busybox's and does not say what it is.
    SilentTar,
    /// All are busybox's.
    Busybox,
    /// All are busybox's, and there is no tar.
    BusyboxWithoutTar,
}

fn busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("this test needs busybox: apt-get install busybox")
}

impl Programs {
    fn put_into(&self, directory: &Path) {
        let place = |name: &str| directory.join(name);
        match self {
            Self::BusyboxTar => {
                link_tools(directory);
                symlink(busybox(), place("tar")).unwrap();
            }
            Self::SilentTar => {
                link_tools(directory);
                let script = format!("#!/bin/sh\n[ \"$1\" != --version ] && exec {} tar \"$@\"\n", busybox().display());
                fs::write(place("tar"), script).unwrap();
                fs::set_permissions(place("tar"), Permissions::from_mode(0o755)).unwrap();
            }
            Self::Busybox | Self::BusyboxWithoutTar => {
                let installed = std::process::Command::new(busybox()).args(["--install", "-s"]).arg(directory).status();
                assert!(installed.unwrap().success());
                if matches!(self, Self::BusyboxWithoutTar) {
                    fs::remove_file(place("tar")).unwrap();
                }
            }
        }
    }
}

/// The machine's own programs but for tar.
fn link_tools(directory: &Path) {
    for place in ["/usr/bin", "/bin"] {
        for tool in fs::read_dir(place).unwrap().flatten().filter(|tool| tool.file_name() != "tar") {
            // Both places may be one.
            let _ = symlink(tool.path(), directory.join(tool.file_name()));
        }
    }
}

fn copy(agent: &mut AnyAgent, up: bool, from: &Path, to: &Path, options: CopyOptions) -> (TreeReport, u64) {
    let mut pieces = 0;
    let mut count = |_: Progress<'_>| {
        pieces += 1;
        std::ops::ControlFlow::Continue(())
    };
    let copied = if up {
        agent.upload_tree(from, to.to_str().unwrap(), options, &mut count)
    } else {
        agent.download_tree(from.to_str().unwrap(), to, options, &mut count)
    };
    (copied.unwrap(), pieces)
}

fn make_tree(top: &Path) {
    fs::create_dir_all(top.join("d/empty")).unwrap();
    for place in 0..150 {
        fs::write(top.join(format!("d/{place}")), noise(place * 10)).unwrap();
    }
    fs::write(top.join("large"), noise(3 << 20)).unwrap();
    fs::write(top.join("line\nend 'quoted'"), "q").unwrap();
    fs::write(top.join("-x"), "option").unwrap();
    symlink("d/7", top.join("link")).unwrap();
    fs::hard_link(top.join("d/8"), top.join("another")).unwrap();
}

fn assert_same(from: &Path, to: &Path) {
    let names = (0..150).map(|place| format!("d/{place}"));
    for name in names.chain(["large", "line\nend 'quoted'", "-x", "another", "link"].map(str::to_owned)) {
        assert!(fs::read(to.join(&name)).unwrap() == fs::read(from.join(&name)).unwrap(), "{name}");
    }
    assert!(to.join("d/empty").is_dir() && to.join("link").is_symlink());
    assert_eq!(fs::read_dir(to).unwrap().count(), fs::read_dir(from).unwrap().count(), "something is left");
}

fn a_tree_goes_both_ways(programs: &Programs, has_tar: bool) {
    let tools = tempfile::tempdir().unwrap();
    programs.put_into(tools.path());
    let Some(guest) = Guest::start_with_programs(tools.path()) else { return };
    let mut agent = guest.connect();
    let from = guest.path("from");
    make_tree(&from);
    for up in [true, false] {
        let to = guest.path("to");
        let plain = CopyOptions { verify: true, ..CopyOptions::default() };
        let (report, pieces) = copy(&mut agent, up, &from, &to, plain);
        assert_eq!((report.files, report.links, report.skipped.len()), (154, 1, 0), "up: {up}, {report:?}");
        assert_same(&from, &to);
        assert!(!has_tar || pieces < 150, "one by one: {pieces} pieces, up: {up}");
        // What is there already is left as it is.
        fs::write(to.join("d/5"), "other").unwrap();
        let stamp = |name: &str| to.join(name).metadata().map(|there| (there.ino(), there.ctime_nsec())).unwrap();
        let before = ["d/6", "large"].map(stamp);
        let (report, _) = copy(&mut agent, up, &from, &to, CopyOptions { resume: true, ..CopyOptions::default() });
        assert_eq!(report.files, 154, "up: {up}");
        assert!(!has_tar || ["d/6", "large"].map(stamp) == before, "up: {up}: copied once more");
        assert_same(&from, &to);
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn a_guest_with_busybox_tar_has_trees_in_archives() {
    a_tree_goes_both_ways(&Programs::BusyboxTar, true);
}

#[test]
fn a_guest_whose_tar_does_not_say_what_it_is_has_trees_in_archives() {
    a_tree_goes_both_ways(&Programs::SilentTar, true);
}

#[test]
fn a_guest_of_busybox_alone_has_trees_in_archives() {
    a_tree_goes_both_ways(&Programs::Busybox, true);
}

#[test]
fn a_guest_without_tar_has_trees_file_by_file() {
    a_tree_goes_both_ways(&Programs::BusyboxWithoutTar, false);
}
