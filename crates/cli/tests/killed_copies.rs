//! A large file both ways, `qga` killed half-way each time, and what `--resume` makes of that. Through our agent it is
//! 1 GiB, through the original, which is several times slower, less.

mod stage;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use qga_compliance::{Kind, Subject};
use stage::{Guest, start, until};

fn file_bytes() -> u64 {
    match Subject::under_test().kind {
        Kind::Ours => 1 << 30,
        Kind::Original => 64 << 20,
    }
}

/// Writes a file in which no piece is the same as its neighbours, or as one that is a power of two away.
fn write_noise(path: &Path, bytes: u64) {
    const PRIME: usize = 1_048_583;
    let block: Vec<u8> = (0..PRIME).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let mut file = File::create(path).unwrap();
    let mut left = bytes as usize;
    while left > 0 {
        let size = left.min(PRIME);
        file.write_all(&block[..size]).unwrap();
        left -= size;
    }
}

fn assert_same(one: &Path, other: &Path) {
    let (mut one, mut other) = (File::open(one).unwrap(), File::open(other).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    assert_eq!(one.metadata().unwrap().len(), other.metadata().unwrap().len());
    for _ in 0..one.metadata().unwrap().len() >> 20 {
        one.read_exact(&mut left).unwrap();
        other.read_exact(&mut right).unwrap();
        assert!(left == right, "the copy differs");
    }
}

/// The partial file of a copy.
fn partial_of(copy: &Path) -> Option<PathBuf> {
    let start = format!(".{}.", copy.file_name().unwrap().to_str().unwrap());
    let mut entries = fs::read_dir(copy.parent().unwrap()).unwrap().flatten().map(|entry| entry.path());
    entries.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&start))
}

fn partial_bytes(copy: &Path) -> u64 {
    partial_of(copy).and_then(|path| path.metadata().ok()).map_or(0, |metadata| metadata.len())
}

/// Copies `from` to `to`, which becomes the file `copy` of this machine; kills the first try, and lets the second go on,
/// which takes further options.
fn copy_in_two_goes(guest: &Guest, from: &str, to: &str, copy: &Path, bytes: u64, options: &[&str]) {
    let is_killed_in_time = (0..5).any(|_| {
        let mut child = start(&guest.target(), ["cp", "--resume", from, to]);
        until("some of it is there", || partial_bytes(copy) >= bytes / 8 || copy.exists());
        child.kill().unwrap();
        child.wait().unwrap();
        // On a busy machine it can be done before it is looked at again.
        !copy.exists() || fs::remove_file(copy).is_err()
    });
    assert!(is_killed_in_time, "it is done each time before it can be killed");
    // The agent still does what it was asked for before the client was killed.
    until("the agent has done the rest", || {
        let before = partial_bytes(copy);
        thread::sleep(Duration::from_millis(500));
        partial_bytes(copy) == before
    });
    let left = partial_bytes(copy);
    assert!(left < bytes, "the half file has {left} bytes");

    let report = guest.json([&["cp", "--resume"], options, &[from, to]].concat());
    assert_eq!((&report["bytes"], &report["resumed-bytes"]), (&bytes.into(), &left.into()), "{report}");
    assert_eq!(partial_of(copy), None, "the half file was left behind");
}

#[test]
fn a_large_copy_that_was_killed_half_way_goes_on_both_ways() {
    let Some(guest) = Guest::start() else { return };
    let bytes = file_bytes();
    let (here, there, back) = (guest.path("here"), guest.path("there"), guest.path("back"));
    write_noise(&here, bytes);
    let in_guest = format!(":{}", there.display());
    copy_in_two_goes(&guest, &here.display().to_string(), &in_guest, &there, bytes, &["--checksum"]);
    assert_same(&here, &there);
    fs::remove_file(&here).unwrap();
    copy_in_two_goes(&guest, &in_guest, &back.display().to_string(), &back, bytes, &[]);
    assert_same(&there, &back);
}
