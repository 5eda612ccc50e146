//! An agent for tests that does nothing and says what it is told to, be it hostile, slow, silent or mad. It keeps what it
//! was asked. A test of the host's side needs no guest for what a guest may do to it.
//!
//! ```
//! use qga_scripted::{Answer, Scripted};
//! use serde_json::json;
//!
//! let agent = Scripted::start()
//!     .answering("guest-get-host-name", Answer::Value(json!({ "host-name": "web-1\u{1b}[2J" })))
//!     .answering("guest-fsfreeze-freeze", Answer::Drip)
//!     .answering("guest-exec", Answer::from_fn(|arguments| match arguments["path"].as_str() {
//!         Some("uname") => Answer::Value(json!({ "pid": 7 })),
//!         _ => Answer::Error("no such program"),
//!     }));
//! // Run the client with `agent.target()`, then look at `agent.acts()` and `agent.arguments("guest-exec")`.
//! # assert!(agent.acts().is_empty());
//! ```

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

type Decide = Arc<dyn Fn(&Value) -> Answer + Send + Sync>;

/// What is answered to a command.
#[derive(Clone)]
pub enum Answer {
    /// This value, as a success.
    Value(Value),
    /// This text, as an error.
    Error(&'static str),
    /// This class and text, as an error.
    Refusal(&'static str, &'static str),
    /// These bytes, and nothing around them.
    Bytes(&'static [u8]),
    /// These bytes again and again, for ever.
    Flood(&'static [u8]),
    /// Nothing.
    Silence,
    /// A blank now and then, for ever.
    Drip,
    /// The end of the connection.
    Close,
    /// The end of the connection when it has been frozen.
    FrozenAndClosed,
    /// What an agent that is well says.
    Usual,
    /// What a function of the arguments says; see [`Answer::from_fn`].
    Decided(Decide),
}

impl Answer {
    /// An answer that depends on the arguments, or that does something when it is asked for. The function must not use
    /// the agent itself.
    pub fn from_fn(decide: impl Fn(&Value) -> Self + Send + Sync + 'static) -> Self {
        Self::Decided(Arc::new(decide))
    }

    /// One after the other, the last for ever.
    #[must_use]
    pub fn in_turn(answers: impl IntoIterator<Item = Self>) -> Self {
        let left = Mutex::new(answers.into_iter().collect::<VecDeque<Self>>());
        Self::from_fn(move |_| {
            let mut left = lock(&left);
            let answer = if left.len() > 1 { left.pop_front() } else { left.front().cloned() };
            answer.unwrap_or(Self::Usual)
        })
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "Value({value})"),
            Self::Error(text) => write!(f, "Error({text:?})"),
            Self::Refusal(class, text) => write!(f, "Refusal({class:?}, {text:?})"),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Flood(bytes) => write!(f, "Flood({} bytes)", bytes.len()),
            Self::Silence => f.write_str("Silence"),
            Self::Drip => f.write_str("Drip"),
            Self::Close => f.write_str("Close"),
            Self::FrozenAndClosed => f.write_str("FrozenAndClosed"),
            Self::Usual => f.write_str("Usual"),
            Self::Decided(_) => f.write_str("Decided"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<String, Answer>,
    asked: Vec<(String, Value)>,
    is_frozen: bool,
    /// A command whose answers are held back.
    held: Option<&'static str>,
    connections: Vec<UnixStream>,
    count: usize,
}

/// The agent. It goes on until the test's process ends.
#[derive(Debug)]
pub struct Scripted {
    _directory: Option<tempfile::TempDir>,
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that has failed in one thread still wants to end in order in the others.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scripted {
    /// One in a directory of its own.
    ///
    /// # Panics
    ///
    /// If there is no room for a directory or a socket.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("agent.sock");
        Self { _directory: Some(directory), ..Self::start_at(socket) }
    }

    /// One whose socket is here: for names that are hostile themselves.
    ///
    /// # Panics
    ///
    /// If there can be no socket.
    pub fn start_at(socket: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        let listener = UnixListener::bind(&socket).expect("a socket");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // The thread ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || attend(&stream, &state));
            }
        });
        Self { _directory: None, socket, state }
    }

    /// From now on this is what is answered to a command.
    #[must_use]
    pub fn answering(self, command: &str, answer: Answer) -> Self {
        lock(&self.state).answers.insert(command.to_owned(), answer);
        self
    }

    /// A command is done and not answered from now on, until [`release`](Self::release).
    #[must_use]
    pub fn holding(self, command: &'static str) -> Self {
        lock(&self.state).held = Some(command);
        self
    }

    /// The answers that were held back are given.
    pub fn release(&self) {
        lock(&self.state).held = None;
    }

    /// The socket's path, as a target.
    #[must_use]
    pub fn target(&self) -> String {
        self.socket.display().to_string()
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.socket
    }

    /// The commands that were asked, without those that only ask for the state of things.
    #[must_use]
    pub fn acts(&self) -> Vec<String> {
        const QUESTIONS: [&str; 3] = ["guest-sync-delimited", "guest-info", "guest-fsfreeze-status"];
        self.asked().into_iter().filter(|name| !QUESTIONS.contains(&name.as_str())).collect()
    }

    /// All commands that were asked.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        lock(&self.state).asked.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The arguments of the last call of a command.
    ///
    /// # Panics
    ///
    /// If it was not called.
    #[must_use]
    pub fn arguments(&self, command: &str) -> Value {
        let calls = self.calls(command);
        calls.last().unwrap_or_else(|| panic!("{command} was not called")).clone()
    }

    /// The arguments of each call of a command.
    #[must_use]
    pub fn calls(&self, command: &str) -> Vec<Value> {
        let state = lock(&self.state);
        state.asked.iter().filter(|(name, _)| name == command).map(|(_, arguments)| arguments.clone()).collect()
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.state).count
    }

    /// Whether it says that it is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        lock(&self.state).is_frozen
    }

    /// Freezes or thaws it, as somebody else would.
    pub fn set_frozen(&self, is_frozen: bool) {
        lock(&self.state).is_frozen = is_frozen;
    }

    /// Ends all connections, as a host that restarts its proxy does.
    pub fn break_connections(&self) {
        for connection in lock(&self.state).connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// How a reply goes out.
enum Reply {
    Once(Vec<u8>),
    Again(&'static [u8], Duration),
}

fn attend(stream: &UnixStream, state: &Mutex<State>) {
    if let Ok(copy) = stream.try_clone() {
        let mut state = lock(state);
        state.connections.push(copy);
        state.count += 1;
    }
    serve(stream, state);
    // The copy that is kept would hold it open.
    let _ = stream.shutdown(Shutdown::Both);
}

fn serve(stream: &UnixStream, state: &Mutex<State>) {
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { return };
        let text: Vec<u8> = line.into_iter().filter(|&byte| byte != 0xFF).collect();
        let Ok(request) = serde_json::from_slice::<Value>(&text) else { continue };
        let Some(reply) = reply(&request, state) else { return };
        while lock(state).held.is_some_and(|held| request["execute"] == held) {
            thread::sleep(Duration::from_millis(5));
        }
        match reply {
            // A client that has left gets no answer.
            Reply::Once(bytes) => {
                let _ = (&mut &*stream).write_all(&bytes);
            }
            Reply::Again(bytes, pause) => {
                while (&mut &*stream).write_all(bytes).is_ok() {
                    thread::sleep(pause);
                }
            }
        }
    }
}

/// What to answer with; nothing ends the connection.
fn reply(request: &Value, state: &Mutex<State>) -> Option<Reply> {
    let name = request["execute"].as_str().unwrap_or_default().to_owned();
    let mut answer = {
        let mut state = lock(state);
        state.asked.push((name.clone(), request["arguments"].clone()));
        state.answers.get(&name).cloned().unwrap_or(Answer::Usual)
    };
    // Without the lock: the function may take its time.
    while let Answer::Decided(decide) = answer {
        answer = decide(&request["arguments"]);
    }
    let mut state = lock(state);
    if matches!(answer, Answer::Usual) {
        answer = usual_answer(&name, request, state.is_frozen);
    }
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
        Answer::Refusal(class, text) => json!({ "error": { "class": class, "desc": text } }),
        Answer::Bytes(bytes) => return Some(Reply::Once(bytes.to_vec())),
        Answer::Flood(bytes) => return Some(Reply::Again(bytes, Duration::ZERO)),
        Answer::Drip => return Some(Reply::Again(b" ", Duration::from_millis(50))),
        Answer::Silence | Answer::Usual | Answer::Decided(_) => return Some(Reply::Once(Vec::new())),
        Answer::Close | Answer::FrozenAndClosed => return None,
    };
    if let Some(id) = request.get("id") {
        reply["id"] = id.clone();
    }
    let mut bytes = if name == "guest-sync-delimited" { vec![0xFF] } else { Vec::new() };
    bytes.extend_from_slice(reply.to_string().as_bytes());
    bytes.push(b'\n');
    Some(Reply::Once(bytes))
}

fn usual_answer(name: &str, request: &Value, is_frozen: bool) -> Answer {
    match name {
        "guest-sync-delimited" => Answer::Value(request["arguments"]["id"].clone()),
        "guest-info" => Answer::Value(json!({ "version": "10.0.2", "supported_commands": [] })),
        "guest-fsfreeze-status" => Answer::Value(json!(if is_frozen { "frozen" } else { "thawed" })),
        "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => Answer::Value(json!(2)),
        "guest-fsfreeze-thaw" => Answer::Value(json!(if is_frozen { 2 } else { 0 })),
        "guest-shutdown" | "guest-suspend-ram" | "guest-suspend-disk" | "guest-suspend-hybrid" => Answer::Close,
        "guest-get-timezone" => Answer::Value(json!({ "offset": 0 })),
        _ => Answer::Value(json!({})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(agent: &Scripted, requests: &str) -> Vec<Value> {
        let stream = UnixStream::connect(agent.path()).unwrap();
        (&stream).write_all(requests.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        BufReader::new(&stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }

    #[test]
    fn it_says_what_it_is_told_to_and_keeps_what_it_was_asked() {
        let agent = Scripted::start()
            .answering("a", Answer::in_turn([Answer::Error("first"), Answer::Value(json!(2))]))
            .answering("b", Answer::from_fn(|arguments| Answer::Value(arguments["x"].clone())));
        let requests =
            "{\"execute\":\"a\"}\n{\"execute\":\"a\",\"id\":7}\n{\"execute\":\"b\",\"arguments\":{\"x\":3}}\n";
        let expected = [
            json!({ "error": { "class": "GenericError", "desc": "first" } }),
            json!({ "return": 2, "id": 7 }),
            json!({ "return": 3 }),
        ];
        assert_eq!(ask(&agent, requests), expected);
        assert_eq!(agent.acts(), ["a", "a", "b"]);
        assert_eq!((agent.arguments("b"), agent.connections()), (json!({ "x": 3 }), 1));
    }
}
