//! One host-side connection to an agent's port, down to single bytes.
//!
//! The tests need what a proper client never does: half a request, a reply left unread, a connection dropped at a
//! chosen moment. Everybody else uses `qga-client`.

use super::pace;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longer than any answer takes, however busy the machine is.
pub fn patience() -> Duration {
    pace::patience(Duration::from_secs(40))
}

/// The byte that stands before the reply to `guest-sync-delimited`.
const SENTINEL: u8 = 0xff;

/// A connection to a port of the guest.
pub struct Conversation {
    stream: UnixStream,
    path: PathBuf,
    /// Received, not yet handed out.
    pending: Vec<u8>,
}

impl Conversation {
    /// Connects to the socket of a port. QEMU serves one client at a time and takes a moment to notice that the last
    /// one has left.
    pub fn open(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + patience();
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(Self { stream, path: path.to_owned(), pending: Vec::new() }),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("cannot connect to {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.set_write_timeout(Some(patience()))?;
        self.stream.write_all(bytes).with_context(|| format!("cannot send to {}", self.path.display()))
    }

    /// Sends a request without waiting for its reply.
    pub fn send_request(&mut self, request: &Value) -> Result<()> {
        self.send(format!("{request}\n").as_bytes())
    }

    /// The next line without its end, or nothing when none is complete within `limit`; what came is kept.
    pub fn line_within(&mut self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut searched = 0;
        let mut piece = vec![0; 256 << 10];
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.pending.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut piece) {
                Ok(0) => bail!("{} was closed by QEMU", self.path.display()),
                Ok(count) => self.pending.extend_from_slice(&piece[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
            }
        }
    }

    /// The next line, which must come.
    pub fn line(&mut self) -> Result<Vec<u8>> {
        let line = self.line_within(patience())?;
        line.with_context(|| {
            let start = String::from_utf8_lossy(&self.pending[..self.pending.len().min(100)]).into_owned();
            format!("no complete line from {} in {} s, only {start:?}", self.path.display(), patience().as_secs())
        })
    }

    /// The next line as JSON.
    pub fn reply(&mut self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_slice(&line).with_context(|| {
            let start = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
            format!("not JSON: {start:?}")
        })
    }

    /// Reads and throws away at least `count` bytes, then stops reading.
    pub fn read_some(&mut self, count: usize) -> Result<()> {
        let mut piece = vec![0; 64 << 10];
        let mut left = count;
        self.stream.set_read_timeout(Some(patience()))?;
        while left > 0 {
            let got = self.stream.read(&mut piece).context("the reply does not come")?;
            ensure!(got > 0, "{} was closed by QEMU", self.path.display());
            left = left.saturating_sub(got);
        }
        Ok(())
    }

    /// Makes sure that the next reply belongs to the next request; waits for an agent that is not there yet.
    pub fn synchronise(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let id = fresh_id();
            let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
            self.send(&[&[SENTINEL], request.to_string().as_bytes(), b"\n"].concat())?;
            // Ask again now and then: a question may have gone down with a guest that was just starting anew.
            let ask_again = Instant::now() + pace::patience(Duration::from_secs(2));
            while let left = ask_again.saturating_duration_since(Instant::now())
                && !left.is_zero()
            {
                let Some(line) = self.line_within(left)? else { break };
                let after_sentinel = line.rsplit(|&byte| byte == SENTINEL).next().unwrap_or_default();
                let reply: Value = serde_json::from_slice(after_sentinel).unwrap_or_default();
                if reply["return"] == id {
                    return Ok(());
                }
            }
        }
        bail!("no agent answers at {} within {} s", self.path.display(), limit.as_secs())
    }

    /// Sends a request and returns the next line as its reply, whether result or error.
    pub fn ask(&mut self, request: &Value) -> Result<Value> {
        self.send_request(request)?;
        self.reply()
    }

    /// Runs a command and returns its result; an error reply is an error.
    pub fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut reply = self.ask(&json!({"execute": command, "arguments": arguments}))?;
        match reply.get_mut("return") {
            Some(result) => Ok(result.take()),
            None => bail!("{command}: {reply}"),
        }
    }
}

/// A number that no other question of this or an earlier run has.
fn fresh_id() -> u64 {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // Below 2^53, so that it survives any client's or agent's idea of a number.
    (u64::from(time.subsec_nanos()) << 20) + (count & 0xf_ffff)
}
