//! `qga users`, `qga passwd`, `qga ssh-key`.

mod secret;

use std::io::Read;

use qga_client::{AnyAgent, Kind};
use qga_protocol::accounts::{AddAuthorizedKeys, GetAuthorizedKeys, RemoveAuthorizedKeys, SetUserPassword};
use qga_protocol::base64::Base64Text;
use qga_protocol::identity::{GetUsers, User};
use serde::Serialize;
use serde_json::json;

use crate::arguments::{Password, SshKey};
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::fleet;
use crate::general_options::General;
use crate::output::table::{Cell, Table};
use crate::output::text::printable;
use crate::output::{FAINT, Page, Show, units};
use crate::target::Selection;
use crate::visit::Visit;

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Users(Vec<User>);

impl Show for Users {
    fn show(&self, page: &mut Page) -> Result<()> {
        if self.0.is_empty() {
            page.note("nobody is logged in");
            return Ok(());
        }
        let mut table = Table::new(&["user", "since", "domain"]);
        for user in &self.0 {
            table.row(vec![
                Cell::text(&user.user),
                Cell::both(units::moment(user.login_time as i64, 0), user.login_time.to_string()).in_style(FAINT),
                Cell::text(user.domain.as_deref().unwrap_or_default()),
            ]);
        }
        table.show(page)
    }
}

pub fn users(visit: &mut Visit<'_>) -> Result<()> {
    let users = visit.connect()?.call(&GetUsers {})?;
    visit.page.report(&Users(users))
}

pub fn set_password(options: &Password, selection: &Selection, general: &General) -> Result<()> {
    let password = if options.stdin { secret::from_standard_input()? } else { secret::from_terminal(&options.user)? };
    fleet::visit(selection, general, &|visit| {
        let password = Base64Text::encode(password.as_bytes());
        let command = SetUserPassword { username: options.user.clone(), password, crypted: options.crypted };
        visit.connect()?.call(&command)?;
        done(visit, &format!("the password of {} is set", printable(&options.user)))
    })
}

fn done(visit: &mut Visit<'_>, text: &str) -> Result<()> {
    if visit.page.is_json() {
        return visit.page.json(&json!({ "done": true }));
    }
    visit.page.note(text);
    Ok(())
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Keys(Vec<String>);

impl Show for Keys {
    fn show(&self, page: &mut Page) -> Result<()> {
        self.0.iter().try_for_each(|key| page.line(printable(key)))
    }
}

pub fn keys(options: &SshKey, selection: &Selection, general: &General) -> Result<()> {
    match options {
        SshKey::Ls { user } => fleet::visit(selection, general, &|visit| {
            let keys = keys_of(&mut visit.connect()?, user)?;
            visit.page.report(&Keys(keys))
        }),
        SshKey::Add { user, keys, reset } => {
            let keys = read_keys(keys)?;
            if let Some(wrong) = keys.iter().find(|key| !is_key(key)) {
                return Err(no_key(wrong));
            }
            fleet::visit(selection, general, &|visit| {
                let reset = reset.then_some(true);
                let command = AddAuthorizedKeys { username: user.clone(), keys: keys.clone(), reset };
                visit.connect()?.call(&command)?;
                done(visit, &format!("{} keys of {} are there", keys.len(), printable(user)))
            })
        }
        SshKey::Rm { user, keys } => {
            let wanted = read_keys(keys)?;
            fleet::visit(selection, general, &|visit| remove_keys(user, &wanted, visit))
        }
    }
}

/// A user's keys. Who has no file of keys has none; whether there is such a user the agent says otherwise.
fn keys_of(agent: &mut AnyAgent, user: &str) -> Result<Vec<String>> {
    match agent.call(&GetAuthorizedKeys { username: user.to_owned() }) {
        Ok(keys) => Ok(keys.keys),
        Err(error) if error.agent().is_some() && error.kind() == Kind::NoSuchFile => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Removes keys, and looks whether they are gone: an agent says the same when it has found nothing to remove.
fn remove_keys(user: &str, wanted: &[String], visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let there = keys_of(&mut agent, user)?;
    let mut keys = Vec::new();
    for part in wanted {
        if is_key(part) {
            let same: Vec<&String> = there.iter().filter(|key| key_itself(key) == key_itself(part)).collect();
            if same.is_empty() {
                return Err(no_such_key(part));
            }
            keys.extend(same.into_iter().cloned());
            // As it was written, too: an agent compares whole lines, and may tell them otherwise than they stand there.
            keys.push(part.clone());
        } else {
            keys.push(the_one(part, &there)?.clone());
        }
    }
    keys.sort();
    keys.dedup();
    let gone = keys.iter().filter(|key| there.contains(key)).count();
    agent.call(&RemoveAuthorizedKeys { username: user.to_owned(), keys: keys.clone() })?;
    let left = keys_of(&mut agent, user)?;
    let stays = |key: &&String| keys.iter().any(|removed| key_itself(removed) == key_itself(key));
    if let Some(key) = left.iter().find(stays) {
        return Err(Failure::told(
            Code::FailedInGuest,
            format!("the agent removed nothing: {} of {} is still there", start_of(key), printable(user)),
            "Look at the user's authorized_keys in the guest: blanks or a carriage return at the end of the line keep an \
             agent from finding it.",
        ));
    }
    done(visit, &format!("{gone} keys of {} are gone", printable(user)))
}

/// A key without its options and its comment: what logs somebody in.
fn key_itself(line: &str) -> Option<&str> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    words.windows(2).find(|pair| is_kind_of_key(pair[0]) && pair[1].starts_with("AAAA")).map(|pair| pair[1])
}

fn is_kind_of_key(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-"].iter().any(|start| word.starts_with(start))
}

fn no_such_key(part: &str) -> Failure {
    let text = format!("no key has {:?} in it", start_of(part));
    Failure::told(Code::NoSuchThing, text, "'qga ssh-key ls USER' lists them.")
}

/// The only key that has a part.
fn the_one<'a>(part: &str, keys: &'a [String]) -> Result<&'a String> {
    let mut with = keys.iter().filter(|key| key.contains(part));
    match (with.next(), with.count()) {
        (Some(key), 0) => Ok(key),
        (None, _) => Err(no_such_key(part)),
        (Some(_), more) => Err(Failure::usage(format!("{} keys have {part:?} in them", more + 1))),
    }
}

/// The keys themselves; a file's or standard input's lines.
fn read_keys(named: &[String]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for name in named {
        let text = if name == "-" {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .read_to_string(&mut text)
                .map_err(|error| Failure::host("read standard input", &error))?;
            text
        } else if !is_key(name) && std::path::Path::new(name).is_file() {
            std::fs::read_to_string(name).map_err(|error| Failure::host(&format!("read {name}"), &error))?
        } else {
            name.clone()
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    if let Some(private) = keys.iter().find(|key| key.contains("PRIVATE KEY")) {
        let _ = private;
        return Err(Failure::told(
            Code::Usage,
            "this is a private key",
            "The file with .pub at its end is the public one.",
        ));
    }
    if keys.is_empty() {
        let places: Vec<&str> = named.iter().map(|name| if name == "-" { "standard input" } else { name }).collect();
        return Err(Failure::usage(format!("no key found in {}", places.join(", "))));
    }
    Ok(keys)
}

/// Whether it looks like a line of `authorized_keys`: a kind and base64, options perhaps in front.
fn is_key(text: &str) -> bool {
    key_itself(text).is_some()
}

fn start_of(text: &str) -> String {
    const SHOWN: usize = 40;
    printable(text).chars().take(SHOWN).collect()
}

fn no_key(text: &str) -> Failure {
    let text = format!("{:?} is no public key", start_of(text));
    Failure::told(Code::Usage, text, "Name a file such as ~/.ssh/id_ed25519.pub.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_when_it_is_seen() {
        assert!(is_key("ssh-ed25519 AAAAC3Nz me@here"));
        assert!(is_key("command=\"ls\" ecdsa-sha2-nistp256 AAAAE2Vj"));
        for other in ["me@here", "/root/.ssh/id.pub", "ssh-ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----"] {
            assert!(!is_key(other), "{other}");
        }
    }

    #[test]
    fn a_part_must_be_of_one_key() {
        let keys = ["ssh-rsa AAAA1 a@x".to_owned(), "ssh-rsa AAAA2 b@x".to_owned()];
        assert_eq!(the_one("b@x", &keys).unwrap(), &keys[1]);
        assert_eq!(the_one("c@x", &keys).unwrap_err().exit_code(), 66);
        assert_eq!(the_one("@x", &keys).unwrap_err().exit_code(), 64);
    }
}
