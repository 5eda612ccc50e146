//! Holds a file system so that its freeze can be ended whatever becomes of its mounts, and so that nobody is in the
//! way of an administrator who unmounts it meanwhile.
//!
//! A descriptor of a file on the mount itself would keep the mount busy: `umount` fails. So the mount is cloned, seen by
//! nobody and in no list; a descriptor through the clone keeps the file system, not the mount. And a descriptor in a
//! process's table makes the process one that uses the file system: `fuser -km` would kill the agent and the guardian.
//! So while a freeze lasts the descriptor waits in the buffer of a socket, from where copies are taken.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// A descriptor of any file of a file system.
#[derive(Debug)]
pub struct Held(Mutex<Place>);

#[derive(Debug)]
enum Place {
    /// In the table of this process.
    Here(Arc<File>),
    /// In the buffer of a socket, which its other end keeps open.
    InSocket { socket: OwnedFd, _other_end: OwnedFd },
}

impl Held {
    /// Holds a descriptor as it is.
    pub fn new(file: File) -> Self {
        Self(Mutex::new(Place::Here(Arc::new(file))))
    }

    /// Holds the file system of a file without holding its mount; as it is where the kernel cannot (before Linux 5.2).
    pub fn without_mount(file: File) -> Self {
        match through_clone(&file) {
            Ok(clone) => Self::new(clone),
            Err(error) => {
                log::debug!("what is frozen cannot be unmounted meanwhile: {error}");
                Self::new(file)
            }
        }
    }

    /// A descriptor to work with.
    ///
    /// # Errors
    /// If no more files can be opened.
    pub fn file(&self) -> io::Result<Arc<File>> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Here(file) => Ok(Arc::clone(file)),
            Place::InSocket { socket, .. } => copy(socket).map(Arc::new),
        }
    }

    /// Takes it out of the table of this process, once nobody works with it any more.
    ///
    /// # Errors
    /// If there is no socket to be had; then it stays where it is.
    pub fn put_away(&self) -> io::Result<()> {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Place::Here(file) = &*place {
            let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            let descriptors = [file.as_fd()];
            beside.push(SendAncillaryMessage::ScmRights(&descriptors));
            sendmsg(&one, &[IoSlice::new(b".")], &mut beside, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
            *place = Place::InSocket { socket: other, _other_end: one };
        }
        Ok(())
    }
}

/// A copy of the descriptor that waits in a socket, where it stays: without room for the copy nothing is lost.
fn copy(socket: &OwnedFd) -> io::Result<File> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut bytes = [0; 1];
    rustix::io::retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags))?;
    let found = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    // The kernel leaves out what the table has no room for.
    found.map(File::from).ok_or_else(|| Errno::MFILE.into())
}

fn through_clone(file: &File) -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(file, "", flags)?;
    let mut options = File::options();
    options.read(true).custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32);
    options.open(format!("/proc/self/fd/{}", clone.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::Held;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    fn is_in_table(inode: u64) -> bool {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap();
        entries.flatten().any(|entry| std::fs::metadata(entry.path()).is_ok_and(|found| found.ino() == inode))
    }

    #[test]
    fn what_is_put_away_is_in_no_table_and_can_be_had_again_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let inode = std::fs::metadata(directory.path()).unwrap().ino();
        let held = Held::without_mount(File::open(directory.path()).unwrap());
        assert_eq!(held.file().unwrap().metadata().unwrap().ino(), inode);
        assert!(is_in_table(inode));
        held.put_away().unwrap();
        held.put_away().unwrap();
        assert!(!is_in_table(inode));
        for _ in 0..3 {
            assert_eq!(held.file().unwrap().metadata().unwrap().ino(), inode);
        }
        assert!(!is_in_table(inode));
    }
}
