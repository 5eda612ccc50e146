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

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use qga_agent::root::Root;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

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
        let mut agent = Agent::on(directory.path());
        let found: Map<String, Value> =
            expected.keys().map(|request| (request.clone(), agent.reply(request))).collect();
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

/// Whatever is in a file of the system, a command returns something or tells what is wrong.
#[test]
fn damaged_files_end_in_a_reply() {
    for tree_path in trees() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        tree::lay_out(&tree_path.display().to_string(), &read(&tree_path), directory.path());
        let requests: Map<String, Value> =
            serde_json::from_str(&read(&tree_path.with_extension("json"))).expect("the replies are JSON");
        let mut agent = Agent::on(directory.path());
        for (index, path) in one_of_each_kind(directory.path()).into_iter().enumerate() {
            let whole = fs::read(&path).expect("the file can be read");
            // A third of the damages for each file: all for all takes long and shows no more.
            for damaged in damages(&whole).into_iter().skip(index % 3).step_by(3) {
                fs::write(&path, &damaged).expect("the file can be written");
                for request in requests.keys() {
                    let reply = agent.reply(request);
                    let told = reply["error"]["desc"].as_str().unwrap_or_default();
                    // What dispatch says of a command that panicked.
                    assert!(!told.contains("inside the agent"), "{request}: {told}\n{}: {damaged:?}", path.display());
                }
            }
            fs::write(&path, &whole).expect("the file can be written");
        }
    }
}

/// The files below a directory, one of those whose paths differ in digits alone; the others are removed, since they
/// would take time and show nothing new.
fn one_of_each_kind(directory: &Path) -> Vec<PathBuf> {
    let mut kinds = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("the directory can be read").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a kind of file"));
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                let shape: String = path.to_string_lossy().chars().filter(|letter| !letter.is_ascii_digit()).collect();
                if let Some(other) = kinds.insert(shape, path) {
                    fs::remove_file(other).expect("the file can be removed");
                }
            }
        }
    }
    kinds.into_values().collect()
}

/// The content as it might come from a kernel that changed, a full disk or a bad one.
fn damages(whole: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(whole);
    let every = |byte: u8, step: usize| {
        let mut bytes = whole.to_vec();
        bytes.iter_mut().step_by(step).for_each(|place| *place = byte);
        bytes
    };
    vec![
        Vec::new(),
        whole[..whole.len() / 2].to_vec(),
        text.replace(char::is_numeric, "99999999999").into_bytes(),
        text.replace(char::is_numeric, "-").into_bytes(),
        text.replace([' ', '\t', '='], "").into_bytes(),
        every(0xff, 7),
        every(0, 5),
        every(b'\n', 3),
        every(b' ', 2),
    ]
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

/// An agent on a recorded machine, and the connection to it.
struct Agent {
    connection: BufReader<UnixStream>,
    serving: Option<JoinHandle<std::io::Result<()>>>,
    _state: TempDir,
}

impl Agent {
    fn on(directory: &Path) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let root = Root::at(directory);
        let state = tempfile::tempdir().expect("a temporary directory");
        let state_directory = state.path().to_owned();
        let serving = thread::spawn(move || qga_agent::serve_recorded(root, &state_directory, theirs));
        Self { connection: BufReader::new(ours), serving: Some(serving), _state: state }
    }

    fn reply(&mut self, request: &str) -> Value {
        let (command, arguments) = request.split_once(' ').unwrap_or((request, "{}"));
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{request}: {error}"));
        writeln!(self.connection.get_mut(), "{}", json!({"execute": command, "arguments": arguments}))
            .expect("the agent reads");
        let mut line = String::new();
        self.connection.read_line(&mut line).unwrap_or_else(|error| panic!("{request}: {error}"));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{request}: {error}: {line}"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.connection.get_ref().shutdown(Shutdown::Both);
        let ended = self.serving.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(Ok(())))), "the agent fails: {ended:?}");
    }
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
