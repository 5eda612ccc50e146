//! One client's commands, run one after the other by a worker thread so that the session's own thread stays free.
//!
//! To hand each command from one thread to another would take longer than most commands do. So the session hands the
//! client's reader over to the worker with the first of them ([`Queue::hand_over`]): from then on the worker reads and
//! runs, and the session's thread sleeps. When a command takes long, the session takes the reader back and reads on.
//!
//! A queue ends in one of two ways; what answers its client is silenced in both, and the running command goes on to its end in a thread
//! that nobody waits for. *Given up*: the client asked for a resynchronisation while a command was stuck; what waits
//! behind it is dropped. *Left*: the client is gone; what it has asked for is still done, as the original does.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qga_protocol::message::{Refusal, clip};
use rustix::thread::Pid;

use crate::agent::Agent;
use crate::dispatch;
use crate::dispatch::handler::Entry;
use crate::limits::memory_budget::Hold;
use crate::session::progress::{self, Progress, STUCK, TICK, Watch};
use crate::session::reader::{Arrival, Reader};
use crate::session::redact::Shown;
use crate::session::{Asked, Message};
use crate::system::blocking::STACK_BYTES;
use crate::transport::line_writer::ReplyWriter;

/// Bytes of requests that may wait behind the running one before the reader waits too.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Bytes that answers to refused requests may take besides. Beyond, requests are dropped without one.
const REFUSAL_BYTES_MAX: usize = 1 << 20;
/// A request this large leaves memory behind that is worth giving back.
const LARGE_REQUEST_BYTES: usize = 1 << 20;
/// What a queued request costs besides its text.
const JOB_BYTES: usize = 256;
/// A worker with nothing to do ends after this time.
const WORKER_IDLE: Duration = Duration::from_secs(10);
/// A command that takes longer than this is not waited for with reading on.
const HAND_OVER_AFTER: Duration = Duration::from_millis(20);
/// Something to be answered in its turn.
pub enum Job {
    /// A request, with the memory it holds.
    Request(Asked, Hold),
    /// What is no request, or cannot be served, with the memory it holds.
    Refused(Refusal, Hold),
}

impl Job {
    fn name(&self) -> String {
        match self {
            Self::Request(asked, _) => clip(&asked.request.name()).to_owned(),
            Self::Refused(..) => "an error reply".to_owned(),
        }
    }

    /// The same, not to be served for this reason.
    fn refused(self, desc: &str) -> Self {
        match self {
            Self::Request(asked, mut hold) => {
                let refusal = Refusal::of_request(desc, asked.request);
                hold.resize(refusal.cost_bytes());
                Self::Refused(refusal, hold)
            }
            refused @ Self::Refused(..) => refused,
        }
    }

    fn bytes(&self) -> usize {
        JOB_BYTES
            + match self {
                Self::Request(asked, _) => asked.request.text_bytes(),
                Self::Refused(refusal, _) => refusal.cost_bytes(),
            }
    }
}

/// One client's queue and its worker.
pub struct Queue {
    agent: Arc<Agent>,
    /// What the queue's commands answer with.
    pub replies: ReplyWriter,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    queued_bytes: usize,
    /// The command that the worker runs.
    running: Option<Running>,
    /// How many commands the worker has begun.
    begun: u64,
    has_worker: bool,
    /// The worker's thread, once it has said so.
    thread: Option<Pid>,
    watch: Watch,
    /// The queue was full behind a stuck command: until it is empty again, requests are refused in their turn.
    refusing: bool,
    end: Option<End>,
    hand_over: HandOver,
}

/// What the session and the worker know of a reader that was handed over. While a command runs it is here; otherwise
/// whoever reads has it.
#[derive(Default)]
struct HandOver {
    reader: Option<Reader>,
    /// The worker has no use for it, or cannot have any.
    returned: Option<Returned>,
    /// The session looks at the running command now and then. Else it has to be woken when one begins.
    is_watched: bool,
}

/// How a reader comes back that was handed over.
#[expect(clippy::large_enum_variant, reason = "made once a loan and taken apart at once")]
pub enum Returned {
    /// It can be read on.
    Back(Reader),
    /// Nothing more comes from the client, and why.
    End(io::Result<()>),
}

/// How a queue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// What waits is dropped.
    GivenUp,
    /// What waits is done.
    Left,
}

struct Running {
    name: String,
    since: Instant,
}

impl State {
    fn is_idle(&self) -> bool {
        self.running.is_none() && self.queue.is_empty()
    }

    /// Counts a job as running. An answer counts too, so that nobody overtakes it.
    fn begin(&mut self, job: &Job) {
        self.running = Some(Running { name: job.name(), since: Instant::now() });
        self.begun += 1;
    }
}

impl Queue {
    /// An idle queue.
    pub fn new(agent: &Arc<Agent>, replies: ReplyWriter) -> Arc<Self> {
        Arc::new(Self { agent: Arc::clone(agent), replies, state: Mutex::default(), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether everything has been answered.
    pub fn is_idle(&self) -> bool {
        self.lock().is_idle()
    }

    /// Looks at the running command, and returns how long it has got nowhere. One whose client does not take the reply is
    /// not stuck.
    fn look(&self, state: &mut State) -> Duration {
        if state.running.is_none() || self.replies.is_speaking() {
            state.watch.reset();
            return Duration::ZERO;
        }
        let progress = Progress { command: state.begun, steps: self.replies.steps() };
        let thread = state.thread;
        let activity = || thread.map_or(progress::Activity::Waits, progress::activity);
        state.watch.look(Instant::now(), progress, activity)
    }

    /// Looks at the running command, if there is one, and says after which time to do so again: not at all once it is
    /// stuck.
    pub fn watch(&self) -> Option<Duration> {
        let mut state = self.lock();
        (!state.is_idle() && self.look(&mut state) < STUCK).then_some(TICK)
    }

    /// Waits until everything has been answered. False as soon as a command is stuck: shorter ones are waited for, so that
    /// pipelined requests get their replies in order.
    pub fn settles(&self) -> bool {
        let mut state = self.lock();
        while !state.is_idle() {
            if self.look(&mut state) >= STUCK {
                return false;
            }
            state = self.wait(state, TICK);
        }
        true
    }

    /// Waits until everything has been answered or `time` is over.
    pub fn settles_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut state = self.lock();
        while !state.is_idle() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.wait(state, left);
        }
        true
    }

    /// Answers a message, which holds some of the agent's memory, at once if that cannot block and nothing is before it.
    /// Else returns what has to wait.
    pub fn receive(&self, message: Message, hold: Hold) -> Option<Job> {
        let asked = match message {
            Message::Refused(refusal) if refusal.answers_a_reply() => {
                self.replies.note_echo();
                return None;
            }
            Message::Refused(refusal) => {
                log::debug!("bad input: {}", refusal.desc);
                if !self.is_idle() {
                    return Some(Job::Refused(refusal, hold));
                }
                self.replies.send_refusal(&refusal);
                return None;
            }
            Message::Request(asked) => asked,
        };
        if log::log_enabled!(log::Level::Debug) {
            log::debug!("read data, count: {}, data: {}", asked.request.text_bytes(), Shown(&asked));
        }
        let info = asked.entry.map(|entry| entry.info);
        if info.is_some_and(|info| info.rules.ends_freeze && self.agent.why_not(info).is_none()) {
            let _ = self.agent.freezer.note_thaw_wish();
        }
        let is_immediate = |entry: &Entry| entry.is_immediate(&asked.request, &self.agent);
        if asked.entry.is_none_or(is_immediate) && self.is_idle() {
            dispatch::answer(&self.agent, asked.entry, &asked.request, &self.replies);
            return None;
        }
        Some(Job::Request(asked, hold))
    }

    /// Gives an idle queue a job, and its worker the reader to read on. Returns when the worker has no use for it any more,
    /// or does not come to use it.
    pub fn hand_over(self: &Arc<Self>, reader: Reader, job: Job) -> Returned {
        let mut seen = {
            let mut state = self.lock();
            state.hand_over = HandOver { reader: Some(reader), is_watched: true, ..HandOver::default() };
            state.begun
        };
        self.push(job);
        let mut state = self.lock();
        loop {
            if let Some(returned) = state.hand_over.returned.take() {
                return returned;
            }
            let patience = match &state.running {
                Some(running) => HAND_OVER_AFTER.saturating_sub(running.since.elapsed()),
                // Given to a worker that has yet to start, or there is none.
                None if !state.has_worker => Duration::ZERO,
                None => HAND_OVER_AFTER,
            };
            if let Some(reader) = state.hand_over.reader.take_if(|_| patience.is_zero()) {
                return Returned::Back(reader);
            }
            state.hand_over.is_watched = state.running.is_some() || state.begun != seen || !state.queue.is_empty();
            seen = state.begun;
            state = if state.hand_over.is_watched {
                self.wait(state, patience)
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    /// Puts a job at the end of the queue; waits while that is full and the worker gets on.
    pub fn push(self: &Arc<Self>, mut job: Job) {
        let mut state = self.lock();
        while !state.refusing && !state.queue.is_empty() && state.queued_bytes + job.bytes() > QUEUE_BYTES_MAX {
            // Behind a blocked command it reads on, because a sync may be among what comes.
            state.refusing = self.look(&mut state) >= STUCK;
            if !state.refusing {
                state = self.wait(state, TICK);
            }
        }
        if state.refusing {
            job = job.refused("too many requests wait behind a blocked command: this one was dropped");
            if state.queued_bytes + job.bytes() > QUEUE_BYTES_MAX + REFUSAL_BYTES_MAX {
                log::warn!("a request was dropped without an answer: too many wait behind a blocked command");
                return;
            }
        }
        state.queued_bytes += job.bytes();
        state.queue.push_back(job);
        if !state.has_worker {
            let queue = Arc::clone(self);
            let worker = std::thread::Builder::new().name("worker".to_owned()).stack_size(STACK_BYTES);
            match worker.spawn(move || queue.work()) {
                Ok(_) => state.has_worker = true,
                Err(error) => {
                    // Without a worker nothing else was in the queue, so the answer keeps its place.
                    let job = state.queue.pop_back();
                    state.queued_bytes = 0;
                    drop(state);
                    let refused = job.map(|job| job.refused(&format!("the agent cannot start a thread: {error}")));
                    if let Some(Job::Refused(refusal, _held)) = refused {
                        self.replies.send_refusal(&refusal);
                    }
                    return;
                }
            }
        }
        self.replies.set_busy(true);
        // Whoever wakes wants the lock.
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the queue because its client asked for a resynchronisation.
    pub fn give_up(&self) {
        self.end(End::GivenUp);
    }

    /// Ends the queue because its client is gone.
    pub fn leave(&self) {
        self.end(End::Left);
    }

    fn end(&self, end: End) {
        match end {
            End::GivenUp => self.replies.give_up(),
            End::Left => self.replies.silence(),
        }
        let mut state = self.lock();
        let waiting = state.queue.len();
        if end == End::GivenUp {
            state.queue.clear();
            state.queued_bytes = 0;
        }
        if let Some(running) = &state.running {
            let (seconds, behind) = (
                running.since.elapsed().as_secs_f32(),
                match end {
                    End::GivenUp => {
                        "the client asked for a resynchronisation: its reply and the requests behind it are dropped"
                    }
                    End::Left => "the client is gone: the replies to it and to the requests behind it are dropped",
                },
            );
            // A client that leaves without waiting for a quick command is nothing to warn of.
            let level = if running.since.elapsed() < STUCK { log::Level::Info } else { log::Level::Warn };
            log::log!(level, "{} has been running for {seconds:.1} s and {behind} ({waiting} waiting)", running.name);
        }
        state.end = Some(end);
        self.changed.notify_all();
    }

    /// The worker.
    fn work(&self) {
        let _returns = ReturnsReader(self);
        self.lock().thread = Some(rustix::thread::gettid());
        let mut returned = None;
        while let Some(job) = returned.take().map_or_else(|| self.next_queued(), |reader| self.next_read(reader)) {
            match job {
                // What it holds goes with it.
                Job::Refused(refusal, _held) => {
                    self.replies.send_refusal(&refusal);
                }
                Job::Request(asked, hold) => {
                    let is_large = asked.request.text_bytes() >= LARGE_REQUEST_BYTES;
                    dispatch::answer(&self.agent, asked.entry, &asked.request, &self.replies);
                    drop((asked, hold));
                    if is_large {
                        qga_sys::allocator::give_back_free_memory();
                    }
                }
            }
            let mut state = self.lock();
            let ended = state.running.take();
            if let (Some(_), Some(Running { name, since })) = (state.end, ended) {
                log::info!("{name} ended after {:.1} s; its reply was dropped", since.elapsed().as_secs_f32());
            }
            if state.queue.is_empty() {
                state.refusing = false;
                self.replies.set_busy(false);
                returned = state.hand_over.reader.take();
            }
            // A session that has handed its reader over does not wait for the end of a command.
            if returned.is_none() {
                self.changed.notify_all();
            }
        }
    }

    /// The next job of the queue, which counts as running from now on. None when the worker is to end.
    fn next_queued(&self) -> Option<Job> {
        let mut state = self.lock();
        let idle_since = Instant::now();
        while state.queue.is_empty() && state.end.is_none() {
            if idle_since.elapsed() >= WORKER_IDLE {
                state.has_worker = false;
                return None;
            }
            state = self.wait(state, WORKER_IDLE);
        }
        let job = state.queue.pop_front()?;
        state.queued_bytes -= job.bytes();
        state.begin(&job);
        Some(job)
    }

    /// The next job that the client sends, which counts as running from now on. None when the worker is to end.
    fn next_read(&self, mut reader: Reader) -> Option<Job> {
        let returned = loop {
            match reader.next(Some(WORKER_IDLE)) {
                Arrival::Message(event, hold) => {
                    let Some(job) = self.receive(Message::from(event), hold) else { continue };
                    self.replies.set_busy(true);
                    let mut state = self.lock();
                    state.begin(&job);
                    state.hand_over.reader = Some(reader);
                    if !state.hand_over.is_watched {
                        self.changed.notify_all();
                    }
                    return Some(job);
                }
                Arrival::Nothing => break Returned::Back(reader),
                Arrival::End(end) => break Returned::End(end),
            }
        };
        self.give_back(returned);
        None
    }

    fn give_back(&self, returned: Returned) {
        let mut state = self.lock();
        state.has_worker = false;
        state.hand_over.returned = Some(returned);
        self.changed.notify_all();
    }
}

/// Wakes the session when the worker breaks off with its reader: a fault of ours must not leave the agent deaf.
struct ReturnsReader<'a>(&'a Queue);

impl Drop for ReturnsReader<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let queue = self.0;
        let mut state = queue.lock();
        state.running = None;
        state.queue.clear();
        state.queued_bytes = 0;
        drop(state);
        queue.replies.set_busy(false);
        queue.give_back(Returned::End(Err(io::Error::other("the agent failed while it served this client"))));
    }
}
