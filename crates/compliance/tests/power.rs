//! Power, as far as it can be asked about without ending the machine that tests run on. The rest is shown in a virtual
//! machine.

#[allow(dead_code, reason = "each test file uses its own part of it")]
#[path = "lifecycle/stage.rs"]
mod stage;

use self::stage::{Cases, expect};

const COMMANDS: [&str; 4] = ["guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"];

#[test]
fn power() {
    let mut cases = Cases::new("power");
    cases.case("a list closes what ends or pauses the machine, and a refusal is answered", |stage| {
        let serving = stage.serve(&format!("-b {}", COMMANDS.join(",")))?;
        let mut host = serving.connect()?;
        for name in COMMANDS {
            let reply = host.ask(&format!(r#"{{"execute":"{name}"}}"#))?;
            let text = reply.error_text().unwrap_or_default();
            let expected = format!("Command {name} has been disabled: the command is not allowed");
            expect(reply.error_class() == Some("CommandNotFound") && text.starts_with(&expected), || reply.shown())?;
        }
        Ok(())
    });
    cases.finish();
}
