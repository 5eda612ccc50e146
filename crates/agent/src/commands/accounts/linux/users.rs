//! Who a user is: passwd(5), and for accounts that come from elsewhere (LDAP, systemd-homed) getent(1).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::process::child::Exit;
use crate::process::environment::USERS_BYTES_MAX;
use crate::process::system_tool::Tool;
use crate::system::error::{Error, cause_text};
use crate::system::root::Root;

/// How long a directory service may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user.
    pub uid: u32,
    /// The user's own group.
    pub gid: u32,
    /// Where the user's files are.
    pub home: PathBuf,
}

/// Looks for a user by name.
pub fn find(root: &Root, name: &str) -> Result<Account, Error> {
    let failed = |cause: &str| Error::new(format!("failed to lookup user '{name}': {cause}"));
    let unknown = || failed("there is no such user");
    // No name: it would mean another field, another line, or an option.
    let is_name = !name.is_empty() && !name.starts_with(['-', '+']) && !name.contains(':');
    if !is_name || name.chars().any(char::is_control) {
        return Err(unknown());
    }
    let account = match of_file(root, name).map_err(|cause| failed(&cause))? {
        Some(account) => account,
        None => of_services(root, name).map_err(|cause| failed(&cause))?.ok_or_else(unknown)?,
    };
    if account.home.is_absolute() { Ok(account) } else { Err(failed("the user has no home directory")) }
}

/// Looks into the list of users. One that is not there has no users; one that cannot be read is an error, for a service
/// may know another user by the name, and "no such user" would not be true.
fn of_file(root: &Root, name: &str) -> Result<Option<Account>, String> {
    const USERS: &str = "/etc/passwd";
    let mut found = None;
    let read = root.each_line(USERS, USERS_BYTES_MAX, |line| {
        if found.is_none() {
            found = entry(line, Some(name));
        }
    });
    match read {
        Ok(()) => Ok(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read the list of users '{USERS}': {}", cause_text(&error))),
    }
}

/// Asks whatever the system is set up to ask.
fn of_services(root: &Root, name: &str) -> Result<Option<Account>, String> {
    if !is_like_a_number(name) {
        // A directory may know the user by another spelling of the name.
        let line = answer(root, "getent", &["passwd", name])?;
        return Ok(line.and_then(|line| entry(line.as_bytes(), None)));
    }
    // getent(1) takes such a name for a user id. id(1) looks for a name first; what it found is believed only if that
    // user id has this name.
    let Some(uid) = answer(root, "id", &["-u", name])? else { return Ok(None) };
    if !uid.bytes().all(|digit| digit.is_ascii_digit()) {
        return Ok(None);
    }
    let line = answer(root, "getent", &["passwd", &uid])?;
    Ok(line.and_then(|line| entry(line.as_bytes(), Some(name))))
}

/// Whether a program of the system may take it for a number: strtoul(3) skips blanks before one.
fn is_like_a_number(name: &str) -> bool {
    let digits = name.trim_start();
    !digits.is_empty() && digits.chars().all(|sign| sign.is_ascii_digit())
}

/// What a program prints if it ends with success; nothing if it is not there.
fn answer(root: &Root, program: &str, arguments: &[&str]) -> Result<Option<String>, String> {
    let Some(tool) = Tool::find_alone(root, program) else { return Ok(None) };
    let ended = tool.run(arguments, b"", PATIENCE).map_err(|cause| format!("cannot run {program}: {cause}"))?;
    match ended.exit {
        Some(Exit::Code(0)) => Ok(Some(ended.output)),
        Some(_) => Ok(None),
        None => Err(format!("{program} did not end in {} s", PATIENCE.as_secs())),
    }
}

/// The first well-formed line for a name, or for any.
pub fn entry(passwd: &[u8], name: Option<&str>) -> Option<Account> {
    passwd.split(|&byte| byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        let [found, _, uid, gid, _, home, _] = fields[..] else { return None };
        let number = |field: &[u8]| str::from_utf8(field).ok()?.parse().ok().filter(|&number: &u32| number < u32::MAX);
        let account = Account { uid: number(uid)?, gid: number(gid)?, home: PathBuf::from(OsStr::from_bytes(home)) };
        name.is_none_or(|name| name.as_bytes() == found).then_some(account)
    })
}

#[cfg(test)]
mod tests {
    use super::{Account, entry, find};
    use crate::process::system_tool::tests::write_script;
    use crate::system::root::Root;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\xff\xfe\nann:x:1000:100:\xe9:/home/ann\xff:/bin/sh\n\
        short:x:1:2\nhuge:x:4294967295:1::/h:/b\nbad:x:-1:1::/h:/b\nbare:x:5:5:::\nann:x:7:7::/other:/bin/sh";

    #[test]
    fn the_first_whole_line_counts_whatever_is_around_it() {
        let ann = entry(PASSWD, Some("ann")).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.home.as_os_str().as_bytes()), (1000, 100, b"/home/ann\xff".as_slice()));
        for name in ["short", "huge", "bad", "an", ""] {
            assert_eq!(entry(PASSWD, Some(name)), None, "{name}");
        }
    }

    #[test]
    fn getent_is_asked_for_those_who_are_not_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let error = |name: &str| find(&root, name).unwrap_err().desc;
        assert_eq!(error("ann"), "failed to lookup user 'ann': there is no such user");
        fs::create_dir(root.path("/etc")).unwrap();
        fs::write(root.path("/etc/passwd"), PASSWD).unwrap();
        let script = "case $2 in far) echo 'far:*:5000:6000:Far:/net/far:/bin/sh';; *) exit 2;; esac";
        write_script(&root, "/bin/getent", script);
        assert_eq!(find(&root, "far").unwrap(), Account { uid: 5000, gid: 6000, home: "/net/far".into() });
        assert_eq!(find(&root, "ann").unwrap().uid, 1000);
        assert_eq!(error("bare"), "failed to lookup user 'bare': the user has no home directory");
        for name in ["nobody-there", "", "-h", "+0", "a:b", "a\nb", "../x"] {
            assert_eq!(error(name), format!("failed to lookup user '{name}': there is no such user"));
        }
    }

    #[test]
    fn a_user_at_the_end_of_a_long_list_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir(root.path("/etc")).unwrap();
        let others = (0..120_000).map(|n| format!("user{n}:x:{}:100::/home/user{n}:/bin/sh\n", 10_000 + n));
        let passwd = others.collect::<String>() + "last:x:9999:100::/home/last:/bin/sh";
        assert!(passwd.len() > 4 << 20, "no longer than any other file of the system may be");
        fs::write(root.path("/etc/passwd"), passwd).unwrap();
        assert_eq!(find(&root, "last").unwrap(), Account { uid: 9999, gid: 100, home: "/home/last".into() });
        assert_eq!(find(&root, "user0").unwrap().uid, 10_000);
    }

    #[test]
    fn a_list_of_users_that_cannot_be_read_is_not_one_without_the_user() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.path("/etc/passwd")).unwrap();
        write_script(&root, "/bin/getent", "echo ann:x:7:7::/other:/bin/sh");
        let expected = "failed to lookup user 'ann': cannot read the list of users '/etc/passwd': Is a directory";
        assert_eq!(find(&root, "ann").unwrap_err().desc, expected);
    }

    #[test]
    fn a_name_of_digits_is_a_name_and_never_a_user_id() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir(root.path("/etc")).unwrap();
        fs::write(root.path("/etc/passwd"), "20231234:x:5002:5002::/home/20231234:/bin/sh\n").unwrap();
        assert_eq!(find(&root, "20231234").unwrap().uid, 5002);
        // As those programs do: one takes digits for a user id, the other only if no user has that name.
        let getent = "case \"$2\" in 0|' 0') echo root:x:0:0::/root:/bin/sh;; 6000) echo 77:x:6000:6000::/far:/bin/sh;;
            *) exit 2;; esac";
        write_script(&root, "/bin/getent", getent);
        write_script(&root, "/bin/id", "case \"$2\" in 77) echo 6000;; 0|' 0') echo 0;; *) exit 1;; esac");
        assert_eq!(find(&root, "77").unwrap(), Account { uid: 6000, gid: 6000, home: "/far".into() });
        for name in ["0", " 0", "78", "6000", " 77"] {
            let error = find(&root, name).unwrap_err().desc;
            assert_eq!(error, format!("failed to lookup user '{name}': there is no such user"));
        }
    }
}
