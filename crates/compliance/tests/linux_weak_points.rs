//! The table of weak points on Linux names proofs that exist. The proofs themselves stand with their families.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use qga_compliance::conversation::parse;

/// How many weak points there are.
const ROWS: usize = 48;
/// Rows in which this agent does as the original does, on purpose.
const THE_SAME: [usize; 2] = [15, 34];

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a directory with an ending.
fn files(directory: PathBuf, ending: &str) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![directory]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.expect("the directory can be read").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    found
}

fn texts(directory: &str, ending: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(directory);
    files(directory, ending).iter().map(|path| read(path)).collect()
}

/// Where proofs may be.
struct Proofs {
    case_texts: BTreeSet<String>,
    suite: String,
    agent: String,
    machine: String,
    trees: BTreeSet<String>,
}

impl Proofs {
    fn exist(&self, name: &str) -> bool {
        if name.contains('.') {
            return self.trees.contains(name);
        }
        // A name with blanks is a case of the suite; the suite's own file here names none.
        if name.contains(' ') {
            return self.case_texts.contains(name) || self.suite.contains(&format!("\"{name}\""));
        }
        self.agent.contains(&format!("fn {name}(")) || self.machine.contains(&format!("name: \"{name}\""))
    }
}

#[test]
fn every_proof_in_the_table_exists() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let trees = files(manifest.join("../agent/tests/trees"), "tree");
    let proofs = Proofs {
        case_texts: files(manifest.join("cases"), "txt")
            .iter()
            .flat_map(|path| parse("", &read(path)))
            .map(|case| case.name)
            .collect(),
        suite: texts("crates/compliance/tests", "rs"),
        agent: texts("crates/agent/src", "rs") + &texts("crates/agent/tests", "rs"),
        machine: texts("xtask/src/vm/cases", "rs"),
        trees: trees.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect(),
    };
    // Put together here, as this file is a part of the suite.
    let unknown = ["nothing", "of", "this", "name"];
    for name in [unknown.join(" "), unknown.join("_"), unknown.join("-") + ".tree"] {
        assert!(!proofs.exist(&name), "{name:?} is found");
    }

    let table = include_str!("../../../docs/linux-weak-points.md");
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| ") && line[2..].starts_with(|sign: char| sign.is_ascii_digit()));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
    assert_eq!(rows.len(), ROWS, "a row for each weak point");
    for (index, row) in rows.iter().enumerate() {
        let number = index + 1;
        let [found, original, ours, named] = row[..] else { panic!("{row:?} has not four columns") };
        assert_eq!(found, number.to_string(), "the rows are in order");
        assert!(!original.is_empty() && !ours.is_empty(), "{number} says nothing");
        let proven_by: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!proven_by.is_empty() || THE_SAME.contains(&number), "{number} names no proof");
        for name in proven_by {
            assert!(proofs.exist(name), "{number}: there is no proof `{name}`");
        }
    }
}
