//! The host's side with both agents: what its tasks cost beside the requests that they are made of, and how fast files
//! go.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use qga_client::{CopyOptions, Exit, OutputStream, Patience, Program, RunOptions};
use serde_json::json;

use super::measure::{MIB, Medians, Sample, Subject, both, noise, row, take_turns, timed};
use super::table::{Row, Target, Unit, median};
use super::{Effort, Programs};

/// How many times the time of the bare requests a run may take.
const MOST_TIMES: f64 = 1.5;
/// How fast files are to go, in bytes a second, or else how many times as fast as with the original.
const COPY_SPEED: f64 = 300e6;
const COPY_RATIO: f64 = 5.0;
const COPY_BYTES: usize = 256 * MIB;

/// How a program is run and waited for.
#[derive(Clone, Copy)]
enum Way {
    /// The program itself, by `guest-exec` and `guest-exec-status` alone.
    Bare,
    /// The same with a shell in front that becomes the program: what output that comes live cannot do without.
    BareShell,
    /// The requests that live output is made of: a shell that leads the program's output to files, which are opened,
    /// read, closed and removed.
    BareLive,
    /// As `qga exec --at-end` does.
    AtEnd,
    /// As `qga exec` does.
    Live,
}

const WAYS: [Way; 5] = [Way::Bare, Way::BareShell, Way::BareLive, Way::AtEnd, Way::Live];

impl Way {
    fn run(self, subject: &mut Subject) -> Result<()> {
        match self {
            Self::Bare => by_hand(subject, &json!({ "path": "/bin/true", "capture-output": true })),
            Self::BareLive => live_by_hand(subject),
            Self::BareShell => {
                let words = ["-c", "exec \"$@\"", "sh", "/bin/true"];
                by_hand(subject, &json!({ "path": "/bin/sh", "arg": words, "capture-output": true }))
            }
            Self::AtEnd => by_the_library(subject, false),
            Self::Live => by_the_library(subject, true),
        }
    }
}

/// Output to files, by requests alone.
fn live_by_hand(subject: &mut Subject) -> Result<()> {
    let base = subject.agent.folder().join("live").display().to_string();
    let files = [format!("{base}.out"), format!("{base}.err")];
    let script = "umask 077; exec \"$@\" >\"$0.out\" 2>\"$0.err\"";
    by_hand(subject, &json!({ "path": "/bin/sh", "arg": ["-c", script, base, "/bin/true"] }))?;
    let mut handles = Vec::new();
    for path in &files {
        handles.push(subject.connection.call_raw("guest-file-open", json!({ "path": path }))?);
    }
    let removal = subject.connection.call_raw("guest-exec", json!({ "path": "rm", "arg": files }))?;
    for handle in handles {
        let read = json!({ "handle": handle, "count": 64 << 10 });
        ensure!(subject.connection.call_raw("guest-file-read", read)?["eof"] == json!(true), "true has an output");
        subject.connection.call_raw("guest-file-close", json!({ "handle": handle }))?;
    }
    until_exited(subject, &removal)
}

/// The requests alone, asked as often as the library asks.
fn by_hand(subject: &mut Subject, arguments: &serde_json::Value) -> Result<()> {
    let started = subject.connection.call_raw("guest-exec", arguments.clone())?;
    until_exited(subject, &started)
}

fn until_exited(subject: &mut Subject, started: &serde_json::Value) -> Result<()> {
    let patience = Patience::default();
    let mut pause = patience.first_pause;
    while subject.connection.call_raw("guest-exec-status", json!({ "pid": started["pid"] }))?["exited"] != json!(true) {
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(patience.longest_pause);
    }
    Ok(())
}

fn by_the_library(subject: &mut Subject, live: bool) -> Result<()> {
    let program = Program { path: "/bin/true".to_owned(), ..Program::default() };
    let mut nothing = |_: OutputStream, _: &[u8]| -> io::Result<()> { Err(io::ErrorKind::InvalidData.into()) };
    let ended = subject.connection.run_live(&program, &RunOptions { live, ..RunOptions::default() }, &mut nothing)?;
    ensure!(ended.exit == Exit::Code(0) && ended.was_live == live, "true ended with {}", ended.exit);
    Ok(())
}

/// A run of `true` through the library over a connection that is there, in all ways, interleaved. A way may take
/// [`MOST_TIMES`] as long as the requests that it is made of.
pub fn runs(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    let mut seconds: [[f64; 2]; WAYS.len()] = [[0.0; 2]; WAYS.len()];
    for (agent, subject) in both(programs)?.iter_mut().enumerate() {
        let mut times: [Vec<f64>; WAYS.len()] = Default::default();
        // The first ones warm it up and do not count.
        for round in 0..=effort.rounds(300) {
            for (way, times) in WAYS.into_iter().zip(&mut times) {
                let started = Instant::now();
                way.run(subject)?;
                if round > 0 {
                    times.push(started.elapsed().as_secs_f64());
                }
            }
        }
        for (seconds, mut times) in seconds.iter_mut().zip(times) {
            seconds[agent] = median(&mut times).context("no round")?;
        }
    }
    let [bare, bare_shell, bare_live, at_end, live] = seconds;
    let time = |name: &str, of: [f64; 2]| row(name, Unit::Seconds, of[0], of[1], Target::None);
    let times =
        |name: &str, of: [f64; 2], to: [f64; 2], target| row(name, Unit::Times, of[0] / to[0], of[1] / to[1], target);
    Ok(vec![
        time("true: bare requests", bare),
        time("true: bare requests, behind a shell", bare_shell),
        time("true: bare requests, output to files", bare_live),
        time("qga exec --at-end -- true", at_end),
        time("qga exec -- true", live),
        times("qga exec --at-end: to bare requests", at_end, bare, Target::AtMost(MOST_TIMES)),
        times("qga exec: to bare requests, output to files", live, bare_live, Target::AtMost(MOST_TIMES)),
        times("qga exec: to bare requests", live, bare, Target::None),
    ])
}

/// A subject with a file on each side.
struct Copying {
    subject: Subject,
    host: PathBuf,
    guest: String,
}

impl Copying {
    fn start(program: &Path) -> Result<Self> {
        let subject = Subject::start(program)?;
        let path = |name: &str| subject.agent.folder().join(name);
        let (host, guest) = (path("host"), path("guest").display().to_string());
        std::fs::write(&host, noise(COPY_BYTES)).context("cannot write the file to copy")?;
        Ok(Self { subject, host, guest })
    }

    fn copy(&mut self, up: bool) -> Result<Sample> {
        let Self { subject, host, guest } = self;
        timed(subject, |subject| {
            let options = CopyOptions::default();
            let mut go_on = |_: qga_client::Progress<'_>| ControlFlow::Continue(());
            let copied = if up {
                subject.connection.upload(host, guest, options, &mut go_on)?
            } else {
                subject.connection.download(guest, host, options, &mut go_on)?
            };
            ensure!(copied.bytes == COPY_BYTES as u64, "{} bytes were copied", copied.bytes);
            Ok(())
        })
    }
}

/// A file both ways, as `qga cp` does.
pub fn copies(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut subjects = [Copying::start(&programs.original)?, Copying::start(&programs.ours)?];
    for (name, up) in [("qga cp to the guest, 256 MiB", true), ("qga cp from the guest, 256 MiB", false)] {
        let medians = take_turns(effort.rounds(5), COPY_BYTES as f64, &mut subjects, |copying| copying.copy(up))?;
        let Medians { original, ours } = medians;
        let (original, ours) = (1.0 / original.wall, 1.0 / ours.wall);
        let target = Target::AtLeastOrRatio(COPY_SPEED, COPY_RATIO);
        rows.push(row(name, Unit::BytesPerSecond, original, ours, target));
    }
    Ok(rows)
}
