//! What the tests with a real agent stand on: the agent that `AGENT_UNDER_TEST` names, the original without it.

#![allow(dead_code)] // each test file uses its part

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use qga_client::{AnyAgent, Console, Input, OutputStream, Program, Progress, Target, Timeouts, Wish};
use qga_compliance::{Agent, Subject};

/// An agent and a directory that it shares with the test.
pub struct Guest {
    agent: Agent,
    pub directory: tempfile::TempDir,
}

impl Guest {
    /// `None` for an agent that runs elsewhere: these tests look at its files.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    pub fn start_with(options: &[&str]) -> Option<Self> {
        let subject = Subject::under_test();
        subject.program()?;
        let agent = Agent::start(&subject, options).unwrap();
        let directory = tempfile::tempdir().unwrap();
        agent.is_local().then_some(Self { agent, directory })
    }

    /// A guest in which there are no other programs than these, and `/bin/sh`.
    pub fn start_with_programs(programs: &std::path::Path) -> Option<Self> {
        let subject = Subject::under_test();
        subject.program()?;
        let agent = Agent::start_with_programs(&subject, programs).unwrap();
        Some(Self { agent, directory: tempfile::tempdir().unwrap() })
    }

    pub fn target(&self) -> Target {
        Target::Unix(self.agent.directory().join("socket"))
    }

    pub fn connect(&self) -> AnyAgent {
        qga_client::Agent::connect(&self.target(), Timeouts::default()).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

pub fn shell(script: &str) -> Program {
    Program { path: "sh".to_owned(), arguments: vec!["-c".to_owned(), script.to_owned()], ..Program::default() }
}

pub fn no_progress(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Bytes that repeat nowhere near: pieces of multiples of an odd number.
pub fn noise(size: usize) -> Vec<u8> {
    let words = (1..=size as u64).map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    words.map(|word| (word >> 40 ^ word >> 21) as u8).collect()
}

/// Keeps what a program writes, feeds it, and ends it when told.
#[derive(Default)]
pub struct Recorder {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The pieces in which it came.
    pub pieces: Vec<Vec<u8>>,
    pub input: Vec<Vec<u8>>,
    /// What to do once there is output.
    pub then: Option<Wish>,
}

impl Console for Recorder {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
        match stream {
            OutputStream::Stdout => self.stdout.extend(bytes),
            OutputStream::Stderr => self.stderr.extend(bytes),
        }
        self.pieces.push(bytes.to_vec());
        Ok(())
    }

    fn input(&mut self) -> std::io::Result<Input> {
        Ok(self.input.pop().map_or(Input::End, Input::Bytes))
    }

    fn wish(&mut self) -> Wish {
        self.then.filter(|_| !self.stdout.is_empty()).unwrap_or(Wish::GoOn)
    }
}

/// What the client's own programs leave in the guest's `/tmp`.
pub fn leftovers() -> Vec<PathBuf> {
    let name = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".qga-"));
    fs::read_dir("/tmp").unwrap().flatten().map(|entry| entry.path()).filter(name).collect()
}
