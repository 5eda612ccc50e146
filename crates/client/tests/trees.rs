//! Trees both ways, with a real agent and whatever tar its guest has.

mod stage;

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use qga_client::{AnyAgent, CopyOptions, Error, TreeReport};
use stage::{Guest, no_progress, noise};

fn copy(agent: &mut AnyAgent, up: bool, from: &Path, to: &Path, options: CopyOptions) -> Result<TreeReport, Error> {
    if up {
        agent.upload_tree(from, to.to_str().unwrap(), options, &mut no_progress)
    } else {
        agent.download_tree(from.to_str().unwrap(), to, options, &mut no_progress)
    }
}

fn mode(path: PathBuf) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_tree_goes_there_and_back() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let top = guest.path("tree");
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    fs::create_dir_all(top.join("a/empty")).unwrap();
    fs::create_dir(top.join("d".repeat(200))).unwrap();
    fs::write(top.join("a/file\nwith a line end"), noise(70_000)).unwrap();
    fs::write(top.join("a/read only"), b"r").unwrap();
    fs::write(top.join("a/-x \\n"), b"").unwrap();
    fs::write(top.join("a/large"), noise(3 << 20)).unwrap();
    fs::write(top.join(".hidden"), b"h").unwrap();
    fs::write(top.join(&long), b"l").unwrap();
    fs::hard_link(top.join(".hidden"), top.join("a/second name")).unwrap();
    fs::set_permissions(top.join("a/read only"), Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(top.join("a"), Permissions::from_mode(0o550)).unwrap();
    fs::set_permissions(&top, Permissions::from_mode(0o750)).unwrap();
    symlink("a/read only", top.join("link")).unwrap();
    symlink("/etc", top.join("outside")).unwrap();
    symlink(format!("./{}//x/../y", "l".repeat(200)), top.join("long link")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"not \xff text");
    fs::write(top.join(odd), b"x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();

    for (up, from, to) in [(true, "tree", "up"), (false, "up", "down"), (false, "tree", "again")] {
        for verify in [true, false] {
            let options = CopyOptions { verify, ..CopyOptions::default() };
            let report = copy(&mut agent, up, &guest.path(from), &guest.path(to), options).unwrap();
            assert_eq!((report.files, report.directories, report.links), (8, 4, 3), "{report:?}");
            assert_eq!(report.skipped.len(), usize::from(from == "tree"), "only the socket: {report:?}");
            let copy = guest.path(to);
            for name in
                ["a/file\nwith a line end", "a/read only", "a/-x \\n", "a/large", ".hidden", &long, "a/second name"]
            {
                assert!(fs::read(copy.join(name)).unwrap() == fs::read(top.join(name)).unwrap(), "{name}");
            }
            assert_eq!(fs::read(copy.join(odd)).unwrap(), b"x");
            assert_eq!(
                (mode(copy.join("a/read only")), mode(copy.join("a")), mode(copy.clone())),
                (0o400, 0o550, 0o750)
            );
            assert!(copy.join("a/empty").is_dir());
            for name in ["link", "outside", "long link"] {
                assert_eq!(fs::read_link(copy.join(name)).unwrap(), fs::read_link(top.join(name)).unwrap());
            }
            assert_eq!(
                fs::read_dir(&copy).unwrap().count() + usize::from(from == "tree"),
                fs::read_dir(guest.path(from)).unwrap().count()
            );
        }
    }
}

#[test]
fn what_was_there_keeps_what_it_has() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let from = guest.path("from");
    fs::create_dir_all(from.join("sub/new")).unwrap();
    for name in ["sub/file", "sub/named", "sub/new/file", "file"] {
        fs::write(from.join(name), "new").unwrap();
    }
    for directory in ["", "sub", "sub/new"] {
        fs::set_permissions(from.join(directory), Permissions::from_mode(0o777)).unwrap();
    }
    for up in [true, false] {
        let to = guest.path("to");
        fs::create_dir_all(to.join("sub")).unwrap();
        for name in ["sub/file", "sub/named", "sub/other", "file"] {
            fs::write(to.join(name), "old and longer").unwrap();
        }
        fs::hard_link(to.join("sub/named"), guest.path("second")).unwrap();
        fs::set_permissions(to.join("sub/file"), Permissions::from_mode(0o4710)).unwrap();
        fs::set_permissions(to.join("sub"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&to, Permissions::from_mode(0o1770)).unwrap();
        copy(&mut agent, up, &from, &to, CopyOptions::default()).unwrap();
        for name in ["sub/file", "sub/named", "sub/new/file", "file"] {
            assert_eq!(fs::read(to.join(name)).unwrap(), b"new", "up: {up}, {name}");
        }
        assert_eq!(fs::read(guest.path("second")).unwrap(), b"new", "up: {up}: its other name has the old content");
        assert_eq!(fs::read(to.join("sub/other")).unwrap(), b"old and longer");
        let modes = [mode(to.clone()), mode(to.join("sub")), mode(to.join("sub/file"))];
        assert_eq!(modes, [0o1770, 0o700, 0o4710], "up: {up}");
        fs::remove_dir_all(to).unwrap();
        fs::remove_file(guest.path("second")).unwrap();
    }
}

#[test]
fn a_copy_that_goes_on_leaves_out_what_is_there_already() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let from = guest.path("from");
    fs::create_dir_all(from.join("d")).unwrap();
    for name in ["d/same", "d/other", "same large"] {
        fs::write(from.join(name), noise(if name.contains("large") { 2 << 20 } else { 5000 })).unwrap();
    }
    let options = CopyOptions { resume: true, ..CopyOptions::default() };
    for up in [true, false] {
        let to = guest.path("to");
        copy(&mut agent, up, &from, &to, options).unwrap();
        fs::write(to.join("d/other"), vec![7; 5000]).unwrap();
        let stamp =
            |name: &str| to.join(name).metadata().map(|file| (file.ino(), file.ctime(), file.ctime_nsec())).unwrap();
        let before = ["d/same", "same large"].map(stamp);
        let report = copy(&mut agent, up, &from, &to, options).unwrap();
        assert_eq!(report.files, 3);
        assert_eq!(["d/same", "same large"].map(stamp), before, "up: {up}");
        assert!(fs::read(to.join("d/other")).unwrap() == noise(5000));
        fs::remove_dir_all(to).unwrap();
    }
}

#[test]
fn a_tree_of_many_small_files_takes_a_few_requests() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let from = guest.path("from");
    for place in 0..2000 {
        let directory = from.join(format!("{}", place % 7));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{place}")), noise(place)).unwrap();
    }
    for (up, from, to) in [(true, "from", "up"), (false, "up", "down")] {
        let mut pieces = 0;
        let mut count = |_: qga_client::Progress<'_>| {
            pieces += 1;
            std::ops::ControlFlow::Continue(())
        };
        let (from, to) = (guest.path(from), guest.path(to));
        let report = if up {
            agent.upload_tree(&from, to.to_str().unwrap(), CopyOptions::default(), &mut count)
        } else {
            agent.download_tree(from.to_str().unwrap(), &to, CopyOptions::default(), &mut count)
        };
        assert_eq!(report.unwrap().files, 2000);
        // Each piece of a transfer is told; one file after the other would be 2,000 of them.
        assert!(pieces < 1000, "{pieces} pieces, up: {up}");
        assert!((0..2000).all(|place| fs::read(to.join(format!("{}/{place}", place % 7))).unwrap() == noise(place)));
    }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let (from, to, outside) = (guest.path("from"), guest.path("to"), guest.path("outside"));
    for directory in [&from, &to, &outside] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(from.join("x"), "new").unwrap();
    fs::create_dir(from.join("d")).unwrap();
    fs::write(from.join("d/y"), "new").unwrap();
    // A guest's tree does not go through links of the host.
    symlink(&outside, to.join("d")).unwrap();
    symlink(outside.join("x"), to.join("x")).unwrap();
    let report = copy(&mut agent, false, &from, &to, CopyOptions::default()).unwrap();
    assert_eq!((report.files, report.skipped.len()), (1, 2), "{report:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!to.join("x").is_symlink() && to.join("d").is_symlink());
    fs::remove_dir_all(&to).unwrap();
    // In the guest a directory does not give way to a file.
    fs::create_dir_all(to.join("x")).unwrap();
    let error = copy(&mut agent, true, &from, &to, CopyOptions::default()).unwrap_err();
    assert!(error.to_string().contains("x is there and is no file"), "{error}");
    assert!(to.join("d/y").exists() && to.join("x").is_dir());
    assert_eq!(fs::read_dir(&to).unwrap().count(), 2, "something is left");
}

#[test]
fn a_file_with_less_in_it_than_its_size_says_is_left_out_and_named() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    // These say that they have 4096 bytes, and tar fills up what is missing.
    let from = Path::new("/sys/class/net/lo/statistics");
    let count = fs::read_dir(from).unwrap().count();
    assert!(count > 0);
    let report = copy(&mut agent, false, from, &guest.path("to"), CopyOptions::default()).unwrap();
    assert_eq!((report.files, report.skipped.len()), (0, count), "{report:?}");
    assert_eq!(fs::read_dir(guest.path("to")).unwrap().count(), 0);
    // Among these are some that cannot be read at all.
    let report = copy(&mut agent, false, Path::new("/sys/class/net/lo"), &guest.path("all"), CopyOptions::default());
    let report = report.unwrap();
    assert!(report.skipped.iter().any(|(_, why)| why.contains("guest-file-read failed")), "{report:?}");
}

#[test]
fn a_file_of_the_host_that_cannot_be_read_is_left_out_and_named() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let report = copy(&mut agent, true, Path::new("/sys/class/net/lo"), &guest.path("to"), CopyOptions::default());
    let report = report.unwrap();
    let is_named = |(path, why): &(PathBuf, String)| path.ends_with("speed") && why.contains("Invalid argument");
    assert!(report.skipped.iter().any(is_named), "{report:?}");
    assert!(guest.path("to/statistics").is_dir());
}

#[test]
fn a_file_that_grows_ends_no_tree() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let from = guest.path("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("calm"), noise(5000)).unwrap();
    fs::write(from.join("calm large"), noise(3 << 20)).unwrap();
    fs::write(from.join("large"), noise(3 << 20)).unwrap();
    let log = from.join("large");
    // Each piece of the transfer sees the file grow.
    let mut grow = |_: qga_client::Progress<'_>| {
        use std::io::Write;
        fs::File::options().append(true).open(&log).unwrap().write_all(b"line\n").unwrap();
        std::ops::ControlFlow::Continue(())
    };
    let to = guest.path("to");
    let report = agent.download_tree(from.to_str().unwrap(), &to, CopyOptions::default(), &mut grow).unwrap();
    assert_eq!((report.files, report.skipped.len()), (2, 1), "{report:?}");
    assert!(report.skipped[0].0.ends_with("large"), "{report:?}");
    assert!(fs::read(to.join("calm")).unwrap() == noise(5000));
    assert!(fs::read(to.join("calm large")).unwrap() == noise(3 << 20));
    assert_eq!(fs::read_dir(&to).unwrap().count(), 2);
}

#[test]
fn a_file_of_the_host_that_grows_or_goes_ends_no_tree() {
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let from = guest.path("from");
    fs::create_dir(&from).unwrap();
    // More than one archive takes, so that the last ones are read after the first has been sent.
    for place in 0..10 {
        fs::write(from.join(format!("{place}")), noise(1 << 20)).unwrap();
    }
    for name in ["z grows", "z goes"] {
        fs::write(from.join(name), b"line\n").unwrap();
    }
    fs::write(from.join("large"), noise(3 << 20)).unwrap();
    let mut change = |_: qga_client::Progress<'_>| {
        use std::io::Write;
        for name in ["z grows", "large"] {
            fs::File::options().append(true).open(from.join(name)).unwrap().write_all(b"line\n").unwrap();
        }
        let _ = fs::remove_file(from.join("z goes"));
        std::ops::ControlFlow::Continue(())
    };
    let to = guest.path("to");
    let report = agent.upload_tree(&from, to.to_str().unwrap(), CopyOptions::default(), &mut change).unwrap();
    assert_eq!((report.files, report.skipped.len()), (11, 2), "{report:?}");
    assert!(fs::read(to.join("z grows")).unwrap().len() > 5);
    assert!((0..10).all(|place| fs::read(to.join(format!("{place}"))).unwrap() == noise(1 << 20)));
    assert_eq!(fs::read_dir(&to).unwrap().count(), 11, "something is left");
}

#[test]
fn holes_in_trees_neither_travel_nor_take_room() {
    use std::os::unix::fs::FileExt;
    const SIZE: u64 = 200 << 20;
    let Some(guest) = Guest::start() else { return };
    let mut agent = guest.connect();
    let from = guest.path("from");
    fs::create_dir_all(from.join("d")).unwrap();
    for (name, size) in [("sparse", SIZE), ("d/empty", SIZE), ("d/smaller", 500_000)] {
        fs::File::create(from.join(name)).unwrap().set_len(size).unwrap();
    }
    let file = fs::File::options().write(true).open(from.join("sparse")).unwrap();
    // More pieces than the first header of an archive tells of.
    for place in 0..40 {
        file.write_all_at(&noise(5000), place * 3_000_017).unwrap();
    }
    fs::write(from.join("dense"), noise(2 << 20)).unwrap();
    for up in [true, false] {
        for verify in [false, true] {
            let to = guest.path("to");
            let (mut pieces, mut last) = (0, 0);
            let mut count = |progress: qga_client::Progress<'_>| {
                // While something in the guest is waited for, the same is told again.
                pieces += usize::from(progress.copied_bytes != last);
                last = progress.copied_bytes;
                std::ops::ControlFlow::Continue(())
            };
            let options = CopyOptions { verify, ..CopyOptions::default() };
            let report = if up {
                agent.upload_tree(&from, to.to_str().unwrap(), options, &mut count)
            } else {
                agent.download_tree(from.to_str().unwrap(), &to, options, &mut count)
            };
            let report = report.unwrap();
            assert_eq!((report.files, report.skipped.len()), (4, 0), "{report:?}");
            for name in ["sparse", "d/empty", "d/smaller", "dense"] {
                assert!(fs::read(to.join(name)).unwrap() == fs::read(from.join(name)).unwrap(), "up: {up}, {name}");
            }
            let room = |name| to.join(name).metadata().unwrap().blocks() * 512;
            assert!(room("sparse") < 1 << 20 && room("d/empty") < 1 << 16 && room("d/smaller") < 1 << 16);
            // All of it would be 400 pieces of 1 MiB and more. With checksums the host reads what it sends.
            assert!(pieces < 200 || (up && verify), "{pieces} pieces, up: {up}, verify: {verify}");
            fs::remove_dir_all(to).unwrap();
        }
    }
}
