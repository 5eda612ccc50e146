//! What a command is: its name, its arguments, its reply and the rules that hold for it.
//!
//! The protocol has one list of commands, kept family by family (`session.rs`, `file.rs`, ...). A command is a Rust
//! struct whose fields are its arguments; [`command!`](macro@crate::command) writes the struct, its [`Command`] impl and the
//! description ([`Info`]) that dispatch, `guest-info`, help, manual and completions are made from. So nothing about a
//! command is written twice.
//!
//! This module knows no particular command and does no I/O.

use std::borrow::Cow;

use serde::Serialize;

/// A command of the QGA protocol. The implementing struct is the command's arguments.
pub trait Command: Serialize {
    /// What the host receives under `return`.
    type Reply: Serialize;
    /// Name, version, rules and documentation.
    const INFO: Info;
}

/// Everything that is known of a command apart from what it does.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// The name on the wire, `guest-file-open`.
    pub name: &'static str,
    /// The QEMU version that introduced it, `0.15.0`.
    pub since: &'static str,
    /// The doc comment, one line an element, as it stands in the source.
    pub doc: &'static [&'static str],
    /// The arguments, in the order in which they are checked.
    pub arguments: &'static [Argument],
    /// What comes back.
    pub reply: Type,
    /// The rules that dispatch follows.
    pub rules: Rules,
}

/// How dispatch treats a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A success is answered. False for shutdown and suspend: a failure alone is answered.
    pub success_response: bool,
    /// Served while the file systems are frozen, whatever the allow and block lists say.
    pub while_frozen: bool,
    /// Takes no longer than a few microseconds and waits for nothing: may run on the thread that reads requests.
    pub immediate: bool,
    /// Changes the machine's state: holds the agent's one exclusive lock while it runs.
    pub exclusive: bool,
    /// Finds out on a channel with a past who answers: it is answered even while another command of the client hangs.
    pub resynchronises: bool,
    /// Its reply begins with the byte 0xFF.
    pub delimited: bool,
    /// Ends a freeze: that it was asked for is known before its turn comes.
    pub ends_freeze: bool,
    /// The arguments, by their names on the wire, whose values no log may show: secrets, and what clients transfer.
    pub secret: &'static [&'static str],
    /// Where the original has it.
    pub platforms: Platforms,
}

impl Rules {
    /// An ordinary command: answered, refused while frozen, run by a worker, everywhere.
    pub const ORDINARY: Self = Self {
        success_response: true,
        while_frozen: false,
        immediate: false,
        exclusive: false,
        resynchronises: false,
        delimited: false,
        ends_freeze: false,
        secret: &[],
        platforms: Platforms::ALL,
    };
}

/// The systems on which the original has a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platforms {
    /// Linux.
    pub linux: bool,
    /// Windows.
    pub windows: bool,
    /// FreeBSD and its relatives.
    pub bsd: bool,
}

impl Platforms {
    /// Everywhere.
    pub const ALL: Self = Self { linux: true, windows: true, bsd: true };
    /// Linux alone.
    pub const LINUX: Self = Self { linux: true, windows: false, bsd: false };
    /// Windows alone.
    pub const WINDOWS: Self = Self { linux: false, windows: true, bsd: false };
    /// Linux and Windows, not BSD.
    pub const NOT_BSD: Self = Self { linux: true, windows: true, bsd: false };
}

/// One argument of a command.
#[derive(Debug, Clone, Copy)]
pub struct Argument {
    /// The field's name in Rust.
    pub field: &'static str,
    /// Its type on the wire; [`Type::Optional`] if it may be left out.
    pub type_: Type,
    /// The doc comment, one line an element.
    pub doc: &'static [&'static str],
}

impl Argument {
    /// The argument's name on the wire: `buf-b64` for the field `buf_b64`.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        let field = self.field.trim_start_matches("r#");
        if field.contains('_') { Cow::Owned(field.replace('_', "-")) } else { Cow::Borrowed(field) }
    }
}

/// A type of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Nothing: the empty object `{}`.
    Nothing,
    /// `int`: signed 64 bit.
    Integer,
    /// `uint64`.
    Unsigned,
    /// `number`: a double.
    Number,
    /// `bool`.
    Boolean,
    /// `str`.
    Text,
    /// `str` that carries base64.
    Base64,
    /// A list of something.
    List(&'static Type),
    /// May be absent.
    Optional(&'static Type),
    /// An object, enumeration or alternate of the schema, by its name there.
    Named(&'static str),
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("{}"),
            Self::Integer => f.write_str("int"),
            Self::Unsigned => f.write_str("uint64"),
            Self::Number => f.write_str("number"),
            Self::Boolean => f.write_str("bool"),
            Self::Text | Self::Base64 => f.write_str("str"),
            Self::List(element) => write!(f, "[{element}]"),
            Self::Optional(inner) => write!(f, "{inner}?"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// A Rust type that stands for a type of the wire.
pub trait Wire {
    /// Which one.
    const TYPE: Type;
}

macro_rules! wire {
    ($($rust:ty => $wire:expr),+ $(,)?) => { $(impl Wire for $rust { const TYPE: Type = $wire; })+ };
}
wire! {
    i64 => Type::Integer, u64 => Type::Unsigned, u16 => Type::Unsigned, f64 => Type::Number, bool => Type::Boolean,
    String => Type::Text, &str => Type::Text, Cow<'_, str> => Type::Text,
}
impl<T: Wire> Wire for Vec<T> {
    const TYPE: Type = Type::List(&T::TYPE);
}
impl<T: Wire> Wire for Option<T> {
    const TYPE: Type = Type::Optional(&T::TYPE);
}

/// What a reply says where the schema has a fixed choice: one that is known here, or what a newer agent says. Replies alone
/// hold it; an argument is one of those that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Open<T, O = String> {
    /// One of those of the schema.
    Known(T),
    /// Another one, as it came.
    Other(O),
}

impl<T, O> Open<T, O> {
    /// The value, if it is one of those of the schema.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

impl<T, O> From<T> for Open<T, O> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: PartialEq, O> PartialEq<T> for Open<T, O> {
    fn eq(&self, other: &T) -> bool {
        self.known() == Some(other)
    }
}

impl<T: Wire, O> Wire for Open<T, O> {
    const TYPE: Type = T::TYPE;
}

/// The reply of a command that returns nothing: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Nothing {}

impl Wire for Nothing {
    const TYPE: Type = Type::Nothing;
}

/// A family of commands: those that share a protocol file, an agent module and a compliance file of the same name.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// `file`, `exec`, ...
    pub name: &'static str,
    /// Its commands.
    pub commands: &'static [Info],
}

/// Defines a command: the struct of its arguments and its [`Command`] impl.
///
/// The first lines are the command's name, the version that introduced it, its reply and, where it is not an
/// [ordinary](Rules::ORDINARY) one, the rules that differ. The struct follows as it would stand alone; its doc comments
/// are the manual.
///
/// ```
/// use qga_protocol::{Command, command};
///
/// command! {
///     "guest-example", since "10.2", reply i64, rules { immediate: true },
///     /// Doubles a number.
///     pub struct Example {
///         /// What to double.
///         number: i64,
///         /// How often; once if absent.
///         repeat_count: Option<i64>,
///     }
/// }
/// assert_eq!(Example::INFO.name, "guest-example");
/// assert_eq!(Example::INFO.arguments[1].name(), "repeat-count");
/// ```
#[macro_export]
macro_rules! command {
    (
        $name:literal, since $since:literal, reply $reply:ty $(, rules { $($rule:ident : $value:expr),+ $(,)? })? ,
        $(#[doc = $doc:literal])+
        pub struct $command:ident $(<$lifetime:lifetime>)? {
            $( $(#[doc = $field_doc:literal])+ $(#[serde($($serde:tt)*)])? $field:ident : $type:ty ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $command $(<$lifetime>)? {
            $(
                $(#[doc = $field_doc])+
                $(#[serde($($serde)*)])?
                pub $field: $type,
            )*
        }

        impl $(<$lifetime>)? $crate::command::Command for $command $(<$lifetime>)? {
            type Reply = $reply;
            const INFO: $crate::command::Info = $crate::command::Info {
                name: $name,
                since: $since,
                doc: &[$($doc),+],
                arguments: &[$($crate::command::Argument {
                    field: stringify!($field),
                    type_: <$type as $crate::command::Wire>::TYPE,
                    doc: &[$($field_doc),+],
                }),*],
                reply: <$reply as $crate::command::Wire>::TYPE,
                #[allow(clippy::needless_update)]
                rules: $crate::command::Rules { $($($rule: $value,)+)? ..$crate::command::Rules::ORDINARY },
            };
        }
    };
}

/// Defines an object of the schema: a struct in kebab-case whose absent members are left out of the message.
#[macro_export]
macro_rules! object {
    (
        $(#[doc = $doc:literal])+
        pub struct $object:ident as $wire_name:literal {
            $( $(#[doc = $field_doc:literal])+ $(#[serde($($serde:tt)*)])? $field:ident : $type:ty ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $object {
            $( $(#[doc = $field_doc])+ $(#[serde($($serde)*)])? pub $field: $type, )*
        }
        impl $crate::command::Wire for $object {
            const TYPE: $crate::command::Type = $crate::command::Type::Named($wire_name);
        }
    };
}

/// Defines an enumeration of the schema: unit variants in kebab-case.
#[macro_export]
macro_rules! enumeration {
    (
        $(#[doc = $doc:literal])+
        pub enum $enumeration:ident as $wire_name:literal {
            $( $(#[doc = $variant_doc:literal])+ $(#[serde($($serde:tt)*)])? $variant:ident ),+ $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $enumeration { $( $(#[doc = $variant_doc])+ $(#[serde($($serde)*)])? $variant, )+ }
        impl $crate::command::Wire for $enumeration {
            const TYPE: $crate::command::Type = $crate::command::Type::Named($wire_name);
        }
    };
}
