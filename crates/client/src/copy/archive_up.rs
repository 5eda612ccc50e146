//! A copy to the guest that keeps everything.

use std::io::{self, Read};
use std::path::Path;
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;

use super::archive::{HostTar, MOST_SAID_BYTES, SMALL_TAR, Said, Side, UNPACKING, as_packed, check_host_tar, count};
use super::archive_scripts::{BEGIN_UP, PUT, UNPACK};
use super::download::local;
use super::place::refusal;
use super::tree_scripts::END;
use super::{OnProgress, Progress, TreeReport, explain, names, stopped};
use crate::agent::Agent;
use crate::error::Error;
use crate::program::Program;
use crate::streamed::{Console, Input, OutputStream, RunOptions, Wish};
use crate::transport::Transport;

impl<T: Transport> Agent<T> {
    /// Copies a file or a directory of the host to a path in the guest, and keeps its owner, its permissions, its times, its
    /// links, further names, extended attributes and holes, as `cp -a` does. Both sides need tar, the host GNU tar. What
    /// could not be kept is in [`TreeReport::skipped`]. A directory that is there gets what is in the one that is copied.
    pub fn upload_archive(
        &mut self,
        host: &Path,
        guest: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let act = format!("copy {} to {guest} in the guest", host.display());
        check_host_tar(&act)?;
        let guest = if guest.len() > 1 { guest.trim_end_matches('/') } else { guest };
        let guest = if guest.is_empty() { "/" } else { guest };
        let name = names::own_text("tree");
        let said = self.run_script(BEGIN_UP, &[guest, &name], &act)?.ok_or_else(|| no_shell(&act))?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let (kind, directory) = said.split_once('\n').ok_or_else(|| no_shell(&act))?;
        let directory = directory.trim_end_matches('\n').strip_suffix('x').unwrap_or(directory);
        let copied = self.upload_packed(host, guest, directory, kind == "gnu", &act, on_progress);
        match copied {
            // What is left then is hidden, and nobody's but its owner's.
            Err(error) if error.needs_sync() => Err(error),
            copied => {
                let ended = self.run_script_within(self.patience().tree, END, &[directory], &act);
                let report = copied.map_err(|error| explain(error, &act, None, false))?;
                ended?;
                Ok(report)
            }
        }
    }

    fn upload_packed(
        &mut self,
        host: &Path,
        guest: &str,
        directory: &str,
        is_gnu: bool,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let mut report = TreeReport::default();
        let (from, name, is_tree) = as_packed(host).map_err(|source| local(act, source))?;
        let one = match name.to_str().map(|name| name.strip_prefix("./").unwrap_or(name)) {
            _ if is_tree => String::new(),
            Some(name) => name.to_owned(),
            None => return Err(local(act, refusal("its name is not UTF-8, and the protocol carries text only"))),
        };
        let counts = count(host, &mut report).map_err(|source| local(act, source))?;
        if !is_gnu {
            report.skipped.push((guest.into(), SMALL_TAR.to_owned()));
            let plain = "the guest's tar is not GNU's, and keeps no";
            report.skipped.extend(counts.with_holes.into_iter().map(|path| (path, format!("{plain} holes"))));
            report
                .skipped
                .extend(counts.with_attributes.into_iter().map(|path| (path, format!("{plain} extended attributes"))));
        }
        let (tar, output) = HostTar::pack(&from, &name, !is_gnu).map_err(|source| local(act, source))?;
        let options = if is_gnu { UNPACKING } else { &["-p"] };
        let script = [&["-c", UNPACK, "qga", directory], options].concat();
        let arguments = script.into_iter().map(str::to_owned).collect();
        let unpacking = Program { path: "/bin/sh".to_owned(), arguments, ..Program::default() };
        let mut feeder = Feeder {
            pieces: read_ahead(output, self.capacity().write_bytes),
            guest,
            on_progress,
            sent: 0,
            total: counts.stored_bytes + report.files * 1024,
            said: Vec::new(),
            is_stopped: false,
        };
        let ended =
            self.run_live(&unpacking, &RunOptions { interactive_input: true, ..RunOptions::default() }, &mut feeder);
        let Feeder { said, is_stopped, pieces, .. } = feeder;
        // The host's tar ends when nobody reads what it says.
        drop(pieces);
        if is_stopped {
            return Err(local(act, stopped()));
        }
        let ended = ended?;
        if let Some(cause) = ended.not_started {
            return Err(Error::Guest { act: act.to_owned(), cause });
        }
        let (is_success, exit) = (ended.exit.success(), format!("tar: {}", ended.exit));
        let unpacked = Said { is_success, exit, text: said, side: Side::Guest };
        unpacked.judge(act, Path::new(guest), &mut report)?;
        let packed = tar.finish().map_err(|source| local(act, source))?;
        packed.judge(act, host, &mut report)?;
        self.run_script_within(self.patience().tree, PUT, &[directory, guest, &one], act)?;
        Ok(report)
    }
}

fn no_shell(act: &str) -> Error {
    Error::Guest { act: act.to_owned(), cause: "the guest has no shell, without which nothing is kept".to_owned() }
}

/// Reads on a thread: tar may take its time, and the guest wants to be asked meanwhile.
fn read_ahead(mut output: ChildStdout, piece_bytes: usize) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = sync_channel(2);
    thread::spawn(move || {
        loop {
            let mut piece = Vec::new();
            let read = (&mut output).take(piece_bytes as u64).read_to_end(&mut piece);
            let is_end = !matches!(read, Ok(1..));
            if sender.send(read.map(|_| piece)).is_err() || is_end {
                return;
            }
        }
    });
    receiver
}

/// Feeds the tar in the guest.
struct Feeder<'a> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    guest: &'a str,
    on_progress: OnProgress<'a>,
    sent: u64,
    total: u64,
    /// What the tar in the guest complains of.
    said: Vec<u8>,
    is_stopped: bool,
}

impl Console for Feeder<'_> {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        if stream == OutputStream::Stderr {
            let room = MOST_SAID_BYTES.saturating_sub(self.said.len());
            self.said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        Ok(())
    }

    fn input(&mut self) -> io::Result<Input> {
        match self.pieces.try_recv() {
            Ok(piece) => {
                let piece = piece?;
                self.sent += piece.len() as u64;
                Ok(if piece.is_empty() { Input::End } else { Input::Bytes(piece) })
            }
            Err(TryRecvError::Empty) => Ok(Input::NotYet),
            Err(TryRecvError::Disconnected) => Ok(Input::End),
        }
    }

    fn wish(&mut self) -> Wish {
        let copied_bytes = self.sent.min(self.total);
        let progress = Progress { path: self.guest, copied_bytes, total_bytes: self.total };
        self.is_stopped |= (self.on_progress)(progress).is_break();
        if self.is_stopped { Wish::Terminate } else { Wish::GoOn }
    }
}
