//! A user comes by ssh and goes again; `guest-get-users` is asked of both agents meanwhile.
//!
//! The original knows utmp alone. Where logind or the list of processes knows better, so does ours.

use super::Case;
use super::keys::{self, between};
use super::zoo::compare;
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case { name: "sessions_by_ssh_are_told_while_they_last", run: at_a_terminal },
    Case { name: "sessions_that_utmp_lacks_are_told_by_logind", run: without_utmp },
];

/// A visit of ann's that lasts until its unit is stopped.
const VISIT: &str = "visit.service";

fn begin_visit(guest: &mut Guest, options: &str) -> Result<()> {
    let ssh = keys::ssh("one").replacen("ssh ", &format!("ssh {options} "), 1);
    guest.shell(&format!("systemd-run --quiet --collect --unit {VISIT} {ssh} sleep 4321")).map(drop)
}

/// When ann has logged in, as an agent tells.
fn told_login(users: &Value) -> Option<f64> {
    users.as_array()?.iter().find(|user| user["user"] == "ann")?["login-time"].as_f64()
}

fn ours(guest: &mut Guest) -> Result<Option<f64>> {
    Ok(told_login(&guest.talk_to_ours()?.call("guest-get-users", &json!({}))?))
}

fn original(guest: &mut Guest) -> Result<Option<f64>> {
    Ok(told_login(&guest.talk_to_original()?.call("guest-get-users", &json!({}))?))
}

fn now(guest: &mut Guest) -> Result<f64> {
    guest.shell("date +%s.%N")?.parse().context("date prints no number")
}

/// Ann comes; ours tells since when.
fn visit(guest: &mut Guest, options: &str) -> Result<()> {
    let before = now(guest)?;
    begin_visit(guest, options)?;
    let login = guest.wait_until("ann's login is told", ours)?;
    let after = now(guest)?;
    ensure!((before..=after).contains(&login), "ann came between {before} and {after}, told is {login}");
    Ok(())
}

fn end_visit(guest: &mut Guest, how: &str) -> Result<()> {
    guest.shell(how)?;
    guest.wait_until("ann's logout is told", |guest| Ok(ours(guest)?.is_none().then_some(())))
}

fn with_ann(guest: &mut Guest, run: impl FnOnce(&mut Guest) -> Result<()>) -> Result<()> {
    let prepare = format!(
        "{}\ninstall -d -m 700 -o ann -g ann /home/ann/.ssh
         install -m 600 -o ann -g ann /run/key-one.pub /home/ann/.ssh/authorized_keys",
        keys::make_user()
    );
    let clear_up = format!("systemctl stop {VISIT} 2> /dev/null; {}", keys::remove_user());
    between(guest, &prepare, run, &clear_up)
}

fn at_a_terminal(guest: &mut Guest) -> Result<()> {
    with_ann(guest, |guest| {
        ensure!(ours(guest)?.is_none() && original(guest)?.is_none(), "ann is told before she comes");
        visit(guest, "-tt")?;
        // The session is known before the server writes its record.
        guest.wait_until("the record of sshd in utmp", |guest| Ok(original(guest)?.map(drop)))?;
        compare(guest, &["guest-get-users"])?;
        end_visit(guest, &format!("systemctl stop {VISIT}"))?;
        guest.wait_until("the original has seen her go", |guest| Ok(original(guest)?.is_none().then_some(())))?;
        compare(guest, &["guest-get-users"])?;
        // Nobody takes the record back when the server is killed.
        guest.shell("cp -p /run/utmp /run/utmp-before")?;
        visit(guest, "-tt")?;
        end_visit(guest, "pkill -KILL -f 'sshd: [a]nn'")?;
        let stale = if original(guest)?.is_some() { "still tells" } else { "does not tell" };
        guest.note(format!("the original {stale} a session whose server was killed"));
        guest.shell("mv /run/utmp-before /run/utmp").map(drop)
    })
}

fn without_utmp(guest: &mut Guest) -> Result<()> {
    with_ann(guest, |guest| {
        // Without a terminal there is no record.
        visit(guest, "-T")?;
        ensure!(original(guest)?.is_none(), "utmp has a record of a session without a terminal");
        end_visit(guest, &format!("systemctl stop {VISIT}"))?;
        guest.shell("mv /run/utmp /run/utmp-hidden")?;
        let outcome = visit(guest, "-tt").and_then(|()| {
            let told = guest.talk_to_original()?.call("guest-get-users", &json!({}))?;
            ensure!(told == json!([]), "without utmp the original tells {told}");
            let told = guest.talk_to_ours()?.call("guest-get-users", &json!({}))?;
            let is_root_told = told.as_array().is_some_and(|users| users.iter().any(|user| user["user"] == "root"));
            ensure!(is_root_told, "root is at the console, and told is {told}");
            end_visit(guest, &format!("systemctl stop {VISIT}"))
        });
        guest.shell("mv /run/utmp-hidden /run/utmp")?;
        outcome
    })
}
