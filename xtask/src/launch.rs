//! Starts an agent on a private unix socket, in a folder that goes with it.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use qga_client::{Connection, Timeouts};
use tempfile::TempDir;

/// How long a start may take before it counts as failed.
const START: Duration = Duration::from_secs(30);

/// A running agent. It ends, and its folder goes, when this value goes.
pub struct Agent {
    process: Child,
    spawned: Instant,
    folder: TempDir,
}

impl Agent {
    /// Starts the agent and returns at once; `options` are added to those that keep it private.
    pub fn spawn(program: &Path, options: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("qga-").tempdir().context("cannot make a folder for the agent")?;
        let errors = File::create(folder.path().join("stderr")).context("cannot create the agent's error log")?;
        let mut command = Command::new(program);
        command
            .args(["-m", "unix-listen", "-p"])
            .arg(folder.path().join("socket"))
            .arg("-t")
            .arg(folder.path())
            .arg("-f")
            .arg(folder.path().join("pid"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            // A configuration of the machine's own agent is not ours to follow.
            .env("QGA_CONF", folder.path().join("no-configuration"));
        let spawned = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { process, spawned, folder })
    }

    /// Starts the agent and waits until it answers.
    pub fn start(program: &Path, options: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(program, options)?;
        agent.wait_for_first_answer(Duration::from_millis(1))?;
        Ok(agent)
    }

    /// Waits until it answers, looking for the socket at this interval. Returns the connection.
    pub fn wait_for_first_answer(&mut self, interval: Duration) -> Result<Connection<UnixStream>> {
        let deadline = Instant::now() + START;
        loop {
            if let Ok(mut connection) = self.connect() {
                connection.sync()?;
                return Ok(connection);
            }
            if let Some(status) = self.process.try_wait().context("cannot ask after the agent")? {
                bail!("the agent ended with {status} instead of starting: {}", self.errors());
            }
            if Instant::now() > deadline {
                bail!("the agent made no socket within {} s: {}", START.as_secs(), self.errors());
            }
            std::thread::sleep(interval);
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The private folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The time since its start.
    pub fn age(&self) -> Duration {
        self.spawned.elapsed()
    }

    /// A new connection.
    pub fn connect(&self) -> Result<Connection<UnixStream>> {
        self.connect_with(Timeouts::default())
    }

    /// A new connection with other time-outs.
    pub fn connect_with(&self, timeouts: Timeouts) -> Result<Connection<UnixStream>> {
        Connection::unix_with(self.socket(), timeouts).context("cannot reach the agent")
    }

    fn errors(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
        let text = text.trim();
        if text.is_empty() { "it said nothing".to_owned() } else { text.to_owned() }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // No way back is needed: whatever it holds is in the folder, which goes too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
