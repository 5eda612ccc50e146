//! A file from the host to the guest.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::download::{local, sum_up};
use super::{Copied, CopyOptions, OnProgress, PARTIAL, Progress, explain, hex, stopped};
use crate::agent::Agent;
use crate::conversation::random_number;
use crate::error::Error;
use crate::file::read_full;
use crate::kind::Kind;
use crate::transport::Transport;

/// Tells which file it is that stands under a name.
const INODE: &str = r#"inode() { set -f; set -- $(ls -di -- "$1" 2>/dev/null); [ -n "$1" ] && echo "$1"; }
"#;

/// Makes the partial file $1, or tells the size and sum of the one that is there if $4 says so. What somebody else put
/// there is not used: a link could lead anywhere. $2 is the final name.
///
/// What is gone on with is copied first, under the name $3: another copy may be writing to the file that is there, and
/// goes on doing so without a name until it notices. Where there is no room for that nothing is changed.
const PREPARE: &str = r#"p=$1; o=$3
if [ -d "$2" ]; then echo "it is a directory" >&2; exit 1; fi
if [ -e "$2" ] && [ ! -f "$2" ]; then echo "it is a device, a socket or a FIFO" >&2; exit 1; fi
case $p in */*) [ -d "${p%/*}/" ] || { echo "${p%/*}: No such file or directory" >&2; exit 1; };; esac
umask 077; set -C
if [ "$4" = resume ] && [ -f "$p" ] && [ ! -L "$p" ] && [ -O "$p" ]; then
case $p in */*) d=${p%/*}/;; *) d=.;; esac
set -- $(df -Pk -- "$d" 2>/dev/null | tail -n 1); free=$4
[ -z "$free" ] || [ "$free" -gt "$(($(wc -c <"$p") / 1024))" ] && cp -- "$p" "$o" || { rm -f -- "$o"
echo "No space left on device for a copy of the half file, with which a resumed copy begins" >&2; exit 1; }
inode "$o" && wc -c <"$o" && sha256sum <"$o" && mv -f -- "$o" "$p" || { rm -f -- "$o"; exit 1; }
exit; fi
rm -f -- "$o" "$p" && : >"$o" && inode "$o" && echo 0 || exit
[ "$o" = "$p" ] || mv -f -- "$o" "$p""#;

/// Says whether the partial file $1 is still the file $2. If so, it was that as well when it was opened before: a file
/// that has lost the name never gets it back.
const CHECK: &str = r#"[ "$(inode "$1")" = "$2" ] || { echo "another copy to the same file is at work" >&2; exit 1; }"#;

/// What the scripts say when another copy has taken the name of the partial file.
const OVERTAKEN: &str = "another copy to the same file is at work";

/// Gives the partial file $1 the final name $2 and the permissions $3, those of a new file if there are none; but only
/// if it is the file $4 and has $5 bytes: another copy may have put its own half file there.
const COMPLETE: &str = r#"[ "$(inode "$1")" = "$4" ] && [ "$(wc -c <"$1")" -eq "$5" ] ||
{ echo "another copy to the same file is at work" >&2; exit 1; }
m=$3; [ -n "$m" ] || { m=$(umask); m=$(printf %o $((0666 & ~0$m))); }
chmod "$m" "$1" && mv -f -- "$1" "$2""#;

/// Removes the partial file $1 if it is the file $2.
const REMOVE: &str = r#"[ "$(inode "$1")" != "$2" ] || rm -f -- "$1""#;

/// What `cmd` takes for something else than a part of a path.
const SPECIAL_TO_CMD: [char; 11] = ['&', '|', '<', '>', '^', '%', '"', '(', ')', '\r', '\n'];

/// What is copied where.
struct Upload<'a> {
    file: File,
    before: Metadata,
    partial: String,
    /// The name under which it is made: no other copy uses it.
    own: String,
    /// Which file the partial one is, where the guest has a shell to tell it.
    inode: Option<String>,
    guest: &'a str,
    options: CopyOptions,
    /// The whole of it, for errors.
    act: String,
    /// Whether there is a partial file that is ours.
    has_begun: bool,
}

impl<T: Transport> Agent<T> {
    /// Copies a file of the host to a path in the guest; a file that is there is replaced when the copy is whole.
    pub fn upload(
        &mut self,
        host: &Path,
        guest: &str,
        options: CopyOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Copied, Error> {
        let act = format!("copy {} to {guest} in the guest", host.display());
        let (file, before) = open_source(host).map_err(|source| local(&act, source))?;
        let [shared, own] = partial_names(guest, &act)?;
        let partial = if options.resume { shared } else { own.clone() };
        let mut upload = Upload { file, before, partial, own, inode: None, guest, options, act, has_begun: false };
        let copied = self.upload_to_partial(&mut upload, on_progress);
        let Upload { ref before, ref partial, ref act, has_begun, .. } = upload;
        let copied = copied.and_then(|copied| {
            let after = host.metadata().map_err(|source| local(act, source))?;
            if !is_same(before, &after) || copied.bytes != before.len() {
                return Err(Error::Changed { path: host.display().to_string() });
            }
            self.complete(&upload, copied.bytes)?;
            Ok(copied)
        });
        copied.map_err(|error| {
            let is_lost = error.needs_sync();
            let is_wrong = matches!(error, Error::Changed { .. } | Error::Mismatch { .. });
            let is_full = error.kind() == Kind::GuestFull;
            let is_overtaken = matches!(&error, Error::Guest { cause, .. } if cause.contains(OVERTAKEN));
            let is_kept = has_begun && (is_lost || (options.resume && !is_wrong && !is_full && !is_overtaken));
            if has_begun && !is_kept {
                // An error of the removal would hide the first one.
                let _ = match &upload.inode {
                    Some(inode) => self.run_script(&[INODE, REMOVE].concat(), &[partial, inode], act).map(|_| ()),
                    None => self.remove_file(partial),
                };
            }
            explain(error, act, is_kept.then(|| format!("{partial} in the guest")), options.resume)
        })
    }

    fn upload_to_partial(&mut self, upload: &mut Upload<'_>, on_progress: OnProgress<'_>) -> Result<Copied, Error> {
        let mut hash = Sha256::new();
        let resumed_at = self.prepare(upload, &mut hash)?;
        upload.has_begun = true;
        let verify = upload.options.verify;
        // Not to append: what QEMU's agent still holds back for a handle that a killed client left behind would come at
        // the end of the finished file one day. Nor to empty it: by now it may be another copy's.
        let handle = self.open(&upload.partial, if upload.inode.is_some() { "r+" } else { "w" })?;
        let mut copied_bytes = resumed_at;
        let moved = self.check_name(upload).and_then(|()| match resumed_at {
            0 => Ok(0),
            position => self.seek(handle, SeekFrom::Start(position)),
        });
        let result = moved.and_then(|_| {
            self.write_all_of(handle, &upload.act, &mut |buffer| {
                let total_bytes = upload.before.len().max(copied_bytes);
                if on_progress(Progress { path: upload.guest, copied_bytes, total_bytes }).is_break() {
                    return Err(stopped());
                }
                let size = read_full(&mut upload.file, buffer)?;
                if verify {
                    hash.update(&buffer[..size]);
                }
                copied_bytes += size as u64;
                Ok(size)
            })
        });
        self.close_after(handle, result)?;
        let sha256 = verify.then(|| hex(hash));
        if let Some(here) = &sha256 {
            match self.guest_sha256(&upload.partial, copied_bytes)? {
                Some(there) if there == *here => {}
                Some(there) => {
                    let detail = format!("its SHA-256 is {there}, on the host {here}");
                    return Err(Error::Mismatch { path: upload.guest.to_owned(), detail });
                }
                None => {
                    let cause = "the guest has no sha256sum".to_owned();
                    return Err(Error::Guest { act: format!("compare {} with the host's file", upload.guest), cause });
                }
            }
        }
        Ok(Copied { bytes: copied_bytes, resumed_at, sha256 })
    }

    /// Sees to it that there is a partial file, and tells how much of it is right. The file and `hash` are past that.
    fn prepare(&mut self, upload: &mut Upload<'_>, hash: &mut Sha256) -> Result<u64, Error> {
        let Some((size, sum)) = self.run_prepare(upload, upload.options.resume)? else { return Ok(0) };
        if size == 0 {
            return Ok(0);
        }
        let Upload { file, before, act, .. } = upload;
        if size <= before.len() {
            let mut so_far = Sha256::new();
            sum_up(&mut file.take(size), &mut so_far).map_err(|source| local(act, source))?;
            if sum == hex(so_far.clone()) {
                *hash = so_far;
                return Ok(size);
            }
            file.seek(SeekFrom::Start(0)).map_err(|source| local(act, source))?;
        }
        // Not the same one emptied: the copy that it belongs to may be at work.
        self.run_prepare(upload, false)?;
        Ok(0)
    }

    /// Size and sum of the partial file; `None` if the guest has no shell.
    fn run_prepare(&mut self, upload: &mut Upload<'_>, resume: bool) -> Result<Option<(u64, String)>, Error> {
        let Upload { before, partial, own, guest, act, .. } = upload;
        let arguments = [partial.as_str(), guest, own, if resume { "resume" } else { "anew" }];
        let patience = self.patience().for_bytes(before.len());
        let Some(said) = self.run_script_within(patience, &[INODE, PREPARE].concat(), &arguments, act)? else {
            // The agent makes the file, with permissions of its own choice.
            if guest.contains(SPECIAL_TO_CMD) {
                let cause = "the guest has no shell but cmd, and that takes a character of the path for its own";
                return Err(Error::Guest { act: act.clone(), cause: cause.to_owned() });
            }
            return Ok(None);
        };
        let said = String::from_utf8_lossy(&said);
        let mut words = said.split_ascii_whitespace();
        upload.inode = words.next().map(str::to_owned);
        let size = words.next().and_then(|size| size.parse().ok()).unwrap_or(0);
        Ok(Some((size, words.next().unwrap_or_default().to_owned())))
    }

    /// Sees to it that the partial file, which has just been opened by a name that other copies use as well, is ours.
    fn check_name(&mut self, upload: &Upload<'_>) -> Result<(), Error> {
        match &upload.inode {
            Some(inode) if upload.partial != upload.own => {
                self.run_script(&[INODE, CHECK].concat(), &[&upload.partial, inode], &upload.act).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    fn complete(&mut self, upload: &Upload<'_>, bytes: u64) -> Result<(), Error> {
        let Upload { before, partial, inode, guest, options, act, .. } = upload;
        let Some(inode) = inode else {
            return self.run_tool("cmd", &["/c", "move", "/Y", partial, guest], act).map(|_| ());
        };
        let mode = if options.keep_mode { format!("{:o}", before.mode() & 0o777) } else { String::new() };
        let arguments = [partial.as_str(), guest, &mode, inode, &bytes.to_string()];
        let patience = self.patience().for_bytes(bytes);
        match self.run_script_within(patience, &[INODE, COMPLETE].concat(), &arguments, act)? {
            Some(_) => Ok(()),
            None => Err(Error::Guest { act: act.clone(), cause: "its shell is gone".to_owned() }),
        }
    }
}

fn open_source(host: &Path) -> io::Result<(File, Metadata)> {
    let file = File::open(host)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "it is a directory" } else { "it is no regular file" };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok((file, metadata))
}

fn is_same(before: &Metadata, after: &Metadata) -> bool {
    let identity = |file: &Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime_nsec());
    identity(before) == identity(after)
}

/// A name that the next try finds again, and one that no other copy uses.
fn partial_names(guest: &str, act: &str) -> Result<[String; 2], Error> {
    let (folder, name) = match guest.rfind(['/', '\\']) {
        Some(at) => guest.split_at(at + 1),
        None => ("", guest),
    };
    if name.is_empty() {
        return Err(Error::Guest { act: act.to_owned(), cause: "the path has no file name".to_owned() });
    }
    let own = format!("{folder}.{name}.{:016x}{PARTIAL}", random_number());
    Ok([format!("{folder}.{name}{PARTIAL}"), own])
}
