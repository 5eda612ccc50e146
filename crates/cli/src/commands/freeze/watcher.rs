//! The process that thaws when the one that froze is gone: killed, crashed, its terminal closed; or stopped, as by Ctrl-Z.
//!
//! It waits for the end of its standard input, a pipe that only the other process holds, or for its silence. Through it
//! come two words, that there is something to thaw and that there is no longer, and a sign of life each second. It touches
//! no agent before it has to, since many ports serve one client only.

use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use qga_client::protocol::fsfreeze::{FreezeStatus, Status, Thaw};
use qga_client::{Agent, ConnectOptions, Error, Target};

use super::marked;
use crate::arguments::{WATCHER, WatchFreeze};
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::interrupts::Interrupts;
use crate::output::text::printable;
use crate::target::Selection;

const ARMED: &str = "frozen\n";
const DISMISSED: &str = "thawed\n";
const ALIVE: &str = "alive\n";
/// With a target's number behind it: somebody else has frozen that one.
const SPARED: &str = "spare ";

/// The variable that tells the mark of the command. Another one than the command's, or this process would have the mark.
const MARK: &str = "QGA_FREEZE_WATCHED";

/// The time between two signs of life, and how long their absence is borne while something is frozen.
const PULSE: Duration = Duration::from_secs(1);
const LONGEST_SILENCE: Duration = Duration::from_secs(15);

/// How long one that only waits may take to end. One that thaws goes on alone.
const LONGEST_FAREWELL: Duration = Duration::from_secs(10);

/// After so long it is looked at again whether a freeze took effect only after the thaw.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// How long it tries to thaw.
const PATIENCE: &str = "1h";
const SHORTEST_TRY: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The other process, seen from the one that freezes.
pub struct Watcher {
    child: Arc<Mutex<Child>>,
    mark: String,
}

impl Watcher {
    pub fn start(targets: &[Target], general: &General) -> Result<Self> {
        let failed = |error| Failure::host("start the process that thaws if this one is killed", &error);
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        for target in targets {
            command.arg("--target").arg(target.to_string());
        }
        if general.trust_socket {
            command.arg("--trust-socket");
        }
        let mark = marked::new_mark();
        let seconds = general.timeout.as_secs_f64().to_string();
        let child = command
            .args(["--timeout", &seconds, WATCHER, "--patience", PATIENCE])
            .env(MARK, &mark)
            // Ctrl-C goes to the group of the one that freezes.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let child = Arc::new(Mutex::new(child));
        let pulse = Arc::clone(&child);
        thread::spawn(move || {
            // It ends with the watcher, or with this process.
            while tell(&pulse, ALIVE).is_ok() {
                thread::sleep(PULSE);
            }
        });
        Ok(Self { child, mark })
    }

    /// What the command gets as [`marked::VARIABLE`], so that nothing of it works on when this process is gone.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// From now on there may be something to thaw.
    pub fn arm(&self) -> Result<()> {
        self.tell(ARMED).map_err(|error| Failure::host("tell the process that thaws if this one is killed", &error))
    }

    /// The target of this number is somebody else's to thaw.
    pub fn spare(&self, index: usize) {
        // If it is gone it thaws nothing.
        let _ = self.tell(&format!("{SPARED}{index}\n"));
    }

    /// There is nothing to thaw any more. Returns whether it has only waited until now; if not, it has thawed, because this
    /// process stood still for too long, or is about to.
    pub fn dismiss(&self) -> bool {
        // If it is gone it needs no word.
        let _ = self.tell(DISMISSED);
        let Ok(mut child) = self.child.lock() else { return false };
        drop(child.stdin.take());
        let asked = Instant::now();
        while asked.elapsed() < LONGEST_FAREWELL {
            match child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Err(_) => return false,
            }
        }
        false
    }

    fn tell(&self, word: &str) -> std::io::Result<()> {
        tell(&self.child, word)
    }
}

fn tell(child: &Mutex<Child>, word: &str) -> std::io::Result<()> {
    let gone = || std::io::Error::other("it is gone");
    let mut child = child.lock().map_err(|_| gone())?;
    child.stdin.as_mut().ok_or_else(gone)?.write_all(word.as_bytes())
}

/// The other process itself.
pub fn watch(options: &WatchFreeze, selection: &Selection, general: &General) -> Result<()> {
    // What ends the one that freezes must not end this one as well.
    Interrupts::ignore()?;
    let Some(spared) = wait_until_needed() else { return Ok(()) };
    // A copy that goes on after the thaw is not consistent.
    if let Ok(mark) = std::env::var(MARK) {
        marked::kill_all(&mark);
    }
    let thaw = |target: &Target| thaw(target, general.connection(), options.patience);
    let ours = selection.targets.iter().enumerate().filter(|(index, _)| !spared.contains(index));
    let thawed: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = ours.map(|(_, target)| scope.spawn(move || thaw(target))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    thawed.into_iter().collect::<std::result::Result<(), Error>>()?;
    // The one that froze, if it goes on after all, learns from it that nothing is frozen any more.
    Err(Failure::Silent(Code::TryAgain.number()))
}

/// Listens to the other process. If there is something to thaw, the numbers of the targets that are not ours are returned.
fn wait_until_needed() -> Option<Vec<usize>> {
    let (sender, words) = mpsc::channel();
    thread::spawn(move || {
        // An input that cannot be read has ended.
        let mut words = std::io::stdin().lock().lines().map_while(std::result::Result::ok);
        words.all(|word| sender.send(word).is_ok());
    });
    let mut is_armed = false;
    let mut spared = Vec::new();
    loop {
        match words.recv_timeout(LONGEST_SILENCE) {
            Ok(word) if word == ARMED.trim_end() => is_armed = true,
            Ok(word) if word == DISMISSED.trim_end() => return None,
            Ok(word) => spared.extend(word.strip_prefix(SPARED).and_then(|number| number.parse::<usize>().ok())),
            Err(RecvTimeoutError::Timeout) if !is_armed => {}
            Err(_) => return is_armed.then_some(spared),
        }
    }
}

/// Tries until the agent says that nothing is frozen.
fn thaw(target: &Target, connection: ConnectOptions, patience: Duration) -> std::result::Result<(), Error> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(20);
    let mut is_second_look = false;
    loop {
        // One that always says a little is tried again like one that is silent.
        let deadline = Instant::now() + connection.timeouts.silence.clamp(SHORTEST_TRY, patience.max(SHORTEST_TRY));
        let tried = Agent::connect_by(target, connection, deadline).and_then(|mut agent| {
            let thawed = agent.call(&Thaw {});
            // An agent may report an error of a hook and have thawed all the same.
            match thawed {
                Err(error) if error.agent().is_some() => match agent.call(&Status {})? {
                    FreezeStatus::Thawed => Ok(1),
                    FreezeStatus::Frozen => Err(error),
                },
                thawed => thawed,
            }
        });
        match tried {
            // The freeze itself may still be on its way to the guest.
            Ok(0) if !is_second_look => {
                is_second_look = true;
                thread::sleep(SECOND_LOOK);
                continue;
            }
            Ok(_) => {
                eprint(&format!("qga: the process that froze {target} is gone or stopped; thawed"));
                return Ok(());
            }
            Err(error) if started.elapsed() >= patience => return Err(error),
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn eprint(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(text));
}
