//! The list of wanted differences is complete and has nothing too much, and every case file is run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use qga_compliance::conversation::{Case, parse};
use qga_compliance::{Kind, deviations};

#[test]
fn every_difference_has_its_reason_and_every_reason_its_difference() {
    let named: BTreeSet<String> = names_in_text().chain(names_in_code()).collect();
    let listed: BTreeSet<String> = deviations::listed().into_keys().collect();
    let unexplained: Vec<&String> = named.difference(&listed).collect();
    let stale: Vec<&String> = listed.difference(&named).collect();
    assert!(unexplained.is_empty(), "these cases need an entry in deviations.toml: {unexplained:#?}");
    assert!(stale.is_empty(), "these entries of deviations.toml belong to no case: {stale:#?}");
}

#[test]
fn a_case_that_deviates_expects_two_different_things() {
    for (_, case) in all_cases().filter(|(_, case)| case.deviates()) {
        let differs = case.seen_by(Kind::Original) != case.seen_by(Kind::Ours);
        assert!(differs, "`{}` expects the same of both: it deviates no more", case.name);
    }
}

#[test]
fn every_case_file_is_run_by_a_test() {
    let sources: String = test_sources().collect();
    for path in files("cases", "txt") {
        let table = stem(&path);
        assert!(
            sources.contains(&format!("check(\"{table}\")")) || sources.contains(&format!("check_with(\"{table}\""))
        );
    }
}

#[test]
fn no_two_cases_have_the_same_name() {
    let mut seen = BTreeSet::new();
    for (table, case) in all_cases() {
        assert!(seen.insert(case.name.clone()), "`{}` in cases/{table}.txt is there twice", case.name);
    }
}

fn names_in_text() -> impl Iterator<Item = String> {
    all_cases().filter(|(_, case)| case.deviates()).map(|(_, case)| case.name)
}

/// The literals behind `deviation(`.
fn names_in_code() -> impl Iterator<Item = String> {
    test_sources().flat_map(|source| {
        let calls = source.split("deviation(\"").skip(1);
        calls.filter_map(|call| call.split_once('"').map(|(name, _)| name.to_owned())).collect::<Vec<_>>()
    })
}

fn all_cases() -> impl Iterator<Item = (String, Case)> {
    files("cases", "txt").into_iter().flat_map(|path| {
        let table = stem(&path);
        let cases = parse(&table, &read(&path));
        cases.into_iter().map(move |case| (table.clone(), case)).collect::<Vec<_>>()
    })
}

/// All tests but this one, which speaks of the calls it looks for.
fn test_sources() -> impl Iterator<Item = String> {
    files("tests", "rs").into_iter().filter(|path| stem(path) != "deviations").map(|path| read(&path))
}

fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.expect("the directory can be read").path());
    paths.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
