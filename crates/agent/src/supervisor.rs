//! The main thread's work: signals, and the pipes and ends of all programs that clients have started.
//!
//! One thread waits for all of it, whatever the number of programs. It never blocks but in poll(2): pipes are
//! non-blocking, and processes are asked for their end, not waited for.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use crate::programs::{Exit, Programs, Started};

/// Bytes taken from a pipe in one go: what a pipe holds.
const PIPE_BYTES: usize = 64 << 10;
/// Pipes of ended programs that their descendants still hold. Beyond that, the one that was left first is closed.
const LEFT_OPEN_MAX: usize = 64;

/// Waits for signals and serves programs.
pub struct Supervisor {
    programs: Programs,
    wake: UnixStream,
    ended: Arc<AtomicBool>,
    hung_up: Arc<AtomicBool>,
    running: HashMap<i32, Running>,
    /// Output pipes of programs that have ended, held open by processes that they have left behind: read and dropped,
    /// so that these do not die of a closed pipe.
    left_open: Vec<OwnedFd>,
    buffer: Vec<u8>,
}

/// A program that has not ended.
struct Running {
    output: [Option<OwnedFd>; 2],
    input: Option<Feed>,
}

/// What is still to be sent to a program.
struct Feed {
    pipe: OwnedFd,
    data: Vec<u8>,
    sent: usize,
}

/// Which of its pipes.
#[derive(Clone, Copy)]
enum Pipe {
    Output(i32, usize),
    Input(i32),
    LeftOpen(usize),
}

impl Supervisor {
    /// Takes over SIGTERM, SIGINT, SIGHUP and SIGCHLD.
    pub fn new(programs: &Programs) -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let (ended, hung_up) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&ended))?;
        }
        signal_hook::flag::register(SIGHUP, Arc::clone(&hung_up))?;
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGCHLD] {
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        programs.set_wake(move || {
            // A full pipe wakes as well.
            let _ = rustix::io::write(&waker, &[0]);
        });
        Ok(Self {
            programs: programs.clone(),
            wake,
            ended,
            hung_up,
            running: HashMap::new(),
            left_open: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Works until SIGTERM or SIGINT.
    pub fn run(mut self) {
        while !self.ended.load(Ordering::Relaxed) {
            let ready = self.wait();
            if self.hung_up.swap(false, Ordering::Relaxed) {
                crate::log::reopen();
            }
            // Positions in `left_open` stay valid as long as its later ones are served first.
            for pipe in ready.into_iter().rev() {
                self.serve(pipe);
            }
            for Started { pid, output, input } in self.programs.take_started() {
                let input = input.map(|(pipe, data)| Feed { pipe, data, sent: 0 });
                self.running.insert(pid, Running { output, input });
            }
            self.reap();
        }
    }

    /// Waits for something to happen; returns the pipes that are ready.
    fn wait(&mut self) -> Vec<Pipe> {
        let mut pipes = Vec::new();
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        for (pid, program) in &self.running {
            for (stream, pipe) in program.output.iter().enumerate() {
                if let Some(pipe) = pipe {
                    pipes.push(Pipe::Output(*pid, stream));
                    polled.push(PollFd::new(pipe, PollFlags::IN));
                }
            }
            if let Some(feed) = &program.input {
                pipes.push(Pipe::Input(*pid));
                polled.push(PollFd::new(&feed.pipe, PollFlags::OUT));
            }
        }
        for (index, pipe) in self.left_open.iter().enumerate() {
            pipes.push(Pipe::LeftOpen(index));
            polled.push(PollFd::new(pipe, PollFlags::IN));
        }
        if let Err(error) = poll(&mut polled, None)
            && error != Errno::INTR
        {
            log::error!("cannot wait for programs: {error}");
            std::thread::sleep(std::time::Duration::from_millis(100));
            return Vec::new();
        }
        let is_ready = |polled: &PollFd<'_>| !polled.revents().is_empty();
        let woken = is_ready(&polled[0]);
        let ready = pipes.iter().zip(&polled[1..]).filter(|(_, polled)| is_ready(polled)).map(|(pipe, _)| *pipe);
        let ready = ready.collect();
        if woken {
            let mut bytes = [0; 64];
            while matches!(rustix::io::read(&self.wake, &mut bytes), Ok(1..)) {}
        }
        ready
    }

    fn serve(&mut self, pipe: Pipe) {
        match pipe {
            Pipe::Output(pid, stream) => {
                let Some(program) = self.running.get_mut(&pid) else { return };
                let Some(pipe) = &program.output[stream] else { return };
                if take(&self.programs, &mut self.buffer, pid, stream, pipe).is_none() {
                    program.output[stream] = None;
                }
            }
            Pipe::Input(pid) => {
                let Some(program) = self.running.get_mut(&pid) else { return };
                let Some(feed) = &mut program.input else { return };
                match rustix::io::write(&feed.pipe, &feed.data[feed.sent..]) {
                    Ok(count) => feed.sent += count,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    // The program does not want the rest.
                    Err(_) => feed.sent = feed.data.len(),
                }
                if feed.sent == feed.data.len() {
                    program.input = None;
                }
            }
            Pipe::LeftOpen(index) => {
                self.buffer.resize(PIPE_BYTES, 0);
                match rustix::io::read(&self.left_open[index], &mut self.buffer[..]) {
                    Ok(1..) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Ok(0) | Err(_) => drop(self.left_open.remove(index)),
                }
            }
        }
    }

    /// Notes which programs have ended, after the last of their own output.
    fn reap(&mut self) {
        let pids: Vec<i32> = self.running.keys().copied().collect();
        for pid in pids {
            let Some(process) = Pid::from_raw(pid) else { continue };
            let exit = match waitpid(Some(process), WaitOptions::NOHANG) {
                Ok(None) => continue,
                Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => continue,
                },
                Err(error) => {
                    log::error!("cannot ask how program {pid} ended: {error}");
                    Exit::Code(255)
                }
            };
            let Some(program) = self.running.remove(&pid) else { continue };
            for (stream, pipe) in program.output.into_iter().enumerate() {
                let Some(pipe) = pipe else { continue };
                // Whatever the program itself wrote is in the pipe by now; its descendants may write for ever.
                let mut left = crate::programs::STREAM_BYTES_MAX;
                let open = loop {
                    match take(&self.programs, &mut self.buffer, pid, stream, &pipe) {
                        None => break false,
                        Some(0) => break true,
                        Some(count) if count >= left => break true,
                        Some(count) => left -= count,
                    }
                };
                if open {
                    self.left_open.push(pipe);
                }
            }
            self.programs.end(pid, exit);
        }
        let surplus = self.left_open.len().saturating_sub(LEFT_OPEN_MAX);
        self.left_open.drain(..surplus);
        if self.running.is_empty() && self.left_open.is_empty() {
            self.buffer = Vec::new();
        }
    }
}

/// Keeps what a pipe holds. `None` at its end, 0 if it is empty.
fn take(programs: &Programs, buffer: &mut Vec<u8>, pid: i32, stream: usize, pipe: &OwnedFd) -> Option<usize> {
    buffer.resize(PIPE_BYTES, 0);
    match rustix::io::read(pipe, &mut buffer[..]) {
        Ok(0) => None,
        Ok(count) => {
            programs.keep(pid, stream, &buffer[..count]);
            Some(count)
        }
        Err(Errno::AGAIN | Errno::INTR) => Some(0),
        Err(error) => {
            log::warn!("cannot read the output of program {pid}: {error}");
            None
        }
    }
}
