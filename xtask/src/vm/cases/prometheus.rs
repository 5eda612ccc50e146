//! The measurements of `qga metrics` in a real Prometheus, which asks for those of both agents.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Case;
use super::command_line::{output, qga};
use crate::packages;
use crate::vm::apt::{Archive, PrivateApt};
use crate::vm::conversation::patience;
use crate::vm::guest::Guest;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub const CASES: &[Case] = &[Case { name: "a_prometheus_has_the_measurements_of_both_agents", run: scraped }];

const CONFIGURATION: &str = "
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: guests
    static_configs:
      - targets: ['@ADDRESS@']
";

/// What both agents tell, with a number that is no accident.
const MEASURED: [&str; 7] = [
    "qga_up == 1",
    "qga_frozen == 0",
    "qga_memory_total_bytes > 500e6",
    "qga_uptime_seconds > 1",
    "qga_load1 >= 0",
    "sum by (target) (qga_cpu_seconds_total) > 1",
    "qga_filesystem_size_bytes{mountpoint=\"/\"} > 1e9",
];

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn scraped(guest: &mut Guest) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [prometheus, promtool] = programs(folder.path())?;
    let (ours, original) = (guest.our_agent(), guest.original_agent());
    let missing = guest.folder().join("no-such-socket");
    let targets = [&ours, &original, &missing].map(|path| path.display().to_string());
    let list = PathBuf::from(targets.join(","));
    check_format(&promtool, &output(&list, &["metrics"], 0)?)?;

    let mut child = qga(&list, &["metrics", "--listen", "127.0.0.1:0"])?.stderr(Stdio::piped()).spawn()?;
    let mut errors = BufReader::new(child.stderr.take().context("no standard error")?);
    let _exporter = Running(child);
    let mut said = String::new();
    errors.read_line(&mut said)?;
    let address = said.trim_end().strip_prefix("serving http://").and_then(|rest| rest.strip_suffix("/metrics"));
    let address = address.with_context(|| format!("it says {said:?}"))?;

    let configuration = folder.path().join("prometheus.yml");
    fs::write(&configuration, CONFIGURATION.replace("@ADDRESS@", address))?;
    let log = folder.path().join("log");
    let _server = Running(
        Command::new(prometheus)
            .arg("--config.file")
            .arg(&configuration)
            .arg("--storage.tsdb.path")
            .arg(folder.path().join("data"))
            .args(["--web.listen-address", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start prometheus")?,
    );
    let api = guest.wait_until("Prometheus listens", |_| Ok(listening_address(&fs::read_to_string(&log)?)))?;
    let told = guest.wait_until("Prometheus has asked", |_| {
        let values = query(&api, "up{job=\"guests\"}")?;
        Ok((!values.is_empty()).then_some(values))
    })?;
    ensure!(told.iter().all(|(_, value)| value == "1"), "Prometheus takes the page for broken: {told:?}");
    for question in MEASURED {
        let told = query(&api, question)?;
        for target in &targets[..2] {
            ensure!(told.iter().any(|(labels, _)| labels["target"] == *target), "{question} of {target}: {told:?}");
        }
    }
    let told = query(&api, "qga_failure == 1 and on (target) qga_up == 0")?;
    let [(labels, _)] = told.as_slice() else { anyhow::bail!("one target has failed: {told:?}") };
    ensure!(labels["target"] == targets[2].as_str() && labels["reason"] == "no-such-socket", "{labels}");
    Ok(())
}

/// Prometheus and its checker: those that are installed, else the package's, which starts no service then.
fn programs(folder: &Path) -> Result<[PathBuf; 2]> {
    const NAMES: [&str; 2] = ["prometheus", "promtool"];
    if NAMES.iter().all(|name| packages::is_installed(name)) {
        return Ok(NAMES.map(PathBuf::from));
    }
    let log = folder.join("apt.log");
    let apt = PrivateApt::new(&folder.join("apt"), &Archive::of_host()?, &log)?;
    let unpacked = folder.join("unpacked");
    apt.unpack("prometheus", None, &unpacked, &log)?;
    Ok(NAMES.map(|name| unpacked.join("usr/bin").join(name)))
}

/// The checker has nothing to say about the page.
fn check_format(promtool: &Path, page: &str) -> Result<()> {
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start promtool")?;
    check.stdin.take().context("no standard input")?.write_all(page.as_bytes())?;
    let result = check.wait_with_output()?;
    let said = String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).into_owned();
    ensure!(result.status.success() && said.is_empty(), "promtool ended with {}: {said}", result.status);
    Ok(())
}

/// Where Prometheus listens, once it has said so.
fn listening_address(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("msg=\"Listening on\""))?;
    line.split("address=").nth(1)?.split_whitespace().next().map(str::to_owned)
}

/// The labels and values that Prometheus has for an expression.
fn query(api: &str, expression: &str) -> Result<Vec<(Value, String)>> {
    let percent = |byte: u8| format!("%{byte:02X}");
    let encoded: String = expression.bytes().map(percent).collect();
    let mut stream = TcpStream::connect(api).with_context(|| format!("cannot connect to {api}"))?;
    stream.set_read_timeout(Some(patience()))?;
    // In this version a reply has no pieces, and ends with the connection.
    write!(stream, "GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (_, body) = reply.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {reply:?}"))?;
    let body: Value = serde_json::from_str(body).with_context(|| format!("no JSON: {body:?}"))?;
    ensure!(body["status"] == "success", "{expression}: {body}");
    let results = body["data"]["result"].as_array().with_context(|| format!("no results: {body}"))?;
    let value = |result: &Value| (result["metric"].clone(), result["value"][1].as_str().unwrap_or_default().to_owned());
    Ok(results.iter().map(value).collect())
}
