//! guest-set-user-password, guest-ssh-get-authorized-keys, guest-ssh-add-authorized-keys,
//! guest-ssh-remove-authorized-keys.
//!
//! A host says who may log in; a user of the guest must gain nothing from that. So the keys are read and written with
//! the user's own rights, or with the agent's where those do no more harm.

mod hash;
pub mod keys;
#[cfg(target_os = "linux")]
pub mod linux;

use qga_protocol::accounts::{
    AddAuthorizedKeys, AuthorizedKeys, GetAuthorizedKeys, RemoveAuthorizedKeys, SetUserPassword,
};
use qga_protocol::command::Nothing;

use self::linux as os;
use crate::dispatch::Call;
use crate::dispatch::answer::Answer;
use crate::dispatch::handler::{Entry, Outcome, Run, Stream, family};
use crate::system::error::Error;

/// Bytes of a list of keys that are sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![SetUserPassword<'_>, GetAuthorizedKeys, AddAuthorizedKeys, RemoveAuthorizedKeys];

impl Run for SetUserPassword<'_> {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        let password = self.password.decode()?;
        os::set_password(&call.agent.root, &self.username, &password, self.crypted)?;
        Ok(Nothing {}.into())
    }
}

/// The machine that a command works on.
fn machine<'a>(call: &'a Call<'_>) -> os::Machine<'a> {
    os::Machine { root: &call.agent.root, budget: &call.agent.budget }
}

impl Run for GetAuthorizedKeys {
    fn run(self, call: &Call<'_>) -> Result<Outcome<AuthorizedKeys>, Error> {
        Ok(Outcome::Stream(Box::new(KeyList(os::key_file(&machine(call), &self.username)?))))
    }
}

/// The keys of a file, made while they are sent.
struct KeyList(os::Content);

impl Stream for KeyList {
    fn send(self: Box<Self>, mut answer: Answer<'_>, call: &Call<'_>) {
        answer.begin_line();
        AuthorizedKeys::begin(answer.piece());
        for (index, key) in keys::listed(&self.0.bytes).enumerate() {
            AuthorizedKeys::key(answer.piece(), &key, index == 0);
            if answer.piece().len() >= PIECE_BYTES {
                call.note_progress();
                if !answer.send_piece() {
                    return;
                }
            }
        }
        AuthorizedKeys::end(answer.piece());
        answer.end_line();
    }
}

impl Run for AddAuthorizedKeys {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        keys::check_added(&self.keys)?;
        let (added, reset) = (self.keys, self.reset.unwrap_or(false));
        os::add_keys(&machine(call), &self.username, reset, move |file| Ok(keys::with(file, &added)))?;
        Ok(Nothing {}.into())
    }
}

impl Run for RemoveAuthorizedKeys {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        keys::check(&self.keys)?;
        let removed = self.keys;
        os::remove_keys(&machine(call), &self.username, move |file| keys::without(file, &removed))?;
        Ok(Nothing {}.into())
    }
}
