//! A copy from the guest that keeps everything.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ChildStdin;

use super::archive::{HostTar, SMALL_TAR, Said, Side, Stage, check_host_tar, count, feed, remove_devices};
use super::archive_scripts::{BEGIN_DOWN, PACK};
use super::download::local;
use super::tree_scripts::END;
use super::{OnProgress, Progress, TreeReport, explain, names, stopped};
use crate::agent::Agent;
use crate::error::Error;
use crate::kind::Kind;
use crate::program::Program;
use crate::transport::Transport;

/// What an archive may have beyond what was announced: names, headers, what was written meanwhile. And once more as much.
const SLACK_BYTES: u64 = 64 << 20;

/// How the guest packs.
struct Packing<'a> {
    guest: &'a str,
    /// Where the pieces are.
    directory: &'a str,
    is_gnu: bool,
    /// Whether it is a directory.
    is_tree: bool,
    announced_bytes: u64,
    act: &'a str,
}

impl<T: Transport> Agent<T> {
    /// Copies a file or a directory of the guest to a path of the host, and keeps its owner (for root), its permissions, its
    /// times, its links, further names, extended attributes and holes, as `cp -a` does. Devices are left out: a guest
    /// must not make one on its host. Otherwise as [`upload_archive`](Self::upload_archive).
    pub fn download_archive(
        &mut self,
        guest: &str,
        host: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let act = format!("copy {guest} from the guest to {}", host.display());
        check_host_tar(&act)?;
        let stage = Stage::beside(host).map_err(|source| local(&act, source))?;
        let name = names::own_text("tree");
        let no_shell = || Error::Guest { act: act.clone(), cause: "the guest has no shell".to_owned() };
        let said = self.run_script(BEGIN_DOWN, &[guest, &name], &act)?.ok_or_else(no_shell)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let (kinds, directory) = said.split_once('\n').ok_or_else(no_shell)?;
        let mut words = kinds.split(' ');
        let (tar, kind, kib) = (words.next(), words.next(), words.next().and_then(|kib| kib.parse::<u64>().ok()));
        let packing = Packing {
            guest,
            directory,
            is_gnu: tar == Some("gnu"),
            is_tree: kind == Some("tree"),
            announced_bytes: kib.unwrap_or(0).saturating_mul(1024),
            act: &act,
        };
        let copied = self.download_packed(&packing, &stage, host, on_progress);
        match copied {
            Err(error) if error.needs_sync() => Err(error),
            copied => {
                let ended = self.run_script(END, &[directory], &act);
                let report = copied.map_err(|error| explain(error, &act, None, false))?;
                ended?;
                Ok(report)
            }
        }
    }

    fn download_packed(
        &mut self,
        packing: &Packing<'_>,
        stage: &Stage,
        host: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<TreeReport, Error> {
        let Packing { guest, act, .. } = *packing;
        let fail = |source| local(act, source);
        let mut report = TreeReport::default();
        if !packing.is_gnu {
            report.skipped.push((guest.into(), SMALL_TAR.to_owned()));
        }
        let (tar, mut input) = HostTar::unpack(&stage.unpacked()).map_err(fail)?;
        let trimmed = guest.trim_end_matches('/');
        let (parent, name) = match trimmed.rsplit_once('/') {
            Some((parent, name)) => (if parent.is_empty() { "/" } else { parent }, name),
            None => (".", trimmed),
        };
        let packed = format!("./{name}");
        let (from, what) = if packing.is_tree { (guest, ".") } else { (parent, packed.as_str()) };
        let rounds = (self.patience().silent_host.as_millis() / 50).clamp(1, 1 << 31).to_string();
        let kind = if packing.is_gnu { "gnu" } else { "other" };
        let arguments = ["-c", PACK, "qga", packing.directory, from, what, kind, &rounds].map(str::to_owned).to_vec();
        let program = Program { path: "/bin/sh".to_owned(), arguments, capture: true, ..Program::default() };
        let pid = self.start_program(&program)?;
        let taken = self.take_pieces(packing, pid, &mut input, on_progress);
        if let Err(error) = &taken
            && !error.needs_sync()
        {
            // Without its directory it ends by itself.
            let _ = self.signal_program(pid, "TERM");
        }
        drop(input);
        let in_guest = taken?;
        let unpacked = tar.finish().map_err(fail)?;
        in_guest.judge(act, Path::new(guest), &mut report)?;
        unpacked.judge(act, host, &mut report)?;
        let unpacked = if packing.is_tree { stage.unpacked() } else { stage.unpacked().join(name) };
        if fs::symlink_metadata(&unpacked).is_err() {
            return Err(Error::Guest { act: act.to_owned(), cause: "the archive came without it".to_owned() });
        }
        for path in remove_devices(&unpacked).map_err(fail)? {
            let path = Path::new(guest).join(path);
            report.skipped.push((path, "it is a device, which a guest must not make on its host".to_owned()));
        }
        if fs::symlink_metadata(&unpacked).is_err() {
            return Ok(report);
        }
        count(&unpacked, &mut report).map_err(fail)?;
        let put = stage.put(&unpacked, host).map_err(fail)?;
        put.judge(act, host, &mut report)?;
        Ok(report)
    }

    /// Hands the pieces of an archive on as they come, and returns what the tar in the guest complained of.
    fn take_pieces(
        &mut self,
        packing: &Packing<'_>,
        pid: i64,
        input: &mut ChildStdin,
        on_progress: OnProgress<'_>,
    ) -> Result<Said, Error> {
        let Packing { guest, act, announced_bytes, .. } = *packing;
        let piece = format!("{}/p", packing.directory);
        let most_bytes = announced_bytes.saturating_mul(2).saturating_add(SLACK_BYTES);
        let mut taken_bytes = 0;
        let mut ended = None;
        let mut is_read = true;
        let mut pauses = self.patience().pauses();
        loop {
            let copied_bytes = taken_bytes.min(announced_bytes);
            let progress = Progress { path: guest, copied_bytes, total_bytes: announced_bytes };
            if on_progress(progress).is_break() {
                return Err(local(act, stopped()));
            }
            match self.open(&piece, "r") {
                Ok(handle) => {
                    let read = self.take_piece(handle, input, &mut is_read, act);
                    let bytes = self.close_after(handle, read)?;
                    taken_bytes += bytes;
                    if taken_bytes > most_bytes {
                        let cause = format!("it announced {announced_bytes} bytes and sends far more");
                        return Err(Error::Guest { act: act.to_owned(), cause });
                    }
                    if bytes > 0 {
                        // Empty, it is the word for the next one.
                        let handle = self.open(&piece, "w")?;
                        self.close(handle)?;
                        pauses.restart();
                        continue;
                    }
                }
                Err(error) if error.kind() == Kind::NoSuchFile => {}
                Err(error) => return Err(error),
            }
            // Only after a look that came behind its end there is no piece more.
            if let Some(said) = ended {
                return Ok(said);
            }
            if let Some(output) = self.program_output(pid)? {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let (complaints, exit) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
                let text = complaints.as_bytes().to_vec();
                ended = Some(Said {
                    is_success: exit == "0",
                    exit: format!("tar: exit code {exit}"),
                    text,
                    side: Side::Guest,
                });
                continue;
            }
            pauses.wait();
        }
    }

    fn take_piece(&mut self, handle: i64, input: &mut ChildStdin, is_read: &mut bool, act: &str) -> Result<u64, Error> {
        let mut taken = 0;
        loop {
            let bytes = self.read_piece(handle, self.capacity().read_bytes)?.buf_b64.0;
            if bytes.is_empty() {
                return Ok(taken);
            }
            taken += bytes.len() as u64;
            // A tar that has ended early says why when it is asked.
            *is_read = *is_read && feed(input, &bytes).map_err(|source: io::Error| local(act, source))?;
        }
    }
}
