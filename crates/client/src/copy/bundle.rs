//! Many small files as one: the archives in which trees travel.
//!
//! They are made and read in memory, so a lying size in one costs nothing.

use std::io::{self, Read};

use tar::{Archive, EntryType, Header};

/// Files up to this size travel in archives; larger ones alone, which can be gone on with.
pub(super) const SMALL_BYTES: u64 = 1 << 20;

/// An archive is sent when it has reached this size.
pub(super) const FULL_BYTES: usize = 8 << 20;

/// What an archive takes for each file beside its content, its name and the place where a link leads excepted.
pub(super) const OVERHEAD_BYTES: u64 = 3 * 512;

const BLOCK: usize = 512;
const NAME_BYTES: usize = 100;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    bytes: Vec<u8>,
    pub(super) entries: usize,
}

impl Bundle {
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES
    }

    pub(super) fn directory(&mut self, name: &[u8], mode: u32) {
        self.put(EntryType::Directory, name, b"", mode, b"");
    }

    pub(super) fn link(&mut self, name: &[u8], target: &[u8]) {
        self.put(EntryType::Symlink, name, target, 0o777, b"");
    }

    pub(super) fn file(&mut self, name: &[u8], mode: u32, content: &[u8]) {
        self.put(EntryType::Regular, name, b"", mode, content);
    }

    fn put(&mut self, kind: EntryType, name: &[u8], target: &[u8], mode: u32, content: &[u8]) {
        let name = [b"./", name].concat();
        for (long, text) in [(EntryType::GNULongName, name.as_slice()), (EntryType::GNULongLink, target)] {
            if text.len() > NAME_BYTES {
                self.put_entry(long, b"././@LongLink", b"", 0o644, &[text, b"\0"].concat());
            }
        }
        self.put_entry(kind, &name, target, mode, content);
        self.entries += 1;
    }

    fn put_entry(&mut self, kind: EntryType, name: &[u8], target: &[u8], mode: u32, content: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        if let Some(fields) = header.as_gnu_mut() {
            let cut = |text: &[u8], field: &mut [u8]| {
                let size = text.len().min(NAME_BYTES);
                field[..size].copy_from_slice(&text[..size]);
            };
            cut(name, &mut fields.name);
            cut(target, &mut fields.linkname);
        }
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// What an archive holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packed {
    File(Vec<u8>),
    Link(Vec<u8>),
    Other,
}

/// Takes a name and what is packed under it.
pub(super) type TakePacked<'a> = &'a mut dyn FnMut(&[u8], Packed) -> Result<(), crate::Error>;

/// Hands on what an archive holds, by the names as they are written there, without a `./` in front.
pub(super) fn unpack(archive: &[u8], take: TakePacked<'_>) -> Result<io::Result<()>, crate::Error> {
    let mut archive = Archive::new(archive);
    let entries = match archive.entries() {
        Ok(entries) => entries,
        Err(error) => return Ok(Err(error)),
    };
    for entry in entries {
        let read = entry.and_then(|mut entry| {
            let name = entry.path_bytes().into_owned();
            let packed = match entry.header().entry_type() {
                EntryType::Regular => {
                    let size = entry.size();
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    if content.len() as u64 != size {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    Packed::File(content)
                }
                EntryType::Symlink => Packed::Link(entry.link_name_bytes().unwrap_or_default().into_owned()),
                _ => Packed::Other,
            };
            Ok((name, packed))
        });
        match read {
            Ok((name, packed)) => take(name.strip_prefix(b"./").unwrap_or(&name), packed)?,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(archive: &[u8]) -> (Vec<(Vec<u8>, Packed)>, bool) {
        let mut all = Vec::new();
        let is_whole = unpack(archive, &mut |name, packed| {
            all.push((name.to_vec(), packed));
            Ok(())
        });
        (all, is_whole.unwrap().is_ok())
    }

    #[test]
    fn what_was_packed_is_unpacked_whatever_its_name() {
        let long = [b"a/".as_slice(), &[0xFF; 250]].concat();
        let mut bundle = Bundle::default();
        bundle.directory(b"a", 0o755);
        bundle.file(&long, 0o644, &[7; 513]);
        bundle.link(b"a\\nb", &long);
        bundle.link(b"l", b"./x//../y");
        let (all, is_whole) = unpacked(&bundle.finish());
        assert!(is_whole);
        assert_eq!(all[0].1, Packed::Other);
        assert_eq!(all[1], (long.clone(), Packed::File(vec![7; 513])));
        assert_eq!(all[2], (b"a\\nb".to_vec(), Packed::Link(long)));
        assert_eq!(all[3], (b"l".to_vec(), Packed::Link(b"./x//../y".to_vec())));
    }

    #[test]
    fn an_archive_that_lies_about_its_sizes_costs_nothing() {
        for (kind, size) in [
            (EntryType::Regular, 1 << 40),
            (EntryType::GNULongName, 1 << 40),
            (EntryType::XHeader, 1 << 40),
            (EntryType::GNUSparse, 1 << 40),
            (EntryType::Regular, u64::MAX),
        ] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            let archive = [header.as_bytes().as_slice(), &[0; 2048]].concat();
            let (all, _) = unpacked(&archive);
            assert!(all.iter().all(|(_, packed)| *packed == Packed::Other), "{kind:?}");
        }
        let mut bundle = Bundle::default();
        bundle.file(b"x", 0o644, &[1; 2000]);
        let whole = bundle.finish();
        for end in 0..whole.len() {
            unpacked(&whole[..end]);
        }
    }
}
