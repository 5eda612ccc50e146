//! A file from the host to the guest.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::download::{local, sum_up_while};
use super::scripts::{CHECK, COMPLETE, INODE, OVERTAKEN, PREPARE, REMOVE, THROUGH};
use super::source::{Patient, Source};
use super::{Copied, CopyOptions, OnProgress, Progress, explain, hex, holes, names, stopped};
use crate::agent::Agent;
use crate::error::Error;
use crate::file::read_full;
use crate::kind::Kind;
use crate::program::Program;
use crate::streamed::{Console, Input, OutputStream, RunOptions, Wish};
use crate::transport::Transport;

/// What `cmd` takes for something else than a part of a path.
const SPECIAL_TO_CMD: [char; 11] = ['&', '|', '<', '>', '^', '%', '"', '(', ')', '\r', '\n'];

/// Fewer zeros than this are written: to pass over them costs a request more.
const LEAST_HOLE: usize = 64 << 10;

/// What is copied where.
struct Upload<'a> {
    source: Source,
    /// Its path, for errors.
    name: String,
    guest: &'a str,
    /// Where the links at that path end.
    end: String,
    way: Way,
    options: CopyOptions,
    /// The whole of it, for errors.
    act: String,
}

/// How the copy is written.
enum Way {
    /// Not known yet.
    Unknown,
    Partial(PartialInGuest),
    /// Into what is there.
    Direct,
    /// To a block device, which keeps its size.
    Block,
    /// Through a program, which may have to wait for a reader.
    Through,
}

#[derive(Clone)]
struct PartialInGuest {
    path: String,
    /// Which file it is, where the guest has a shell to tell it.
    inode: Option<String>,
    /// Whether other copies use the name as well.
    is_shared: bool,
}

impl<T: Transport> Agent<T> {
    /// Copies a file of the host to a path in the guest. A file that is there gets the new content when all of it has
    /// come, and keeps what else it has; links are followed, devices and FIFOs are written to. What comes through a FIFO
    /// or from a device of the host is copied to its end.
    pub fn upload(
        &mut self,
        host: &Path,
        guest: &str,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let act = format!("copy {} to {guest} in the guest", host.display());
        let source = Source::open(host).map_err(|source| local(&act, source))?;
        self.upload_source(source, &host.display().to_string(), guest, options, act, on_progress)
    }

    /// Copies what is open on the host, a pipe perhaps, to a path in the guest; as [`upload`](Self::upload).
    pub fn upload_from(
        &mut self,
        file: File,
        guest: &str,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let act = format!("copy the input to {guest} in the guest");
        let source = Source::of(file).map_err(|source| local(&act, source))?;
        self.upload_source(source, "the input", guest, options, act, on_progress)
    }

    fn upload_source(
        &mut self,
        source: Source,
        name: &str,
        guest: &str,
        mut options: CopyOptions,
        act: String,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        // What comes once cannot be gone on with.
        options.resume &= source.sized.is_some();
        let (name, end) = (name.to_owned(), guest.to_owned());
        let mut upload = Upload { source, name, guest, end, way: Way::Unknown, options, act };
        let copied = self.upload_as_possible(&mut upload, on_progress);
        let Upload { way, act, .. } = &upload;
        copied.map_err(|error| {
            let Way::Partial(partial) = way else { return explain(error, act, None, false) };
            let is_lost = error.needs_sync();
            let is_wrong = matches!(error, Error::Changed { .. } | Error::Mismatch { .. });
            let is_full = error.kind() == Kind::GuestFull;
            let is_overtaken = matches!(&error, Error::Guest { cause, .. } if cause.contains(OVERTAKEN));
            let is_kept = is_lost || (options.resume && !is_wrong && !is_full && !is_overtaken);
            if !is_kept {
                // An error of the removal would hide the first one.
                let _ = match &partial.inode {
                    Some(inode) => self.run_script(&[INODE, REMOVE].concat(), &[&partial.path, inode], act).map(|_| ()),
                    None => self.remove_file(&partial.path),
                };
            }
            explain(error, act, is_kept.then(|| format!("{} in the guest", partial.path)), options.resume)
        })
    }

    fn upload_as_possible(&mut self, upload: &mut Upload<'_>, on_progress: OnProgress<'_>) -> Result<Copied, Error> {
        let mut hash = Sha256::new();
        let resumed_at = self.prepare(upload, &mut hash, on_progress)?;
        let bytes = match &upload.way {
            Way::Through => self.upload_through(upload, on_progress)?,
            _ => self.upload_content(upload, resumed_at, &mut hash, on_progress)?,
        };
        upload.check_source(bytes)?;
        let is_comparable = matches!(upload.way, Way::Partial(_) | Way::Block);
        let sha256 = (upload.options.verify && is_comparable).then(|| hex(hash));
        if let Some(here) = &sha256 {
            self.compare_upload(upload, bytes, here, on_progress)?;
        }
        if let Way::Partial(partial) = &upload.way {
            self.complete(upload, partial, bytes)?;
        }
        Ok(Copied { bytes, resumed_at, sha256 })
    }

    fn compare_upload(
        &mut self,
        upload: &Upload<'_>,
        bytes: u64,
        here: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<(), Error> {
        let path = if let Way::Partial(partial) = &upload.way { &partial.path } else { &upload.end };
        let progress = Progress { path: upload.guest, copied_bytes: bytes, total_bytes: bytes };
        match self.guest_sha256(path, bytes, progress, on_progress)? {
            Some(there) if there == *here => Ok(()),
            Some(there) => {
                let detail = format!("its SHA-256 is {there}, on the host {here}");
                Err(Error::Mismatch { path: upload.guest.to_owned(), detail })
            }
            None => {
                let cause = "the guest has no sha256sum".to_owned();
                Err(Error::Guest { act: format!("compare {} with the host's file", upload.guest), cause })
            }
        }
    }

    /// Writes the source from where it stands. Returns how many bytes the copy has then.
    fn upload_content(
        &mut self,
        upload: &mut Upload<'_>,
        resumed_at: u64,
        hash: &mut Sha256,
        on_progress: OnProgress<'_>,
    ) -> Result<u64, Error> {
        // Not to append: what QEMU's agent still holds back for a handle that a killed client left behind would come at
        // the end of the finished file one day. Nor to empty a partial file: by now it may be another copy's.
        let (path, mode, has_holes) = match &upload.way {
            Way::Partial(PartialInGuest { path, inode: Some(_), .. }) => (path, "r+", true),
            Way::Partial(PartialInGuest { path, .. }) => (path, "w", false),
            Way::Block => (&upload.end, "r+", false),
            _ => (&upload.end, "w", false),
        };
        let path = path.clone();
        let handle = self.open(&path, mode)?;
        let result = self.check_name(upload);
        let result = result.and_then(|()| self.write_source(upload, handle, resumed_at, has_holes, hash, on_progress));
        let result = result.and_then(|(bytes, end)| {
            // A hole at the end. Not by name: that may be another copy's by now.
            if bytes > end {
                self.seek(handle, SeekFrom::Start(bytes - 1))?;
                self.write_piece(handle, &[0])?;
            }
            Ok(bytes)
        });
        self.close_after(handle, result)
    }

    /// Writes the source, and passes over what is zero where the copy is to have holes. Returns the bytes of the source
    /// and where the last of them stands that is written.
    fn write_source(
        &mut self,
        upload: &mut Upload<'_>,
        handle: i64,
        resumed_at: u64,
        has_holes: bool,
        hash: &mut Sha256,
        on_progress: OnProgress<'_>,
    ) -> Result<(u64, u64), Error> {
        let Upload { source, options, guest, act, .. } = upload;
        let total = source.sized.as_ref().map(Metadata::len);
        let most = total.unwrap_or(source.most_bytes);
        let may_wait = source.may_wait();
        let mut piece = vec![0; self.capacity().write_bytes];
        // Where the handle stands, and how far the file is known to reach.
        let (mut copied, mut stands_at, mut end) = (resumed_at, 0, resumed_at);
        loop {
            let progress =
                |copied_bytes| Progress { path: guest, copied_bytes, total_bytes: total.unwrap_or(copied_bytes) };
            if on_progress(progress(copied)).is_break() {
                return Err(local(act, stopped()));
            }
            if has_holes && !options.verify && total.is_some() {
                copied = behind_hole(&source.file, copied, most).map_err(|source| local(act, source))?;
            }
            let read = if may_wait {
                let mut go_on = || on_progress(progress(copied)).is_continue();
                Patient { file: &source.file, go_on: &mut go_on }.read(&mut piece)
            } else {
                read_full(&mut source.file, &mut piece)
            };
            let size = read.map_err(|source| local(act, source))?;
            if size == 0 {
                return Ok((copied, end));
            }
            if options.verify {
                hash.update(&piece[..size]);
            }
            let least = if has_holes { LEAST_HOLE } else { usize::MAX };
            for run in holes::runs(copied, &piece[..size], least) {
                match run {
                    holes::Run::Data(data) => {
                        if stands_at != copied {
                            self.seek(handle, SeekFrom::Start(copied))?;
                        }
                        self.write_piece(handle, data)?;
                        copied += data.len() as u64;
                        (stands_at, end) = (copied, copied);
                    }
                    holes::Run::Zeros(zeros) => copied += zeros as u64,
                }
            }
            // One that grows as fast as it is read would have no end.
            if copied > most {
                return Err(upload.has_no_end(total.is_some()));
            }
        }
    }

    /// Feeds a program that writes to what may have to be waited for.
    fn upload_through(&mut self, upload: &mut Upload<'_>, on_progress: OnProgress<'_>) -> Result<u64, Error> {
        let arguments = ["-c", THROUGH, "qga", &upload.end].map(str::to_owned).to_vec();
        let program = Program { path: "/bin/sh".to_owned(), arguments, ..Program::default() };
        let piece_bytes = self.capacity().write_bytes;
        let mut feeder = Feeder { upload, on_progress, copied: 0, piece_bytes, said: Vec::new(), is_stopped: false };
        let options = RunOptions { interactive_input: true, ..RunOptions::default() };
        let ended = self.run_live(&program, &options, &mut feeder);
        let Feeder { copied, said, is_stopped, .. } = feeder;
        if is_stopped {
            return Err(local(&upload.act, stopped()));
        }
        let ended = ended?;
        if !ended.exit.success() {
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            let cause = if said.is_empty() { ended.exit.to_string() } else { said };
            return Err(Error::Guest { act: upload.act.clone(), cause });
        }
        Ok(copied)
    }

    /// Finds out how the copy is to be written, and tells how much of it is there and right. The source and `hash` are past
    /// that.
    fn prepare(
        &mut self,
        upload: &mut Upload<'_>,
        hash: &mut Sha256,
        on_progress: OnProgress<'_>,
    ) -> Result<u64, Error> {
        let Some((size, sum)) = self.run_prepare(upload, upload.options.resume, on_progress)? else { return Ok(0) };
        if size == 0 {
            return Ok(0);
        }
        let Upload { source, act, guest, .. } = upload;
        if source.sized.as_ref().is_some_and(|sized| size <= sized.len()) {
            let mut so_far = Sha256::new();
            let mut go_on = || on_progress(Progress { path: guest, copied_bytes: 0, total_bytes: size }).is_continue();
            sum_up_while(&mut (&source.file).take(size), &mut so_far, &mut go_on)
                .map_err(|source| local(act, source))?;
            if sum == hex(so_far.clone()) {
                *hash = so_far;
                return Ok(size);
            }
            source.file.seek(SeekFrom::Start(0)).map_err(|source| local(act, source))?;
        }
        // Not the same one emptied: the copy that it belongs to may be at work.
        self.run_prepare(upload, false, on_progress)?;
        Ok(0)
    }

    /// Size and sum of the partial file; `None` if there is none.
    fn run_prepare(
        &mut self,
        upload: &mut Upload<'_>,
        resume: bool,
        on_progress: OnProgress<'_>,
    ) -> Result<Option<(u64, String)>, Error> {
        let Upload { source, name, guest, act, options, .. } = upload;
        let at = guest.rfind(['/', '\\']).map_or(0, |at| at + 1);
        let (folder, file_name) = guest.split_at(at);
        if file_name.is_empty() {
            return Err(Error::Guest { act: act.clone(), cause: "the path has no file name".to_owned() });
        }
        let as_text = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
        let own = names::own_text(file_name);
        let is_shared = options.resume;
        let partial = if is_shared { as_text(names::shared(file_name.as_bytes(), name)) } else { own.clone() };
        let arguments = [*guest, &partial, &own, if resume { "resume" } else { "anew" }];
        let patience = self.patience().for_bytes(source.sized.as_ref().map_or(0, Metadata::len));
        let total_bytes = source.sized.as_ref().map_or(0, Metadata::len);
        // Only the checksum of a half file takes long. What is made without one would be left behind.
        let mut go_on = || !resume || on_progress(Progress { path: guest, copied_bytes: 0, total_bytes }).is_continue();
        let script = [INODE, PREPARE].concat();
        let Some(said) = self.run_script_while(patience, &script, &arguments, act, &mut go_on)? else {
            // The agent makes the file, with permissions of its own choice.
            if guest.contains(SPECIAL_TO_CMD) {
                let cause = "the guest has no shell but cmd, and that takes a character of the path for its own";
                return Err(Error::Guest { act: act.clone(), cause: cause.to_owned() });
            }
            upload.way = Way::Partial(PartialInGuest { path: format!("{folder}{own}"), inode: None, is_shared: false });
            return Ok(None);
        };
        let said = String::from_utf8(said).map_err(|_| Error::Guest {
            act: act.clone(),
            cause: "it leads to a name that is not UTF-8, and the protocol carries text only".to_owned(),
        })?;
        let mut lines = said.splitn(2, '\n');
        let (way, rest) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        if way != "partial" {
            rest.clone_into(&mut upload.end);
            upload.way = match way {
                "direct" => Way::Direct,
                "block" => Way::Block,
                "through" => Way::Through,
                _ => return Err(Error::Guest { act: act.clone(), cause: format!("its shell says {said:?}") }),
            };
            return Ok(None);
        }
        let mut lines = rest.splitn(4, '\n').map(str::trim_start);
        let mut next = || lines.next().unwrap_or_default();
        let (inode, size, sum) = (next().to_owned(), next().trim().parse().unwrap_or(0), next());
        let sum = sum.split_ascii_whitespace().next().unwrap_or_default().to_owned();
        // Not trimmed: a name may begin with blanks.
        rest.splitn(4, '\n').nth(3).unwrap_or_default().clone_into(&mut upload.end);
        let folder = upload.end.rfind('/').map_or("", |at| &upload.end[..=at]);
        let path = format!("{folder}{partial}");
        upload.way = Way::Partial(PartialInGuest { path, inode: Some(inode), is_shared });
        Ok(Some((size, sum)))
    }

    /// Sees to it that the partial file, which has just been opened by a name that other copies use as well, is ours.
    fn check_name(&mut self, upload: &Upload<'_>) -> Result<(), Error> {
        match &upload.way {
            Way::Partial(PartialInGuest { path, inode: Some(inode), is_shared: true }) => {
                self.run_script(&[INODE, CHECK].concat(), &[path, inode], &upload.act).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    fn complete(&mut self, upload: &Upload<'_>, partial: &PartialInGuest, bytes: u64) -> Result<(), Error> {
        let Upload { source, guest, end, options, act, .. } = upload;
        let Some(inode) = &partial.inode else {
            return self.run_tool("cmd", &["/c", "move", "/Y", &partial.path, guest], act).map(|_| ());
        };
        let mode = source.mode.filter(|_| options.keep_mode).map(|mode| format!("{:o}", mode & 0o777));
        let mode = mode.unwrap_or_default();
        let arguments = [partial.path.as_str(), end, &mode, inode, &bytes.to_string()];
        let patience = self.patience().for_bytes(bytes);
        match self.run_script_within(patience, &[INODE, COMPLETE].concat(), &arguments, act)? {
            Some(_) => Ok(()),
            None => Err(Error::Guest { act: act.clone(), cause: "its shell is gone".to_owned() }),
        }
    }
}

impl Upload<'_> {
    /// A file that was changed while it was copied is no whole one.
    fn check_source(&self, copied: u64) -> Result<(), Error> {
        let Some(before) = &self.source.sized else { return Ok(()) };
        let after = self.source.file.metadata().map_err(|source| local(&self.act, source))?;
        if is_same(before, &after) && copied == before.len() { Ok(()) } else { Err(self.has_no_end(true)) }
    }

    fn has_no_end(&self, is_sized: bool) -> Error {
        if is_sized {
            return Error::Changed { path: self.name.clone() };
        }
        let cause = format!("it says that it is empty, and has no end after {} GiB", self.source.most_bytes >> 30);
        local(&self.act, io::Error::other(cause))
    }
}

/// Gives a program of the guest what is read from a source.
struct Feeder<'a, 'b> {
    upload: &'a mut Upload<'b>,
    on_progress: OnProgress<'a>,
    copied: u64,
    piece_bytes: usize,
    /// What the program says of its failure.
    said: Vec<u8>,
    is_stopped: bool,
}

impl Feeder<'_, '_> {
    fn is_wanted(&mut self) -> bool {
        let total_bytes = self.upload.source.sized.as_ref().map_or(self.copied, Metadata::len);
        let progress = Progress { path: self.upload.guest, copied_bytes: self.copied, total_bytes };
        self.is_stopped |= (self.on_progress)(progress).is_break();
        !self.is_stopped
    }
}

impl Console for Feeder<'_, '_> {
    fn output(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        const MOST_SAID: usize = 4096;
        if stream == OutputStream::Stderr {
            let room = MOST_SAID.saturating_sub(self.said.len());
            self.said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        Ok(())
    }

    fn input(&mut self) -> io::Result<Input> {
        let mut piece = vec![0; self.piece_bytes];
        let size = if self.upload.source.may_wait() {
            let mut asked = 0;
            // Must not wait: the second look is for the caller.
            let mut go_on = || {
                asked += 1;
                asked < 1
            };
            match (Patient { file: &self.upload.source.file, go_on: &mut go_on }).read(&mut piece) {
                Err(error) if super::is_stop(&error) => return Ok(Input::NotYet),
                read => read?,
            }
        } else {
            read_full(&mut self.upload.source.file, &mut piece)?
        };
        self.copied += size as u64;
        piece.truncate(size);
        Ok(if size == 0 { Input::End } else { Input::Bytes(piece) })
    }

    fn wish(&mut self) -> Wish {
        if self.is_wanted() { Wish::GoOn } else { Wish::Terminate }
    }
}

/// Where the next data of a file stands, to which it is moved; its end if there is none.
fn behind_hole(file: &File, position: u64, size: u64) -> io::Result<u64> {
    use rustix::io::Errno;
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
        Ok(next) => Ok(next),
        Err(Errno::NXIO) => {
            let end = size.max(position);
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(end))?;
            Ok(end)
        }
        // A file system that does not tell; the file stands where it stood.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(position),
        Err(error) => Err(error.into()),
    }
}

/// Whether a file is the one that it was, and unchanged.
pub(super) fn is_same(before: &Metadata, after: &Metadata) -> bool {
    let identity = |file: &Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime_nsec());
    identity(before) == identity(after)
}
