//! The tables of `docs/freeze.md`, held against the machine: neither says anything that the other does not.

use std::collections::BTreeSet;

use super::{FREEZE, HOOK, HookState, Phase, Stage, THAW, recover};

const PAGE: &str = include_str!("../../../../docs/freeze.md");

/// The rows of the table with this heading, cell by cell.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, table) = PAGE.split_once(heading).expect("the page has the table");
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What is set as code.
fn codes(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn names(values: &[impl std::fmt::Debug]) -> Vec<String> {
    values.iter().map(|value| format!("{value:?}")).collect()
}

fn letter(byte: u8) -> String {
    char::from(byte).to_string()
}

const STEPS: &str = "| step | state file `qga.state.isfrozen` | guardian | if the agent is killed now |";
const FOUND: &str = "| state file | guardian | what it does |";

#[test]
fn the_page_has_the_steps_of_a_freeze_in_their_order() {
    let told: Vec<String> = rows(STEPS).iter().map(|row| codes(row[0])[0].to_owned()).collect();
    assert_eq!(told, [names(&FREEZE), names(&THAW)].concat());
    let calls: Vec<String> = names(&HOOK).iter().map(|step| format!("`{step}`")).collect();
    let sentence = format!("A hook's call is {}:", calls.join(", "));
    assert!(PAGE.replace('\n', " ").contains(&sentence), "the page does not say: {sentence}");
}

#[test]
fn the_page_has_every_letter_of_the_state_file_and_no_other() {
    let told: BTreeSet<String> =
        rows(STEPS).iter().flat_map(|row| codes(row[1])).filter(|code| code.len() == 1).map(str::to_owned).collect();
    let phases = Phase::ALL.iter().map(|(_, byte)| letter(*byte));
    let known: BTreeSet<String> = phases.chain(HookState::ALL.iter().map(|(_, byte)| letter(*byte))).collect();
    assert_eq!(told, known);
    let guardians: BTreeSet<&str> = rows(STEPS).iter().map(|row| row[2]).collect();
    assert_eq!(guardians, BTreeSet::from(["none", "at work", "frozen", "ending", "gone"]));
}

/// A state file and a guardian, by their identities.
type Pair<'a> = (Option<(&'a str, Phase)>, Option<&'a str>);

fn fits(row: &[&str], (marker, guardian): Pair<'_>) -> bool {
    let letters = codes(row[0]);
    let has_letter = |phase: Phase| letters.contains(&letter(phase.byte()).as_str());
    let is_other = matches!((marker, guardian), (Some((marker, _)), Some(guardian)) if marker != guardian);
    let fits_marker = match (row[0], marker) {
        ("none", marker) => marker.is_none(),
        ("of another identity, or not `f`", marker) => {
            is_other || marker.is_some_and(|(_, phase)| phase != Phase::Frozen)
        }
        (cell, None) => cell.ends_with("or none"),
        (_, Some((_, phase))) => has_letter(phase),
    };
    let fits_guardian = match row[1] {
        "none" => guardian.is_none(),
        "frozen" => guardian.is_some(),
        "frozen, of the same identity" => guardian.is_some() && !is_other,
        other => panic!("the test does not know the guardian '{other}'"),
    };
    fits_marker && fits_guardian
}

#[test]
fn the_page_says_of_everything_that_can_be_found_what_an_agent_does() {
    // A guardian that is not given away is waited for; only one whose freeze a host relies on is.
    let (waited, handed): (Vec<_>, Vec<_>) = rows(FOUND).into_iter().partition(|row| row[1] == "at work, or ending");
    assert_eq!(waited, [["any", "at work, or ending", "waits until it has ended"]]);
    assert!(Stage::Frozen.is_handed_over());
    assert!(!Stage::AtWork.is_handed_over() && !Stage::Ending(Phase::Thawed).is_handed_over());

    let phases = Phase::ALL.iter().flat_map(|(phase, _)| [Some(("a", *phase)), Some(("b", *phase))]);
    let mut used = BTreeSet::new();
    for marker in phases.chain([None]) {
        for guardian in [None, Some("a")] {
            let fitting: Vec<usize> = (0..handed.len()).filter(|row| fits(&handed[*row], (marker, guardian))).collect();
            let [row] = fitting[..] else { panic!("{marker:?} and {guardian:?} are in rows {fitting:?}") };
            used.insert(row);
            let told = codes(handed[row][2])[0];
            assert_eq!(told, format!("{:?}", recover(marker, guardian)), "{marker:?} and {guardian:?}");
        }
    }
    assert_eq!(used.len(), handed.len(), "a row is about nothing that can be found");
}
