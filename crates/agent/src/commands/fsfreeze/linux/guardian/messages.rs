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

use super::Opened;

/// More than the longest path and the rest of a message.
const MESSAGE_BYTES_MAX: usize = 8192;

/// A message.
#[derive(Debug)]
pub enum Message {
    /// The socket where a later agent finds the guardian.
    Listener(OwnedFd),
    /// A file system that is, or may be, frozen.
    Mount(Opened),
    /// That was all of them.
    Armed {
        /// When they are to be thawed at the latest, since the machine's start.
        deadline: Option<Duration>,
        /// The file that says so.
        marker: PathBuf,
    },
    /// The guardian has understood.
    Ready,
    /// They are thawed: the guardian may go.
    Released,
}

/// Sends a message.
pub fn send(socket: &OwnedFd, message: &Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut descriptor = None;
    match message {
        Message::Listener(socket) => {
            bytes.push(b'l');
            descriptor = Some(socket.as_fd());
        }
        Message::Mount(opened) => {
            bytes.push(b'm');
            bytes.extend_from_slice(opened.name.as_os_str().as_bytes());
            descriptor = Some(opened.file.as_fd());
        }
        Message::Armed { deadline, marker } => {
            bytes.push(b'a');
            let seconds = deadline.map_or_else(String::new, |deadline| deadline.as_secs().to_string());
            bytes.extend_from_slice(seconds.as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(marker.as_os_str().as_bytes());
        }
        Message::Ready => bytes.push(b'y'),
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
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let Some((kind, rest)) = bytes[..received.bytes].split_first() else { return Ok(None) };
    let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()));
    let message = match (kind, descriptor) {
        (b'l', Some(socket)) => Message::Listener(socket),
        (b'm', Some(file)) => Message::Mount(Opened { name: path(rest), file: Arc::new(File::from(file)) }),
        (b'a', None) => {
            let at = rest.iter().position(|byte| *byte == b' ').ok_or(Errno::BADMSG)?;
            let seconds = String::from_utf8_lossy(&rest[..at]);
            let deadline = match &*seconds {
                "" => None,
                seconds => Some(Duration::from_secs(seconds.parse().map_err(|_| Errno::BADMSG)?)),
            };
            Message::Armed { deadline, marker: path(&rest[at + 1..]) }
        }
        (b'y', None) => Message::Ready,
        (b'r', None) => Message::Released,
        _ => return Err(Errno::BADMSG.into()),
    };
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::{Message, receive, send};
    use crate::commands::fsfreeze::linux::opening::Opened;
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
        let file = Arc::new(File::open(directory.path()).unwrap());
        let inode = file.metadata().unwrap().ino();
        send(&one, &Message::Mount(Opened { name: "/a b\nc".into(), file })).unwrap();
        let deadline = Some(Duration::from_secs(77));
        send(&one, &Message::Armed { deadline, marker: "/run/with blank".into() }).unwrap();
        send(&one, &Message::Armed { deadline: None, marker: "/m".into() }).unwrap();
        send(&one, &Message::Released).unwrap();
        let Some(Message::Mount(mount)) = receive(&other).unwrap() else { panic!("no mount") };
        assert_eq!(mount.name, Path::new("/a b\nc"));
        assert_eq!(mount.file.metadata().unwrap().ino(), inode);
        let Some(Message::Armed { deadline, marker }) = receive(&other).unwrap() else { panic!("not armed") };
        assert_eq!((deadline, marker.as_path()), (Some(Duration::from_secs(77)), Path::new("/run/with blank")));
        assert!(matches!(receive(&other).unwrap(), Some(Message::Armed { deadline: None, .. })));
        assert!(matches!(receive(&other).unwrap(), Some(Message::Released)));
        drop(one);
        assert!(receive(&other).unwrap().is_none());
    }
}
