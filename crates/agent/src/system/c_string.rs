//! Texts of the wire for the system, whose texts end at the first NUL.

use std::ffi::CString;

/// A NUL character in a text: two bytes that no text has otherwise.
const NUL: [u8; 2] = [0xC0, 0x80];

/// The text with every NUL character as the two bytes C0 80, as the original has it: so it never ends a name early.
pub fn c_text(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap_or_else(|error| {
        let bytes = error.into_vec().into_iter();
        let bytes: Vec<u8> = bytes.flat_map(|byte| if byte == 0 { NUL.to_vec() } else { vec![byte] }).collect();
        CString::new(bytes).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::c_text;

    #[test]
    fn a_zero_character_does_not_end_the_text() {
        assert_eq!(c_text("a\0b").as_bytes(), b"a\xc0\x80b");
        assert_eq!(c_text("").as_bytes(), b"");
    }
}
