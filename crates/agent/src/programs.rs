//! The programs that clients have started: what is known of each until its result is fetched.
//!
//! Commands start programs and ask for results; the [supervisor](crate::supervisor) alone owns their pipes, feeds and
//! empties them, and reaps the processes. Both meet in the table here. Everything is counted: programs, and the bytes of
//! output that wait to be fetched.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;

/// Most bytes kept of one stream of one program; the rest is read and dropped.
pub const STREAM_BYTES_MAX: usize = 16 << 20;
/// Most bytes kept of all programs together.
const OUTPUT_BYTES_MAX: usize = 128 << 20;
/// Programs that run or whose results nobody has fetched.
const PROGRAMS_MAX: usize = 512;
/// A result that nobody has fetched for this long makes room if room is needed.
const RESULT_AGE: Duration = Duration::from_secs(3600);

/// The table.
#[derive(Clone, Default)]
pub struct Programs(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// Bytes of output that are kept.
    output_bytes: AtomicUsize,
    wake: Mutex<Option<Box<dyn Fn() + Send>>>,
}

#[derive(Default)]
struct Table {
    known: HashMap<i32, Record>,
    /// Places that are promised to programs about to start.
    reserved: usize,
    /// Started, not yet seen by the supervisor.
    started: Vec<Started>,
}

/// What is known of one program.
#[derive(Default)]
struct Record {
    /// Standard output and standard error.
    output: [Output; 2],
    ended: Option<(Exit, Instant)>,
}

/// What was kept of a stream.
#[derive(Debug, Default)]
pub struct Output {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// More came than is kept.
    pub truncated: bool,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A program's ends of pipes, for the supervisor.
pub struct Started {
    /// The process.
    pub pid: i32,
    /// Where its standard output and standard error come from, if they are kept.
    pub output: [Option<OwnedFd>; 2],
    /// Where its standard input goes to, and what is to be sent.
    pub input: Option<(OwnedFd, Vec<u8>)>,
}

/// What a client is told of a program.
#[derive(Debug)]
pub enum Status {
    /// It has not ended.
    Running,
    /// It has, with what was kept of its output.
    Ended(Exit, [Output; 2]),
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
            self.forget_oldest(&mut table);
        }
        let count = table.known.len() + table.reserved;
        if count >= PROGRAMS_MAX {
            return Err(Error::new(format!(
                "{act}: {count} programs run or have results that nobody has fetched: guest-exec-status fetches them"
            )));
        }
        let kept = self.0.output_bytes.load(Ordering::Relaxed);
        if kept >= OUTPUT_BYTES_MAX {
            return Err(Error::new(format!(
                "{act}: {kept} bytes of output of other programs wait to be fetched: guest-exec-status fetches them"
            )));
        }
        table.reserved += 1;
        Ok(Place(self))
    }

    /// Makes room by dropping the result that has waited the longest, if that is long enough.
    fn forget_oldest(&self, table: &mut Table) {
        let ended = table.known.iter().filter_map(|(pid, record)| Some((*pid, record.ended?.1)));
        if let Some((pid, since)) = ended.min_by_key(|(_, since)| *since)
            && since.elapsed() >= RESULT_AGE
        {
            log::warn!("nobody has fetched the result of program {pid} for {} s: it is dropped", since.elapsed().as_secs());
            self.remove(table, pid);
        }
    }

    fn remove(&self, table: &mut Table, pid: i32) -> Option<Record> {
        let record = table.known.remove(&pid)?;
        let bytes = record.output.iter().map(|output| output.bytes.len()).sum();
        self.0.output_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(record)
    }

    /// How a program is doing. A result is handed over once. `None` for an unknown program.
    pub fn status(&self, pid: i32) -> Option<Status> {
        let mut table = self.lock();
        if table.known.get(&pid)?.ended.is_none() {
            return Some(Status::Running);
        }
        let Record { output, ended } = self.remove(&mut table, pid)?;
        ended.map(|(exit, _)| Status::Ended(exit, output))
    }

    /// Programs that have started since the last call. For the supervisor.
    pub fn take_started(&self) -> Vec<Started> {
        std::mem::take(&mut self.lock().started)
    }

    /// Keeps output of a program, up to the limits. For the supervisor.
    pub fn keep(&self, pid: i32, stream: usize, bytes: &[u8]) {
        let mut table = self.lock();
        let Some(record) = table.known.get_mut(&pid).filter(|record| record.ended.is_none()) else { return };
        let output = &mut record.output[stream];
        let room = STREAM_BYTES_MAX - output.bytes.len();
        let room = room.min(OUTPUT_BYTES_MAX.saturating_sub(self.0.output_bytes.load(Ordering::Relaxed)));
        let kept = &bytes[..bytes.len().min(room)];
        output.bytes.extend_from_slice(kept);
        output.truncated |= kept.len() < bytes.len();
        self.0.output_bytes.fetch_add(kept.len(), Ordering::Relaxed);
    }

    /// Notes that a program has ended and all its output is kept. For the supervisor.
    pub fn end(&self, pid: i32, exit: Exit) {
        if let Some(record) = self.lock().known.get_mut(&pid) {
            record.ended = Some((exit, Instant::now()));
            for output in &mut record.output {
                output.bytes.shrink_to_fit();
            }
        }
    }
}

/// A promised place.
pub struct Place<'a>(&'a Programs);

impl Place<'_> {
    /// Puts a started program there.
    pub fn fill(self, started: Started) {
        let programs = self.0;
        let mut table = programs.lock();
        if programs.remove(&mut table, started.pid).is_some() {
            log::warn!("nobody has fetched the result of an earlier program {}: it is dropped", started.pid);
        }
        table.known.insert(started.pid, Record::default());
        table.started.push(started);
        drop(table);
        if let Some(wake) = &*programs.0.wake.lock().unwrap_or_else(PoisonError::into_inner) {
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
mod tests {
    use super::{Exit, PROGRAMS_MAX, Programs, STREAM_BYTES_MAX, Started, Status};

    fn start(programs: &Programs, pid: i32) {
        programs.reserve("test").unwrap().fill(Started { pid, output: [None, None], input: None });
    }

    #[test]
    fn a_result_is_handed_over_once() {
        let programs = Programs::default();
        start(&programs, 7);
        programs.keep(7, 0, b"out");
        assert!(matches!(programs.status(7), Some(Status::Running)));
        programs.end(7, Exit::Code(3));
        let Some(Status::Ended(exit, output)) = programs.status(7) else { panic!("it has ended") };
        assert_eq!((exit, &*output[0].bytes, output[0].truncated), (Exit::Code(3), &b"out"[..], false));
        assert!(programs.status(7).is_none());
    }

    #[test]
    fn exactly_the_limit_is_not_truncated_and_more_is() {
        let programs = Programs::default();
        start(&programs, 7);
        programs.keep(7, 0, &vec![1; STREAM_BYTES_MAX]);
        programs.keep(7, 1, &vec![1; STREAM_BYTES_MAX]);
        programs.keep(7, 1, b"x");
        programs.end(7, Exit::Code(0));
        let Some(Status::Ended(_, output)) = programs.status(7) else { panic!("it has ended") };
        assert_eq!(output.map(|output| (output.bytes.len(), output.truncated)), [
            (STREAM_BYTES_MAX, false),
            (STREAM_BYTES_MAX, true)
        ]);
    }

    #[test]
    fn programs_and_their_output_are_limited() {
        let programs = Programs::default();
        for pid in 0..PROGRAMS_MAX as i32 {
            start(&programs, pid);
        }
        assert!(programs.reserve("test").is_err_and(|error| error.desc.contains("512 programs")));
        programs.end(0, Exit::Code(0));
        programs.status(0);
        drop(programs.reserve("test").unwrap());
        for pid in 1..9 {
            programs.keep(pid, 0, &vec![1; STREAM_BYTES_MAX]);
        }
        assert!(programs.reserve("test").is_err_and(|error| error.desc.contains("134217728 bytes of output")));
        for pid in 1..9 {
            programs.end(pid, Exit::Code(0));
            programs.status(pid);
        }
        drop(programs.reserve("test").unwrap());
    }

    #[test]
    fn a_reused_process_id_means_the_newer_program() {
        let programs = Programs::default();
        start(&programs, 7);
        programs.keep(7, 0, b"old");
        programs.end(7, Exit::Code(1));
        start(&programs, 7);
        assert!(matches!(programs.status(7), Some(Status::Running)));
    }
}
