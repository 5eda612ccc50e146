//! What agent and keeper tell each other: one packet a message, descriptors beside it where there are some.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::process::child::Exit;

/// More than any message has.
const MESSAGE_BYTES_MAX: usize = 64;
/// Most descriptors of a message.
const DESCRIPTORS_MAX: usize = 2;

/// A packet as it came.
pub struct Packet {
    /// What it is, and the rest of its bytes.
    bytes: Vec<u8>,
    /// Taken one after the other.
    descriptors: std::vec::IntoIter<OwnedFd>,
}

/// What the agent tells its keeper. The number is the agent's for a program.
#[derive(Debug)]
pub enum Message {
    /// The reading ends of a program that is about to start.
    Streams(u64, [Option<OwnedFd>; 2]),
    /// It has started: its process, by number and by descriptor where the system has such.
    Started(u64, i32, Option<OwnedFd>),
    /// The file that has all that is kept of a stream.
    Kept(u64, usize, OwnedFd),
    /// More came of a stream than is kept.
    Truncated(u64, usize),
    /// It has ended, and the agent has its output, or it has never started. What is left in the pipes goes nowhere.
    Ended(u64),
    /// It has ended like this, and nobody has fetched that yet. The agent is about to end.
    Unfetched(u64, i32, Exit),
    /// A pipe from which nobody wants anything any more.
    Left(OwnedFd),
}

/// What a keeper whose agent is gone answers to one that comes later.
#[derive(Debug)]
pub enum Answer {
    /// It knows no such program.
    Unknown,
    /// The program runs.
    Running,
    /// It has ended: how, as far as that could be learned, and what was kept of its two streams, each with whether it
    /// was truncated.
    Ended(Option<Exit>, [(Option<OwnedFd>, bool); 2]),
}

/// Sends bytes and descriptors as one packet.
pub fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL | flags))?;
    Ok(())
}

/// Receives a packet; `None` if the other side is gone.
pub fn receive(socket: &OwnedFd, flags: RecvFlags) -> io::Result<Option<Packet>> {
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = beside.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let descriptors: Vec<OwnedFd> = descriptors.collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE.into());
    }
    let bytes = bytes[..received.bytes].to_vec();
    Ok((!bytes.is_empty()).then(|| Packet { bytes, descriptors: descriptors.into_iter() }))
}

/// The bytes of an agent's message without descriptors: what it is, of which program, and numbers.
pub fn bytes(kind: u8, number: u64, rest: &[i32]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend(rest.iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

/// An end as two numbers: how it is to be understood, and the code or signal.
pub fn numbers(exit: Option<Exit>) -> [i32; 2] {
    match exit {
        Some(Exit::Code(code)) => [0, code],
        Some(Exit::Signal(signal)) => [1, signal],
        None => [2, 0],
    }
}

fn exit(kind: i32, number: i32) -> Option<Exit> {
    match kind {
        0 => Some(Exit::Code(number)),
        1 => Some(Exit::Signal(number)),
        _ => None,
    }
}

impl Packet {
    /// What it is.
    pub fn kind(&self) -> Option<u8> {
        self.bytes.first().copied()
    }

    /// The number at a place behind the kind and, if `skipped`, a program's number.
    fn number(&self, skipped: usize, place: usize) -> Option<i32> {
        let begin = 1 + skipped + 4 * place;
        Some(i32::from_le_bytes(self.bytes.get(begin..begin + 4)?.try_into().ok()?))
    }

    /// As an agent's message; `None` if it makes no sense.
    pub fn message(mut self) -> Option<Message> {
        let kind = self.kind()?;
        let program = u64::from_le_bytes(self.bytes.get(1..9)?.try_into().ok()?);
        let number = |place| self.number(8, place);
        let stream = || number(0).and_then(|stream| usize::try_from(stream).ok()).filter(|stream| *stream < 2);
        Some(match kind {
            b'S' => {
                let (out, err) = (number(0)? != 0, number(1)? != 0);
                let mut next = |is_there: bool| is_there.then(|| self.descriptors.next());
                let streams = [next(out), next(err)];
                if streams.iter().any(|stream| matches!(stream, Some(None))) {
                    return None;
                }
                Message::Streams(program, streams.map(Option::flatten))
            }
            b'P' => Message::Started(program, number(0)?, self.descriptors.next()),
            b'K' => Message::Kept(program, stream()?, self.descriptors.next()?),
            b'T' => Message::Truncated(program, stream()?),
            b'E' => Message::Ended(program),
            b'R' => Message::Unfetched(program, number(0)?, exit(number(1)?, number(2)?)?),
            b'L' => Message::Left(self.descriptors.next()?),
            _ => return None,
        })
    }

    /// As the process id that a later agent asks for.
    pub fn asked_pid(&self) -> Option<i32> {
        (self.kind()? == b'?').then(|| self.number(0, 0)).flatten()
    }

    /// As a keeper's answer; `None` if it makes no sense.
    pub fn answer(mut self) -> Option<Answer> {
        Some(match self.kind()? {
            b'-' => Answer::Unknown,
            b'r' => Answer::Running,
            b'e' => {
                let number = |place| self.number(0, place);
                let exit = exit(number(0)?, number(1)?);
                let streams = [(number(2)? != 0, number(3)? != 0), (number(4)? != 0, number(5)? != 0)];
                let streams =
                    streams.map(|(is_there, truncated)| (is_there.then(|| self.descriptors.next()), truncated));
                if streams.iter().any(|(file, _)| matches!(file, Some(None))) {
                    return None;
                }
                Answer::Ended(exit, streams.map(|(file, truncated)| (file.flatten(), truncated)))
            }
            _ => return None,
        })
    }

    /// As the number of further pipes that a keeper can empty, and of those that it empties.
    pub fn room(&self) -> Option<(usize, usize)> {
        let number = |place| self.number(0, place).and_then(|number| usize::try_from(number).ok());
        if self.kind()? == b'C' { number(0).zip(number(1)) } else { None }
    }
}
