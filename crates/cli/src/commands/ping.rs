//! `qga ping`.

use std::thread;
use std::time::{Duration, Instant};

use qga_protocol::session::Ping as PingCommand;
use serde::Serialize;

use crate::arguments::Ping;
use crate::failure::Result;
use crate::output::{FAINT, GOOD, Page, Show, styled};
use crate::visit::Visit;

/// One answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Pong {
    target: String,
    /// From the request to the reply, in milliseconds.
    milliseconds: f64,
}

impl Show for Pong {
    fn show(&self, page: &mut Page) -> Result<()> {
        let name = if page.is_alone() { format!("{} ", self.target) } else { String::new() };
        let time = styled(FAINT, format!("in {}", milliseconds(self.milliseconds)));
        page.line(format!("{name}{} {time}", styled(GOOD, "answers")))
    }
}

fn milliseconds(time: f64) -> String {
    if time < 10.0 { format!("{time:.2} ms") } else { format!("{time:.0} ms") }
}

pub fn run(options: &Ping, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    for turn in 0..options.count {
        if turn > 0 {
            thread::sleep(options.interval.min(Duration::from_secs(3600)));
        }
        let started = Instant::now();
        agent.call(&PingCommand {})?;
        let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
        visit.page.report(&Pong { target: visit.target.to_string(), milliseconds })?;
    }
    Ok(())
}
