//! `qga doctor`: names the exact reason why an agent does not answer, or what about it is not as it should be.

mod inside;
mod outside;

use std::path::Path;

use serde::Serialize;

use crate::arguments::Doctor;
use crate::failure::{Failure, Result};
use crate::fleet;
use crate::general_options::General;
use crate::output::text::printable;
use crate::output::{BAD, FAINT, GOOD, Page, Show, WARNING, styled};
use crate::target::select;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Good,
    Remarkable,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Check {
    verdict: Verdict,
    /// What was found.
    text: String,
    /// What to do about it; empty if nothing is to be done.
    advice: String,
}

/// All that was looked at. After something bad nothing more is.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Diagnosis {
    checks: Vec<Check>,
    #[serde(skip)]
    exit_code: u8,
}

impl Diagnosis {
    fn good(&mut self, text: impl Into<String>) {
        self.checks.push(Check { verdict: Verdict::Good, text: text.into(), advice: String::new() });
    }

    fn remark(&mut self, text: impl Into<String>, advice: impl Into<String>) {
        self.checks.push(Check { verdict: Verdict::Remarkable, text: text.into(), advice: advice.into() });
    }

    fn bad(&mut self, text: impl Into<String>, advice: impl Into<String>, exit_code: u8) {
        self.checks.push(Check { verdict: Verdict::Bad, text: text.into(), advice: advice.into() });
        self.exit_code = exit_code;
    }

    fn failed(&mut self, failure: &Failure) {
        self.bad(failure.text().unwrap_or_default(), failure.advice(), failure.exit_code());
    }

    /// Adds what was looked at elsewhere.
    fn append(&mut self, other: Self) {
        self.checks.extend(other.checks);
        self.exit_code = if self.exit_code == 0 { other.exit_code } else { self.exit_code };
    }

    fn into_result(self) -> Result<()> {
        if self.exit_code == 0 { Ok(()) } else { Err(Failure::Silent(self.exit_code)) }
    }
}

impl Show for Diagnosis {
    fn show(&self, page: &mut Page) -> Result<()> {
        for check in &self.checks {
            let mark = match check.verdict {
                Verdict::Good => styled(GOOD, "ok  "),
                Verdict::Remarkable => styled(WARNING, "note"),
                Verdict::Bad => styled(BAD, "bad "),
            };
            page.line(format!("{mark}  {}", printable(&check.text)))?;
            if !check.advice.is_empty() {
                page.line(format!("      {}", styled(FAINT, printable(&check.advice))))?;
            }
        }
        Ok(())
    }
}

pub fn run(options: &Doctor, general: &General) -> Result<()> {
    if options.inside {
        return tell(inside::look(Path::new("/")), "this machine", general);
    }
    match select(&general.targets, general.all) {
        Ok(selection) => fleet::visit(&selection, general, &|visit| {
            let diagnosis = outside::look(visit.target, general);
            visit.page.report(&diagnosis)?;
            diagnosis.into_result()
        }),
        Err(failure) if general.targets.is_empty() && inside::is_guest(Path::new("/")) => {
            let mut diagnosis = Diagnosis::default();
            diagnosis
                .remark(failure.text().unwrap_or_default(), "This machine is a guest itself, so that is looked at.");
            diagnosis.append(inside::look(Path::new("/")));
            tell(diagnosis, "this machine", general)
        }
        Err(failure) => {
            let mut diagnosis = Diagnosis::default();
            diagnosis.failed(&failure);
            tell(diagnosis, "this host", general)
        }
    }
}

fn tell(diagnosis: Diagnosis, name: &str, general: &General) -> Result<()> {
    let mut page = Page::new(name.to_owned(), None, general.json);
    page.report(&diagnosis)?;
    diagnosis.into_result()
}
