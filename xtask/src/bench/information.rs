//! The commands that only tell something, on the machine as it is.

use anyhow::Result;

use super::measure::{Subject, both, row, take_turns, timed};
use super::table::{Row, Target, Unit};
use super::{Effort, Programs};
use crate::style;

/// A command and what was promised of its time.
const COMMANDS: [(&str, Target); 9] = [
    ("guest-get-fsinfo", Target::RatioAtMost(0.5)),
    ("guest-get-disks", Target::RatioAtMost(0.5)),
    ("guest-get-diskstats", Target::None),
    ("guest-network-get-interfaces", Target::None),
    ("guest-network-get-route", Target::None),
    ("guest-get-vcpus", Target::None),
    ("guest-get-memory-blocks", Target::None),
    ("guest-get-osinfo", Target::None),
    ("guest-get-users", Target::None),
];
/// Calls a round.
const CALLS: u32 = 20;

/// One row a command. One that the machine or an agent cannot answer is left out, with the reason.
pub fn commands(programs: &Programs, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut subjects = both(programs)?;
    for (command, target) in COMMANDS {
        let request = format!("{{\"execute\":\"{command}\"}}");
        if let Err(error) = subjects.iter_mut().try_for_each(|subject| subject.ask(request.as_bytes()).map(drop)) {
            eprintln!("{}", style::warning(&format!("{command} is left out: {error:#}")));
            continue;
        }
        let medians = take_turns(effort.rounds(40), CALLS.into(), &mut subjects, |subject| {
            timed(subject, |subject| ask_times(subject, &request, CALLS))
        })?;
        rows.push(row(command, Unit::Seconds, medians.original.wall, medians.ours.wall, target));
    }
    Ok(rows)
}

/// The same request again and again.
pub fn ask_times(subject: &mut Subject, request: &str, times: u32) -> Result<()> {
    (0..times).try_for_each(|_| subject.ask(request.as_bytes()).map(drop))
}
