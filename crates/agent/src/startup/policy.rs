//! Decides which commands may be asked for: the lists `allow-rpcs` and `block-rpcs`.
//!
//! A list that is mistyped must not open the agent silently. So names are separated by `,` as the original does and by
//! `;` and blanks too (there `a;b` is one unknown name that blocks nothing), and a name that is nearly a command's is
//! refused at start. What else a frozen agent may do is not known here: dispatch decides that.

use crate::startup::config::Given;
use crate::system::error::StartFailure;
use std::collections::BTreeSet;

/// The rule made from all lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// None: there is no allow list, so everything is allowed.
    allowed: Option<BTreeSet<String>>,
    blocked: BTreeSet<String>,
}

impl Policy {
    /// Makes the rule from the lists as given; what is odd about them goes to `warnings`, what is dangerous fails.
    pub fn from_lists(allow: &[Given], block: &[Given], warnings: &mut Vec<String>) -> Result<Self, StartFailure> {
        let mut policy = Self::default();
        for list in block {
            policy.blocked.extend(checked_names(list, warnings)?);
        }
        for list in allow {
            if list.text.is_empty() {
                warnings
                    .push(format!("{}: an empty list of allowed commands is no list: it forbids nothing", list.origin));
                continue;
            }
            let allowed = policy.allowed.get_or_insert_default();
            allowed.extend(checked_names(list, warnings)?);
        }
        if policy.allowed.as_ref().is_some_and(BTreeSet::is_empty) {
            warnings.push("the list of allowed commands names none: every command is refused".to_owned());
        }
        Ok(policy)
    }

    /// Whether a command may be asked for. Block beats allow.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        !self.blocked.contains(name) && self.allowed.as_ref().is_none_or(|allowed| allowed.contains(name))
    }

    /// Which list refuses a command, for the log.
    #[must_use]
    pub fn why_not(&self, name: &str) -> &'static str {
        if self.blocked.contains(name) {
            "blocked by block-rpcs"
        } else if self.allows(name) {
            "allowed"
        } else {
            "not in allow-rpcs"
        }
    }
}

/// The names of one list.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ';', ' ', '\t', '\n', '\r']).filter(|name| !name.is_empty())
}

fn checked_names(list: &Given, warnings: &mut Vec<String>) -> Result<Vec<String>, StartFailure> {
    let known = || qga_protocol::commands().map(|command| command.name);
    for name in names(&list.text) {
        if known().any(|command| command == name) {
            continue;
        }
        // Two slips: enough for a missed letter, a swapped pair, a forgotten plural; two real names are further apart
        // or both known.
        let near = known().find(|command| edit_distance(&name.to_ascii_lowercase(), command) <= 2);
        if let Some(command) = near {
            return Err(StartFailure::new(format!(
                "{}: unknown command '{name}': did you mean '{command}'?",
                list.origin
            )));
        }
        let prefixed = format!("guest-{name}");
        let hint = if known().any(|command| command == prefixed) {
            format!(": did you mean '{prefixed}'?")
        } else {
            String::new()
        };
        warnings.push(format!("{}: unknown command '{name}'{hint}", list.origin));
    }
    Ok(names(&list.text).map(str::to_owned).collect())
}

/// Lists as `--dump-conf` shows them, letter for letter as the original does: it knows the comma alone, and turns round
/// what stands between the commas of each list. Other separators stay where they are, so both read the same names again.
#[must_use]
pub fn dumped(lists: &[Given]) -> String {
    let texts = lists.iter().map(|list| list.text.as_str()).filter(|text| !text.is_empty());
    texts.flat_map(|text| text.split(',').rev()).collect::<Vec<_>>().join(",")
}

/// The candidate that a mistyped word probably means, if one is near enough.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    let near = candidates.map(|candidate| {
        // `daemonize` for `daemon`, `log` for `logfile`: one contains the other, which letter counts do not see.
        let is_part = word.len() >= 3 && (candidate.starts_with(word) || word.starts_with(candidate));
        (if is_part { 1 } else { edit_distance(word, candidate) }, candidate)
    });
    near.filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters must be inserted, removed, replaced or swapped with their neighbour.
fn edit_distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    if from.len().abs_diff(to.len()) > 8 {
        return usize::MAX; // A hostile name of a megabyte is not worth a table.
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for row in 1..=from.len() {
        let mut current = vec![row];
        for column in 1..=to.len() {
            let replaced = above[column - 1] + usize::from(from[row - 1] != to[column - 1]);
            let mut least = replaced.min(above[column] + 1).min(current[column - 1] + 1);
            if row > 1 && column > 1 && from[row - 1] == to[column - 2] && from[row - 2] == to[column - 1] {
                least = least.min(before[column - 2] + 1);
            }
            current.push(least);
        }
        before = std::mem::replace(&mut above, current);
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::startup::config::Origin;

    fn given(texts: &[&str]) -> Vec<Given> {
        texts
            .iter()
            .map(|text| Given { text: (*text).to_owned(), origin: Origin::File { path: "f".into(), line: 3 } })
            .collect()
    }

    fn policy(allow: &[&str], block: &[&str]) -> Result<(Policy, Vec<String>), String> {
        let mut warnings = Vec::new();
        let policy = Policy::from_lists(&given(allow), &given(block), &mut warnings);
        policy.map(|policy| (policy, warnings)).map_err(|failure| failure.text)
    }

    #[test]
    fn block_beats_allow_and_no_list_allows_everything() {
        for (allow, block, name, reason) in [
            (&[][..], &[][..], "guest-exec", "allowed"),
            (&[], &["guest-exec"], "guest-exec", "blocked by block-rpcs"),
            (&[], &["guest-exec"], "guest-ping", "allowed"),
            (&["guest-ping"], &[], "guest-ping", "allowed"),
            (&["guest-ping"], &[], "guest-exec", "not in allow-rpcs"),
            (&["guest-ping"], &["guest-ping"], "guest-ping", "blocked by block-rpcs"),
            (&["guest-ping", "guest-info"], &[], "guest-info", "allowed"),
            (&[""], &[""], "guest-exec", "allowed"),
            (&["", "guest-ping"], &[], "guest-exec", "not in allow-rpcs"),
            (&[","], &[], "guest-ping", "not in allow-rpcs"),
            (&[" "], &[], "guest-ping", "not in allow-rpcs"),
            (&["guest-no-such-thing"], &[], "guest-ping", "not in allow-rpcs"),
        ] {
            let (policy, _) = policy(allow, block).unwrap();
            assert_eq!(policy.why_not(name), reason, "{allow:?} {block:?} {name}");
            assert_eq!(policy.allows(name), reason == "allowed");
        }
    }

    #[test]
    fn a_block_list_with_semicolons_or_blanks_blocks_what_it_names() {
        for list in [
            "guest-ping,guest-exec",
            "guest-ping;guest-exec",
            "guest-ping, guest-exec",
            "guest-ping guest-exec ",
            ";guest-ping;;\tguest-exec,",
        ] {
            let (policy, warnings) = policy(&[], &[list]).unwrap();
            assert!(!policy.allows("guest-ping") && !policy.allows("guest-exec"), "{list:?}");
            assert_eq!(warnings, [""; 0]);
        }
    }

    #[test]
    fn a_mistyped_name_is_refused_and_a_strange_one_warned_about() {
        for (name, meant) in [
            ("guest-exce", "guest-exec"),
            ("guest_exec", "guest-exec"),
            ("Guest-Exec", "guest-exec"),
            ("guest-file-opn", "guest-file-open"),
        ] {
            assert_eq!(
                policy(&[], &[name]).unwrap_err(),
                format!("f:3: unknown command '{name}': did you mean '{meant}'?")
            );
            assert_eq!(
                policy(&[name], &[]).unwrap_err(),
                format!("f:3: unknown command '{name}': did you mean '{meant}'?")
            );
        }
        assert_eq!(policy(&[], &["guest-no-such-thing"]).unwrap().1, ["f:3: unknown command 'guest-no-such-thing'"]);
        assert_eq!(policy(&[], &["exec"]).unwrap().1, ["f:3: unknown command 'exec': did you mean 'guest-exec'?"]);
    }

    #[test]
    fn an_empty_allow_list_is_warned_about() {
        let (_, warnings) = policy(&[""], &[]).unwrap();
        assert_eq!(warnings, ["f:3: an empty list of allowed commands is no list: it forbids nothing"]);
        let (_, warnings) = policy(&[","], &[]).unwrap();
        assert_eq!(warnings, ["the list of allowed commands names none: every command is refused"]);
    }

    #[test]
    fn no_two_commands_are_so_alike_that_one_is_taken_for_a_slip_of_the_other() {
        for command in qga_protocol::commands() {
            assert!(policy(&[command.name], &[command.name]).is_ok(), "{}", command.name);
        }
    }

    #[test]
    fn lists_are_dumped_letter_for_letter_as_by_the_original() {
        for (lists, text) in [
            (&["a,b", "c,d"][..], "b,a,d,c"),
            (&[], ""),
            (&[""], ""),
            (&[","], ","),
            (&[" "], " "),
            (&["a;b c"], "a;b c"),
            (&["a, b;c ,d"], "d, b;c ,a"),
            (&["a,,b,"], ",b,,a"),
            (&["", "a", "", " "], "a, "),
        ] {
            assert_eq!(dumped(&given(lists)), text, "{lists:?}");
        }
    }

    #[test]
    fn a_swap_is_one_slip() {
        for (from, to, distance) in
            [("", "", 0), ("abc", "acb", 1), ("abc", "", 3), ("kitten", "sitting", 3), ("a", "a", 0)]
        {
            assert_eq!(edit_distance(from, to), distance, "{from} {to}");
        }
    }
}
