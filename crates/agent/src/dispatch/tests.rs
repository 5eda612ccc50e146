//! What holds for all commands: an answer to each, whatever it does.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use qga_protocol::Command;
use qga_protocol::Info;
use qga_protocol::message::{ErrorClass, Request};
use qga_protocol::session::Ping;
use qga_protocol::stream::{Decoder, Event};

use super::{Error, ReplyWriter, serve};
use crate::agent::Agent;
use crate::dispatch::answer::Answer;
use crate::dispatch::handler::Entry;
use crate::freeze::{Freezer, freezer};
use crate::process::client_programs::Programs;
use crate::startup::policy::Policy;
use crate::system::root::Root;
use crate::system::state_directory::{State, frozen_marker};
use crate::transport::Link;
use crate::transport::line_writer::LineWriter;

/// An agent with nobody but us to talk to, and our end of the talk.
fn agent() -> (Agent, ReplyWriter, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let state = State::open(directory.path()).unwrap();
    let (theirs, ours) = UnixStream::pair().unwrap();
    let replies = LineWriter::new(Arc::new(Link::from(theirs))).reply_writer();
    let settings = freezer::Settings::of_recorded(frozen_marker(directory.path()));
    let freezer = Freezer::new(settings, &Root::at(directory.path()));
    (Agent::new(Policy::default(), state, Programs::default(), freezer), replies, ours)
}

/// Answers a request as a session does.
fn answer(agent: &Agent, request: &Request, replies: &ReplyWriter) {
    super::answer(agent, crate::commands::find(&request.name()), request, replies);
}

fn request(text: &str) -> Request {
    match Decoder::default().next(&mut text.as_bytes()) {
        Some(Event::Request(request)) => request,
        other => panic!("{text}: {other:?}"),
    }
}

/// Everything that was written until the reply writer was dropped.
fn heard(replies: ReplyWriter, mut ours: UnixStream) -> String {
    drop(replies);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_panicking_command_answers_an_error_and_the_next_one_is_served() {
    let (agent, replies, ours) = agent();
    let entry = Entry { info: &Ping::INFO, serve: |_, _, _| panic!("on purpose"), is_immediate: |_, _| true };
    let request = request(r#"{"execute":"guest-ping","id":1}"#);
    let error = serve(&agent, &entry, &request, &replies).unwrap_err();
    assert_eq!(error.desc, "guest-ping failed inside the agent: on purpose");
    answer(&agent, &request, &replies);
    assert_eq!(heard(replies, ours), "{\"return\": {}, \"id\": 1}\n");
}

#[test]
fn a_command_that_fails_in_the_middle_of_its_reply_leaves_the_next_line_whole() {
    let (agent, replies, ours) = agent();
    let serve_half = |_: &Request, _: &super::Call<'_>, mut answer: Answer<'_>| {
        answer.piece().extend_from_slice(b"{\"return\": \"abc");
        answer.send_piece();
        Err(Error::new("gone wrong"))
    };
    let entry = Entry { info: &Ping::INFO, serve: serve_half, is_immediate: |_, _| true };
    let request = request(r#"{"execute":"guest-ping"}"#);
    let error = serve(&agent, &entry, &request, &replies).unwrap_err();
    replies.send_error(error.class, &error.desc, None);
    assert_eq!(
        heard(replies, ours),
        "{\"return\": \"abc\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"gone wrong\"}}\n"
    );
}

#[test]
fn a_silenced_reply_writer_is_not_heard_and_another_one_ends_its_line() {
    let (_agent, first, ours) = agent();
    let second = first.sibling();
    let mut answer = Answer::new(&first, None, false, true);
    answer.piece().extend_from_slice(b"half");
    assert!(answer.send_piece());
    first.silence();
    answer.piece().extend_from_slice(b"more");
    assert!(!answer.send_piece());
    assert!(second.send_error(ErrorClass::GenericError, "7", None));
    drop(first);
    assert_eq!(heard(second, ours), "half\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"7\"}}\n");
}

#[test]
fn a_command_whose_success_is_not_answered_says_nothing() {
    const SILENT: Info = {
        let mut info = Ping::INFO;
        info.rules.success_response = false;
        info
    };
    let (agent, replies, ours) = agent();
    let entry = Entry {
        is_immediate: |_, _| true,
        info: &SILENT,
        serve: |_, call, answer| {
            answer.send(qga_protocol::Nothing {}.into(), call);
            Ok(())
        },
    };
    serve(&agent, &entry, &request(r#"{"execute":"guest-ping"}"#), &replies).unwrap();
    assert_eq!(heard(replies, ours), "");
}

#[test]
fn an_unknown_command_is_named_and_a_blocked_one_says_why() {
    let (mut agent, replies, ours) = agent();
    let list = crate::startup::config::Given {
        text: "guest-ping".to_owned(),
        origin: crate::startup::config::Origin::Option("-b".to_owned()),
    };
    agent.policy = Policy::from_lists(&[], &[list], &mut Vec::new()).unwrap();
    answer(&agent, &request(r#"{"execute":"guest-nope"}"#), &replies);
    answer(&agent, &request(r#"{"execute":"guest-ping"}"#), &replies);
    let heard = heard(replies, ours);
    let lines: Vec<&str> = heard.lines().collect();
    assert!(lines[0].contains("CommandNotFound") && lines[0].contains("The command guest-nope has not been found"));
    assert!(lines[1].contains("the command is not allowed (blocked by block-rpcs)"), "{}", lines[1]);
}
