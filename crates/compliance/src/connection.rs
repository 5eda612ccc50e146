//! Carries bytes to an agent and brings its replies back, line by line, with a limit to its patience.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::expectation::Received;
use crate::tally::Failure;

/// How long a missing reply is waited for. Only failing cases take that long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Writes larger than this go through a thread: both sides would wait for each other if the agent replied meanwhile.
const SMALL_WRITE_BYTES: usize = 32 * 1024;

/// Why no line came.
#[derive(Debug)]
pub enum ReadFailure {
    /// Nothing came in time; what had come of a line, if anything.
    TimedOut(Vec<u8>),
    /// The agent closed the connection.
    Closed,
    /// The connection broke.
    Broken(io::Error),
}

impl std::fmt::Display for ReadFailure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut(partial) if partial.is_empty() => formatter.write_str("no reply in time"),
            Self::TimedOut(partial) => {
                let end = partial.len().min(200);
                write!(formatter, "half a reply in time: {}", String::from_utf8_lossy(&partial[..end]))
            }
            Self::Closed => formatter.write_str("the agent closed the connection"),
            Self::Broken(error) => write!(formatter, "the connection broke: {error}"),
        }
    }
}

/// A host's connection to an agent.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    unread: Vec<u8>,
    searched_bytes: usize,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl Connection {
    /// Takes over a connected socket.
    pub fn new(stream: UnixStream) -> Result<Self, Failure> {
        stream.set_write_timeout(Some(PATIENCE)).map_err(|error| format!("cannot set a time-out: {error}"))?;
        Ok(Self { stream, unread: Vec::new(), searched_bytes: 0, writer: None })
    }

    /// The socket itself, for tests that treat it badly.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.wait_for_writer()?;
        if bytes.len() <= SMALL_WRITE_BYTES {
            return self.stream.write_all(bytes).map_err(|error| format!("cannot send: {error}"));
        }
        let mut stream = self.stream.try_clone().map_err(|error| format!("cannot send: {error}"))?;
        let bytes = bytes.to_vec();
        self.writer = Some(thread::spawn(move || stream.write_all(&bytes)));
        Ok(())
    }

    /// The next line without its newline.
    pub fn read_line(&mut self, patience: Duration) -> Result<Vec<u8>, ReadFailure> {
        let started = Instant::now();
        let mut block = vec![0; 256 * 1024];
        loop {
            if let Some(offset) = self.unread[self.searched_bytes..].iter().position(|&byte| byte == b'\n') {
                let rest = self.unread.split_off(self.searched_bytes + offset + 1);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.pop();
                self.searched_bytes = 0;
                return Ok(line);
            }
            self.searched_bytes = self.unread.len();
            let left = patience.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).map_err(ReadFailure::Broken)?;
            match self.stream.read(&mut block) {
                Ok(0) => return Err(ReadFailure::Closed),
                Ok(count) => self.unread.extend_from_slice(&block[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if started.elapsed() >= patience {
                        return Err(ReadFailure::TimedOut(self.unread.clone()));
                    }
                }
                Err(error) => return Err(ReadFailure::Broken(error)),
            }
        }
    }

    /// The next reply.
    pub fn receive(&mut self) -> Result<Received, Failure> {
        self.read_line(PATIENCE).map(Received::new).map_err(|failure| failure.to_string())
    }

    /// Sends one request line and takes one reply line.
    pub fn ask(&mut self, request: &str) -> Result<Received, Failure> {
        self.send(format!("{request}\n").as_bytes())?;
        self.receive()
    }

    /// Everything that comes before the answer to a synchronisation sent now. Complete messages only may precede it:
    /// what is still half said would swallow it.
    pub fn replies_so_far(&mut self) -> Result<Vec<Received>, Failure> {
        // The newline ends a burst of errors in an agent that tells only the first of each line.
        self.synchronise(b"\n")
    }

    /// Makes a fresh start whatever was said before, throwing away all replies.
    pub fn resynchronise(&mut self) -> Result<(), Failure> {
        self.synchronise(b"\xff").map(drop)
    }

    fn synchronise(&mut self, before: &[u8]) -> Result<Vec<Received>, Failure> {
        let id = fresh_id();
        let mut message = before.to_vec();
        message.extend_from_slice(br#"{"execute":"guest-sync-delimited","arguments":{"id":"#);
        message.extend_from_slice(id.to_string().as_bytes());
        message.extend_from_slice(b"}}\n");
        self.send(&message)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.read_line(PATIENCE).map(Received::new).map_err(|failure| {
                let count = replies.len();
                format!("no answer to a synchronisation ({failure}); {count} other replies came before")
            })?;
            if reply.sentinel && reply.json.as_ref().and_then(|json| json.get("return")) == Some(&Value::from(id)) {
                return Ok(replies);
            }
            replies.push(reply);
        }
    }

    fn wait_for_writer(&mut self) -> Result<(), Failure> {
        match self.writer.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(format!("cannot send: {error}")),
            Some(Err(_)) => Err("the sending thread panicked".to_owned()),
        }
    }
}

/// A number that no earlier client has used, so that leftovers are told from answers.
fn fresh_id() -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let _ = NEXT.compare_exchange(0, clock_ticks(), Ordering::Relaxed, Ordering::Relaxed);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn clock_ticks() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since_epoch.as_nanos() as i64 & 0x3fff_ffff_ffff_ffff) ^ (i64::from(std::process::id()) << 20)
}
