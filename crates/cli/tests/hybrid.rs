//! A real agent behind a socket such as Cloud Hypervisor and Firecracker have for a guest's vsock ports.

mod stage;

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use stage::{Guest, run};

/// The only port on which somebody listens in the guest.
const PORT: &str = "1234";

/// What the hypervisor says to a client that it has connected.
#[derive(Debug, Clone, Copy)]
enum Opening {
    /// These bytes at once; the agent's follow.
    Says(&'static str),
    /// The right answer, byte by byte.
    Hesitates,
    /// The right answer, and the end.
    Leaves,
    /// A blank now and then, for ever.
    Drips,
}

/// Plays the hypervisor in front of an agent's socket; the target's text. The threads end with the test's process.
fn hypervisor(directory: &Path, agent: &str, opening: Opening) -> String {
    let path = directory.join(format!("{opening:?}").replace(|c: char| !c.is_alphabetic(), "_"));
    let listener = UnixListener::bind(&path).unwrap();
    let agent = agent.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let agent = agent.clone();
            // A client that leaves ends its connection and nothing else.
            thread::spawn(move || attend(&client, &agent, opening));
        }
    });
    format!("hybrid:{}", path.display())
}

fn attend(mut client: &UnixStream, agent: &str, opening: Opening) -> std::io::Result<()> {
    let mut reader = BufReader::new(client);
    let mut asked = String::new();
    reader.read_line(&mut asked)?;
    if asked != format!("CONNECT {PORT}\n") {
        // That is all that a port without a listener has for an answer.
        return Ok(());
    }
    let right = "OK 1073741824\n";
    match opening {
        Opening::Says(text) => client.write_all(text.as_bytes())?,
        Opening::Hesitates => {
            for byte in right.bytes() {
                client.write_all(&[byte])?;
                thread::sleep(Duration::from_millis(10));
            }
        }
        Opening::Leaves => return client.write_all(right.as_bytes()),
        Opening::Drips => loop {
            client.write_all(b" ")?;
            thread::sleep(Duration::from_millis(20));
        },
    }
    let mut agent = UnixStream::connect(agent)?;
    let (mut replies, mut back) = (agent.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let copied = std::io::copy(&mut replies, &mut back);
        let _ = back.shutdown(Shutdown::Both);
        copied
    });
    let copied = std::io::copy(&mut reader, &mut agent);
    // The other direction would hold it open, and some agents serve one client at a time.
    agent.shutdown(Shutdown::Both)?;
    copied.map(drop)
}

#[test]
fn an_agent_behind_a_hypervisors_socket_is_as_any_other() {
    let Some(guest) = Guest::start() else { return };
    for opening in [Opening::Says("OK 1073741824\n"), Opening::Hesitates] {
        let hypervisor = hypervisor(guest.directory.path(), &guest.target(), opening);
        let target = format!("{hypervisor}:{PORT}");
        assert!(run(&target, ["ping"]).good().contains(&format!("{target} answers")));
        let ended = run(&target, ["exec", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!((ended.code, ended.text().as_str(), ended.stderr.as_str()), (Some(3), "out\n", "err\n"));
        let content: Vec<u8> = (0..700_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(guest.path("here"), &content).unwrap();
        run(&target, ["cp", "-c", &guest.text("here"), &format!(":{}", guest.text("there"))]).good();
        run(&target, ["cp", "-c", &format!(":{}", guest.text("there")), &guest.text("back")]).good();
        assert_eq!(std::fs::read(guest.path("back")).unwrap(), content);
        run(&target, ["doctor"]).good();
    }
}

#[test]
fn what_a_hypervisor_refuses_or_says_wrongly_is_told() {
    let Some(guest) = Guest::start() else { return };
    let check = |opening, port: &str, code, says: &str| {
        let directory = tempfile::tempdir().unwrap();
        let target = format!("{}:{port}", hypervisor(directory.path(), &guest.target(), opening));
        // Long where something comes, whatever the machine is busy with.
        let limit = if matches!(opening, Opening::Drips) { "1" } else { "20" };
        for command in ["ping", "doctor"] {
            let ended = run(&target, ["--timeout", limit, command]);
            let said = format!("{}{}", ended.text(), ended.stderr);
            assert!(ended.code == Some(code) && said.contains(says), "{opening:?}, {command}: {ended:?}");
        }
    };
    check(Opening::Says("OK 1\n"), "99", 69, "nobody listens on vsock port 99 in the guest");
    check(Opening::Says("HTTP/1.1 400 Bad Request\r\n"), PORT, 69, "not OK");
    check(Opening::Says("OK\n"), PORT, 69, "not OK");
    check(Opening::Says("OK 1 and more that has no end, no end, no end, no end, no end, no end"), PORT, 69, "endless");
    // A garbled reply is the agent's before the answer to the first sync, and no answer.
    check(Opening::Says("OK 1\nOK 2\n{\"return\": 1}\n"), PORT, 0, "answer");
    check(Opening::Drips, PORT, 75, "no answer to CONNECT within 1 s");
    check(Opening::Leaves, PORT, 75, "The agent or the machine ended");
}
