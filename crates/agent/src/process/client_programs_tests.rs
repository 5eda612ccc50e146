//! The table's limits, on output and on programs; the programs themselves are run by the compliance suite.

use std::time::Duration;

use super::{Child, Exit, Instant, OUTPUT_BYTES_MAX, PROGRAMS_MAX, Programs, RESULT_AGE};
use super::{Started, Status};

/// A program without a process of ours. Asked for its end the system knows none; `end` says how it ended.
fn start(programs: &Programs, pid: i32) {
    programs.reserve("test").unwrap().fill(Started {
        child: Child::of_nobody(pid),
        output: [None, None],
        input: None,
        ward: None,
    });
}

fn end(programs: &Programs, pid: i32, exit: Exit, age: Duration) {
    let ended = Instant::now().checked_sub(age).unwrap();
    programs.lock().known.get_mut(&pid).unwrap().ended = Some((exit, ended));
}

#[test]
fn a_result_is_handed_over_once() {
    let programs = Programs::default();
    start(&programs, 7);
    programs.lock().known.get_mut(&7).unwrap().output[0].keep(b"out", 100);
    programs.lock().output_bytes = 3;
    end(&programs, 7, Exit::Code(3), Duration::ZERO);
    let Some(Status::Ended(exit, output)) = programs.status(7) else { panic!("it has ended") };
    assert_eq!((exit, output[0].is_truncated()), (Some(Exit::Code(3)), false));
    let [out, _] = output;
    assert_eq!(out.into_bytes().unwrap(), b"out");
    assert!(programs.status(7).is_none());
    assert_eq!(programs.lock().output_bytes, 0);
}

#[test]
fn programs_are_limited_and_only_an_old_result_makes_room() {
    let programs = Programs::default();
    for pid in 1..=PROGRAMS_MAX as i32 {
        start(&programs, pid);
    }
    end(&programs, 1, Exit::Code(0), Duration::ZERO);
    assert!(programs.reserve("test").is_err_and(|error| error.desc.contains("512 programs")));
    end(&programs, 1, Exit::Code(0), RESULT_AGE);
    drop(programs.reserve("test").unwrap());
    assert!(programs.status(1).is_none());
}

#[test]
fn output_that_nobody_fetches_is_limited() {
    let programs = Programs::default();
    programs.lock().output_bytes = OUTPUT_BYTES_MAX;
    assert!(programs.reserve("test").is_err_and(|error| error.desc.contains("134217728 bytes of output")));
}

#[test]
fn a_reused_process_id_means_the_newer_program() {
    let programs = Programs::default();
    start(&programs, 7);
    end(&programs, 7, Exit::Code(1), Duration::ZERO);
    start(&programs, 7);
    let ended = programs.lock().known[&7].ended;
    assert!(ended.is_none_or(|(exit, _)| exit != Exit::Code(1)), "the older program's end is told: {ended:?}");
}
