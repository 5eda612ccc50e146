//! `qga time`: the guest's clock beside this host's.

use qga_protocol::time::{GetTimezone, SetTime, Timezone};
use serde::Serialize;

use super::info::{Clock, clock, now_seconds};
use crate::arguments::Time;
use crate::failure::Result;
use crate::output::table::{Cell, Table};
use crate::output::text::printable;
use crate::output::{FAINT, GOOD, Page, Show, WARNING, styled, units};
use crate::visit::{Visit, optional};

/// A difference below is what the question itself takes, or what nobody minds.
const TOLERANCE_SECONDS: f64 = 1.0;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    clock: Clock,
    time_zone: Option<Timezone>,
}

impl Show for Shown {
    fn show(&self, page: &mut Page) -> Result<()> {
        let offset = self.time_zone.as_ref().map_or(0, |zone| i32::try_from(zone.offset).unwrap_or(0));
        let zone = self.time_zone.as_ref().and_then(|zone| zone.zone.clone()).unwrap_or_default();
        let ahead = self.clock.ahead_seconds;
        if !page.is_for_people() {
            let mut table = Table::new(&["guest", "offset", "zone", "ahead", "uncertainty"]);
            let seconds = |seconds: f64| Cell::text(format!("{seconds:.6}"));
            table.row(vec![
                seconds(self.clock.guest_seconds),
                Cell::text(offset.to_string()),
                Cell::text(&zone),
                seconds(ahead),
                seconds(self.clock.uncertainty_seconds),
            ]);
            return table.show(page);
        }
        let style = if ahead.abs() > TOLERANCE_SECONDS { WARNING } else { GOOD };
        let side = if ahead < 0.0 { "behind" } else { "ahead of" };
        let difference = format!("{:.3} s {side} this host", ahead.abs());
        let uncertainty = styled(FAINT, format!("± {:.3} s", self.clock.uncertainty_seconds));
        let moment = units::moment(self.clock.guest_seconds as i64, offset);
        page.line(format!("{moment} {}  {} {uncertainty}", printable(&zone), styled(style, difference)))
    }
}

pub fn run(options: &Time, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    if options.from_hardware {
        agent.call(&SetTime { time: None })?;
    } else if let Some(nanoseconds) = options.set {
        agent.call(&SetTime { time: Some(nanoseconds) })?;
    } else if options.sync {
        // The way there takes half of what a question and its answer take.
        let way = clock(&mut agent)?.uncertainty_seconds;
        let nanoseconds = ((now_seconds() + way) * 1e9) as i64;
        agent.call(&SetTime { time: Some(nanoseconds) })?;
    }
    let shown = Shown { clock: clock(&mut agent)?, time_zone: optional(agent.call(&GetTimezone {}))? };
    visit.page.report(&shown)
}
