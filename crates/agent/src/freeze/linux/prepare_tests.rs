use super::{HELPERS_MAX, Helpers, Step, open_by};
use crate::system::error::Error;
use crate::system::mounts::{DeviceNumber, Mount};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

const NOWHERE: &str = "/nowhere/at/all";

fn device_of(path: &Path) -> DeviceNumber {
    let number = path.metadata().unwrap().dev();
    DeviceNumber { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }
}

fn step(device: DeviceNumber, path: &str) -> Step {
    Step { device, kind: "ext4".to_owned(), mounts: vec![(7, path.into())] }
}

fn mount(device: DeviceNumber, path: &str) -> Mount {
    Mount {
        id: 7,
        parent_id: 1,
        device,
        root: "/".into(),
        mountpoint: path.into(),
        is_read_only: false,
        kind: "ext4".to_owned(),
        source: "/dev/vda".into(),
    }
}

#[test]
fn what_was_unmounted_since_it_was_chosen_is_gone_and_ends_nothing() {
    let (here, other) = (device_of(Path::new("/")), DeviceNumber { major: 7, minor: 99 });
    let found = open_by(vec![step(other, NOWHERE), step(here, "/")], &|| Ok(()), || Ok(Vec::new())).unwrap();
    assert_eq!(found.gone, [Path::new(NOWHERE)]);
    assert_eq!(found.opened.len(), 1);
    assert_eq!(found.opened[0].name, Path::new("/"));
    // Hidden at first sight: another file system is there. It is gone all the same.
    let found = open_by(vec![step(other, "/")], &|| Ok(()), || Ok(Vec::new())).unwrap();
    assert_eq!((found.gone.len(), found.hidden.len()), (1, 0));
}

#[test]
fn what_was_moved_since_it_was_chosen_is_held_where_it_is_now() {
    let moved = || Ok(vec![mount(device_of(Path::new("/")), "/")]);
    let found = open_by(vec![step(device_of(Path::new("/")), NOWHERE)], &|| Ok(()), moved).unwrap();
    assert_eq!(found.opened[0].name, Path::new("/"));
}

#[test]
fn what_is_mounted_and_cannot_be_opened_is_an_error() {
    let other = DeviceNumber { major: 7, minor: 99 };
    let still = || Ok(vec![mount(DeviceNumber { major: 7, minor: 99 }, NOWHERE)]);
    let error = open_by(vec![step(other, NOWHERE)], &|| Ok(()), still).unwrap_err();
    assert_eq!(error.desc, "failed to open /nowhere/at/all: No such file or directory");
    let unread = || Err(Error::new("the list cannot be read"));
    assert_eq!(open_by(vec![step(other, NOWHERE)], &|| Ok(()), unread).unwrap_err().desc, "the list cannot be read");
    let hidden = || Ok(vec![mount(DeviceNumber { major: 7, minor: 99 }, "/")]);
    assert_eq!(open_by(vec![step(other, "/")], &|| Ok(()), hidden).unwrap().hidden, [Path::new("/")]);
}

#[test]
fn threads_that_wait_for_disks_are_bounded_however_many_freezes_are_begun() {
    static FEW: Helpers = Helpers { count: AtomicUsize::new(0) };
    let (release, hanging) = mpsc::channel::<()>();
    let hanging = Arc::new(Mutex::new(hanging));
    let mut refused = None;
    for _ in 0..=HELPERS_MAX {
        let hanging = Arc::clone(&hanging);
        refused = FEW.start(move || drop(hanging.lock().map(|hanging| hanging.recv()))).err();
    }
    assert!(refused.unwrap().desc.starts_with("64 threads of earlier freezes still wait"));
    drop(release);
    while FEW.count.load(Ordering::Relaxed) > 0 {
        std::thread::yield_now();
    }
    FEW.start(|| ()).unwrap();
}
