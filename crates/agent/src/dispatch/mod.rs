//! From a request to its answer: everything that holds for all commands, once.
//!
//! In this order: is the command known; is it enabled; do too many hang already; the arguments; the agent's exclusive lock
//! for commands that change the machine; the command itself, guarded against its own panics; the answer or the error.

pub mod answer;
pub mod handler;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use qga_protocol::Info;
use qga_protocol::message::{Request, clip};

use self::handler::Entry;
use crate::agent::Agent;
use crate::dispatch::answer::Answer;
use crate::limits::exclusive_lock::Held;
use crate::system::error::Error;
use crate::system::log::audit;
use crate::transport::line_writer::ReplyWriter;

/// How long a command that changes the machine waits for another one to end.
const EXCLUSIVE_WAIT: Duration = Duration::from_secs(10);

/// What a running command may use.
pub struct Call<'a> {
    /// The agent.
    pub agent: &'a Agent,
    replies: &'a ReplyWriter,
}

impl Call<'_> {
    /// The lock of commands that change the machine, if this is one.
    pub fn hold_machine(&self, info: &Info) -> Result<Option<Held<'_>>, Error> {
        if !info.rules.exclusive {
            return Ok(None);
        }
        let held = self.agent.exclusive.acquire(info.name, EXCLUSIVE_WAIT)?;
        // The one that held it may have frozen the machine.
        self.agent.why_not(info).map_or(Ok(Some(held)), |why_not| Err(refusal(info, why_not)))
    }

    /// Whether somebody still waits for the reply. A client that has left counts as one that waits: what it has asked for
    /// is done all the same.
    pub fn is_wanted(&self) -> bool {
        !self.replies.is_given_up()
    }

    /// Says that the command is getting on, so that nobody takes it for stuck.
    pub fn note_progress(&self) {
        self.replies.note_progress();
    }
}

/// Answers a request, by its command's result or by an error. `entry` is the command of that name, if there is one.
pub fn answer(agent: &Agent, entry: Option<&Entry>, request: &Request, replies: &ReplyWriter) {
    let failed = admit(agent, entry, request).and_then(|entry| serve(agent, entry, request, replies));
    if let Err(error) = failed {
        log::info!("{} failed: {}", clip(&request.name()), error.desc);
        replies.send_error(error.class, &error.desc, request.id());
    }
}

/// The command, if there is one and it may run now.
fn admit<'a>(agent: &Agent, entry: Option<&'a Entry>, request: &Request) -> Result<&'a Entry, Error> {
    let Some(entry) = entry else {
        return Err(Error::command_not_found(format!("The command {} has not been found", clip(&request.name()))));
    };
    let Some(why_not) = agent.why_not(entry.info) else { return Ok(entry) };
    audit(format_args!("{} refused: {why_not}", entry.info.name));
    Err(refusal(entry.info, why_not))
}

fn refusal(info: &Info, why_not: &str) -> Error {
    Error::command_not_found(format!("Command {} has been disabled: the command is not allowed ({why_not})", info.name))
}

/// Runs a command and sends its result.
fn serve(agent: &Agent, entry: &Entry, request: &Request, replies: &ReplyWriter) -> Result<(), Error> {
    let call = Call { agent, replies };
    let rules = entry.info.rules;
    let answer = Answer::new(replies, request.id(), rules.delimited, rules.success_response);
    // What may run while frozen may be the way out: others must not keep it out.
    let running = if rules.while_frozen { &agent.stuck_ways_out } else { &agent.stuck };
    let _admitted = if entry.is_immediate(request, agent) {
        None
    } else {
        Some(running.admit(entry.info.name, replies.silenced())?)
    };
    let guarded = catch_unwind(AssertUnwindSafe(|| (entry.serve)(request, &call, answer)));
    guarded.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let error =
            Error::new(format!("{} failed inside the agent: {}", entry.info.name, text.unwrap_or("cause unknown")));
        log::error!("{}", error.desc);
        Err(error)
    })
}

#[cfg(test)]
mod tests;
