//! Knows where ours differs from the original on purpose, and why: the list in `deviations.toml`.
//!
//! A case that differs states both answers: in text by lines marked `[original]` and `[ours]`, in code by
//! [`deviation`]. `tests/deviations.rs` compares the cases with the list, both ways.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::subject::Kind;

/// A wanted difference.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deviation {
    /// The names of the cases that show it.
    #[serde(default)]
    pub cases: Vec<String>,
    /// The names of cases of the virtual machine that show it, where asking would harm the machine that tests run on.
    #[serde(default)]
    pub vm: Vec<String>,
    /// The names of the agent's own tests that show it, for the same reason.
    #[serde(default)]
    pub tests: Vec<String>,
    /// What ours does.
    pub ours: String,
    /// Why that is better for the user and harmless for clients.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    deviation: Vec<Deviation>,
}

/// All entries of `deviations.toml` by the name of the case.
///
/// # Panics
/// When the file is missing, malformed, names a case twice or leaves a text empty.
#[must_use]
pub fn listed() -> BTreeMap<String, Deviation> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deviations.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let list: List = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut by_case = BTreeMap::new();
    for entry in list.deviation {
        let texts_are_there = ![entry.ours.as_str(), entry.reason.as_str()].contains(&"");
        let is_proved = !entry.cases.is_empty() || !entry.vm.is_empty() || !entry.tests.is_empty();
        assert!(texts_are_there && is_proved, "deviations.toml: say more in {entry:?}");
        for case in &entry.cases {
            let earlier = by_case.insert(case.clone(), entry.clone());
            assert!(earlier.is_none(), "deviations.toml: `{case}` is there twice");
        }
    }
    by_case
}

/// A case in code that expects something else of ours. The name must be a literal: the list is checked against the
/// source text.
///
/// # Panics
/// When the list has no such entry.
#[must_use]
pub fn deviation(case: &str) -> Choice<'_> {
    assert!(listed().contains_key(case), "deviations.toml has no entry for `{case}`");
    Choice { case }
}

/// The point where the two agents part.
#[derive(Debug)]
pub struct Choice<'a> {
    case: &'a str,
}

impl Choice<'_> {
    /// The name of the case.
    #[must_use]
    pub fn case(&self) -> &str {
        self.case
    }

    /// What to expect of the agent under test.
    ///
    /// # Panics
    /// When the two do not differ.
    pub fn pick<T: PartialEq>(&self, kind: Kind, original: T, ours: T) -> T {
        assert!(original != ours, "`{}` expects the same of both: it deviates no more", self.case);
        match kind {
            Kind::Original => original,
            Kind::Ours => ours,
        }
    }
}
