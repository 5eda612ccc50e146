//! What stands where a copy goes stays what it is: links, devices, FIFOs, owners, permissions, names, holes. Both ways, with
//! a real agent.

mod stage;

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use qga_client::{AnyAgent, Copied, CopyOptions, Error, Progress};
use stage::{Guest, no_progress, noise};

const WAYS: [bool; 2] = [true, false];

fn copy_with(agent: &mut AnyAgent, up: bool, from: &Path, to: &Path, options: CopyOptions) -> Result<Copied, Error> {
    if up {
        agent.upload(from, to.to_str().unwrap(), options, &mut no_progress)
    } else {
        agent.download(from.to_str().unwrap(), to, options, &mut no_progress)
    }
}

fn copy(agent: &mut AnyAgent, up: bool, from: &Path, to: &Path) -> Result<Copied, Error> {
    copy_with(agent, up, from, to, CopyOptions::default())
}

fn names(guest: &Guest) -> Vec<String> {
    let entries = fs::read_dir(guest.directory.path()).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn make_fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn links_are_followed_and_stay_links() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let source = guest.path("source");
    fs::write(&source, "new").unwrap();
    for up in WAYS {
        fs::create_dir(guest.path("d")).unwrap();
        fs::write(guest.path("d/end"), "old").unwrap();
        symlink("d/end", guest.path("relative")).unwrap();
        symlink(guest.path("relative"), guest.path("chain")).unwrap();
        symlink("d/not yet", guest.path("dangling")).unwrap();
        symlink("missing/x", guest.path("nowhere")).unwrap();
        symlink("loop", guest.path("loop")).unwrap();
        copy(&mut agent, up, &source, &guest.path("chain")).unwrap();
        copy(&mut agent, up, &source, &guest.path("dangling")).unwrap();
        for wrong in ["nowhere", "loop"] {
            copy(&mut agent, up, &source, &guest.path(wrong)).unwrap_err();
        }
        for link in ["relative", "chain", "dangling", "nowhere", "loop"] {
            assert!(guest.path(link).is_symlink(), "{link} was replaced");
            fs::remove_file(guest.path(link)).unwrap();
        }
        for end in ["d/end", "d/not yet"] {
            assert_eq!(fs::read(guest.path(end)).unwrap(), b"new");
        }
        assert_eq!(fs::read_dir(guest.path("d")).unwrap().count(), 2);
        fs::remove_dir_all(guest.path("d")).unwrap();
        assert_eq!(names(&guest), ["source"]);
    }
}

#[test]
fn a_file_that_is_there_keeps_its_owner_its_mode_and_its_attributes() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let (source, there) = (guest.path("source"), guest.path("there"));
    fs::write(&source, noise(100_000)).unwrap();
    fs::set_permissions(&source, Permissions::from_mode(0o644)).unwrap();
    for up in WAYS {
        fs::write(&there, "old").unwrap();
        if is_root() {
            chown(&there, Some(65534), Some(1)).unwrap();
        }
        fs::set_permissions(&there, Permissions::from_mode(0o4710)).unwrap();
        let file = File::open(&there).unwrap();
        rustix::fs::fsetxattr(&file, "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
        let before = there.metadata().unwrap();
        copy(&mut agent, up, &source, &there).unwrap();
        assert_eq!(fs::read(&there).unwrap(), noise(100_000));
        let after = there.metadata().unwrap();
        let likeness = |file: &fs::Metadata| (file.uid(), file.gid(), file.mode());
        assert_eq!(likeness(&after), likeness(&before), "up: {up}");
        let mut value = [0; 16];
        let size = rustix::fs::getxattr(&there, "user.note", &mut value[..]).unwrap();
        assert_eq!(&value[..size], b"kept");
        fs::remove_file(&there).unwrap();
        assert_eq!(names(&guest), ["source"]);
    }
}

#[test]
fn a_file_with_several_names_keeps_them() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let source = guest.path("source");
    fs::write(&source, "new").unwrap();
    for up in WAYS {
        let (one, other) = (guest.path("one"), guest.path("other"));
        fs::write(&one, "old and longer").unwrap();
        fs::hard_link(&one, &other).unwrap();
        copy(&mut agent, up, &source, &one).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"new", "up: {up}");
        assert_eq!(one.metadata().unwrap().ino(), other.metadata().unwrap().ino());
        assert_eq!(names(&guest), ["one", "other", "source"]);
        fs::remove_file(one).unwrap();
        fs::remove_file(other).unwrap();
    }
}

#[test]
fn holes_are_kept() {
    const SIZE: u64 = 40 << 20;
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let source = guest.path("source");
    let make = |end: &[u8]| {
        let file = File::create(&source).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(&noise(5000), 20 << 20).unwrap();
        // Zeros that take room are none either in the copy.
        file.write_all_at(&vec![0; 4 << 20], 8 << 20).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(end, SIZE - end.len() as u64).unwrap();
    };
    for end in [&b"end"[..], b""] {
        make(end);
        for (up, verify) in [(true, true), (true, false), (false, true), (false, false)] {
            let there = guest.path("there");
            let options = CopyOptions { verify, ..CopyOptions::default() };
            let copied = copy_with(&mut agent, up, &source, &there, options).unwrap();
            assert_eq!(copied.bytes, SIZE);
            assert!(fs::read(&there).unwrap() == fs::read(&source).unwrap(), "up: {up}, verify: {verify}");
            let room = there.metadata().unwrap().blocks() * 512;
            assert!(room < 1 << 20, "{room} bytes, up: {up}, verify: {verify}");
            fs::remove_file(there).unwrap();
        }
    }
}

#[test]
fn devices_and_fifos_are_written_to_and_a_socket_is_refused() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let (source, fifo) = (guest.path("source"), guest.path("fifo"));
    fs::write(&source, noise(300_000)).unwrap();
    make_fifo(&fifo);
    symlink("/dev/null", guest.path("device")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(guest.path("socket")).unwrap();
    for up in WAYS {
        copy(&mut agent, up, &source, &guest.path("device")).unwrap();
        let path = fifo.clone();
        let reader = thread::spawn(move || {
            let mut heard = Vec::new();
            File::open(path).unwrap().read_to_end(&mut heard).unwrap();
            heard
        });
        copy(&mut agent, up, &source, &fifo).unwrap();
        assert!(reader.join().unwrap() == noise(300_000), "up: {up}");
        let error = copy(&mut agent, up, &source, &guest.path("socket")).unwrap_err();
        assert!(error.to_string().contains("it is a socket"), "{error}");
        // Nobody reads: it ends when the caller says so.
        let mut looks = 0;
        let mut stop = |_: Progress<'_>| {
            looks += 1;
            if looks > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped = if up {
            agent.upload(&source, fifo.to_str().unwrap(), CopyOptions::default(), &mut stop)
        } else {
            agent.download(source.to_str().unwrap(), &fifo, CopyOptions::default(), &mut stop)
        };
        assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stopped:?}");
    }
    assert!(fifo.metadata().unwrap().file_type().is_fifo());
    assert!(
        guest.path("device").is_symlink() && Path::new("/dev/null").metadata().unwrap().file_type().is_char_device()
    );
    assert_eq!(names(&guest), ["device", "fifo", "socket", "source"]);
}

#[test]
fn what_comes_through_a_fifo_is_copied_to_its_end() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let (fifo, there) = (guest.path("fifo"), guest.path("there"));
    make_fifo(&fifo);
    let mut looks = 0;
    let mut stop = |_: Progress<'_>| {
        looks += 1;
        if looks > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = agent.upload(&fifo, there.to_str().unwrap(), CopyOptions::default(), &mut stop);
    assert!(matches!(stopped, Err(Error::Stopped { .. })), "{stopped:?}");
    assert_eq!(names(&guest), ["fifo"]);
    let path = fifo.clone();
    let writer = thread::spawn(move || fs::write(path, noise(300_000)).unwrap());
    let copied = agent.upload(&fifo, there.to_str().unwrap(), CopyOptions::default(), &mut no_progress).unwrap();
    writer.join().unwrap();
    assert_eq!(copied.bytes, 300_000);
    assert!(fs::read(there).unwrap() == noise(300_000));
}

#[test]
fn files_that_the_kernel_makes_up_are_copied_and_written() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    for up in WAYS {
        let there = guest.path("there");
        copy(&mut agent, up, Path::new("/proc/sys/kernel/ostype"), &there).unwrap();
        assert_eq!(fs::read(&there).unwrap(), b"Linux\n");
        fs::remove_file(there).unwrap();
        if is_root() {
            // What stands there is written again: in a directory that takes no new file.
            let path = Path::new("/proc/sys/kernel/panic");
            fs::write(guest.path("value"), fs::read(path).unwrap()).unwrap();
            copy(&mut agent, up, &guest.path("value"), path).unwrap();
        }
    }
}

#[test]
fn the_longest_name_can_be_copied() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    for name in ["x".repeat(255), "ä".repeat(115)] {
        let source = guest.path("source");
        fs::write(&source, "x").unwrap();
        for up in WAYS {
            for resume in [true, false] {
                let options = CopyOptions { resume, ..CopyOptions::default() };
                copy_with(&mut agent, up, &source, &guest.path(&name), options).unwrap();
                fs::remove_file(guest.path(&name)).unwrap();
            }
        }
        assert_eq!(names(&guest), ["source"]);
    }
}

#[test]
fn a_new_file_has_the_mode_of_the_original_less_the_umask() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let source = guest.path("source");
    fs::write(&source, "x").unwrap();
    fs::set_permissions(&source, Permissions::from_mode(0o4777)).unwrap();
    let umask = fs::read_to_string("/proc/self/status").unwrap();
    let umask = umask.lines().find_map(|line| line.strip_prefix("Umask:\t")).unwrap();
    let umask = u32::from_str_radix(umask, 8).unwrap();
    for up in WAYS {
        let there: PathBuf = guest.path("there");
        copy(&mut agent, up, &source, &there).unwrap();
        assert_eq!(there.metadata().unwrap().mode() & 0o7777, 0o777 & !umask, "up: {up}");
        fs::remove_file(there).unwrap();
    }
}
