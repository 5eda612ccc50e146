//! The page of `qga metrics`: every line as Prometheus wants it, and guests that come and go while it is served.

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::json;
use stage::scripted::{Answer, Scripted};
use stage::{Guest, command, run};

/// A sample: its metric, its labels as they stand there, its value.
type Sample = (String, String, f64);

/// The samples of a page; anything that Prometheus would not take fails.
fn read(page: &str) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut helped, mut current) = (BTreeSet::new(), "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            assert!(helped.insert(name) && !help.is_empty(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert!(helped.contains(name) && kinds.insert(name, kind).is_none(), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            current = name;
        } else {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert_eq!(name, current, "a sample stands apart from its type");
            let labels = labels(&line[name.len()..]);
            let value = line[name.len() + labels.len()..].trim().parse().unwrap_or_else(|_| panic!("{line}"));
            samples.push((name.to_owned(), labels.to_owned(), value));
        }
    }
    let series: BTreeSet<_> = samples.iter().map(|(name, labels, _)| (name, labels)).collect();
    assert_eq!(series.len(), samples.len(), "a series stands twice");
    samples
}

/// The labels at the start of a text, braces included.
fn labels(text: &str) -> &str {
    if !text.starts_with('{') {
        return "";
    }
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => {
                assert!(['\\', '"', 'n'].contains(&c), "\\{c} in {text}");
                is_escaped = false;
            }
            '\\' => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '}' if !is_quoted => return &text[..=at],
            _ => {}
        }
    }
    panic!("labels without an end: {text}")
}

/// What `qga metrics --listen` serves.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(target: &str) -> Self {
        let mut child = command()
            .args(["-t", target, "--timeout", "20", "metrics", "--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("qga starts");
        let mut said = String::new();
        BufReader::new(child.stderr.as_mut().expect("a pipe")).read_line(&mut said).expect("a line");
        let address = said.trim().strip_prefix("serving http://").and_then(|rest| rest.strip_suffix("/metrics"));
        let address = address.unwrap_or_else(|| panic!("{said:?}")).to_owned();
        Self { child, address }
    }

    /// The body, of the length that the head says.
    fn page(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        // In two pieces, as a slow network brings it.
        stream.write_all(b"GET /metrics?x=y HTTP/1.1\r\nHost: ").expect("it reads");
        stream.write_all(b"x\r\nAccept: text/plain\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        body.to_owned()
    }

    /// Which targets are up, and which are not.
    fn up(&self) -> BTreeMap<String, bool> {
        let samples = read(&self.page());
        let up = samples.iter().filter(|(name, ..)| name == "qga_up");
        up.map(|(_, labels, value)| (labels.split('"').nth(1).unwrap_or_default().to_owned(), *value > 0.5)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn each_line_is_as_prometheus_wants_it() {
    let Some(guest) = Guest::start() else { return };
    let name = json!({ "host-name": "a\"b\\c\nd}" });
    let odd = Scripted::start().answering("guest-get-host-name", Answer::Value(name));
    // Of everything else it says nothing.
    let others = "guest-get-osinfo guest-get-time guest-get-users guest-get-load guest-get-cpustats guest-get-diskstats \
                  guest-get-fsinfo guest-network-get-interfaces guest-file-open guest-get-uptime guest-get-vcpus \
                  guest-exec";
    let odd = others.split(' ').fold(odd, |odd, command| {
        odd.answering(command, Answer::Error("Command has been disabled: the command is not allowed"))
    });
    let all = format!("{},{},/nonexistent/{{x", guest.target(), odd.target());
    let samples = read(&run(&all, ["metrics"]).good());
    let count = |name: &str| samples.iter().filter(|(known, ..)| known == name).count();
    assert_eq!((count("qga_up"), count("qga_failure"), count("qga_guest_info")), (3, 1, 2), "{samples:?}");
    assert!(count("qga_filesystem_size_bytes") > 0 && count("qga_network_receive_bytes_total") > 0, "{samples:?}");
    let escaped = r#"host_name="a\"b\\c\nd}""#;
    assert!(samples.iter().any(|(_, labels, _)| labels.contains(escaped)), "{samples:?}");
}

#[test]
fn slow_clients_do_not_hold_it() {
    let agent = Scripted::start();
    let server = Server::start(&agent.target());
    // Each sends a little now and then, and would go on for ever.
    let slow: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = TcpStream::connect(&server.address).expect("it listens");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ").expect("it reads");
            stream
        })
        .collect();
    let dripping = slow.iter().map(|stream| stream.try_clone().expect("a copy")).collect::<Vec<_>>();
    std::thread::spawn(move || {
        while dripping.iter().any(|mut stream| stream.write_all(b"x").is_ok()) {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
    // It is served again although they have not stopped.
    stage::until("it is served again", || {
        let mut stream = TcpStream::connect(&server.address).expect("it listens");
        let mut answer = String::new();
        let asked = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| stream.read_to_string(&mut answer));
        asked.is_ok() && answer.starts_with("HTTP/1.1 200 OK\r\n")
    });
    drop(slow);
}

#[test]
fn guests_come_and_go_while_they_are_served() {
    let (Some(one), Some(other)) = (Guest::start(), Guest::start()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let name = |name: &str| place(name).display().to_string();
    std::os::unix::fs::symlink(one.target(), place("one.sock")).unwrap();
    let server = Server::start(&name("*.sock"));
    assert_eq!(server.up(), BTreeMap::from([(name("one.sock"), true)]));
    std::os::unix::fs::symlink(other.target(), place("other.sock")).unwrap();
    assert_eq!(server.up(), BTreeMap::from([(name("one.sock"), true), (name("other.sock"), true)]));
    drop(one);
    // The link leads nowhere now.
    assert_eq!(server.up().get(&name("other.sock")), Some(&true));
    assert_ne!(server.up().get(&name("one.sock")), Some(&true));
    for link in ["one.sock", "other.sock"] {
        std::fs::remove_file(place(link)).unwrap();
    }
    let page = server.page();
    assert!(page.contains("qga_targets 0\n") && page.contains("qga_discovery_failed{"), "{page}");
    read(&page);
}
