//! What the family does to the machine. Choosing is done elsewhere, over the files of a [`Root`].

use std::io;
use std::thread;
use std::time::Duration;

use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};

use super::super::target_state::End;
use crate::process::system_tool::{Ended, Tool};
use crate::system::error::Error;
use crate::system::root::Root;

/// Why a way was not taken or did not work, behind its name: `systemctl poweroff: exit status 1`.
pub type Failure = String;

/// How long the disks may take to get what is dirty.
const SYNC_PATIENCE: Duration = Duration::from_secs(60);

/// Ends, pauses and watches a machine. Tests bring one that only notes what it is told.
pub trait Machine {
    /// The machine's files.
    fn root(&self) -> &Root;
    /// Runs a program of the system.
    fn run(&self, tool: &Tool, arguments: &[&str], patience: Duration) -> io::Result<Ended>;
    /// Writes to a file of the kernel.
    fn order(&self, path: &str, order: &str) -> io::Result<()>;
    /// Sends a signal to the first process.
    fn signal_first_process(&self, number: i32) -> io::Result<()>;
    /// Ends the machine by the kernel, without its first process. Returns only if that fails.
    fn end_by_kernel(&self, end: End) -> io::Error;
    /// How long the machine has slept since its start.
    fn time_asleep(&self) -> Duration;
    /// Waits.
    fn wait(&self, time: Duration);
}

/// The machine that the agent runs on.
pub struct ThisMachine<'a> {
    root: &'a Root,
}

impl<'a> ThisMachine<'a> {
    /// The machine behind a root. A recorded machine cannot be ended, and a unit test must not end the one it runs on.
    pub fn of(root: &'a Root) -> Result<Self, Error> {
        if cfg!(test) || !root.is_host() {
            return Err(Error::new("a recorded machine can be neither ended nor paused"));
        }
        Ok(Self { root })
    }
}

impl Machine for ThisMachine<'_> {
    fn root(&self) -> &Root {
        self.root
    }

    fn run(&self, tool: &Tool, arguments: &[&str], patience: Duration) -> io::Result<Ended> {
        tool.run(arguments, b"", patience)
    }

    fn order(&self, path: &str, order: &str) -> io::Result<()> {
        self.root.order(path, order)
    }

    fn signal_first_process(&self, number: i32) -> io::Result<()> {
        qga_sys::init::signal(number)
    }

    fn end_by_kernel(&self, end: End) -> io::Error {
        sync();
        let command = match end {
            End::PowerDown => RebootCommand::PowerOff,
            End::Halt => RebootCommand::Halt,
            End::Reboot => RebootCommand::Restart,
        };
        match rustix::system::reboot(command) {
            // In a container the call ends the first process, and with it the agent.
            Ok(()) => io::Error::other("nothing happened"),
            Err(cause) => cause.into(),
        }
    }

    fn time_asleep(&self) -> Duration {
        let now = |clock| {
            let now = clock_gettime(clock);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        };
        let awake = now(ClockId::Monotonic);
        now(ClockId::Boottime).saturating_sub(awake)
    }

    fn wait(&self, time: Duration) {
        thread::sleep(time);
    }
}

/// Writes out what is dirty. A disk that hangs is not waited for, because the machine is to end even then.
fn sync() {
    let (done, is_done) = std::sync::mpsc::channel();
    let writer = thread::Builder::new().name("sync".to_owned()).spawn(move || {
        rustix::fs::sync();
        // Nobody may be waiting any more.
        let _ = done.send(());
    });
    if writer.is_err() || is_done.recv_timeout(SYNC_PATIENCE).is_err() {
        log::error!("not everything was written to the disks within {} s", SYNC_PATIENCE.as_secs());
    }
}
