//! guest-set-user-password, guest-ssh-get-authorized-keys, guest-ssh-add-authorized-keys,
//! guest-ssh-remove-authorized-keys.
//!
//! A host says who may log in; a user of the guest must gain nothing from that. So the keys are read and written with
//! the user's own rights alone.

pub mod keys;
#[cfg(target_os = "linux")]
pub mod linux;

use qga_protocol::accounts::{
    AddAuthorizedKeys, AuthorizedKeys, GetAuthorizedKeys, RemoveAuthorizedKeys, SetUserPassword,
};
use qga_protocol::command::Nothing;

use self::linux as os;
use crate::dispatch::Call;
use crate::error::Error;
use crate::registry::{Entry, Outcome, Run, family};

/// The family's commands.
pub const ENTRIES: &[Entry] = family![SetUserPassword<'_>, GetAuthorizedKeys, AddAuthorizedKeys, RemoveAuthorizedKeys];

impl Run for SetUserPassword<'_> {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        let password = self.password.decode()?;
        os::set_password(&call.agent.root, &self.username, &password, self.crypted)?;
        Ok(Nothing {}.into())
    }
}

impl Run for GetAuthorizedKeys {
    fn run(self, call: &Call<'_>) -> Result<Outcome<AuthorizedKeys>, Error> {
        let file = os::key_file(&call.agent.root, &self.username)?;
        Ok(AuthorizedKeys { keys: keys::listed(&file) }.into())
    }
}

impl Run for AddAuthorizedKeys {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        keys::check_added(&self.keys)?;
        let (added, reset) = (self.keys, self.reset.unwrap_or(false));
        os::add_keys(&call.agent.root, &self.username, reset, move |file| keys::with(file, &added))?;
        Ok(Nothing {}.into())
    }
}

impl Run for RemoveAuthorizedKeys {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        keys::check(&self.keys)?;
        let removed = self.keys;
        os::remove_keys(&call.agent.root, &self.username, move |file| keys::without(file, &removed))?;
        Ok(Nothing {}.into())
    }
}
