//! The operating system, the host name and who is logged in.

#[allow(dead_code, reason = "each test file uses its own part of it")]
mod machine;

use qga_compliance::deviations::Choice;
use qga_compliance::{Failure, check, deviation};
use serde_json::{Value, json};

use machine::{Machine, Machines, same};

#[test]
fn identity() {
    check("identity");
}

/// The members that come from os-release.
fn os_release(machine: &mut Machine) -> Result<Value, Failure> {
    let mut found = machine.returned("guest-get-osinfo")?;
    let members = found.as_object_mut().ok_or("not an object")?;
    members.retain(|name, _| !name.starts_with("kernel-") && name != "machine");
    Ok(found)
}

#[test]
fn operating_system() {
    const PREPARE: &str = "export QGA_OS_RELEASE=$machine/os-release";
    let mut machines = Machines::new("operating system");
    let alike: [(&str, &[u8], Value); 9] = [
        ("a quoted value is told without its quotes", b"NAME=\"a b\"\nID=x\n", json!({"name": "a b", "id": "x"})),
        (
            "signs behind a backslash stand for themselves",
            br#"NAME="\$ \" \\ \` \' \n""#,
            json!({"name": r#"$ " \ ` ' \n"#}),
        ),
        ("a bare value ends at a blank", b"NAME=un quoted\n", json!({"name": "un"})),
        ("a bare value ends at a semicolon", b"NAME=a;b\n", json!({"name": "a"})),
        ("a comment behind a value is left out", b"ID=x # c\n# ID=y\n", json!({"id": "x"})),
        ("the last of several values counts", b"ID=a\nID=b\n", json!({"id": "b"})),
        ("an empty value is told as empty", b"ID=\n", json!({"id": ""})),
        ("blanks around names and a carriage return are left out", b"  ID = c \r\n", json!({"id": "c"})),
        (
            "each key has its member",
            b"ID=1\nNAME=2\nPRETTY_NAME=3\nVERSION=4\nVERSION_ID=5\nVARIANT=6\nVARIANT_ID=7\nHOME_URL=8\n",
            json!({"id": "1", "name": "2", "pretty-name": "3", "version": "4", "version-id": "5", "variant": "6",
                "variant-id": "7"}),
        ),
    ];
    for (name, text, expected) in alike {
        machines.case_with(name, &[("os-release", text)], PREPARE, |machine| same(&os_release(machine)?, &expected));
    }
    let differing: [(Choice<'_>, &[u8], Value, Value); 6] = [
        (
            deviation("single quotes quote"),
            b"NAME='Single Quoted'\n",
            json!({"name": "'Single"}),
            json!({"name": "Single Quoted"}),
        ),
        (
            deviation("a quote left open ends with its line"),
            b"NAME=\"open\nID=x\n",
            json!({"name": "openn", "id": "x"}),
            json!({"name": "open", "id": "x"}),
        ),
        (
            deviation("a line that is no assignment costs only itself"),
            b"ID=x\nno assignment\n",
            json!({}),
            json!({"id": "x"}),
        ),
        (
            deviation("bytes that are no UTF-8 cost only themselves"),
            b"ID=x\nNAME=\"\xff\"\n",
            json!({}),
            json!({"id": "x", "name": "\u{fffd}"}),
        ),
        (deviation("pieces of a value belong together"), b"NAME=\"a\"b\n", json!({"name": "a"}), json!({"name": "ab"})),
        (deviation("a byte order mark hides no key"), "\u{feff}ID=x\n".as_bytes(), json!({}), json!({"id": "x"})),
    ];
    for (choice, text, original, ours) in differing {
        machines.case_with(choice.case(), &[("os-release", text)], PREPARE, |machine| {
            same(&os_release(machine)?, &choice.pick(machine.kind, original, ours))
        });
    }
    machines.case("a missing file leaves its members out", PREPARE, |machine| same(&os_release(machine)?, &json!({})));
    let replaced =
        "mkdir $machine/etc; mount --bind $machine/etc /etc; mount --bind $machine/vendor /usr/lib/os-release";
    machines.case_with(
        "the vendor's file counts where there is no other",
        &[("vendor", b"ID=v\n")],
        replaced,
        |machine| same(&os_release(machine)?, &json!({"id": "v"})),
    );
    machines.case_with("the file is read anew at each call", &[("os-release", b"ID=a\n")], PREPARE, |machine| {
        same(&os_release(machine)?, &json!({"id": "a"}))?;
        std::fs::write(machine.path("os-release"), "ID=b\n").map_err(|error| error.to_string())?;
        same(&os_release(machine)?, &json!({"id": "b"}))
    });
    machines.finish();
}

#[test]
fn host_name() {
    let mut machines = Machines::new("host name");
    let longest = "n".repeat(63);
    for name in ["guest", "guest.example.org", &longest] {
        let case = format!("the host name {name} is told");
        machines.case(&case, &format!("hostname {name}"), |machine| {
            machine.expect("guest-get-host-name", &json!({ "host-name": name }))
        });
    }
    let choice = deviation("a host name of 64 bytes is told");
    let name = "n".repeat(64);
    machines.case(choice.case(), &format!("hostname {name}"), |machine| {
        let original = json!({"class": "GenericError", "desc": "cannot get hostname: File name too long"});
        let expected = choice.pick(machine.kind, original, json!({ "host-name": name }));
        let reply = machine.ask("guest-get-host-name")?.json.unwrap_or_default();
        same(reply.get("return").or(reply.get("error")).unwrap_or(&Value::Null), &expected)
    });
    machines.finish();
}

/// A record of utmp as the x86 architectures have it.
struct Record {
    kind: i16,
    process: i32,
    user: &'static [u8],
    seconds: u32,
    microseconds: u32,
}

impl Record {
    /// A session of a process that always lives.
    const fn of(user: &'static [u8], seconds: u32) -> Self {
        Self { kind: 7, process: 1, user, seconds, microseconds: 0 }
    }
}

fn utmp(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        let mut entry = [0; 384];
        entry[..2].copy_from_slice(&record.kind.to_ne_bytes());
        entry[4..8].copy_from_slice(&record.process.to_ne_bytes());
        entry[8..13].copy_from_slice(b"pts/0");
        entry[44..44 + record.user.len()].copy_from_slice(record.user);
        entry[76..80].copy_from_slice(b"HOST");
        entry[340..344].copy_from_slice(&record.seconds.to_ne_bytes());
        entry[344..348].copy_from_slice(&record.microseconds.to_ne_bytes());
        bytes.extend_from_slice(&entry);
    }
    bytes
}

#[test]
fn users() {
    const OWN_RUN: &str = "mount -t tmpfs tmpfs /run";
    const WITH_UTMP: &str = "mount -t tmpfs tmpfs /run; cp $machine/utmp /run/utmp";
    let mut machines = Machines::new("users");
    if !cfg!(any(target_arch = "x86", target_arch = "x86_64")) {
        machines.skip("users", "the records of this architecture have another layout");
        return machines.finish();
    }
    machines
        .case("without records nobody is logged in", OWN_RUN, |machine| machine.expect("guest-get-users", &json!([])));
    let alike: [(&str, Vec<Record>, Value); 4] = [
        (
            "a record of utmp is a user",
            vec![Record { microseconds: 123_456, ..Record::of(b"bob", 1_445_289_855) }],
            json!([{"user": "bob", "login-time": 1_445_289_855.123_456}]),
        ),
        (
            "a user is told once, with the oldest session, where the first record stands",
            vec![Record::of(b"bob", 30), Record::of(b"alice", 20), Record::of(b"bob", 10), Record::of(b"bob", 40)],
            json!([{"user": "bob", "login-time": 10.0}, {"user": "alice", "login-time": 20.0}]),
        ),
        (
            "records of other kinds are no users",
            vec![
                Record { kind: 2, ..Record::of(b"reboot", 10) },
                Record { kind: 6, ..Record::of(b"LOGIN", 10) },
                Record { kind: 8, ..Record::of(b"gone", 10) },
            ],
            json!([]),
        ),
        (
            "a name of 31 bytes is told",
            vec![Record::of(&[b'n'; 31], 5)],
            json!([{"user": "n".repeat(31), "login-time": 5.0}]),
        ),
    ];
    for (name, records, expected) in alike {
        machines.case_with(name, &[("utmp", &utmp(&records))], WITH_UTMP, |machine| {
            machine.expect("guest-get-users", &expected)
        });
    }
    let differing: [(Choice<'_>, Record, Value, Value); 4] = [
        (
            deviation("a name of 32 bytes ends there"),
            Record::of(&[b'n'; 32], 5),
            json!([{"user": format!("{}HOST", "n".repeat(32)), "login-time": 5.0}]),
            json!([{"user": "n".repeat(32), "login-time": 5.0}]),
        ),
        (
            deviation("a login after 2038 is told with its time"),
            Record::of(b"bob", 2_500_000_000),
            json!([{"user": "bob", "login-time": -1_794_967_296.0}]),
            json!([{"user": "bob", "login-time": 2_500_000_000.0}]),
        ),
        (
            deviation("a session whose process is gone is over"),
            Record { process: i32::MAX, ..Record::of(b"bob", 5) },
            json!([{"user": "bob", "login-time": 5.0}]),
            json!([]),
        ),
        (
            deviation("a record without a name is no user"),
            Record::of(b"", 5),
            json!([{"user": "", "login-time": 5.0}]),
            json!([]),
        ),
    ];
    for (choice, record, original, ours) in differing {
        machines.case_with(choice.case(), &[("utmp", &utmp(&[record]))], WITH_UTMP, |machine| {
            machine.expect("guest-get-users", &choice.pick(machine.kind, original, ours))
        });
    }
    let session = b"USER=carol\nSTATE=active\nTYPE=wayland\nCLASS=user\nLEADER=1\nREALTIME=1762771234567890\n";
    let with_logind =
        "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/sessions; cp $machine/session /run/systemd/sessions/2";
    let choice = deviation("a session that has no record is told from logind");
    machines.case_with(choice.case(), &[("session", session)], with_logind, |machine| {
        let ours = json!([{"user": "carol", "login-time": 1_762_771_234.567_89}]);
        machine.expect("guest-get-users", &choice.pick(machine.kind, json!([]), ours))
    });
    machines.finish();
}
