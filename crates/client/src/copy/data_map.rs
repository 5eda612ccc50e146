//! Where a file of the guest has data: what is no data need not travel.
//!
//! The protocol cannot ask for it. GNU tar writes it in front of a file's content, and is ended before the content comes.

use tar::{GnuExtSparseHeader, Header};

use super::{OnProgress, Progress};
use crate::agent::Agent;
use crate::error::Error;
use crate::guest_files::GuestFile;
use crate::transport::Transport;

/// Parts of a file with data, in order: where each begins and how long it is.
pub(super) type DataMap = Vec<(u64, u64)>;

/// Tells the head of an archive of the file $1, if tar is one that knows of holes.
const HEAD: &str = r#"case $(tar --version 2>/dev/null) in *GNU*) ;; *) exit 0;; esac
f=$1; case $f in /*) ;; *) f=./$f;; esac
tar -c -S -P --format=gnu -f - -- "$f" 2>/dev/null | head -c 2097152"#;

const BLOCK: usize = 512;

/// Whether so little of a file is on its disk that its holes are worth a question.
pub(super) fn has_holes(size: u64, allocated_bytes: u64) -> bool {
    size > 64 << 10 && allocated_bytes < size / 2
}

impl<T: Transport> Agent<T> {
    /// Where a file has data; `None` if that is not known, as for one without holes.
    pub(super) fn data_map(
        &mut self,
        path: &str,
        file: &GuestFile,
        act: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<Option<DataMap>, Error> {
        if !has_holes(file.size, file.allocated_bytes) {
            return Ok(None);
        }
        // That it cannot be told is no reason not to copy.
        let progress = Progress { path, copied_bytes: 0, total_bytes: file.size };
        let mut go_on = || on_progress(progress).is_continue();
        match self.run_script_while(self.patience().tree, HEAD, &[path], act, &mut go_on) {
            Ok(head) => Ok(head.and_then(|head| parse(&head, file.size))),
            Err(Error::Guest { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The map in front of an archive's first file, if it is whole and makes sense for a file of this size.
fn parse(archive: &[u8], size: u64) -> Option<DataMap> {
    let mut blocks = archive.chunks_exact(BLOCK);
    let header = loop {
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(blocks.next()?);
        // The content of a long name stands between.
        if !header.entry_type().is_gnu_longname() {
            break header;
        }
        for _ in 0..header.entry_size().ok()?.min(archive.len() as u64).div_ceil(BLOCK as u64) {
            blocks.next()?;
        }
    };
    let sparse = header.as_gnu().filter(|_| header.entry_type().is_gnu_sparse())?;
    let mut parts = Vec::new();
    for part in sparse.sparse.iter().filter(|part| !part.is_empty()) {
        parts.push((part.offset().ok()?, part.length().ok()?));
    }
    let mut is_continued = sparse.is_extended();
    while is_continued {
        let mut more = GnuExtSparseHeader::new();
        more.as_mut_bytes().copy_from_slice(blocks.next()?);
        for part in more.sparse().iter().filter(|part| !part.is_empty()) {
            parts.push((part.offset().ok()?, part.length().ok()?));
        }
        is_continued = more.is_extended();
    }
    let mut end = 0;
    for &(from, bytes) in &parts {
        if from < end {
            return None;
        }
        end = from.checked_add(bytes)?;
    }
    let is_whole = sparse.real_size().is_ok_and(|real| real == size) && end <= size;
    is_whole.then(|| parts.into_iter().filter(|&(_, bytes)| bytes > 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(parts: &[(u64, u64)], size: u64) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNUSparse);
        let octal = |number: u64| -> [u8; 12] { format!("{number:011o}\0").into_bytes().try_into().unwrap() };
        let gnu = header.as_gnu_mut().unwrap();
        gnu.realsize = octal(size);
        for (place, &(from, bytes)) in parts.iter().take(4).enumerate() {
            (gnu.sparse[place].offset, gnu.sparse[place].numbytes) = (octal(from), octal(bytes));
        }
        gnu.isextended = [u8::from(parts.len() > 4)];
        let mut archive = header.as_bytes().to_vec();
        for (index, some) in parts.get(4..).unwrap_or_default().chunks(21).enumerate() {
            let mut more = GnuExtSparseHeader::new();
            for (place, &(from, bytes)) in some.iter().enumerate() {
                (more.sparse[place].offset, more.sparse[place].numbytes) = (octal(from), octal(bytes));
            }
            more.isextended = [u8::from(parts.len() > 4 + 21 * (index + 1))];
            archive.extend_from_slice(more.as_bytes());
        }
        archive
    }

    #[test]
    fn a_map_is_taken_whole_or_not_at_all() {
        let many: Vec<(u64, u64)> = (0..60).map(|place| (place * 8192, 4096)).collect();
        for parts in [&[][..], &[(0, 5)], &many] {
            let whole = archive(parts, 1 << 20);
            assert_eq!(parse(&whole, 1 << 20).as_deref(), Some(parts));
            assert_eq!(parse(&whole, (1 << 20) - 1), None, "it is another file's");
            assert_eq!(parse(&whole[..whole.len() - 1], 1 << 20), None);
        }
        for mad in [&[(0, 1 << 21)][..], &[(4096, 4096), (0, 4096)], &[(0, 4096), (4095, 1)]] {
            assert_eq!(parse(&archive(mad, 1 << 20), 1 << 20), None, "{mad:?}");
        }
    }
}
