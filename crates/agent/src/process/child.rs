//! How the processes that the agent has started end, and the end of those that it has inherited.
//!
//! As the first process of a container, or where it was made the reaper of its descendants, the agent inherits every
//! orphan, and must ask how each one ended, or it stays a zombie for ever. The kernel tells of whichever has ended, the
//! agent's own children among them, so how those ended is kept for whoever waits for them.
//!
//! Every child of the agent's is a [`Child`]: a client's program, a program of the system's, the guardian, the keeper.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qga_sys::spawn::{Mark, Program};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, pidfd_open, wait, waitpid,
};

/// Ends of processes that are kept though nobody here has started them: one of them may be a child whose start has not
/// returned yet.
const STRANGERS_MAX: usize = 4096;
/// Ends that are taken notice of in one go.
const REAPED_MAX: usize = 512;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What is known of all children. The lock is held whenever the kernel is asked how one has ended, from which moment on
/// it may give the process id to another process.
static TABLE: Mutex<Table> = Mutex::new(Table {
    next: 0,
    running: Vec::new(),
    ended: Vec::new(),
    strangers: VecDeque::new(),
    dropped: Vec::new(),
});

struct Table {
    /// The number of the next event: starts and ends have their order by it.
    next: u64,
    /// Children whose end the kernel has not told: their process ids are theirs.
    running: Vec<(u64, Pid)>,
    /// Children whose end it has told, and nobody has asked for.
    ended: Vec<(u64, WaitStatus)>,
    /// Ends of others, and when they were told.
    strangers: VecDeque<(u64, Pid, WaitStatus)>,
    /// Running children that nobody waits for any more.
    dropped: Vec<u64>,
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The process of a child whose end was not told.
    fn process(&self, number: u64) -> Option<Pid> {
        self.running.iter().find(|(known, _)| *known == number).map(|(_, pid)| *pid)
    }

    /// Notes an end that the kernel has told.
    fn note(&mut self, pid: Pid, status: WaitStatus) {
        if let Some(place) = self.running.iter().position(|(_, known)| *known == pid) {
            let (number, _) = self.running.swap_remove(place);
            let was_dropped = self.dropped.contains(&number);
            self.dropped.retain(|dropped| *dropped != number);
            if !was_dropped {
                self.ended.push((number, status));
            }
            return;
        }
        if self.strangers.len() == STRANGERS_MAX {
            self.strangers.pop_front();
        }
        let at = self.number();
        self.strangers.push_back((at, pid, status));
    }

    /// Asks the kernel whether a running child has ended.
    fn ask(&mut self, number: u64) -> Result<(), Errno> {
        let Some(pid) = self.process(number) else { return Ok(()) };
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => self.note(pid, status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => {
                self.running.retain(|(known, _)| *known != number);
                self.dropped.retain(|known| *known != number);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// A child of this process. A process id is nobody's name: it is given again as soon as the end of the process was told. So
/// a child has a number of its own, and is signalled under the lock that all its ends are told under.
#[derive(Debug)]
pub struct Child {
    number: u64,
    pid: Pid,
}

impl Child {
    /// Starts a program, with a mark of its start if one is wanted.
    ///
    /// # Errors
    /// As those of [`Program::start`] and [`Program::start_marked`].
    pub fn start(program: &Program<'_>, mark: Option<&Mark<'_>>) -> io::Result<Self> {
        let begun = table().number();
        // Without the lock: to execute a file may hang.
        let pid = mark.map_or_else(|| program.start(), |mark| program.start_marked(mark))?;
        let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        let mut table = table();
        let number = table.number();
        let is_its_end = |(at, known, _): &(u64, Pid, WaitStatus)| *known == pid && *at > begun;
        match table.strangers.iter().rposition(is_its_end) {
            Some(place) => {
                let end = table.strangers.remove(place);
                table.ended.extend(end.map(|(_, _, status)| (number, status)));
            }
            None => table.running.push((number, pid)),
        }
        Ok(Self { number, pid })
    }

    /// Its process id, for those who are told of it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it has ended; `None` if it runs. It is told once.
    ///
    /// # Errors
    /// `ECHILD` if it was told before.
    pub fn ended(&self) -> Result<Option<Exit>, Errno> {
        let mut table = table();
        table.ask(self.number)?;
        if table.process(self.number).is_some() {
            return Ok(None);
        }
        let place = table.ended.iter().position(|(known, _)| *known == self.number).ok_or(Errno::CHILD)?;
        Ok(exit(table.ended.swap_remove(place).1))
    }

    /// Sends it a signal. One whose end was told gets none, and neither does whoever has its process id now.
    pub fn signal(&self, signal: Signal) {
        let table = table();
        if let Some(pid) = table.process(self.number) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Sends a signal to its process group, which is its own.
    pub fn signal_group(&self, signal: Signal) {
        let table = table();
        if let Some(pid) = table.process(self.number) {
            let _ = kill_process_group(pid, signal);
        }
    }

    /// A descriptor of its process; none if its end was told, or where the system has no such descriptors.
    pub fn process(&self) -> Option<OwnedFd> {
        let table = table();
        table.process(self.number).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    }

    /// One that never was.
    #[cfg(test)]
    pub fn of_nobody(pid: i32) -> Self {
        Self { number: table().number(), pid: Pid::from_raw(pid).unwrap() }
    }
}

impl Drop for Child {
    /// Nobody waits for it any more: [`reap_dropped`] takes notice of its end.
    fn drop(&mut self) {
        let mut table = table();
        table.ended.retain(|(known, _)| *known != self.number);
        if table.process(self.number).is_some() {
            table.dropped.push(self.number);
        }
    }
}

/// Takes notice of the ends of children that nobody waits for.
pub fn reap_dropped() {
    let mut table = table();
    for number in table.dropped.clone() {
        let _ = table.ask(number);
    }
}

/// Starts another process of the agent from its own file, which finds what the agent would find in its environment.
pub fn start_own_file(arguments: &[CString], streams: [BorrowedFd<'_>; 3]) -> io::Result<Child> {
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    let program = Program { file: c"/proc/self/exe", arguments, environment: &environment, streams };
    Child::start(&program, None)
}

fn exit(status: WaitStatus) -> Option<Exit> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Exit::Code(code)),
        (None, Some(signal)) => Some(Exit::Signal(signal)),
        (None, None) => None,
    }
}

/// Whether orphans become children of this process.
#[must_use]
pub fn inherits_orphans() -> bool {
    rustix::process::getpid() == Pid::INIT || matches!(rustix::process::child_subreaper(), Ok(Some(_)))
}

/// Takes notice of children that have ended, whoever has started them. True if there may be more of them.
pub fn reap() -> bool {
    let mut table = table();
    for _ in 0..REAPED_MAX {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => table.note(pid, status),
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{Child, Exit, Program, reap_dropped, table};
    use rustix::io::Errno;
    use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
    use std::fs::File;
    use std::os::fd::AsFd;

    fn start(script: &std::ffi::CStr) -> Child {
        let arguments = [c"sh".to_owned(), c"-c".to_owned(), script.to_owned()];
        let nothing = File::options().read(true).write(true).open("/dev/null").unwrap();
        let streams = [nothing.as_fd(), nothing.as_fd(), nothing.as_fd()];
        let program = Program { file: c"/bin/sh", arguments: &arguments, environment: &[], streams };
        Child::start(&program, None).unwrap()
    }

    fn wait_for(child: &Child) -> Exit {
        loop {
            if let Some(exit) = child.ended().unwrap() {
                return exit;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_end_is_told_once() {
        let child = start(c"exit 3");
        assert_eq!(wait_for(&child), Exit::Code(3));
        assert_eq!(child.ended(), Err(Errno::CHILD));
        assert!(child.process().is_none());
    }

    #[test]
    fn a_child_whose_end_was_told_is_sent_no_signal_though_its_process_id_is_used_again() {
        let other = start(c"exec sleep 1000");
        // As if the kernel had given it the process id of one that was told before.
        let mut first = start(c"exit 0");
        wait_for(&first);
        first.pid = other.pid;
        first.signal(Signal::KILL);
        first.signal_group(Signal::KILL);
        assert!(first.process().is_none());
        assert_eq!(other.ended(), Ok(None));
        other.signal(Signal::TERM);
        // The first signal to come decides.
        assert_eq!(wait_for(&other), Exit::Signal(Signal::TERM.as_raw()));
    }

    #[test]
    fn an_end_that_was_told_to_whoever_asked_for_any_is_kept_for_its_child() {
        let child = start(c"exit 4");
        waitid(WaitId::Pid(child.pid()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        // As the first process of a container does: it asks for any, and gets this one or other tests' children.
        let status =
            rustix::process::waitpid(Some(child.pid()), rustix::process::WaitOptions::NOHANG).unwrap().unwrap();
        table().note(child.pid(), status.1);
        child.signal(Signal::KILL);
        assert_eq!(child.ended(), Ok(Some(Exit::Code(4))));
    }

    #[test]
    fn a_child_that_nobody_waits_for_leaves_no_zombie() {
        let child = start(c"exit 0");
        let pid = child.pid();
        drop(child);
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        reap_dropped();
        let gone = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG);
        assert_eq!(gone.map(|_| ()), Err(Errno::CHILD));
    }
}
