//! `qga targets`: the agents that are found on this host.

use serde::Serialize;

use crate::failure::Result;
use crate::general_options::General;
use crate::output::table::{Cell, Table};
use crate::output::text::printable;
use crate::output::{Page, Show};

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Targets(Vec<Line>);

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Line {
    target: String,
    description: String,
}

impl Show for Targets {
    fn show(&self, page: &mut Page) -> Result<()> {
        let mut table = Table::new(&["target", "what it is"]);
        for line in &self.0 {
            table.row(vec![Cell::text(&line.target), Cell::text(&line.description)]);
        }
        if self.0.is_empty() {
            page.note("none found");
            return Ok(());
        }
        table.show(page)
    }
}

pub fn run(general: &General) -> Result<()> {
    let discovery = qga_client::search();
    let mut page = Page::new(String::new(), None, general.json);
    for problem in &discovery.problems {
        page.note(printable(&problem.to_string()));
    }
    let lines = discovery.found.into_iter();
    let lines = lines.map(|found| Line { target: found.target.to_string(), description: found.description });
    page.report(&Targets(lines.collect()))
}
