//! `qga fs`, `qga disks`, `qga trim`.

use qga_protocol::storage::{DiskInfo, FilesystemInfo, GetDisks, GetFsInfo, Trim as TrimCommand, TrimReport};
use serde::Serialize;

use super::info::show;
use crate::arguments::Trim;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::output::table::{Cell, Table};
use crate::output::{BAD, GOOD, Page, Show};
use crate::visit::Visit;

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct FileSystems(Vec<FilesystemInfo>);

impl Show for FileSystems {
    fn show(&self, page: &mut Page) -> Result<()> {
        show::file_systems(&self.0).show(page)
    }
}

pub fn file_systems(visit: &mut Visit<'_>) -> Result<()> {
    let file_systems = visit.connect()?.call(&GetFsInfo {})?;
    visit.page.report(&FileSystems(file_systems))
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Disks(Vec<DiskInfo>);

impl Show for Disks {
    fn show(&self, page: &mut Page) -> Result<()> {
        show::disks(&self.0).show(page)
    }
}

pub fn disks(visit: &mut Visit<'_>) -> Result<()> {
    let disks = visit.connect()?.call(&GetDisks {})?;
    visit.page.report(&Disks(disks))
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Trimmed(TrimReport);

impl Show for Trimmed {
    fn show(&self, page: &mut Page) -> Result<()> {
        let mut table = Table::new(&["mounted at", "given back", ""]);
        for path in &self.0.paths {
            let problem = path.error.as_deref().unwrap_or_default();
            let trimmed = path.trimmed.and_then(|trimmed| u64::try_from(trimmed).ok());
            table.row(vec![
                Cell::text(&path.path),
                Cell::or_dash(trimmed, Cell::bytes).in_style(GOOD),
                Cell::text(problem).in_style(BAD),
            ]);
        }
        table.show(page)
    }
}

pub fn trim(options: &Trim, visit: &mut Visit<'_>) -> Result<()> {
    let report = visit.connect()?.call(&TrimCommand { minimum: options.minimum })?;
    let failed = report.paths.iter().filter(|path| path.error.is_some()).count();
    let all = report.paths.len();
    visit.page.report(&Trimmed(report))?;
    if failed > 0 && failed == all {
        return Err(Failure::told(Code::FailedInGuest, "no file system could be trimmed", ""));
    }
    Ok(())
}
