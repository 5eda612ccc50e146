//! The answer to one request: the line of its reply, whole or piece by piece.

use qga_protocol::message::{self, Id, Reply};
use serde::Serialize;

use super::Call;
use super::handler::Outcome;
use crate::transport::line_writer::ReplyWriter;

/// Where a command's result goes.
pub struct Answer<'a> {
    replies: &'a ReplyWriter,
    id: Option<Id>,
    /// A sync reply carries the sentinel.
    delimited: bool,
    /// False for commands whose success is not answered.
    wanted: bool,
    /// A piece of the line is out.
    begun: bool,
}

impl<'a> Answer<'a> {
    /// An answer to a request with this `id`.
    pub fn new(replies: &'a ReplyWriter, id: Option<Id>, delimited: bool, wanted: bool) -> Self {
        Self { replies, id, delimited, wanted, begun: false }
    }

    /// Sends a command's result.
    pub fn send<T: Serialize>(self, outcome: Outcome<T>, call: &Call<'_>) {
        match outcome {
            _ if !self.wanted => {}
            Outcome::Reply(result) => {
                let reply = Reply::success(&result, self.id.as_ref());
                self.replies.send(&if self.delimited { reply.delimited() } else { reply });
            }
            Outcome::Stream(stream) => stream.send(self, call),
        }
    }

    /// Starts the line of a reply whose result follows in pieces.
    pub fn begin_line(line: &mut Vec<u8>) {
        message::begin(line);
    }

    /// Sends what has been collected of the line and empties it. False if nobody hears it.
    pub fn send_piece(&mut self, line: &mut Vec<u8>) -> bool {
        let heard = self.replies.write(line, !self.begun);
        self.begun = true;
        line.clear();
        heard
    }

    /// Ends the line after the last piece of the result.
    pub fn end_line(self, line: &mut Vec<u8>) {
        message::end(line, self.id.as_ref());
        self.replies.write(line, !self.begun);
    }
}
