//! What agent and guardian tell each other: one packet a message, a descriptor beside it where there is one.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::super::held::Held;
use super::Opened;
use crate::freeze::machine::Phase;
use crate::system::mounts::DeviceNumber;

/// More than the longest path and the rest of a message.
const MESSAGE_BYTES_MAX: usize = 8192;

/// A message.
#[derive(Debug)]
pub enum Message {
    /// The socket where a later agent finds the guardian.
    Listener(OwnedFd),
    /// A file system that is, or may be, frozen.
    Mount(Opened),
    /// One that is not, or whose freeze is none of the guardian's business.
    Forget(DeviceNumber),
    /// That was all of them. The identity of their freeze, and its state file.
    Armed(String, PathBuf),
    /// When they are to be thawed, since the machine's start.
    Deadline(Deadline),
    /// The guardian has understood; the agent serves.
    Ready,
    /// The agent ends the freeze now, and this is how: a guardian whose agent is killed from here on does the same.
    Ending(Phase),
    /// What is left is not part of a freeze any more: to be thawed as soon as the agent is gone, without a word.
    Remainder,
    /// They are thawed: the guardian may go.
    Released,
}

/// When a freeze ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// The freeze is still at work: nobody has been told that anything is frozen.
    AtWork(Duration),
    /// The host knows of it.
    Frozen(Option<Duration>),
}

impl Deadline {
    /// The moment, if there is one.
    pub fn at(self) -> Option<Duration> {
        match self {
            Self::AtWork(at) => Some(at),
            Self::Frozen(at) => at,
        }
    }
}

/// Sends a message.
pub fn send(socket: &OwnedFd, message: &Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    let file;
    let mut descriptor = None;
    let seconds = |at: Option<Duration>| at.map_or_else(String::new, |at| at.as_secs().to_string());
    match message {
        Message::Listener(socket) => {
            bytes.push(b'l');
            descriptor = Some(socket.as_fd());
        }
        Message::Mount(opened) => {
            bytes.extend_from_slice(format!("m{} ", opened.device).as_bytes());
            bytes.extend_from_slice(opened.name.as_os_str().as_bytes());
            file = opened.held.file()?;
            descriptor = Some(file.as_fd());
        }
        Message::Forget(device) => bytes.extend_from_slice(format!("f{device}").as_bytes()),
        Message::Armed(id, marker) => {
            bytes.extend_from_slice(format!("a{id} ").as_bytes());
            bytes.extend_from_slice(marker.as_os_str().as_bytes());
        }
        Message::Ending(phase) => bytes.extend_from_slice(&[b'e', phase.byte()]),
        Message::Deadline(Deadline::AtWork(at)) => bytes.extend_from_slice(format!("w{}", at.as_secs()).as_bytes()),
        Message::Deadline(Deadline::Frozen(at)) => bytes.extend_from_slice(format!("d{}", seconds(*at)).as_bytes()),
        Message::Ready => bytes.push(b'y'),
        Message::Remainder => bytes.push(b'o'),
        Message::Released => bytes.push(b'r'),
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        beside.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message; `None` if the other side is gone.
pub fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let Some((kind, rest)) = bytes[..received.bytes].split_first() else { return Ok(None) };
    understood(*kind, rest, descriptor).map(Some).ok_or_else(|| Errno::BADMSG.into())
}

fn understood(kind: u8, rest: &[u8], descriptor: Option<OwnedFd>) -> Option<Message> {
    let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let seconds = |bytes: &[u8]| Some(Duration::from_secs(text(bytes).parse().ok()?));
    Some(match (kind, descriptor) {
        (b'l', Some(socket)) => Message::Listener(socket),
        (b'm', Some(file)) => {
            let at = rest.iter().position(|byte| *byte == b' ')?;
            let device = DeviceNumber::parse(&text(&rest[..at]))?;
            let held = Arc::new(Held::new(File::from(file)));
            Message::Mount(Opened { device, name: path(&rest[at + 1..]), held })
        }
        (b'f', None) => Message::Forget(DeviceNumber::parse(&text(rest))?),
        (b'a', None) => {
            let at = rest.iter().position(|byte| *byte == b' ')?;
            Message::Armed(text(&rest[..at]), path(&rest[at + 1..]))
        }
        (b'e', None) => Message::Ending(Phase::of_byte(*rest.first()?)),
        (b'w', None) => Message::Deadline(Deadline::AtWork(seconds(rest)?)),
        (b'd', None) if rest.is_empty() => Message::Deadline(Deadline::Frozen(None)),
        (b'd', None) => Message::Deadline(Deadline::Frozen(Some(seconds(rest)?))),
        (b'y', None) => Message::Ready,
        (b'o', None) => Message::Remainder,
        (b'r', None) => Message::Released,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Deadline, Message, receive, send};
    use crate::freeze::linux::held::Held;
    use crate::freeze::linux::prepare::Opened;
    use crate::freeze::machine::{Phase, Why};
    use crate::system::mounts::DeviceNumber;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn messages_arrive_as_they_were_sent_with_their_descriptors() {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = File::open(directory.path()).unwrap();
        let inode = file.metadata().unwrap().ino();
        let held = Arc::new(Held::new(file));
        let device = DeviceNumber { major: 254, minor: 17 };
        send(&one, &Message::Mount(Opened { device, name: "/a b\nc".into(), held })).unwrap();
        send(&one, &Message::Forget(device)).unwrap();
        send(&one, &Message::Armed("5-7".to_owned(), "/run/with blank".into())).unwrap();
        send(&one, &Message::Ending(Phase::Early(Why::Deadline))).unwrap();
        let deadlines = [
            Deadline::AtWork(Duration::from_secs(7)),
            Deadline::Frozen(Some(Duration::from_secs(77))),
            Deadline::Frozen(None),
        ];
        for deadline in deadlines {
            send(&one, &Message::Deadline(deadline)).unwrap();
        }
        send(&one, &Message::Released).unwrap();
        let Some(Message::Mount(mount)) = receive(&other).unwrap() else { panic!("no mount") };
        assert_eq!((mount.device, mount.name.as_path()), (device, Path::new("/a b\nc")));
        assert_eq!(mount.held.file().unwrap().metadata().unwrap().ino(), inode);
        assert!(matches!(receive(&other).unwrap(), Some(Message::Forget(forgotten)) if forgotten == device));
        let Some(Message::Armed(id, marker)) = receive(&other).unwrap() else { panic!("not armed") };
        assert_eq!((id.as_str(), marker.as_path()), ("5-7", Path::new("/run/with blank")));
        let Some(Message::Ending(phase)) = receive(&other).unwrap() else { panic!("not ending") };
        assert_eq!(phase, Phase::Early(Why::Deadline));
        for deadline in deadlines {
            assert!(matches!(receive(&other).unwrap(), Some(Message::Deadline(found)) if found == deadline));
        }
        assert!(matches!(receive(&other).unwrap(), Some(Message::Released)));
        drop(one);
        assert!(receive(&other).unwrap().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for bytes in [&b"x"[..], b"m8:1 /without-a-descriptor", b"fx:y", b"wsoon", b"d-1", b"a/no-identity", b"e"] {
            rustix::io::write(&one, bytes).unwrap();
            assert!(receive(&other).is_err(), "{bytes:?}");
        }
    }
}
