//! Conversations as real clients hold them, written from what the clients' sources send, replayed word for word.
//!
//! One file a client in `cases/conversations/`, in the language of all cases. Unlike there, nothing is said between the
//! lines of a conversation: what the client does not send is not sent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use qga_compliance::conversation::{Action, Case, Step, arguments, parse};
use qga_compliance::place::run_there;
use qga_compliance::{Agent, Connection, Expectation, Failure, PATIENCE, Received, Subject, Tally};
use serde_json::{Value, json};

type Variables = BTreeMap<String, String>;

#[test]
fn libvirt() {
    replay("libvirt", &[]);
}

#[test]
fn proxmox() {
    replay("proxmox", &[]);
}

#[test]
fn kubevirt() {
    replay("kubevirt", &[]);
}

#[test]
fn ansible_libvirt() {
    replay("ansible_libvirt", &[]);
}

#[test]
fn ansible_proxmox() {
    replay("ansible_proxmox", &[]);
}

#[test]
fn qa_suite() {
    replay("qa_suite", &[]);
}

#[test]
fn qa_suite_blocked() {
    replay("qa_suite_blocked", &["-b", "guest-file-open,guest-info"]);
}

/// The libvirt plugin looks for whole entries in the list of commands: a further member would break it.
#[test]
fn ansible_capabilities() {
    let mut tally = Tally::new("capabilities that Ansible requires");
    tally.case("Ansible over libvirt finds the entries that it requires", || {
        let agent = Agent::start(&Subject::under_test(), &[])?;
        let reply = agent.connect()?.ask(r#"{"execute":"guest-info"}"#)?;
        let commands = reply.returned().map(|info| info["supported_commands"].clone()).unwrap_or_default();
        let commands = commands.as_array().cloned().unwrap_or_default();
        for name in [
            "guest-exec",
            "guest-exec-status",
            "guest-file-close",
            "guest-file-open",
            "guest-file-read",
            "guest-file-write",
        ] {
            let entry = json!({"enabled": true, "name": name, "success-response": true});
            if !commands.contains(&entry) {
                return Err(format!("no such entry: {entry}"));
            }
        }
        Ok(())
    });
    tally.finish();
}

#[test]
fn every_conversation_is_replayed() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded.rs")).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/conversations")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().replace(".txt", "");
        assert!(source.contains(&format!("replay(\"{name}\"")), "{name} is not replayed");
    }
}

fn replay(client: &str, options: &[&str]) {
    let table = format!("conversations/{client}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(format!("{table}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases = parse(&table, &text);
    let mut tally = Tally::new(&format!("conversations of {client}"));
    let subject = Subject::under_test();
    if subject.program().is_none() && !options.is_empty() {
        for case in &cases {
            tally.skip(&case.name, "the agent runs already and cannot be given options");
        }
        tally.finish();
        return;
    }
    let agent = Agent::start(&subject, options).unwrap_or_else(|failure| panic!("{failure}"));
    // A client has a directory of its own: all clients' conversations are held at the same time.
    let directory = if agent.is_local() {
        agent.directory().display().to_string()
    } else {
        format!("/tmp/qga-conversations-of-{client}")
    };
    let there = |script: String| agent.connect().and_then(|mut host| run_there(&mut host, &script));
    if !agent.is_local() {
        there(format!("rm -rf {directory}; mkdir {directory}")).unwrap_or_else(|failure| panic!("{failure}"));
    }
    for case in &cases {
        let conversation = || converse(&agent, case, &directory);
        tally.case(&case.name, || conversation().map_err(|failure| format!("cases/{table}.txt:{failure}")));
    }
    if !agent.is_local() {
        there(format!("rm -rf {directory}")).unwrap_or_else(|failure| panic!("{failure}"));
    }
    tally.finish();
}

/// Holds a conversation on a connection of its own.
fn converse(agent: &Agent, case: &Case, directory: &str) -> Result<(), Failure> {
    // A port that other clients have used may have their leftovers; a socket is new to each client.
    let mut host = if agent.is_local() { agent.connect_as_is()? } else { agent.connect()? };
    let mut variables = Variables::from([("dir".to_owned(), directory.to_owned())]);
    for step in &case.steps {
        take(&mut host, step, &mut variables).map_err(|failure| format!("{}: {failure}", step.line_number))?;
    }
    match host.replies_so_far()?.first() {
        None => Ok(()),
        Some(reply) => Err(format!("a reply too many: {}", reply.shown())),
    }
}

fn take(host: &mut Connection, step: &Step, variables: &mut Variables) -> Result<(), Failure> {
    match &step.action {
        Action::Send(text) => {
            host.send(&expand(text, variables)?)?;
            for expectation in &step.expected {
                compare(expectation, &host.receive()?, variables)?;
            }
            Ok(())
        }
        Action::AwaitExit(text) => {
            let text = String::from_utf8(expand(text, variables)?).map_err(|error| error.to_string())?;
            let request = json!({"execute": "guest-exec-status", "arguments": arguments(&text)?}).to_string();
            let started = Instant::now();
            let reply = loop {
                let reply = host.ask(&request)?;
                if reply.returned().is_none_or(|status| status["exited"] != Value::Bool(false)) {
                    break reply;
                }
                if started.elapsed() > PATIENCE {
                    return Err("the program does not end".to_owned());
                }
                thread::sleep(Duration::from_millis(5));
            };
            step.expected.iter().try_for_each(|expectation| compare(expectation, &reply, variables))
        }
        Action::Request(..) | Action::Script(..) => Err("a conversation has `->` and `await-exit` only".to_owned()),
    }
}

fn compare(expectation: &Expectation, reply: &Received, variables: &mut Variables) -> Result<(), Failure> {
    expectation
        .check(reply, variables)
        .map(drop)
        .map_err(|why| format!("{why}\nexpected: {}\ncame:     {}", expectation.shown(), reply.shown()))
}

/// `$name` is a variable's value, `‹ff›` a byte, `‹TEXT x COUNT›` a repetition in which `\n` stays an escape of JSON.
fn expand(text: &str, variables: &Variables) -> Result<Vec<u8>, Failure> {
    let mut text = text.to_owned();
    for (name, value) in variables.iter().rev() {
        text = text.replace(&format!("${name}"), value);
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('‹') {
        let (inside, after) = after.split_once('›').ok_or("`‹` without `›`")?;
        bytes.extend_from_slice(before.as_bytes());
        match inside.rsplit_once(" x ") {
            Some((repeated, count)) => {
                let count: usize = count.parse().map_err(|_| format!("no count in ‹{inside}›"))?;
                bytes.extend_from_slice(repeated.repeat(count).as_bytes());
            }
            None => bytes.push(u8::from_str_radix(inside, 16).map_err(|_| format!("no byte: ‹{inside}›"))?),
        }
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}
