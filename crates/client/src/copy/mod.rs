//! Copies of files and trees between host and guest.
//!
//! A file is written under a temporary name, `.NAME.SUM.qga-partial` beside the final one, and gets the final name when it
//! is whole, so nothing half-written ever has it. A copy that is broken off can be gone on with from the partial file.
//!
//! What stands at the destination stays what it is, as with cp: links are followed, devices and FIFOs are written to, a
//! file keeps its owner, its permissions and its extended attributes. Where the temporary file cannot have them, or the
//! file that is there has several names, the content is copied into the latter when it is whole.
//!
//! Two copies to one name must not take each other's partial file for their own. Its name is a random one unless it is to
//! be found again. One that is, is locked on the host; in the guest, where nothing can hold a lock from one call to the
//! next, it is copied, and the copy takes its name, so that each writes to a file of its own. It gets the final name only
//! if it is still the same file and has all bytes.

mod archive;
mod archive_down;
mod archive_scripts;
mod archive_up;
mod attributes;
mod below;
mod bundle;
mod bundles_down;
mod bundles_up;
mod data_map;
mod download;
mod holes;
mod names;
mod partial;
mod place;
mod scripts;
mod source;
mod tree;
mod tree_scripts;
mod upload;

use std::io;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use crate::agent::Agent;
use crate::error::Error;
use crate::transport::Transport;

pub(crate) use download::local;
pub use tree::TreeReport;

/// How a file is copied.
#[derive(Debug, Clone, Copy)]
pub struct CopyOptions {
    /// Go on from a partial file that an earlier try left, if its checksum is right; and leave one when this try is
    /// broken off.
    pub resume: bool,
    /// Compare checksums of both sides when the copy is done.
    pub verify: bool,
    /// Give a copy that is a new file the permissions of the original, less the umask; without, it gets those of any new
    /// file. A file that was there keeps its own.
    pub keep_mode: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self { resume: false, verify: false, keep_mode: true }
    }
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file in the guest that is copied now.
    pub path: &'a str,
    /// Bytes of it that are there, those of an earlier try included.
    pub copied_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
}

/// Hears of progress after each piece; [`ControlFlow::Break`] ends the copy with [`Error::Stopped`].
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>;

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Size of the file.
    pub bytes: u64,
    /// Bytes that an earlier try had copied.
    pub resumed_at: u64,
    /// The file's SHA-256 in hex, compared with the other side's, where that was asked for.
    pub sha256: Option<String>,
}

/// Marks a function's error as the wish of the caller to end, on its way through a transfer.
pub(crate) fn stopped() -> io::Error {
    io::Error::other(StoppedByCaller)
}

#[derive(Debug)]
struct StoppedByCaller;

impl std::fmt::Display for StoppedByCaller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for StoppedByCaller {}

fn is_stopped(error: &Error) -> bool {
    matches!(error, Error::Local { source, .. } if is_stop(source))
}

fn is_stop(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<StoppedByCaller>)
}

/// Says what became of the partial file.
fn explain(error: Error, act: &str, kept: Option<String>, is_resumable: bool) -> Error {
    match (is_stopped(&error), kept) {
        (true, kept) => Error::Stopped { act: act.to_owned(), kept },
        (false, Some(kept)) => Error::Interrupted { source: Box::new(error), kept, is_resumable },
        (false, None) => error,
    }
}

fn hex(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl<T: Transport> Agent<T> {
    /// The SHA-256 of a file's first bytes in the guest; `None` if the guest cannot tell. `progress` is what the caller
    /// hears meanwhile, who may end it.
    fn guest_sha256(
        &mut self,
        path: &str,
        bytes: u64,
        progress: Progress<'_>,
        on_progress: OnProgress<'_>,
    ) -> Result<Option<String>, Error> {
        let script = "head -c \"$2\" <\"$1\" | sha256sum";
        let act = format!("sum {path} up in the guest");
        let patience = self.patience().for_bytes(bytes);
        let mut go_on = || on_progress(progress).is_continue();
        let arguments = [path, &bytes.to_string()];
        let output = match self.run_script_while(patience, script, &arguments, &act, &mut go_on) {
            Ok(Some(output)) => output,
            Ok(None) | Err(Error::Guest { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&output);
        let sum = text.split_ascii_whitespace().next().unwrap_or_default();
        let is_sum = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(is_sum.then(|| sum.to_owned()))
    }
}
