//! One client's commands, run one after the other by a worker thread so that the session's reader stays free.
//!
//! A lane is given up when its client asks for a resynchronisation while a command is stuck, or goes away. Its voice is
//! silenced then; the running command goes on to its end in a thread that nobody waits for, and those behind it are
//! dropped. The session makes a new lane for what comes next.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qga_protocol::message::{ErrorClass, Reply, Request};

use crate::agent::Agent;
use crate::budget::Hold;
use crate::dispatch;
use crate::outlet::Voice;

/// A command that has got nowhere for this long counts as stuck when a sync arrives. Shorter ones are waited for, so
/// that pipelined requests get their replies in order.
const GRACE: Duration = Duration::from_millis(100);
/// Bytes of requests that may wait behind the running one before the reader waits too.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// How long the reader waits behind a command that gets nowhere; then it refuses further requests and reads on, because
/// a sync may be among them.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);
/// What a queued request costs besides its text.
const JOB_BYTES: usize = 256;
/// A worker with nothing to do ends after this time.
const WORKER_IDLE: Duration = Duration::from_secs(10);
/// Enough for any command; recursion is bounded and large data is on the heap.
pub const STACK_BYTES: usize = 256 << 10;

/// Something to be answered in its turn.
pub enum Job {
    /// A request, with the memory it holds.
    Request(Request, Hold),
    /// An answer that was ready when the message was read.
    Reply(Reply),
}

impl Job {
    fn bytes(&self) -> usize {
        JOB_BYTES
            + match self {
                Self::Request(request, _) => request.text_bytes(),
                Self::Reply(reply) => reply.as_bytes().len(),
            }
    }
}

/// One client's queue and its worker.
pub struct Lane {
    agent: Arc<Agent>,
    /// What the lane's commands answer with.
    pub voice: Voice,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    queued_bytes: usize,
    /// The command that the worker runs.
    running: Option<Running>,
    has_worker: bool,
    /// Requests that found no room, each to be answered with an error in its turn.
    refused: usize,
    given_up: bool,
}

struct Running {
    name: String,
    since: Instant,
}

impl State {
    fn is_idle(&self) -> bool {
        self.running.is_none() && self.queue.is_empty() && self.refused == 0
    }
}

impl Lane {
    /// An idle lane.
    pub fn new(agent: &Arc<Agent>, voice: Voice) -> Arc<Self> {
        Arc::new(Self { agent: Arc::clone(agent), voice, state: Mutex::default(), changed: Condvar::new() })
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

    /// How long the running command has got nowhere.
    fn stalled(&self, running: &Running) -> Duration {
        running.since.max(self.voice.last_progress()).elapsed()
    }

    /// Waits until everything has been answered. False as soon as a command is stuck.
    pub fn settles(&self) -> bool {
        let mut state = self.lock();
        while !state.is_idle() {
            let stalled = state.running.as_ref().map_or(Duration::ZERO, |running| self.stalled(running));
            let Some(left) = GRACE.checked_sub(stalled).filter(|left| !left.is_zero()) else { return false };
            state = self.wait(state, left);
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

    /// Puts a job at the end of the queue.
    pub fn push(self: &Arc<Self>, job: Job) {
        let mut state = self.lock();
        while !state.queue.is_empty() && state.queued_bytes + job.bytes() > QUEUE_BYTES_MAX {
            let stalled = state.running.as_ref().map_or(Duration::ZERO, |running| self.stalled(running));
            if state.refused > 0 || stalled > QUEUE_PATIENCE {
                state.refused += 1;
                return;
            }
            state = self.wait(state, QUEUE_PATIENCE.saturating_sub(stalled) + Duration::from_millis(1));
        }
        state.queued_bytes += job.bytes();
        state.queue.push_back(job);
        if !state.has_worker {
            let lane = Arc::clone(self);
            let worker = std::thread::Builder::new().name("worker".to_owned()).stack_size(STACK_BYTES);
            match worker.spawn(move || lane.work()) {
                Ok(_) => state.has_worker = true,
                Err(error) => {
                    // Nothing was running (the queue was empty), so the answer keeps its place.
                    state.queue.clear();
                    state.queued_bytes = 0;
                    drop(state);
                    self.voice.send(&failure(&format!("the agent cannot start a thread: {error}")));
                }
            }
        }
        self.changed.notify_all();
    }

    /// Gives up on everything that has not been answered.
    pub fn give_up(&self, why: &str) {
        self.voice.silence();
        let mut state = self.lock();
        let waiting = state.queue.len() + std::mem::take(&mut state.refused);
        state.queue.clear();
        state.queued_bytes = 0;
        if let Some(running) = &state.running {
            log::warn!(
                "{} has been running for {:.1} s and {why}: its reply will be dropped, and {waiting} requests behind it",
                running.name,
                running.since.elapsed().as_secs_f32()
            );
            self.agent.stuck.add(&running.name, running.since);
        }
        state.given_up = true;
        self.changed.notify_all();
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let idle_since = Instant::now();
            while state.queue.is_empty() && state.refused == 0 && !state.given_up {
                if idle_since.elapsed() >= WORKER_IDLE {
                    state.has_worker = false;
                    return;
                }
                state = self.wait(state, WORKER_IDLE);
            }
            if state.given_up {
                return;
            }
            let Some(job) = state.queue.pop_front() else {
                state.refused -= 1;
                drop(state);
                self.voice.send(&failure("too many requests wait behind one that got nowhere: this one was dropped"));
                state = self.lock();
                self.changed.notify_all();
                continue;
            };
            state.queued_bytes -= job.bytes();
            match job {
                Job::Reply(reply) => {
                    // Counts as running, so that the reader does not overtake it.
                    state.running = Some(Running { name: "an error reply".to_owned(), since: Instant::now() });
                    drop(state);
                    self.voice.send(&reply);
                }
                Job::Request(request, hold) => {
                    let name = qga_protocol::message::clip(&request.name()).to_owned();
                    state.running = Some(Running { name, since: Instant::now() });
                    drop(state);
                    dispatch::answer(&self.agent, &request, &self.voice);
                    drop((request, hold));
                }
            }
            state = self.lock();
            let ended = state.running.take();
            if state.given_up {
                if let Some(running) = ended {
                    self.agent.stuck.remove(&running.name, running.since);
                    log::warn!(
                        "{} ended after {:.1} s; its reply was dropped",
                        running.name,
                        running.since.elapsed().as_secs_f32()
                    );
                }
                return;
            }
            self.changed.notify_all();
        }
    }
}

fn failure(desc: &str) -> Reply {
    Reply::error(ErrorClass::GenericError, desc, None)
}
