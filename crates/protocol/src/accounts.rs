//! Changing how users log in: `guest-set-user-password`, `guest-ssh-*-authorized-keys`.
//!
//! The family neither creates nor deletes accounts. Who is logged in is in `identity.rs`.

use crate::base64::Base64Text;
use crate::command::{Command, Family, Nothing};
use crate::{command, encode, object};

/// The family's commands.
pub const FAMILY: Family = Family {
    name: "accounts",
    commands: &[SetUserPassword::INFO, GetAuthorizedKeys::INFO, AddAuthorizedKeys::INFO, RemoveAuthorizedKeys::INFO],
};

command! {
    "guest-set-user-password", since "2.3", reply Nothing, rules { exclusive: true, secret: &["password"] },
    /// Sets a user's password.
    ///
    /// On Linux as chpasswd(8), on FreeBSD as `pw usermod`; Windows takes local accounts alone.
    ///
    /// Errors: text that is not base64; a newline in the password or the name, or a colon in the name; an unknown user;
    /// what the system reports, such as a password that its rules refuse; `crypted` on Windows.
    pub struct SetUserPassword<'a> {
        /// The user.
        username: String,
        /// The password in base64; before that, plain text in UTF-8 or what `crypted` says.
        #[serde(borrow)]
        password: Base64Text<'a>,
        /// True if the password is already hashed, in the form of crypt(3), and is to be stored as it is. Must be false
        /// on Windows.
        crypted: bool,
    }
}

command! {
    "guest-ssh-get-authorized-keys", since "5.2", reply AuthorizedKeys,
    /// Lists the public keys that may log in as a user by SSH.
    ///
    /// The file is `.ssh/authorized_keys` in the user's home, whatever the SSH server's configuration says. On Windows
    /// all administrators share one file, `administrators_authorized_keys` in the SSH server's data folder.
    ///
    /// Errors: an unknown user; a file that does not exist or cannot be read.
    pub struct GetAuthorizedKeys {
        /// The user.
        username: String,
    }
}

object! {
    /// What `guest-ssh-get-authorized-keys` returns.
    pub struct AuthorizedKeys as "GuestAuthorizedKeys" {
        /// The lines of the file without blanks around them, the last line first; empty lines and comments are left
        /// out.
        keys: Vec<String>,
    }
}

/// The same written key by key, so that a long list never exists whole.
impl AuthorizedKeys {
    /// What comes before the first key.
    pub fn begin(line: &mut Vec<u8>) {
        line.extend_from_slice(b"{\"keys\": [");
    }

    /// One key.
    pub fn key(line: &mut Vec<u8>, key: &str, is_first: bool) {
        if !is_first {
            line.extend_from_slice(b", ");
        }
        encode::append(line, key);
    }

    /// What comes after the last key.
    pub fn end(line: &mut Vec<u8>) {
        line.extend_from_slice(b"]}");
    }
}

command! {
    "guest-ssh-add-authorized-keys", since "5.2", reply Nothing, rules { exclusive: true, secret: &["keys"] },
    /// Adds public keys to those that may log in as a user by SSH; file as in `guest-ssh-get-authorized-keys`.
    ///
    /// A key that is there already is not added again; other lines stay as they are. The file, and `.ssh` with it, is
    /// made if it does not exist, belongs to the user and is readable by no other. The home is not made.
    ///
    /// Errors, after which the file is unchanged: an unknown user; a key that contains a newline or starts with `#`;
    /// a file that cannot be written.
    pub struct AddAuthorizedKeys {
        /// The user.
        username: String,
        /// The keys, each a line of the file in OpenSSH's format.
        keys: Vec<String>,
        /// Whether to drop everything that the file holds; false if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        reset: Option<bool>,
    }
}

command! {
    "guest-ssh-remove-authorized-keys", since "5.2", reply Nothing, rules { exclusive: true, secret: &["keys"] },
    /// Removes public keys from those that may log in as a user by SSH; file as in `guest-ssh-get-authorized-keys`.
    ///
    /// Every line that `guest-ssh-get-authorized-keys` returns as a key is removed, and so is every line with the same key
    /// under other options or another comment; other lines stay as they are. A key that is not there is no error, nor is
    /// a missing file, except on Windows.
    ///
    /// Errors, after which the file is unchanged: an unknown user; a key that contains a newline or starts with `#`; a text
    /// that is neither a key nor a line of the file; a file that cannot be written.
    pub struct RemoveAuthorizedKeys {
        /// The user.
        username: String,
        /// The keys, each as `guest-ssh-get-authorized-keys` returns it, or as the type and the key alone.
        keys: Vec<String>,
    }
}
