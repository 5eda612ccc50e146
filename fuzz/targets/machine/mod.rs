//! A recorded machine, one file of which is the fuzzer's, and the whole agent that is asked about it.
//!
//! The machine stands in memory (`/dev/shm`), so a run costs what the reader costs.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qga_agent::root::Root;
use serde_json::Value;

/// More time than any reader needs, on any machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of reply that one byte of input may cause. The largest are names of files in escapes, told several times.
const REPLY_BYTES_PER_BYTE: usize = 600;
/// Bytes of reply that the rest of the machine causes.
const REPLY_BYTES_OF_THE_REST: usize = 16 << 10;
/// How the directories of machines begin.
const PREFIX: &str = "qga-fuzz-";
/// What separates the files in an input that holds several.
const SEPARATOR: &[u8] = b"\n%%\n";

/// A machine and its agent.
pub struct Machine {
    directory: PathBuf,
    connection: BufReader<UnixStream>,
}

impl Machine {
    /// A machine without files.
    pub fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        remove_left_over(&parent);
        let directory = parent.join(format!("{PREFIX}{name}-{}", std::process::id()));
        let state = directory.join("state");
        fs::create_dir_all(&state).expect("a directory for the machine");
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let root = Root::at(directory.join("root"));
        std::thread::spawn(move || qga_agent::serve_recorded(root, &state, theirs));
        Self { directory: directory.join("root"), connection: BufReader::new(ours) }
    }

    /// Where a path of the machine is.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.join(path.trim_start_matches('/'))
    }

    /// Makes a file what it is to be.
    pub fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        if fs::write(&path, content).is_err() {
            fs::create_dir_all(path.parent().expect("not the root")).expect("a directory can be made");
            fs::write(&path, content).expect("a file can be written");
        }
    }

    /// Makes a symbolic link, if the system lets one be so.
    pub fn link(&self, path: &str, target: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("not the root")).expect("a directory can be made");
        let _ = fs::remove_file(&path);
        let target = if target.is_empty() { b"x" } else { target };
        let _ = symlink(OsStr::from_bytes(target), &path);
    }

    /// Forgets what is at a path and below.
    pub fn remove(&self, path: &str) {
        let _ = fs::remove_dir_all(self.path(path));
    }

    /// Forgets a file.
    pub fn remove_file(&self, path: &str) {
        let _ = fs::remove_file(self.path(path));
    }

    /// Asks a command and sees that the answer is one line of JSON that is in proportion to the input.
    pub fn ask(&mut self, command: &str, input_bytes: usize) -> Value {
        writeln!(self.connection.get_mut(), "{{\"execute\":\"{command}\"}}").expect("the agent reads");
        let mut line = String::new();
        self.connection.read_line(&mut line).expect("the agent answers in time");
        let limit = REPLY_BYTES_OF_THE_REST + REPLY_BYTES_PER_BYTE * input_bytes;
        assert!(line.len() <= limit, "{command}: {} bytes of reply for {input_bytes} of input", line.len());
        let reply: Value = serde_json::from_str(&line).expect("a reply must be JSON");
        let told = reply["error"]["desc"].as_str().unwrap_or_default();
        assert!(!told.contains("inside the agent"), "{command}: {told}");
        reply
    }
}

/// Removes the machines of runs that have ended: a fuzzer ends without a chance to do so itself.
fn remove_left_over(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The files in an input, as many as are wanted; those that it lacks are empty.
pub fn files<const COUNT: usize>(input: &[u8]) -> [&[u8]; COUNT] {
    let mut rest = input;
    std::array::from_fn(|index| {
        let end = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
        match end {
            Some(end) if index + 1 < COUNT => {
                let (file, after) = rest.split_at(end);
                rest = &after[SEPARATOR.len()..];
                file
            }
            _ => std::mem::take(&mut rest),
        }
    })
}
