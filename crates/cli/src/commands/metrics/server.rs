//! Serves the measurements over HTTP: one page, asked for anew each time. No more of HTTP than that needs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::exposition::Exposition;
use super::scrape;
use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::output::Page;
use crate::target::select;

/// How long a client may take for its whole request, and as long again for the whole page. One that is slower is left alone.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_REQUEST_BYTES: u64 = 16 << 10;
const CLIENTS_AT_A_TIME: usize = 16;

pub fn serve(address: &str, general: &General) -> Result<()> {
    let listener =
        TcpListener::bind(address).map_err(|error| Failure::host(&format!("listen at {address}"), &error))?;
    let address = listener.local_addr().map_err(|error| Failure::host("listen", &error))?;
    Page::new(String::new(), None, false).note(format!("serving http://{address}/metrics"));
    let clients = AtomicUsize::new(0);
    thread::scope(|scope| {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let place = Place::take(&clients);
            if clients.load(Ordering::Relaxed) > CLIENTS_AT_A_TIME {
                // It hears nothing more than the end of the connection if it does not read this at once.
                let _ = stream.set_nonblocking(true);
                let _ = answer(&mut &stream, "503 Service Unavailable", "too many at a time\n");
                continue;
            }
            scope.spawn(move || {
                let _place = place;
                // A client that is gone hears nothing of it.
                let _ = attend(&stream, general);
            });
        }
    });
    Ok(())
}

/// A client's place among those that are served, which it leaves also if serving it has panicked.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(clients: &'a AtomicUsize) -> Self {
        clients.fetch_add(1, Ordering::Relaxed);
        Self(clients)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that is over at a moment, however little and often something comes.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self { stream, deadline: Instant::now() + PATIENCE }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn attend(stream: &TcpStream, general: &General) -> io::Result<()> {
    let path = read_request(Timed::new(stream))?;
    let (status, body) = match path.as_deref().map(|path| path.split('?').next()) {
        None => ("400 Bad Request", "only GET /metrics is served\n".to_owned()),
        Some(Some("/metrics")) => ("200 OK", page(general)),
        Some(Some("/")) => ("200 OK", "qga: the measurements are at /metrics\n".to_owned()),
        Some(_) => ("404 Not Found", "there is /metrics\n".to_owned()),
    };
    answer(&mut Timed::new(stream), status, &body)
}

/// The measurements now. Patterns are looked up anew each time: machines come and go.
fn page(general: &General) -> String {
    match select(&general.targets, general.all) {
        Ok(selection) => {
            let mut page = Exposition::default();
            page.put("qga_targets", &[], selection.targets.len() as f64);
            page.put("qga_discovery_failed", &[], 0.0);
            format!("{}{}", page.text(), scrape(&selection, general))
        }
        Err(failure) => {
            let mut page = Exposition::default();
            page.put("qga_targets", &[], 0.0);
            page.put("qga_discovery_failed", &[("reason", &failure.word())], 1.0);
            page.text()
        }
    }
}

/// The path of a GET request; the rest of the request is read and dropped.
fn read_request(stream: impl Read) -> io::Result<Option<String>> {
    let mut reader = BufReader::new(stream.take(LONGEST_REQUEST_BYTES));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    let mut words = first.split_ascii_whitespace();
    Ok((words.next() == Some("GET")).then(|| words.next().map(str::to_owned)).flatten())
}

fn answer(stream: &mut impl Write, status: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}
