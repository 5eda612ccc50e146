//! Serves the measurements over HTTP: one page, asked for anew each time. No more of HTTP than that needs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::exposition::Exposition;
use super::scrape;
use crate::arguments::General;
use crate::failure::{Failure, Result};
use crate::output::Page;
use crate::target::select;

/// A client that is slower than this is left alone.
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
            if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_AT_A_TIME {
                clients.fetch_sub(1, Ordering::Relaxed);
                // It hears nothing more than the end of the connection if it does not read this at once.
                let _ = answer(&stream, "503 Service Unavailable", "too many at a time\n");
                continue;
            }
            let clients = &clients;
            scope.spawn(move || {
                // A client that is gone hears nothing of it.
                let _ = attend(&stream, general);
                clients.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    Ok(())
}

fn attend(stream: &TcpStream, general: &General) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Some(path) = read_request(stream)? else {
        return answer(stream, "400 Bad Request", "GET /metrics is understood\n");
    };
    match path.split('?').next() {
        Some("/metrics") => answer(stream, "200 OK", &page(general)),
        Some("/") => answer(stream, "200 OK", "qga: the measurements are at /metrics\n"),
        _ => answer(stream, "404 Not Found", "there is /metrics\n"),
    }
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
fn read_request(stream: &TcpStream) -> io::Result<Option<String>> {
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

fn answer(mut stream: &TcpStream, status: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}
