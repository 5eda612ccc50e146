//! Keys are given to users of the guest, who then log in by ssh with them; users who set traps get nobody else's files.
//!
//! Each trap is shown to work on the original, where that leaves the guest as it was: an attack that hurts nobody
//! proves nothing.

use super::Case;
use super::accounts::{REMOVE_ANN, STAY};
use crate::vm::conversation::Conversation;
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "keys_log_in_by_ssh_until_they_are_removed", run: logins },
    Case { name: "keys_lead_no_trap_to_the_files_of_others", run: traps },
    Case { name: "keys_do_not_wait_for_what_a_user_put_in_the_way", run: obstacles },
    Case { name: "keys_are_safe_from_what_is_swapped_meanwhile", run: swaps },
];

/// A user `ann` with two keys of her own, and a running server.
pub fn make_user() -> String {
    format!(
        "set -e
         useradd --create-home --shell /bin/sh ann; {STAY}
         for name in one two; do ssh-keygen -q -t ed25519 -N '' -C \"ann $name\" -f /run/key-$name; done
         systemctl start ssh"
    )
}

/// Undoes [`make_user`].
pub fn remove_user() -> String {
    format!("systemctl stop ssh; rm -f /run/key-*; {REMOVE_ANN}")
}

/// What is root's alone: a file, a folder with a file of the name that the attacks aim at.
const MAKE_SECRETS: &str = "set -e
umask 077
mkdir -p /root/.ssh
echo 'ssh-rsa SECRET of root' | tee /root/.ssh/authorized_keys > /opt/secret
useradd --create-home --shell /bin/sh ann
setpriv --reuid=ann --regid=ann --clear-groups mkdir -m 700 /home/ann/.ssh";

const REMOVE_SECRETS: &str = "pkill -KILL -u ann; umount -l /home/ann/.ssh 2> /dev/null
sysctl -q fs.protected_hardlinks=1; userdel --remove ann 2> /dev/null; rm -rf /home/ann /opt/secret /root/.ssh";

/// Everything about what must stay as it is. The number of names is not: a user may give up a name of hers.
const FINGERPRINT: &str = "stat -c '%n %F %u:%g %a %i %s %y' /etc/shadow /opt/secret /root/.ssh /root/.ssh/*
sha256sum /etc/shadow /opt/secret /root/.ssh/*; ls -A /root/.ssh";

fn get() -> Value {
    json!({"execute": "guest-ssh-get-authorized-keys", "arguments": {"username": "ann"}})
}

fn add(key: &str, is_reset: bool) -> Value {
    json!({"execute": "guest-ssh-add-authorized-keys",
        "arguments": {"username": "ann", "keys": [key], "reset": is_reset}})
}

fn remove(key: &str) -> Value {
    json!({"execute": "guest-ssh-remove-authorized-keys", "arguments": {"username": "ann", "keys": [key]}})
}

/// Everything that a host can ask for.
fn all_requests() -> [Value; 4] {
    [get(), add("ssh-rsa NEW ann", false), remove("ssh-rsa NEW ann"), add("ssh-rsa NEW ann", true)]
}

fn talk(guest: &Guest, is_ours: bool) -> Result<Conversation> {
    if is_ours { guest.talk_to_ours() } else { guest.talk_to_original() }
}

/// Runs a test after `prepare` and before `clear_up`, which happens whatever comes of it.
pub fn between(
    guest: &mut Guest,
    prepare: &str,
    run: impl FnOnce(&mut Guest) -> Result<()>,
    clear_up: &str,
) -> Result<()> {
    let outcome = guest.shell(prepare).and_then(|_| run(guest));
    let cleared = guest.shell_result(clear_up)?;
    outcome?;
    ensure!(cleared.status == 0, "cannot clear up: {cleared:?}");
    Ok(())
}

fn logins(guest: &mut Guest) -> Result<()> {
    between(guest, &make_user(), all_logins, &remove_user())
}

fn all_logins(guest: &mut Guest) -> Result<()> {
    let one = guest.shell("cat /run/key-one.pub")?;
    let two = guest.shell("cat /run/key-two.pub")?;
    for is_ours in [false, true] {
        let mut host = talk(guest, is_ours)?;
        let done = json!({"return": {}});
        let mut told = |request: &Value| -> Result<()> {
            let reply = host.ask(request)?;
            ensure!(reply == done, "{request}: {reply}");
            Ok(())
        };
        expect_logins(guest, "before", false, false)?;
        told(&add(&one, false))?;
        expect_logins(guest, "after one was added", true, false)?;
        told(&add(&two, false))?;
        told(&remove(&one))?;
        expect_logins(guest, "after two was added and one removed", false, true)?;
        told(&add(&one, true))?;
        expect_logins(guest, "after a reset to one", true, false)?;
        told(&remove(&one))?;
        expect_logins(guest, "after one was removed again", false, false)?;
        let left =
            guest.shell("stat -c '%U:%G %a' /home/ann/.ssh /home/ann/.ssh/authorized_keys; rm -r /home/ann/.ssh")?;
        ensure!(left == "ann:ann 700\nann:ann 600", "the folder and the file are {left}");
    }
    Ok(())
}

/// Whether ann gets in with each of her keys.
fn expect_logins(guest: &mut Guest, when: &str, one: bool, two: bool) -> Result<()> {
    for (name, expected) in [("one", one), ("two", two)] {
        let result = guest.shell_result(&format!("{} id -un", ssh(name)))?;
        let is_refused = result.status == 255 && result.stderr.contains("Permission denied (publickey");
        let is_in = result.status == 0 && result.stdout.trim() == "ann";
        ensure!(is_refused || is_in, "ssh neither logs in nor is refused: {result:?}");
        ensure!(is_in == expected, "{when}: key {name} {}", if is_in { "logs in" } else { "does not log in" });
    }
    Ok(())
}

/// A command that logs ann in with one of her keys and nothing else.
pub fn ssh(key: &str) -> String {
    format!(
        "ssh -F none -o BatchMode=yes -o PreferredAuthentications=publickey -o IdentitiesOnly=yes \
         -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i /run/key-{key} ann@127.0.0.1"
    )
}

/// Runs a script with ann's rights alone.
fn as_ann(script: &str) -> String {
    format!("setpriv --reuid=ann --regid=ann --clear-groups sh -ec 'cd /home/ann; {script}'")
}

fn traps(guest: &mut Guest) -> Result<()> {
    let traps: &[(&str, &str)] = &[
        ("a link to a file of root's", "ln -s /opt/secret .ssh/authorized_keys"),
        ("a link to the passwords", "ln -s /etc/shadow .ssh/authorized_keys"),
        ("a link through this process", "ln -s /proc/self/root/opt/secret .ssh/authorized_keys"),
        ("a folder that is a link", "rmdir .ssh; ln -s /root/.ssh .ssh"),
        ("a folder that is a link upwards", "rmdir .ssh; ln -s ../../root/.ssh .ssh"),
        ("another name of a file of root's", "ln /opt/secret .ssh/authorized_keys"),
    ];
    let mut hurt_count = 0;
    for (what, script) in traps {
        for is_ours in [false, true] {
            let attack = |guest: &mut Guest| -> Result<()> {
                // Kernels and systems without this protection exist.
                guest.shell("sysctl -q fs.protected_hardlinks=0")?;
                guest.shell(&as_ann(script)).context(*what)?;
                let before = guest.shell(FINGERPRINT)?;
                let mut host = talk(guest, is_ours)?;
                let mut told = String::new();
                for request in all_requests() {
                    told += &host.ask(&request)?.to_string();
                    told.push('\n');
                }
                let after = guest.shell_result(FINGERPRINT)?.stdout;
                let of_ann = guest.shell(&as_ann("cat .ssh/authorized_keys || true"))?;
                let is_told = ["SECRET", "root:"].iter().any(|secret| told.contains(secret) || of_ann.contains(secret));
                let is_hurt = after.trim_end() != before || is_told;
                if is_ours {
                    ensure!(!is_hurt, "{what}\nbefore:\n{before}\nafter:\n{after}\nreplies:\n{told}ann has:\n{of_ann}");
                } else {
                    hurt_count += usize::from(is_hurt);
                }
                Ok(())
            };
            // Root's own files are made anew: the original has changed them.
            let keep = "cp -a /etc/shadow /run/shadow";
            let restore = format!("{REMOVE_SECRETS}; mv /run/shadow /etc/shadow");
            between(guest, &format!("{MAKE_SECRETS}\n{keep}"), attack, &restore)?;
        }
    }
    ensure!(hurt_count > 0, "none of the traps catches the original: they are none");
    guest.note(format!("{} traps: the original is caught by {hurt_count}, ours by none", traps.len()));
    Ok(())
}

fn obstacles(guest: &mut Guest) -> Result<()> {
    // What is in the way, and whether replacing the file altogether gets round it.
    let obstacles: &[(&str, &str)] = &[
        ("a FIFO", "mkfifo .ssh/authorized_keys"),
        ("a FIFO for a folder", "rmdir .ssh; mkfifo .ssh"),
        ("a folder", "mkdir .ssh/authorized_keys"),
        ("a link to an endless device", "ln -s /dev/zero .ssh/authorized_keys"),
        ("a link to a terminal", "ln -s /dev/ttyS1 .ssh/authorized_keys"),
        ("a link to itself", "ln -s authorized_keys .ssh/authorized_keys"),
        ("a huge file", "truncate -s 100G .ssh/authorized_keys"),
        (
            "a file system that never answers",
            "mkdir behind; bindfs --no-allow-other behind .ssh; pkill -STOP -u ann bindfs; sleep 0.1",
        ),
    ];
    for (what, script) in obstacles {
        let meet = |guest: &mut Guest| -> Result<()> {
            guest.shell(&as_ann(script)).context(*what)?;
            let mut host = guest.talk_to_ours()?;
            for request in [get(), add("ssh-rsa NEW ann", false)] {
                let reply = host.ask(&request).with_context(|| format!("{what}: no reply to {request}"))?;
                let text = reply["error"]["desc"].as_str().unwrap_or_default();
                ensure!(text.contains("/home/ann/.ssh"), "{what}: {request}: {reply}");
            }
            host.call("guest-ping", &json!({}))?;
            Ok(())
        };
        between(guest, &format!("modprobe fuse\n{MAKE_SECRETS}"), meet, REMOVE_SECRETS)?;
    }
    guest.note(format!("{} obstacles, each named in an error", obstacles.len()));
    Ok(())
}

/// Swaps the file and the folder for links to root's, and back, until it is killed.
const SWAPPER: &str = r#"
import os, sys
home = "/home/ann/"
pairs = [(".ssh/authorized_keys", "/opt/secret"), (".ssh", "/root/.ssh")]
name, target = pairs[int(sys.argv[1])]
os.symlink(target, home + "link")
while True:
    for one, other in [(name, "aside"), ("link", name), (name, "link"), ("aside", name)]:
        try:
            os.rename(home + one, home + other)
        except OSError:
            # The agent was in between: start from a state that is known.
            pass
    if not os.path.lexists(home + "link"):
        os.symlink(target, home + "link")
    if not os.path.lexists(home + ".ssh"):
        os.mkdir(home + ".ssh", 0o700)
"#;

fn swaps(guest: &mut Guest) -> Result<()> {
    const ROUNDS: usize = 60;
    let mut notes = Vec::new();
    for (number, what) in ["the file", "the folder"].into_iter().enumerate() {
        let race = |guest: &mut Guest| -> Result<()> {
            guest.shell("echo 'ssh-rsa OLD ann' > /home/ann/.ssh/authorized_keys; chown ann: /home/ann/.ssh/*")?;
            guest.shell(&format!("cat > /run/swapper.py << 'END'\n{SWAPPER}\nEND"))?;
            let before = guest.shell(FINGERPRINT)?;
            guest.shell(&format!(
                "systemd-run --quiet --collect --unit swapper --property User=ann python3 /run/swapper.py {number}"
            ))?;
            let mut host = guest.talk_to_ours()?;
            let (mut done, mut refused) = (0, 0);
            let outcome = (0..ROUNDS).try_for_each(|_| -> Result<()> {
                for request in all_requests() {
                    let reply = host.ask(&request)?;
                    ensure!(!reply.to_string().contains("SECRET"), "{what} was swapped: {request}: {reply}");
                    if reply.get("return").is_some() { done += 1 } else { refused += 1 }
                }
                Ok(())
            });
            let is_alive = guest.shell_result("systemctl is-active swapper")?;
            guest.shell("systemctl stop swapper")?;
            outcome?;
            ensure!(is_alive.status == 0, "the attacker did not last: {is_alive:?}");
            let after = guest.shell(FINGERPRINT)?;
            ensure!(before == after, "{what} was swapped\nbefore:\n{before}\nafter:\n{after}");
            let found = guest.shell_result("grep -rs SECRET /home/ann --exclude-dir=link --no-dereference")?;
            ensure!(found.stdout.is_empty(), "{what} was swapped, and ann has: {}", found.stdout);
            ensure!(refused > 0, "the attacker was never in the way");
            notes.push(format!("{what} swapped meanwhile: {done} requests done, {refused} refused"));
            Ok(())
        };
        between(guest, MAKE_SECRETS, race, REMOVE_SECRETS)?;
    }
    for note in notes {
        guest.note(note);
    }
    Ok(())
}
