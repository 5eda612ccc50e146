//! `cargo xtask bench`: our agent beside the original, in one run, round by round in turns, so that whatever else the
//! machine does falls on both.
//!
//! It measures and marks, and never fails for a number. Adding a measurement: a function that gives [`Row`]s, in `measure.rs`
//! or beside it, and its call in [`measure_all`].

mod growth;
mod hostside;
mod information;
mod loops;
mod measure;
mod mixed;
mod namespace;
mod picture;
mod process;
mod stuck;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::{build, original, style};
use table::Row;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Of full rounds and calls, one in so many.
    divisor: u32,
    /// Requests of the mixed load.
    mixed_requests: u32,
    /// How long a command stays stuck.
    stuck_seconds: u64,
}

const FULL: Effort = Effort { divisor: 1, mixed_requests: 100_000, stuck_seconds: 60 };
const QUICK: Effort = Effort { divisor: 5, mixed_requests: 4_800, stuck_seconds: 5 };

impl Effort {
    fn rounds(self, full: u32) -> u32 {
        (full / self.divisor).max(3)
    }
}

/// Both agents' programs.
pub struct Programs {
    original: PathBuf,
    ours: PathBuf,
}

struct Options {
    effort: Effort,
    save: bool,
    ours: Option<PathBuf>,
    /// A part of a measurement's name: the others are left out.
    only: String,
}

fn options(arguments: &[String]) -> Result<Options> {
    use lexopt::prelude::*;
    let mut options = Options { effort: FULL, save: false, ours: None, only: String::new() };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => options.effort = QUICK,
            Long("save") => options.save = true,
            Long("only") => options.only = parser.value()?.string()?,
            Long("ours") => options.ours = Some(parser.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

/// `cargo xtask bench`.
pub fn main(arguments: &[String]) -> Result<()> {
    if cfg!(debug_assertions) {
        return again_in_release(arguments);
    }
    let options = options(arguments)?;
    if options.save && !options.only.is_empty() {
        bail!("--save keeps all results, and --only leaves some out");
    }
    let original = original::original_agent()?;
    let ours = match options.ours {
        Some(path) => path,
        None => build::agent_binary()?,
    };
    let programs = Programs { original, ours };
    let rows = measure_all(&programs, options.effort, &options.only)?;
    println!();
    table::print(&rows);
    let workspace = build::workspace();
    if options.save {
        write_report(&workspace.join("docs/bench/latest.json"), &rows)?;
        write_file(&workspace.join("docs/pictures/bench.svg"), &picture::draw(&rows))?;
    } else {
        write_report(&workspace.join("target/bench.json"), &rows)?;
    }
    Ok(())
}

/// A client that is built for debugging would itself be what is measured.
fn again_in_release(arguments: &[String]) -> Result<()> {
    let mut command = build::cargo();
    command.args(["run", "--quiet", "--release", "--package", "xtask", "--", "bench"]).args(arguments);
    let status = command.status().context("cannot start cargo to build the benchmark for release")?;
    if !status.success() {
        // It has said why.
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

fn measure_all(programs: &Programs, effort: Effort, only: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut measure = |what: &str, results: &dyn Fn() -> Result<Vec<Row>>| -> Result<()> {
        if !what.contains(only) {
            return Ok(());
        }
        eprintln!("{}", style::faint(&format!("measuring {what}")));
        rows.extend(results().with_context(|| format!("cannot measure {what}"))?);
        Ok(())
    };
    measure("the start", &|| measure::start(programs, effort))?;
    measure("memory at rest", &|| measure::idle_memory(programs, effort))?;
    measure("guest-ping and guest-info", &|| measure::calls(programs, effort))?;
    measure("guest-exec", &|| measure::programs_run(programs, effort))?;
    measure("guest-file-read", &|| measure::reads(programs, effort))?;
    measure("guest-file-write", &|| measure::writes(programs, effort))?;
    measure("peak memory", &|| measure::peak_memory(programs))?;
    measure("a mixed load", &|| mixed::load(programs, effort))?;
    measure("commands that tell of the machine", &|| information::commands(programs, effort))?;
    measure("many processors", &|| growth::processors(programs, effort))?;
    measure("many file systems", &|| growth::file_systems(programs, effort))?;
    measure("many interfaces", &|| growth::interfaces(programs, effort))?;
    measure("the host's side: exec", &|| hostside::runs(programs, effort))?;
    measure("the host's side: cp", &|| hostside::copies(programs, effort))?;
    measure("a stuck command", &|| stuck::measure(programs, effort))?;
    Ok(rows)
}

/// What is written for later comparison.
#[derive(Serialize)]
struct Report<'a> {
    kernel: String,
    processors: usize,
    rows: Vec<ReportRow<'a>>,
}

#[derive(Serialize)]
struct ReportRow<'a> {
    #[serde(flatten)]
    row: &'a Row,
    ratio: Option<f64>,
    met: Option<bool>,
}

fn write_report(path: &Path, rows: &[Row]) -> Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let report = Report {
        kernel: kernel.split('-').next().unwrap_or_default().trim().to_owned(),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        rows: rows.iter().map(|row| ReportRow { row, ratio: row.ratio(), met: row.met() }).collect(),
    };
    let text = serde_json::to_string_pretty(&report).context("cannot write the results as JSON")?;
    write_file(path, &(text + "\n"))
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", style::faint(&format!("written: {}", path.display())));
    Ok(())
}
