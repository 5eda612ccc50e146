//! Files of the guest with a real agent: copies both ways, broken off and gone on with, and what an agent tells.

mod stage;

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use qga_client::{AnyAgent, CopyOptions, Error, FileKind, Kind, Progress, Target, Timeouts};
use stage::{Guest, no_progress, noise};

#[test]
fn a_file_goes_there_and_back_with_mode_and_checksum() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let options = CopyOptions { verify: true, ..CopyOptions::default() };
    for size in [0, 1, (1 << 20) - 1, 1 << 20, (9 << 20) + 5] {
        let content = noise(size);
        let source = guest.path("source");
        fs::write(&source, &content).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o751)).unwrap();
        let mut seen = 0;
        let mut progress = |progress: Progress<'_>| {
            assert_eq!(progress.total_bytes, size as u64);
            seen = progress.copied_bytes;
            ControlFlow::Continue(())
        };
        let there = guest.text("in the guest\n\"x\"");
        let copied = agent.upload(&source, &there, options, &mut progress).unwrap();
        assert_eq!((copied.bytes, copied.resumed_at), (size as u64, 0));
        assert_eq!(seen, size as u64);
        assert_eq!(fs::metadata(&there).unwrap().permissions().mode() & 0o7777, 0o751);

        let back = guest.path("back");
        let copied = agent.download(&there, &back, options, &mut no_progress).unwrap();
        assert!(copied.sha256.is_some());
        assert!(fs::read(&back).unwrap() == content, "{size} bytes came back otherwise");
        assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o7777, 0o751);
    }
    assert_eq!(names(&guest), ["back", "in the guest\n\"x\"", "source"]);
}

fn names(guest: &Guest) -> Vec<String> {
    let entries = fs::read_dir(guest.directory.path()).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_copy_that_was_broken_off_goes_on() {
    let Some(guest) = Guest::start() else { return };
    let content = noise(8 << 20);
    fs::write(guest.path("source"), &content).unwrap();
    let options = CopyOptions { resume: true, verify: true, ..CopyOptions::default() };
    for way in ["up", "down"] {
        let (source, there) = (guest.path("source"), guest.text(way));
        let copy = |progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>| {
            let mut agent = guest.connect();
            match way {
                "up" => agent.upload(&source, &there, options, progress),
                _ => agent.download(source.to_str().unwrap(), there.as_ref(), options, progress),
            }
        };
        let mut half = |progress: Progress<'_>| {
            if progress.copied_bytes >= 4 << 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = copy(&mut half).unwrap_err();
        assert!(matches!(&error, Error::Stopped { kept: Some(kept), .. } if kept.contains("qga-partial")), "{error}");
        assert!(!guest.path(way).exists(), "nothing half-written has the final name");
        let copied = copy(&mut no_progress).unwrap();
        assert!(copied.resumed_at > 0, "{way} began anew");
        assert!(fs::read(guest.path(way)).unwrap() == content, "{way} is something else");
    }
    assert_eq!(names(&guest), ["down", "source", "up"]);
}

/// The names of the partial files of `source` as `up` in the guest and `down` on the host, if they are to be found again.
fn partial_names(guest: &Guest, agent: &mut AnyAgent) -> [PathBuf; 2] {
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    fs::write(guest.path("source"), noise(6 << 20)).unwrap();
    let mut stop = |progress: Progress<'_>| {
        if progress.copied_bytes >= 4 << 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    agent.upload(&guest.path("source"), &guest.text("up"), options, &mut stop).unwrap_err();
    agent.download(&guest.text("source"), &guest.path("down"), options, &mut stop).unwrap_err();
    let found = names(guest);
    ["down", "up"].map(|name| {
        let start = format!(".{name}.");
        let partial = found.iter().find(|found| found.starts_with(&start)).unwrap_or_else(|| panic!("{found:?}"));
        guest.path(partial)
    })
}

#[test]
fn a_file_that_is_called_like_a_partial_one_is_left_alone() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("source"), noise(1000)).unwrap();
    for resume in [true, false] {
        let options = CopyOptions { resume, ..CopyOptions::default() };
        for name in ["up", "down"] {
            // As the start of the source it would be gone on from.
            fs::write(guest.path(&format!(".{name}.qga-partial")), noise(500)).unwrap();
        }
        agent.upload(&guest.path("source"), &guest.text("up"), options, &mut no_progress).unwrap();
        agent.download(&guest.text("source"), &guest.path("down"), options, &mut no_progress).unwrap();
        for name in ["up", "down"] {
            assert_eq!(fs::read(guest.path(&format!(".{name}.qga-partial"))).unwrap(), noise(500));
        }
    }
    assert_eq!(names(&guest), [".down.qga-partial", ".up.qga-partial", "down", "source", "up"]);
}

#[test]
fn a_partial_file_of_something_else_is_not_gone_on_from() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    for partial in partial_names(&guest, &mut agent) {
        fs::write(partial, b"something else").unwrap();
    }
    fs::write(guest.path("source"), noise(1000)).unwrap();
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    let up = agent.upload(&guest.path("source"), &guest.text("up"), options, &mut no_progress).unwrap();
    let down = agent.download(&guest.text("source"), &guest.path("down"), options, &mut no_progress).unwrap();
    assert_eq!((up.resumed_at, down.resumed_at), (0, 0));
    assert_eq!(fs::read(guest.path("up")).unwrap(), noise(1000));
    assert_eq!(fs::read(guest.path("down")).unwrap(), noise(1000));
}

#[test]
fn a_link_under_the_partial_name_is_not_followed() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("victim"), b"keep").unwrap();
    for partial in partial_names(&guest, &mut agent) {
        fs::remove_file(&partial).unwrap();
        std::os::unix::fs::symlink(guest.path("victim"), partial).unwrap();
    }
    fs::write(guest.path("source"), b"new").unwrap();
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    agent.upload(&guest.path("source"), &guest.text("up"), options, &mut no_progress).unwrap();
    agent.download(&guest.text("source"), &guest.path("down"), options, &mut no_progress).unwrap();
    assert_eq!(fs::read(guest.path("victim")).unwrap(), b"keep");
    assert_eq!(names(&guest), ["down", "source", "up", "victim"]);
}

#[test]
fn a_file_that_changes_while_it_is_copied_is_not_kept() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let source = guest.path("source");
    for way in ["up", "down"] {
        fs::write(&source, noise(6 << 20)).unwrap();
        let mut is_changed = false;
        let mut change = |_: Progress<'_>| {
            if !is_changed {
                let mut file = fs::OpenOptions::new().append(true).open(&source).unwrap();
                file.write_all(b"more").unwrap();
                is_changed = true;
            }
            ControlFlow::Continue(())
        };
        let options = CopyOptions::default();
        let error = match way {
            "up" => agent.upload(&source, &guest.text(way), options, &mut change),
            _ => agent.download(source.to_str().unwrap(), &guest.path(way), options, &mut change),
        };
        assert_eq!(error.unwrap_err().kind(), Kind::Changed);
    }
    assert_eq!(names(&guest), ["source"]);
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left() {
    let Some(guest) = Guest::start() else { return };
    let Some(small) = SmallDisk::mount() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("source"), noise(6 << 20)).unwrap();
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    let there = small.0.path().join("x");
    let error = agent.upload(&guest.path("source"), there.to_str().unwrap(), options, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), Kind::GuestFull, "{error}");
    agent.call_raw("guest-ping", serde_json::Value::Null).unwrap();
    let error = agent.download(&guest.text("source"), &there, options, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFull, "{error}");
    assert_eq!(fs::read_dir(small.0.path()).unwrap().count(), 0);
}

/// A file system of 2 MiB; goes with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(directory.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn what_cannot_be_copied_is_told_why() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let options = CopyOptions::default();
    fs::write(guest.path("source"), "x").unwrap();
    fs::create_dir(guest.path("directory")).unwrap();
    let mut check = |up: bool, from: &str, to: &str, expected: &str| {
        let (from, to) = (guest.path(from), guest.path(to));
        let error = if up {
            agent.upload(&from, to.to_str().unwrap(), options, &mut no_progress)
        } else {
            agent.download(from.to_str().unwrap(), &to, options, &mut no_progress)
        };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    for up in [true, false] {
        check(up, "missing", "x", "No such file or directory");
        check(up, "directory", "x", "it is a directory");
        check(up, "source", "directory", "it is a directory");
        check(up, "source", "missing/x", "No such file or directory");
    }
    drop(agent);
    assert_eq!(names(&guest), ["directory", "source"]);
}

#[test]
fn two_copies_to_one_name_do_not_mix() {
    let (Some(guest), Some(other)) = (Guest::start(), Guest::start()) else { return };
    let long = noise(6 << 20);
    fs::create_dir(guest.path("other")).unwrap();
    // What resumes knows a partial file by the names of both sides.
    let (source, short, there) = (guest.path("source"), guest.path("other/source"), guest.path("x"));
    fs::write(&source, &long).unwrap();
    fs::write(&short, "short").unwrap();
    for (up, resume) in [(true, false), (true, true), (false, false), (false, true)] {
        let options = CopyOptions { resume, ..CopyOptions::default() };
        let copy = |guest: &Guest, from: &PathBuf, progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>| {
            let mut agent = guest.connect();
            if up {
                agent.upload(from, there.to_str().unwrap(), options, progress)
            } else {
                agent.download(from.to_str().unwrap(), &there, options, progress)
            }
        };
        let mut second = None;
        let first = copy(&guest, &source, &mut |progress| {
            if progress.copied_bytes >= 2 << 20 && second.is_none() {
                second = Some(copy(&other, &short, &mut no_progress));
            }
            ControlFlow::Continue(())
        });
        let (first, second) = (first.map_err(|error| error.to_string()), second.unwrap());
        let second = second.map_err(|error| error.to_string());
        let is_refused = |error: &String| error.contains("another copy to the same file is at work");
        let content = fs::read(&there).unwrap();
        match (up, resume) {
            // Each has a partial file of its own; the last one to end gives the content.
            (_, false) => assert!(first.is_ok() && second.is_ok() && content == long, "{first:?} {second:?}"),
            (true, true) => {
                assert!(first.as_ref().is_err_and(is_refused) && second.is_ok(), "{first:?} {second:?}");
                assert_eq!(content, b"short");
            }
            (false, true) => {
                assert!(first.is_ok() && second.as_ref().is_err_and(is_refused), "{first:?} {second:?}");
                assert!(content == long);
            }
        }
        fs::remove_file(&there).unwrap();
        assert_eq!(names(&guest), ["other", "source"]);
    }
}

#[test]
fn two_copies_that_go_on_from_one_partial_file_do_not_mix() {
    let (Some(guest), Some(other)) = (Guest::start(), Guest::start()) else { return };
    let there = guest.text("x");
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    // The same start and the same size: neither checksum nor length tells them apart half-way.
    let contents = [b'1', b'2'].map(|end| [noise(6 << 20), vec![end; 2 << 20]].concat());
    for (name, content) in ["1", "2"].into_iter().zip(&contents) {
        fs::create_dir(guest.path(name)).unwrap();
        fs::write(guest.path(name).join("source"), content).unwrap();
    }
    let mut second = None;
    let first = guest.connect().upload(&guest.path("1/source"), &there, options, &mut |progress| {
        if progress.copied_bytes >= 4 << 20 && second.is_none() {
            second = Some(other.connect().upload(&guest.path("2/source"), &there, options, &mut no_progress));
        }
        ControlFlow::Continue(())
    });
    second.expect("it was begun").expect("the one that came last is whole");
    let first = first.unwrap_err();
    assert!(first.to_string().contains("another copy to the same file is at work"), "{first}");
    assert!(!first.to_string().contains("kept"), "{first}");
    assert!(fs::read(&there).unwrap() == contents[1], "they are mixed");
    assert_eq!(names(&guest), ["1", "2", "x"]);
}

#[test]
fn files_of_the_guest_are_listed() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    fs::write(guest.path("b\nc"), b"12345").unwrap();
    fs::create_dir_all(guest.path("d/e")).unwrap();
    let directory = guest.directory.path().to_str().unwrap().to_owned();
    let mut files = agent.list_directory(&directory, false).unwrap();
    files.retain(|file| file.kind == FileKind::Directory);
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(files[0].path_text().unwrap(), guest.text("d"));
    let link = guest.path("l");
    std::os::unix::fs::symlink("d", &link).unwrap();
    assert_eq!(agent.stat_file(&guest.text("l"), false).unwrap().kind, FileKind::Link);
    assert_eq!(agent.stat_file(&guest.text("l"), true).unwrap().kind, FileKind::Directory);
    assert_eq!(agent.list_directory(&guest.text("l"), true).unwrap().len(), 1, "a link is entered");
}

#[test]
fn an_agent_tells_what_it_serves() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    assert!(agent.serves("guest-exec").unwrap());
    assert!(!agent.serves("guest-no-such-command").unwrap());
    let error = agent.call_raw("guest-no-such-command", serde_json::Value::Null).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSuchCommand);
}

#[test]
fn a_port_that_another_client_holds_is_named() {
    // One client at a time is what QEMU's ports do; a listener that never accepts does the same.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let _other = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let timeouts = Timeouts { silence: Duration::from_millis(50), ..Timeouts::default() };
    let error = qga_client::Agent::connect(&Target::Unix(path), timeouts).unwrap_err();
    assert_eq!(error.kind(), Kind::Held, "{error}");
}
