//! `qga shutdown`, `reboot`, `halt`, `suspend`. A success is not answered.

use qga_client::AnyAgent;
use qga_protocol::Command;
use qga_protocol::power::{Shutdown, SuspendDisk, SuspendHybrid, SuspendRam};
use serde_json::{Value, json};

use super::call::UNANSWERED_PATIENCE;
use crate::arguments::SuspendTo;
use crate::failure::Result;
use crate::visit::Visit;

pub fn end(mode: &str, visit: &mut Visit<'_>) -> Result<()> {
    let arguments = if mode == "powerdown" { Value::Null } else { json!({ "mode": mode }) };
    let mut agent = visit.connect()?;
    ask(&mut agent, Shutdown::INFO.name, arguments, visit)
}

pub fn suspend(to: SuspendTo, visit: &mut Visit<'_>) -> Result<()> {
    let command = match to {
        SuspendTo::Ram => SuspendRam::INFO.name,
        SuspendTo::Disk => SuspendDisk::INFO.name,
        SuspendTo::Hybrid => SuspendHybrid::INFO.name,
    };
    let mut agent = visit.connect()?;
    ask(&mut agent, command, Value::Null, visit)
}

fn ask(agent: &mut AnyAgent, command: &str, arguments: Value, visit: &mut Visit<'_>) -> Result<()> {
    agent.call_unanswered(command, arguments, UNANSWERED_PATIENCE.min(visit.general.timeout))?;
    if visit.page.is_json() {
        return visit.page.json(&json!({ "accepted": true }));
    }
    visit.page.note("the guest does it now");
    Ok(())
}
