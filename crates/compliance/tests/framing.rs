//! Where messages begin and end in the stream.

use std::thread::sleep;
use std::time::Duration;

use qga_compliance::{Agent, Subject, Tally, check};
use serde_json::json;

#[test]
fn framing() {
    check("framing");
}

#[test]
fn portions() {
    const REQUEST: &str = r#"{"execute":"guest-sync-delimited","arguments":{"id":12},"id":"\u00e9ü"}"#;
    let expected = json!({"return": 12, "id": "éü"});
    let subject = Subject::under_test();
    let mut tally = Tally::new("portions");
    let agent = Agent::start(&subject, &[]).expect("the agent starts");
    let mut host = agent.connect().expect("the agent answers");
    tally.case("a request sent byte by byte is answered", || {
        for byte in REQUEST.bytes() {
            host.send(&[byte])?;
            sleep(Duration::from_micros(200));
        }
        let reply = host.receive()?;
        if reply.json.as_ref() == Some(&expected) { Ok(()) } else { Err(reply.shown()) }
    });
    tally.case("a request cut in two at any place is answered", || {
        host.resynchronise()?;
        for cut in 1..REQUEST.len() {
            let (first, second) = REQUEST.as_bytes().split_at(cut);
            host.send(first)?;
            sleep(Duration::from_millis(1));
            host.send(second)?;
            let reply = host.receive()?;
            if reply.json.as_ref() != Some(&expected) {
                return Err(format!("cut at {cut}: {}", reply.shown()));
            }
        }
        Ok(())
    });
    tally.case("nothing comes before a request is complete", || {
        host.resynchronise()?;
        let (first, last) = REQUEST.as_bytes().split_at(REQUEST.len() - 1);
        host.send(first)?;
        match host.read_line(Duration::from_millis(100)) {
            Err(qga_compliance::ReadFailure::TimedOut(partial)) if partial.is_empty() => {}
            other => return Err(format!("{other:?}")),
        }
        host.send(last)?;
        let reply = host.receive()?;
        if reply.json.as_ref() == Some(&expected) { Ok(()) } else { Err(reply.shown()) }
    });
    tally.finish();
}
