//! Freezes of real file systems, on loop devices in a mount namespace: what becomes of them when anything else happens.

#[allow(dead_code, reason = "not every test uses all of it")]
#[path = "freeze/stage.rs"]
mod stage;

use self::stage::{Stage, guardians, in_namespace, shell, succeeds};
use serde_json::json;

#[test]
fn what_is_frozen_can_be_unmounted_and_is_thawed_all_the_same() {
    in_namespace("what_is_frozen_can_be_unmounted_and_is_thawed_all_the_same", || {
        let stage = Stage::new("");
        let mut agent = stage.start("agent");
        assert_eq!(agent.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
        let (a, b) = (stage.path("a"), stage.path("b"));
        // What uses it is ended, as a test suite does before it unmounts: neither the agent nor the guardian does.
        succeeds(&format!("fuser -km '{}'", a.display()));
        shell(&format!("umount '{}'", a.display()));
        assert!(agent.is_running(), "{}", stage.log());
        assert_eq!(guardians().len(), 1);
        assert_eq!(agent.status(), "frozen");
        assert_eq!(agent.thaw(), json!({"return": 2}));
        let again = format!("mount -o loop '{}' '{}'", stage.path("a.img").display(), a.display());
        shell(&again);
        stage.expect_writes("a");
        stage.expect_writes("b");

        // The same with an agent that is killed after the file system was unmounted.
        assert_eq!(agent.ask(&stage.freeze_request(&["a", "b"])), json!({"return": 2}));
        shell(&format!("umount '{}'; umount '{}'", a.display(), b.display()));
        agent.end("KILL");
        let agent = stage.start("agent");
        assert_eq!(agent.status(), "frozen");
        assert_eq!(agent.thaw(), json!({"return": 2}));
        shell(&again);
        stage.expect_writes("a");
    });
}
