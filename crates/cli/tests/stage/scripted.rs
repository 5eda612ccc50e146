//! An agent that does nothing and says what it is told to. It keeps what it was asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// What is answered to a command.
#[derive(Debug, Clone)]
pub enum Answer {
    /// This value, as a success.
    Value(Value),
    /// This text, as an error.
    Error(&'static str),
    /// These bytes, and nothing around them.
    Bytes(&'static [u8]),
    /// Nothing.
    Silence,
    /// A blank now and then, for ever.
    Drip,
    /// The end of the connection.
    Close,
    /// The end of the connection when it has been frozen.
    FrozenAndClosed,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<String, Answer>,
    asked: Vec<(String, Value)>,
    is_frozen: bool,
    /// A command whose answers are held back.
    held: Option<&'static str>,
    connections: Vec<UnixStream>,
}

/// The agent.
pub struct Scripted {
    directory: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

impl Scripted {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("agent.sock")).expect("a socket");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // The thread ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || attend(&stream, &state));
            }
        });
        Self { directory, state }
    }

    /// From now on this is what is answered to a command.
    #[must_use]
    pub fn answering(self, command: &str, answer: Answer) -> Self {
        self.state.lock().unwrap().answers.insert(command.to_owned(), answer);
        self
    }

    /// A command is done and not answered from now on, until [`release`](Self::release).
    #[must_use]
    pub fn holding(self, command: &'static str) -> Self {
        self.state.lock().unwrap().held = Some(command);
        self
    }

    /// The answers that were held back are given.
    pub fn release(&self) {
        self.state.lock().unwrap().held = None;
    }

    pub fn target(&self) -> String {
        self.directory.path().join("agent.sock").display().to_string()
    }

    /// The commands that were asked, without those that only ask for the state of things.
    pub fn acts(&self) -> Vec<String> {
        const QUESTIONS: [&str; 3] = ["guest-sync-delimited", "guest-info", "guest-fsfreeze-status"];
        let asked = self.state.lock().unwrap();
        let names = asked.asked.iter().map(|(name, _)| name.clone());
        names.filter(|name| !QUESTIONS.contains(&name.as_str())).collect()
    }

    /// The arguments of the last call of a command.
    pub fn arguments(&self, command: &str) -> Value {
        let state = self.state.lock().unwrap();
        let call = state.asked.iter().rev().find(|(name, _)| name == command);
        call.map_or_else(|| panic!("{command} was not called"), |(_, arguments)| arguments.clone())
    }

    pub fn is_frozen(&self) -> bool {
        self.state.lock().unwrap().is_frozen
    }

    pub fn set_frozen(&self, is_frozen: bool) {
        self.state.lock().unwrap().is_frozen = is_frozen;
    }

    /// Ends all connections, as a host that restarts its proxy does.
    pub fn break_connections(&self) {
        for connection in self.state.lock().unwrap().connections.drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

const DRIP: &[u8] = b" ";

fn attend(stream: &UnixStream, state: &Mutex<State>) {
    if let Ok(copy) = stream.try_clone() {
        state.lock().unwrap().connections.push(copy);
    }
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { return };
        let text: Vec<u8> = line.into_iter().filter(|&byte| byte != 0xFF).collect();
        let Ok(request) = serde_json::from_slice::<Value>(&text) else { continue };
        let Some(reply) = reply(&request, state) else {
            // The copy that is kept would hold it open.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        };
        while state.lock().unwrap().held.is_some_and(|held| request["execute"] == held) {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        while (&mut &*stream).write_all(&reply).is_ok() && reply == DRIP {
            thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// The bytes to answer with; nothing ends the connection.
fn reply(request: &Value, state: &Mutex<State>) -> Option<Vec<u8>> {
    let name = request["execute"].as_str().unwrap_or_default().to_owned();
    let mut state = state.lock().unwrap();
    state.asked.push((name.clone(), request["arguments"].clone()));
    let answer = state.answers.get(&name).cloned().unwrap_or_else(|| default_answer(&name, request, &state));
    if matches!(answer, Answer::Value(_) | Answer::FrozenAndClosed) {
        match name.as_str() {
            "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => state.is_frozen = true,
            "guest-fsfreeze-thaw" => state.is_frozen = false,
            _ => {}
        }
    }
    let mut reply = match answer {
        Answer::Value(value) => json!({ "return": value }),
        Answer::Error(text) => json!({ "error": { "class": "GenericError", "desc": text } }),
        Answer::Bytes(bytes) => return Some(bytes.to_vec()),
        Answer::Drip => return Some(DRIP.to_vec()),
        Answer::Silence => return Some(Vec::new()),
        Answer::Close | Answer::FrozenAndClosed => return None,
    };
    if let Some(id) = request.get("id") {
        reply["id"] = id.clone();
    }
    let mut bytes = if name == "guest-sync-delimited" { vec![0xFF] } else { Vec::new() };
    bytes.extend_from_slice(reply.to_string().as_bytes());
    bytes.push(b'\n');
    Some(bytes)
}

fn default_answer(name: &str, request: &Value, state: &State) -> Answer {
    match name {
        "guest-sync-delimited" => Answer::Value(request["arguments"]["id"].clone()),
        "guest-info" => Answer::Value(json!({ "version": "10.0.2", "supported_commands": [] })),
        "guest-fsfreeze-status" => Answer::Value(json!(if state.is_frozen { "frozen" } else { "thawed" })),
        "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => Answer::Value(json!(2)),
        "guest-fsfreeze-thaw" => Answer::Value(json!(if state.is_frozen { 2 } else { 0 })),
        "guest-shutdown" | "guest-suspend-ram" | "guest-suspend-disk" | "guest-suspend-hybrid" => Answer::Close,
        "guest-get-timezone" => Answer::Value(json!({ "offset": 0 })),
        _ => Answer::Value(json!({})),
    }
}
