//! Block and allow lists: which commands a host may use.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use qga_compliance::{Connection, Failure, deviation};
use serde_json::json;

use self::stage::{Cases, Stage, expect, until};

/// The commands that rows speak of, by letter, with a request whose answer tells whether it was let through.
const COMMANDS: [(char, &str, &str); 5] = [
    ('p', "guest-ping", r#"{"execute":"guest-ping"}"#),
    ('s', "guest-sync", r#"{"execute":"guest-sync","arguments":{"id":1}}"#),
    ('o', "guest-file-open", r#"{"execute":"guest-file-open","arguments":{"path":"/dev/null"}}"#),
    ('e', "guest-exec", r#"{"execute":"guest-exec","arguments":{"path":"/bin/true"}}"#),
    ('i', "guest-info", r#"{"execute":"guest-info"}"#),
];

/// The letters of the commands that are refused, on a connection that is not resynchronised.
fn refused(stage: &Stage, options: &str) -> Result<String, Failure> {
    let mut serving = stage.start(&format!("exec $agent {} {options}", stage::SOCKET))?;
    serving.wait_until_it_listens("socket")?;
    let mut host = stage.connect_to("socket")?;
    let mut letters = String::new();
    for (letter, name, request) in COMMANDS {
        let reply = host.ask(request)?;
        let start = format!("Command {name} has been disabled: the command is not allowed");
        match reply.error_text() {
            None => {}
            Some(text) if reply.error_class() == Some("CommandNotFound") && text.starts_with(&start) => {
                letters.push(letter);
            }
            Some(_) => return Err(reply.shown()),
        }
    }
    Ok(letters)
}

#[test]
fn lists() {
    // A name, the options, and the letters of the refused commands.
    let rows: &[(&str, &str, &str)] = &[
        ("without a list nothing is refused", "", ""),
        ("a blocked command is refused", "-b guest-exec", "e"),
        ("several blocked commands are refused", "-b guest-exec,guest-file-open", "oe"),
        ("block lists add up", "-b guest-exec -b guest-ping --block-rpcs=guest-sync", "pse"),
        ("an allow list refuses what it does not name", "-a guest-ping,guest-info", "soe"),
        ("allow lists add up", "-a guest-ping -a guest-exec", "soi"),
        ("block beats allow", "-a guest-ping,guest-exec,guest-sync -b guest-exec", "oei"),
        ("even the information can be blocked", "-b guest-info", "i"),
        ("even synchronisation can be blocked", "-b guest-sync,guest-sync-delimited", "s"),
        ("an empty block list blocks nothing", "-b ''", ""),
        ("an empty allow list is no allow list", "-a ''", ""),
        ("an empty allow list beside another changes nothing", "-a '' -a guest-ping", "soei"),
        ("an allow list of strangers refuses everything", "-a nobody-knows-this", "psoei"),
        ("a stranger in a block list changes nothing", "-b nobody-knows-this,guest-exec", "e"),
        ("an empty place in a list changes nothing", "-b ,guest-exec,,guest-ping,", "pe"),
        ("a name that is there twice changes nothing", "-b guest-exec,guest-exec", "e"),
        ("a name without its prefix is a stranger", "-b exec", ""),
        ("a command of another family changes nothing here", "-b guest-fstrim", ""),
    ];
    let mut cases = Cases::new("lists");
    for (name, options, letters) in rows {
        cases.case(name, |stage| {
            let found = refused(stage, options)?;
            expect(found == *letters, || format!("refused: {found}; expected: {letters}"))
        });
    }
    let mut deviating = |name: &str, options: &str, pick: fn(&Stage) -> &'static str| {
        cases.case(name, |stage| {
            let (found, letters) = (refused(stage, options)?, pick(stage));
            expect(found == letters, || format!("refused: {found}; expected: {letters}"))
        });
    };
    deviating("semicolons separate names", "-b 'guest-exec;guest-ping'", |stage| {
        deviation("semicolons separate names").pick(stage.kind, "", "pe")
    });
    deviating("blanks behind commas do not belong to names", "-b 'guest-exec, guest-ping'", |stage| {
        deviation("blanks behind commas do not belong to names").pick(stage.kind, "e", "pe")
    });
    deviating("blanks separate names", "-b 'guest-exec guest-ping'", |stage| {
        deviation("blanks separate names").pick(stage.kind, "", "pe")
    });
    deviating("semicolons separate allowed names", "-a 'guest-exec;guest-ping'", |stage| {
        deviation("semicolons separate allowed names").pick(stage.kind, "psoei", "soi")
    });
    cases.finish();
}

#[test]
fn lists_from_the_file() {
    let mut cases = Cases::new("lists from the file");
    let mut row = |name: &str, file: &str, options: &str, letters: &str| {
        cases.case(name, |stage| {
            stage.write("conf", format!("[general]\n{file}\n"))?;
            let found = refused(stage, &format!("-c $dir/conf {options}"))?;
            expect(found == letters, || format!("refused: {found}; expected: {letters}"))
        });
    };
    row("a block list of the file counts", "block-rpcs=guest-exec,guest-ping", "", "pe");
    row("an allow list of the file counts", "allow-rpcs=guest-ping,guest-info", "", "soe");
    row("the lists of file and command line block together", "block-rpcs=guest-exec", "-b guest-ping", "pe");
    row("the lists of file and command line allow together", "allow-rpcs=guest-exec", "-a guest-ping", "soi");
    row("an empty allow list of the file is no allow list", "allow-rpcs=", "", "");
    row(
        "a block list of the command line beats an allow list of the file",
        "allow-rpcs=guest-exec,guest-ping",
        "-b guest-exec",
        "soei",
    );
    cases.case("a block list by its old name counts", |stage| {
        stage.write("conf", "[general]\nblacklist=guest-exec\n")?;
        let found = refused(stage, "-c $dir/conf")?;
        let letters = deviation("a block list by its old name counts").pick(stage.kind, "", "e");
        expect(found == letters, || format!("refused: {found}; expected: {letters}"))
    });
    cases.finish();
}

#[test]
fn refusals() {
    let mut cases = Cases::new("refusals");
    let with_exec_blocked = |stage: &Stage, check: &dyn Fn(&mut Connection) -> Result<(), Failure>| {
        let serving = stage.serve("-b guest-exec")?;
        check(&mut serving.connect()?)
    };
    cases.case("a refused command is shown as disabled in the information", |stage| {
        with_exec_blocked(stage, &|host| {
            let reply = host.ask(r#"{"execute":"guest-info"}"#)?;
            let commands = reply.returned().map(|info| info["supported_commands"].clone()).unwrap_or_default();
            let commands = commands.as_array().cloned().unwrap_or_default();
            for (name, enabled) in [("guest-exec", false), ("guest-exec-status", true), ("guest-ping", true)] {
                let entry = json!({"name": name, "enabled": enabled, "success-response": true});
                expect(commands.contains(&entry), || format!("no such entry: {entry}"))?;
            }
            Ok(())
        })
    });
    cases.case("a refusal comes before a look at the arguments", |stage| {
        with_exec_blocked(stage, &|host| {
            let reply = host.ask(r#"{"execute":"guest-exec","arguments":{"nonsense":1}}"#)?;
            expect(reply.error_class() == Some("CommandNotFound"), || reply.shown())
        })
    });
    cases.case("a refusal comes after a look at the envelope", |stage| {
        with_exec_blocked(stage, &|host| {
            let reply = host.ask(r#"{"execute":"guest-exec","arguments":[]}"#)?;
            expect(reply.error_class() == Some("GenericError"), || reply.shown())
        })
    });
    cases.case("a refusal echoes the id", |stage| {
        with_exec_blocked(stage, &|host| {
            let reply = host.ask(r#"{"execute":"guest-exec","id":[1]}"#)?;
            let id = reply.json.as_ref().and_then(|json| json.get("id")).cloned();
            expect(id == Some(json!([1])), || reply.shown())
        })
    });
    cases.case("a refusal tells which list is the cause", |stage| {
        with_exec_blocked(stage, &|host| {
            let reply = host.ask(r#"{"execute":"guest-exec"}"#)?;
            let choice = deviation("a refusal tells which list is the cause");
            let told = choice.pick(stage.kind, false, true);
            let text = reply.error_text().unwrap_or_default();
            expect(text.contains("block-rpcs") == told, || reply.shown())
        })
    });
    cases.case("a mistyped name in a block list does not let the command through", |stage| {
        let choice = deviation("a mistyped name in a block list does not let the command through");
        if choice.pick(stage.kind, true, false) {
            let found = refused(stage, "-b guest-exce")?;
            return expect(found.is_empty(), || format!("refused: {found}"));
        }
        let line = format!("exec $agent {} -b guest-exce", stage::SOCKET);
        stage.run(&line)?.check(1, &[], &["guest-exce", "did you mean 'guest-exec'?"])
    });
    cases.case("a name in capitals does not let the command through", |stage| {
        let choice = deviation("a name in capitals does not let the command through");
        if choice.pick(stage.kind, true, false) {
            let found = refused(stage, "-b GUEST-EXEC")?;
            return expect(found.is_empty(), || format!("refused: {found}"));
        }
        let line = format!("exec $agent {} -b GUEST-EXEC", stage::SOCKET);
        stage.run(&line)?.check(1, &[], &["GUEST-EXEC", "did you mean 'guest-exec'?"])
    });
    cases.case("a stranger in a list is warned about", |stage| {
        let serving = stage.serve("-b nobody-knows-this")?;
        let warned = deviation("a stranger in a list is warned about").pick(stage.kind, false, true);
        if warned {
            return until("it does not warn", || Ok(serving.said().contains("nobody-knows-this").then_some(())));
        }
        expect(!serving.said().contains("nobody-knows-this"), || serving.said())
    });
    cases.case("an empty allow list is warned about", |stage| {
        let serving = stage.serve("-a ''")?;
        let warned = deviation("an empty allow list is warned about").pick(stage.kind, false, true);
        if warned {
            return until("it does not warn", || Ok(serving.said().contains("empty list").then_some(())));
        }
        expect(!serving.said().contains("empty list"), || serving.said())
    });
    cases.finish();
}
