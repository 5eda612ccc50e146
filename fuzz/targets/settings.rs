//! The agent's own files: configuration and state. What a dump of the configuration says is read back as the same, but
//! for the order of lists, which each dump turns round as the original's does; a handle is never negative, whatever the
//! state says; a freeze's state file is read as it was written.

#![no_main]

#[allow(dead_code, reason = "each target uses its own part of it")]
mod machine;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use qga_agent::fuzzing;

use self::machine::{Machine, files};

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new("settings"));
}

fuzz_target!(|input: &[u8]| {
    let [configuration, state, marker] = files(input);
    match fuzzing::configuration(configuration) {
        // A form feed in front of a value is a blank to the reader, and the format has no escape for it.
        Ok(dump) if dump.contains('\u{c}') => {}
        Ok(dump) => {
            let again = |dump: &String| fuzzing::configuration(dump.as_bytes());
            assert_eq!(again(&dump).and_then(|turned| again(&turned)).as_ref(), Ok(&dump), "{dump}");
        }
        Err(text) => {
            assert!(text.len() < 2000 + 8 * configuration.len(), "{} bytes of error", text.len());
            assert!(!text.contains('\n'), "an error is one line: {text}");
        }
    }
    if let Some(text) = fuzzing::freeze_marker(marker) {
        assert_eq!(fuzzing::freeze_marker(text.as_bytes()).as_ref(), Some(&text), "a marker is read as it was written");
    }
    MACHINE.with_borrow(|machine| {
        machine.write("/qga.state", state);
        let handle = fuzzing::next_handle(&machine.path("/")).expect("what cannot be understood is begun anew");
        assert!(handle >= 0, "{handle}");
    });
});
