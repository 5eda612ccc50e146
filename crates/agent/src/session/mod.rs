//! One client: answers at once what cannot block, and hands the rest to its [`Lane`].
//!
//! This thread is never inside a command that can hang. So it sees a sync while one does, gives the lane up, and answers
//! in a new one. While commands are quick it does not even read: the lane's worker does, see [`Lane::lend`].

pub mod progress;
pub mod queue;
pub mod reader;

use std::sync::Arc;
use std::time::Duration;

use qga_protocol::Command;
use qga_protocol::message::Request;
use qga_protocol::session::{Sync, SyncDelimited};
use qga_protocol::stream::Event;
use qga_protocol::value::{Kind, Value};

use crate::agent::Agent;
use crate::dispatch::handler;
use crate::session::queue::{Lane, Lent};
use crate::session::reader::{Arrival, Intake};
use crate::transport::line_writer::Outlet;

/// How often a session whose client has stopped sending looks whether the client is still there.
const FAREWELL_TICK: Duration = Duration::from_millis(500);

/// Serves a client until it is gone; `first` is what was read of it already. The result tells why, if it did not just leave.
pub fn serve(agent: &Arc<Agent>, outlet: &Arc<Outlet>, first: &[u8]) -> std::io::Result<()> {
    let link = outlet.link();
    let mut lane = Lane::new(agent, outlet.voice());
    let mut intake = Intake::new(link, agent.budget.hold(), first);
    let end = loop {
        let event = match intake.next(lane.watch()) {
            Arrival::Message(event) => event,
            Arrival::Nothing => continue,
            Arrival::End(end) => break end,
        };
        if matches!(&event, Event::Request(request) if is_sync(request)) && !lane.settles() {
            lane.give_up();
            lane = Lane::new(agent, lane.voice.sibling());
        }
        let Some(job) = lane.receive(event) else { continue };
        if !lane.is_idle() {
            lane.push(job);
            continue;
        }
        match lane.lend(intake, job) {
            Lent::Back(returned) => intake = returned,
            Lent::End(end) => break end,
        }
    };
    // A client of a socket may stop sending and still wait for its replies.
    while end.is_ok() && link.can_be_half_closed() && !lane.settles_within(FAREWELL_TICK) {
        if link.is_hung_up() {
            break;
        }
    }
    lane.leave();
    end
}

fn is_sync(request: &Request) -> bool {
    let name = handler::find(&request.name()).map(|entry| entry.info.name);
    name.is_some_and(|name| name == SyncDelimited::INFO.name || name == Sync::INFO.name)
}

/// A request as the log shows it: no secrets, no payloads.
pub struct Shown<'a>(pub &'a Request);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const VALUE_BYTES_SHOWN: usize = 80;
        write!(f, "{{\"execute\":\"{}\",\"arguments\":{{", qga_protocol::message::clip(&self.0.name()))?;
        for (index, (name, value)) in self.0.argument_values().members().take(20).enumerate() {
            let separator = if index > 0 { "," } else { "" };
            let secret = matches!(&*name, "password" | "input-data" | "buf-b64" | "keys" | "env");
            let text = String::from_utf8_lossy(value.text());
            write!(f, "{separator}\"{}\":", qga_protocol::message::clip(&name))?;
            if secret || text.len() > VALUE_BYTES_SHOWN {
                write!(f, "<{} of {} bytes>", noun(value), text.len())?;
            } else {
                f.write_str(&text)?;
            }
        }
        f.write_str("}}")
    }
}

fn noun(value: Value<'_>) -> &'static str {
    match value.kind() {
        Kind::Text => "text",
        Kind::List => "list",
        Kind::Object => "object",
        Kind::Null | Kind::Boolean | Kind::Number => "value",
    }
}
