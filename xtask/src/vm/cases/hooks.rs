//! Programs in the guest are told of a freeze: what they are called with, what their failures do, and what databases
//! make of it.

use super::Case;
use crate::vm::Skipped;
use crate::vm::conversation::{Conversation, patience};
use crate::vm::disk::{Disk, DiskOptions};
use crate::vm::guest::{Guest, OUR_UNIT};
use crate::vm::pace;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;

pub const CASES: &[Case] = &[
    Case { name: "hooks_are_called_around_a_freeze_in_order_and_in_reverse", run: order },
    Case { name: "hooks_that_fail_or_hang_end_the_freeze_and_are_named", run: failures },
    Case { name: "hooks_that_hang_are_called_off_by_a_thaw", run: called_off },
    Case { name: "hooks_leave_services_that_go_on_writing", run: services },
    Case { name: "hooks_that_others_can_change_are_refused", run: refusals },
    Case { name: "hooks_are_called_by_the_shipped_script_as_by_the_original", run: shipped_script },
    Case { name: "hooks_keep_databases_whole_in_a_snapshot", run: databases },
];

/// What hangs is killed after this long here; what does not has time enough.
fn hook_limit_seconds() -> u32 {
    3 * pace::slowness()
}
const DIRECTORY: &str = "/etc/qemu/fsfreeze-hook.d";
const FAILED: &str = "child process has failed to execute fsfreeze hook: ";

/// A file system of its own for the freeze: the rest of the guest goes on.
const MAKE_PLACE: &str = "set -e
mkdir -p /mnt/hooks /etc/qemu
install -d -m 755 /etc/qemu/fsfreeze-hook.d
truncate -s 32M /root/hooks.img
mkfs.ext4 -q /root/hooks.img
mount -o loop /root/hooks.img /mnt/hooks";

const REMOVE_PLACE: &str = "umount /mnt/hooks; rm -rf /root/hooks.img /mnt/hooks /etc/qemu /run/said /run/mood";

/// Notes how it was called, on the file system too, which must not stand still then; fails or hangs if it is the one to.
const HOOK: &str = r#"#!/bin/sh
name=${0##*/}
touch /mnt/hooks/touched-by-a-hook
echo "$name $* ($# words, input $(readlink /proc/self/fd/0))" >> /run/said
case "$1 $name $(cat /run/mood)" in
    'freeze 20-second fails') echo 'no space left'; exit 4 ;;
    'freeze 20-second hangs') echo 'waiting'; sleep 1000 ;;
esac
echo "was told $1"
"#;

/// Starts a service that writes to the output it has inherited, and says so at its end.
const STARTING_HOOK: &str = r#"#!/bin/sh
[ "$1" = thaw ] || exit 0
(for number in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    head -c 20000 /dev/zero || exit
    sleep 0.2
done; touch /run/served) &
"#;

/// Installs a hook by this name, with a mode.
fn add_hook(guest: &mut Guest, path: &str, mode: &str) -> Result<()> {
    guest.shell(&format!("cat > '{path}' <<'END'\n{HOOK}END\nchmod {mode} '{path}'")).map(drop)
}

/// Gives our agent this configuration and starts it anew.
fn configure(guest: &mut Guest, lines: &str) -> Result<Conversation> {
    guest.shell(&format!(
        "mkdir -p /etc/qemu; printf '[general]\\n{lines}' > /etc/qemu/qemu-ga.conf; systemctl restart {OUR_UNIT}"
    ))?;
    guest.talk_to_ours()
}

/// Runs a case with a file system to freeze and three hooks, 10, 20 and 30; takes it all away again.
fn with_hooks(guest: &mut Guest, run: impl Fn(&mut Guest, Conversation) -> Result<()>) -> Result<()> {
    guest.shell(MAKE_PLACE)?;
    let outcome = run_with_hooks(guest, run);
    guest.shell(&format!("fsfreeze -u /mnt/hooks 2> /dev/null; {REMOVE_PLACE}; systemctl restart {OUR_UNIT}"))?;
    guest.talk_to_ours()?;
    outcome
}

fn run_with_hooks(guest: &mut Guest, run: impl Fn(&mut Guest, Conversation) -> Result<()>) -> Result<()> {
    for name in ["10-first", "20-second", "30-third"] {
        add_hook(guest, &format!("{DIRECTORY}/{name}"), "755")?;
    }
    guest.shell("echo good > /run/mood")?;
    let host = configure(guest, &format!("fsfreeze-hook-timeout={}\\n", hook_limit_seconds()))?;
    run(guest, host)
}

fn services(guest: &mut Guest) -> Result<()> {
    with_hooks(guest, |guest, mut host| {
        let hook = format!("{DIRECTORY}/40-service");
        guest.shell(&format!("cat > {hook} <<'END'\n{STARTING_HOOK}END\nchmod 755 {hook}; rm -f /run/served"))?;
        expect("freeze", &freeze(&mut host)?, &json!({"return": 1}))?;
        expect("thaw", &thaw(&mut host)?, &json!({"return": 1}))?;
        drop(host);
        // Not even the end of the agent is the service's.
        let pid = guest.our_pid()?;
        guest.shell(&format!("sleep 1; kill -KILL {pid}"))?;
        guest.wait_until("the service has written all", |guest| {
            Ok((guest.shell_result("test -e /run/served")?.status == 0).then_some(()))
        })?;
        guest.shell("rm /run/served").map(drop)
    })
}

fn freeze_request() -> Value {
    json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": ["/mnt/hooks"]}})
}

fn freeze(host: &mut Conversation) -> Result<Value> {
    host.ask(&freeze_request())
}

fn thaw(host: &mut Conversation) -> Result<Value> {
    host.ask(&json!({"execute": "guest-fsfreeze-thaw"}))
}

/// What was noted since the last question, in one line.
fn said(guest: &mut Guest) -> Result<String> {
    let said = guest.shell("cat /run/said 2> /dev/null; rm -f /run/said")?;
    Ok(said.replace(" (1 words, input /dev/null)", "").replace('\n', ", "))
}

fn expect(what: &str, found: &Value, expected: &Value) -> Result<()> {
    ensure!(found == expected, "{what}: expected {expected}, found {found:?}");
    Ok(())
}

fn expect_said(guest: &mut Guest, expected: &str) -> Result<()> {
    let said = said(guest)?;
    ensure!(said == expected, "expected {expected:?}, the hooks said {said:?}");
    Ok(())
}

/// Nothing is frozen, and says so.
fn expect_thawed(guest: &mut Guest, host: &mut Conversation) -> Result<()> {
    expect("status", &host.ask(&json!({"execute": "guest-fsfreeze-status"}))?, &json!({"return": "thawed"}))?;
    guest.shell("timeout 600 touch /mnt/hooks/written").context("the file system is frozen").map(drop)
}

fn order(guest: &mut Guest) -> Result<()> {
    with_hooks(guest, |guest, mut host| {
        expect("freeze", &freeze(&mut host)?, &json!({"return": 1}))?;
        expect_said(guest, "10-first freeze, 20-second freeze, 30-third freeze")?;
        expect("thaw", &thaw(&mut host)?, &json!({"return": 1}))?;
        expect_said(guest, "30-third thaw, 20-second thaw, 10-first thaw")?;
        expect_thawed(guest, &mut host)?;
        // Whoever asks for a thaw wants everything to go on, whatever holds it.
        expect("second thaw", &thaw(&mut host)?, &json!({"return": 0}))?;
        expect_said(guest, "30-third thaw, 20-second thaw, 10-first thaw")
    })
}

fn failures(guest: &mut Guest) -> Result<()> {
    with_hooks(guest, |guest, mut host| {
        for (mood, text) in [
            ("fails", "20-second: no space left".to_owned()),
            ("hangs", format!("20-second: it did not end within {} s and was killed: waiting", hook_limit_seconds())),
        ] {
            guest.shell(&format!("echo {mood} > /run/mood"))?;
            let reply = freeze(&mut host)?;
            let expected = json!({"error": {"class": "GenericError", "desc": format!("{FAILED}{text}")}});
            expect(mood, &reply, &expected)?;
            expect_said(guest, "10-first freeze, 20-second freeze, 20-second thaw, 10-first thaw")?;
            expect_thawed(guest, &mut host)?;
            ensure!(guest.shell_result("pgrep -xf 'sleep 1000'")?.status != 0, "what the hook started is still there");
        }
        guest.shell("echo good > /run/mood")?;
        expect("freeze afterwards", &freeze(&mut host)?, &json!({"return": 1}))?;
        expect("thaw afterwards", &thaw(&mut host)?, &json!({"return": 1}))
    })
}

/// The host does not wait for the hook's limit: it asks for the thaw, and gets it.
fn called_off(guest: &mut Guest) -> Result<()> {
    with_hooks(guest, |guest, host| {
        drop(host);
        let mut host = configure(guest, "fsfreeze-hook-timeout=86400\\n")?;
        guest.shell("echo hangs > /run/mood")?;
        host.send_request(&freeze_request())?;
        guest.wait_until("the hook hangs", |guest| {
            Ok((guest.shell_result("grep 20-second /run/said && pgrep -xf 'sleep 1000'")?.status == 0).then_some(()))
        })?;
        host.synchronise(patience()).context("while the hook hangs")?;
        expect("thaw", &thaw(&mut host)?, &json!({"return": 0}))?;
        // A thaw that comes after the freeze was given up calls them again, as any thaw does.
        let said = said(guest)?;
        let expected = "10-first freeze, 20-second freeze, 20-second thaw, 10-first thaw";
        ensure!(said.starts_with(expected) && !said[expected.len()..].contains("freeze"), "the hooks said {said:?}");
        ensure!(guest.shell_result("pgrep -xf 'sleep 1000'")?.status != 0, "what the hook started is still there");
        expect_thawed(guest, &mut host)
    })
}

fn refusals(guest: &mut Guest) -> Result<()> {
    with_hooks(guest, |guest, mut host| {
        let hook = format!("{DIRECTORY}/30-third");
        let everybody = |path: &str| {
            format!("the mode of '{path}' is 0777: everybody may change it; 'chmod o-w {path}' mends that")
        };
        let owner = |path: &str| {
            format!("the owner of '{path}' (mode 0755) is the user 1000, not root; 'chown root {path}' mends that")
        };
        let not_run = format!("fsfreeze hook '{hook}' is not run: ");
        for (change, back, text) in [
            (format!("chmod 777 {hook}"), format!("chmod 755 {hook}"), format!("{not_run}{}", everybody(&hook))),
            (format!("chown lab {hook}"), format!("chown root {hook}"), format!("{not_run}{}", owner(&hook))),
            // The user lab could lead this link elsewhere.
            (
                format!(
                    "mv {hook} /opt/third; mkdir -m 755 /tmp/labs; ln -s /opt/third /tmp/labs/current; chown lab /tmp/labs; \
                     ln -s /tmp/labs/current {hook}"
                ),
                format!("rm -r {hook} /tmp/labs; mv /opt/third {hook}"),
                format!("{not_run}{}", owner("/tmp/labs")),
            ),
            (
                format!("chmod 775 {DIRECTORY}"),
                format!("chmod 755 {DIRECTORY}"),
                format!(
                    "the fsfreeze hooks of '{DIRECTORY}' are not run: the mode of '{DIRECTORY}' is 0775: its group, 0, may \
                     change it; 'chmod g-w {DIRECTORY}' mends that"
                ),
            ),
        ] {
            guest.shell(&change)?;
            let reply = freeze(&mut host)?;
            guest.shell(&back)?;
            expect(&change, &reply, &json!({"error": {"class": "GenericError", "desc": text}}))?;
            expect_said(guest, "")?;
            expect_thawed(guest, &mut host)?;
        }
        Ok(())
    })
}

/// The script of the original's package runs the directory beside it. The agent that is told of the script leaves the
/// directory to it.
fn shipped_script(guest: &mut Guest) -> Result<()> {
    crate::original::original_agent().map_err(|error| Skipped::because(&format!("{error:#}")))?;
    let script = fs::read("/etc/qemu/fsfreeze-hook").map_err(|error| {
        Skipped::because(&format!(
            "the original's package has no script to compare with, /etc/qemu/fsfreeze-hook: {error}"
        ))
    })?;
    let script = base64_simd::STANDARD.encode_to_string(script);
    with_hooks(guest, |guest, host| {
        drop(host);
        // Its log is there: without it, it fails under dash.
        guest.shell(&format!(
            "set -e
             echo {script} | base64 -d > /run/fsfreeze-hook
             install -m 755 /run/fsfreeze-hook /etc/qemu/fsfreeze-hook; rm /run/fsfreeze-hook
             : >> /var/log/qga-fsfreeze-hook.log"
        ))?;
        let mut host = configure(guest, "fsfreeze-hook=/etc/qemu/fsfreeze-hook\\n")?;
        let ours = around_a_freeze(guest, &mut host)?;
        drop(host);
        let original = by_the_original(guest)?;
        ensure!(ours == original, "original: {original:?}\nours:     {ours:?}");
        let expected =
            "10-first freeze, 20-second freeze, 30-third freeze, 10-first thaw, 20-second thaw, 30-third thaw";
        ensure!(ours == expected, "{ours:?}");
        Ok(())
    })
}

fn by_the_original(guest: &mut Guest) -> Result<String> {
    const DROP_IN: &str = "/run/systemd/system/original-agent.service.d";
    guest.shell(&format!(
        "mkdir -p {DROP_IN}
         command=$(systemctl cat original-agent.service | sed -n 's/^ExecStart=//p')
         printf '[Service]\\nExecStart=\\nExecStart=%s -F/etc/qemu/fsfreeze-hook\\n' \"$command\" > {DROP_IN}/hook.conf
         systemctl daemon-reload; systemctl restart original-agent.service"
    ))?;
    let outcome = guest.talk_to_original().and_then(|mut host| around_a_freeze(guest, &mut host));
    // The configuration that is there for ours would hold for the original too.
    guest.shell(&format!(
        "rm -r {DROP_IN}; systemctl daemon-reload; mv /etc/qemu/qemu-ga.conf /run/held.conf
         systemctl restart original-agent.service"
    ))?;
    guest.talk_to_original()?;
    guest.shell("mv /run/held.conf /etc/qemu/qemu-ga.conf")?;
    outcome
}

fn around_a_freeze(guest: &mut Guest, host: &mut Conversation) -> Result<String> {
    expect("freeze", &freeze(host)?, &json!({"return": 1}))?;
    // The original thaws everything there is, and so counts what nobody froze not.
    expect("thaw", &thaw(host)?, &json!({"return": 1}))?;
    said(guest)
}

/// The hooks that are shipped.
const HOOKS: [(&str, &str); 3] = [
    ("10-mariadb", include_str!("../../../../packaging/hooks/10-mariadb")),
    ("20-postgresql", include_str!("../../../../packaging/hooks/20-postgresql")),
    ("30-redis", include_str!("../../../../packaging/hooks/30-redis")),
];

const MAKE_DATABASES: &str = r"set -e
mkdir -p /srv/databases /run/written
install -d -o mysql /run/mysqld
install -d -m 755 /etc/qemu/fsfreeze-hook.d
mkfs.ext4 -q $disk
mount $disk /srv/databases
cp -a /var/lib/mysql /srv/databases/mariadb
install -d -o redis /srv/databases/redis
install -d -o postgres /srv/databases/postgresql
version=$(ls /usr/lib/postgresql | tail -n 1)
pg_createcluster $version snapshot --datadir /srv/databases/postgresql/data > /run/cluster.log 2>&1";

/// Each under the name and at the place where its package has it.
const START_DATABASES: &str = r"set -e
version=$(ls /usr/lib/postgresql | tail -n 1)
systemd-run --quiet --unit database-mariadb mariadbd --user=mysql --datadir=/srv/databases/mariadb --skip-networking
systemd-run --quiet --unit database-redis --uid redis redis-server /etc/redis/redis.conf \
    --daemonize no --supervised no --dir /srv/databases/redis --logfile ''
PGCTLTIMEOUT=600 pg_ctlcluster --skip-systemctl-redirect $version snapshot start
for try in $(seq 3000); do
    mariadb-admin --silent ping 2> /dev/null && [ $(redis-cli ping) = PONG ] && break
    sleep 0.2
done
mariadb-admin ping
runuser -u postgres -- psql --cluster $version/snapshot -d postgres -X -q -c 'SELECT 1'";

/// As after a loss of power, but for what the servers write at the end of a good day.
const STOP_DATABASES: &str = "systemctl kill --signal KILL database-mariadb database-redis 2> /dev/null
pkill -KILL -u postgres
systemctl stop 'writer-*' database-mariadb database-redis 2> /dev/null
systemctl reset-failed 'writer-*' 'database-*' 2> /dev/null
for try in $(seq 1000); do umount /srv/databases 2> /dev/null; mountpoint -q /srv/databases || break; sleep 0.1; done
rm -f /srv/databases/postgresql/data/postmaster.pid; ! mountpoint -q /srv/databases";

/// Three programs that write one number after the other, and note what the server has acknowledged. The first gets
/// each number twice: into a table that survives a loss of power by itself, and into one that does not.
const START_WRITERS: &str = r#"set -e
version=$(ls /usr/lib/postgresql | tail -n 1)
mariadb -e 'CREATE DATABASE lab; CREATE TABLE lab.safe (n INT PRIMARY KEY) ENGINE InnoDB;
    CREATE TABLE lab.plain (n INT PRIMARY KEY) ENGINE MyISAM'
runuser -u postgres -- psql --cluster $version/snapshot -d postgres -X -q -c 'CREATE TABLE lab (n INT PRIMARY KEY)'
start() { systemd-run --quiet --unit "writer-$1" --uid "$2" sh -c "$3"; }
install -m 666 /dev/null /run/written/mariadb
install -m 666 /dev/null /run/written/postgresql
install -m 666 /dev/null /run/written/redis
start mariadb root "seq 1000000 | sed 's/.*/INSERT INTO safe VALUES (&); INSERT INTO plain VALUES (&); SELECT &;/' |
    mariadb --batch --unbuffered --skip-column-names lab > /run/written/mariadb"
start postgresql postgres "seq 1000000 | sed 's/.*/INSERT INTO lab VALUES (&); SELECT &;/' |
    psql --cluster $version/snapshot -d postgres -X -q -t -A > /run/written/postgresql"
start redis redis "redis-cli -r -1 -i 0.01 INCR lab > /run/written/redis""#;

/// What has been acknowledged so far: the last whole line.
const WRITTEN: &str = "for name in mariadb postgresql redis; do tail -n 2 /run/written/$name | head -n 1; done";

/// What the servers know, after the tables that do not survive a loss of power were looked at from outside.
const FOUND: &str = r"version=$(ls /usr/lib/postgresql | tail -n 1)
mariadb --batch --skip-column-names -e 'SELECT COUNT(*) FROM safe; SELECT MAX(n) FROM safe; SELECT COUNT(*) FROM plain;
    SELECT MAX(n) FROM plain' lab
runuser -u postgres -- psql --cluster $version/snapshot -d postgres -X -q -t -A -c 'SELECT COUNT(*) FROM lab' \
    -c 'SELECT MAX(n) FROM lab'
redis-cli GET lab";

const REMOVE_DATABASES: &str = "rm -rf /etc/postgresql/*/snapshot /etc/qemu /run/written /srv/databases
! ls /run/qemu-ga-hooks/mariadb/* 2> /dev/null";

fn databases(guest: &mut Guest) -> Result<()> {
    if guest.shell_result("command -v mariadbd redis-server pg_createcluster")?.status != 0 {
        return Err(Skipped::because("the guest's image has no databases"));
    }
    // A disk of their own, which the host copies while it is frozen.
    let disk = guest.plug_disk("databases", DiskOptions::default())?;
    let outcome = snapshot(guest, &disk).and_then(|(copy, written)| {
        take_away(guest, &disk)?;
        let disk = guest.plug_copy(&copy)?;
        let outcome = look_at_snapshot(guest, &disk, &written);
        take_away(guest, &disk).and(outcome)
    });
    guest.shell(&format!("{STOP_DATABASES}; {REMOVE_DATABASES}; systemctl restart {OUR_UNIT}"))?;
    guest.talk_to_ours()?;
    outcome
}

fn take_away(guest: &mut Guest, disk: &Disk) -> Result<()> {
    guest.shell(STOP_DATABASES)?;
    guest.unplug_disk(&disk.name)
}

fn numbers(text: &str) -> Vec<u64> {
    text.lines().map_while(|line| line.trim().parse().ok()).collect()
}

fn written(guest: &mut Guest) -> Result<Vec<u64>> {
    Ok(numbers(&guest.shell(WRITTEN)?))
}

/// Waits until all three have got on by some writes.
fn wait_for_writes(guest: &mut Guest, before: &[u64]) -> Result<Vec<u64>> {
    guest.wait_until("all three databases are written to", |guest| {
        let now = written(guest)?;
        let have_got_on = now.len() == 3 && now.iter().zip(before).all(|(now, before)| *now > before + 20);
        Ok(have_got_on.then_some(now))
    })
}

/// Copies the disk while it is frozen. The result is the copy and what had been acknowledged before.
fn snapshot(guest: &mut Guest, disk: &Disk) -> Result<(String, Vec<u64>)> {
    guest.shell(&format!("disk={}\n{MAKE_DATABASES}", disk.device))?;
    for (name, text) in HOOKS {
        let path = format!("{DIRECTORY}/{name}");
        guest.shell(&format!("cat > {path} <<'END-OF-HOOK'\n{text}END-OF-HOOK\nchmod 755 {path}"))?;
    }
    guest.shell(START_DATABASES)?;
    guest.shell(START_WRITERS)?;
    let mut host = configure(guest, "")?;
    let before = wait_for_writes(guest, &[0, 0, 0])?;
    let request = json!({"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": ["/srv/databases"]}});
    let reply = host.ask(&request)?;
    expect("freeze", &reply, &json!({"return": 1}))?;
    let during = written(guest)?;
    let copy = guest.copy_disk(disk)?;
    let after = written(guest)?;
    expect("thaw", &thaw(&mut host)?, &json!({"return": 1}))?;
    // Redis writes to its memory; the others wait for the disk, MariaDB for the lock before that.
    ensure!(after[..2] == during[..2], "written while frozen: {during:?} became {after:?}");
    let at_last = wait_for_writes(guest, &after)?;
    guest.note(format!("acknowledged: {before:?} before the freeze, {during:?} in it, {at_last:?} after it"));
    Ok((copy, before))
}

fn look_at_snapshot(guest: &mut Guest, disk: &Disk, before: &[u64]) -> Result<()> {
    let disk = &disk.device;
    guest.shell(&format!("fsck.ext4 -p {disk}; mkdir -p /srv/databases; mount {disk} /srv/databases"))?;
    // MyISAM notes in a table whether it was closed; under the lock all are.
    let check = guest.shell("myisamchk --check --read-only /srv/databases/mariadb/lab/plain.MYI 2>&1")?;
    ensure!(!check.contains("warning") && !check.contains("error"), "{check}");
    guest.shell(&format!("rm -f /srv/databases/postgresql/data/postmaster.pid; {START_DATABASES}"))?;
    let text = guest.shell(FOUND)?;
    let found = numbers(&text);
    let [safe, safe_last, plain, plain_last, postgresql, postgresql_last, redis] = found[..] else {
        anyhow::bail!("the databases of the snapshot answer {text:?}");
    };
    guest.note(format!("in the snapshot: {found:?}"));
    // Every acknowledged number and none left out; the lock may have come between the two tables.
    let is_whole = safe == safe_last && plain == plain_last && (plain == safe || plain + 1 == safe);
    ensure!(is_whole && postgresql == postgresql_last, "numbers are missing: {found:?}");
    for (found, before) in [plain, postgresql, redis].iter().zip(before) {
        ensure!(found >= before, "the snapshot lost acknowledged numbers: {found} are left of {before}");
    }
    Ok(())
}
