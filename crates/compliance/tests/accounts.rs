//! Keys for logging in by SSH, of a user that only the agent sees: the machine's own accounts are not touched.

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod machine;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use qga_compliance::deviations::Choice;
use qga_compliance::{Failure, check, deviation};
use serde_json::{Value, json};

use machine::{Machine, Machines, same};

/// A user that no system has, in an account file over the system's, with an empty home.
const USER: u32 = 61_234;
const ANN: &str = "chmod 755 $machine; mkdir $machine/home; chown 61234:61234 $machine/home
    cp /etc/passwd $machine/passwd; echo \"ann:x:61234:61234::$machine/home:/bin/sh\" >> $machine/passwd
    mount --bind $machine/passwd /etc/passwd";
const KEY_FILE: &str = "home/.ssh/authorized_keys";
/// The last line of what prepares a machine: the agent gets the capabilities of its `SELinux` domain in Fedora and RHEL.
const CONFINED: &str = "exec setpriv --bounding-set=-all,+sys_admin,+sys_time,+sys_tty_config,+chown,+dac_override,\
    +dac_read_search,+fowner,+fsetid \"$machine/program\" \"$@\"";
/// A home on a file system that its user has filled as far as a user may.
const FULL: &str = "truncate -s 8M $machine/image; mkfs.ext4 -q -m 20 $machine/image
    mount -o loop $machine/image $machine/home; mkdir -m 700 $machine/home/.ssh
    chown -R 61234:61234 $machine/home
    setpriv --reuid=61234 --regid=61234 --clear-groups sh -c '
        cat /dev/zero > $machine/home/filler
        for turn in 1 2 3; do sync; while head -c 1k /dev/zero >> $machine/home/filler; do :; done; done' 2> /dev/null || true
    if setpriv --reuid=61234 --regid=61234 --clear-groups sh -c 'head -c 1k /dev/zero > $machine/home/more' 2> /dev/null
    then exit 1; fi";

#[test]
fn accounts() {
    check("accounts");
}

/// ANN with `.ssh` and a key file, the user's own.
fn with_file(content: &str) -> String {
    format!(
        "{ANN}; mkdir -m 700 $machine/home/.ssh; printf '{content}' > $machine/{KEY_FILE}
        chmod 600 $machine/{KEY_FILE}; chown -R 61234:61234 $machine/home"
    )
}

/// Why no file system can be made in a file, if it cannot.
fn no_file_system() -> Option<&'static str> {
    let is_there = Command::new("sh").args(["-c", "command -v mkfs.ext4 && losetup --find"]).output();
    if is_there.is_ok_and(|output| output.status.success()) {
        None
    } else {
        Some("there is no loop device, or no mkfs.ext4")
    }
}

/// The text of a command's error, or its result.
fn done(machine: &mut Machine, act: &str, more: &Value) -> Result<Value, Failure> {
    let mut arguments = json!({"username": "ann"});
    if let (Some(arguments), Some(more)) = (arguments.as_object_mut(), more.as_object()) {
        arguments.extend(more.clone());
    }
    let reply = machine.ask_with(&format!("guest-ssh-{act}-authorized-keys"), &arguments)?;
    let found = reply.returned().cloned().or_else(|| reply.error_text().map(Value::from));
    let text = found.ok_or_else(|| reply.shown())?;
    // So that the expectations need not know the directory.
    let text = text.to_string().replace(&machine.path("").display().to_string(), "$machine/");
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

fn expect(machine: &mut Machine, act: &str, more: &Value, expected: &Value) -> Result<(), Failure> {
    same(&done(machine, act, more)?, expected)
}

fn file(machine: &Machine) -> Result<String, Failure> {
    fs::read(machine.path(KEY_FILE))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|error| format!("{KEY_FILE}: {error}"))
}

fn expect_file(machine: &Machine, content: &str) -> Result<(), Failure> {
    same(&Value::from(file(machine)?), &Value::from(content))
}

/// Owner and mode.
fn expect_own(machine: &Machine, path: &str, mode: u32) -> Result<(), Failure> {
    let found = fs::symlink_metadata(machine.path(path)).map_err(|error| format!("{path}: {error}"))?;
    same(
        &json!([format!("{:o}", found.mode() & 0o7777), found.uid(), found.gid()]),
        &json!([format!("{mode:o}"), USER, USER]),
    )
}

#[test]
fn key_files() {
    let mut machines = Machines::new("key files");
    let not_read = |cause: &str| json!(format!("failed to read '$machine/{KEY_FILE}': {cause}"));
    let cannot_open = |cause: &str| not_read(&format!("Failed to open file “$machine/{KEY_FILE}”: {cause}"));
    machines.case("a missing file is an error of reading alone", ANN, |machine| {
        expect(machine, "get", &json!({}), &cannot_open("No such file or directory"))?;
        expect(machine, "remove", &json!({"keys": ["A"]}), &json!({}))?;
        let nothing = !machine.path("home/.ssh").exists();
        nothing.then_some(()).ok_or_else(|| "a directory was made".to_owned())
    });
    machines.case(
        "keys are told backwards, without comments and blanks",
        &with_file(r"A\n# c\n\n  B \t\r\nC"),
        |machine| expect(machine, "get", &json!({}), &json!({"keys": ["C", "B", "A"]})),
    );
    machines.case("directory and file are made, and are the user's alone", ANN, |machine| {
        expect(machine, "add", &json!({"keys": ["A", "B"]}), &json!({}))?;
        expect_own(machine, "home/.ssh", 0o700)?;
        expect_own(machine, KEY_FILE, 0o600)?;
        expect(machine, "get", &json!({}), &json!({"keys": ["B", "A"]}))
    });
    machines.case("a key is added once", &with_file("A\n"), |machine| {
        expect(machine, "add", &json!({"keys": ["B", "A", "B"]}), &json!({}))?;
        expect(machine, "get", &json!({}), &json!({"keys": ["B", "A"]}))
    });
    machines.case("a reset drops all that was there", &with_file("# c\nA\n"), |machine| {
        expect(machine, "add", &json!({"keys": ["B"], "reset": true}), &json!({}))?;
        expect(machine, "get", &json!({}), &json!({"keys": ["B"]}))?;
        expect(machine, "add", &json!({"keys": [], "reset": true}), &json!({}))?;
        expect_file(machine, "")
    });
    machines.case("equal lines go, others stay as they are", &with_file(r"A\n# c\nAB\nB \r\nA\n"), |machine| {
        expect(machine, "remove", &json!({"keys": ["A", "ssh-rsa C"]}), &json!({}))?;
        expect_file(machine, "# c\nAB\nB \r\n")?;
        expect_own(machine, KEY_FILE, 0o600)
    });
    let confined = format!("{ANN}; {CONFINED}");
    machines.case("an agent that may not act as another user gives keys to one", &confined, |machine| {
        expect(machine, "add", &json!({"keys": ["ssh-rsa A", "ssh-rsa B"]}), &json!({}))?;
        expect_own(machine, "home/.ssh", 0o700)?;
        expect_own(machine, KEY_FILE, 0o600)?;
        expect(machine, "get", &json!({}), &json!({"keys": ["ssh-rsa B", "ssh-rsa A"]}))?;
        expect(machine, "remove", &json!({"keys": ["ssh-rsa A"]}), &json!({}))?;
        expect(machine, "get", &json!({}), &json!({"keys": ["ssh-rsa B"]}))
    });
    let of_root = format!("{ANN}; chown 0:0 $machine/home");
    for (name, prepare) in [
        ("a home of root's gets a directory of the user's", of_root.clone()),
        ("a home of root's gets one from a confined agent too", format!("{of_root}; {CONFINED}")),
    ] {
        machines.case(name, &prepare, |machine| {
            expect(machine, "add", &json!({"keys": ["A"]}), &json!({}))?;
            expect_own(machine, "home/.ssh", 0o700)?;
            expect_own(machine, KEY_FILE, 0o600)
        });
    }
    let linked =
        with_file("A\n").replace("; chown -R", "; ln $machine/home/.ssh/authorized_keys $machine/backup; chown -R");
    machines.case("a backup that shares the file keeps what it has", &linked, |machine| {
        expect(machine, "add", &json!({"keys": ["B"], "reset": true}), &json!({}))?;
        expect(machine, "get", &json!({}), &json!({"keys": ["B"]}))?;
        let backup = fs::read_to_string(machine.path("backup")).map_err(|error| error.to_string())?;
        same(&json!(backup), &json!("A\n"))
    });
    let many = format!(
        "{}; line=\"ssh-rsa $(head -c 370 /dev/zero | tr '\\000' A) ann\"; yes \"$line\" | head -n 16000 > $machine/{KEY_FILE}",
        with_file("")
    );
    machines.case("many thousands of keys are no obstacle", &many, |machine| {
        let before = file(machine)?.len();
        expect(machine, "add", &json!({"keys": ["ssh-rsa B"]}), &json!({}))?;
        let grown = file(machine)?;
        let is_added = grown.len() > before && before > 6_000_000 && grown.trim_end().ends_with("\nssh-rsa B");
        is_added.then_some(()).ok_or_else(|| format!("{before} bytes became {}", grown.len()))?;
        let keys = done(machine, "get", &json!({}))?;
        let count = keys["keys"].as_array().map_or(0, Vec::len);
        same(&json!([count, keys["keys"][0]]), &json!([16_001, "ssh-rsa B"]))?;
        expect(machine, "remove", &json!({"keys": ["ssh-rsa B"]}), &json!({}))
    });
    let reserve = format!("{ANN}; {FULL}");
    for (name, prepare) in [
        ("a disk that is full for its users takes a key", reserve.clone()),
        ("a disk that is full for its users takes one from a confined agent too", format!("{reserve}; {CONFINED}")),
    ] {
        if let Some(reason) = no_file_system() {
            machines.skip(name, reason);
            continue;
        }
        machines.case(name, &prepare, |machine| {
            expect(machine, "add", &json!({"keys": ["ssh-rsa A"]}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["ssh-rsa A"]}))?;
            expect(machine, "add", &json!({"keys": ["ssh-rsa B"], "reset": true}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["ssh-rsa B"]}))
        });
    }
    let open = format!("{}; chmod 644 $machine/{KEY_FILE}", with_file("A\n"));
    machines.case("a file that others may read is closed", &open, |machine| {
        expect(machine, "add", &json!({"keys": ["A"]}), &json!({}))?;
        expect_own(machine, KEY_FILE, 0o600)
    });
    machines.case(
        "a file in the place of the directory is told",
        &format!("{ANN}; touch $machine/home/.ssh"),
        |machine| {
            let expected = json!("failed to create directory '$machine/home/.ssh': File exists");
            expect(machine, "add", &json!({"keys": ["A"]}), &expected)?;
            expect(machine, "remove", &json!({"keys": ["A"]}), &json!({}))?;
            expect(machine, "get", &json!({}), &cannot_open("Not a directory"))
        },
    );
    machines.case(
        "a directory in the place of the file is told",
        &format!("{ANN}; mkdir -p $machine/{KEY_FILE}; chown -R 61234:61234 $machine/home"),
        |machine| {
            let expected = not_read(&format!("Error reading file “$machine/{KEY_FILE}”: Is a directory"));
            expect(machine, "get", &json!({}), &expected)
        },
    );
    machines.case("a missing home is not made", &format!("{ANN}; rmdir $machine/home"), |machine| {
        let expected = json!("failed to create directory '$machine/home/.ssh': No such file or directory");
        expect(machine, "add", &json!({"keys": ["A"]}), &expected)?;
        expect(machine, "remove", &json!({"keys": ["A"]}), &json!({}))
    });
    let digits = ANN.replace("ann:x", "20231234:x");
    machines.case("a name of digits is a name", &digits, |machine| {
        expect(machine, "add", &json!({"username": "20231234", "keys": ["A"]}), &json!({}))?;
        expect(machine, "get", &json!({"username": "20231234"}), &json!({"keys": ["A"]}))?;
        expect_own(machine, KEY_FILE, 0o600)?;
        // The user's id, and root's behind a blank.
        for name in ["61234", " 0"] {
            let found = done(machine, "get", &json!({"username": name}))?;
            let told =
                found.as_str().is_some_and(|text| text.starts_with(&format!("failed to lookup user '{name}': ")));
            told.then_some(()).ok_or_else(|| found.to_string())?;
        }
        Ok(())
    });
    let full = format!(
        "{ANN}; mount -t tmpfs -o size=64k,uid=61234 tmpfs $machine/home; mkdir $machine/home/.ssh
        echo A > $machine/{KEY_FILE}; chown -R 61234:61234 $machine/home/.ssh"
    );
    machines.case("a full disk keeps the old file", &full, |machine| {
        let found = done(machine, "add", &json!({"keys": ["x".repeat(100_000)]}))?;
        let told = found.as_str().is_some_and(|text| {
            text.starts_with(&format!("failed to write to '$machine/{KEY_FILE}': "))
                && text.ends_with("No space left on device")
        });
        told.then_some(()).ok_or_else(|| found.to_string())?;
        expect(machine, "get", &json!({}), &json!({"keys": ["A"]}))
    });
    machines.finish();
}

#[test]
fn better_key_files() {
    let mut machines = Machines::new("better key files");
    let choice = deviation("a key file ends with a line end, and has no empty lines of its own");
    machines.case(choice.case(), &with_file(r"# c\nA\n"), |machine| {
        expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
        expect_file(machine, choice.pick(machine.kind, "# c\nA\n\nB", "# c\nA\nB\n"))
    });
    let choice = deviation("what is behind a NUL in a key file stays");
    machines.case(choice.case(), &with_file(r"A\000B\nC\n"), |machine| {
        expect(machine, "add", &json!({"keys": ["D"]}), &json!({}))?;
        expect_file(machine, choice.pick(machine.kind, "A\nD", "A\0B\nC\nD\n"))
    });
    let choice = deviation("a key is removed as it is listed");
    machines.case(choice.case(), &with_file(r"A\n# c\n A\nA\r\nB \n"), |machine| {
        let listed = done(machine, "get", &json!({}))?;
        expect(machine, "remove", &listed, &json!({}))?;
        // What the original leaves lets A and B in as before.
        expect_file(machine, choice.pick(machine.kind, "# c\n A\nA\r\nB \n", "# c\n"))
    });
    let choice = deviation("a key is removed under any comment and with any options");
    let lines = r#"ssh-rsa AAAA ann\nfrom="a b" ssh-rsa AAAA\nssh-rsa AAAB ann\n"#;
    machines.case(choice.case(), &with_file(lines), |machine| {
        expect(machine, "remove", &json!({"keys": ["ssh-rsa AAAA another"]}), &json!({}))?;
        let all = lines.replace(r"\n", "\n");
        expect_file(machine, choice.pick(machine.kind, &*all, "ssh-rsa AAAB ann\n"))
    });
    let choice = deviation("what is neither a key nor a line is not said to be removed");
    machines.case(choice.case(), &with_file(r"ssh-rsa AAAA ann\n"), |machine| {
        let refused = "invalid OpenSSH public key: 'ann' (nor is it a line of the file: nothing was removed)";
        let expected = choice.pick(machine.kind, json!({}), json!(refused));
        expect(machine, "remove", &json!({"keys": ["ann"]}), &expected)?;
        expect_file(machine, "ssh-rsa AAAA ann\n")
    });
    let choice = deviation("a key file of root's behind a link is written through");
    let linked =
        "mkdir -p $machine/home/.ssh $machine/priv; cp /etc/passwd $machine/passwd; echo A > $machine/priv/keys
        echo \"ann:x:0:0::$machine/home:/bin/sh\" >> $machine/passwd; mount --bind $machine/passwd /etc/passwd
        ln -s ../../priv/keys $machine/home/.ssh/authorized_keys; chmod 755 $machine";
    machines.case(choice.case(), linked, |machine| {
        expect(machine, "get", &json!({}), &json!({"keys": ["A"]}))?;
        expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
        expect(machine, "get", &json!({}), &json!({"keys": ["B", "A"]}))?;
        let target = fs::read_to_string(machine.path("priv/keys")).map_err(|error| error.to_string())?;
        same(&json!(target), &json!(choice.pick(machine.kind, "A\n", "A\nB\n")))?;
        same(&json!(machine.path(KEY_FILE).is_symlink()), &json!(choice.pick(machine.kind, false, true)))
    });
    let choice = deviation("keys that root keeps for a user stay root's");
    let locked =
        with_file("A\n").replace("chown -R 61234:61234 $machine/home", "chmod 644 $machine/home/.ssh/authorized_keys");
    machines.case(choice.case(), &locked.replace("-m 700", "-m 755"), |machine| {
        expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
        expect(machine, "get", &json!({}), &json!({"keys": ["B", "A"]}))?;
        let found = fs::metadata(machine.path(KEY_FILE)).map_err(|error| error.to_string())?;
        let found = json!([found.uid(), format!("{:o}", found.mode() & 0o7777)]);
        same(&found, &choice.pick(machine.kind, json!([USER, "600"]), json!([0, "644"])))
    });
    let choice = deviation("a key with control characters is refused");
    machines.case(choice.case(), ANN, |machine| {
        let refused = json!("invalid OpenSSH public key: 'A\u{1b}[2K'");
        expect(machine, "add", &json!({"keys": ["A\u{1b}[2K"]}), &choice.pick(machine.kind, json!({}), refused))
    });
    machines.finish();
}

/// A file of root's that nobody else may read, and what is in the user's home instead of the key file.
fn trap(lines: &str) -> String {
    format!(
        "{ANN}; mkdir $machine/secret $machine/home/.ssh; echo SECRET > $machine/secret/authorized_keys
        chmod 600 $machine/secret/authorized_keys; chown 61234:61234 $machine/home/.ssh
        cd $machine/home; {lines}; cd /"
    )
}

#[test]
fn traps() {
    let mut machines = Machines::new("traps in key files");
    let refused = |cause: &str| {
        json!(format!("failed to read '$machine/{KEY_FILE}': Failed to open file “$machine/{KEY_FILE}”: {cause}"))
    };
    let secret = json!({"keys": ["SECRET"]});
    let answers: [(Choice<'_>, &str, &str); 3] = [
        (
            deviation("a linked key file is not followed"),
            "ln -s ../../secret/authorized_keys .ssh/authorized_keys",
            "'authorized_keys' is a symbolic link, which is not followed",
        ),
        (
            deviation("a linked directory of keys is not followed"),
            "rmdir .ssh; ln -s ../secret .ssh",
            "'.ssh' is a symbolic link, which is not followed",
        ),
        (
            deviation("a key file that is another's is not read"),
            "ln ../secret/authorized_keys .ssh/authorized_keys",
            "the file belongs to root, and the user may not read it",
        ),
    ];
    for (choice, lines, cause) in answers {
        let meet = |machine: &mut Machine| {
            let ours = refused(cause);
            expect(machine, "get", &json!({}), &choice.pick(machine.kind, secret.clone(), ours.clone()))?;
            let found = done(machine, "add", &json!({"keys": ["A"]}))?;
            same(&found, &choice.pick(machine.kind, json!({}), ours))?;
            // With the original the user has it now.
            let path = if machine.path("home/.ssh").is_symlink() { "secret/authorized_keys" } else { KEY_FILE };
            let owner = fs::metadata(machine.path(path)).map_err(|error| error.to_string())?.uid();
            same(&json!(owner), &json!(choice.pick(machine.kind, USER, 0)))
        };
        machines.case(choice.case(), &trap(lines), meet);
        let name = format!("{}, by a confined agent either", choice.case());
        machines.case(&name, &format!("{}; {CONFINED}", trap(lines)), meet);
    }
    let choice = deviation("a key file that is a pipe is not waited for");
    let pipe = "mkfifo .ssh/authorized_keys; (sleep 1; timeout 10 sh -c 'echo KEY > .ssh/authorized_keys') &";
    machines.case(choice.case(), &trap(pipe).replace("&;", "&"), |machine| {
        let ours = refused("it is not a regular file");
        expect(machine, "get", &json!({}), &choice.pick(machine.kind, json!({"keys": ["KEY"]}), ours))
    });
    machines.case(
        "a reset replaces a link and leaves its target",
        &trap("ln -s ../../secret/authorized_keys .ssh/authorized_keys"),
        |machine| {
            expect(machine, "add", &json!({"keys": ["A"], "reset": true}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["A"]}))?;
            let target =
                fs::read_to_string(machine.path("secret/authorized_keys")).map_err(|error| error.to_string())?;
            same(&json!(target), &json!("SECRET\n"))
        },
    );
    machines.finish();
}

/// ANN with a folder of settings of her own, as users keep them under version control, and links to what is in it.
fn with_links(lines: &str) -> String {
    format!(
        "{ANN}; mkdir -m 755 $machine/shared; echo S > $machine/shared/keys; chmod 644 $machine/shared/keys
        cd $machine/home; mkdir -m 700 dotfiles .ssh; echo A > dotfiles/keys; {lines}
        chown -hR 61234:61234 $machine/home; cd /"
    )
}

#[test]
fn links_of_users() {
    let mut machines = Machines::new("links of users");
    let content = |machine: &Machine, path: &str| {
        fs::read_to_string(machine.path(path)).map(Value::from).map_err(|error| format!("{path}: {error}"))
    };
    let confined = |prepare: String| format!("{prepare}; {CONFINED}");
    let both = |name: &str, lines: &str| {
        [
            (name.to_owned(), with_links(lines)),
            (format!("{name}, by a confined agent too"), confined(with_links(lines))),
        ]
    };
    for (name, prepare) in both(
        "a folder of keys that is a link of the user's own",
        "rmdir .ssh; ln -s dotfiles .ssh; mv dotfiles/keys dotfiles/authorized_keys",
    ) {
        machines.case(&name, &prepare, |machine| {
            expect(machine, "get", &json!({}), &json!({"keys": ["A"]}))?;
            expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
            expect(machine, "remove", &json!({"keys": ["A"]}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["B"]}))?;
            same(&json!(machine.path("home/dotfiles/authorized_keys").is_file()), &json!(true))?;
            same(&json!(machine.path("home/.ssh").is_symlink()), &json!(true))?;
            expect_own(machine, "home/dotfiles/authorized_keys", 0o600)
        });
    }
    let choice = deviation("a key file behind a link of the user's own is written through");
    for prepare in both("", "ln -s ../dotfiles/keys .ssh/authorized_keys") {
        let name = format!("{}{}", choice.case(), prepare.0);
        machines.case(&name, &prepare.1, |machine| {
            expect(machine, "get", &json!({}), &json!({"keys": ["A"]}))?;
            expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["B", "A"]}))?;
            same(&content(machine, "home/dotfiles/keys")?, &json!(choice.pick(machine.kind, "A\n", "A\nB\n")))?;
            same(&json!(machine.path(KEY_FILE).is_symlink()), &json!(choice.pick(machine.kind, false, true)))
        });
    }
    for (name, prepare) in both(
        "a link to a file that the user may only read gives way",
        "ln -s $machine/shared/keys .ssh/authorized_keys",
    ) {
        machines.case(&name, &prepare, |machine| {
            expect(machine, "get", &json!({}), &json!({"keys": ["S"]}))?;
            expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["B", "S"]}))?;
            same(&content(machine, "shared/keys")?, &json!("S\n"))?;
            expect_own(machine, KEY_FILE, 0o600)
        });
    }
    for (name, prepare) in both("a link that leads nowhere gives way", "ln -s missing/keys .ssh/authorized_keys") {
        machines.case(&name, &prepare, |machine| {
            expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["B"]}))?;
            expect_own(machine, KEY_FILE, 0o600)
        });
    }
    for (name, prepare) in
        both("another name of the user's own file stays as it is", "ln dotfiles/keys .ssh/authorized_keys")
    {
        machines.case(&name, &prepare, |machine| {
            expect(machine, "add", &json!({"keys": ["B"]}), &json!({}))?;
            expect(machine, "get", &json!({}), &json!({"keys": ["B", "A"]}))?;
            same(&content(machine, "home/dotfiles/keys")?, &json!("A\n"))
        });
    }
    machines.finish();
}
