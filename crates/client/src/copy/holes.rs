//! Holes: what a file holds that is zero from end to end takes no room in its copy.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// File systems make holes of whole blocks.
const BLOCK: u64 = 4096;

/// A part of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Run<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// So many zeros.
    Zeros(usize),
}

/// Splits bytes that stand at a position of a file into data and zeros. Of zeros, only whole blocks count, and only
/// `least` bytes of them and more.
pub(super) fn runs(position: u64, bytes: &[u8], least: usize) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let (mut data_from, mut zeros_from, mut at) = (0, 0, 0);
    while at < bytes.len() {
        let block_end = (BLOCK - (position + at as u64) % BLOCK) as usize;
        let end = bytes.len().min(at + block_end);
        let is_whole = end - at == BLOCK as usize;
        if !is_whole || !is_zero(&bytes[at..end]) {
            if at - zeros_from >= least {
                if zeros_from > data_from {
                    runs.push(Run::Data(&bytes[data_from..zeros_from]));
                }
                runs.push(Run::Zeros(at - zeros_from));
                data_from = at;
            }
            zeros_from = end;
        }
        at = end;
    }
    if at - zeros_from < least.max(1) {
        zeros_from = at;
    }
    if zeros_from > data_from {
        runs.push(Run::Data(&bytes[data_from..zeros_from]));
    }
    if at > zeros_from {
        runs.push(Run::Zeros(at - zeros_from));
    }
    runs
}

fn is_zero(bytes: &[u8]) -> bool {
    // In pieces, so that most blocks are known at their first bytes, and the others are looked at many bytes at once.
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

/// A file of the host that is written from a position on, and keeps holes where zeros come.
#[derive(Debug)]
pub(super) struct Sparse<'a> {
    file: &'a File,
    position: u64,
}

impl<'a> Sparse<'a> {
    /// The file must end at the position.
    pub(super) fn new(file: &'a File, position: u64) -> Self {
        Self { file, position }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for run in runs(self.position, bytes, BLOCK as usize) {
            match run {
                Run::Data(data) => {
                    self.file.write_all_at(data, self.position)?;
                    self.position += data.len() as u64;
                }
                Run::Zeros(zeros) => self.position += zeros as u64,
            }
        }
        Ok(())
    }

    /// Leaves so many zeros out.
    pub(super) fn pass_over(&mut self, zeros: usize) {
        self.position += zeros as u64;
    }

    /// Gives the file its size, which a hole at the end has not.
    pub(super) fn finish(self) -> io::Result<u64> {
        self.file.set_len(self.position)?;
        Ok(self.position)
    }
}

/// Copies a file of the host to an empty one.
pub(super) fn copy(from: &File, to: &File) -> io::Result<u64> {
    let mut piece = vec![0; 256 << 10];
    let mut sparse = Sparse::new(to, 0);
    loop {
        match from.read_at(&mut piece, sparse.position) {
            Ok(0) => return sparse.finish(),
            Ok(size) => sparse.write(&piece[..size])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn runs_join_to_what_was_split() {
        let mut bytes = vec![0; 5 * 4096];
        bytes[4096] = 1;
        bytes[2 * 4096 - 1] = 1;
        assert_eq!(runs(0, &bytes, 1), [Run::Zeros(4096), Run::Data(&bytes[4096..8192]), Run::Zeros(3 * 4096)]);
        // A block is one of the file, not of the piece.
        let (data, rest) = (&bytes[..=2 * 4096], &bytes[4 * 4096 + 1..]);
        assert_eq!(runs(4095, &bytes, 1), [Run::Data(data), Run::Zeros(2 * 4096), Run::Data(rest)]);
        assert_eq!(runs(0, &bytes, 2 * 4096), [Run::Data(&bytes[..8192]), Run::Zeros(3 * 4096)]);
        assert_eq!(runs(7, b"", 1), []);
        for (position, least) in [(0, 1), (1, 1), (5000, 4096), (0, 1 << 20)] {
            let sizes = runs(position, &bytes, least).into_iter().map(|run| match run {
                Run::Data(data) => data.len(),
                Run::Zeros(zeros) => zeros,
            });
            assert_eq!(sizes.sum::<usize>(), bytes.len(), "{position} {least}");
        }
    }

    #[test]
    fn a_copy_has_the_holes_and_the_size() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let open = |name: &str| options.open(directory.path().join(name)).unwrap();
        let (from, to) = (open("from"), open("to"));
        from.write_all_at(b"start", 0).unwrap();
        from.write_all_at(b"middle", 3 << 20).unwrap();
        from.set_len(8 << 20).unwrap();
        assert_eq!(copy(&from, &to).unwrap(), 8 << 20);
        let mut content = vec![0; 6];
        to.read_exact_at(&mut content, 3 << 20).unwrap();
        assert_eq!(content, b"middle");
        let there = to.metadata().unwrap();
        assert!(there.len() == 8 << 20 && there.blocks() * 512 < 1 << 20, "{} blocks", there.blocks());
    }
}
