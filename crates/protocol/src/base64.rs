//! Bytes as text: base64 of RFC 4648 with padding.
//!
//! Input may contain newlines anywhere (Proxmox sends them). Unlike the original's, a group that is cut short is an
//! error: dropping it silently would store other data than was sent.

use std::borrow::Cow;

use base64_simd::{Out, STANDARD};
use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::command::{Type, Wire};

/// Owned bytes that are base64 on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Wire for Base64 {
    const TYPE: Type = Type::Base64;
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode_to_string(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Base64Text::deserialize(deserializer)?.decode().map(Self).map_err(D::Error::custom)
    }
}

/// What is wrong with a text that should be base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base64Error {
    /// Something else than the alphabet, `=` and newlines.
    Characters,
    /// The last group has fewer than four characters, or padding that does not fit.
    Tail,
}

impl std::fmt::Display for Base64Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Characters => "Base64 data contains invalid characters",
            Self::Tail => "Base64 data is incomplete: its last group is cut short or not padded with '='",
        })
    }
}

impl std::error::Error for Base64Error {}

/// Base64 text inside a message, not decoded yet: a slice of the message, however large.
#[derive(Clone, PartialEq, Eq)]
pub struct Base64Text<'a>(Cow<'a, str>);

/// The length alone: the text may be a password.
impl std::fmt::Debug for Base64Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Base64Text({} characters)", self.0.len())
    }
}

impl Wire for Base64Text<'_> {
    const TYPE: Type = Type::Base64;
}

impl Serialize for Base64Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Base64Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Base64Text<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Base64Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Base64Text(Cow::Owned(text.to_owned())))
            }
            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(Base64Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Characters decoded in one go: 48 KiB of data.
const PIECE_CHARACTERS: usize = 64 << 10;

impl<'a> Base64Text<'a> {
    /// Encodes `bytes`.
    #[must_use]
    pub fn encode(bytes: &[u8]) -> Base64Text<'static> {
        Base64Text(Cow::Owned(STANDARD.encode_to_string(bytes)))
    }

    /// Takes text as it is; [`Self::check`] tells whether it is base64.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        Self(text.into())
    }

    /// The number of bytes that the text stands for.
    ///
    /// # Errors
    /// If it is no base64.
    pub fn check(&self) -> Result<usize, Base64Error> {
        let mut length = 0;
        self.for_each_piece(|piece| {
            length += piece.len();
            Ok::<_, Base64Error>(())
        })?;
        Ok(length)
    }

    /// The most bytes that the text can stand for.
    #[must_use]
    pub fn decoded_bytes_max(&self) -> usize {
        self.0.len().div_ceil(4) * 3
    }

    /// All of it, decoded.
    ///
    /// # Errors
    /// If it is no base64.
    pub fn decode(&self) -> Result<Vec<u8>, Base64Error> {
        let mut bytes = Vec::with_capacity(self.0.len() / 4 * 3);
        self.for_each_piece(|piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, Base64Error>(())
        })?;
        Ok(bytes)
    }

    /// Decodes piece by piece, so that no second copy of large data comes into being.
    ///
    /// # Errors
    /// What `take` returns, or that the text is no base64; [`Self::check`] first if nothing may be taken then.
    pub fn for_each_piece<E: From<Base64Error>>(&self, mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut piece = Vec::new();
        let mut ended = false;
        let mut decode = |characters: &[u8]| -> Result<(), E> {
            if ended {
                return Err(Base64Error::Tail.into());
            }
            ended = characters.ends_with(b"=");
            piece.clear();
            piece.resize(characters.len() / 4 * 3, 0);
            match STANDARD.decode(characters, Out::from_slice(&mut piece)) {
                Ok(decoded) => take(decoded),
                // Perhaps only the bits that a padded group leaves over are not zero: they mean nothing.
                Err(_) => match without_spare_bits(characters).and_then(|text| STANDARD.decode_to_vec(text).ok()) {
                    Some(decoded) => take(&decoded),
                    None => Err(why(characters).into()),
                },
            }
        };
        let bytes = self.0.as_bytes();
        if memchr::memchr(b'\n', bytes).is_none() {
            return bytes.chunks(PIECE_CHARACTERS).try_for_each(&mut decode);
        }
        let mut joined = Vec::with_capacity(PIECE_CHARACTERS.min(bytes.len()));
        for line in bytes.split(|&byte| byte == b'\n') {
            let mut line = line;
            while !line.is_empty() {
                let (now, later) = line.split_at(line.len().min(PIECE_CHARACTERS - joined.len()));
                joined.extend_from_slice(now);
                line = later;
                if joined.len() == PIECE_CHARACTERS {
                    decode(&joined)?;
                    joined.clear();
                }
            }
        }
        if joined.is_empty() { Ok(()) } else { decode(&joined) }
    }
}

/// The text with the bits that its last, padded group leaves over set to zero.
fn without_spare_bits(characters: &[u8]) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let padding = characters.iter().rev().take_while(|&&byte| byte == b'=').count();
    let mask = match padding {
        1 => 0b11_1100,
        2 => 0b11_0000,
        _ => return None,
    };
    let last = characters.len().checked_sub(padding + 1)?;
    let value = ALPHABET.iter().position(|&known| known == characters[last])?;
    let mut text = characters.to_vec();
    text[last] = ALPHABET[value & mask];
    Some(text)
}

fn why(characters: &[u8]) -> Base64Error {
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if characters.iter().all(known) { Base64Error::Tail } else { Base64Error::Characters }
}

/// Adds the base64 of some data to a line. Where more follows, the length of the data must be a multiple of three.
pub fn append(line: &mut Vec<u8>, data: &[u8]) {
    let start = line.len();
    line.resize(start + data.len().div_ceil(3) * 4, 0);
    let _encoded = STANDARD.encode(data, Out::from_slice(&mut line[start..]));
}

#[cfg(test)]
mod tests {
    use super::{Base64Error, Base64Text, PIECE_CHARACTERS};

    fn check(text: &str, expected: Result<&[u8], Base64Error>) {
        assert_eq!(Base64Text::new(text).decode(), expected.map(<[u8]>::to_vec), "{text:?}");
        assert_eq!(Base64Text::new(text).check(), expected.map(<[u8]>::len), "{text:?}");
    }

    #[test]
    fn whole_groups_and_newlines_are_fine_and_nothing_else() {
        check("", Ok(b""));
        check("aGVsbG8=", Ok(b"hello"));
        check("aGVs\nbG8=\n", Ok(b"hello"));
        check("a\nG\nV\ns", Ok(b"hel"));
        check("aGVsbG9=", Ok(b"hello"));
        check("QR==", Ok(b"A"));
        check("aGVsbG8", Err(Base64Error::Tail));
        check("====", Err(Base64Error::Tail));
        check("aGVsbG8=aGVs", Err(Base64Error::Tail));
        check("aGVsbG8==", Err(Base64Error::Tail));
        check("aGVs bG8=", Err(Base64Error::Characters));
        check("aGVs\r\nbG8=", Err(Base64Error::Characters));
        check("-_-_", Err(Base64Error::Characters));
    }

    #[test]
    fn data_over_many_pieces_comes_out_whole() {
        let data: Vec<u8> = (0..PIECE_CHARACTERS * 2 + 5).map(|number| (number % 251) as u8).collect();
        let text = Base64Text::encode(&data);
        assert_eq!(text.decode().unwrap(), data);
        let broken: String =
            text.0.as_bytes().chunks(77).map(|line| std::str::from_utf8(line).unwrap().to_owned() + "\n").collect();
        assert_eq!(Base64Text::new(broken).decode().unwrap(), data);
        let padded_in_the_middle = format!("{}aGVs", text.0);
        assert_eq!(Base64Text::new(padded_in_the_middle).decode(), Err(Base64Error::Tail));
    }
}
