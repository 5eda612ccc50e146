//! A machine made of a directory and of rehearsed answers, which only notes what is done to it.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::time::Duration;

use super::super::target_state::End;
use super::machine::Machine;
use crate::process::child::Exit;
use crate::process::system_tool::{Ended, Tool};
use crate::system::root::Root;

/// The machine.
pub struct Staged {
    /// Its files.
    pub root: Root,
    /// What is done when a program or the kernel is asked: the start of the request, the exit status, the output.
    answers: Vec<(&'static str, i32, &'static str)>,
    done: RefCell<Vec<String>>,
    /// How long it has slept.
    pub asleep: Cell<Duration>,
    _directory: tempfile::TempDir,
}

impl Staged {
    /// A machine without files. Programs answer as is written for the longest start that fits, else by status 0.
    pub fn new(answers: &[(&'static str, i32, &'static str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            root: Root::at(directory.path()),
            answers: answers.to_vec(),
            done: RefCell::default(),
            asleep: Cell::default(),
            _directory: directory,
        }
    }

    /// Makes a file.
    pub fn put(&self, path: &str, text: &str) {
        let path = self.root.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What was done to the machine so far.
    pub fn done(&self) -> Vec<String> {
        self.done.borrow().clone()
    }

    fn note(&self, act: String) -> Option<(i32, &'static str)> {
        let fitting = self.answers.iter().filter(|(start, ..)| act.starts_with(start));
        let answer = fitting.max_by_key(|(start, ..)| start.len()).map(|(_, status, output)| (*status, *output));
        self.done.borrow_mut().push(act);
        answer
    }
}

impl Machine for Staged {
    fn root(&self) -> &Root {
        &self.root
    }

    fn run(&self, tool: &Tool, arguments: &[&str], _patience: Duration) -> io::Result<Ended> {
        let (status, output) = self.note(format!("{tool} {}", arguments.join(" "))).unwrap_or((0, ""));
        Ok(Ended { exit: Some(Exit::Code(status)), output: output.to_owned() })
    }

    fn order(&self, path: &str, order: &str) -> io::Result<()> {
        match self.note(format!("{order} > {path}")) {
            Some((error_number, _)) => Err(io::Error::from_raw_os_error(error_number)),
            None => Ok(()),
        }
    }

    fn signal_first_process(&self, number: i32) -> io::Result<()> {
        self.note(format!("signal {number}"));
        Ok(())
    }

    fn end_by_kernel(&self, end: End) -> io::Error {
        self.note(format!("{end:?} by the kernel"));
        io::Error::from_raw_os_error(1)
    }

    fn time_asleep(&self) -> Duration {
        self.asleep.get()
    }

    fn wait(&self, _time: Duration) {}
}
