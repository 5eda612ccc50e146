//! The QEMU guest agent protocol (QGA): everything that can be said, as types, and the way it is written on the wire.
//!
//! * [`mod@command`] says what a command is; the family modules ([`session`], [`mod@file`], [`exec`], ...) list all of them with
//!   their arguments, replies and documentation. [`FAMILIES`] is the one list that dispatch, `guest-info`, help and
//!   manual are made from.
//! * [`stream::Decoder`] turns bytes into [`message::Request`]s, in the dialect and with the limits of the original.
//! * [`args`] turns a request's arguments into a command, with the original's wording for what is wrong with them.
//! * [`encode`] writes replies.
//!
//! The crate does no I/O, starts no thread, asks no clock and says no `unsafe`: feed it bytes from wherever they come.
//!
//! ```
//! use qga_protocol::{message, stream::{Decoder, Event}};
//!
//! let mut decoder = Decoder::default();
//! let mut bytes: &[u8] = br#"{"execute": "guest-sync", "arguments": {"id": 7}, "id": "a"}"#;
//! let Some(Event::Request(request)) = decoder.next(&mut bytes) else { panic!("one whole request") };
//! assert_eq!(request.name(), "guest-sync");
//! let sync: qga_protocol::session::Sync = request.arguments().unwrap();
//! let mut reply = Vec::new();
//! message::write_success(&mut reply, &sync.id, request.id())?;
//! assert_eq!(reply, b"{\"return\": 7, \"id\": \"a\"}\n");
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod args;
pub mod base64;
pub mod command;
pub mod encode;
pub mod message;
pub mod stream;
mod syntax;
pub mod value;

pub mod accounts;
pub mod cpu;
pub mod devices;
pub mod exec;
pub mod file;
pub mod fsfreeze;
pub mod identity;
pub mod memory;
pub mod network;
pub mod power;
pub mod session;
pub mod storage;
pub mod time;

pub use command::{Command, Family, Info, Nothing};

/// All families of commands. Their order is that of the manual.
pub const FAMILIES: &[Family] = &[
    session::FAMILY,
    file::FAMILY,
    exec::FAMILY,
    fsfreeze::FAMILY,
    storage::FAMILY,
    network::FAMILY,
    cpu::FAMILY,
    memory::FAMILY,
    power::FAMILY,
    time::FAMILY,
    identity::FAMILY,
    accounts::FAMILY,
    devices::FAMILY,
];

/// Every command of the protocol, on whatever platform, in the order of [`FAMILIES`].
pub fn commands() -> impl Iterator<Item = &'static Info> {
    FAMILIES.iter().flat_map(|family| family.commands)
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn secrets_are_arguments_that_their_command_has() {
        for info in commands() {
            for secret in info.rules.secret {
                let is_there = info.arguments.iter().any(|argument| argument.name() == *secret);
                assert!(is_there, "{} has no argument {secret}", info.name);
            }
        }
    }

    #[test]
    fn whatever_is_called_a_password_or_carries_bytes_is_a_secret() {
        for info in commands() {
            for argument in info.arguments {
                let name = argument.name();
                let must_be = name.contains("password") || name.contains("key") || name.ends_with("b64");
                assert!(!must_be || info.rules.secret.contains(&&*name), "{}: {name}", info.name);
            }
        }
    }
}
