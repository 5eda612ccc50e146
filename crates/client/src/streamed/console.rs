//! The host's end of a running program: what it takes, gives and wishes, how a program is run, and how a run ended.

use std::io;
use std::time::Duration;

use crate::program::Exit;

/// Which of a program's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What comes next on a program's standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing yet.
    NotYet,
    /// Nothing more.
    End,
}

/// What is to happen with a running program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It may run on.
    GoOn,
    /// It is asked to end (SIGTERM), and made to after [`RunOptions::grace`].
    Terminate,
    /// It is made to end at once (SIGKILL).
    Kill,
}

/// The host's end of a running program.
pub trait Console {
    /// Takes output as it comes. An error ends the program and the run.
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()>;

    /// Gives input, where [`RunOptions::interactive_input`] asks for it. Must not wait.
    fn input(&mut self) -> io::Result<Input> {
        Ok(Input::End)
    }

    /// The size of the window, lines and columns, where the program has a [`Terminal`](crate::Terminal). Must not wait.
    fn window(&mut self) -> Option<(u16, u16)> {
        None
    }

    /// Says whether the program may go on; asked at least ten times a second. Must not wait.
    fn wish(&mut self) -> Wish {
        Wish::GoOn
    }
}

/// Takes output alone.
impl<F: FnMut(OutputStream, &[u8]) -> io::Result<()>> Console for F {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        self(stream, bytes)
    }
}

/// How a program is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// After this time the program is ended; never if absent.
    pub time_limit: Option<Duration>,
    /// How long a program that was asked to end may take before it is made to.
    pub grace: Duration,
    /// Whether [`Console::input`] is what the program reads. [`Program::input`](crate::Program::input) comes first.
    pub interactive_input: bool,
    /// Whether output is handed on while the program runs, however much it is. Without, it comes at the end, at most
    /// 16 MiB of each stream; through libvirt, which drops a reply over 10 MiB, about 7 MiB of both together. A short
    /// program then takes a fraction of the time, since no shell is started in front of it. A program that leaves
    /// another one behind which holds its output counts as running for as long as that one does. Input that is interactive or
    /// long needs the shell all the same.
    pub live: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { time_limit: None, grace: Duration::from_secs(5), interactive_input: false, live: true }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What became of the program; 127 or 126 if it was not started.
    pub exit: Exit,
    /// Why the program was not started, if it was not: there is none, or not such a user or directory. A sentence's part.
    pub not_started: Option<String>,
    /// Whether it was ended by the time limit.
    pub timed_out: bool,
    /// Whether the output came as it was written; if not, it came at the end and may be cut.
    pub was_live: bool,
    /// Whether the end of an output is missing: it was longer than the agent keeps, or its console wanted an end first.
    pub is_cut: bool,
}
