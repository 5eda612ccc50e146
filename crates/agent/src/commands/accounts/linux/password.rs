//! Sets passwords by chpasswd(8), which knows where they are kept and what the system demands of them.

use std::time::Duration;

use crate::commands::accounts::hash;
use crate::process::child::Exit;
use crate::process::system_tool::{Ended, Tool};
use crate::system::error::Error;
use crate::system::root::Root;

/// How long it may take: it waits up to 15 seconds for its turn with the password file.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sets a user's password; `crypted` if it is hashed already.
pub fn set(root: &Root, user: &str, password: &[u8], crypted: bool) -> Result<(), Error> {
    let line = line(user, password, crypted)?;
    let Some(chpasswd) = Tool::find(root, "chpasswd") else {
        return Err(failed("failed to exec 'chpasswd': No such file or directory"));
    };
    let arguments: &[&str] = if crypted { &["-e"] } else { &[] };
    let ended = chpasswd
        .run(arguments, &line, PATIENCE)
        .map_err(|cause| failed(&format!("failed to exec chpasswd: {cause}")))?;
    outcome(&ended)
}

/// What chpasswd reads. Anything that it would take for another line, another field or an end is refused.
fn line(user: &str, password: &[u8], crypted: bool) -> Result<Vec<u8>, Error> {
    if password.iter().any(|byte| matches!(byte, b'\n' | 0)) {
        return Err(Error::new("forbidden characters in raw password"));
    }
    // A hash becomes a field of a file with colons between the fields.
    if crypted && password.contains(&b':') {
        return Err(Error::new("forbidden characters in crypted password"));
    }
    if user.contains(['\n', ':', '\0']) {
        return Err(Error::new("forbidden characters in username"));
    }
    if crypted {
        hash::check(password)?;
    }
    Ok([user.as_bytes(), b":", password, b"\n"].concat())
}

fn failed(cause: &str) -> Error {
    Error::new(format!("child process has failed to set user password: {cause}"))
}

fn outcome(ended: &Ended) -> Result<(), Error> {
    match ended {
        Ended { exit: Some(Exit::Code(0)), .. } => Ok(()),
        Ended { exit: Some(Exit::Code(code)), output } if output.is_empty() => {
            Err(failed(&format!("exit status {code}")))
        }
        Ended { exit: Some(Exit::Code(_)), output } => Err(failed(output)),
        Ended { exit: Some(Exit::Signal(_)), output } if output.is_empty() => {
            Err(Error::new("child process has terminated abnormally"))
        }
        Ended { exit: Some(Exit::Signal(_)), output } => {
            Err(Error::new(format!("child process has terminated abnormally: {output}")))
        }
        Ended { exit: None, .. } => {
            Err(failed(&format!("chpasswd did not end in {} s and was killed", PATIENCE.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{line, outcome, set};
    use crate::process::child::Exit;
    use crate::process::system_tool::Ended;
    use crate::process::system_tool::tests::write_script;
    use crate::system::root::Root;
    use std::fs;

    #[test]
    fn nothing_that_chpasswd_takes_for_something_else_is_sent() {
        let error = |user, password: &[u8], crypted| line(user, password, crypted).unwrap_err().desc;
        assert_eq!(error("ann", b"a\nroot:x", false), "forbidden characters in raw password");
        assert_eq!(error("ann", b"a\0b", false), "forbidden characters in raw password");
        assert_eq!(error("ann", b"$6$x:0:0:", true), "forbidden characters in crypted password");
        for user in ["ann\nroot", "ann:x", "ann\0"] {
            assert_eq!(error(user, b"x", false), "forbidden characters in username");
        }
        assert!(error("ann", b"", true).contains("it is empty"));
        assert!(error("ann", b"secret", true).contains("it is no hash"));
        assert_eq!(line("ann", b"!", true).unwrap(), b"ann:!\n");
        assert_eq!(line("ann", b"a:b \xff", false).unwrap(), b"ann:a:b \xff\n");
    }

    #[test]
    fn an_end_is_told_as_what_it_was() {
        let told = |exit, output: &str| outcome(&Ended { exit, output: output.to_owned() }).map_err(|error| error.desc);
        let failed = |cause: &str| Err(format!("child process has failed to set user password: {cause}"));
        assert_eq!(told(Some(Exit::Code(0)), "noise"), Ok(()));
        assert_eq!(told(Some(Exit::Code(1)), "line 1: no"), failed("line 1: no"));
        assert_eq!(told(Some(Exit::Code(2)), ""), failed("exit status 2"));
        assert_eq!(told(Some(Exit::Signal(9)), ""), Err("child process has terminated abnormally".to_owned()));
        assert_eq!(told(Some(Exit::Signal(9)), "x"), Err("child process has terminated abnormally: x".to_owned()));
        assert_eq!(told(None, "x"), failed("chpasswd did not end in 30 s and was killed"));
    }

    #[test]
    fn chpasswd_gets_the_line_and_whether_it_is_crypted() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let error = set(&root, "ann", b"x", false).unwrap_err().desc;
        assert!(error.ends_with("failed to exec 'chpasswd': No such file or directory"), "{error}");
        let script = "{ echo \"$@\"; cat; } > \"$0.told\"; grep -q ann \"$0.told\" && exit; echo unknown; exit 1";
        write_script(&root, "/usr/sbin/chpasswd", script);
        let told = || fs::read_to_string(root.path("/usr/sbin/chpasswd.told")).unwrap();
        set(&root, "ann", b"pass:word", false).unwrap();
        assert_eq!(told(), "\nann:pass:word\n");
        set(&root, "ann", b"abiQ6Ep3EYTHc", true).unwrap();
        assert_eq!(told(), "-e\nann:abiQ6Ep3EYTHc\n");
        let error = set(&root, "bob", b"x", false).unwrap_err().desc;
        assert_eq!(error, "child process has failed to set user password: unknown");
    }
}
