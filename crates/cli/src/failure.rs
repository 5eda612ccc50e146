//! Failures as people and scripts see them: what happened, what to do next, an exit code.

use std::io;

use serde_json::{Value, json};

use crate::exit_code::{self, Code};
use crate::output::text::printable;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The client library's error.
    Client(qga_client::Error),
    /// One of this program's own.
    Told {
        /// The exit code.
        code: Code,
        /// What happened.
        text: String,
        /// What to do next; may be empty.
        advice: String,
    },
    /// The rest has been said, or is not ours to say: the exit code of a program in the guest.
    Silent(u8),
    /// Nobody reads our output any more.
    OutputClosed,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn told(code: Code, text: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice: String = advice.into();
        Self::Told { code, text: text.into(), advice: printable(&advice) }
    }

    pub fn usage(text: impl Into<String>) -> Self {
        Self::told(Code::Usage, text, "")
    }

    /// Something of this host failed.
    pub fn host(act: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        let code = match error.kind() {
            io::ErrorKind::StorageFull => Code::Full,
            io::ErrorKind::PermissionDenied => Code::NotPermitted,
            io::ErrorKind::NotFound => Code::NoSuchThing,
            _ => Code::HostFailed,
        };
        Self::told(code, format!("cannot {act}: {error}"), "")
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        /// As if SIGPIPE had ended it.
        const OUTPUT_CLOSED: u8 = 141;
        match self {
            Self::Client(error) => exit_code::of_kind(error.kind()),
            Self::Told { code, .. } => code.number(),
            Self::Silent(code) => *code,
            Self::OutputClosed => OUTPUT_CLOSED,
        }
    }

    /// What happened, in one line and without control characters: a guest may have written it. Nothing where there is nothing to say.
    pub fn text(&self) -> Option<String> {
        match self {
            // The host's or the library's words are the cause; the reader wants it in one line.
            Self::Client(error) => Some(printable(&one_line(&error.to_string()))),
            Self::Told { text, .. } => Some(printable(text)),
            Self::Silent(_) | Self::OutputClosed => None,
        }
    }

    /// What to do next.
    pub fn advice(&self) -> &str {
        match self {
            Self::Client(error) => error.kind().advice(),
            Self::Told { advice, .. } => advice,
            Self::Silent(_) | Self::OutputClosed => "",
        }
    }

    /// A word that scripts can branch on.
    pub fn word(&self) -> String {
        match self {
            Self::Client(error) => kebab(&format!("{:?}", error.kind())),
            Self::Told { code, .. } => kebab(&format!("{code:?}")),
            Self::Silent(_) => "exit-code".to_owned(),
            Self::OutputClosed => "output-closed".to_owned(),
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "kind": self.word(),
            "exit-code": self.exit_code(),
            "message": self.text(),
            "advice": Some(self.advice()).filter(|advice| !advice.is_empty()),
        })
    }
}

impl From<qga_client::Error> for Failure {
    fn from(error: qga_client::Error) -> Self {
        if let qga_client::Error::Local { source, .. } = &error
            && source.kind() == io::ErrorKind::BrokenPipe
        {
            return Self::OutputClosed;
        }
        Self::Client(error)
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// `NoSuchFile` as `no-such-file`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_a_word_a_code_and_an_advice() {
        let failure = Failure::from("nowhere".parse::<qga_client::Target>().unwrap_err());
        assert_eq!(failure.word(), "bad-target");
        assert_eq!(failure.exit_code(), 64);
        assert!(failure.advice().contains("libvirt:DOMAIN"));
        assert_eq!(failure.to_json()["kind"], "bad-target");
    }

    #[test]
    fn what_a_guest_wrote_does_not_steer_the_terminal() {
        let (act, cause) = ("run x in the guest".to_owned(), "bad\x1b[2J\u{9b}1m\nworse".to_owned());
        let failure = Failure::from(qga_client::Error::Guest { act, cause });
        assert_eq!(failure.text().unwrap(), "cannot run x in the guest: bad\\x1b[2J\\x9b1m; worse");
        let told = Failure::told(Code::Failed, "\x07", "\x1bc");
        assert_eq!((told.text().unwrap(), told.advice()), ("\\x07".to_owned(), "\\x1bc"));
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_to_speak_of() {
        let failure = Failure::host("write", &io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.text(), failure.exit_code()), (None, 141));
    }
}
