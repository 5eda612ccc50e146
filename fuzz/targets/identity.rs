//! `os-release`, the host name, utmp and the session files of logind. What is told of users is in order.

#![no_main]

#[allow(dead_code, reason = "each target uses its own part of it")]
mod machine;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

use self::machine::{Machine, files};

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(Machine::new("identity"));
}

fuzz_target!(|input: &[u8]| {
    let [release, name, one, other, records] = files(input);
    MACHINE.with_borrow_mut(|machine| {
        machine.write("/etc/os-release", release);
        machine.write("/proc/sys/kernel/hostname", name);
        machine.write("/run/systemd/sessions/1", one);
        machine.write("/run/systemd/sessions/c2", other);
        machine.write("/run/utmp", records);
        for command in ["guest-get-osinfo", "guest-get-host-name"] {
            let reply = machine.ask(command, input.len());
            assert!(reply.get("return").is_some(), "{command}: {reply}");
        }
        let reply = machine.ask("guest-get-users", input.len());
        let users = reply["return"].as_array().expect("what is no login is passed over");
        let mut names: Vec<&str> = users.iter().map(|user| user["user"].as_str().expect("a name")).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a user is told twice: {reply}");
        assert!(users.iter().all(|user| user["login-time"].is_number()), "{reply}");
    });
});
