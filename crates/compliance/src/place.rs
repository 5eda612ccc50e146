//! Runs shell scripts where the agent is: here, or in another machine through the agent itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::connection::{Connection, PATIENCE};
use crate::tally::Failure;

/// Runs a script on this machine and returns what it printed.
pub fn run_here(script: &str, directory: &Path) -> Result<String, Failure> {
    // A script that waits for what never comes must not hang the suite.
    let patience_seconds = (3 * PATIENCE).as_secs().to_string();
    let output = Command::new("timeout")
        .args([patience_seconds.as_str(), "/bin/sh", "-c", script])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run sh: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("the script failed ({}): {script}\n{printed}{complaint}", output.status))
}

/// Runs a script in the agent's machine and returns what it printed.
pub fn run_there(connection: &mut Connection, script: &str) -> Result<String, Failure> {
    let request = json!({"execute": "guest-exec",
        "arguments": {"path": "/bin/sh", "arg": ["-c", script], "capture-output": true}});
    let reply = connection.ask(&request.to_string())?;
    let Some(pid) = reply.returned().and_then(|started| started.get("pid")).and_then(Value::as_i64) else {
        return Err(format!("cannot run a script in the agent's machine: {}", reply.shown()));
    };
    let started = Instant::now();
    loop {
        let query = json!({"execute": "guest-exec-status", "arguments": {"pid": pid}});
        let reply = connection.ask(&query.to_string())?;
        let Some(status) = reply.returned() else {
            return Err(format!("cannot run a script in the agent's machine: {}", reply.shown()));
        };
        if status.get("exited") == Some(&Value::Bool(true)) {
            let printed = output_of(status, "out-data");
            return if status.get("exitcode") == Some(&Value::from(0)) {
                Ok(printed)
            } else {
                let complaint = output_of(status, "err-data");
                Err(format!("the script failed: {script}\n{printed}{complaint}"))
            };
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("the script does not end: {script}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn output_of(status: &Value, member: &str) -> String {
    let encoded = status.get(member).and_then(Value::as_str).unwrap_or_default();
    let decoded = base64_simd::STANDARD.decode_to_vec(encoded.as_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&decoded).into_owned()
}
