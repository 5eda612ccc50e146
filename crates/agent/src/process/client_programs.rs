//! The programs that clients have started: what is known of each until its result is fetched.
//!
//! Commands start programs and ask for results; the [supervisor](crate::process::supervisor) waits for their pipes and ends. What
//! there is to do then is done here, under the table's lock, by whoever comes first: so a program that has just ended is
//! found ended by the client that asks, without a word between threads. Everything is counted: programs, pipes, and the
//! bytes of output that wait to be fetched. Nothing here blocks.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::io::Errno;

use super::child::{Child, Exit};
use super::kept_output::{OUTPUT_BYTES_MAX, Output, PIPE_BYTES, RESULT_AGE, STREAM_BYTES_MAX, Status};
use crate::limits::memory_budget::{Budget, Hold};
use crate::process::keeper::{self, Unfetched, Ward};
use crate::system::error::Error;

/// Programs that run or whose results nobody has fetched.
const PROGRAMS_MAX: usize = 512;
/// Bytes of output that are kept whatever else clients hold of the agent's memory.
const OUTPUT_BYTES_FREE: usize = STREAM_BYTES_MAX;
/// Programs that run with pipes at once: three descriptors each, of the 1024 that a process usually may have.
const PIPED_PROGRAMS_MAX: usize = 128;
/// The largest pipe that the system usually allows.
const LARGE_PIPE_BYTES: usize = 1 << 20;

/// The table.
#[derive(Clone, Default)]
pub struct Programs(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    wake: Mutex<Option<Box<dyn Fn() + Send>>>,
}

struct Table {
    known: HashMap<i32, Program>,
    /// Places that are promised to programs about to start.
    reserved: usize,
    /// Bytes of output that are kept.
    output_bytes: usize,
    /// What they hold of the agent's memory.
    held: Hold,
}

impl Default for Table {
    fn default() -> Self {
        let held = Budget::default().hold_with_free(OUTPUT_BYTES_FREE);
        Self { known: HashMap::new(), reserved: 0, output_bytes: 0, held }
    }
}

/// What is known of one program.
struct Program {
    child: Child,
    /// Standard output and standard error.
    output: [Output; 2],
    pipes: [Option<Arc<OwnedFd>>; 2],
    input: Option<Feed>,
    ended: Option<(Exit, Instant)>,
    /// As the keeper knows it, while it runs.
    ward: Option<Ward>,
    /// Whether the keeper is to know its output; not if the system does not allow that.
    is_shared: bool,
}

impl Program {
    fn has_pipes(&self) -> bool {
        self.input.is_some() || self.pipes.iter().any(Option::is_some)
    }
}

/// What is still to be sent to a program.
struct Feed {
    pipe: Arc<OwnedFd>,
    input: Input,
}

/// Data for a program's standard input, with what it takes of the agent's budget.
pub struct Input {
    data: Vec<u8>,
    sent: usize,
    _held: Hold,
}

impl Input {
    /// The data, for which so much is held.
    pub fn new(data: Vec<u8>, held: Hold) -> Self {
        Self { data, sent: 0, _held: held }
    }

    /// Makes a pipe as large as it needs, as far as the system allows: what is in the pipe is not lost with the agent.
    pub fn widen(&self, pipe: &OwnedFd) {
        if self.data.len() > PIPE_BYTES {
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, self.data.len().min(LARGE_PIPE_BYTES));
        }
    }

    /// Sends what the pipe takes. True if that was all, or nobody wants the rest.
    pub fn send(&mut self, pipe: &OwnedFd) -> bool {
        while self.sent < self.data.len() {
            match rustix::io::write(pipe, &self.data[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => return true,
            }
        }
        true
    }
}

/// A program that has just been started, with our ends of its pipes, which do not block.
pub struct Started {
    /// The process.
    pub child: Child,
    /// Where its standard output and standard error come from, if they are kept.
    pub output: [Option<OwnedFd>; 2],
    /// Where its standard input goes to, and what is to be sent.
    pub input: Option<(OwnedFd, Input)>,
    /// As the keeper knows it.
    pub ward: Option<Ward>,
}

/// A pipe to be waited for.
pub enum Waiting {
    /// Has something to be read, or ends.
    ToRead(Arc<OwnedFd>),
    /// Takes something, or breaks.
    ToWrite(Arc<OwnedFd>),
}

impl Programs {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what makes the supervisor look at the table.
    pub fn set_wake(&self, wake: impl Fn() + Send + 'static) {
        *self.0.wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(wake));
    }

    /// Promises a place for a program that is about to start. `act` begins the error's text.
    pub fn reserve(&self, act: &str) -> Result<Place<'_>, Error> {
        let mut table = self.lock();
        if table.known.len() + table.reserved >= PROGRAMS_MAX {
            table.forget_oldest();
        }
        let count = table.known.len() + table.reserved;
        if count >= PROGRAMS_MAX {
            return Err(Error::new(format!(
                "{act}: {count} programs run or have results that nobody has fetched: guest-exec-status fetches them"
            )));
        }
        let piped = table.known.values().filter(|program| program.has_pipes()).count();
        if piped >= PIPED_PROGRAMS_MAX {
            return Err(Error::new(format!("{act}: {piped} programs run whose input or output the agent carries")));
        }
        let kept = table.output_bytes;
        if kept >= OUTPUT_BYTES_MAX {
            return Err(Error::new(format!(
                "{act}: {kept} bytes of output of other programs wait to be fetched: guest-exec-status fetches them"
            )));
        }
        if let Some(pipes) = keeper::too_many_left() {
            return Err(Error::new(format!(
                "{act}: processes that earlier programs have left behind hold {pipes} pipes open for their output: end \
                 some of them"
            )));
        }
        table.reserved += 1;
        Ok(Place(self))
    }

    /// What all clients may hold of the agent's memory, out of which the output is kept.
    pub fn budget(&self) -> Budget {
        self.lock().held.budget()
    }

    /// Whether it is a program of this agent's whose result nobody has fetched.
    pub fn knows(&self, pid: i32) -> bool {
        self.lock().known.contains_key(&pid)
    }

    /// How a program is doing. A result is handed over once. `None` for an unknown program.
    pub fn status(&self, pid: i32) -> Option<Status> {
        let mut table = self.lock();
        if table.known.get(&pid)?.ended.is_none() {
            table.reap(pid, &mut Vec::new());
        }
        match table.known.get(&pid)?.ended {
            None => Some(Status::Running),
            Some((exit, _)) => table.remove(pid).map(|output| Status::Ended(Some(exit), output)),
        }
    }

    /// The pipes to be waited for. For the supervisor.
    pub fn waiting(&self) -> Vec<Waiting> {
        let table = self.lock();
        let outputs = table.known.values().flat_map(|program| &program.pipes).flatten();
        let inputs = table.known.values().filter_map(|program| program.input.as_ref());
        outputs
            .map(|pipe| Waiting::ToRead(Arc::clone(pipe)))
            .chain(inputs.map(|feed| Waiting::ToWrite(Arc::clone(&feed.pipe))))
            .collect()
    }

    /// Moves what can be moved through all pipes, and notes which programs have ended. For the supervisor.
    pub fn serve(&self) {
        let mut table = self.lock();
        let mut buffer = Vec::new();
        let running: Vec<i32> =
            table.known.iter().filter(|(_, program)| program.ended.is_none()).map(|(pid, _)| *pid).collect();
        for pid in running {
            table.feed(pid);
            table.share(pid);
            table.take(pid, 0, &mut buffer);
            table.take(pid, 1, &mut buffer);
            table.reap(pid, &mut buffer);
        }
    }

    /// Whether there are none, not even results.
    pub fn is_empty(&self) -> bool {
        let table = self.lock();
        table.known.is_empty() && table.reserved == 0
    }

    /// Leaves all of them to the keeper, because the agent is about to end. No program is started or served after it.
    pub fn hand_over(&self) {
        self.serve();
        let mut table = self.lock();
        let unfetched = table.known.iter_mut().filter_map(|(pid, program)| {
            let (exit, _) = program.ended?;
            Some(Unfetched { pid: *pid, exit, output: &mut program.output })
        });
        keeper::take_over(unfetched);
        std::mem::forget(table);
    }
}

impl Table {
    /// Makes room by dropping the result that has waited the longest, if that is long enough.
    fn forget_oldest(&mut self) {
        let ended = self.known.iter().filter_map(|(pid, program)| Some((*pid, program.ended?.1)));
        if let Some((pid, since)) = ended.min_by_key(|(_, since)| *since)
            && since.elapsed() >= RESULT_AGE
        {
            let seconds = since.elapsed().as_secs();
            log::warn!("nobody has fetched the result of program {pid} for {seconds} s: it is dropped");
            self.remove(pid);
        }
    }

    fn remove(&mut self, pid: i32) -> Option<[Output; 2]> {
        let program = self.known.remove(&pid)?;
        self.output_bytes -= program.output.iter().map(Output::len).sum::<usize>();
        self.held.resize(self.output_bytes);
        Some(program.output)
    }

    /// Sends a program what it takes of its input.
    fn feed(&mut self, pid: i32) {
        let Some(program) = self.known.get_mut(&pid) else { return };
        let Some(feed) = &mut program.input else { return };
        if feed.input.send(&feed.pipe) {
            program.input = None;
        }
    }

    /// Has the keeper know what has come so far, and what comes from now on while the program runs.
    fn share(&mut self, pid: i32) {
        let Some(program) = self.known.get_mut(&pid) else { return };
        let Some(ward) = program.ward.as_ref().filter(|_| program.is_shared) else { return };
        for stream in 0..2 {
            let Some(pipe) = &program.pipes[stream] else { continue };
            let output = &mut program.output[stream];
            if output.file().is_none() && rustix::io::ioctl_fionread(pipe).is_ok_and(|bytes| bytes > 0) {
                match output.shared() {
                    Ok(file) => ward.keeps(stream, file),
                    Err(error) => {
                        log::warn!("the output of program {pid} would be lost with the agent: {error}");
                        program.is_shared = false;
                        return;
                    }
                }
            }
        }
    }

    /// Keeps what a pipe holds, up to the limits. False if it holds nothing now.
    fn take(&mut self, pid: i32, stream: usize, buffer: &mut Vec<u8>) -> bool {
        let Some(program) = self.known.get_mut(&pid) else { return false };
        let Some(pipe) = &program.pipes[stream] else { return false };
        buffer.resize(PIPE_BYTES, 0);
        match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(0) => {
                program.pipes[stream] = None;
                false
            }
            Ok(count) => {
                let output = &mut program.output[stream];
                let was_truncated = output.is_truncated();
                let room = (OUTPUT_BYTES_MAX - self.output_bytes).min(self.held.room());
                self.output_bytes += output.keep(&buffer[..count], room);
                self.held.resize(self.output_bytes);
                if let Some(ward) = program.ward.as_ref().filter(|_| output.is_truncated() && !was_truncated) {
                    ward.has_truncated(stream);
                }
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(error) => {
                log::warn!("cannot read the output of program {pid}: {error}");
                program.pipes[stream] = None;
                false
            }
        }
    }

    /// Asks whether a program has ended, and notes it after the last of the program's own output.
    fn reap(&mut self, pid: i32, buffer: &mut Vec<u8>) {
        let Some(program) = self.known.get(&pid) else { return };
        let exit = match program.child.ended() {
            Ok(None) => return,
            Ok(Some(exit)) => exit,
            Err(error) => {
                log::error!("cannot ask how program {pid} ended: {error}");
                Exit::Code(255)
            }
        };
        for stream in 0..2 {
            // What the program itself wrote is in the pipe by now; its descendants may write for ever.
            let mut pieces_left = STREAM_BYTES_MAX / PIPE_BYTES;
            while pieces_left > 0 && self.take(pid, stream, buffer) {
                pieces_left -= 1;
            }
        }
        let Some(program) = self.known.get_mut(&pid) else { return };
        program.input = None;
        // Processes that it has left behind may write on: they must not die of a closed pipe.
        let left: Vec<_> = program.pipes.iter_mut().filter_map(Option::take).collect();
        if !program.ward.take().is_some_and(|ward| ward.ended(!left.is_empty())) {
            for pipe in &left {
                keeper::empty(pipe);
            }
        }
        for output in &mut program.output {
            if let Err(error) = output.close() {
                log::warn!("the output of program {pid} stays in a file: {error}");
            }
        }
        program.ended = Some((exit, Instant::now()));
    }
}

/// A promised place.
pub struct Place<'a>(&'a Programs);

impl Place<'_> {
    /// Puts a started program there.
    pub fn fill(self, started: Started) {
        let Started { child, output, input, ward } = started;
        let pid = child.pid().as_raw_pid();
        let program = Program {
            child,
            output: Default::default(),
            pipes: output.map(|pipe| pipe.map(Arc::new)),
            input: input.map(|(pipe, input)| Feed { pipe: Arc::new(pipe), input }),
            ended: None,
            ward,
            is_shared: true,
        };
        let has_pipes = program.has_pipes();
        let programs = self.0;
        let mut table = programs.lock();
        if table.remove(pid).is_some() {
            log::warn!("nobody has fetched the result of an earlier program {pid}: it is dropped");
        }
        table.known.insert(pid, program);
        table.feed(pid);
        // The end of a program wakes the supervisor by itself, but that may have been before it was in the table.
        table.reap(pid, &mut Vec::new());
        drop(table);
        if let Some(wake) = &*programs.0.wake.lock().unwrap_or_else(PoisonError::into_inner)
            && has_pipes
        {
            wake();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().reserved -= 1;
    }
}

#[cfg(test)]
#[path = "client_programs_tests.rs"]
mod tests;
