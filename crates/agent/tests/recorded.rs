//! Asks the agent about recorded machines: for each `trees/NAME.tree` the requests in `trees/NAME.json` must get the
//! replies that stand there.
//!
//! The agent that answers is the whole one, from bytes to bytes, with its root at the recording. How a `.tree` is
//! written is told in [`tree`].
//!
//! `NAME.json` is one object. A member's name is a command, or a command and its arguments as JSON with one blank
//! between; its value is the reply, with `return` or `error` at its top:
//!
//! ```text
//! {
//!   "guest-get-vcpus": {"return": [{"logical-id": 0, "online": true, "can-offline": false}]}
//! }
//! ```
//!
//! **A wrong reply on some machine**: record the files that the command reads, write the reply by hand, see it fail,
//! mend the command. `UPDATE_EXPECT=1 cargo test -p qga-agent --test recorded` writes the replies that come into the
//! `.json` files, for the ones that are there; read the difference before keeping it.

#[path = "recorded/tree.rs"]
mod tree;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use qga_agent::root::Root;
use serde_json::{Map, Value, json};

/// How long a reply may take on the most loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where lines of replies end.
const LINE_CHARACTERS: usize = 120;

#[test]
fn recorded_machines_get_the_expected_replies() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut differences = String::new();
    let mut machine_count = 0;
    for tree_path in trees() {
        machine_count += 1;
        let json_path = tree_path.with_extension("json");
        let expected: Map<String, Value> =
            serde_json::from_str(&read(&json_path)).unwrap_or_else(|error| panic!("{}: {error}", json_path.display()));
        let directory = tempfile::tempdir().expect("a temporary directory");
        tree::lay_out(&tree_path.display().to_string(), &read(&tree_path), directory.path());
        let found = replies(directory.path(), expected.keys());
        for (request, reply) in &expected {
            if found[request] != *reply {
                let name = tree_path.file_stem().unwrap_or_default().to_string_lossy();
                let _ = write!(differences, "\n{name}: {request}\nexpected: {reply}\ncame:     {}\n", found[request]);
            }
        }
        if update && found != expected {
            fs::write(&json_path, written(&found)).expect("the expected replies can be written");
        }
    }
    assert!(machine_count > 0, "there is no recorded machine");
    assert!(update || differences.is_empty(), "{differences}");
}

/// The recordings, sorted.
fn trees() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees");
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the directory can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tree"))
        .collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What an agent on the machine below `directory` answers.
fn replies<'a>(directory: &Path, requests: impl Iterator<Item = &'a String>) -> Map<String, Value> {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    ours.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let root = Root::at(directory);
    let state = tempfile::tempdir().expect("a temporary directory");
    let state_directory = state.path().to_owned();
    let agent = thread::spawn(move || qga_agent::serve_recorded(root, &state_directory, theirs));
    let mut reader = BufReader::new(&ours);
    let replies = requests
        .map(|request| {
            let (command, arguments) = request.split_once(' ').unwrap_or((request, "{}"));
            let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{request}: {error}"));
            writeln!(&ours, "{}", json!({"execute": command, "arguments": arguments})).expect("the agent reads");
            let mut line = String::new();
            reader.read_line(&mut line).unwrap_or_else(|error| panic!("{request}: {error}"));
            (request.clone(), serde_json::from_str(&line).unwrap_or_else(|error| panic!("{request}: {error}: {line}")))
        })
        .collect();
    drop(reader);
    drop(ours);
    agent.join().expect("the agent does not panic").expect("the agent starts");
    replies
}

/// The replies as a person would write them: elements of lists side by side as far as a line goes.
fn written(replies: &Map<String, Value>) -> String {
    let members: Vec<String> = replies
        .iter()
        .map(|(request, reply)| match reply.get("return").and_then(Value::as_array) {
            Some(elements) if !elements.is_empty() => {
                let mut text = format!("  {}: {{\"return\": [", Value::from(request.as_str()));
                let mut column = LINE_CHARACTERS;
                for (index, element) in elements.iter().enumerate() {
                    let comma = if index + 1 < elements.len() { "," } else { "" };
                    let element = format!("{element}{comma}");
                    column += 1 + element.chars().count();
                    if column > LINE_CHARACTERS {
                        text.push_str("\n    ");
                        column = 4 + element.chars().count();
                    } else {
                        text.push(' ');
                    }
                    text.push_str(&element);
                }
                text + "\n  ]}"
            }
            _ => format!("  {}: {reply}", Value::from(request.as_str())),
        })
        .collect();
    format!("{{\n{}\n}}\n", members.join(",\n"))
}
