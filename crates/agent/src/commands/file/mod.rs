//! guest-file-open, -close, -read, -write, -seek, -flush.
//!
//! Files are plain descriptors without a buffer of ours: what was written is visible at once, and a read that meets an
//! error loses nothing. They are opened non-blocking, so that a FIFO or a device that gives nothing answers an error.
//! A command that hangs on a file all the same keeps that file alone busy.

mod transfer;

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use qga_protocol::Nothing;
use qga_protocol::file::{Close, FileRead, FileSeek, FileWrite, Flush, Open, Read, Seek, Whence, Write};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::dispatch::Call;
use crate::dispatch::handler::{Entry, Outcome, Run, family};
use crate::system::c_string::c_text;
use crate::system::error::Error;
use crate::system::log::audit;

/// The family's commands.
pub const ENTRIES: &[Entry] = family![Open, Close, Read, Write<'_>, Seek, Flush];

/// Most bytes that one read may ask for.
const READ_BYTES_MAX: i64 = 48 << 20;
const READ_BYTES_DEFAULT: i64 = 4096;

impl Run for Open {
    fn run(self, call: &Call<'_>) -> Result<Outcome<i64>, Error> {
        let mode = self.mode.as_deref().unwrap_or("r");
        audit(format_args!("guest-file-open called, filepath: {}, mode: {mode}", self.path));
        let Some(flags) = flags(mode) else { return Err(Error::new(format!("invalid file open mode '{mode}'"))) };
        let act = format!("failed to open file '{}' (mode: '{mode}')", self.path);
        let reserved = call.agent.files.reserve(&act)?;
        let file = open(&c_text(self.path.as_str()), flags).map_err(|cause| Error::io(&act, &cause))?;
        let handle = reserved.fill(file);
        audit(format_args!("guest-file-open, handle: {handle}"));
        Ok(handle.into())
    }
}

/// What fopen(3)'s modes mean, for `b` and `+` in any order.
fn flags(mode: &str) -> Option<OFlags> {
    let create = OFlags::CREATE;
    Some(match mode {
        "r" | "rb" => OFlags::RDONLY,
        "w" | "wb" => OFlags::WRONLY | create | OFlags::TRUNC,
        "a" | "ab" => OFlags::WRONLY | create | OFlags::APPEND,
        "r+" | "rb+" | "r+b" => OFlags::RDWR,
        "w+" | "wb+" | "w+b" => OFlags::RDWR | create | OFlags::TRUNC,
        "a+" | "ab+" | "a+b" => OFlags::RDWR | create | OFlags::APPEND,
        _ => return None,
    })
}

/// Creates the file, or opens it if it exists. Two steps, so that a symbolic link to nowhere creates nothing.
fn open(path: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if flags.contains(OFlags::CREATE) {
        let permissions = Mode::from_raw_mode(0o666);
        match rustix::fs::open(path, flags | OFlags::EXCL, permissions) {
            Err(Errno::EXIST) => {}
            created => return Ok(created?),
        }
    }
    Ok(rustix::fs::open(path, flags - OFlags::CREATE, Mode::empty())?)
}

impl Run for Close {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        audit(format_args!("guest-file-close called, handle: {}", self.handle));
        call.agent.files.close(self.handle)?;
        Ok(Nothing {}.into())
    }
}

impl Run for Read {
    fn run(self, call: &Call<'_>) -> Result<Outcome<FileRead>, Error> {
        let file = call.agent.files.take(self.handle, "guest-file-read")?;
        let count = self.count.unwrap_or(READ_BYTES_DEFAULT);
        if !(0..=READ_BYTES_MAX).contains(&count) {
            return Err(Error::new(format!("value '{count}' is invalid for argument count")));
        }
        transfer::read(file, count as usize)
    }
}

impl Run for Write<'_> {
    fn run(self, call: &Call<'_>) -> Result<Outcome<FileWrite>, Error> {
        let file = call.agent.files.take(self.handle, "guest-file-write")?;
        let given = self.buf_b64.check()?;
        let count = match self.count {
            None => given,
            Some(count) => usize::try_from(count)
                .ok()
                .filter(|count| *count <= given)
                .ok_or_else(|| Error::new(format!("value '{count}' is invalid for argument count")))?,
        };
        transfer::write(&file, &self.buf_b64, count, call)?;
        Ok(FileWrite { count: count as i64, eof: false }.into())
    }
}

impl Run for Seek {
    fn run(self, call: &Call<'_>) -> Result<Outcome<FileSeek>, Error> {
        let file = call.agent.files.take(self.handle, "guest-file-seek")?;
        let whence = match self.whence {
            Whence::Name(name) => name as i64,
            Whence::Number(number) => number,
        };
        let negative = || Error::new("failed to seek file: Invalid argument");
        let target = match whence {
            0 => rustix::fs::SeekFrom::Start(u64::try_from(self.offset).map_err(|_| negative())?),
            1 => rustix::fs::SeekFrom::Current(self.offset),
            2 => rustix::fs::SeekFrom::End(self.offset),
            other => return Err(Error::new(format!("invalid whence code {other}"))),
        };
        let position =
            rustix::fs::seek(&*file, target).map_err(|cause| Error::io("failed to seek file", &cause.into()))?;
        Ok(FileSeek { position: position as i64, eof: false }.into())
    }
}

impl Run for Flush {
    fn run(self, call: &Call<'_>) -> Result<Outcome<Nothing>, Error> {
        // Nothing is kept back; only the handle is looked up.
        call.agent.files.take(self.handle, "guest-file-flush")?;
        Ok(Nothing {}.into())
    }
}
