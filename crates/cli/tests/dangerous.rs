//! Commands that change a guest for good, with an agent that only writes them down.

mod stage;

use serde_json::{Value, json};
use stage::scripted::{Answer, Scripted};
use stage::{Ended, run, run_with_input, start, wait};

/// The command is refused without `--yes`, and with it the agent is called like this.
fn check(arguments: &[&str], command: &str, expected: &Value) {
    let agent = Scripted::start();
    run(&agent.target(), arguments).failed(64, "--yes");
    assert_eq!(agent.acts(), [""; 0]);
    let ended = run(&agent.target(), [&["--yes"], arguments].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(agent.arguments(command), *expected, "{arguments:?}");
}

#[test]
fn what_cannot_be_taken_back_is_asked_for() {
    check(&["shutdown"], "guest-shutdown", &Value::Null);
    check(&["reboot"], "guest-shutdown", &json!({ "mode": "reboot" }));
    check(&["halt"], "guest-shutdown", &json!({ "mode": "halt" }));
    check(&["suspend"], "guest-suspend-ram", &Value::Null);
    check(&["suspend", "disk"], "guest-suspend-disk", &Value::Null);
    check(&["suspend", "hybrid"], "guest-suspend-hybrid", &Value::Null);
    check(&["call", "guest-shutdown", "--mode", "reboot"], "guest-shutdown", &json!({ "mode": "reboot" }));
}

#[test]
fn messages_and_keys_that_take_something_away_are_asked_for() {
    check(&["raw", r#"{"execute": "guest-fstrim"}"#], "guest-fstrim", &Value::Null);
    let key = "ssh-ed25519 AAAA me";
    let expected = json!({ "username": "u", "keys": [key], "reset": true });
    check(&["ssh-key", "add", "--reset", "u", key], "guest-ssh-add-authorized-keys", &expected);

    let agent = Scripted::start();
    let messages = b"{\"execute\": \"guest-ping\"}\n{\"execute\": \"guest-fsfreeze-freeze\"}\n";
    run_with_input(&agent.target(), ["raw"], messages).failed(64, "--yes");
    assert_eq!(agent.acts(), ["guest-ping"]);
    assert_eq!(run_with_input(&agent.target(), ["--yes", "raw"], messages).good(), "{\"return\":{}}\n{\"return\":2}\n");
}

#[test]
fn a_refusal_to_end_is_told() {
    let agent = Scripted::start().answering("guest-shutdown", Answer::Error("there is no way to shut down"));
    run(&agent.target(), ["--yes", "shutdown"]).failed(71, "there is no way to shut down");
}

#[test]
fn a_password_comes_from_standard_input_and_is_never_shown() {
    let agent = Scripted::start();
    let ended = run_with_input(&agent.target(), ["passwd", "--stdin", "root"], b"secret\n");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("secret") && !ended.text().contains("secret"));
    let arguments = agent.arguments("guest-set-user-password");
    assert_eq!(arguments, json!({ "username": "root", "password": "c2VjcmV0", "crypted": false }));

    run(&agent.target(), ["passwd", "--stdin", "root"]).failed(64, "no password on standard input");
    let on_the_line =
        ["--yes", "call", "guest-set-user-password", "--username=u", "--password=c2Vj", "--crypted=false"];
    run(&agent.target(), on_the_line).failed(64, "not written on the command line");
}

#[test]
fn the_clock_is_set_as_asked() {
    let clock = || Scripted::start().answering("guest-get-time", Answer::Value(json!(1_000_000_000_i64)));
    let set = |arguments: &[&str]| -> (Scripted, Ended) {
        let agent = clock();
        let ended = run(&agent.target(), [&["--yes", "time"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        (agent, ended)
    };
    let (agent, _) = set(&["--set", "2026-05-01T12:00:00+02:00"]);
    assert_eq!(agent.arguments("guest-set-time"), json!({ "time": 1_777_629_600_000_000_000_i64 }));
    let (agent, _) = set(&["--from-hardware"]);
    assert_eq!(agent.arguments("guest-set-time"), json!({}));
    let (agent, _) = set(&["--sync"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let time = agent.arguments("guest-set-time")["time"].as_i64().unwrap();
    assert!(i128::from(time).abs_diff(now as i128) < 600_000_000_000, "{time}");
    let (agent, ended) = set(&[]);
    assert!(!agent.acts().contains(&"guest-set-time".to_owned()) && ended.text().contains("\t-"), "{ended:?}");
}

#[test]
fn processors_that_fail_are_named() {
    let agent = Scripted::start()
        .answering("guest-set-vcpus", Answer::Value(json!(3)))
        .answering("guest-get-vcpus", Answer::Value(json!([{ "logical-id": 0, "online": true }])));
    let ended = run(&agent.target(), ["--yes", "cpus", "--offline", "1,3", "--online", "2"]);
    assert_eq!(ended.text(), "0\tonline\t\n", "{ended:?}");
    let wanted = json!([
        { "logical-id": 2, "online": true }, { "logical-id": 1, "online": false }, { "logical-id": 3, "online": false },
    ]);
    assert_eq!(agent.arguments("guest-set-vcpus"), json!({ "vcpus": wanted }));
    let agent = agent.answering("guest-set-vcpus", Answer::Value(json!(0)));
    run(&agent.target(), ["--yes", "cpus", "--offline", "1"]).failed(71, "changed no processor");
}

#[test]
fn memory_blocks_that_fail_are_named() {
    let responses = json!([{ "phys-index": 4, "response": "success" }, { "phys-index": 5, "response": "operation-failed", "error-code": 16 }]);
    let agent = Scripted::start().answering("guest-set-memory-blocks", Answer::Value(responses));
    run(&agent.target(), ["--yes", "memory", "--offline", "4-5"]).failed(71, "block 5: the kernel refused (error 16)");
}

#[test]
fn a_trim_tells_what_was_given_back() {
    let paths = json!({ "paths": [{ "path": "/", "trimmed": 4096, "minimum": 0 }, { "path": "/boot", "error": "not supported" }] });
    let agent = Scripted::start().answering("guest-fstrim", Answer::Value(paths));
    assert_eq!(run(&agent.target(), ["trim"]).good(), "/\t4096\t\n/boot\t-\tnot supported\n");
    let failed = json!({ "paths": [{ "path": "/boot", "error": "not supported" }] });
    let agent = agent.answering("guest-fstrim", Answer::Value(failed));
    run(&agent.target(), ["trim", "--minimum", "65536"]).failed(71, "no file system could be trimmed");
    assert_eq!(agent.arguments("guest-fstrim"), json!({ "minimum": 65536 }));
}

#[test]
fn ssh_keys_are_added_and_removed() {
    let both = Answer::Value(json!({ "keys": ["ssh-ed25519 AAAA1 me@here", "ssh-ed25519 AAAA2 you@there"] }));
    let one = Answer::Value(json!({ "keys": ["ssh-ed25519 AAAA1 me@here"] }));
    let keys = Answer::in_turn([both.clone(), both.clone(), one, both]);
    let agent = Scripted::start().answering("guest-ssh-get-authorized-keys", keys);
    let target = agent.target();
    assert_eq!(run(&target, ["ssh-key", "ls", "u"]).good(), "ssh-ed25519 AAAA1 me@here\nssh-ed25519 AAAA2 you@there\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# mine\nssh-ed25519 AAAA3 file\n").unwrap();
    run(&target, ["ssh-key", "add", "u", file.path().to_str().unwrap()]).good();
    let expected = json!({ "username": "u", "keys": ["ssh-ed25519 AAAA3 file"] });
    assert_eq!(agent.arguments("guest-ssh-add-authorized-keys"), expected);
    run(&target, ["ssh-key", "rm", "u", "you@there"]).good();
    let expected = json!({ "username": "u", "keys": ["ssh-ed25519 AAAA2 you@there"] });
    assert_eq!(agent.arguments("guest-ssh-remove-authorized-keys"), expected);
    run(&target, ["ssh-key", "rm", "u", "nobody"]).failed(66, "no key has \"nobody\" in it");
    run(&target, ["ssh-key", "add", "u", "rubbish"]).failed(64, "is no public key");
    // The agent says that it is done, and the key is still there; a key that is not there; the same under another comment.
    run(&target, ["ssh-key", "rm", "u", "ssh-ed25519 AAAA2 other"]).failed(71, "still there");
    let expected = ["ssh-ed25519 AAAA2 other", "ssh-ed25519 AAAA2 you@there"];
    assert_eq!(agent.arguments("guest-ssh-remove-authorized-keys")["keys"], json!(expected));
    run(&target, ["ssh-key", "rm", "u", "ssh-ed25519 AAAA9 me@here"]).failed(66, "no key has");
    // Who has no file has no keys; who is not there is not.
    let none = Answer::Error("failed to read open '/home/u/.ssh/authorized_keys': No such file or directory");
    let agent = Scripted::start().answering("guest-ssh-get-authorized-keys", none);
    assert_eq!(run(&agent.target(), ["ssh-key", "ls", "u"]).good(), "");
    assert_eq!(run(&agent.target(), ["--json", "ssh-key", "ls", "u"]).json(), json!([]));
    let nobody = Scripted::start().answering("guest-ssh-get-authorized-keys", Answer::Error("User does not exist"));
    run(&nobody.target(), ["ssh-key", "ls", "u"]).failed(71, "does not exist");
}

#[test]
fn standard_input_is_the_same_for_every_guest() {
    let both = |command: &[&str], input: &[u8]| {
        let agents = [Scripted::start(), Scripted::start()];
        let targets = format!("{},{}", agents[0].target(), agents[1].target());
        (agents, run_with_input(&targets, [&["--yes"], command].concat(), input))
    };
    let password = ["call", "guest-set-user-password", "--username=u", "--password=@-", "--crypted=false"];
    let (agents, ended) = both(&password, b"s3cret\n");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for agent in &agents {
        assert_eq!(agent.arguments("guest-set-user-password")["password"], "czNjcmV0");
    }
    let (agents, ended) = both(&["call", "guest-file-write", "--handle=1", "--buf-b64=@-"], b"content");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for agent in &agents {
        assert_eq!(agent.arguments("guest-file-write")["buf-b64"], "Y29udGVudA==");
    }
    let (agents, ended) = both(&["raw"], b"{\"execute\": \"guest-ping\"}\n\n{\"execute\": \"guest-fstrim\"}\n");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for agent in &agents {
        assert_eq!(agent.acts(), ["guest-ping", "guest-fstrim"]);
    }
    // A secret that is none, and an input that is wanted twice.
    let (agents, ended) = both(&password, b"");
    ended.failed(64, "there is nothing in standard input");
    assert!(agents.iter().all(|agent| agent.acts().is_empty()));
    let twice = ["call", "guest-exec", "--path=x", "--arg=@-", "--input-data=@-", "--env=@-"];
    both(&twice, b"x").1.failed(64, "named more than once");
}

#[test]
fn an_agent_that_hangs_has_not_obeyed() {
    for (command, asked) in
        [("shutdown", "guest-shutdown"), ("reboot", "guest-shutdown"), ("suspend", "guest-suspend-ram")]
    {
        // It was well when it was synchronised with, and hangs since.
        let agent = Scripted::start().answering("guest-ping", Answer::Silence).answering(asked, Answer::Silence);
        run(&agent.target(), ["--timeout", "1", "--yes", command]).failed(75, "silent");
        assert_eq!(agent.calls(asked).len(), 0, "{command}");
    }
}

#[test]
fn what_became_of_a_guest_is_looked_at() {
    let asleep = || Scripted::start().answering("guest-suspend-ram", Answer::Silence);
    // It says nothing and goes on answering.
    let awake = asleep().answering("guest-suspend-hybrid", Answer::Silence);
    let patient = |command: &[&str]| start(&awake.target(), [&["--timeout", "20", "--yes"], command].concat());
    let both = [patient(&["suspend"]), patient(&["suspend", "hybrid"])];
    for child in both {
        wait(child).failed(71, "does not sleep");
    }

    // It says nothing any more.
    let silent = asleep().answering(
        "guest-sync-delimited",
        Answer::from_fn({
            let asked = std::sync::atomic::AtomicUsize::new(0);
            move |_| {
                if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                    Answer::Usual
                } else {
                    Answer::Silence
                }
            }
        }),
    );
    let ended = run(&silent.target(), ["--timeout", "20", "--yes", "--json", "suspend"]);
    assert_eq!(ended.json(), json!({ "accepted": true, "seen": "silent" }), "{ended:?}");

    let gone = Scripted::start();
    let ended = run(&gone.target(), ["--timeout", "20", "--yes", "--json", "shutdown"]);
    assert_eq!(ended.json(), json!({ "accepted": true, "seen": "gone" }), "{ended:?}");
    let going = Scripted::start().answering("guest-shutdown", Answer::Silence);
    let ended = run(&going.target(), ["--timeout", "20", "--yes", "--json", "shutdown"]);
    assert_eq!(ended.json(), json!({ "accepted": true, "seen": "answers" }), "{ended:?}");
}

#[test]
fn raw_says_what_came_and_ends_with_what_it_means() {
    let agent = Scripted::start().answering("guest-fstrim", Answer::Error("the disk is on fire"));
    let target = agent.target();
    let ended = run(&target, ["--yes", "raw", r#"{"execute": "guest-fstrim", "id": [7]}"#]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(71), ""), "{ended:?}");
    let expected = json!({ "error": { "class": "GenericError", "desc": "the disk is on fire" }, "id": [7] });
    assert_eq!(ended.json(), expected);
    let ended = run(&target, ["raw", r#"{"execute": "guest-ping", "id": "x"}"#]);
    assert_eq!(ended.json(), json!({ "return": {}, "id": "x" }));
    // The others are sent all the same.
    let messages = b"{\"execute\": \"guest-fstrim\"}\n{\"execute\": \"guest-ping\"}\n";
    let ended = run_with_input(&target, ["--yes", "raw"], messages);
    assert_eq!((ended.code, ended.text().lines().count()), (Some(71), 2), "{ended:?}");
    // A success that is not answered.
    let ended = run(&target, ["--yes", "raw", r#"{"execute": "guest-shutdown"}"#]);
    assert_eq!((ended.code, ended.text().as_str()), (Some(0), ""), "{ended:?}");
    run(&target, ["raw", r#"{"execute": "guest-ping", "control": {}}"#]).failed(64, "no member \"control\"");
}
