//! Holds the differences that only a virtual machine, or a test of the agent, shows against what shows them.

use std::fs;
use std::path::Path;

#[test]
fn every_difference_shown_in_the_machine_has_its_case() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the repository");
    let list = fs::read_to_string(repository.join("crates/compliance/deviations.toml")).expect("the list can be read");
    let cases: String = fs::read_dir(repository.join("xtask/src/vm/cases"))
        .expect("the cases can be listed")
        .map(|entry| fs::read_to_string(entry.expect("a readable directory").path()).expect("a readable case"))
        .collect();
    let mut count = 0;
    for names in list.split("\nvm = [").skip(1) {
        let names = names.split(']').next().expect("a closed list");
        for name in names.split('"').skip(1).step_by(2) {
            count += 1;
            assert!(cases.contains(&format!("name: \"{name}\"")), "deviations.toml names `{name}`, which is no case");
        }
    }
    assert!(count > 0, "the list names no case of the machine");
}

#[test]
fn every_difference_shown_by_a_test_of_the_agent_has_that_test() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the repository");
    let list = fs::read_to_string(repository.join("crates/compliance/deviations.toml")).expect("the list can be read");
    let tests = fs::read_to_string(repository.join("crates/agent/tests/freeze.rs")).expect("the tests can be read");
    let mut count = 0;
    for names in list.split("\ntests = [").skip(1) {
        let names = names.split(']').next().expect("a closed list");
        for name in names.split('"').skip(1).step_by(2) {
            count += 1;
            assert!(tests.contains(&format!("fn {name}()")), "deviations.toml names `{name}`, which is no test");
        }
    }
    assert!(count > 0, "the list names no test of the agent");
}
