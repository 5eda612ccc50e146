//! What may stand in the place of a hashed password: crypt(5) and shadow(5).
//!
//! A field that no password can match leaves an account that nobody gets into any more, and an empty one an account
//! that everybody gets into. chpasswd(8) stores both without a word.

use crate::system::error::Error;

/// A method of crypt(5).
struct Method {
    /// What a hash begins with.
    prefix: &'static str,
    /// As administrators know it.
    name: &'static str,
    /// Fields between the prefix and the last one: a count of rounds may be left out.
    fields: std::ops::RangeInclusive<usize>,
    /// Characters of the last field.
    length: usize,
}

const METHODS: [Method; 13] = [
    Method { prefix: "$y$", name: "yescrypt", fields: 2..=2, length: 43 },
    Method { prefix: "$gy$", name: "gost-yescrypt", fields: 2..=2, length: 43 },
    Method { prefix: "$7$", name: "scrypt", fields: 1..=1, length: 43 },
    // The salt has no end of its own.
    Method { prefix: "$2b$", name: "bcrypt", fields: 1..=1, length: 53 },
    Method { prefix: "$2a$", name: "bcrypt", fields: 1..=1, length: 53 },
    Method { prefix: "$2y$", name: "bcrypt", fields: 1..=1, length: 53 },
    Method { prefix: "$2x$", name: "bcrypt", fields: 1..=1, length: 53 },
    Method { prefix: "$6$", name: "SHA-512", fields: 1..=2, length: 86 },
    Method { prefix: "$5$", name: "SHA-256", fields: 1..=2, length: 43 },
    Method { prefix: "$sha1$", name: "SHA-1", fields: 2..=2, length: 28 },
    Method { prefix: "$md5", name: "Sun MD5", fields: 2..=3, length: 22 },
    Method { prefix: "$1$", name: "MD5", fields: 1..=1, length: 22 },
    Method { prefix: "$3$", name: "NT", fields: 1..=1, length: 32 },
];

/// Characters of a hash without a prefix, salt included: the traditional method, and that of BSD/OS behind an underscore.
const TRADITIONAL_LENGTH: usize = 13;
const BSDI_LENGTH: usize = 19;

/// Refuses what leaves an account open to everybody or closed to everybody, but for what closes it on purpose: `!` or
/// `*`, alone or before anything else.
pub fn check(hash: &[u8]) -> Result<(), Error> {
    let refused = |cause: &str| {
        Error::new(format!(
            "the crypted password was not set: {cause}; send a hash in a form of crypt(5), or '!' to lock the account"
        ))
    };
    let Ok(text) = str::from_utf8(hash) else { return Err(refused("it is no text")) };
    if text.is_empty() {
        return Err(refused("it is empty, and would let everybody in without a password"));
    }
    if let Some(sign) = text.chars().find(|sign| !sign.is_ascii_graphic()) {
        return Err(refused(&format!("no hash has the character '{}' in it", sign.escape_default())));
    }
    if text.starts_with(['!', '*']) {
        return Ok(());
    }
    if let Some(rest) = text.strip_prefix('_') {
        return if is_encoded(rest, BSDI_LENGTH) { Ok(()) } else { Err(refused("it is no hash")) };
    }
    if !text.starts_with('$') {
        return if is_encoded(text, TRADITIONAL_LENGTH) { Ok(()) } else { Err(refused("it is no hash")) };
    }
    let Some(method) = METHODS.iter().find(|method| text.starts_with(method.prefix)) else {
        return Err(refused("its method is none that crypt(5) knows"));
    };
    let fields: Vec<&str> = text[method.prefix.len()..].split('$').collect();
    let last = fields.last().copied().unwrap_or_default();
    if !method.fields.contains(&(fields.len() - 1)) || !is_encoded(last, method.length) {
        let (name, wanted, found) = (method.name, method.length, last.len());
        return Err(refused(&format!(
            "it begins like a hash of {name} and is not whole: {wanted} letters, digits, '.' or '/' belong behind its \
             last '$', and {found} characters are there"
        )));
    }
    Ok(())
}

fn is_encoded(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::check;

    /// The password `x` by every method of libxcrypt.
    const HASHES: &[&str] = &[
        "$y$j9T$abcdefgh$9WNEpu8Mx2S4KNGvbVWKM6clOSoY6.YEl7AYF4DGV04",
        "$gy$j9T$abcdefgh$CiTibHdBM/5r3qmg1i0DxivDn1U977EDVDgQAyycj9/",
        "$7$CU..../....abcdefgh$19TzpFZ5AwP26vdEMbfvWacoVUfd2MfVusFAVFilh.C",
        "$2b$05$abcdefghijklmnopqrstuuhKF09ZYWwH2zP/0fwE1X8e/Q1YNx/hO",
        "$6$nB0EaSr/saSEYvNv$2DcCgHRWhcjZcQyhD76BSDpzrPBZ3D/iu3ZIejhVup21pHF02ziCongh2TCBWciC7a1GnLKbQ/m0E3PYPxFnP/",
        "$6$rounds=5000$abc$K4v3HcZ8yAmpRfxML6S46NCcqy9r4/KdbQpFvqSWsBf4dgySOEOo1DHJTrmn2BsJK2aNmPN8Tfb826D2o9.z51",
        "$6$$KvRrc0bxRLyTUhO8OJOmRczh7oCol5BACiR8rmdfVzvuGgm8JmLDumsL/ah.jFtT.DswxoP9Nv3ByfU4j5hm/0",
        "$5$pYIhcWKnUBcvGdQx$nbfGQ3ZalxKfU4BAbImcBdkLM62lvOVljA0sWG5YLCD",
        "$sha1$1000$abcdefgh$S1ArdJYzrh17g244/Kvgwg8.Q1c0",
        "$md5,rounds=10$abcdefgh$FTwpfRPS8jZzncAAmcxpF/",
        "$md5$abcdefgh$$Vnp9PhHCmIcKm6Q6oZ0rv/",
        "$1$uKJ9EgL7$q0CNPxmB6eS5w5I8uIB9C1",
        "$3$$a9f0dd57e1edab5bb55a9ac0a99c15ec",
        "_J9..abcd5WNy9VUCfAY",
        "abiQ6Ep3EYTHc",
    ];

    #[test]
    fn every_method_of_the_system_is_taken_and_no_part_of_a_hash() {
        for hash in HASHES {
            assert_eq!(check(hash.as_bytes()), Ok(()), "{hash}");
            for end in 0..hash.len() {
                // The first 13 characters are all that another method needs.
                let is_whole = hash.starts_with('a') && end == 13;
                assert!(is_whole || check(&hash.as_bytes()[..end]).is_err(), "{}", &hash[..end]);
            }
            assert!(check(format!("{hash}a").as_bytes()).is_err(), "{hash}a");
        }
    }

    #[test]
    fn a_lock_is_taken_and_what_locks_by_mistake_is_not() {
        for lock in ["!", "!!", "*", "!*", "*LK*", "!$6$a$b", "!locked"] {
            assert_eq!(check(lock.as_bytes()), Ok(()), "{lock}");
        }
        let unknown = ["$apr1$QpvvkGn5$uH..nLnvPEc/i2RxOPE71.", "$argon2id$v=19$m=1$a$b", "$", "$$", "$6", "$0$a$b"];
        let unlike =
            ["x", "secret", "NP", "{SSHA}aaaaaaaaaaaaaaaaaaaa", " ", "ab iQ6Ep3EYTH", "abiQ6Ep3EYTHc\r", "gr\u{fc}n"];
        for hash in unknown.iter().chain(&unlike) {
            assert!(check(hash.as_bytes()).is_err(), "{hash}");
        }
        assert!(check(b"\xff").is_err());
        let told = |hash: &str| check(hash.as_bytes()).unwrap_err().desc;
        assert!(told("").contains("it is empty, and would let everybody in"));
        assert!(
            told("$6$salt$abc").contains("a hash of SHA-512 and is not whole: 86 letters"),
            "{}",
            told("$6$salt$abc")
        );
        assert!(!told("secret").contains("secret"));
    }
}
