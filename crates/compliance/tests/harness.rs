//! The suite can fail: what a green run of all cases cannot show.

use std::collections::BTreeMap;

use qga_compliance::conversation::parse;
use qga_compliance::{Kind, Received};

#[track_caller]
fn check(expected: &str, reply: &str, fits: bool) {
    let text = format!("== a case\nguest-ping\n<- {expected}\n");
    let cases = parse("harness", &text);
    let expectation = &cases[0].steps[0].expected[0];
    let mut variables = BTreeMap::from([("pid".to_owned(), "17".to_owned())]);
    let bytes: Vec<u8> = reply.chars().map(|character| character as u8).collect();
    let outcome = expectation.check(&Received::new(bytes), &mut variables);
    assert_eq!(outcome.is_ok(), fits, "{expected} against {reply}: {outcome:?}");
}

#[test]
fn a_success_is_compared_member_by_member() {
    check(r#"ok {"a":1,"b":[]}"#, r#"{"return": {"b": [], "a": 1}}"#, true);
    check(r#"ok {"a":1}"#, r#"{"return": {"a": 2}}"#, false);
    check(r#"ok {"a":1}"#, r#"{"return": {"a": 1, "b": 2}}"#, false);
    check(r#"ok {"a":1,"b":2}"#, r#"{"return": {"a": 1}}"#, false);
    check("ok [1,2]", r#"{"return": [2, 1]}"#, false);
    check("ok [1]", r#"{"return": [1, 1]}"#, false);
    check(r#"ok {"a":false}"#, r#"{"return": {"a": true}}"#, false);
    check(r#"ok "1""#, r#"{"return": 1}"#, false);
    check("ok 1", r#"{"return": "1"}"#, false);
}

#[test]
fn the_envelope_of_a_reply_is_compared() {
    check("ok {}", r#"{"return": {}}"#, true);
    check("ok {}", r#"{"return": {}, "id": 1}"#, false);
    check("ok {}", r#"{"return": {}, "extra": 1}"#, false);
    check("ok {}", r#"{"error": {"class": "GenericError", "desc": "x"}}"#, false);
    check("ok {}", "not JSON", false);
    check("id 1 ok {}", r#"{"return": {}}"#, false);
    check("id 1 ok {}", r#"{"return": {}, "id": 2}"#, false);
    check("id 1 ok {}", r#"{"return": {}, "id": 1}"#, true);
    check("sentinel ok 5", r#"{"return": 5}"#, false);
    check("sentinel ok 5", "\u{ff}{\"return\": 5}", true);
    check("ok 5", "\u{ff}{\"return\": 5}", false);
    check("shorter than 20 bytes ok {}", r#"{"return": {}}"#, true);
    check("shorter than 10 bytes ok {}", r#"{"return": {}}"#, false);
}

#[test]
fn an_error_is_compared_by_class_and_text() {
    let reply = r#"{"error": {"class": "GenericError", "desc": "one two"}}"#;
    check("error GenericError: one two", reply, true);
    check("error GenericError: one", reply, false);
    check("error GenericError ~ two", reply, true);
    check("error GenericError ~ three", reply, false);
    check("error CommandNotFound: one two", reply, false);
    check("error GenericError: x", r#"{"error": {"class": "GenericError"}}"#, false);
    check("error GenericError: x", r#"{"error": {"class": "GenericError", "desc": "x", "data": 1}}"#, false);
    check("error GenericError: x", r#"{"return": {}}"#, false);
}

#[test]
fn wildcards_and_variables_match_their_kind() {
    check(r#"ok {"pid":"<integer>"}"#, r#"{"return": {"pid": 5}}"#, true);
    check(r#"ok {"pid":"<integer>"}"#, r#"{"return": {"pid": 5.5}}"#, false);
    check(r#"ok {"pid":"<string>"}"#, r#"{"return": {"pid": 5}}"#, false);
    check(r#"ok {"pid":"$pid"}"#, r#"{"return": {"pid": 17}}"#, true);
    check(r#"ok {"pid":"$pid"}"#, r#"{"return": {"pid": 18}}"#, false);
    check(r#"ok {"pid":"$unbound"}"#, r#"{"return": {"pid": 18}}"#, true);
    check(r#"ok {"pid":"$unbound"}"#, r#"{"return": {"pid": []}}"#, false);
    check(r#"ok "b64:hello""#, r#"{"return": "aGVsbG8="}"#, true);
    check(r#"ok "b64:hello""#, r#"{"return": "hello"}"#, false);
    check("error GenericError: PID $pid", r#"{"error": {"class": "GenericError", "desc": "PID 17"}}"#, true);
}

#[test]
fn a_line_is_compared_on_the_wire() {
    check(r#"line: {"return": 1.0}"#, r#"{"return": 1.0}"#, true);
    check(r#"line: {"return": 1.0}"#, r#"{"return": 1}"#, false);
    check("line ~ inf", r#"{"return": inf}"#, true);
}

#[test]
fn each_agent_sees_its_own_side_of_a_deviation() {
    let text = "== a case\n[ours] guest-ping\n<- ok {}\nguest-sync id=1\n<- [original] ok 1\n<- [ours] ok 2\n";
    let case = &parse("harness", text)[0];
    assert!(case.deviates());
    let (original, ours) = (case.seen_by(Kind::Original), case.seen_by(Kind::Ours));
    assert_eq!((original.steps.len(), ours.steps.len()), (1, 2));
    assert_ne!(original.steps[0].expected, ours.steps[1].expected);
    assert!(!parse("harness", "== a case\nguest-ping\n<- ok {}\n")[0].deviates());
}

#[test]
#[should_panic(expected = "harness.txt:3: not a line of a case")]
fn a_line_that_means_nothing_is_told_with_its_place() {
    let _ = parse("harness", "== a case\nguest-ping\nnonsense\n");
}
