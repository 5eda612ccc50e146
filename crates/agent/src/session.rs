//! One client: reads its bytes, answers at once what cannot block, and hands the rest to its [`Lane`].
//!
//! The reader is never inside a command that can hang. So it sees a sync while one does, gives the lane up, and answers
//! in a new one.

use std::sync::Arc;
use std::time::Duration;

use qga_protocol::fsfreeze::Thaw;
use qga_protocol::message::Request;
use qga_protocol::session::{Sync, SyncDelimited};
use qga_protocol::stream::{Decoder, Event};
use qga_protocol::value::{Kind, Value};
use qga_protocol::{Command, Info};

use crate::agent::Agent;
use crate::budget::Hold;
use crate::dispatch;
use crate::lane::{Job, Lane};
use crate::outlet::Outlet;
use crate::registry;

/// Bytes read in one go.
const READ_BYTES: usize = 64 << 10;
/// Half a message this large must go on, because it takes from what all clients share.
const LARGE_MESSAGE_BYTES: usize = 1 << 20;
/// How long it may stand still.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(30);
/// How often a session whose client has stopped sending looks whether the client is still there.
const FAREWELL_TICK: Duration = Duration::from_millis(500);

/// Serves a client until it is gone; `first` is what was read of it already. The result tells why, if it did not just leave.
pub fn serve(agent: &Arc<Agent>, outlet: &Arc<Outlet>, first: &[u8]) -> std::io::Result<()> {
    let link = outlet.link();
    let mut session = Session {
        agent,
        lane: Lane::new(agent, outlet.voice()),
        decoder: Decoder::default(),
        held: agent.budget.hold(),
    };
    session.take(first);
    let mut buffer = vec![0; READ_BYTES];
    let end = loop {
        if session.decoder.buffered_bytes() >= LARGE_MESSAGE_BYTES
            && matches!(link.is_readable_within(MESSAGE_PATIENCE), Ok(false))
        {
            session.drop_half_message("a large request did not go on for too long: it was dropped");
        }
        match link.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => session.take(&buffer[..count]),
            Err(error) => break Err(error),
        }
        link.note_activity();
    };
    // A client of a socket may stop sending and still wait for its replies.
    while end.is_ok() && link.can_be_half_closed() && !session.lane.settles_within(FAREWELL_TICK) {
        if link.is_hung_up() {
            break;
        }
    }
    session.lane.leave();
    end
}

struct Session<'a> {
    agent: &'a Arc<Agent>,
    lane: Arc<Lane>,
    decoder: Decoder,
    /// What the half message in the decoder takes of the agent's budget.
    held: Hold,
}

impl Session<'_> {
    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(event) = self.decoder.next(&mut bytes) {
            self.answer(event);
        }
        if !self.held.resize(self.decoder.buffered_bytes()) {
            self.drop_half_message("the agent holds too much of unfinished requests: this one was dropped");
        }
    }

    fn drop_half_message(&mut self, why: &str) {
        let event = self.decoder.refuse(why);
        self.held.resize(0);
        self.answer(event);
    }

    fn answer(&mut self, event: Event) {
        match event {
            Event::Refused(refusal) => {
                log::debug!("bad input: {}", refusal.desc);
                let reply = refusal.reply();
                if self.lane.is_idle() {
                    self.lane.voice.send(&reply);
                } else {
                    self.lane.push(Job::Reply(reply));
                }
            }
            Event::Request(request) => self.serve(request),
        }
    }

    fn serve(&mut self, request: Request) {
        if log::log_enabled!(log::Level::Debug) {
            log::debug!("read data, count: {}, data: {}", request.text_bytes(), Shown(&request));
        }
        let info = registry::find(&request.name()).map(|entry| entry.info);
        if info.is_some_and(|info| info.name == Thaw::INFO.name && self.agent.why_not(info).is_none()) {
            let _ = self.agent.freezer.note_thaw_wish();
        }
        if info.is_some_and(is_sync) && !self.lane.settles() {
            self.lane.give_up();
            self.lane = Lane::new(self.agent, self.lane.voice.sibling());
        }
        let immediate = info.is_none_or(|info| info.rules.immediate);
        if immediate && self.lane.is_idle() {
            dispatch::answer(self.agent, &request, &self.lane.voice);
            return;
        }
        let mut hold = self.agent.budget.hold();
        hold.resize(request.text_bytes());
        self.lane.push(Job::Request(request, hold));
    }
}

fn is_sync(info: &Info) -> bool {
    info.name == SyncDelimited::INFO.name || info.name == Sync::INFO.name
}

/// A request as the log shows it: no secrets, no payloads.
struct Shown<'a>(&'a Request);

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
