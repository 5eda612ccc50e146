//! `qga freeze` and `qga thaw`. What is frozen for a command is thawed whatever happens to the command or to this
//! process: another process, the watcher, thaws when this one is gone.

mod descendants;
mod marked;
mod watcher;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use qga_client::protocol::fsfreeze::{FreezeStatus, Status, Thaw};
use qga_client::protocol::storage::GetFsInfo;
use qga_client::{Agent, ConnectOptions, Frozen, Kind, Target};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::json;

use crate::arguments::Freeze;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::fleet::visit;
use crate::general_options::General;
use crate::interrupts::Interrupts;
use crate::output::{GOOD, Page, Show, WARNING, styled};
use crate::target::{Selection, short_names};
use crate::visit::{Visit, optional};

use descendants::Descendants;
use watcher::Watcher;
pub use watcher::watch;

/// How long a command may take to end when it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// How long a guest that could not be frozen is waited for, since thawing it is tried for some time.
const LONGEST_UNDOING: Duration = Duration::from_secs(90);
/// How long after it was killed. One of another user, or one that waits for a dead disk, may never end.
const LAST_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct State {
    status: FreezeStatus,
}

impl Show for State {
    fn show(&self, page: &mut Page) -> Result<()> {
        page.line(match self.status {
            FreezeStatus::Frozen => styled(WARNING, "frozen"),
            FreezeStatus::Thawed => styled(GOOD, "thawed"),
        })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Count {
    #[serde(skip)]
    what: &'static str,
    file_systems: i64,
    #[serde(skip)]
    advice: Option<String>,
}

impl Show for Count {
    fn show(&self, page: &mut Page) -> Result<()> {
        let count = u64::try_from(self.file_systems).unwrap_or_default();
        page.line(format!("{} {}", counted(count), self.what))?;
        if let Some(advice) = &self.advice {
            page.note(advice);
        }
        Ok(())
    }
}

fn counted(file_systems: u64) -> String {
    let unit = if file_systems == 1 { "file system" } else { "file systems" };
    format!("{file_systems} {unit}")
}

/// Tells whether it is frozen.
pub fn status(visit: &mut Visit<'_>) -> Result<()> {
    let status = visit.connect()?.call(&Status {})?;
    visit.page.report(&State { status })
}

/// Freezes and leaves it so. A freeze that fails, or during which this process is told to end or killed, is thawed; of
/// several targets those that could be frozen stay so, and are named if others failed.
pub fn freeze(options: &Freeze, selection: &Selection, general: &General) -> Result<()> {
    let interrupts = Interrupts::watch()?;
    let frozen = Mutex::new(Vec::new());
    let done = visit(selection, general, &|visit| {
        freeze_and_leave(options, visit, &interrupts)?;
        frozen.lock().unwrap_or_else(PoisonError::into_inner).push(visit.target.to_string());
        Ok(())
    });
    let frozen = frozen.into_inner().unwrap_or_else(PoisonError::into_inner);
    if done.is_err() && !frozen.is_empty() {
        let (count, of, targets) = (frozen.len(), selection.targets.len(), frozen.join("' -t '"));
        note(general, &format!("{count} of {of} stay frozen until: qga -t '{targets}' thaw"));
    }
    done
}

fn freeze_and_leave(options: &Freeze, visit: &mut Visit<'_>, interrupts: &Interrupts) -> Result<()> {
    let (target, general) = (visit.target, visit.general);
    if interrupts.count() > 0 {
        return Err(Failure::told(Code::Stopped, "stopped before it was frozen", ""));
    }
    look_before(target, options, general)?;
    let watcher = Watcher::start(std::slice::from_ref(target), general)?;
    watcher.arm()?;
    let is_connected = AtomicBool::new(false);
    let connect = || {
        let connection = general.interruptible_connection();
        let mut agent = Agent::connect_by(target, connection, general.deadline())?;
        is_connected.store(true, Ordering::Relaxed);
        // A second signal, or some seconds after the first, ends the wait for a freeze that hangs; then it is thawed.
        agent.give_up_when(Interrupts::are_impatient);
        Ok(agent)
    };
    let guard = match Frozen::over_by(Box::new(connect), mounts(options), Some(general.deadline())) {
        Ok(guard) => guard,
        Err(error) => {
            // Nothing was asked for, somebody else was faster, or nothing is frozen.
            if !is_connected.load(Ordering::Relaxed) || is_of_others(&error) || is_thawed(target, general) {
                watcher.dismiss();
                return Err(error.into());
            }
            return Err(may_be_frozen(target, &error));
        }
    };
    let told = if guard.count() == 0 {
        Err(nothing_frozen(target))
    } else if interrupts.count() > 0 {
        let text = format!("stopped; {target} was frozen by then, and is thawed again");
        Err(Failure::told(Code::Stopped, text, ""))
    } else {
        let file_systems = i64::try_from(guard.count()).unwrap_or(i64::MAX);
        let advice = Some(format!("Programs that write wait until: qga -t {target} thaw"));
        visit.page.report(&Count { what: "frozen", file_systems, advice })
    };
    // What nobody wants or was told of does not stay.
    let Err(failure) = told else {
        let _ = guard.leave();
        if watcher.dismiss() {
            return Ok(());
        }
        let text = format!("{target} was thawed again, because qga stood still meanwhile");
        return Err(Failure::told(Code::TryAgain, text, ""));
    };
    after_thaw(guard.thaw().err(), target, general, &watcher)?;
    Err(failure)
}

/// Dismisses the watcher if nothing is frozen any more, also when the thaw had an error to tell.
fn after_thaw(error: Option<qga_client::Error>, target: &Target, general: &General, watcher: &Watcher) -> Result<()> {
    let Some(error) = error else {
        watcher.dismiss();
        return Ok(());
    };
    if !is_thawed(target, general) {
        return Err(may_be_frozen(target, &error));
    }
    watcher.dismiss();
    Err(error.into())
}

/// Whether a freeze has failed because somebody else holds the guest frozen, or before it began: there is nothing of ours
/// to thaw.
fn is_of_others(error: &qga_client::Error) -> bool {
    matches!(error, qga_client::Error::Guest { .. })
        || matches!(error.kind(), Kind::CommandRefused | Kind::NoSuchCommand)
}

fn nothing_frozen(target: &Target) -> Failure {
    Failure::told(
        Code::FailedInGuest,
        format!("{target} froze nothing, and a snapshot of it would not be consistent"),
        format!("'qga -t {target} fs' lists what it has mounted."),
    )
}

/// What can be known before a freeze: nobody else's is under way, which this one's end would end, and what is to be frozen is
/// there. An agent passes over a mount point that it does not have.
fn look_before(target: &Target, options: &Freeze, general: &General) -> Result<()> {
    let mut agent = Agent::connect_by(target, general.interruptible_connection(), general.deadline())?;
    refuse_if_frozen(target, agent.call(&Status {})?)?;
    if options.mount.is_empty() {
        return Ok(());
    }
    let Some(there) = optional(agent.call(&GetFsInfo {}))? else { return Ok(()) };
    let name = |text: &str| text.trim_end_matches('\\').to_owned();
    let there: Vec<String> = there.iter().map(|file_system| name(&file_system.mountpoint)).collect();
    let missing: Vec<&String> = options.mount.iter().filter(|mount| !there.contains(&name(mount))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Err(Failure::told(
        Code::NoSuchThing,
        format!("{target} has no file system mounted at {missing}; nothing was frozen"),
        format!("'qga -t {target} fs' lists what it has mounted; write the mount point as it stands there."),
    ))
}

fn refuse_if_frozen(target: &Target, status: FreezeStatus) -> Result<()> {
    match status {
        FreezeStatus::Thawed => Ok(()),
        FreezeStatus::Frozen => Err(Failure::told(
            Code::Refused,
            format!("the file systems of {target} are frozen already"),
            format!("Whoever froze them should thaw them; if nobody does: qga -t {target} thaw"),
        )),
    }
}

fn may_be_frozen(target: &Target, error: &qga_client::Error) -> Failure {
    Failure::told(
        Code::TryAgain,
        format!("{target} may still be frozen: {error}"),
        format!("A process in the background goes on trying for an hour; by hand: qga -t {target} thaw"),
    )
}

/// The mount points to freeze; nothing means all.
fn mounts(options: &Freeze) -> Option<&[String]> {
    (!options.mount.is_empty()).then_some(options.mount.as_slice())
}

pub fn thaw(visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let file_systems = agent.call(&Thaw {})?;
    visit.page.report(&Count { what: "thawed", file_systems, advice: None })
}

/// Freezes all targets, runs a command of this host, thaws.
pub fn run(options: &Freeze, selection: &Selection, general: &General) -> Result<()> {
    let names = short_names(&selection.targets);
    // Whoever froze it counts on it; the watcher must not thaw it either.
    let looked = at_once(selection.targets.iter(), |target| look_before(target, options, general));
    looked.into_iter().collect::<Result<()>>()?;
    let interrupts = Interrupts::watch()?;
    let watcher = Watcher::start(&selection.targets, general)?;
    watcher.arm()?;
    let started = Instant::now();
    let frozen = match freeze_all(options, &selection.targets, general, &interrupts) {
        Ok(frozen) => frozen,
        Err(failed) => {
            // What had been frozen of them has been thawed; the watcher has the doubtful cases.
            for &index in &failed.of_others {
                watcher.spare(index);
            }
            let answered = selection.targets.iter().enumerate();
            let answered =
                answered.filter(|(index, _)| !failed.of_others.contains(index) && !failed.pending.contains(index));
            let thawed = at_once(answered, |(index, target)| is_thawed(target, general).then_some(index));
            thawed.iter().flatten().for_each(|&index| watcher.spare(index));
            if failed.pending.is_empty() && thawed.iter().all(Option::is_some) {
                watcher.dismiss();
            }
            return Err(failed.why);
        }
    };
    let file_systems: u64 = frozen.iter().map(Frozen::count).sum();
    note(general, &format!("{} of {} frozen", counted(file_systems), names.join(", ")));

    let ended = run_command(&options.run, watcher.mark(), options.time_limit, general.json, &interrupts);
    let seconds = started.elapsed().as_secs_f64();
    let (held, thawed): (Vec<_>, Vec<_>) =
        at_once(frozen.into_iter().zip(&selection.targets), |(mut frozen, target)| {
            let held = holds(&mut frozen, target);
            (held, frozen.thaw())
        })
        .into_iter()
        .unzip();
    let failed =
        thawed.into_iter().zip(&selection.targets).filter_map(|(thawed, target)| Some((thawed.err()?, target)));
    let failed: Vec<_> = failed.map(|(error, target)| (error, target, is_thawed(target, general))).collect();
    if failed.iter().all(|(_, _, is_thawed)| *is_thawed) {
        watcher.dismiss();
        note(general, &format!("thawed after {seconds:.1} s"));
    }
    let ended = ended?;
    if let Some((error, target, is_thawed)) = failed.into_iter().min_by_key(|(_, _, is_thawed)| *is_thawed) {
        return Err(if is_thawed { error.into() } else { may_be_frozen(target, &error) });
    }
    held.into_iter().collect::<Result<()>>()?;
    if general.json {
        let mut page = Page::new(names.join(","), None, true);
        page.json(&json!({ "file-systems": file_systems, "seconds": seconds, "exit-code": ended }))?;
    }
    if ended == 0 { Ok(()) } else { Err(Failure::Silent(ended)) }
}

/// Why not all of the targets are frozen.
struct NotFrozen {
    why: Failure,
    /// The targets, by number, that somebody else has frozen.
    of_others: Vec<usize>,
    /// Those that have not answered, and may freeze yet.
    pending: Vec<usize>,
}

/// What is heard of one target while all are frozen.
enum Heard {
    Frozen(Box<Frozen<'static>>),
    Failed {
        why: Failure,
        is_of_others: bool,
    },
    /// It has failed, and is being thawed.
    Failing,
}

/// Freezes all at the same time. If one fails, if it takes longer than an agent may be silent, or if this process is told to
/// end, those that are frozen are thawed at once; nobody waits for one that does not answer.
fn freeze_all(
    options: &Freeze,
    targets: &[Target],
    general: &General,
    interrupts: &Interrupts,
) -> std::result::Result<Vec<Frozen<'static>>, Box<NotFrozen>> {
    const PAUSE: Duration = Duration::from_millis(50);
    let deadline = general.deadline();
    let (sender, results) = mpsc::channel();
    for (index, target) in targets.iter().enumerate() {
        let (sender, target) = (sender.clone(), target.clone());
        let (connection, mount) = (general.connection(), options.mount.clone());
        // It may wait for its guest longer than anybody waits for it. A guard that nobody takes thaws.
        thread::spawn(move || freeze_one(index, &target, connection, &mount, deadline, &sender));
    }
    drop(sender);
    let mut frozen = Vec::new();
    let mut thawing = Vec::new();
    let mut of_others = Vec::new();
    let mut failure = None;
    let mut pending: Vec<usize> = (0..targets.len()).collect();
    let mut last_moment = deadline + GRACE;
    while !pending.is_empty() {
        match results.recv_timeout(PAUSE) {
            Ok((index, Heard::Frozen(guard))) => {
                pending.retain(|&other| other != index);
                frozen.push((index, *guard));
            }
            Ok((index, Heard::Failed { why, is_of_others })) => {
                pending.retain(|&other| other != index);
                if is_of_others {
                    of_others.push(index);
                }
                failure = failure.or(Some(why));
            }
            Ok((_, Heard::Failing)) => {
                // What it says in the end is worth waiting for, and nothing stays frozen meanwhile.
                last_moment = deadline + LONGEST_UNDOING;
                thawing.extend(frozen.drain(..).map(thaw_apart));
            }
            Err(RecvTimeoutError::Timeout) if interrupts.count() > 0 => {
                failure =
                    Some(Failure::told(Code::Stopped, "stopped before all were frozen; they are thawed again", ""));
                break;
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() > deadline + PAUSE && failure.is_some() => break,
            Err(RecvTimeoutError::Timeout) if Instant::now() > last_moment => {
                let text = format!("not all targets were frozen within {} s", general.timeout.as_secs_f64());
                failure = Some(Failure::told(Code::TryAgain, text, ""));
                break;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if failure.is_some() {
            thawing.extend(frozen.drain(..).map(thaw_apart));
        }
    }
    if failure.is_none() && frozen.len() < targets.len() {
        failure = Some(Failure::told(Code::TryAgain, "the targets could not be frozen together", ""));
    }
    if failure.is_none() && frozen.iter().any(|(_, guard)| guard.count() == 0) {
        let empty = frozen.iter().find(|(_, guard)| guard.count() == 0);
        failure = empty.and_then(|(index, _)| targets.get(*index)).map(nothing_frozen);
    }
    let Some(why) = failure else {
        frozen.sort_by_key(|(index, _)| *index);
        return Ok(frozen.into_iter().map(|(_, guard)| guard).collect());
    };
    thawing.extend(frozen.drain(..).map(thaw_apart));
    for thread in thawing {
        // A guard's thaw has an end of its own.
        let _ = thread.join();
    }
    Err(Box::new(NotFrozen { why, of_others, pending }))
}

fn thaw_apart((_, guard): (usize, Frozen<'static>)) -> thread::JoinHandle<()> {
    thread::spawn(move || drop(guard))
}

/// Freezes one. That a second connection is needed means that the freeze has failed, long before thawing is given up.
fn freeze_one(
    index: usize,
    target: &Target,
    connection: ConnectOptions,
    mount: &[String],
    deadline: Instant,
    heard: &mpsc::Sender<(usize, Heard)>,
) {
    let mut is_connected = false;
    let (same, failing) = (target.clone(), heard.clone());
    let connect = move || {
        const A_DAY: Duration = Duration::from_secs(24 * 3600);
        if !is_connected {
            is_connected = true;
            return Agent::connect_by(&same, connection, deadline);
        }
        let _ = failing.send((index, Heard::Failing));
        Agent::connect_by(&same, connection, Instant::now() + connection.timeouts.silence.min(A_DAY))
    };
    let mount = (!mount.is_empty()).then_some(mount);
    let said = match Frozen::over_by(Box::new(connect), mount, Some(deadline)) {
        Ok(guard) => Heard::Frozen(Box::new(guard)),
        Err(error) => Heard::Failed { is_of_others: is_of_others(&error), why: error.into() },
    };
    // If nobody listens any more, what is frozen is thawed when the guard goes.
    let _ = heard.send((index, said));
}

/// Does something for each in a thread of its own: a guest that hangs must not hold up the others.
fn at_once<I: Send, O: Send>(each: impl Iterator<Item = I>, act: impl Fn(I) -> O + Sync) -> Vec<O> {
    let act = &act;
    thread::scope(|scope| {
        let threads: Vec<_> = each.map(|one| scope.spawn(move || act(one))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn is_thawed(target: &Target, general: &General) -> bool {
    let status = Agent::connect_by(target, general.connection(), general.deadline())
        .and_then(|mut agent| agent.call(&Status {}));
    matches!(status, Ok(FreezeStatus::Thawed))
}

/// A guest may thaw by itself (Windows does after 10 seconds); then the snapshot is of no use.
fn holds(frozen: &mut Frozen<'_>, target: &Target) -> Result<()> {
    // The connection may have been lost meanwhile; the second question takes a new one.
    match frozen.still_holds().or_else(|_| frozen.still_holds()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::told(
            Code::TryAgain,
            format!("{target} thawed before the command had ended"),
            "What the command has made of it is not consistent; take it again, and faster.",
        )),
        Err(error) => Err(error.into()),
    }
}

/// Runs the command to its end and returns its exit code, 128 and the number of the signal that ended it.
fn run_command(
    words: &[String],
    mark: &str,
    limit: Option<Duration>,
    json: bool,
    interrupts: &Interrupts,
) -> Result<u8> {
    if interrupts.count() > 0 {
        return Ok(Code::Stopped.number());
    }
    let mut command = match words {
        [line] if line.contains(char::is_whitespace) => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", line]);
            shell
        }
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        [] => return Err(Failure::usage("--run needs a command")),
    };
    command.env(marked::VARIABLE, mark);
    if json {
        command.stdout(Stdio::from(std::io::stderr()));
    }
    let descendants = Descendants::watch();
    if let Err(error) = &descendants {
        let _ = writeln!(
            anstream::stderr(),
            "qga: what the command puts into the background cannot be followed, and may work on after the thaw: {error}"
        );
    }
    // This thread waits for it, so it ends when qga is killed.
    qga_sys::child::end_with_parent(&mut command);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            let _ = writeln!(anstream::stderr(), "qga: cannot start {}: {error}", words[0]);
            return Ok(code);
        }
    };
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let ended = wait(&mut child, deadline, interrupts);
    // The guest waits for them too: a snapshot that is still at work after the thaw is none. But no longer than the limit,
    // nor after an interrupt.
    let begun = Instant::now();
    let mut cut_short = None;
    let is_late = || {
        if interrupts.count() > 0 {
            cut_short = Some(Code::Stopped);
        } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            cut_short = Some(Code::TimeLimit);
        }
        cut_short.is_some() || begun.elapsed() >= GRACE
    };
    let left = descendants.map_or_else(|_| BTreeSet::new(), |descendants| descendants.end(is_late, LAST_GRACE));
    if !left.is_empty() && ended.is_ok() {
        let left: Vec<String> = left.iter().map(i32::to_string).collect();
        let _ = writeln!(
            anstream::stderr(),
            "qga: what the command has started cannot be ended (process {}); thawing",
            left.join(", ")
        );
    }
    match (ended, cut_short) {
        // It went well until then.
        (Ok(0), Some(code)) => Ok(code.number()),
        (ended, _) => ended,
    }
}

fn wait(child: &mut Child, deadline: Option<Instant>, interrupts: &Interrupts) -> Result<u8> {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut ended_by: Option<(Code, Instant)> = None;
    let mut killed: Option<Instant> = None;
    let mut heard = 0;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(ended_by.map_or_else(|| code_of(status), |(code, _)| code.number())),
            Ok(None) => {}
            Err(error) => return Err(Failure::host("wait for the command", &error)),
        }
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let is_stopped = interrupts.count() > heard;
        heard = interrupts.count();
        match ended_by {
            None if is_late || is_stopped => {
                ended_by = Some((if is_late { Code::TimeLimit } else { Code::Stopped }, Instant::now()));
                if let Some(process) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    // It may have ended just now.
                    let _ = kill_process(process, Signal::TERM);
                }
            }
            Some((_, since)) if is_stopped || since.elapsed() > GRACE => {
                // It may belong to another user: sudo does.
                let _ = child.kill();
                killed.get_or_insert_with(Instant::now);
            }
            _ => {}
        }
        if let (Some((code, _)), Some(killed)) = (ended_by, killed)
            && killed.elapsed() > LAST_GRACE
        {
            // The guest waits; the command can go on without it.
            let _ = writeln!(anstream::stderr(), "qga: the command (process {}) cannot be ended; thawing", child.id());
            return Ok(code.number());
        }
        thread::sleep(PAUSE);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn note(general: &General, text: &str) {
    if !general.json {
        Page::new(String::new(), None, false).note(text);
    }
}
