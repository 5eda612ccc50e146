//! `qga info`: a guest on one screen.

pub mod show;

use std::time::{SystemTime, UNIX_EPOCH};

use qga_client::AnyAgent;
use qga_protocol::cpu::{GetLoad, GetVcpus, LoadAverage};
use qga_protocol::fsfreeze::{FreezeStatus, Status};
use qga_protocol::identity::{GetHostName, GetUsers, OsInfo, User};
use qga_protocol::storage::{DiskInfo, FilesystemInfo, GetDisks, GetFsInfo};
use qga_protocol::time::{GetTime, GetTimezone, Timezone};
use serde::Serialize;

use super::guest::{self, Memory};
use super::network::{self, Interface};
use crate::failure::Result;
use crate::visit::{Visit, optional};

/// All that is shown. What a guest does not tell is null.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    pub target: String,
    pub agent: AgentPart,
    pub frozen: Option<bool>,
    pub host_name: Option<String>,
    pub system: Option<OsInfo>,
    pub uptime_seconds: Option<f64>,
    pub load: Option<LoadAverage>,
    pub clock: Option<Clock>,
    pub time_zone: Option<Timezone>,
    pub processors: Option<Processors>,
    pub memory: Option<Memory>,
    pub users: Option<Vec<User>>,
    pub address: Option<String>,
    pub interfaces: Option<Vec<Interface>>,
    pub file_systems: Option<Vec<FilesystemInfo>>,
    pub disks: Option<Vec<DiskInfo>>,
}

/// The agent itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AgentPart {
    pub version: String,
    pub commands: usize,
    pub disabled: Vec<String>,
}

/// The guest's clock beside this host's.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Clock {
    pub guest_seconds: f64,
    /// How much the guest's clock is ahead.
    pub ahead_seconds: f64,
    /// The time that the question took: the difference is no more exact than that.
    pub uncertainty_seconds: f64,
}

/// Processors.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Processors {
    pub online: usize,
    pub all: usize,
}

pub fn run(visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let info = collect(&mut agent, visit.target.to_string())?;
    visit.page.report(&info)
}

/// Asks for everything; what the guest does not have or refuses is left out.
pub fn collect(agent: &mut AnyAgent, target: String) -> Result<Info> {
    let about = optional(agent.info().cloned())?;
    let agent_part = AgentPart {
        version: about.as_ref().map_or_else(|| "unknown".to_owned(), |about| about.version.clone()),
        commands: about.as_ref().map_or(0, |about| about.supported_commands.len()),
        disabled: about
            .map(|about| about.supported_commands)
            .unwrap_or_default()
            .into_iter()
            .filter(|command| !command.enabled)
            .map(|command| command.name)
            .collect(),
    };
    let processors = optional(agent.call(&GetVcpus {}))?.map(|processors| Processors {
        online: processors.iter().filter(|processor| processor.online).count(),
        all: processors.len(),
    });
    let interfaces = optional_list(network::interfaces(agent))?;
    Ok(Info {
        target,
        agent: agent_part,
        frozen: optional(agent.call(&Status {}))?.map(|status| status == FreezeStatus::Frozen),
        host_name: optional(agent.call(&GetHostName {}))?.map(|name| name.host_name),
        system: guest::system(agent)?,
        uptime_seconds: guest::uptime(agent)?,
        load: optional(agent.call(&GetLoad {}))?,
        clock: optional(clock(agent))?,
        time_zone: optional(agent.call(&GetTimezone {}))?,
        processors,
        memory: guest::memory(agent)?,
        users: optional(agent.call(&GetUsers {}))?,
        address: interfaces.as_deref().and_then(network::main_address).map(|address| address.to_string()),
        interfaces,
        file_systems: optional(agent.call(&GetFsInfo {}))?,
        disks: optional(agent.call(&GetDisks {}))?,
    })
}

fn optional_list<T>(part: Result<T>) -> Result<Option<T>> {
    match part {
        Err(crate::failure::Failure::Client(error)) => optional(Err(error)),
        part => part.map(Some),
    }
}

/// The guest's clock, as it was in the middle of the question.
pub fn clock(agent: &mut AnyAgent) -> std::result::Result<Clock, qga_client::Error> {
    let before = now_seconds();
    let guest_seconds = agent.call(&GetTime {})? as f64 / 1e9;
    let after = now_seconds();
    let middle = f64::midpoint(before, after);
    Ok(Clock { guest_seconds, ahead_seconds: guest_seconds - middle, uncertainty_seconds: (after - before) / 2.0 })
}

pub fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
