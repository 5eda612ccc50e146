//! The answer to one request: the line of its reply, whole or piece by piece.

use qga_protocol::message::{self, Id, SENTINEL};
use serde::Serialize;

use super::Call;
use super::handler::Outcome;
use crate::transport::line_writer::{Pieces, ReplyWriter};

/// Where a command's result goes.
pub struct Answer<'a> {
    line: Pieces<'a>,
    id: Option<Id<'a>>,
    /// A sync reply carries the sentinel.
    delimited: bool,
    /// False for commands whose success is not answered.
    wanted: bool,
}

impl<'a> Answer<'a> {
    /// An answer to a request with this `id`.
    pub fn new(replies: &'a ReplyWriter, id: Option<Id<'a>>, delimited: bool, wanted: bool) -> Self {
        Self { line: Pieces::new(replies), id, delimited, wanted }
    }

    /// Sends a command's result.
    pub fn send<T: Serialize>(mut self, outcome: Outcome<T>, call: &Call<'_>) {
        match outcome {
            _ if !self.wanted => {}
            Outcome::Reply(result) => {
                if self.delimited {
                    self.piece().push(SENTINEL);
                }
                if message::write_success(&mut self.line, &result, self.id).is_ok() {
                    self.line.end();
                }
            }
            Outcome::Stream(stream) => stream.send(self, call),
        }
    }

    /// What is written of the line and not sent yet.
    pub fn piece(&mut self) -> &mut Vec<u8> {
        self.line.piece()
    }

    /// Starts the line of a reply whose result follows.
    pub fn begin_line(&mut self) {
        message::begin(self.piece());
    }

    /// Sends what is written of the line. False if nobody hears it: the rest need not be made.
    pub fn send_piece(&mut self) -> bool {
        self.line.send()
    }

    /// Ends the line after the result.
    pub fn end_line(mut self) {
        if message::end(&mut self.line, self.id).is_ok() {
            self.line.end();
        }
    }
}
