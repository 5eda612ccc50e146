//! `qga fs`, `qga disks`, `qga trim`.

use qga_protocol::storage::{GetDisks, GetFsInfo, Trim as TrimCommand, TrimReport};

use super::info::show;
use crate::arguments::Trim;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::output::table::{Cell, Table};
use crate::output::{BAD, GOOD};
use crate::visit::Visit;

pub fn file_systems(visit: &mut Visit<'_>) -> Result<()> {
    let file_systems = visit.connect()?.call(&GetFsInfo {})?;
    visit.page.report_as(&file_systems, |file_systems| show::file_systems(file_systems))
}

pub fn disks(visit: &mut Visit<'_>) -> Result<()> {
    let disks = visit.connect()?.call(&GetDisks {})?;
    visit.page.report_as(&disks, |disks| show::disks(disks))
}

fn trimmed(report: &TrimReport) -> Table {
    let mut table = Table::new(&["mounted at", "given back", ""]);
    for path in &report.paths {
        let problem = path.error.as_deref().unwrap_or_default();
        let trimmed = path.trimmed.and_then(|trimmed| u64::try_from(trimmed).ok());
        table.row(vec![
            Cell::text(&path.path),
            Cell::or_dash(trimmed, Cell::bytes).in_style(GOOD),
            Cell::text(problem).in_style(BAD),
        ]);
    }
    table
}

pub fn trim(options: &Trim, visit: &mut Visit<'_>) -> Result<()> {
    let report = visit.connect()?.call(&TrimCommand { minimum: options.minimum })?;
    let failed = report.paths.iter().filter(|path| path.error.is_some()).count();
    let all = report.paths.len();
    visit.page.report_as(&report, trimmed)?;
    if failed > 0 && failed == all {
        return Err(Failure::told(Code::FailedInGuest, "no file system could be trimmed", ""));
    }
    Ok(())
}
