//! The freeze guard with an agent that is played: nothing is frozen.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use qga_client::{Agent, AnyAgent, Error, Frozen, Kind, Stream};
use serde_json::{Value, json};

/// What the played agent does and has done, over all connections.
#[derive(Default)]
struct Guest {
    is_frozen: bool,
    asked: Vec<String>,
    connections: usize,
    /// Commands after which the connection breaks instead of an answer, each once.
    breaks_at: Vec<&'static str>,
    /// How many thaws are refused first.
    refusals: usize,
}

type Shared = Arc<Mutex<Guest>>;

fn connect(guest: &Shared) -> AnyAgent {
    let (near, far) = UnixStream::pair().unwrap();
    guest.lock().unwrap().connections += 1;
    let guest = Arc::clone(guest);
    thread::spawn(move || {
        let mut lines = BufReader::new(&far);
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|size| size > 0) {
            let request: Value = serde_json::from_str(&line).expect("a request");
            let Some(reply) = guest.lock().unwrap().answer(request["execute"].as_str().expect("a name")) else {
                return;
            };
            (&far).write_all(format!("{reply}\n").as_bytes()).unwrap();
            line.clear();
        }
    });
    Agent::over(Box::new(Stream::new(near)))
}

impl Guest {
    fn answer(&mut self, command: &str) -> Option<Value> {
        self.asked.push(command.trim_start_matches("guest-fsfreeze-").to_owned());
        let reply = match command {
            "guest-fsfreeze-status" => json!({ "return": if self.is_frozen { "frozen" } else { "thawed" } }),
            "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list" => {
                self.is_frozen = true;
                json!({ "return": 2 })
            }
            "guest-fsfreeze-thaw" if self.refusals > 0 => {
                self.refusals -= 1;
                json!({ "error": { "class": "GenericError", "desc": "not now" } })
            }
            "guest-fsfreeze-thaw" => {
                self.is_frozen = false;
                json!({ "return": 2 })
            }
            other => panic!("{other} was asked for"),
        };
        match self.breaks_at.iter().position(|&name| command.ends_with(name)) {
            Some(at) => {
                self.breaks_at.remove(at);
                None
            }
            None => Some(reply),
        }
    }
}

fn freeze(guest: &Shared) -> Result<Frozen<'static>, Error> {
    let guest = Arc::clone(guest);
    Frozen::over(Box::new(move || Ok(connect(&guest))), None)
}

fn asked(guest: &Shared) -> Vec<String> {
    guest.lock().unwrap().asked.clone()
}

#[test]
fn a_guard_thaws_when_it_goes() {
    let guest = Shared::default();
    let frozen = freeze(&guest).unwrap();
    assert_eq!(frozen.count(), 2);
    assert!(guest.lock().unwrap().is_frozen);
    drop(frozen);
    assert!(!guest.lock().unwrap().is_frozen);
    assert_eq!(asked(&guest), ["status", "freeze", "thaw"]);
}

#[test]
fn a_guard_that_leaves_thaws_nothing() {
    let guest = Shared::default();
    assert_eq!(freeze(&guest).unwrap().leave(), 2);
    assert_eq!(asked(&guest), ["status", "freeze"]);
}

#[test]
fn a_guard_thaws_when_the_thread_panics() {
    let guest = Shared::default();
    let same = Arc::clone(&guest);
    let panicked = thread::spawn(move || {
        let _frozen = freeze(&same).unwrap();
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(!guest.lock().unwrap().is_frozen);
}

#[test]
fn a_thaw_that_was_made_is_not_made_again() {
    let guest = Shared::default();
    assert_eq!(freeze(&guest).unwrap().thaw().unwrap(), 2);
    assert_eq!(asked(&guest), ["status", "freeze", "thaw"]);
}

#[test]
fn a_broken_connection_is_replaced_to_thaw() {
    let guest = Shared::default();
    guest.lock().unwrap().breaks_at = vec!["thaw"];
    freeze(&guest).unwrap().thaw().unwrap();
    assert_eq!(guest.lock().unwrap().connections, 2);
    assert_eq!(asked(&guest), ["status", "freeze", "thaw", "thaw"]);
}

#[test]
fn a_freeze_whose_answer_is_lost_is_thawed() {
    let guest = Shared::default();
    guest.lock().unwrap().breaks_at = vec!["freeze-freeze"];
    let error = freeze(&guest).unwrap_err();
    assert_eq!(error.kind(), Kind::ConnectionLost, "{error}");
    assert!(!guest.lock().unwrap().is_frozen);
    assert_eq!(asked(&guest), ["status", "freeze", "thaw"]);
}

#[test]
fn a_refused_thaw_is_tried_again_while_it_is_frozen() {
    let guest = Shared::default();
    guest.lock().unwrap().refusals = 2;
    freeze(&guest).unwrap().thaw().unwrap();
    assert!(!guest.lock().unwrap().is_frozen);

    guest.lock().unwrap().refusals = usize::MAX;
    let mut frozen = freeze(&guest).unwrap();
    frozen.set_patience(Duration::from_millis(1));
    let error = frozen.thaw().unwrap_err();
    assert!(error.to_string().contains("not now"), "{error}");
}

#[test]
fn somebody_elses_freeze_is_left_alone() {
    let guest = Shared::default();
    guest.lock().unwrap().is_frozen = true;
    let error = freeze(&guest).unwrap_err();
    assert!(error.to_string().contains("frozen already"), "{error}");
    assert_eq!(asked(&guest), ["status"]);
}
