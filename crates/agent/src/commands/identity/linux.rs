//! The operating system from uname(2) and os-release(5), the host name, and who is logged in.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;

use qga_protocol::identity::{OsInfo, User};

use super::assignments;
use super::logins::{self, Login};
use crate::system::error::Error;
use crate::system::root::Root;

/// What the system says it is: the first that can be read counts.
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];
/// Where the kernel tells the same as uname(2).
const KERNEL: &str = "/proc/sys/kernel";

/// What operating system runs here. `os_release` is read instead of the system's own file.
pub fn system(root: &Root, os_release: Option<&OsStr>) -> OsInfo {
    let (release, version, machine) = kernel(root);
    let text = match os_release {
        Some(path) => root.read_text(Path::new(path)).unwrap_or_default(),
        None => OS_RELEASE.iter().find_map(|path| root.read_text(path).ok()).unwrap_or_default(),
    };
    let mut values: HashMap<&str, String> = assignments::parse(&text).collect();
    OsInfo {
        kernel_release: release,
        kernel_version: version,
        machine,
        id: values.remove("ID"),
        name: values.remove("NAME"),
        pretty_name: values.remove("PRETTY_NAME"),
        version: values.remove("VERSION"),
        version_id: values.remove("VERSION_ID"),
        variant: values.remove("VARIANT"),
        variant_id: values.remove("VARIANT_ID"),
    }
}

/// The kernel's release, version and hardware.
fn kernel(root: &Root) -> (Option<String>, Option<String>, Option<String>) {
    if root.is_host() {
        let names = rustix::system::uname();
        let text = |name: &std::ffi::CStr| Some(name.to_string_lossy().into_owned());
        return (text(names.release()), text(names.version()), text(names.machine()));
    }
    let recorded = |name: &str| root.read_text(Path::new(KERNEL).join(name)).ok();
    (recorded("osrelease"), recorded("version"), recorded("arch"))
}

/// The host name as the kernel has it, all 64 bytes.
pub fn host_name(root: &Root) -> Result<String, Error> {
    if root.is_host() {
        return Ok(rustix::system::uname().nodename().to_string_lossy().into_owned());
    }
    root.read_text(Path::new(KERNEL).join("hostname")).map_err(|cause| Error::io("cannot get hostname", &cause))
}

/// Who is logged in, each once, since the oldest of the user's sessions.
///
/// The records of utmp come first; logind knows of those that it lacks: on systems without utmp everybody, elsewhere
/// those who came without a terminal or to a graphical desktop.
pub fn users(root: &Root) -> Result<Vec<User>, Error> {
    let is_alive = processes(root);
    let mut logins = Vec::new();
    for path in logins::UTMP {
        match root.read(path) {
            Ok(records) => {
                logins = logins::of_utmp(&records, logins::RECORD);
                break;
            }
            Err(cause) if cause.kind() == ErrorKind::NotFound => {}
            Err(cause) => return Err(Error::io(format!("cannot read the logins in {path}"), &cause)),
        }
    }
    logins.retain(|login| is_alive(login.process));
    let mut users = merged(logins);
    let known: HashSet<&str> = users.iter().map(|user| user.user.as_str()).collect();
    let mut sessions: Vec<Login> = logins::session_names(root)
        .iter()
        .filter_map(|name| root.read_text(Path::new(logins::SESSIONS).join(name)).ok())
        .filter_map(|text| logins::of_session(&text))
        .filter(|login| is_alive(login.process) && !known.contains(login.user.as_str()))
        .collect();
    sessions.sort_by(|one, other| one.time_seconds.total_cmp(&other.time_seconds));
    users.extend(merged(sessions));
    Ok(users)
}

/// Each user once, where the first login stands, since the earliest.
fn merged(logins: Vec<Login>) -> Vec<User> {
    let mut places = HashMap::new();
    let mut users: Vec<User> = Vec::new();
    for Login { user, time_seconds, .. } in logins {
        let place = *places.entry(user.clone()).or_insert(users.len());
        match users.get_mut(place) {
            Some(known) => known.login_time = known.login_time.min(time_seconds),
            None => users.push(User { user, login_time: time_seconds, domain: None }),
        }
    }
    users
}

/// Tells whether a process is there. Where that cannot be seen, every one is.
fn processes(root: &Root) -> impl Fn(i32) -> bool {
    let can_be_seen = root.exists("/proc/1");
    move |process| !can_be_seen || process <= 0 || root.exists(format!("/proc/{process}"))
}
