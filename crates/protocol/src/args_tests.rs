//! What is wrong with arguments, in the original's order and wording.

use crate::exec::Exec;
use crate::file::{Open, Seek, Whence};
use crate::message::Request;
use crate::stream::{Decoder, Event};

fn request(arguments: &str) -> Request {
    let text = format!(r#"{{"execute":"x","arguments":{arguments}}}"#);
    match Decoder::default().next(&mut text.as_bytes()) {
        Some(Event::Request(request)) => request,
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn seek(arguments: &str, expected: &str) {
    let error = request(arguments).arguments::<Seek>().map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), expected, "{arguments}");
}

#[track_caller]
fn exec(arguments: &str, expected: &str) {
    let error = request(arguments).arguments::<Exec<'_>>().map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), expected, "{arguments}");
}

#[test]
fn members_are_checked_in_the_order_of_the_schema() {
    seek("{}", "Parameter 'handle' is missing");
    seek(r#"{"whence":7.5,"offset":"a"}"#, "Parameter 'handle' is missing");
    seek(r#"{"whence":true,"offset":"a","handle":1}"#, "Invalid parameter type for 'offset', expected: integer");
    seek(r#"{"x":1,"handle":null}"#, "Invalid parameter type for 'handle', expected: integer");
    seek(r#"{"x":1,"handle":1,"offset":0,"whence":0}"#, "Parameter 'x' is unexpected");
}

#[test]
fn alternates_and_words_are_named() {
    let seek_to = |whence: &str| format!(r#"{{"handle":1,"offset":0,"whence":{whence}}}"#);
    for (whence, expected) in [
        ("null", "Invalid parameter type for 'whence', expected: GuestFileWhence"),
        ("true", "Invalid parameter type for 'whence', expected: GuestFileWhence"),
        ("[0]", "Invalid parameter type for 'whence', expected: GuestFileWhence"),
        ("{}", "Invalid parameter type for 'whence', expected: GuestFileWhence"),
        ("1.5", "Invalid parameter type for 'whence', expected: integer"),
        ("\"SET\"", "Parameter 'whence' does not accept value 'SET'"),
    ] {
        seek(&seek_to(whence), expected);
    }
    assert_eq!(request(&seek_to("7")).arguments::<Seek>().unwrap().whence, Whence::Number(7));
    exec(
        r#"{"path":"a","capture-output":1}"#,
        "Invalid parameter type for 'capture-output', expected: GuestExecCaptureOutput",
    );
    exec(r#"{"path":"a","capture-output":"all"}"#, "Parameter 'capture-output' does not accept value 'all'");
}

#[test]
fn elements_carry_their_index() {
    exec(r#"{"path":"a","arg":["b",1]}"#, "Invalid parameter type for 'arg[1]', expected: string");
    exec(r#"{"path":"a","arg":"b"}"#, "Invalid parameter type for 'arg', expected: array");
    exec(r#"{"path":1}"#, "Invalid parameter type for 'path', expected: string");
    exec(r#"{"path":"a","input-data":1}"#, "Invalid parameter type for 'input-data', expected: string");
    exec(r#"{"path":"a","input-data":null}"#, "Invalid parameter type for 'input-data', expected: string");
}

#[test]
fn optional_members_may_be_absent() {
    let request = request(r#"{"path":"/a\u00e9"}"#);
    let open: Open = request.arguments().unwrap();
    assert_eq!((open.path.as_str(), open.mode), ("/a\u{e9}", None));
}

#[test]
fn integers_are_whole_and_64_bit() {
    for bad in ["1.0", "1e3", "\"1\"", "true", "9223372036854775808", "[]"] {
        let arguments = format!(r#"{{"handle":{bad},"offset":0,"whence":0}}"#);
        seek(&arguments, "Invalid parameter type for 'handle', expected: integer");
    }
}
