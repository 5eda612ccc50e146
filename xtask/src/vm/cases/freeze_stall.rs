//! How long a freeze stops a program: ours compared with the original in the same guest.

use super::Case;
use crate::vm::guest::Guest;
use crate::vm::stall;
use anyhow::{Result, ensure};

pub const CASES: &[Case] =
    &[Case { name: "freeze_stops_programs_for_a_fraction_of_the_time_that_the_original_does", run: stall }];

fn stall(guest: &mut Guest) -> Result<()> {
    let [original, ours] = stall::measure(guest)?;
    guest.note(format!(
        "a program that writes all the time stood still for {:.2} s under the original, {:.2} s under ours; \
         the freezes took {:.2} s and {:.2} s",
        original.longest_seconds(),
        ours.longest_seconds(),
        original.freeze_seconds,
        ours.freeze_seconds
    ));
    let ratio = ours.longest_seconds() / original.longest_seconds();
    ensure!(ratio < 0.5, "ours stops the program for {ratio:.2} of the time");
    Ok(())
}
