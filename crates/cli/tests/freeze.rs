//! `qga freeze --run`: whatever happens, the guest is thawed. With an agent that freezes nothing.

mod stage;

use serde_json::json;
use stage::scripted::{Answer, Scripted};
use stage::{run, signal, start, until, wait};

const WHOLE: [&str; 2] = ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"];

fn check(command: &[&str], code: i32) {
    let agent = Scripted::start();
    let ended = run(&agent.target(), [&["freeze", "--run"], command].concat());
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(agent.acts(), WHOLE, "{ended:?}");
    assert!(!agent.is_frozen());
}

#[test]
fn a_command_that_ends_ends_the_freeze() {
    check(&["true"], 0);
    check(&["sh", "-c", "exit 3"], 3);
    check(&["sh", "-c", "kill -9 $$"], 137);
    check(&["exit 4; true"], 4);
    check(&["/nonexistent/command"], 127);
    check(&["/etc/passwd"], 126);
}

#[test]
fn the_command_runs_while_it_is_frozen() {
    let mounted = |path| json!({ "name": "sda1", "mountpoint": path, "type": "ext4", "disk": [] });
    let agent = Scripted::start().answering("guest-get-fsinfo", Answer::Value(json!([mounted("/"), mounted("/srv")])));
    let ask = format!("{} -t {} freeze --status", env!("CARGO_BIN_EXE_qga"), agent.target());
    let ended = run(&agent.target(), ["freeze", "--mount", "/", "-m", "/srv", "--run", &ask]);
    assert_eq!(ended.text(), "frozen\n", "{ended:?}");
    assert_eq!(agent.arguments("guest-fsfreeze-freeze-list"), json!({ "mountpoints": ["/", "/srv"] }));
    assert!(!agent.is_frozen());
}

#[test]
fn a_killed_qga_leaves_a_thawed_guest() {
    let agent = Scripted::start();
    let mut child = start(&agent.target(), ["freeze", "--run", "sleep", "300"]);
    until("frozen", || agent.is_frozen());
    signal(child.id(), rustix::process::Signal::KILL);
    until("thawed", || !agent.is_frozen());
    assert_eq!(child.wait().unwrap().code(), None);
    assert_eq!(agent.acts(), WHOLE);
}

#[test]
fn a_qga_that_is_told_to_end_ends_the_command_first() {
    let agent = Scripted::start();
    let child = start(&agent.target(), ["freeze", "--run", "sleep", "300"]);
    until("frozen", || agent.is_frozen());
    signal(child.id(), rustix::process::Signal::TERM);
    let ended = wait(child);
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert_eq!(agent.acts(), WHOLE);
}

#[test]
fn what_the_command_leaves_behind_has_ended_when_the_guest_is_thawed() {
    let agent = Scripted::start();
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    // In the background, without the hang-up, and in a session of its own.
    let command = format!(
        "sleep 300 & echo $! > {0}; nohup sleep 300 > /dev/null 2>&1 & echo $! >> {0}; \
         setsid sh -c 'echo $$ >> {0}; exec sleep 300' & until [ $(wc -l < {0}) = 3 ]; do sleep 0.01; done",
        pids.display()
    );
    let ended = run(&agent.target(), ["freeze", "--run", &command]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(agent.acts(), WHOLE);
    for pid in std::fs::read_to_string(&pids).unwrap().lines() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "{pid} works on: {status}");
    }
}

#[test]
fn a_process_left_behind_that_does_not_listen_holds_the_guest_no_longer_than_the_limit_or_an_interrupt() {
    let deaf = "sh -c 'trap \"\" TERM; while :; do sleep 1; done' & exit 0";
    let agent = Scripted::start();
    let ended = run(&agent.target(), ["freeze", "--time-limit", "500ms", "--run", deaf]);
    assert_eq!(ended.code, Some(124), "{ended:?}");
    assert_eq!(agent.acts(), WHOLE);

    let agent = Scripted::start();
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready");
    let deaf = format!("sh -c 'trap \"\" TERM; touch {}; while :; do sleep 1; done' & exit 0", ready.display());
    let child = start(&agent.target(), ["freeze", "--run", &deaf]);
    until("ready", || ready.exists());
    // Also if the command has not ended yet: then it is ended, and this with it.
    signal(child.id(), rustix::process::Signal::INT);
    let ended = wait(child);
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert_eq!(agent.acts(), WHOLE);
}

#[test]
fn a_command_whose_qga_is_killed_ends_with_it() {
    let agent = Scripted::start();
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let command = format!("echo $$ > {}; exec sleep 300", pid.display());
    let mut child = start(&agent.target(), ["freeze", "--run", &command]);
    until("frozen", || agent.is_frozen() && pid.exists());
    signal(child.id(), rustix::process::Signal::KILL);
    child.wait().unwrap();
    let process = std::fs::read_to_string(&pid).unwrap();
    let status = format!("/proc/{}/status", process.trim());
    until("ended", || !std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ")));
    until("thawed", || !agent.is_frozen());
}

#[test]
fn what_a_command_has_put_into_the_background_ends_with_a_killed_or_stopped_qga() {
    use rustix::process::Signal;
    for by in [Signal::KILL, Signal::STOP] {
        let agent = Scripted::start();
        let directory = tempfile::tempdir().unwrap();
        let pid = |name: &str| directory.path().join(name);
        let command = format!(
            "nohup setsid sh -c 'echo $$ > {}; exec sleep 300' > /dev/null 2>&1 &
             (sh -c 'trap \"\" TERM INT HUP; echo $$ > {}; while :; do sleep 1; done' &); sleep 300",
            pid("one").display(),
            pid("other").display()
        );
        let mut child = start(&agent.target(), ["freeze", "--run", &command]);
        until("frozen", || agent.is_frozen() && pid("one").exists() && pid("other").exists());
        let read = |name: &str| std::fs::read_to_string(pid(name)).unwrap().trim().to_owned();
        until("both run", || !read("one").is_empty() && !read("other").is_empty());
        signal(child.id(), by);
        until("thawed", || !agent.is_frozen());
        for name in ["one", "other"] {
            let status = format!("/proc/{}/status", read(name));
            until("ended", || !std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ")));
        }
        if by == Signal::STOP {
            // It goes on and says that what the command has made is of no use.
            signal(child.id(), Signal::CONT);
            assert_ne!(wait(child).code, Some(0));
        } else {
            child.wait().unwrap();
        }
    }
}

#[test]
fn a_time_limit_ends_the_command_and_the_freeze() {
    let agent = Scripted::start();
    let ended = run(&agent.target(), ["freeze", "--time-limit", "100ms", "--run", "sleep", "300"]);
    assert_eq!(ended.code, Some(124), "{ended:?}");
    assert_eq!(agent.acts(), WHOLE);
}

#[test]
fn a_lost_connection_does_not_keep_it_frozen() {
    let agent = Scripted::start();
    let directory = tempfile::tempdir().unwrap();
    let go_on = directory.path().join("go-on");
    let command = format!("until [ -e {} ]; do sleep 0.01; done", go_on.display());
    let child = start(&agent.target(), ["freeze", "--run", &command]);
    until("frozen", || agent.is_frozen());
    agent.break_connections();
    std::fs::write(go_on, "").unwrap();
    let ended = wait(child);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!agent.is_frozen());
}

#[test]
fn a_freeze_that_fails_is_thawed_and_told() {
    let agent = Scripted::start().answering("guest-fsfreeze-freeze", Answer::Error("error when freezing /srv"));
    run(&agent.target(), ["freeze", "--run", "true"]).failed(71, "error when freezing /srv");
    assert_eq!(agent.acts(), WHOLE);
}

#[test]
fn what_others_have_frozen_is_left_frozen() {
    let agent = Scripted::start();
    agent.set_frozen(true);
    run(&agent.target(), ["freeze", "--run", "true"]).failed(70, "frozen already");
    assert!(agent.is_frozen());
    assert_eq!(agent.acts(), [""; 0]);
}

#[test]
fn a_guest_that_thawed_by_itself_makes_no_good_snapshot() {
    let agent = Scripted::start().answering("guest-fsfreeze-status", Answer::Value(json!("thawed")));
    run(&agent.target(), ["freeze", "--run", "true"]).failed(75, "thawed before the command had ended");
}

#[test]
fn several_guests_are_frozen_together_or_not_at_all() {
    let (one, other) = (Scripted::start(), Scripted::start());
    let both = format!("{},{}", one.target(), other.target());
    let ended = run(&both, ["--json", "freeze", "--run", "true"]);
    assert_eq!(ended.json()["file-systems"], 4, "{ended:?}");
    assert_eq!((one.acts(), other.acts()), (WHOLE.map(str::to_owned).into(), WHOLE.map(str::to_owned).into()));

    let failing = Scripted::start().answering("guest-fsfreeze-freeze", Answer::Error("no"));
    let directory = tempfile::tempdir().unwrap();
    let touched = directory.path().join("touched");
    let both = format!("{},{}", one.target(), failing.target());
    let ended = run(&both, ["freeze", "--run", "touch", touched.to_str().unwrap()]);
    assert_eq!(ended.code, Some(71), "{ended:?}");
    assert!(!one.is_frozen() && !touched.exists());
}

#[test]
fn a_plain_freeze_asks_and_a_thaw_does_not() {
    let agent = Scripted::start();
    run(&agent.target(), ["freeze"]).failed(64, "--yes");
    assert_eq!(agent.acts(), [""; 0]);
    run(&agent.target(), ["--yes", "freeze"]).good();
    assert!(agent.is_frozen());
    assert_eq!(run(&agent.target(), ["thaw"]).good(), "2 file systems thawed\n");
    assert!(!agent.is_frozen());
}

#[test]
fn a_plain_freeze_that_fails_leaves_nothing_frozen() {
    let agent = Scripted::start().answering("guest-fsfreeze-freeze", Answer::FrozenAndClosed);
    run(&agent.target(), ["--yes", "freeze"]).failed(75, "closed the connection");
    assert_eq!(agent.acts(), WHOLE);
    assert!(!agent.is_frozen());
}

#[test]
fn of_several_guests_those_that_stay_frozen_are_named() {
    let failing = Scripted::start().answering("guest-fsfreeze-freeze", Answer::Error("no"));
    let good = Scripted::start();
    let both = format!("{},{}", good.target(), failing.target());
    let advice = format!("1 of 2 stay frozen until: qga -t '{}' thaw", good.target());
    run(&both, ["--yes", "freeze"]).failed(71, &advice);
    assert!(good.is_frozen() && !failing.is_frozen());
}

#[test]
fn a_stopped_qga_does_not_keep_the_guest_frozen() {
    let agent = Scripted::start();
    let child = start(&agent.target(), ["freeze", "--run", "sleep", "300"]);
    until("frozen", || agent.is_frozen());
    signal(child.id(), rustix::process::Signal::STOP);
    until("thawed", || !agent.is_frozen());
    signal(child.id(), rustix::process::Signal::TERM);
    signal(child.id(), rustix::process::Signal::CONT);
    wait(child).failed(75, "thawed before the command had ended");
}

#[test]
fn a_guest_that_hangs_does_not_keep_the_others_frozen() {
    let good = Scripted::start();
    let hanging = Scripted::start()
        .answering("guest-fsfreeze-freeze", Answer::Error("no"))
        .answering("guest-fsfreeze-thaw", Answer::Silence);
    let both = format!("{},{}", hanging.target(), good.target());
    let mut child = start(&both, ["--timeout", "20", "freeze", "--run", "true"]);
    until("thawed", || good.acts() == WHOLE);
    assert!(child.try_wait().unwrap().is_none());
    let _hanging = hanging.answering("guest-fsfreeze-thaw", Answer::Value(json!(0)));
    wait(child).failed(71, "no");
}

/// How often a qga has begun to wait for a signal.
fn waits_for_signals(process: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let is_listener = |text: &String| text.starts_with("Name:\tsignals\n");
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok()).find(is_listener);
    // Without it the thread has not begun.
    let status = status.unwrap_or_default();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.map_or(0, |count| count.trim().parse().unwrap())
}

#[test]
fn a_plain_freeze_that_is_told_to_end_leaves_nothing_frozen() {
    use rustix::process::Signal;
    for told in [Signal::INT, Signal::TERM, Signal::HUP] {
        let agent = Scripted::start().holding("guest-fsfreeze-freeze");
        let child = start(&agent.target(), ["--yes", "freeze"]);
        until("frozen", || agent.is_frozen());
        until("listening", || waits_for_signals(child.id()) > 0);
        let before = waits_for_signals(child.id());
        signal(child.id(), told);
        // It has been heard, and the first signal does not end it.
        until("heard", || waits_for_signals(child.id()) > before);
        agent.release();
        wait(child).failed(130, "is thawed again");
        assert_eq!(agent.acts(), WHOLE, "{told:?}");
        assert!(!agent.is_frozen());
    }
}

#[test]
fn a_plain_freeze_that_is_killed_leaves_nothing_frozen() {
    use rustix::process::Signal;
    // The second one ends the wait for an answer.
    for (ends, code) in [(&[Signal::KILL][..], None), (&[Signal::TERM, Signal::INT][..], Some(130))] {
        let agent = Scripted::start().holding("guest-fsfreeze-freeze");
        let mut child = start(&agent.target(), ["--yes", "freeze"]);
        until("frozen", || agent.is_frozen());
        for &end in ends {
            signal(child.id(), end);
        }
        until("thawed", || !agent.is_frozen());
        assert_eq!(child.wait().unwrap().code(), code);
        assert_eq!(agent.acts(), WHOLE);
        agent.release();
    }
}

#[test]
fn a_plain_freeze_that_cannot_be_told_is_none() {
    let agent = Scripted::start();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = stage::command().args(["-t", &agent.target(), "--yes", "freeze"]).stdout(full).status().unwrap();
    assert_eq!(status.code(), Some(73));
    assert_eq!(agent.acts(), WHOLE);
}

#[test]
fn a_plain_freeze_leaves_alone_what_others_have_frozen() {
    let agent = Scripted::start();
    agent.set_frozen(true);
    run(&agent.target(), ["--yes", "freeze"]).failed(70, "frozen already");
    assert!(agent.is_frozen());
    assert_eq!(agent.acts(), [""; 0]);
}

#[test]
fn a_guest_that_drips_does_not_keep_the_others_frozen() {
    let good = Scripted::start();
    let dripping = Scripted::start().answering("guest-fsfreeze-freeze", Answer::Drip);
    let both = format!("{},{}", good.target(), dripping.target());
    let mut child = start(&both, ["--timeout", "20", "freeze", "--run", "true"]);
    until("thawed", || good.acts() == WHOLE);
    // What drips is thawed as well.
    until("asked to thaw", || dripping.acts().contains(&"guest-fsfreeze-thaw".to_owned()));
    let ended = wait(child);
    ended.failed(75, "not complete in time");
    assert!(!good.is_frozen());

    // The first word to end is heard while it drips.
    let (good, dripping) = (Scripted::start(), Scripted::start().answering("guest-fsfreeze-freeze", Answer::Drip));
    let both = format!("{},{}", good.target(), dripping.target());
    child = start(&both, ["freeze", "--run", "true"]);
    until("frozen", || good.is_frozen() && dripping.acts() == WHOLE[..1]);
    signal(child.id(), rustix::process::Signal::INT);
    until("thawed", || !good.is_frozen());
    wait(child).failed(130, "stopped before all were frozen");
    assert_eq!(good.acts(), WHOLE);
    // The process in the background sees to the one that has not answered.
    until("asked to thaw", || dripping.acts().contains(&"guest-fsfreeze-thaw".to_owned()));
}

#[test]
fn a_guest_that_drips_before_the_freeze_is_not_waited_for() {
    for question in ["guest-fsfreeze-status", "guest-sync-delimited"] {
        let dripping = Scripted::start().answering(question, Answer::Drip);
        for command in [&["freeze", "--run", "true"][..], &["--yes", "freeze"]] {
            run(&dripping.target(), [&["--timeout", "1"], command].concat()).failed(75, "not complete in time");
        }
        assert_eq!(dripping.acts(), [""; 0]);
    }
}

#[test]
fn a_freeze_that_is_refused_thaws_nobody_elses() {
    const REFUSED: Answer = Answer::Refusal(
        "CommandNotFound",
        "Command guest-fsfreeze-freeze has been disabled: the command is not allowed",
    );
    for command in [&["freeze", "--run", "true"][..], &["--yes", "freeze"]] {
        // Somebody else freezes it between the question and the freeze.
        let other = Scripted::start();
        other.set_frozen(true);
        let refused = other
            .answering(
                "guest-fsfreeze-status",
                Answer::in_turn(["thawed", "thawed", "frozen"].map(|it| Answer::Value(json!(it)))),
            )
            .answering("guest-fsfreeze-freeze", REFUSED);
        let good = Scripted::start();
        let both = format!("{},{}", refused.target(), good.target());
        run(&both, command).failed(70, "has been disabled");
        if command.contains(&"--run") {
            assert_eq!(good.acts(), WHOLE);
            assert!(!good.is_frozen());
        }
        assert_eq!(refused.acts(), WHOLE[..1], "{command:?}");
        assert!(refused.is_frozen());
    }
}

#[test]
fn what_is_not_mounted_is_not_frozen_and_nothing_is_run() {
    let mounted = json!([{ "name": "sda1", "mountpoint": "/", "type": "ext4", "disk": [] }]);
    let agent = Scripted::start().answering("guest-get-fsinfo", Answer::Value(mounted));
    let directory = tempfile::tempdir().unwrap();
    let touch = format!("touch {}", directory.path().join("it-ran").display());
    for mounts in [&["-m", "/nope"][..], &["-m", "/", "-m", "/nope"]] {
        let command = [&["freeze"], mounts, &["--run", &touch]].concat();
        run(&agent.target(), command).failed(66, "no file system mounted at /nope");
        run(&agent.target(), [&["--yes", "freeze"], mounts].concat()).failed(66, "no file system mounted at /nope");
    }
    assert_eq!(agent.acts(), ["guest-get-fsinfo"; 4]);

    // An agent that does not tell what it has mounted, and freezes nothing.
    for mounts in [&["-m", "/nope"][..], &[]] {
        let agent = Scripted::start()
            .answering("guest-get-fsinfo", Answer::Error("it is forbidden"))
            .answering("guest-fsfreeze-freeze", Answer::Value(json!(0)))
            .answering("guest-fsfreeze-freeze-list", Answer::Value(json!(0)));
        run(&agent.target(), [&["freeze"], mounts, &["--run", &touch]].concat()).failed(71, "froze nothing");
        assert!(!agent.is_frozen());
        run(&agent.target(), [&["--yes", "freeze"], mounts].concat()).failed(71, "froze nothing");
        assert!(!agent.is_frozen());
    }
    assert!(!directory.path().join("it-ran").exists());
}
