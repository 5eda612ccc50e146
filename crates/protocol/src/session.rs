//! Being heard, and knowing who answers: `guest-sync`, `guest-sync-delimited`, `guest-ping`, `guest-info`.
//!
//! A channel outlives its clients, so a client may find the rest of its predecessor's conversation on it. It starts
//! with a sync of its own making and drops what comes before that reply. These four are served at any time, frozen
//! or not.
//!
//! The family leaves out how bytes become messages: `stream.rs` decodes and encodes, and sends the sentinel byte.

use crate::command::{Command, Family, Nothing};
use crate::{command, object};

/// The family's commands.
pub const FAMILY: Family =
    Family { name: "session", commands: &[SyncDelimited::INFO, Sync::INFO, Ping::INFO, GetInfo::INFO] };

command! {
    "guest-sync-delimited", since "1.1", reply i64,
    rules { while_frozen: true, immediate: true, resynchronises: true, delimited: true },
    /// Returns the number it was given, and marks the start of the reply.
    ///
    /// The byte 0xFF, which occurs in no message, is sent directly before the reply: a client that has just connected
    /// drops everything up to it. A client may send 0xFF before its request in turn; the agent then drops what it has
    /// of an unfinished message, and reports it as an error that stands before the mark.
    ///
    /// An error reply carries no mark.
    pub struct SyncDelimited {
        /// Any number that the client will recognise, best a random one.
        id: i64,
    }
}

command! {
    "guest-sync", since "0.15.0", reply i64, rules { while_frozen: true, immediate: true, resynchronises: true },
    /// Returns the number it was given.
    ///
    /// A client that has just connected drops every reply until the one with its own number. This does not help when
    /// half a reply is left on the channel; `guest-sync-delimited` does.
    pub struct Sync {
        /// Any number that the client will recognise, best a random one.
        id: i64,
    }
}

command! {
    "guest-ping", since "0.15.0", reply Nothing, rules { while_frozen: true, immediate: true },
    /// Does nothing; that it answers is the answer.
    pub struct Ping {}
}

command! {
    "guest-info", since "0.15.0", reply AgentInfo, rules { while_frozen: true, immediate: true },
    /// Returns the agent's version and its commands.
    pub struct GetInfo {}
}

object! {
    /// What `guest-info` returns.
    pub struct AgentInfo as "GuestAgentInfo" {
        /// The version, which clients compare as numbers: `10.2.0`. The first two say which level of the protocol the
        /// agent has.
        version: String,
        /// The commands that the agent has, in no particular order. Not sent before 1.1.
        #[serde(rename = "supported_commands", default)]
        supported_commands: Vec<CommandInfo>,
    }
}

object! {
    /// A command in the reply of `guest-info` (since 1.1).
    pub struct CommandInfo as "GuestAgentCommandInfo" {
        /// Its name.
        name: String,
        /// Whether it would be served now: false if the allow and block lists exclude it, or if the file systems are
        /// frozen and it is none of those that are served then.
        enabled: bool,
        /// Whether its success is answered (since 1.7). False for shutdown and suspend: only their errors are.
        #[serde(default = "answered")]
        success_response: bool,
    }
}

/// The value of `success-response` for an agent that is too old to send it.
const fn answered() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::{AgentInfo, CommandInfo};

    #[test]
    fn info_keeps_the_underscore_of_its_list() {
        let info = AgentInfo {
            version: "10.2.0".to_owned(),
            supported_commands: vec![CommandInfo {
                name: "guest-shutdown".to_owned(),
                enabled: true,
                success_response: false,
            }],
        };
        let text = concat!(
            r#"{"version":"10.2.0","supported_commands":["#,
            r#"{"name":"guest-shutdown","enabled":true,"success-response":false}]}"#,
        );
        assert_eq!(serde_json::to_string(&info).unwrap(), text);
        assert_eq!(serde_json::from_str::<AgentInfo>(text).unwrap(), info);
    }

    #[test]
    fn info_of_old_agents_is_understood() {
        let oldest: AgentInfo = serde_json::from_str(r#"{"version":"0.15.0"}"#).unwrap();
        assert!(oldest.supported_commands.is_empty());
        let older: CommandInfo = serde_json::from_str(r#"{"name":"guest-ping","enabled":true}"#).unwrap();
        assert!(older.success_response);
    }
}
