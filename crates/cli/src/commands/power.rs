//! `qga shutdown`, `reboot`, `halt`, `suspend`. A success is not answered, so what can be seen of it is looked at.

use std::thread;
use std::time::{Duration, Instant};

use qga_client::{Agent, Kind, Unanswered};
use qga_protocol::Command;
use qga_protocol::power::{Shutdown, SuspendDisk, SuspendHybrid, SuspendRam};
use qga_protocol::session::Ping;
use serde_json::{Value, json};

use super::call::UNANSWERED_PATIENCE;
use crate::arguments::SuspendTo;
use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::visit::Visit;

/// How long a guest may take to fall asleep: it writes out what is dirty first.
const LONGEST_FALLING_ASLEEP: Duration = Duration::from_secs(30);

pub fn end(mode: &str, visit: &mut Visit<'_>) -> Result<()> {
    let arguments = if mode == "powerdown" { Value::Null } else { json!({ "mode": mode }) };
    let said = ask(Shutdown::INFO.name, arguments, visit)?;
    let seen = match said {
        Unanswered::Gone => Seen::Gone,
        // Its services end first, and they may take minutes: that it still answers is no sign that it will not end.
        Unanswered::Answered | Unanswered::Silent => look(visit),
    };
    report(seen, visit)
}

pub fn suspend(to: SuspendTo, visit: &mut Visit<'_>) -> Result<()> {
    let command = match to {
        SuspendTo::Ram => SuspendRam::INFO.name,
        SuspendTo::Disk => SuspendDisk::INFO.name,
        SuspendTo::Hybrid => SuspendHybrid::INFO.name,
    };
    let asked = Instant::now();
    if ask(command, Value::Null, visit)? == Unanswered::Gone {
        return report(Seen::Gone, visit);
    }
    loop {
        match look(visit) {
            Seen::Answers if asked.elapsed() < LONGEST_FALLING_ASLEEP.min(visit.general.timeout) => {
                thread::sleep(Duration::from_millis(500).min(visit.general.timeout));
            }
            Seen::Answers => {
                return Err(Failure::told(
                    Code::FailedInGuest,
                    format!(
                        "the guest has taken {command} without an error, and still answers after {:.0} s: it does not sleep, \
                         or was woken at once",
                        asked.elapsed().as_secs_f64()
                    ),
                    "See the guest's log (journalctl -b -u systemd-suspend -u systemd-hibernate), and whether its machine has \
                     this kind of sleep (cat /sys/power/state).",
                ));
            }
            seen => return report(seen, visit),
        }
    }
}

fn ask(command: &str, arguments: Value, visit: &Visit<'_>) -> Result<Unanswered> {
    let patience = UNANSWERED_PATIENCE.min(visit.general.timeout);
    Ok(visit.connect()?.call_unanswered(command, arguments, patience)?)
}

/// What can be seen of the guest from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// The machine has ended, or its agent.
    Gone,
    /// Whoever runs the machine says that it sleeps.
    Asleep,
    /// It does not answer any more.
    Silent,
    /// It answers.
    Answers,
}

fn look(visit: &Visit<'_>) -> Seen {
    let patience = UNANSWERED_PATIENCE.min(visit.general.timeout);
    let mut connection = visit.general.connection();
    connection.timeouts.silence = patience;
    let asked = Agent::connect_by(visit.target, connection, Instant::now() + patience)
        // Through libvirt the connection itself is no sign of life.
        .and_then(|mut agent| agent.call(&Ping {}));
    match asked {
        Ok(_) => Seen::Answers,
        Err(error) if error.agent().is_some() => Seen::Answers,
        Err(error) => match error.kind() {
            Kind::Suspended => Seen::Asleep,
            Kind::NoAnswer | Kind::Held | Kind::NotUnderstood => Seen::Silent,
            _ => Seen::Gone,
        },
    }
}

fn report(seen: Seen, visit: &mut Visit<'_>) -> Result<()> {
    let (word, text) = match seen {
        Seen::Gone => ("gone", "the guest accepted the command, and is gone"),
        Seen::Asleep => ("asleep", "the guest sleeps"),
        Seen::Silent => ("silent", "the guest accepted the command, and no longer answers"),
        Seen::Answers => ("answers", "the guest accepted the command without an error, and still answers"),
    };
    if visit.page.is_json() {
        return visit.page.json(&json!({ "accepted": true, "seen": word }));
    }
    visit.page.note(text);
    Ok(())
}
