//! passwd(5) and files of keys. A key that was added is there once; it and every key that is listed can be removed; what is
//! added changes no other line.

#![no_main]

#[allow(dead_code, reason = "each target uses its own part of it")]
mod machine;

use libfuzzer_sys::fuzz_target;
use qga_agent::fuzzing;

use self::machine::files;

fuzz_target!(|input: &[u8]| {
    let [passwd, name, file, key] = files(input);
    let (name, key) = (String::from_utf8_lossy(name), String::from_utf8_lossy(key).into_owned());
    for chosen in [None, Some(&*name)] {
        if let Some((uid, gid, _)) = fuzzing::account(passwd, chosen) {
            assert!(uid != u32::MAX && gid != u32::MAX, "the kernel takes these numbers for none");
        }
    }
    let listed = fuzzing::keys(file);
    assert!(listed.iter().all(|key| !key.is_empty() && !key.starts_with('#') && !key.contains('\n')));
    let Ok(with) = fuzzing::keys_added(file, std::slice::from_ref(&key)) else { return };
    assert!(with.starts_with(file), "lines have changed");
    assert!(with.len() <= file.len() + key.len() + 2);
    assert_eq!(fuzzing::keys_added(&with, std::slice::from_ref(&key)).as_deref(), Ok(&*with), "a key is added twice");
    let line_of_key = |line: &[u8]| line == key.as_bytes();
    let without = fuzzing::keys_removed(&with, std::slice::from_ref(&key)).expect("what was added is a line");
    let lines = |bytes: &[u8]| bytes.split(|byte| *byte == b'\n').filter(|line| line_of_key(line)).count();
    assert!(key.is_empty() || lines(&with) >= 1, "the key is not there");
    assert!(key.is_empty() || lines(&without) == 0, "the key is still there");
    for key in listed {
        let without = fuzzing::keys_removed(file, std::slice::from_ref(&key)).expect("what is listed is a line");
        assert!(!fuzzing::keys(&without).contains(&key), "what is listed cannot be removed");
    }
});
