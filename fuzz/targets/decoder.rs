//! Any bytes in any portions: the decoder never panics, keeps no more than its limits say, and gives the same events
//! whatever the portions are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qga_protocol::stream::{Decoder, Event, Limits};

/// Small, so that short inputs reach them.
const LIMITS: Limits = Limits { token_bytes: 600, tokens: 80, depth: 12 };

fuzz_target!(|input: &[u8]| {
    // The first bytes say how long the portions are; the others are the stream.
    let (sizes, stream) = input.split_at(input.len().min(4));
    let whole = events(LIMITS, std::iter::once(stream));
    assert_eq!(whole, events(LIMITS, portions(stream, sizes)), "the portions change the events");
    assert_eq!(whole, events(LIMITS, stream.chunks(1)), "single bytes change the events");
    // The limits of the real agent must not change what is below both.
    events(Limits::default(), std::iter::once(stream));
});

fn events<'a>(limits: Limits, portions: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let most_kept = limits.token_bytes;
    let mut decoder = Decoder::new(limits);
    let mut events = Vec::new();
    for mut portion in portions {
        while let Some(event) = decoder.next(&mut portion) {
            if let Event::Refused(refusal) = &event {
                let mut line = Vec::new();
                refusal.write(&mut line).expect("memory takes it");
                assert!(line.is_ascii() && line.ends_with(b"\n"), "an error must be one line of ASCII");
                assert!(line.iter().filter(|byte| **byte == b'\n').count() == 1, "an error must be one line");
                serde_json::from_slice::<serde_json::Value>(&line).expect("an error must be JSON");
            }
            events.push(format!("{event:?}"));
        }
        assert!(portion.is_empty(), "bytes were left although nothing came of them");
        assert!(decoder.buffered_bytes() <= most_kept, "{} bytes kept", decoder.buffered_bytes());
    }
    events
}

/// Cuts the stream at lengths taken from `sizes` in turn.
fn portions<'a>(mut stream: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        if stream.is_empty() {
            return None;
        }
        let size = usize::from(sizes.next().copied().unwrap_or(7) % 40) + 1;
        let (portion, rest) = stream.split_at(size.min(stream.len()));
        stream = rest;
        Some(portion)
    })
}
