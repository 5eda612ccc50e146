//! Holds the conversations of a table with the agent under test, and with its peer if there is one.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::connection::{Connection, PATIENCE};
use crate::conversation::{Action, Case, Step, arguments, parse};
use crate::escape::{Variables, to_bytes, to_text};
use crate::expectation::{Expectation, Received, Repeat};
use crate::pattern::shorten_text;
use crate::place;
use crate::subject::{Kind, Subject};
use crate::tally::{Failure, Tally};

/// Runs all cases of `cases/TABLE.txt`, each whatever became of the others.
///
/// # Panics
/// When a case fails or the table cannot be read.
pub fn check(table: &str) {
    check_with(table, &[]);
}

/// Like [`check`], against an agent started with options.
///
/// # Panics
/// When a case fails or the table cannot be read.
pub fn check_with(table: &str, options: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(format!("{table}.txt"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases = parse(table, &text);
    let mut tally = Tally::new(table);
    let subject = Subject::under_test();
    if subject.program().is_none() && !options.is_empty() {
        for case in &cases {
            tally.skip(&case.name, "the agent runs already and cannot be given options");
        }
        tally.finish();
        return;
    }
    let mut host = Host::start(&subject, options);
    let mut peer = Subject::peer().map(|peer| Host::start(&peer, options));
    for case in &cases {
        if let Some(reason) = case.needs_program.as_ref().filter(|_| subject.program().is_none()) {
            tally.skip(&case.name, reason);
            continue;
        }
        let outcome = host.hold(table, case);
        let outcome = match &mut peer {
            None => outcome.map(drop),
            Some(peer) => {
                let answers_of_peer = peer.hold(table, case).map_err(|why| format!("the peer: {why}"));
                outcome.and_then(|answers| answers_of_peer.and_then(|others| compare(case, &answers, &others)))
            }
        };
        tally.record(&case.name, outcome);
    }
    tally.finish();
}

fn compare(case: &Case, answers: &[Value], others: &[Value]) -> Result<(), Failure> {
    if case.deviates() || answers == others {
        return Ok(());
    }
    let differing = answers.iter().zip(others).find(|(answer, other)| answer != other);
    let (answer, other) =
        differing.map_or((json!(answers.len()), json!(others.len())), |(a, b)| (a.clone(), b.clone()));
    let (answer, other) = (shorten_text(&answer.to_string()), shorten_text(&other.to_string()));
    Err(format!("the two agents differ\nagent under test: {answer}\npeer:             {other}"))
}

/// The host's side: an agent and the connection to it.
struct Host {
    agent: Agent,
    connection: Option<Connection>,
    case_count: usize,
}

impl Host {
    fn start(subject: &Subject, options: &[&str]) -> Self {
        let agent = Agent::start(subject, options).unwrap_or_else(|failure| panic!("{failure}"));
        Self { agent, connection: None, case_count: 0 }
    }

    /// Holds one conversation; returns the replies with their changeable parts masked.
    fn hold(&mut self, table: &str, case: &Case) -> Result<Vec<Value>, Failure> {
        self.agent.revive()?;
        let kind = self.agent.kind();
        if case.deviates() {
            assert!(
                case.seen_by(Kind::Original) != case.seen_by(Kind::Ours),
                "`{}` expects the same of both: it deviates no more",
                case.name
            );
        }
        if case.needs_fresh_agent {
            self.begin_anew()?;
        }
        let outcome = self.converse(table, &case.seen_by(kind));
        if case.needs_fresh_agent {
            self.begin_anew()?;
        }
        if outcome.is_err() {
            // The next case begins on a connection that knows nothing of this one.
            self.connection = None;
        }
        outcome.map_err(|failure| match self.agent.ended() {
            None => failure,
            Some(status) => format!("{failure}\nthe agent ended ({status}); it said: {}", self.agent.output()),
        })
    }

    fn begin_anew(&mut self) -> Result<(), Failure> {
        self.connection = None;
        self.agent.restart(Signal::TERM)
    }

    fn converse(&mut self, table: &str, case: &Case) -> Result<Vec<Value>, Failure> {
        match &mut self.connection {
            Some(connection) => connection.resynchronise()?,
            None => self.connection = Some(self.agent.connect()?),
        }
        let mut variables = Variables::new();
        self.case_count += 1;
        self.give_directory(case, &mut variables)?;
        let mut answers = Vec::new();
        for step in &case.steps {
            self.take(step, &mut variables, &mut answers)
                .map_err(|failure| format!("cases/{table}.txt:{}: {failure}", step.line_number))?;
        }
        self.remove_directory(&variables);
        Ok(answers)
    }

    fn take(&mut self, step: &Step, variables: &mut Variables, answers: &mut Vec<Value>) -> Result<(), Failure> {
        let Some(connection) = &mut self.connection else { return Err("not connected".to_owned()) };
        match &step.action {
            Action::Script(script, printed) => {
                let found = run_script(&self.agent, connection, &to_text(script, variables), variables)?;
                match printed {
                    Some(printed) if to_text(printed, variables).trim_end() != found.trim_end() => {
                        Err(format!("the script printed:\n{}", shorten_text(&found)))
                    }
                    _ => Ok(()),
                }
            }
            Action::Send(bytes) => {
                connection.send(&to_bytes(bytes, variables))?;
                collect(connection, &step.expected, variables, answers)
            }
            Action::Request(command, text) => {
                connection.send(&request(command, text, variables)?)?;
                collect(connection, &step.expected, variables, answers)
            }
            Action::AwaitExit(text) => {
                let query = request("guest-exec-status", text, variables)?;
                let reply = await_exit(connection, &query)?;
                match step.expected.as_slice() {
                    [expectation] => {
                        answers.push(compare_reply(expectation, &reply, variables)?);
                        Ok(())
                    }
                    _ => Err("`await-exit` is followed by one reply".to_owned()),
                }
            }
        }
    }

    fn give_directory(&mut self, case: &Case, variables: &mut Variables) -> Result<(), Failure> {
        let mentions_directory = case.steps.iter().any(|step| match &step.action {
            Action::Script(..) => true,
            Action::Send(text) | Action::Request(_, text) | Action::AwaitExit(text) => text.contains("$dir"),
        });
        if !mentions_directory {
            return Ok(());
        }
        let directory = if self.agent.is_local() {
            let directory = self.agent.directory().join(format!("case{}", self.case_count));
            std::fs::create_dir(&directory).map_err(|error| format!("no directory: {error}"))?;
            directory.display().to_string()
        } else {
            let Some(connection) = &mut self.connection else { return Err("not connected".to_owned()) };
            place::run_there(connection, "mktemp -d /tmp/qga-compliance-XXXXXX")?.trim_end().to_owned()
        };
        variables.insert("dir".to_owned(), directory);
        Ok(())
    }

    /// Here the directory goes with the agent's.
    fn remove_directory(&mut self, variables: &Variables) {
        let Some(connection) = &mut self.connection else { return };
        if let Some(directory) = variables.get("dir").filter(|_| !self.agent.is_local()) {
            let _ = place::run_there(connection, &format!("rm -rf '{directory}'"));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The original ends when a client leaves replies unread; a borrowed one must live on.
        if let Some(connection) = &mut self.connection {
            let _ = connection.resynchronise();
        }
    }
}

fn run_script(
    agent: &Agent,
    connection: &mut Connection,
    script: &str,
    variables: &Variables,
) -> Result<String, Failure> {
    let directory = variables.get("dir").map_or("/", String::as_str);
    if agent.is_local() {
        place::run_here(script, Path::new(directory))
    } else {
        place::run_there(connection, &format!("cd '{directory}' && {{ {script}\n}}"))
    }
}

fn request(command: &str, text: &str, variables: &Variables) -> Result<Vec<u8>, Failure> {
    let mut members = arguments(&to_text(text, variables))?;
    for value in members.values_mut() {
        if let Some(plain) = value.as_str().and_then(|text| text.strip_prefix("b64:")) {
            *value = Value::from(base64_simd::STANDARD.encode_to_string(plain.as_bytes()));
        }
    }
    let message = json!({ "execute": command, "arguments": members });
    Ok(format!("{message}\n").into_bytes())
}

/// Takes the expected replies and makes sure that no other comes.
fn collect(
    connection: &mut Connection,
    expected: &[Expectation],
    variables: &mut Variables,
    answers: &mut Vec<Value>,
) -> Result<(), Failure> {
    // A synchronisation behind a slow command may overtake it, so it is sent when the expected replies are there.
    let fixed_count = expected.iter().map(|expectation| match expectation.repeat {
        Repeat::Times(count) => Some(count),
        Repeat::Many => None,
    });
    let mut replies = Vec::new();
    if let Some(count) = fixed_count.sum::<Option<usize>>() {
        for _ in 0..count {
            let reply = connection.receive().map_err(|failure| incomplete(&failure, &replies, expected))?;
            replies.push(reply);
        }
    }
    replies.extend(connection.replies_so_far().map_err(|failure| incomplete(&failure, &replies, expected))?);
    let mut rest = replies.as_slice();
    for expectation in expected {
        let wanted_count = match expectation.repeat {
            Repeat::Times(count) => count,
            Repeat::Many => {
                rest.iter().take_while(|reply| expectation.check(reply, &mut variables.clone()).is_ok()).count().max(1)
            }
        };
        for index in 0..wanted_count {
            let Some((reply, others)) = rest.split_first() else {
                return Err(incomplete("a reply is missing", &replies, expected));
            };
            let answer = compare_reply(expectation, reply, variables)?;
            // How many there are of `many` is left open, also between two agents.
            if index == 0 || expectation.repeat != Repeat::Many {
                answers.push(answer);
            }
            rest = others;
        }
    }
    match rest.first() {
        None => Ok(()),
        Some(reply) => Err(format!("{} replies too many, the first: {}", rest.len(), reply.shown())),
    }
}

fn incomplete(failure: &str, replies: &[Received], expected: &[Expectation]) -> Failure {
    let mut report = format!("{failure}\nexpected:");
    for expectation in expected {
        report.push_str("\n  ");
        report.push_str(&expectation.shown());
    }
    report.push_str("\ncame:");
    for reply in replies.iter().take(20) {
        report.push_str("\n  ");
        report.push_str(&reply.shown());
    }
    report
}

fn compare_reply(expectation: &Expectation, reply: &Received, variables: &mut Variables) -> Result<Value, Failure> {
    expectation
        .check(reply, variables)
        .map_err(|why| format!("{why}\nexpected: {}\ncame:     {}", expectation.shown(), reply.shown()))
}

fn await_exit(connection: &mut Connection, query: &[u8]) -> Result<Received, Failure> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        connection.send(query)?;
        let reply = connection.receive()?;
        let still_runs = reply.returned().is_some_and(|status| status.get("exited") == Some(&Value::Bool(false)));
        if !still_runs {
            return Ok(reply);
        }
        if started.elapsed() > PATIENCE {
            return Err("the program does not end".to_owned());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
