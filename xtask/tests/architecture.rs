//! Holds the tree against what ARCHITECTURE.md says of it.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file that still can be known as a whole.
const FILE_LINES_MAX: usize = 600;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the repository").to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file below a directory, as paths from the repository on.
fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![repository().join(directory)];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.expect("a readable directory").path();
            if path.is_dir() && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(repository()).expect("below the repository").to_owned());
            }
        }
    }
    assert!(!found.is_empty(), "{directory} has no source files");
    found
}

/// The code of a file without its comments and its tests at the end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(repository().join(path)).expect("a readable source file");
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Each path in the first column of the code map.
fn mapped() -> Vec<String> {
    let architecture = text("ARCHITECTURE.md");
    let map = architecture.split("## Code map").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a code map");
    let cells = map.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_place_on_the_map_exists() {
    let places = mapped();
    assert!(places.len() > 20, "the map is read wrongly: {places:?}");
    for place in places {
        assert!(repository().join(&place).exists(), "ARCHITECTURE.md maps {place}, which does not exist");
    }
}

#[test]
fn every_module_of_the_agent_and_every_crate_is_on_the_map() {
    let places = mapped();
    let crates = fs::read_dir(repository().join("crates")).expect("crates").map(|entry| entry.expect("a crate").path());
    let modules = fs::read_dir(repository().join("crates/agent/src"))
        .expect("the agent")
        .map(|entry| entry.expect("a module").path());
    for path in crates.chain(modules) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.ends_with("_tests.rs") || matches!(&*name, "lib.rs" | "main.rs" | "agent.rs" | "error.rs") {
            continue;
        }
        let path = path.strip_prefix(repository()).expect("below the repository").to_string_lossy().into_owned();
        assert!(places.contains(&path), "ARCHITECTURE.md does not map {path}");
    }
}

#[test]
fn no_source_file_is_too_long_to_be_known() {
    for path in ["crates", "xtask", "fuzz"].into_iter().flat_map(sources) {
        let lines = fs::read_to_string(repository().join(&path)).expect("a readable source file").lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines, more than {FILE_LINES_MAX}", path.display());
    }
}

#[test]
fn unsafe_stands_in_one_crate() {
    for path in ["crates", "xtask"].into_iter().flat_map(sources) {
        if path.starts_with("crates/sys") || path.ends_with("tests/architecture.rs") {
            continue;
        }
        let code = code(&path);
        assert!(!code.contains("unsafe "), "{} says unsafe", path.display());
        assert!(!code.contains("allow(unsafe_code)"), "{} allows unsafe", path.display());
    }
}

#[test]
fn the_protocol_does_no_io() {
    for path in sources("crates/protocol/src") {
        let code = code(&path);
        for word in ["std::fs", "std::net", "std::os", "std::thread", "std::process", "std::time", "std::env"] {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
    for library in ["rustix", "libc", "tokio"] {
        let manifest = text("crates/protocol/Cargo.toml");
        assert!(!manifest.contains(library), "the protocol depends on {library}");
    }
}

#[test]
fn black_boxes_do_not_depend_on_the_agent() {
    for name in ["compliance", "client"] {
        let manifest = text(&format!("crates/{name}/Cargo.toml"));
        assert!(!manifest.contains("qga-agent"), "{name} depends on the agent");
    }
}

#[test]
fn families_have_the_same_name_everywhere() {
    let commands = text("crates/agent/src/commands/mod.rs");
    let served = commands.split("::ENTRIES");
    let names = served.filter_map(|part| part.rsplit(|letter: char| !letter.is_ascii_lowercase()).next());
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    assert!(names.contains(&"exec") && names.contains(&"file"), "the list is read wrongly: {names:?}");
    for name in names {
        assert!(repository().join(format!("crates/protocol/src/{name}.rs")).exists(), "no protocol file for {name}");
        let cases = fs::read_dir(repository().join("crates/compliance/tests")).expect("the suite");
        let has_cases =
            cases.map(|entry| entry.expect("a file").file_name()).any(|file| file.to_string_lossy().starts_with(name));
        assert!(has_cases, "no compliance cases for {name}");
    }
}
