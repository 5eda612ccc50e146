//! The way into a program's standard input: one piece in a file at a time, until the guest has taken it; and the signs of
//! life without which the guest takes this side for gone.

use std::io;
use std::time::{Duration, Instant};

use qga_protocol::file;

use super::{Console, Input};
use crate::agent::Agent;
use crate::error::Error;
use crate::kind::Kind;
use crate::transport::Transport;

/// How much of the input stands in the guest at a time.
const LONGEST_PIECE_BYTES: usize = 16 << 20;

/// The time between two signs of life.
const PULSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Feed {
    handles: Option<Handles>,
    pending: Vec<u8>,
    /// The input is over once `pending` is gone.
    has_ended: bool,
    state: State,
    /// The number of the piece, since a word may have to be said twice while the guest is frozen.
    piece: u64,
    /// A part of the piece may have been written.
    is_begun: bool,
    window: Option<(u16, u16)>,
    spoken: Instant,
    pulse: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Handles {
    input: i64,
    control: i64,
}

/// What the guest has of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing: the file is empty.
    Empty,
    /// A piece that it has not been told of.
    Written,
    /// A piece that it takes.
    Told,
    /// All of it.
    Over,
}

impl Feed {
    pub(super) fn new(pending: Vec<u8>, has_ended: bool, silent_host: Duration) -> Self {
        let (handles, state, window) = (None, State::Empty, None);
        let pulse = PULSE.min(silent_host / 4);
        Self { handles, pending, has_ended, state, piece: 0, is_begun: false, window, spoken: Instant::now(), pulse }
    }

    /// Whether something may still go this way.
    pub(super) fn is_open(&self) -> bool {
        self.state != State::Over
    }

    /// Opens the way if the guest has made it. Returns whether it is open.
    pub(super) fn open<T: Transport>(&mut self, agent: &mut Agent<T>, base: &str) -> Result<bool, Error> {
        if self.handles.is_none() {
            // A mode that does not create: the shell makes the files, and what this opens has its permissions.
            let Some(input) = open_existing(agent, &format!("{base}.in"))? else { return Ok(false) };
            let control = match open_existing(agent, &format!("{base}.ctl")) {
                Ok(Some(control)) => control,
                Ok(None) => return agent.close(input).map(|()| false),
                Err(error) => return Err(error),
            };
            self.handles = Some(Handles { input, control });
        }
        Ok(true)
    }

    /// Says that the names of all files may go.
    pub(super) fn release_names<T: Transport>(&mut self, agent: &mut Agent<T>) -> Result<(), Error> {
        self.say(agent, "open")
    }

    /// Hands on the input that there is, the window's size, and a sign of life. Returns whether any of the input moved.
    pub(super) fn move_on<T: Transport>(
        &mut self,
        agent: &mut Agent<T>,
        base: &str,
        console: &mut dyn Console,
    ) -> Result<bool, Error> {
        if !self.is_open() {
            return Ok(false);
        }
        if !self.open(agent, base)? {
            return Ok(false);
        }
        let Some(Handles { input, .. }) = self.handles else { return Ok(false) };
        if let Some(window) = console.window().filter(|window| self.window != Some(*window)) {
            let (rows, columns) = window;
            self.say(agent, &format!("size rows {rows} cols {columns}"))?;
            self.window = Some(window);
        }
        if self.spoken.elapsed() >= self.pulse {
            self.say(agent, "alive")?;
        }
        let mut has_moved = false;
        if self.state == State::Written {
            self.tell(agent)?;
        }
        if self.state == State::Told {
            if agent.seek(input, io::SeekFrom::End(0))? > 0 {
                return Ok(false);
            }
            self.state = State::Empty;
            has_moved = true;
        }
        let has_more = self.take(console)?;
        if !self.pending.is_empty() {
            let size = self.pending.len().min(LONGEST_PIECE_BYTES);
            let most = agent.capacity().write_bytes;
            if self.is_begun {
                agent.seek(input, io::SeekFrom::Start(0))?;
            }
            self.is_begun = true;
            for piece in self.pending[..size].chunks(most) {
                agent.write_piece(input, piece)?;
            }
            agent.call(&file::Flush { handle: input })?;
            self.pending.drain(..size);
            self.is_begun = false;
            self.piece += 1;
            self.state = State::Written;
            self.tell(agent)?;
            return Ok(true);
        }
        if self.has_ended {
            self.say(agent, "end")?;
            self.close(agent)?;
            return Ok(true);
        }
        Ok(has_moved || has_more)
    }

    fn tell<T: Transport>(&mut self, agent: &mut Agent<T>) -> Result<(), Error> {
        let word = format!("data {}", self.piece);
        self.say(agent, &word)?;
        self.state = State::Told;
        Ok(())
    }

    /// Fills `pending` from the console. Returns whether something came.
    fn take(&mut self, console: &mut dyn Console) -> Result<bool, Error> {
        let mut has_come = false;
        while self.pending.len() < LONGEST_PIECE_BYTES && !self.has_ended {
            match console.input().map_err(|source| Error::Local { act: "read the input".to_owned(), source })? {
                Input::Bytes(bytes) => {
                    has_come = true;
                    self.pending.extend(bytes);
                }
                Input::NotYet => break,
                Input::End => self.has_ended = true,
            }
        }
        Ok(has_come)
    }

    fn say<T: Transport>(&mut self, agent: &mut Agent<T>, word: &str) -> Result<(), Error> {
        let Some(Handles { control, .. }) = self.handles else { return Ok(()) };
        agent.write_piece(control, format!("{word}\n").as_bytes())?;
        agent.call(&file::Flush { handle: control })?;
        self.spoken = Instant::now();
        Ok(())
    }

    pub(super) fn close<T: Transport>(&mut self, agent: &mut Agent<T>) -> Result<(), Error> {
        self.state = State::Over;
        let Some(Handles { input, control }) = self.handles.take() else { return Ok(()) };
        agent.close(input)?;
        agent.close(control)
    }
}

fn open_existing<T: Transport>(agent: &mut Agent<T>, path: &str) -> Result<Option<i64>, Error> {
    match agent.open(path, "r+") {
        Err(error) if error.kind() == Kind::NoSuchFile => Ok(None),
        opened => opened.map(Some),
    }
}
