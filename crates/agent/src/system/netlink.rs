//! Asks the kernel's routing socket and takes its answers apart: datagrams of messages, messages of attributes.
//!
//! Written by hand, for three questions need a hundred lines: the crates for it are half a megabyte of program, and
//! give up a whole message for one attribute that they do not expect. What is not understood here is passed over.

use std::io;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};

/// Most things that one dump may bring: the reply is some ten megabytes then, which is what hosts read at most.
pub const THINGS_MAX: usize = 65_536;
/// How often a dump is asked for anew if what it tells of has changed meanwhile; then it is taken as it is.
const ATTEMPTS_MAX: u32 = 4;
/// What the kernel fills at most in one datagram of a dump.
const DATAGRAM_BYTES: usize = 32 << 10;

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The bits of an attribute's type that say how it is packed.
const NLA_PACKING: u16 = 0xc000;

const AF_UNSPEC: u8 = 0;
pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// What can be asked for.
#[derive(Debug, Clone, Copy)]
pub enum Question {
    /// `RTM_GETLINK`: all interfaces.
    Links,
    /// `RTM_GETADDR`: all addresses.
    Addresses,
    /// `RTM_GETROUTE`: the routes of IPv4, of all tables.
    Ipv4Routes,
    /// `RTM_GETNEXTHOP`: the next hops that exist apart from routes.
    NextHops,
}

impl Question {
    /// The message's type, the address family and how long the fixed part behind the header is.
    const fn request(self) -> (u16, u8, usize) {
        match self {
            Self::Links => (18, AF_UNSPEC, 16),
            Self::Addresses => (22, AF_UNSPEC, 8),
            Self::Ipv4Routes => (26, AF_INET, 12),
            Self::NextHops => (106, AF_UNSPEC, 8),
        }
    }

    /// The type of the messages that answer.
    const fn answer_type(self) -> u16 {
        self.request().0 - 2
    }

    fn message(self, sequence: u32) -> Vec<u8> {
        let (kind, family, fixed_bytes) = self.request();
        let length = HEADER_BYTES + fixed_bytes;
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&(length as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        message.extend_from_slice(&sequence.to_ne_bytes());
        message.resize(HEADER_BYTES + 4, 0);
        message.resize(length, 0);
        message[HEADER_BYTES] = family;
        message
    }
}

/// Reads one answering message: its fixed part and the attributes behind it; adds what it tells of.
pub type Reader<Thing> = fn(&[u8], &mut Vec<Thing>) -> Option<()>;

/// All that the kernel answers to a question, in its order.
pub fn dump<Thing>(question: Question, read: Reader<Thing>) -> io::Result<Vec<Thing>> {
    // The protocol that needs no name is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // A connected socket takes messages from the kernel alone, not from other processes.
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    let mut datagram = vec![0; DATAGRAM_BYTES];
    let mut sequence = 0;
    loop {
        sequence += 1;
        send(&socket, &question.message(sequence), SendFlags::empty())?;
        let mut answer = Answer::new(question, sequence, read);
        loop {
            let (_, length) = match recv(&socket, datagram.as_mut_slice(), RecvFlags::TRUNC) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            let bytes = datagram.get(..length).ok_or_else(|| io::Error::other("a netlink datagram is too long"))?;
            if answer.take(bytes)? {
                break;
            }
        }
        if !answer.interrupted || sequence == ATTEMPTS_MAX {
            return Ok(answer.things);
        }
    }
}

/// What has come of an answer.
pub struct Answer<Thing> {
    question: Question,
    sequence: u32,
    read: Reader<Thing>,
    pub things: Vec<Thing>,
    /// Whether the kernel says that the dump may lack something, or have it twice.
    interrupted: bool,
}

impl<Thing> Answer<Thing> {
    /// Nothing yet of the answer to the question asked under this number.
    pub fn new(question: Question, sequence: u32, read: Reader<Thing>) -> Self {
        Self { question, sequence, read, things: Vec::new(), interrupted: false }
    }

    /// Reads a datagram; true if the answer ends in it.
    pub fn take(&mut self, datagram: &[u8]) -> io::Result<bool> {
        let mut rest = datagram;
        while let Some((kind, flags, sequence, body)) = next_message(&mut rest) {
            if sequence != self.sequence {
                continue;
            }
            self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
            if kind == NLMSG_ERROR || kind == NLMSG_DONE {
                // A negative errno, or zero; older kernels leave it out of the last message.
                let status = number(body, 0).map_or(0, u32::cast_signed);
                return if status < 0 { Err(io::Error::from_raw_os_error(status.wrapping_neg())) } else { Ok(true) };
            }
            if kind == self.question.answer_type() {
                // A message that is not understood is left out.
                let _ = (self.read)(body, &mut self.things);
            }
            if self.things.len() > THINGS_MAX {
                return Err(io::Error::other(format!("there are more than {THINGS_MAX}")));
            }
        }
        Ok(false)
    }
}

/// Type, flags, sequence number and body of the next message.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, u16, u32, &'a [u8])> {
    let message = rest.get(..number(rest, 0)? as usize)?;
    let (kind, flags, sequence) = (short(message, 4)?, short(message, 6)?, number(message, 8)?);
    let body = message.get(HEADER_BYTES..)?;
    *rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
    Some((kind, flags, sequence, body))
}

/// Attributes that follow each other, each with its type. They end where they are malformed.
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let attribute = self.0.get(..usize::from(short(self.0, 0)?))?;
        let (kind, value) = (short(attribute, 2)?, attribute.get(ATTRIBUTE_HEADER_BYTES..)?);
        self.0 = self.0.get(attribute.len().next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !NLA_PACKING, value))
    }
}

/// The 16 bits at an offset.
pub fn short(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The 32 bits at an offset.
pub fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The 64 bits at an offset.
pub fn long(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// A text that ends at its NUL; bytes that are no UTF-8 become U+FFFD.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
