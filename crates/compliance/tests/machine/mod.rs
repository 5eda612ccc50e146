//! An agent that sees a machine made for a test: files mounted over the system's, another host name, own variables.
//!
//! Isolation: mount and host name namespaces of the agent's own. Nothing is changed on the machine itself; without the
//! right to make namespaces the cases are skipped.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qga_compliance::subject::Access;
use qga_compliance::{Agent, Connection, Failure, Kind, Received, Subject, Tally};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The cases of one table; each gets a machine of its own.
pub struct Machines {
    subject: Subject,
    tally: Tally,
    obstacle: Option<&'static str>,
}

/// A directory, `$machine` in the lines that prepare it, and the agent that came after them.
pub struct Machine {
    /// Whose behaviour to expect.
    pub kind: Kind,
    connection: Connection,
    directory: TempDir,
    _agent: Agent,
}

impl Machines {
    /// A table without cases yet.
    pub fn new(table: &str) -> Self {
        let subject = Subject::under_test();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--uts", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        let obstacle = if subject.program().is_none() {
            Some("the agent runs already on a machine that is as it is")
        } else if !unshare.status().is_ok_and(|status| status.success()) {
            Some("namespaces cannot be made here: unshare --mount --uts fails")
        } else {
            None
        };
        Self { subject, tally: Tally::new(table), obstacle }
    }

    /// Runs a case against an agent that starts after the shell lines of `prepare`.
    pub fn case(&mut self, name: &str, prepare: &str, run: impl FnOnce(&mut Machine) -> Result<(), Failure>) {
        self.case_with(name, &[], prepare, run);
    }

    /// Like [`Self::case`], with files that `prepare` finds in the directory.
    pub fn case_with(
        &mut self,
        name: &str,
        files: &[(&str, &[u8])],
        prepare: &str,
        run: impl FnOnce(&mut Machine) -> Result<(), Failure>,
    ) {
        match (self.obstacle, self.subject.program()) {
            (None, Some(program)) => {
                let machine = Machine::start(program, self.subject.kind, files, prepare);
                self.tally.record(name, machine.and_then(|mut machine| run(&mut machine)));
            }
            (obstacle, _) => self.tally.skip(name, obstacle.unwrap_or_default()),
        }
    }

    /// Counts a case that this machine cannot run.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.tally.skip(name, reason);
    }

    /// Tells the numbers and fails if a case failed.
    pub fn finish(self) {
        self.tally.finish();
    }
}

impl Machine {
    fn start(program: &Path, kind: Kind, files: &[(&str, &[u8])], prepare: &str) -> Result<Self, Failure> {
        let told = |error: std::io::Error| format!("the machine cannot be made: {error}");
        let directory = TempDir::with_prefix("qga-machine-").map_err(told)?;
        let inside = |name: &str| directory.path().join(name);
        let start = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/start.sh");
        symlink(start, inside("start")).map_err(told)?;
        symlink(program, inside("program")).map_err(told)?;
        fs::write(inside("prepare"), prepare).map_err(told)?;
        for (name, bytes) in files {
            fs::write(inside(name), bytes).map_err(told)?;
        }
        let agent = Agent::start(&Subject { kind, access: Access::Program(inside("start")) }, &[])?;
        let connection = agent.connect()?;
        Ok(Self { kind, connection, directory, _agent: agent })
    }

    /// A path in the machine's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the preparation has written to a file, word by word.
    pub fn words(&self, name: &str) -> Result<Vec<String>, Failure> {
        let text = fs::read_to_string(self.path(name)).map_err(|error| format!("{name}: {error}"))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// Asks for a command without arguments.
    pub fn ask(&mut self, command: &str) -> Result<Received, Failure> {
        self.connection.ask(&json!({ "execute": command }).to_string())
    }

    /// Asks for a command with arguments.
    pub fn ask_with(&mut self, command: &str, arguments: &Value) -> Result<Received, Failure> {
        self.connection.ask(&json!({ "execute": command, "arguments": arguments }).to_string())
    }

    /// The result of a command without arguments.
    pub fn returned(&mut self, command: &str) -> Result<Value, Failure> {
        let reply = self.ask(command)?;
        reply.returned().cloned().ok_or_else(|| reply.shown())
    }

    /// Whether a command's result is this.
    pub fn expect(&mut self, command: &str, expected: &Value) -> Result<(), Failure> {
        same(&self.returned(command)?, expected)
    }

    /// Whether a command fails with this text.
    pub fn expect_error(&mut self, command: &str, expected: &str) -> Result<(), Failure> {
        let reply = self.ask(command)?;
        let found =
            reply.error_text().ok_or_else(|| format!("expected the error: {expected}\nfound: {}", reply.shown()))?;
        same(&Value::from(found), &Value::from(expected))
    }
}

/// Whether two values are the same; a number may be written with or without a fraction.
pub fn same(found: &Value, expected: &Value) -> Result<(), Failure> {
    if equal(found, expected) { Ok(()) } else { Err(format!("expected {expected}\nfound    {found}")) }
}

fn equal(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Number(found), Value::Number(expected)) => found == expected || found.as_f64() == expected.as_f64(),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(found, expected)| equal(found, expected))
        }
        (Value::Object(found), Value::Object(expected)) => {
            found.len() == expected.len()
                && found.iter().all(|(name, found)| expected.get(name).is_some_and(|expected| equal(found, expected)))
        }
        _ => found == expected,
    }
}
