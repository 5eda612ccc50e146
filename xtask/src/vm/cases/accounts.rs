//! Passwords are set for users of the guest, who then log in with them.
//!
//! The original is asked for the same with the same user. Where ours is stricter, both answers stand in the table.

use super::Case;
use crate::vm::guest::Guest;
use anyhow::{Result, ensure};
use base64_simd::STANDARD;
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "accounts_set_a_password_that_logs_in", run: logins },
    Case { name: "accounts_refuse_passwords_as_the_original_does", run: refusals },
    Case { name: "accounts_do_not_wait_for_a_program_for_ever", run: patience },
];

fn request(user: &str, password: &[u8], is_crypted: bool) -> Value {
    json!({"execute": "guest-set-user-password", "arguments":
        {"username": user, "password": STANDARD.encode_to_string(password), "crypted": is_crypted}})
}

/// Lets the user's part of systemd stay between logins: its start takes longer than all the rest of a login.
pub const STAY: &str = "loginctl enable-linger ann";

/// Removes ann and whatever still runs for her.
pub const REMOVE_ANN: &str = "loginctl disable-linger ann 2> /dev/null; loginctl terminate-user ann 2> /dev/null
for try in $(seq 100); do
    userdel --remove ann 2> /dev/null; id ann > /dev/null 2>&1 || break
    pkill -KILL -u ann; sleep 0.1
done
! id ann 2> /dev/null";

/// Runs something while the guest has a user ann with the password `old`.
fn with_user(guest: &mut Guest, run: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    guest.shell(&format!("useradd --create-home --shell /bin/sh ann && echo ann:old | chpasswd && {STAY}"))?;
    let outcome = run(guest);
    guest.shell(REMOVE_ANN)?;
    outcome
}

/// Whether ann can log in: a user without rights asks su(1).
fn logs_in(guest: &mut Guest, password: &str) -> Result<bool> {
    let script = format!(
        "printf '%s\\n' '{password}' | setpriv --reuid=65534 --regid=65534 --clear-groups su ann -c 'id -un' 2> /dev/null"
    );
    Ok(guest.shell_result(&script)?.stdout.contains("ann"))
}

fn logins(guest: &mut Guest) -> Result<()> {
    with_user(guest, |guest| {
        ensure!(logs_in(guest, "old")? && !logs_in(guest, "new")?, "su does not tell passwords apart");
        let hash =
            guest.shell("echo ann:hashed | chpasswd && getent shadow ann | cut -d: -f2 && echo ann:old | chpasswd")?;
        for is_ours in [false, true] {
            for (password, sent, is_crypted) in [
                ("with: colon and blank", "with: colon and blank", false),
                ("grüße von hier", "grüße von hier", false),
                ("hashed", hash.as_str(), true),
            ] {
                let mut host = if is_ours { guest.talk_to_ours()? } else { guest.talk_to_original()? };
                let reply = host.ask(&request("ann", sent.as_bytes(), is_crypted))?;
                drop(host);
                ensure!(reply == json!({"return": {}}), "{password}: {reply}");
                ensure!(logs_in(guest, password)?, "`{password}` was set and does not log in");
                ensure!(!logs_in(guest, "old")?, "the old password still logs in");
                guest.shell("echo ann:old | chpasswd")?;
            }
        }
        let told =
            guest.shell_result("journalctl --boot --unit qemu-guest-agent | grep -ciE 'colon and|von hier|hashed'")?;
        ensure!(told.stdout.trim() == "0", "{} lines of the log have a password", told.stdout.trim());
        Ok(())
    })
}

fn refusals(guest: &mut Guest) -> Result<()> {
    with_user(guest, |guest| {
        const RAW: &str = "forbidden characters in raw password";
        let as_original = [
            (request("ann", b"a\nroot:b", false), Some(RAW)),
            (request("ann:x", b"a", false), Some("forbidden characters in username")),
            (request("ann\nroot", b"a", false), Some("forbidden characters in username")),
            (request("a:b", b"a\nb", false), Some(RAW)),
            // Whatever chpasswd says of it; ours leaves the line end out.
            (request("nobody-by-that-name", b"a", false), None),
            (request("ann", b"", false), None),
            (request("", b"a", false), None),
        ];
        for (request, text) in &as_original {
            let told = |reply: &Value| reply["error"]["desc"].as_str().unwrap_or_default().trim_end().to_owned();
            let original = told(&guest.talk_to_original()?.ask(request)?);
            let ours = told(&guest.talk_to_ours()?.ask(request)?);
            ensure!(!ours.is_empty() && original == ours, "{request}\noriginal: {original}\nours:     {ours}");
            ensure!(text.is_none_or(|text| text == ours), "{request}: {ours}");
            ensure!(logs_in(guest, "old")?, "{request}: the password has changed");
        }
        let unpadded = json!({"execute": "guest-set-user-password",
            "arguments": {"username": "ann", "password": "cGFzc3dvcmQ", "crypted": false}});
        let stricter = [
            (request("ann", b"cut\0off", false), RAW, "cut"),
            (unpadded, "Base64 data is incomplete: its last group is cut short or not padded with '='", "passwo"),
        ];
        for (request, text, wrong_password) in &stricter {
            let reply = guest.talk_to_ours()?.ask(request)?;
            ensure!(reply["error"]["desc"] == *text, "{request}: {reply}");
            ensure!(logs_in(guest, "old")?, "{request}: the password has changed");
            let reply = guest.talk_to_original()?.ask(request)?;
            ensure!(reply == json!({"return": {}}) && logs_in(guest, wrong_password)?, "the original: {reply}");
            guest.shell("echo ann:old | chpasswd")?;
        }
        // What the original leaves: whether everybody gets in, and whether the old password still does.
        for (hash, is_open) in [(&b""[..], true), (b"$6$salt$cut", false), (b"old", false)] {
            let request = request("ann", hash, true);
            let reply = guest.talk_to_ours()?.ask(&request)?;
            let text = reply["error"]["desc"].as_str().unwrap_or_default();
            ensure!(text.starts_with("the crypted password was not set: "), "{request}: {reply}");
            ensure!(logs_in(guest, "old")?, "{request}: the password has changed");
            let reply = guest.talk_to_original()?.ask(&request)?;
            ensure!(reply == json!({"return": {}}), "the original: {reply}");
            ensure!(logs_in(guest, "old")? == is_open, "the original has left another account than it did: {request}");
            guest.shell("echo ann:old | chpasswd")?;
        }
        // A lock that was asked for.
        for lock in [&b"!"[..], b"*"] {
            let reply = guest.talk_to_ours()?.ask(&request("ann", lock, true))?;
            ensure!(reply == json!({"return": {}}) && !logs_in(guest, "old")?, "{lock:?}: {reply}");
            guest.shell("echo ann:old | chpasswd")?;
        }
        guest.note(format!("{} refusals alike; a cut password is an error of ours alone", as_original.len()));
        Ok(())
    })
}

fn patience(guest: &mut Guest) -> Result<()> {
    const SLOW: &str = "#!/bin/sh\nsleep 4321\n";
    guest.shell(&format!(
        "printf '%s' '{SLOW}' > /run/slow && chmod 755 /run/slow && mount --bind /run/slow /usr/sbin/chpasswd"
    ))?;
    let asked = guest.talk_to_ours().and_then(|mut host| host.ask(&request("root", b"x", false)));
    guest.shell("umount /usr/sbin/chpasswd && rm /run/slow")?;
    let reply = asked?;
    let text = reply["error"]["desc"].as_str().unwrap_or_default();
    ensure!(text.ends_with("was killed"), "{reply}");
    ensure!(guest.shell_result("pgrep -x -f 'sleep 4321'")?.stdout.is_empty(), "what chpasswd started still runs");
    Ok(())
}
