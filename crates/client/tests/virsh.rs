//! The way through libvirt, with a script in virsh's place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use qga_client::{Agent, Kind, Virsh};
use serde_json::Value;

/// Notes how it was called, and answers as virsh does that reads its commands: with prompts and an echo.
const SCRIPT: &str = r#"#!/bin/sh
IFS= read -r request
printf '%s\n' "$*" >>"$0.arguments"
printf '%.120s\n' "$request" >>"$0.calls"
printf 'virsh # %s\n' "$request"
trap 'echo "virsh # "' EXIT
case $request in
*guest-ping*) echo '{"return": {}}'; echo ;;
*guest-file-open*) echo '{"return": 1000}' ;;
*guest-file-close*) echo '{"return": {}}' ;;
*guest-file-write*)
    size=$(printf %s "$request" | sed 's/.*"buf-b64":"//; s/".*//' | base64 -d | tee -a "$0.data" | wc -c)
    echo "{\"return\": {\"count\": $size, \"eof\": false}}" ;;
*guest-shutdown*)
    echo 'error: Guest agent is not responding: Guest agent disappeared while executing command' >&2 ;;
*guest-exec*)
    echo "error: internal error: unable to execute QEMU agent command 'guest-exec': Command guest-exec has been disabled: the command is not allowed" >&2 ;;
*guest-info*) echo 'garbage' ;;
*guest-get-users*) echo 'error: Requested operation is not valid: domain is not running' >&2 ;;
*domstate*) echo 'paused'; echo ;;
*)
    echo "error: failed to get domain 'web'" >&2
    echo "error: Domain not found: no domain with matching name 'web'" >&2 ;;
esac
"#;

/// One test: a script that is written while another thread starts programs may be refused as busy.
#[test]
fn calls_go_through_virsh_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("virsh");
    fs::write(&program, SCRIPT).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let silence = Duration::from_secs(7);
    let mut agent = Agent::over(Virsh::new(Some("test:///default"), "web", silence).with_program(&program));

    agent.sync().unwrap();
    agent.call_raw("guest-ping", Value::Null).unwrap();
    let calls = || fs::read_to_string(directory.path().join("virsh.calls")).unwrap();
    assert_eq!(calls(), "qemu-agent-command --timeout 7 --domain 'web' '{\"execute\":\"guest-ping\"}'\n");

    let content: Vec<u8> = (0..300_000_u32).map(|number| (number % 253) as u8).collect();
    agent.write_file("/x", &content).unwrap();
    assert!(fs::read(directory.path().join("virsh.data")).unwrap() == content);

    // All users of the host can read what is on a command line.
    let arguments = fs::read_to_string(directory.path().join("virsh.arguments")).unwrap();
    assert!(arguments.lines().all(|line| line == "--quiet --connect test:///default"), "{arguments}");

    agent.call_unanswered("guest-shutdown", Value::Null, Duration::from_secs(1)).unwrap();
    let mut kind = |command| agent.call_raw(command, Value::Null).unwrap_err().kind();
    assert_eq!(kind("guest-exec"), Kind::CommandRefused);
    assert_eq!(kind("guest-info"), Kind::NotUnderstood);
    assert_eq!(kind("guest-get-time"), Kind::NoSuchDomain);
    assert_eq!(kind("guest-get-users"), Kind::Paused, "libvirt says that it is not running");
    assert!(calls().ends_with("domstate --domain 'web'\n"), "{}", calls());

    let mut without = Agent::over(Virsh::new(None, "web", silence).with_program("/nonexistent/virsh"));
    let error = without.call_raw("guest-ping", Value::Null).unwrap_err();
    assert_eq!(error.kind(), Kind::NoTool);
    assert!(error.to_string().starts_with("cannot reach the agent of libvirt:web: "), "{error}");
}
