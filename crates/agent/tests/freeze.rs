//! Freezes of real file systems, on loop devices in a mount namespace: what becomes of them when anything else happens.

#[allow(dead_code, reason = "not every test uses all of it")]
#[path = "freeze/stage.rs"]
mod stage;

use self::stage::{Agent, Stage, guardians, in_namespace, shell, succeeds, wait_until};
use serde_json::json;

#[test]
fn what_is_frozen_can_be_unmounted_and_is_thawed_all_the_same() {
    in_namespace("what_is_frozen_can_be_unmounted_and_is_thawed_all_the_same", || {
        let stage = Stage::new("");
        let mut agent = stage.start("agent");
        assert_eq!(agent.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
        let (a, b) = (stage.path("a"), stage.path("b"));
        // What uses it is ended, as a test suite does before it unmounts: neither the agent nor the guardian does.
        succeeds(&format!("fuser -km '{}'", a.display()));
        shell(&format!("umount '{}'", a.display()));
        assert!(agent.is_running(), "{}", stage.log());
        assert_eq!(guardians().len(), 1);
        assert_eq!(agent.status(), "frozen");
        assert_eq!(agent.thaw(), json!({"return": 2}));
        let again = format!("mount -o loop '{}' '{}'", stage.path("a.img").display(), a.display());
        shell(&again);
        stage.expect_writes("a");
        stage.expect_writes("b");

        // The same with an agent that is killed after the file system was unmounted.
        assert_eq!(agent.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
        shell(&format!("umount '{}'; umount '{}'", a.display(), b.display()));
        agent.end("KILL");
        let agent = stage.start("agent");
        assert_eq!(agent.status(), "frozen");
        assert_eq!(agent.thaw(), json!({"return": 2}));
        shell(&again);
        stage.expect_writes("a");
    });
}

/// A hook that notes what it is told, and when it has done it, and takes as long as the file `pace` says.
const HOOK: &str = "
at=$(dirname \"$0\")/..
echo \"begin $1\" >> $at/said
sleep \"$(cat $at/pace-$1 2> /dev/null || echo 0)\"
echo \"end $1\" >> $at/said";

fn kill_while(stage: &Stage, agent: Agent, line: &str) {
    wait_until(line, || stage.lines("said").last().is_some_and(|last| last == line));
    agent.end("KILL");
}

#[test]
fn a_guardian_of_an_earlier_freeze_does_not_end_the_next_one() {
    in_namespace("a_guardian_of_an_earlier_freeze_does_not_end_the_next_one", || {
        let stage = Stage::new("");
        stage.hook("10-hook", HOOK);
        let agent = stage.start("agent");
        assert_eq!(agent.ask(&stage.freeze_request(&["a"])), json!({"return": 1}));
        std::fs::write(stage.path("pace-thaw"), "2").unwrap();
        let mut host = agent.connect();
        host.send(&json!({"execute": "guest-fsfreeze-thaw"}));
        kill_while(&stage, agent, "begin thaw");
        // It was let go before the hooks were called, or has ended by itself when its agent was gone.
        let agent = stage.start("agent");
        wait_until("no guardian is left", || guardians().is_empty());
        // The hook that still runs is waited for, and not called again.
        wait_until("the hook has had its thaw", || agent.ask(&stage.freeze_request(&["a"])) == json!({"return": 1}));
        assert_eq!(
            stage.lines("said"),
            ["begin freeze", "end freeze", "begin thaw", "end thaw", "begin freeze", "end freeze"]
        );
        assert_eq!((agent.status(), guardians().len()), (json!("frozen"), 1));
        assert!(!stage.takes_writes("a"));
        assert_eq!(agent.thaw(), json!({"return": 1}));
        stage.expect_writes("a");
    });
}

#[test]
fn without_room_for_its_state_file_a_freeze_is_refused() {
    in_namespace("without_room_for_its_state_file_a_freeze_is_refused", || {
        let stage = Stage::new("");
        stage.hook("10-hook", HOOK);
        let agent = stage.start("agent");
        let fill = format!("dd if=/dev/zero of='{}' bs=1k 2> /dev/null || true", stage.path("state/full").display());
        shell(&fill);
        let refused = agent.ask(&stage.freeze_request(&["a"]));
        let text = refused["error"]["desc"].as_str().unwrap_or_default().to_owned();
        assert!(text.starts_with("nothing was frozen: the state file") && text.contains("No space left"), "{refused}");
        assert_eq!(agent.status(), "thawed");
        stage.expect_writes("a");
        assert_eq!(stage.lines("said"), [""; 0], "a hook was called for a freeze that was refused before");
        let left = shell(&format!("ls '{}'", stage.path("state").display()));
        assert!(!left.contains("isfrozen"), "{left}");
        std::fs::remove_file(stage.path("state/full")).unwrap();

        // It becomes full while frozen: the thaw needs no room, and neither does the next agent.
        assert_eq!(agent.ask(&stage.freeze_request(&["a"])), json!({"return": 1}));
        shell(&fill);
        agent.end("KILL");
        let agent = stage.start("agent");
        assert_eq!(agent.status(), "frozen");
        assert_eq!(agent.thaw(), json!({"return": 1}));
        stage.expect_writes("a");
        assert_eq!(stage.lines("said"), ["begin freeze", "end freeze", "begin thaw", "end thaw"]);
    });
}

#[test]
fn a_freeze_whose_state_file_was_removed_is_known_by_its_guardian() {
    in_namespace("a_freeze_whose_state_file_was_removed_is_known_by_its_guardian", || {
        let stage = Stage::new("");
        let agent = stage.start("agent");
        assert_eq!(agent.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
        std::fs::remove_file(stage.path("state/qga.state.isfrozen")).unwrap();
        agent.end("KILL");
        let agent = stage.start("agent");
        assert_eq!(agent.status(), "frozen");
        assert_eq!(agent.thaw(), json!({"return": 2}));
        stage.expect_writes("a");
        stage.expect_writes("b");
    });
}

#[test]
fn a_hook_at_work_when_its_agent_is_killed_is_waited_for_before_its_thaw() {
    in_namespace("a_hook_at_work_when_its_agent_is_killed_is_waited_for_before_its_thaw", || {
        let stage = Stage::new("");
        stage.hook("10-hook", HOOK);
        std::fs::write(stage.path("pace-freeze"), "2").unwrap();
        let agent = stage.start("agent");
        let mut host = agent.connect();
        host.send(&stage.freeze_request(&["a"]));
        kill_while(&stage, agent, "begin freeze");
        let agent = stage.start("agent");
        assert_eq!(agent.status(), "thawed");
        // No freeze begins before.
        let refused = agent.ask(&stage.freeze_request(&["a"]));
        assert!(refused["error"].is_object() || stage.lines("said").contains(&"end thaw".to_owned()), "{refused}");
        wait_until("the thaw has come", || stage.lines("said").iter().any(|line| line == "end thaw"));
        assert_eq!(stage.lines("said")[..4], ["begin freeze", "end freeze", "begin thaw", "end thaw"]);
    });
}

#[test]
fn a_hook_that_hangs_when_its_agent_is_killed_is_ended_before_its_thaw() {
    in_namespace("a_hook_that_hangs_when_its_agent_is_killed_is_ended_before_its_thaw", || {
        let stage = Stage::new("fsfreeze-hook-timeout=2");
        stage.hook("10-hook", HOOK);
        std::fs::write(stage.path("pace-freeze"), "1000").unwrap();
        let agent = stage.start("agent");
        let mut host = agent.connect();
        host.send(&stage.freeze_request(&["a"]));
        kill_while(&stage, agent, "begin freeze");
        let _agent = stage.start("agent");
        wait_until("the thaw has come", || stage.lines("said").iter().any(|line| line == "end thaw"));
        assert_eq!(stage.lines("said"), ["begin freeze", "begin thaw", "end thaw"]);
    });
}

#[test]
fn a_second_agent_by_the_same_state_directory_serves_and_freezes_nothing() {
    in_namespace("a_second_agent_by_the_same_state_directory_serves_and_freezes_nothing", || {
        let stage = Stage::new("");
        stage.hook("10-hook", HOOK);
        let first = stage.start("first");
        let second = stage.start("second");
        // A thaw of nothing is no error, and none of its business.
        assert_eq!(second.thaw(), json!({"return": 0}));
        assert_eq!(stage.lines("said"), [""; 0]);
        assert!(second.call("guest-get-host-name")["return"].is_object());
        let is_refused = |reply: serde_json::Value| {
            let text = reply["error"]["desc"].as_str().unwrap_or_default().to_owned();
            assert!(text.starts_with(&format!("another agent, process {}, freezes", first.pid())), "{reply}");
        };
        is_refused(second.ask(&stage.freeze_request(&["b"])));
        assert_eq!(first.ask(&stage.freeze_request(&["a"])), json!({"return": 1}));
        assert_eq!((first.status(), second.status()), (json!("frozen"), json!("frozen")));
        is_refused(second.thaw());
        is_refused(second.ask(&stage.freeze_request(&["b"])));
        // One that is started meanwhile serves too.
        let third = stage.start("third");
        assert!(third.call("guest-get-host-name")["return"].is_object());
        assert!(!stage.takes_writes("a"));
        // When the first one is gone, the freeze is the second one's.
        first.end("KILL");
        assert_eq!(second.thaw(), json!({"return": 1}));
        assert_eq!(second.status(), "thawed");
        stage.expect_writes("a");
        assert_eq!(stage.lines("said"), ["begin freeze", "end freeze", "begin thaw", "end thaw"]);
    });
}

#[test]
fn what_neither_agent_nor_guardian_has_survived_is_told_as_it_is() {
    in_namespace("what_neither_agent_nor_guardian_has_survived_is_told_as_it_is", || {
        let stage = Stage::new("");
        stage.hook("10-hook", HOOK);
        for is_thawed in [false, true] {
            let agent = stage.start("agent");
            assert_eq!(agent.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
            for pid in guardians() {
                shell(&format!("kill -9 {pid}"));
            }
            agent.end("KILL");
            if is_thawed {
                shell(&format!(
                    "fsfreeze -u '{}'; fsfreeze -u '{}'",
                    stage.path("a").display(),
                    stage.path("b").display()
                ));
            }
            let agent = stage.start("agent");
            if is_thawed {
                // The kernel is asked: what the state file says is not so any more.
                assert_eq!(agent.status(), "thawed");
                let told = agent.thaw();
                assert!(told["error"]["desc"].as_str().unwrap_or_default().contains("the agent was killed"), "{told}");
            } else {
                assert_eq!(agent.status(), "frozen");
                assert_eq!(agent.thaw(), json!({"return": 2}));
            }
            stage.expect_writes("a");
            stage.expect_writes("b");
            agent.end("TERM");
        }
        let said = stage.lines("said");
        assert_eq!(said.iter().filter(|line| *line == "begin freeze").count(), 2);
        assert_eq!(said.iter().filter(|line| *line == "begin thaw").count(), 2, "{said:?}");
    });
}

/// A file system `c` on a file of `a`, with nothing to be written: while `a` is frozen by somebody else, a freeze of `c` hangs.
fn mount_on_a(stage: &Stage) {
    let at = stage.directory();
    shell(&format!(
        "cd '{at}'; mkdir c; truncate -s 3M a/c.img; mkfs.ext4 -qF a/c.img; mount -o loop a/c.img c; sync -f c; sync -f a"
    ));
}

fn unmount_from_a(stage: &Stage) {
    let at = stage.directory();
    succeeds(&format!("cd '{at}'; fsfreeze -u a; for again in 1 2 3; do fsfreeze -u c; done; umount c"));
}

/// Whether a thread of a process waits for a disk.
fn waits_for_a_disk(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    threads.into_iter().any(|thread| {
        std::fs::read_to_string(thread.path().join("stat"))
            .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D')))
    })
}

#[test]
fn a_guardian_stands_by_while_a_new_agent_asks_the_kernel_what_is_frozen() {
    in_namespace("a_guardian_stands_by_while_a_new_agent_asks_the_kernel_what_is_frozen", || {
        let stage = Stage::new("");
        mount_on_a(&stage);
        let (a, c) = (stage.path("a"), stage.path("c"));
        let agent = stage.start("agent");
        assert_eq!(agent.ask(&stage.freeze_request(&["c"])), json!({"return": 1}));
        for pid in guardians() {
            shell(&format!("kill -9 {pid}"));
        }
        agent.end("KILL");
        shell(&format!("fsfreeze -u '{}'; sync -f '{}'; fsfreeze -f '{}'", c.display(), c.display(), a.display()));
        // To ask is to freeze for a moment, and that hangs now.
        let agent = stage.start("agent");
        wait_until("the kernel is asked", || waits_for_a_disk(agent.pid()));
        assert_eq!(guardians().len(), 1, "{}", stage.log());
        // What the kernel has begun it ends, whatever becomes of the agent: the file system is frozen then.
        shell(&format!("kill -9 {}; fsfreeze -u '{}'", agent.pid(), a.display()));
        drop(agent);
        stage.expect_writes("c");
        unmount_from_a(&stage);
    });
}

#[test]
fn an_agent_answers_while_hooks_of_an_earlier_one_have_their_thaw() {
    in_namespace("an_agent_answers_while_hooks_of_an_earlier_one_have_their_thaw", || {
        for is_frozen_in_vain in [false, true] {
            let stage = Stage::new("");
            stage.hook("10-hook", HOOK);
            let agent = stage.start("agent");
            assert_eq!(agent.ask(&stage.freeze_request(&["a"])), json!({"return": 1}));
            // They wait for a sign, and not for a time.
            stage.hook(
                "10-hook",
                "at=$(dirname \"$0\")/..\n: > $at/at-work\nwhile [ ! -e $at/go ]; do sleep 0.02; done",
            );
            if is_frozen_in_vain {
                for pid in guardians() {
                    shell(&format!("kill -9 {pid}"));
                }
                agent.end("KILL");
                shell(&format!("fsfreeze -u '{}'", stage.path("a").display()));
            } else {
                let mut host = agent.connect();
                host.send(&json!({"execute": "guest-fsfreeze-thaw"}));
                wait_until("the hook is at work", || stage.path("at-work").exists());
                agent.end("KILL");
            }
            let agent = stage.start("agent");
            assert_eq!(agent.status(), "thawed");
            assert!(agent.call("guest-get-host-name")["return"].is_object());
            wait_until("the hook is at work", || stage.path("at-work").exists());
            assert_eq!(agent.status(), "thawed");
            let refused = agent.ask(&stage.freeze_request(&["a"]));
            let text = refused["error"]["desc"].as_str().unwrap_or_default();
            assert!(text.contains("still at work"), "{refused}");
            std::fs::write(stage.path("go"), "").unwrap();
            wait_until("freezes go on", || agent.ask(&stage.freeze_request(&["a"])) == json!({"return": 1}));
            assert_eq!(agent.thaw(), json!({"return": 1}));
        }
    });
}

#[test]
fn hooks_are_called_when_whoever_had_the_state_directory_is_killed_without_any_request() {
    in_namespace("hooks_are_called_when_whoever_had_the_state_directory_is_killed_without_any_request", || {
        let stage = Stage::new("");
        stage.hook("10-hook", HOOK);
        let agent = stage.start("agent");
        std::fs::write(stage.path("pace-freeze"), "0.3").unwrap();
        let mut host = agent.connect();
        host.send(&stage.freeze_request(&["a"]));
        kill_while(&stage, agent, "begin freeze");
        // In the place of a guardian that calls hooks.
        let script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint(1,flush=True)\nsys.stdin.read()";
        let mut owner = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(stage.path("state/qga.state.lock"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 holds the lock in this test");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(owner.stdout.take().unwrap()), &mut line).unwrap();
        let agent = stage.start("agent");
        assert_eq!(agent.status(), "thawed");
        assert_eq!(stage.lines("said").iter().filter(|line| line.ends_with("thaw")).count(), 0);
        owner.kill().unwrap();
        owner.wait().unwrap();
        wait_until("the hook has its thaw", || stage.lines("said").last().is_some_and(|last| last == "end thaw"));
        wait_until("nothing is left", || !stage.path("state/qga.state.isfrozen").exists());
        assert_eq!(agent.status(), "thawed");
    });
}

#[test]
fn a_late_freeze_is_waited_for_and_no_other_one_succeeds_meanwhile() {
    in_namespace("a_late_freeze_is_waited_for_and_no_other_one_succeeds_meanwhile", || {
        let stage = Stage::new("");
        mount_on_a(&stage);
        let agent = stage.start("agent");
        shell(&format!("fsfreeze -f '{}'", stage.path("a").display()));
        let mut host = agent.connect();
        host.send(&stage.freeze_request(&["c"]));
        wait_until("the freeze hangs", || waits_for_a_disk(agent.pid()));
        // It calls the freeze off, and says what is left of it.
        let thawed = agent.thaw();
        assert!(thawed["error"]["desc"].as_str().unwrap_or_default().contains("still held by a freeze"), "{thawed}");
        let given_up = host.reply().expect("the agent answers");
        assert!(given_up["error"]["desc"].as_str().unwrap_or_default().contains("given up"), "{given_up}");
        assert_eq!(agent.status(), "thawed");
        let threads = || std::fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it runs").count();
        let before = threads();
        // The kernel would say of it that it is frozen already, and the late thread would thaw it.
        for names in [&["c"][..], &["b"], &["b", "c"]] {
            for _ in 0..20 {
                let refused = agent.ask(&stage.freeze_request(names));
                let text = refused["error"]["desc"].as_str().unwrap_or_default();
                assert!(text.contains("still held by a freeze that was given up"), "{refused}");
            }
        }
        assert!(threads() <= before + 4, "from {before} to {} threads", threads());
        shell(&format!("fsfreeze -u '{}'", stage.path("a").display()));
        let all = stage.freeze_request(&["b", "c"]);
        wait_until("it is let go", || agent.ask(&all) == json!({"return": 2}));
        assert!(!stage.takes_writes("c"));
        assert_eq!(agent.thaw(), json!({"return": 2}));
        stage.expect_writes("c");
        unmount_from_a(&stage);
    });
}

#[test]
fn a_freeze_that_no_host_knew_of_is_not_taken_over_and_its_reason_is_true() {
    in_namespace("a_freeze_that_no_host_knew_of_is_not_taken_over_and_its_reason_is_true", || {
        let stage = Stage::new("");
        mount_on_a(&stage);
        let agent = stage.start("agent");
        shell(&format!("fsfreeze -f '{}'", stage.path("a").display()));
        let mut host = agent.connect();
        host.send(&stage.freeze_request(&["b", "c"]));
        wait_until("the freeze hangs", || waits_for_a_disk(agent.pid()));
        shell(&format!("kill -9 {}; fsfreeze -u '{}'", agent.pid(), stage.path("a").display()));
        drop(agent);
        let agent = stage.start("agent");
        wait_until("nobody guards it any more", || guardians().is_empty());
        wait_until("it is thawed", || agent.status() == "thawed");
        stage.expect_writes("b");
        stage.expect_writes("c");
        let told = agent.thaw();
        let text = told["error"]["desc"].as_str().unwrap_or_default();
        assert!(told["return"] == json!(0) || text.contains("because the agent was killed"), "{told}");
        unmount_from_a(&stage);
    });
}

/// Fedora's and RHEL's `SELinux` domain leaves the agent these capabilities.
#[test]
fn an_agent_with_few_capabilities_freezes_as_the_original_does_and_its_guardian_thaws() {
    const CONFINED: [&str; 2] = [
        "setpriv",
        "--bounding-set=-all,+sys_admin,+sys_time,+sys_tty_config,+chown,+dac_override,+dac_read_search,+fowner,+fsetid",
    ];
    const ORIGINAL: &str = "/usr/sbin/qemu-ga";
    in_namespace("an_agent_with_few_capabilities_freezes_as_the_original_does_and_its_guardian_thaws", || {
        let stage = Stage::new("");
        if std::path::Path::new(ORIGINAL).exists() {
            // It knows no directory of hooks in its configuration.
            std::fs::write(stage.path("agent.conf"), "").unwrap();
            let original = stage.start_behind(&CONFINED, ORIGINAL.as_ref(), "original");
            assert_eq!(original.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
            assert!(!stage.takes_writes("a"));
            assert_eq!(original.thaw(), json!({"return": 2}));
            stage.expect_writes("a");
            original.end("TERM");
            stage.configure("");
        } else {
            println!("skipped: the original is not here to be compared with");
        }
        stage.hook("10-hook", HOOK);
        let agent = stage.start_behind(&CONFINED, &Stage::ours(), "agent");
        assert_eq!(agent.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
        assert_eq!((agent.status(), guardians().len()), (json!("frozen"), 1));
        assert!(!stage.takes_writes("a") && !stage.takes_writes("b"));
        // Held without its mount, and thawed all the same.
        shell(&format!("umount -l '{}'", stage.path("b").display()));
        assert_eq!(agent.thaw(), json!({"return": 2}));
        stage.expect_writes("a");
        assert_eq!(agent.ask(&stage.freeze_request(&["a"])), json!({"return": 1}));
        agent.end("KILL");
        let agent = stage.start_behind(&CONFINED, &Stage::ours(), "agent");
        assert_eq!(agent.status(), "frozen");
        assert_eq!(agent.thaw(), json!({"return": 1}));
        stage.expect_writes("a");
        wait_until("the hook has had its thaw", || stage.lines("said").len() == 8);
        wait_until("no guardian is left", || guardians().is_empty());
    });
}
