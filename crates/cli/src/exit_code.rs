//! Exit codes: one list, which the help, the manual pages and `docs/qga.md` print.

use qga_client::Kind;

/// Why the program ends as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Success = 0,
    Failed = 1,
    Usage = 64,
    NoSuchThing = 66,
    NotReached = 69,
    Refused = 70,
    FailedInGuest = 71,
    Full = 73,
    HostFailed = 74,
    TryAgain = 75,
    NotUnderstood = 76,
    NotPermitted = 77,
    TimeLimit = 124,
    Stopped = 130,
}

impl Code {
    pub const ALL: [Self; 14] = [
        Self::Success,
        Self::Failed,
        Self::Usage,
        Self::NoSuchThing,
        Self::NotReached,
        Self::Refused,
        Self::FailedInGuest,
        Self::Full,
        Self::HostFailed,
        Self::TryAgain,
        Self::NotUnderstood,
        Self::NotPermitted,
        Self::TimeLimit,
        Self::Stopped,
    ];

    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "done",
            Self::Failed => {
                "several targets failed for different reasons, a copy left something out, or a question was answered with no"
            }
            Self::Usage => "the command line or the name of a target is wrong",
            Self::NoSuchThing => "no such target; no such file or program in the guest",
            Self::NotReached => "the agent is not reached: nobody listens, not running, no port, not installed",
            Self::Refused => "the agent does not have the command, or refuses it: blocked, or the guest is frozen",
            Self::FailedInGuest => "the guest tried and failed",
            Self::Full => "a disk is full, in the guest or here",
            Self::HostFailed => "reading or writing failed on this side",
            Self::TryAgain => "no answer, connection lost, held by another client, changed meanwhile: try again",
            Self::NotUnderstood => "the reply is not of this protocol: probably no guest agent",
            Self::NotPermitted => "this user may not, or another user may have put the socket there",
            Self::TimeLimit => "the time limit ended the program (exec, freeze --run)",
            Self::Stopped => "stopped from the keyboard or by a signal",
        }
    }
}

/// A kind of the client library's failures as an exit code.
pub const fn of_kind(kind: Kind) -> u8 {
    kind.exit_code()
}

/// The list as text, for the help and the manual pages.
pub fn list() -> String {
    let mut text = String::from("Exit codes:\n");
    for code in Code::ALL {
        text.push_str(&format_line(code));
    }
    text.push_str(
        "\nWith `exec` and `freeze --run` the program's own exit code is passed on, 128 + N if signal N ended it,\n\
         127 if there is no such program and 126 if it could not be started for another reason.\n",
    );
    text
}

fn format_line(code: Code) -> String {
    format!("  {:>3}  {}\n", code.number(), code.meaning())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_a_documented_code() {
        let documented: Vec<u8> = Code::ALL.into_iter().map(Code::number).collect();
        for kind in Kind::ALL {
            assert!(documented.contains(&of_kind(kind)), "{kind:?} ends with {}", of_kind(kind));
        }
    }

    #[test]
    fn the_manual_has_the_same_list() {
        let manual = include_str!("../../../docs/qga.md");
        for code in Code::ALL {
            let row = format!("| {} | {} |", code.number(), code.meaning());
            assert!(manual.contains(&row), "docs/qga.md lacks the row {row}");
        }
    }
}
