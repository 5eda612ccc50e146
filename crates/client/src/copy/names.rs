//! The names under which copies are made.

use sha2::{Digest, Sha256};

use super::hex;
use crate::conversation::random_number;

/// The ending of a partial file's name.
pub(crate) const PARTIAL: &str = ".qga-partial";

/// Longest name of a file on nearly all file systems, in bytes.
const LONGEST_NAME: usize = 255;

/// A name that the next try to copy the same thing finds again. The sum in it is there so that no file of somebody's has
/// that name, be it called `.NAME.qga-partial`.
pub(super) fn shared(name: &[u8], source: &str) -> Vec<u8> {
    let source = source.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut sum = Sha256::new();
    sum.update(name);
    sum.update([0]);
    sum.update(source);
    with(name, &hex(sum)[..16])
}

/// A name that no other copy uses.
pub(super) fn own(name: &[u8]) -> Vec<u8> {
    with(name, &format!("{:016x}", random_number()))
}

/// As [`own`], for a name that is ours and text.
pub(super) fn own_text(name: &str) -> String {
    String::from_utf8_lossy(&own(name.as_bytes())).into_owned()
}

/// `.NAME.TAG.qga-partial`, of a long name as much as there is room for.
fn with(name: &[u8], tag: &str) -> Vec<u8> {
    let room = LONGEST_NAME - 2 - tag.len() - PARTIAL.len();
    let mut end = name.len().min(room);
    // Not within a character.
    while end < name.len() && end > 0 && name[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    [b".", &name[..end], b".", tag.as_bytes(), PARTIAL.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_have_partial_names_too() {
        for name in ["x".to_owned(), "x".repeat(255), "ä".repeat(127), "日".repeat(85)] {
            let partial = String::from_utf8(own(name.as_bytes())).unwrap();
            assert!(partial.len() <= 255 && partial.ends_with(PARTIAL), "{partial}");
            assert_ne!(own(name.as_bytes()), own(name.as_bytes()));
            assert_eq!(shared(name.as_bytes(), "/a/b"), shared(name.as_bytes(), "b"));
            assert_ne!(shared(name.as_bytes(), "/a/b"), shared(name.as_bytes(), "/a/c"));
        }
        let (one, other) = ("x".repeat(254), "x".repeat(255));
        assert_ne!(shared(one.as_bytes(), "b"), shared(other.as_bytes(), "b"));
    }
}
