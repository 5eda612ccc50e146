//! Holds the tree against what ARCHITECTURE.md says of it.

use std::collections::{BTreeMap, BTreeSet};
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
        let words = code.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let said: Vec<&str> = words.filter(|word| matches!(*word, "unsafe" | "unsafe_code")).collect();
        assert!(said.is_empty(), "{} says {}", path.display(), said.join(", "));
    }
}

/// The agent's rooms from the ground up: each imports only what stands before it.
const ROOMS: [&str; 11] = [
    "system",
    "limits",
    "process",
    "transport",
    "startup",
    "freeze",
    "agent",
    "dispatch",
    "commands",
    "session",
    "fuzzing",
];

/// The rooms of the agent that a file's code names as `crate::ROOM`.
fn rooms_named(code: &str) -> Vec<&str> {
    let paths = code.split("crate::").skip(1);
    paths.filter_map(|rest| rest.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_').next()).collect()
}

#[test]
fn a_room_of_the_agent_imports_only_rooms_below_it() {
    let mut imports = 0;
    for path in sources("crates/agent/src") {
        let inside = path.strip_prefix("crates/agent/src").expect("the agent's").to_string_lossy().into_owned();
        let room = inside.split(['/', '.']).next().unwrap_or_default().to_owned();
        if matches!(&*room, "lib" | "main") || inside.contains("tests") || inside.contains("machine_steps") {
            continue;
        }
        let place = ROOMS.iter().position(|known| *known == room);
        let place = place.unwrap_or_else(|| panic!("{inside} stands in no room that has a place in the order"));
        let code = code(&path);
        for named in rooms_named(&code) {
            // The root of the library hands this one on.
            let named = if named == "root" { "system" } else { named };
            let below = ROOMS.iter().position(|known| *known == named);
            let below = below.unwrap_or_else(|| panic!("{inside} names crate::{named}, which is no room"));
            assert!(below <= place, "{inside} imports {named}, which stands above {room}");
            imports += 1;
        }
    }
    assert!(imports > 100, "the imports are read wrongly: {imports}");
}

/// How the code names a file of the system.
const SYSTEM_PATHS: [&str; 4] = ["\"/proc/", "\"/sys/", "\"/etc/", "\"/run/"];
/// What opens or looks at a path of this machine, and not of a recorded one.
const OPENERS: [&str; 9] =
    ["fs::", "File::", "OpenOptions", ".open(", "openat(", ".metadata()", ".exists()", ".is_dir()", ".canonicalize()"];
/// Places that name such paths past `Root`, each with what it names and why.
const PAST_ROOT: [(&str, &str, &str); 9] = [
    ("freeze/linux/held.rs", "/proc/self/fd/", "opens a descriptor of its own again"),
    ("commands/accounts/linux/key_file.rs", "/proc/self/fd/", "opens a descriptor of its own again"),
    ("system/log.rs", "/proc/self/fd/2", "opens a descriptor of its own again"),
    ("system/rendezvous.rs", "/proc/self/fd", "a short name for a directory that it has open"),
    ("process/child.rs", "/proc/self/exe", "starts the agent's own program"),
    ("session/progress.rs", "/proc/self/task/", "looks at a thread of its own every 50 ms, without memory"),
    ("freeze/record.rs", "/proc/{pid}/fd", "asks who holds a file: metadata behind the links of a live process"),
    ("freeze/record.rs", "/proc/{pid}/stat", "compares the starts of live processes"),
    ("startup/command_line.rs", "/etc/qemu/", "the text of a default for the help"),
];

/// The statements of code that name a file of the system, or a constant that does, in a way past `Root`.
fn statements_past_root(code: &str) -> Vec<String> {
    let statements = code.split_inclusive('\n').fold(vec![String::new()], |mut statements, line| {
        statements.last_mut().expect("one").push_str(line.trim_start());
        if line.trim_end().ends_with([';', '{', '}']) {
            statements.push(String::new());
        }
        statements
    });
    let names_path = |text: &str| SYSTEM_PATHS.iter().any(|path| text.contains(path));
    let constant = |text: &str| {
        let start = ["pub(crate) const ", "pub(super) const ", "pub const ", "const "];
        let rest = start.iter().find_map(|start| text.strip_prefix(start))?;
        rest.split_once(':').map(|(name, _)| name.to_owned())
    };
    let constants: Vec<String> =
        statements.iter().filter(|text| names_path(text)).filter_map(|text| constant(text)).collect();
    let names_constant = |text: &str| {
        let mut words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.any(|word| constants.iter().any(|constant| constant == word))
    };
    let is_past = |text: &String| {
        let goes_through = text.contains("root") || text.contains("Root::");
        let opens = OPENERS.iter().any(|opener| text.contains(opener));
        constant(text).is_none() && !goes_through && (names_path(text) || (names_constant(text) && opens))
    };
    statements.into_iter().filter(is_past).collect()
}

#[test]
fn files_of_the_system_are_read_through_root() {
    let mut seen = BTreeSet::new();
    for path in sources("crates/agent/src") {
        let inside = path.strip_prefix("crates/agent/src").expect("the agent's").to_string_lossy().into_owned();
        if inside.contains("tests") {
            continue;
        }
        for statement in statements_past_root(&code(&path)) {
            let place = PAST_ROOT.iter().position(|(file, what, _)| *file == inside && statement.contains(what));
            let place = place.unwrap_or_else(|| panic!("{inside} goes past system::root::Root: {statement}"));
            seen.insert(place);
        }
    }
    let unused: Vec<_> =
        (0..PAST_ROOT.len()).filter(|place| !seen.contains(place)).map(|place| PAST_ROOT[place]).collect();
    assert!(unused.is_empty(), "no longer past Root, so no exception: {unused:?}");
}

#[test]
fn a_read_past_root_is_noticed() {
    let past = [
        "let text = std::fs::read_to_string(\"/proc/stat\")?;\n",
        "let path = format!(\"/proc/{pid}/stat\");\n",
        "const STAT: &str = \"/proc/stat\";\nlet text = std::fs::read(\n    STAT,\n);\n",
        "const BOTH: [&str; 2] =\n    [\"/run/a\", \"/run/b\"];\nFile::open(BOTH[0])?;\n",
    ];
    for code in past {
        assert_eq!(statements_past_root(code).len(), 1, "{code}");
    }
    let through = "const STAT: &str = \"/proc/stat\";\nroot.read(STAT)?;\nRoot::host().read(\"/etc/passwd\")?;\n";
    assert!(statements_past_root(through).is_empty());
}

/// Which file of a crate imports which, by the paths in its code.
fn imports_of_files(directory: &str) -> BTreeMap<String, BTreeSet<String>> {
    let module = |inside: &str| -> Vec<String> {
        let path = inside.trim_end_matches(".rs").trim_end_matches("/mod");
        if path == "lib" || path == "main" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
    };
    let files: BTreeMap<Vec<String>, String> = sources(directory)
        .iter()
        .map(|path| path.strip_prefix(directory).expect("the crate's").to_string_lossy().into_owned())
        .filter(|inside| !inside.contains("tests") && !inside.contains("machine_steps"))
        .map(|inside| (module(&inside), inside))
        .collect();
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (here, inside) in &files {
        let code = code(&Path::new(directory).join(inside));
        let from_here = imports.entry(inside.clone()).or_default();
        for path in paths_in(&code, here) {
            // The longest beginning that is a module; the root only declares.
            let module = (1..=path.len()).rev().find_map(|length| files.get(&path[..length]));
            if let Some(target) = module.filter(|target| *target != inside) {
                from_here.insert(target.clone());
            }
        }
    }
    imports
}

/// The paths that code names, from the crate's root on. `{a, b::c}` counts as each of its parts.
fn paths_in(code: &str, here: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "self::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || matches!(before, '_' | ':' | '$') {
                continue;
            }
            let mut base = match start {
                "crate::" => Vec::new(),
                _ => here.to_vec(),
            };
            let mut rest = &code[at..];
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            let rest = rest.trim_start_matches("crate::").trim_start_matches("self::");
            collect(rest, &base, &mut found);
        }
    }
    found
}

/// Adds the path at the beginning of a text, or each of those in its braces.
fn collect(text: &str, base: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = base.to_vec();
    let mut rest = text;
    loop {
        if let Some(inside) = rest.strip_prefix('{') {
            let mut depth = 0_i32;
            let mut start = 0;
            for (at, letter) in inside.char_indices() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth > 0 => depth -= 1,
                    ',' | '}' if depth == 0 => {
                        collect(inside[start..at].trim(), &path, found);
                        start = at + 1;
                        if letter == '}' {
                            return;
                        }
                    }
                    _ => {}
                }
            }
            return;
        }
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
        if end > 0 && &rest[..end] != "self" {
            path.push(rest[..end].to_owned());
        }
        match rest[end..].strip_prefix("::") {
            Some(after) if end > 0 => rest = after,
            _ => break,
        }
    }
    found.push(path);
}

/// The largest sets of files that import each other in a circle.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reach = |from: &String| {
        let mut seen = BTreeSet::new();
        let mut pending: Vec<&String> = imports[from].iter().collect();
        while let Some(next) = pending.pop() {
            if seen.insert(next.clone()) {
                pending.extend(imports[next].iter());
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = imports.keys().map(|file| (file, reach(file))).collect();
    let mut circles: Vec<Vec<String>> = Vec::new();
    for (file, below) in &reached {
        let together: Vec<String> = below.iter().filter(|other| reached[other].contains(*file)).cloned().collect();
        if together.len() > 1 && !circles.contains(&together) {
            circles.push(together);
        }
    }
    circles
}

/// Files that may import each other in a circle: a directory's `mod.rs`, and one or two of its parts.
const CIRCLE_FILES_MAX: usize = 3;

#[test]
fn no_circle_of_imports_is_larger_than_can_be_known_as_one() {
    let mut too_large = Vec::new();
    for name in ["agent", "cli", "client", "protocol", "sys", "scripted", "compliance"] {
        let imports = imports_of_files(&format!("crates/{name}/src"));
        let arrows: usize = imports.values().map(BTreeSet::len).sum();
        let circles = circles(&imports);
        let largest = circles.iter().map(Vec::len).max().unwrap_or(0);
        println!(
            "{name}: {} files, {arrows} imports, {} circles, the largest of {largest} files",
            imports.len(),
            circles.len()
        );
        let large = circles.into_iter().filter(|circle| circle.len() > CIRCLE_FILES_MAX);
        too_large.extend(large.map(|circle| format!("{name}: {}", circle.join(", "))));
    }
    assert!(too_large.is_empty(), "files that import each other:\n{}", too_large.join("\n"));
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
