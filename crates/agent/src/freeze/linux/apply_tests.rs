use super::super::held::Held;
use super::{Freeze, Opened, freeze_by, thaw_by};
use crate::system::error::Error;
use crate::system::mounts::DeviceNumber;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than any test takes.
const EVER: Duration = Duration::from_secs(600);

fn opened(names: &[&str]) -> Vec<Opened> {
    let held = Arc::new(Held::new(File::open("/dev/null").unwrap()));
    let device = DeviceNumber { major: 8, minor: 1 };
    names.iter().map(|name| Opened { device, name: (*name).into(), held: Arc::clone(&held) }).collect()
}

fn names(opened: &[Opened]) -> Vec<&Path> {
    opened.iter().map(|opened| opened.name.as_path()).collect()
}

fn no_thaw(_: &Opened) -> io::Result<()> {
    panic!("nothing is to be thawed here")
}

#[test]
fn what_cannot_be_frozen_or_is_already_is_left_out() {
    let fates = |opened: &Opened| match opened.name.to_str().unwrap() {
        "/vfat" => Err(Errno::OPNOTSUPP.into()),
        "/busy" => Err(Errno::BUSY.into()),
        _ => Ok(()),
    };
    let Freeze { frozen, late, outcome: result } =
        freeze_by(&opened(&["/a", "/vfat", "/busy", "/b"]), &|| Ok(()), EVER, fates, no_thaw);
    result.unwrap();
    assert_eq!(names(&frozen), [Path::new("/a"), Path::new("/b")]);
    assert!(late.is_none());
}

#[test]
fn an_error_ends_the_freeze_and_names_the_file_system() {
    let fates = |opened: &Opened| if opened.name == Path::new("/bad") { Err(Errno::IO.into()) } else { Ok(()) };
    let Freeze { frozen, late, outcome: result } =
        freeze_by(&opened(&["/a", "/bad", "/never"]), &|| Ok(()), EVER, fates, no_thaw);
    assert_eq!(result.unwrap_err().desc, "failed to freeze /bad: Input/output error");
    assert_eq!(names(&frozen), [Path::new("/a")]);
    assert!(late.is_none());
}

#[test]
fn one_that_hangs_is_given_up_and_thawed_when_it_is_frozen_after_all() {
    let (release, hanging) = mpsc::channel::<()>();
    let hanging = Mutex::new(hanging);
    let (thawed, was_thawed) = mpsc::channel();
    let freeze_one = move |opened: &Opened| {
        if opened.name == Path::new("/hangs") {
            let _ = hanging.lock().unwrap().recv();
        }
        Ok(())
    };
    let thaw_one = move |opened: &Opened| {
        thawed.send(opened.name.clone()).unwrap();
        Ok(())
    };
    let all = opened(&["/a", "/hangs", "/never"]);
    let Freeze { frozen, late, outcome: result } =
        freeze_by(&all, &|| Ok(()), Duration::from_millis(50), freeze_one, thaw_one);
    let text = result.unwrap_err().desc;
    assert!(text.starts_with("failed to freeze /hangs: "), "{text}");
    assert_eq!(names(&frozen), [Path::new("/a")]);
    let (late, has_ended) = late.unwrap();
    assert_eq!(late.name, Path::new("/hangs"));
    release.send(()).unwrap();
    assert_eq!(was_thawed.recv_timeout(EVER).unwrap(), Path::new("/hangs"));
    // The thread is gone: nothing more is frozen.
    assert_eq!(has_ended.recv_timeout(EVER), Err(mpsc::RecvTimeoutError::Disconnected));
    assert!(was_thawed.recv_timeout(EVER).is_err());
}

#[test]
fn who_waits_can_be_called_off() {
    let (release, hanging) = mpsc::channel::<()>();
    let hanging = Mutex::new(hanging);
    let freeze_one = move |_: &Opened| {
        let _ = hanging.lock().unwrap().recv();
        Err(Errno::IO.into())
    };
    let watch = || Err(Error::new("called off"));
    let Freeze { frozen, late, outcome: result } = freeze_by(&opened(&["/a"]), &watch, EVER, freeze_one, no_thaw);
    assert_eq!(result.unwrap_err().desc, "called off");
    assert!(frozen.is_empty() && late.is_some());
    drop(release);
}

#[test]
fn the_last_frozen_is_thawed_first_and_one_that_hangs_costs_itself() {
    let (release, hanging) = mpsc::channel::<()>();
    let hanging = Arc::new(Mutex::new(hanging));
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let thaw_one = move |opened: &Opened| {
        seen.lock().unwrap().push(opened.name.clone());
        match opened.name.to_str().unwrap() {
            "/hangs" => {
                let _ = hanging.lock().unwrap().recv();
                Ok(())
            }
            "/lost" => Err(Errno::INVAL.into()),
            "/bad" => Err(Errno::IO.into()),
            _ => Ok(()),
        }
    };
    let thawed = thaw_by(opened(&["/a", "/lost", "/bad", "/hangs", "/b"]), Duration::from_millis(50), thaw_one);
    assert_eq!(thawed.count, 2);
    assert_eq!(names(&thawed.lost), [Path::new("/lost")]);
    let failed: Vec<_> = thawed.failed.iter().map(|(opened, _)| opened.name.as_path()).collect();
    assert_eq!(failed, [Path::new("/hangs"), Path::new("/bad")]);
    assert_eq!(*order.lock().unwrap(), ["/b", "/hangs", "/bad", "/lost", "/a"].map(std::path::PathBuf::from));
    drop(release);
}
