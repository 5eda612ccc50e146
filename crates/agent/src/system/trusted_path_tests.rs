use super::{Who, first_refusal, open_to_write, walk};
use crate::system::root::Root;
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

const SOMEBODY: u32 = 1234;

/// A machine with a program `/opt/tools/run`, and links to it.
fn machine() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    for path in ["/opt/tools", "/home/lab", "/tmp"] {
        fs::create_dir_all(root.path(path)).unwrap();
    }
    fs::write(root.path("/opt/tools/run"), "it").unwrap();
    for (path, mode) in [("/opt", 0o755), ("/opt/tools", 0o755), ("/opt/tools/run", 0o755), ("/home/lab", 0o755)] {
        set_mode(&root, path, mode);
    }
    set_mode(&root, "/tmp", 0o1777);
    (directory, root)
}

fn set_mode(root: &Root, path: &str, mode: u32) {
    fs::set_permissions(root.path(path), Permissions::from_mode(mode)).unwrap();
}

/// Root alone can give files away; whoever else runs these tests sees the other half of them.
fn can_give_away() -> bool {
    rustix::process::geteuid().is_root()
}

fn doubts(root: &Root, path: &str) -> Vec<String> {
    walk(root, Path::new(path)).unwrap().doubts().iter().map(ToString::to_string).collect()
}

#[test]
fn a_path_that_is_root_s_alone_has_no_doubts_whatever_links_it_goes_by() {
    let (_directory, root) = machine();
    symlink("/opt/tools", root.path("/opt/absolute")).unwrap();
    symlink("../opt/./absolute/../tools/run", root.path("/opt/relative")).unwrap();
    symlink("/opt/tools/run", root.path("/tmp/mine")).unwrap();
    for path in ["/opt/tools/run", "/opt/absolute/run", "/opt/relative", "/tmp/mine", "/../opt//tools/../tools/run"] {
        let found = walk(&root, Path::new(path)).unwrap();
        assert!(found.doubts().is_empty() && found.is_there(), "{path}: {found:?}");
        assert_eq!(found.real(), Path::new("/opt/tools/run"), "{path}");
        let mut text = String::new();
        fs::File::from(found.open(OFlags::RDONLY, Mode::empty()).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "it");
    }
    assert_eq!(walk(&root, Path::new("/tmp")).unwrap().kind(), Some(FileType::Directory));
}

#[test]
fn each_step_that_others_can_change_is_named_with_what_mends_it() {
    for (step, mode, text) in [
        ("/opt", 0o757, "the mode of '/opt' is 0757: everybody may change it; 'chmod o-w /opt' mends that"),
        ("/opt/tools/run", 0o777, "the mode of '/opt/tools/run' is 0777: everybody may change it"),
    ] {
        let (_directory, root) = machine();
        set_mode(&root, step, mode);
        let found = doubts(&root, "/opt/tools/run");
        assert!(found.len() == 1 && found[0].starts_with(text), "{found:?}");
    }
    let (_directory, root) = machine();
    set_mode(&root, "/opt/tools", 0o775);
    let group = fs::metadata(root.path("/opt/tools")).unwrap().gid();
    let text = format!(
        "the mode of '/opt/tools' is 0775: its group, {group}, may change it; 'chmod g-w /opt/tools' mends that"
    );
    assert_eq!(doubts(&root, "/opt/tools/run"), [text]);
    let found = walk(&root, Path::new("/opt/tools/run")).unwrap();
    assert!(first_refusal(&found, false, |_| ()).is_some_and(|doubt| doubt.who == Who::Group(group)));
    assert_eq!(first_refusal(&found, true, |_| ()), None);
}

#[test]
fn a_link_in_a_user_s_directory_between_root_s_directory_and_root_s_program_is_a_doubt() {
    if !can_give_away() {
        return;
    }
    let (_directory, root) = machine();
    symlink("/opt/tools/run", root.path("/home/lab/current")).unwrap();
    chown(root.path("/home/lab"), Some(SOMEBODY), None).unwrap();
    symlink("/home/lab/current", root.path("/opt/hook")).unwrap();
    let text = "the owner of '/home/lab' (mode 0755) is the user 1234, not root; 'chown root /home/lab' mends that";
    assert_eq!(doubts(&root, "/opt/hook"), [text]);
    // The user's own link, too.
    lchown(root.path("/home/lab/current"), Some(SOMEBODY), None).unwrap();
    assert_eq!(doubts(&root, "/opt/hook").len(), 2);
}

#[test]
fn in_a_sticky_directory_only_what_belongs_to_others_is_a_doubt() {
    let (_directory, root) = machine();
    fs::create_dir(root.path("/tmp/own")).unwrap();
    fs::write(root.path("/tmp/own/run"), "").unwrap();
    set_mode(&root, "/tmp/own", 0o755);
    set_mode(&root, "/tmp/own/run", 0o755);
    assert_eq!(doubts(&root, "/tmp/own/run"), [""; 0]);
    if can_give_away() {
        symlink("/tmp/own", root.path("/tmp/theirs")).unwrap();
        lchown(root.path("/tmp/theirs"), Some(SOMEBODY), None).unwrap();
        let text = "the link '/tmp/theirs' is the user 1234's, in a directory that others may write to; \
                    'chown -h root /tmp/theirs' mends that";
        assert_eq!(doubts(&root, "/tmp/theirs/run"), [text]);
    }
    // What is looked for programs in must not be written to by others at all.
    assert!(doubts(&root, "/tmp")[0].starts_with("the mode of '/tmp' is 1777: everybody may change it"));
}

#[test]
fn what_is_missing_or_goes_in_circles_is_told() {
    let (_directory, root) = machine();
    symlink("circle", root.path("/opt/circle")).unwrap();
    let error = |path: &str| walk(&root, Path::new(path)).unwrap_err().raw_os_error();
    assert_eq!(error("/opt/circle"), Some(rustix::io::Errno::LOOP.raw_os_error()));
    assert_eq!(error("/opt/none/run"), Some(rustix::io::Errno::NOENT.raw_os_error()));
    assert_eq!(error("/opt/tools/run/below"), Some(rustix::io::Errno::NOTDIR.raw_os_error()));
    assert!(!walk(&root, Path::new("/opt/none")).unwrap().is_there());
}

#[test]
fn a_log_may_lie_where_others_may_write_but_be_no_link_of_theirs_and_no_second_name() {
    let (_directory, root) = machine();
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK;
    let open = |path: &str| open_to_write(&root.path(path), flags, Mode::RUSR | Mode::WUSR);
    for path in ["/tmp/log", "/opt/log", "/home/lab/log"] {
        for _ in 0..2 {
            fs::File::from(open(path).unwrap()).write_all(b"line\n").unwrap();
        }
        assert_eq!(fs::read_to_string(root.path(path)).unwrap(), "line\nline\n");
    }
    // Root's own link is followed, as for a log on another disk.
    symlink(root.path("/opt/log"), root.path("/tmp/mine")).unwrap();
    open("/tmp/mine").unwrap();
    fs::hard_link(root.path("/opt/tools/run"), root.path("/tmp/second")).unwrap();
    assert!(open("/tmp/second").unwrap_err().to_string().starts_with("the file has 2 names"));
    if can_give_away() {
        symlink(root.path("/opt/tools/run"), root.path("/tmp/theirs")).unwrap();
        lchown(root.path("/tmp/theirs"), Some(SOMEBODY), None).unwrap();
        assert!(open("/tmp/theirs").unwrap_err().to_string().contains("is the user 1234's"));
        chown(root.path("/home/lab"), Some(SOMEBODY), None).unwrap();
        chown(root.path("/home/lab/log"), Some(SOMEBODY), None).unwrap();
        open("/home/lab/log").unwrap();
    }
    assert_eq!(fs::read_to_string(root.path("/opt/tools/run")).unwrap(), "it");
}

#[test]
fn what_is_open_already_is_written_to_by_its_link_in_proc() {
    let mut file = tempfile::tempfile().unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let opened = open_to_write(Path::new(&path), OFlags::WRONLY | OFlags::APPEND, Mode::empty()).unwrap();
    fs::File::from(opened).write_all(b"x").unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}
