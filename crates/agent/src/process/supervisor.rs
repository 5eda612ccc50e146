//! Waits for signals and for the pipes of all programs that clients have started.
//!
//! One thread waits for all of it, whatever the number of programs. It never blocks but in poll(2).

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use crate::process::child;
use crate::process::client_programs::{Programs, Waiting};
use crate::process::keeper;

/// Pause after waiting itself has failed.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long the keeper stays without a program.
const KEEPER_REST: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Waits for signals and serves programs.
pub struct Supervisor {
    programs: Programs,
    wake: UnixStream,
    ended: Arc<AtomicBool>,
    hung_up: Arc<AtomicBool>,
    inherits_orphans: bool,
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
        Ok(Self { programs: programs.clone(), wake, ended, hung_up, inherits_orphans: child::inherits_orphans() })
    }

    /// Works until SIGTERM or SIGINT.
    pub fn run(self) {
        while !self.ended.load(Ordering::Relaxed) {
            let has_waited_in_vain = self.wait();
            if has_waited_in_vain && self.programs.is_empty() {
                keeper::let_go();
            }
            child::reap_dropped();
            if self.hung_up.swap(false, Ordering::Relaxed) {
                crate::system::log::reopen();
            }
            // The agent's own children may be among them, so they are asked for after each lot.
            while self.inherits_orphans && child::reap() {
                self.programs.serve();
            }
            self.programs.serve();
        }
    }

    /// Waits for a signal, for a program that has been started, or for a pipe. True if none of them came for a while, which
    /// is only of interest if there is a keeper.
    fn wait(&self) -> bool {
        let waiting = self.programs.waiting();
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(waiting.iter().map(|waiting| match waiting {
            Waiting::ToRead(pipe) => PollFd::new(pipe, PollFlags::IN),
            Waiting::ToWrite(pipe) => PollFd::new(pipe, PollFlags::OUT),
        }));
        let limit = keeper::is_there().then_some(KEEPER_REST);
        let mut has_waited_in_vain = false;
        match poll(&mut polled, limit.as_ref()) {
            Ok(count) => has_waited_in_vain = count == 0,
            Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("cannot wait for programs: {error}");
                std::thread::sleep(RETRY_PAUSE);
            }
        }
        let mut bytes = [0; 64];
        while matches!(rustix::io::read(&self.wake, &mut bytes), Ok(1..)) {}
        has_waited_in_vain
    }
}
