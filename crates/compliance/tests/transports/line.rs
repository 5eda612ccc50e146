//! A serial line without hardware: the two ends of a pseudo terminal.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::thread;

use qga_compliance::{Connection, Failure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::stage::{Stage, until};

/// The host's end. Dropped, the line is hung up.
pub struct Line {
    end: OwnedFd,
}

impl Line {
    /// Opens a line whose other end is a name in the stage's directory.
    pub fn open(stage: &Stage, name: &str) -> Result<Self, Failure> {
        let told = |error: rustix::io::Errno| format!("no pseudo terminal: {error}");
        let end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(told)?;
        grantpt(&end).map_err(told)?;
        unlockpt(&end).map_err(told)?;
        let path = ptsname(&end, Vec::new()).map_err(told)?;
        let path = path.to_str().map_err(|error| error.to_string())?;
        // Made beside and moved: the agent never sees the name without the line.
        let beside = stage.path("beside");
        symlink(path, &beside)
            .and_then(|()| fs::rename(&beside, stage.path(name)))
            .map_err(|error| error.to_string())?;
        Ok(Self { end })
    }

    fn settings(&self) -> Result<Termios, Failure> {
        tcgetattr(&self.end).map_err(|error| format!("no settings of the line: {error}"))
    }

    fn set(&self, settings: &Termios) -> Result<(), Failure> {
        tcsetattr(&self.end, OptionalActions::Now, settings).map_err(|error| format!("cannot set the line: {error}"))
    }

    /// Whether bytes pass as they are.
    pub fn is_raw(&self) -> Result<bool, Failure> {
        Ok(!self.settings()?.local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG))
    }

    /// Waits until the agent has opened the line and made it raw.
    pub fn wait_until_raw(&self) -> Result<(), Failure> {
        until("the agent does not make the line raw", || Ok(self.is_raw()?.then_some(())))
    }

    /// Makes the line raw, as a virtio port is.
    pub fn make_raw(&self) -> Result<(), Failure> {
        let mut settings = self.settings()?;
        settings.make_raw();
        self.set(&settings)
    }

    /// The speed in bits per second.
    pub fn speed(&self) -> Result<u32, Failure> {
        Ok(self.settings()?.output_speed())
    }

    /// Sets the speed.
    pub fn set_speed(&self, speed: u32) -> Result<(), Failure> {
        let mut settings = self.settings()?;
        settings.set_speed(speed).map_err(|error| error.to_string())?;
        self.set(&settings)
    }

    /// A connection over the line.
    pub fn host(&self) -> Result<Connection, Failure> {
        bridged(self.end.try_clone().map_err(|error| error.to_string())?)
    }
}

/// A connection over any two-way descriptor, carried by two threads that end with it.
pub fn bridged(descriptor: OwnedFd) -> Result<Connection, Failure> {
    let told = |error: io::Error| format!("no bridge: {error}");
    let (near, far) = UnixStream::pair().map_err(told)?;
    let mut to_agent = File::from(descriptor);
    let mut from_agent = to_agent.try_clone().map_err(told)?;
    let mut from_host = far.try_clone().map_err(told)?;
    let mut to_host = far;
    thread::spawn(move || carry(&mut from_host, &mut to_agent));
    thread::spawn(move || {
        carry(&mut from_agent, &mut to_host);
        let _ = to_host.shutdown(Shutdown::Both);
    });
    Connection::new(near)
}

fn carry(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
