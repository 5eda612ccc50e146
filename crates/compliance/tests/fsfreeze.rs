//! Freezing, as far as it can be asked about without freezing the machine that tests run on. The rest is shown in a
//! virtual machine.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use self::stage::{Cases, expect};

/// All that could freeze or thaw, closed, so that no mistake here can hold the machine.
const CLOSED: &str = "-b guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-fsfreeze-thaw";

#[test]
fn fsfreeze() {
    let mut cases = Cases::new("fsfreeze");
    cases.case("a machine that nobody has frozen is thawed", |stage| {
        let serving = stage.serve(CLOSED)?;
        let reply = serving.connect()?.ask(r#"{"execute":"guest-fsfreeze-status"}"#)?;
        expect(reply.returned() == Some(&serde_json::json!("thawed")), || reply.shown())
    });
    cases.case("the status of a freeze takes no arguments", |stage| {
        let serving = stage.serve(CLOSED)?;
        let reply = serving.connect()?.ask(r#"{"execute":"guest-fsfreeze-status","arguments":{"mountpoints":[]}}"#)?;
        expect(reply.error_text() == Some("Parameter 'mountpoints' is unexpected"), || reply.shown())
    });
    cases.case("a list closes freeze and thaw, and what is closed freezes nothing", |stage| {
        let serving = stage.serve(CLOSED)?;
        let mut host = serving.connect()?;
        for name in ["guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw"] {
            let reply = host.ask(&format!(r#"{{"execute":"{name}"}}"#))?;
            expect(reply.error_class() == Some("CommandNotFound"), || format!("{name}: {}", reply.shown()))?;
        }
        let reply = host.ask(r#"{"execute":"guest-fsfreeze-status"}"#)?;
        expect(reply.returned() == Some(&serde_json::json!("thawed")), || reply.shown())
    });
    cases.finish();
}
