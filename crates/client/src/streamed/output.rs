//! A file that a program writes to, read as it grows, and what the script in front of the program may have left in it.

use std::io;

use super::{Console, OutputStream, ending::Ending};
use crate::agent::Agent;
use crate::error::Error;
use crate::transport::Transport;

/// Asked for at first: QEMU's agent makes room for all that is asked for, and clears it, before it reads.
const SMALL_READ_BYTES: usize = 64 << 10;

/// Most that is kept of what a shell complains of.
const COMPLAINT_BYTES: usize = 16 << 10;

/// What a program writes to, open for reading.
#[derive(Debug)]
pub(super) struct OutputFile {
    pub(super) handle: i64,
    /// How much to ask for: much only where there was more than little.
    next_bytes: usize,
    position: u64,
    sieve: Sieve,
}

impl OutputFile {
    pub(super) fn new(handle: i64, name: &str) -> Self {
        Self { handle, next_bytes: SMALL_READ_BYTES, position: 0, sieve: Sieve::new(name) }
    }

    /// Hands on a piece of what has come. Returns whether there was any.
    pub(super) fn pass_on<T: Transport>(
        &mut self,
        agent: &mut Agent<T>,
        stream: OutputStream,
        console: &mut dyn Console,
    ) -> Result<bool, Error> {
        let most = agent.capacity().read_bytes;
        let asked = self.next_bytes.min(most);
        let bytes = self.read(agent, asked)?;
        self.next_bytes = if bytes.len() == asked { most } else { SMALL_READ_BYTES };
        take(console, stream, &self.sieve.sift(&bytes))?;
        Ok(!bytes.is_empty())
    }

    /// Hands on what a program has left that has ended, and nothing that others add meanwhile. Returns whether it was all:
    /// the console or the time limit may want an end first.
    pub(super) fn pass_on_the_rest<T: Transport>(
        &mut self,
        agent: &mut Agent<T>,
        stream: OutputStream,
        console: &mut dyn Console,
        ending: &mut Ending,
    ) -> Result<bool, Error> {
        let asked = self.next_bytes.min(agent.capacity().read_bytes);
        let bytes = self.read(agent, asked)?;
        take(console, stream, &self.sieve.sift(&bytes))?;
        let mut is_whole = true;
        if bytes.len() == asked {
            let end = agent.seek(self.handle, io::SeekFrom::End(0))?;
            agent.seek(self.handle, io::SeekFrom::Start(self.position))?;
            while self.position < end {
                if ending.cuts(console.wish()) {
                    is_whole = false;
                    break;
                }
                let asked = end.saturating_sub(self.position).min(agent.capacity().read_bytes as u64);
                let bytes = self.read(agent, usize::try_from(asked).unwrap_or(SMALL_READ_BYTES))?;
                if bytes.is_empty() {
                    break;
                }
                take(console, stream, &self.sieve.sift(&bytes))?;
            }
        }
        take(console, stream, &self.sieve.rest())?;
        Ok(is_whole)
    }

    /// What the script in front of the program complained of instead of starting it.
    pub(super) fn complaint(&mut self) -> Option<String> {
        self.sieve.complaint()
    }

    fn read<T: Transport>(&mut self, agent: &mut Agent<T>, asked: usize) -> Result<Vec<u8>, Error> {
        let bytes = agent.read_piece(self.handle, asked)?.buf_b64.0;
        self.position += bytes.len() as u64;
        Ok(bytes)
    }
}

/// Keeps an output back that begins with the script's random name: it is a shell's complaint. The name has left the
/// process when the program has started, so none begins like that by itself.
#[derive(Debug)]
pub(super) struct Sieve {
    mark: Vec<u8>,
    kept: Vec<u8>,
    is_passed: bool,
}

impl Sieve {
    pub(super) fn new(name: &str) -> Self {
        Self { mark: format!("{name}: ").into_bytes(), kept: Vec::new(), is_passed: false }
    }

    /// The bytes that can be handed on.
    pub(super) fn sift(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.is_passed {
            return bytes.to_vec();
        }
        let room = (COMPLAINT_BYTES + self.mark.len()).saturating_sub(self.kept.len());
        let is_complaint = self.kept.starts_with(&self.mark);
        self.kept.extend_from_slice(if is_complaint { &bytes[..bytes.len().min(room)] } else { bytes });
        let common = self.kept.len().min(self.mark.len());
        if self.kept[..common] == self.mark[..common] {
            return Vec::new();
        }
        self.is_passed = true;
        std::mem::take(&mut self.kept)
    }

    /// What was kept back and is no complaint, at the end.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        if self.kept.starts_with(&self.mark) { Vec::new() } else { std::mem::take(&mut self.kept) }
    }

    /// The complaint without the name in front of each line.
    pub(super) fn complaint(&mut self) -> Option<String> {
        if !self.kept.starts_with(&self.mark) {
            return None;
        }
        let (text, mark) = (String::from_utf8_lossy(&self.kept), String::from_utf8_lossy(&self.mark));
        Some(text.replace(mark.as_ref(), ""))
    }
}

pub(super) fn take(console: &mut dyn Console, stream: OutputStream, bytes: &[u8]) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let act = || format!("take the program's {}", if stream == OutputStream::Stdout { "output" } else { "errors" });
    console.output(stream, bytes).map_err(|source| Error::Local { act: act(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_with_the_name_is_a_complaint_and_all_else_an_output() {
        let sift = |pieces: &[&str]| {
            let mut sieve = Sieve::new("qga-1");
            let mut passed: Vec<u8> = pieces.iter().flat_map(|piece| sieve.sift(piece.as_bytes())).collect();
            passed.extend(sieve.rest());
            (String::from_utf8(passed).unwrap(), sieve.complaint())
        };
        assert_eq!(
            sift(&["q", "ga-1: exec: x: not found\n"]),
            (String::new(), Some("exec: x: not found\n".to_owned()))
        );
        assert_eq!(sift(&["qga-", "2: x"]), ("qga-2: x".to_owned(), None));
        assert_eq!(sift(&["qg"]), ("qg".to_owned(), None));
        assert_eq!(sift(&["a", "qga-1: x"]), ("aqga-1: x".to_owned(), None));
        assert_eq!(sift(&[]), (String::new(), None));
    }
}
