//! Quick and slow commands of one client, in every mixture: each request is answered, in its turn, and nobody is left
//! waiting when the one that reads and the one that runs change places.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use qga_agent::root::Root;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

/// A hang is a failure, not a reason to wait for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// A machine whose processor times are told only when somebody writes them down: `guest-get-cpustats` waits for that.
struct Machine {
    directory: tempfile::TempDir,
    host: BufReader<UnixStream>,
    session: JoinHandle<std::io::Result<()>>,
}

impl Machine {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let proc = directory.path().join("proc");
        std::fs::create_dir(&proc).expect("a directory");
        rustix::fs::mkfifoat(rustix::fs::CWD, proc.join("stat"), 0o600.into()).expect("a FIFO");
        let (host, guest) = UnixStream::pair().expect("a pair of sockets");
        host.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let path = directory.path().to_owned();
        let session = thread::spawn(move || qga_agent::serve_recorded(Root::at(&path), &path, guest));
        Self { directory, host: BufReader::new(host), session }
    }

    fn fifo(&self) -> PathBuf {
        self.directory.path().join("proc/stat")
    }

    fn send(&mut self, requests: &[Value]) {
        let mut lines = Vec::new();
        for request in requests {
            writeln!(lines, "{request}").expect("memory takes it");
        }
        self.host.get_mut().write_all(&lines).expect("the agent reads");
    }

    fn reply(&mut self) -> Value {
        let mut line = String::new();
        self.host.read_line(&mut line).expect("the agent answers");
        serde_json::from_str(&line).expect("a reply")
    }

    /// The client leaves; the session ends.
    fn end(self) {
        drop(self.host);
        self.session.join().expect("the session does not panic").expect("the session ends well");
    }
}

/// Lets one `guest-get-cpustats` end so long after it has begun.
fn release(fifo: &Path, delay: Duration) {
    // Fails as long as nobody reads; opened in the usual way it would wait for ever for an agent that does not.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    let begin = Instant::now();
    let stat = loop {
        match rustix::fs::open(fifo, flags, Mode::empty()) {
            Ok(stat) => break stat,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "nobody reads {}: {error}", fifo.display()),
        }
        thread::sleep(Duration::from_millis(1));
    };
    thread::sleep(delay);
    File::from(stat).write_all(b"cpu0 100 0 0 0\n").expect("somebody reads");
}

fn request(name: &str, id: u64) -> Value {
    json!({"execute": name, "id": id})
}

#[test]
fn every_mixture_is_answered_in_its_order() {
    // Shorter than what a session waits for, about as long, longer, and long enough to be called stuck.
    const DELAYS_MS: [u64; 9] = [0, 1, 18, 20, 22, 40, 95, 105, 160];
    let mut machine = Machine::start();
    for round in 0..45_usize {
        let slow_at = round / DELAYS_MS.len();
        let names: Vec<&str> = (0..5)
            .map(|place| match place {
                _ if place == slow_at => "guest-get-cpustats",
                place if (place + round).is_multiple_of(2) => "guest-ping",
                _ => "guest-get-timezone",
            })
            .collect();
        let requests: Vec<Value> = names.iter().zip(0..).map(|(name, id)| request(name, id)).collect();
        let (fifo, delay) = (machine.fifo(), Duration::from_millis(DELAYS_MS[round % DELAYS_MS.len()]));
        let released = thread::spawn(move || release(&fifo, delay));
        machine.send(&requests);
        for (id, name) in names.iter().enumerate() {
            let reply = machine.reply();
            assert_eq!(reply["id"], id, "round {round}, {name}: {reply}");
            if *name == "guest-get-cpustats" {
                assert_eq!(reply["return"][0]["user"], 1000, "round {round}: {reply}");
            }
        }
        released.join().expect("it was released");
    }
    machine.end();
}

#[test]
fn a_sync_behind_a_stuck_command_is_answered_and_the_late_reply_is_not_sent() {
    let mut machine = Machine::start();
    for round in 0..3 {
        // A quick one first, so that it is the worker who reads.
        machine.send(&[request("guest-get-timezone", 1)]);
        assert_eq!(machine.reply()["id"], 1);
        machine.send(&[request("guest-get-cpustats", 2)]);
        machine.send(&[json!({"execute": "guest-sync", "arguments": {"id": 77}, "id": 3}), request("guest-ping", 4)]);
        assert_eq!(machine.reply(), json!({"return": 77, "id": 3}), "round {round}");
        assert_eq!(machine.reply(), json!({"return": {}, "id": 4}), "round {round}");
        release(&machine.fifo(), Duration::ZERO);
        machine.send(&[request("guest-get-timezone", 5)]);
        assert_eq!(machine.reply()["id"], 5, "round {round}");
    }
    machine.end();
}

#[test]
fn a_client_that_leaves_during_a_command_ends_its_session() {
    for delay in [Duration::from_millis(5), Duration::from_millis(60)] {
        let mut machine = Machine::start();
        machine.send(&[request("guest-get-timezone", 1), request("guest-get-cpustats", 2)]);
        assert_eq!(machine.reply()["id"], 1);
        let fifo = machine.fifo();
        let released = thread::spawn(move || release(&fifo, delay));
        machine.end();
        released.join().expect("it was released");
    }
}
