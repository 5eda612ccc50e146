//! One client: answers at once what cannot block, and hands the rest to its [`Queue`].
//!
//! This thread is never inside a command that can hang. So it sees a sync while one does, gives the queue up, and answers
//! in a new one. While commands are quick it does not even read: the queue's worker does, see [`Queue::hand_over`].

pub mod progress;
pub mod queue;
pub mod reader;
mod redact;

use std::sync::Arc;
use std::time::Duration;

use qga_protocol::message::{Refusal, Request};
use qga_protocol::stream::Event;

use crate::agent::Agent;
use crate::commands;
use crate::dispatch::handler::Entry;
use crate::session::queue::{Queue, Returned};
use crate::session::reader::{Arrival, Reader};
use crate::transport::line_writer::LineWriter;

/// How often a session whose client has stopped sending looks whether the client is still there.
const FAREWELL_TICK: Duration = Duration::from_millis(500);

/// Serves a client until it is gone; `first` is what was read of it already. The result tells why, if it did not just leave.
pub fn serve(agent: &Arc<Agent>, line_writer: &Arc<LineWriter>, first: &[u8]) -> std::io::Result<()> {
    let link = line_writer.link();
    let mut queue = Queue::new(agent, line_writer.reply_writer());
    let mut reader = Reader::new(link, agent.budget.hold(), first);
    let end = loop {
        let (event, hold) = match reader.next(queue.watch()) {
            Arrival::Message(event, hold) => (event, hold),
            Arrival::Nothing => continue,
            Arrival::End(end) => break end,
        };
        let message = Message::from(event);
        if message.resynchronises() && !queue.settles() {
            queue.give_up();
            queue = Queue::new(agent, queue.replies.sibling());
        }
        let Some(job) = queue.receive(message, hold) else { continue };
        if !queue.is_idle() {
            queue.push(job);
            continue;
        }
        match queue.hand_over(reader, job) {
            Returned::Back(returned) => reader = returned,
            Returned::End(end) => break end,
        }
    };
    // A client of a socket may stop sending and still wait for its replies.
    while end.is_ok() && link.can_be_half_closed() && !queue.settles_within(FAREWELL_TICK) {
        if link.is_hung_up() {
            break;
        }
    }
    queue.leave();
    end
}

/// A request and its command.
pub struct Asked {
    /// The request.
    pub request: Request,
    /// Its command: looked up here, once. None if there is none of that name.
    pub entry: Option<&'static Entry>,
}

/// What came from a client.
pub enum Message {
    /// A request.
    Request(Asked),
    /// Something else, and what is said of it.
    Refused(Refusal),
}

impl From<Event> for Message {
    fn from(event: Event) -> Self {
        match event {
            Event::Request(request) => {
                let entry = commands::find(&request.name());
                Self::Request(Asked { request, entry })
            }
            Event::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

impl Message {
    fn resynchronises(&self) -> bool {
        matches!(self, Self::Request(Asked { entry: Some(entry), .. }) if entry.info.rules.resynchronises)
    }
}
