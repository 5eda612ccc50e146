//! Bytes in, events out: the dialect, the limits and what an error costs.

use proptest::prelude::*;

use super::{Decoder, Event, Limits};

fn decode_with(decoder: &mut Decoder, mut input: &[u8]) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(event) = decoder.next(&mut input) {
        events.push(match event {
            Event::Request(request) => {
                format!("{} {}", request.name(), String::from_utf8_lossy(request.argument_values().text()))
            }
            Event::Refused(refusal) => refusal.desc,
        });
    }
    events
}

fn check(input: impl AsRef<[u8]>, expected: &[&str]) {
    let input = input.as_ref();
    let whole = decode_with(&mut Decoder::default(), input);
    assert_eq!(whole, expected, "{:?}", String::from_utf8_lossy(input));
    let mut decoder = Decoder::default();
    let bytewise: Vec<String> = input.iter().flat_map(|&byte| decode_with(&mut decoder, &[byte])).collect();
    assert_eq!(bytewise, expected, "byte by byte: {:?}", String::from_utf8_lossy(input));
}

const PING: &str = r#"{"execute":"guest-ping"}"#;

#[test]
fn requests_need_no_line_ends_and_no_blanks() {
    check(format!("{PING}{PING}\n\n  {PING}"), &["guest-ping {}"; 3]);
    check("{ \"execute\" :\t\"a\" ,\r\n\"arguments\":{'x' : [ 1 , true , null ]}}", &["a {'x':[1 ,true ,null ]}"]);
}

#[test]
fn a_reset_byte_drops_what_is_pending_and_costs_one_line() {
    let stray = "JSON parse error, stray '\u{FFFD}'";
    check([b"\xff", PING.as_bytes()].concat(), &[stray, "guest-ping {}"]);
    check([b"\xff\xff\xfe\xff", PING.as_bytes()].concat(), &[stray, "guest-ping {}"]);
    check([b"{\"execute\":[[\xff", PING.as_bytes()].concat(), &[stray, "guest-ping {}"]);
    check(
        [b"{\"execute\":\"guest-pi\xff", PING.as_bytes()].concat(),
        &["JSON parse error, stray '\"guest-pi\u{FFFD}'", "guest-ping {}"],
    );
}

#[test]
fn a_bad_line_costs_one_error_and_the_next_is_served() {
    let after = format!("\n{PING}");
    for (bad, error) in [
        (r#"{"execute":"guest-sync","arguments":{"id":01}}"#, "stray '01'"),
        (r#"{"a":[}"#, "expecting value"),
        ("{]", "expecting value"),
        ("[}", "expecting value"),
        ("}}}}", "expecting value"),
        ("[1,]", "expecting value"),
        ("[1 2]", "expected separator in list"),
        (r#"{"a":1 "b"}"#, "expected separator in dict"),
        (r#"{"a" 1}"#, "missing : in object pair"),
        ("{1:2}", "key is not a string in object"),
        (r#"{["a"]:1}"#, "key is not a string in object"),
        ("{a:1}", "invalid keyword 'a'"),
        (r#"{"id":0e5}"#, "expected separator in dict"),
        (r#"{"id":1-1}"#, "expected separator in dict"),
        (r#"{"id":1e400}"#, "number '1e400' is out of range"),
        (r#"{"a":{"b":1,"b":2}}"#, "duplicate key"),
        (r#"{"a":"\x"}"#, "invalid escape sequence in string"),
        (r#"{"a":"\ud83d"}"#, "\\ud83d is not a valid Unicode character"),
        (r#"{"a":"\u12"}"#, "\\u12\" is not a valid Unicode character"),
        (r#"{"a":"\u12zz"}"#, "\\u12zz is not a valid Unicode character"),
        (r#"{"a":"\ud83f\udfff"}"#, "\\ud83f\\udfff is not a valid Unicode character"),
        ("True", "stray 'T'"),
        ("-a", "stray '-a'"),
        ("# a comment", "stray '#'"),
    ] {
        check(format!("{bad}{after}"), &[&format!("JSON parse error, {error}"), "guest-ping {}"]);
    }
    check("12 ", &["QMP input must be a JSON object"]);
    check(b"{\"a\":\"\xc3\"}", &["JSON parse error, invalid UTF-8 sequence in string"]);
    check("a\nb\n", &["JSON parse error, invalid keyword 'a'", "JSON parse error, invalid keyword 'b'"]);
}

#[test]
fn an_envelope_that_is_wrong_says_so() {
    check("{}", &["QMP input lacks member 'execute'"]);
    check(r#"{"execute":1}"#, &["QMP input member 'execute' must be a string"]);
    check(r#"{"execute":"a","arguments":null}"#, &["QMP input member 'arguments' must be an object"]);
    check(r#"{"execute":"a","exec-oob":1}"#, &["QMP input member 'exec-oob' is unexpected"]);
}

#[test]
fn a_message_over_a_limit_is_skipped_to_the_end_of_its_line() {
    let limits = Limits { token_bytes: 100, tokens: 20, depth: 4 };
    let ping = r#"{"execute":"guest-ping"}"#;
    for (bad, error) in [
        ("[[[[[ {'execute':'a'} ]]]]]".to_owned(), "JSON nesting depth limit exceeded"),
        (format!("{{'a':'{}','b':{{'execute':'a'}}}}", "x".repeat(100)), "JSON token size limit exceeded"),
        (format!("[{}] {{'execute':'a'}}", "1,".repeat(10)), "JSON token count limit exceeded"),
    ] {
        let events = decode_with(&mut Decoder::new(limits), format!("{bad}\n{ping}").as_bytes());
        assert_eq!(events, [error, "guest-ping {}"]);
    }
    let mut decoder = Decoder::new(limits);
    let blanks = " ".repeat(10_000);
    assert_eq!(decode_with(&mut decoder, format!("[[[{blanks}1{blanks}2").as_bytes()), [""; 0]);
    assert!(decoder.buffered_bytes() < 10, "blanks are not kept");
}

#[test]
fn the_whole_depth_is_usable_and_no_more() {
    let nested = |levels: usize| format!("{{\"execute\":\"a\",\"id\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    check(nested(1023), &["a {}"]);
    check(nested(1024), &["JSON nesting depth limit exceeded"]);
}

proptest! {
    #[test]
    fn the_cut_into_portions_makes_no_difference(
        input in prop::collection::vec(
            prop_oneof![prop::sample::select(b"{}[]:,\"'\\ \n0123456789.eE+-truefalsn\xff\xc3\x00".to_vec()), any::<u8>()],
            0..200,
        ),
        cuts in prop::collection::vec(1_usize..20, 1..20),
    ) {
        let whole = decode_with(&mut Decoder::default(), &input);
        let mut decoder = Decoder::default();
        let (mut rest, mut cuts, mut events) = (&input[..], cuts.iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            events.extend(decode_with(&mut decoder, now));
            rest = later;
        }
        prop_assert_eq!(events, whole);
    }

    #[test]
    fn well_formed_json_is_taken_as_a_strict_parser_takes_it(text in ".*", number in any::<i64>()) {
        let message = serde_json::json!({"execute": "guest-x", "arguments": {"text": text, "list": [number]}});
        let line = message.to_string();
        let mut input = line.as_bytes();
        match Decoder::default().next(&mut input) {
            Some(Event::Request(request)) => {
                let members: Vec<_> = request.argument_values().members().collect();
                prop_assert_eq!(members.len(), 2);
                for (name, value) in members {
                    if name == "text" {
                        prop_assert_eq!(value.as_text().unwrap(), &*text);
                    } else {
                        prop_assert_eq!(value.elements().next().unwrap().as_i64(), Some(number));
                    }
                }
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
