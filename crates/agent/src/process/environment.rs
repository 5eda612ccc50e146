//! The environment of programs that get the agent's own: what clients start without one of theirs, and hooks.
//!
//! A service manager gives a service no HOME, and scripts take that for `/` or fail. So what a login would set is set
//! here, for the user that the agent is; what the agent's own environment has stays as it is.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use crate::system::root::Root;

/// The variables of socket activation: they speak of this process, so children must not inherit them.
pub const ACTIVATION_VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// What a login sets, in the order of [`Login`].
const LOGIN_VARIABLES: [&str; 4] = ["HOME", "USER", "LOGNAME", "SHELL"];
/// The shell of a user whose line names none, as passwd(5) has it.
const SHELL: &[u8] = b"/bin/sh";
/// Most bytes of the list of users: some hundred thousand of them.
pub const USERS_BYTES_MAX: u64 = 64 << 20;

/// Home, name, name again and shell.
type Login = [OsString; 4];

/// All entries, `NAME=VALUE`.
pub fn of_programs() -> Vec<OsString> {
    // Read once: the agent's user does not change while it runs.
    static LOGIN: OnceLock<Option<Login>> = OnceLock::new();
    with_login(std::env::vars_os().collect(), || {
        if let Some(known) = LOGIN.get() {
            return known.clone();
        }
        let (login, is_known) = login_at(&Root::host(), rustix::process::geteuid().as_raw());
        // The next program may find what this one does not.
        if is_known { LOGIN.get_or_init(|| login).clone() } else { login }
    })
}

/// What a login of a user sets, and whether the list of users could be read.
fn login_at(root: &Root, user: u32) -> (Option<Login>, bool) {
    let mut found = None;
    let read = root.each_line("/etc/passwd", USERS_BYTES_MAX, |line| {
        if found.is_none() {
            found = login_of_line(line, user);
        }
    });
    let is_known =
        found.is_some() || read.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true);
    (found.or_else(|| (user == 0).then(|| login_of(b"root", b"/root", SHELL))), is_known)
}

/// The variables without what speaks of the agent's own process, and with what a login sets where that is missing.
fn with_login(mut variables: Vec<(OsString, OsString)>, login: impl FnOnce() -> Option<Login>) -> Vec<OsString> {
    variables.retain(|(name, _)| !ACTIVATION_VARIABLES.iter().any(|known| name == known));
    let is_missing = |name: &str| !variables.iter().any(|(known, _)| known == name);
    let missing = LOGIN_VARIABLES.map(is_missing);
    if missing.contains(&true)
        && let Some(login) = login()
    {
        let all = LOGIN_VARIABLES.iter().zip(login).zip(missing);
        variables.extend(all.filter(|(_, missing)| *missing).map(|((name, value), _)| (OsString::from(name), value)));
    }
    let entries = variables.into_iter().map(|(mut entry, value)| {
        entry.push("=");
        entry.push(value);
        entry
    });
    entries.collect()
}

/// What a login sets by this line of the list, if it is a whole one for the user.
fn login_of_line(line: &[u8], user: u32) -> Option<Login> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
    let [name, _, number, _, _, home, shell] = fields[..] else { return None };
    let number: Option<u32> = str::from_utf8(number).ok()?.parse().ok();
    let is_fit = number == Some(user) && home.starts_with(b"/") && !name.is_empty() && !line.contains(&0);
    is_fit.then(|| login_of(name, home, shell))
}

fn login_of(name: &[u8], home: &[u8], shell: &[u8]) -> Login {
    let shell = if shell.is_empty() { SHELL } else { shell };
    [home, name, name, shell].map(|text| OsStr::from_bytes(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Login, login_at, with_login};
    use crate::system::root::Root;
    use std::ffi::OsString;
    use std::fs;

    const PASSWD: &[u8] = b"toor:x:x:0::/root:/bin/csh\nroot:x:0:0:root:/root:/bin/bash\nother:x:0:0::/other:/bin/sh\n\
        odd:x:7:7::relative:/bin/sh\nzero:x:8:8::/h\0:/bin/sh\nbare:x:9:9::/bare:\n";

    /// By this list of users; without one there is none.
    fn login(passwd: Option<&[u8]>, user: u32) -> (Option<Login>, bool) {
        let machine = tempfile::tempdir().unwrap();
        if let Some(passwd) = passwd {
            fs::create_dir(machine.path().join("etc")).unwrap();
            fs::write(machine.path().join("etc/passwd"), passwd).unwrap();
        }
        login_at(&Root::at(machine.path()), user)
    }

    fn found(user: u32) -> Option<Vec<String>> {
        Some(login(Some(PASSWD), user).0?.into_iter().map(|text| text.into_string().unwrap()).collect())
    }

    #[test]
    fn a_login_is_the_first_whole_line_of_the_user() {
        assert_eq!(found(0).unwrap(), ["/root", "root", "root", "/bin/bash"]);
        assert_eq!(found(9).unwrap(), ["/bare", "bare", "bare", "/bin/sh"]);
        for user in [7, 8, 10] {
            assert_eq!(found(user), None, "{user}");
        }
        let (without, is_known) = login(None, 0);
        assert_eq!((without.unwrap(), is_known), (["/root", "root", "root", "/bin/sh"].map(OsString::from), true));
    }

    #[test]
    fn the_user_at_the_end_of_a_long_list_has_a_home() {
        let mut long = b"someone:x:70000:70000:a user like many others:/home/someone:/bin/sh\n".repeat(120_000);
        long.extend(PASSWD);
        let (login, is_known) = login(Some(&long), 9);
        assert_eq!((login.unwrap()[0].to_str(), is_known), (Some("/bare"), true));
    }

    #[test]
    fn only_what_is_missing_is_set() {
        let environment = |entries: &[(&str, &str)]| {
            let variables = entries.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
            with_login(variables, || login(Some(PASSWD), 0).0)
        };
        assert_eq!(
            environment(&[("LISTEN_FDS", "1"), ("HOME", ""), ("A", "b")]),
            ["HOME=", "A=b", "USER=root", "LOGNAME=root", "SHELL=/bin/bash"]
        );
        let whole = [("HOME", "/h"), ("USER", "u"), ("LOGNAME", "l"), ("SHELL", "/s")];
        assert_eq!(environment(&whole), ["HOME=/h", "USER=u", "LOGNAME=l", "SHELL=/s"]);
        assert_eq!(with_login(Vec::new(), || None), [""; 0]);
    }
}
