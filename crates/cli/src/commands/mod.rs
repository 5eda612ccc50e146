//! The commands, one module a family.

mod accounts;
pub mod call;
mod copy;
mod doctor;
mod documents;
mod exec;
mod files;
pub mod freeze;
mod guest;
mod info;
mod metrics;
mod network;
mod ping;
mod power;
mod processors;
mod sample;
mod shell;
mod storage;
mod targets;
mod time;
mod top;

use crate::arguments::{Arguments, Command, SshKey};
use crate::confirm::confirm;
use crate::failure::Result;
use crate::fleet::visit;
use crate::general_options::General;
use crate::target::{Selection, select};
use crate::visit::Visit;

/// Does what the command line says.
pub fn run(arguments: Arguments) -> Result<()> {
    let Arguments { general, command } = arguments;
    match command {
        Command::Completions(options) => documents::completions(options.shell),
        Command::Man(options) => documents::manual(&options.directory),
        Command::Targets => targets::run(&general),
        Command::Doctor(options) => doctor::run(&options, &general),
        Command::Metrics(options) => metrics::run(&options, &general),
        command => {
            // Before an agent is looked for: who names the guest as scp does has none yet, and is to hear how it is done.
            if let Command::Cp(options) = &command {
                copy::sides(options)?;
            }
            let selection = select(&general.targets, general.all)?;
            if let Some(act) = question(&command) {
                confirm(&act, &selection, &general)?;
            }
            for_targets(&command, &selection, &general)
        }
    }
}

fn for_targets(command: &Command, selection: &Selection, general: &General) -> Result<()> {
    match command {
        Command::Freeze(options) if !options.run.is_empty() => freeze::run(options, selection, general),
        Command::Freeze(options) if !options.status => freeze::freeze(options, selection, general),
        Command::WatchFreeze(options) => freeze::watch(options, selection, general),
        Command::Exec(options) => exec::run(options, selection, general),
        Command::Shell(options) => shell::run(options, selection.only("shell")?, general),
        Command::Top(options) => top::run(options, selection.only("top")?, general),
        Command::Passwd(options) => accounts::set_password(options, selection, general),
        Command::SshKey(options) => accounts::keys(options, selection, general),
        Command::Cp(options) => {
            let job = copy::Job::new(options, selection)?;
            visit(selection, general, &|visit| job.run(visit))
        }
        Command::Call(call) => {
            let call = call.prepare()?;
            visit(selection, general, &|visit| call.run(visit))
        }
        Command::Raw(options) => {
            let messages = call::Messages::new(options.message.as_deref(), selection.targets.len())?;
            visit(selection, general, &|visit| call::raw(&messages, visit))
        }
        command => visit(selection, general, &|visit| for_one(command, visit)),
    }
}

/// What is done for each target by itself.
fn for_one(command: &Command, visit: &mut Visit<'_>) -> Result<()> {
    match command {
        Command::Ping(options) => ping::run(options, visit),
        Command::Info => info::run(visit),
        Command::Cat(options) => files::cat(options, visit),
        Command::Ls(options) => files::list(options, visit),
        Command::Fs => storage::file_systems(visit),
        Command::Disks => storage::disks(visit),
        Command::Ip(options) => network::run(options, visit),
        Command::Users => accounts::users(visit),
        Command::Time(options) => time::run(options, visit),
        Command::Cpus(options) => processors::processors(options, visit),
        Command::Memory(options) => processors::memory(options, visit),
        Command::Freeze(_) => freeze::status(visit),
        Command::Thaw => freeze::thaw(visit),
        Command::Trim(options) => storage::trim(options, visit),
        Command::Suspend(options) => power::suspend(options.to, visit),
        Command::Shutdown => power::end("powerdown", visit),
        Command::Reboot => power::end("reboot", visit),
        Command::Halt => power::end("halt", visit),
        // They are not about one target, and were served above.
        Command::Exec(_)
        | Command::Shell(_)
        | Command::Top(_)
        | Command::Passwd(_)
        | Command::SshKey(_)
        | Command::Cp(_)
        | Command::Call(_)
        | Command::Raw(_)
        | Command::WatchFreeze(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Targets
        | Command::Doctor(_)
        | Command::Metrics(_) => Ok(()),
    }
}

/// What a person is asked before it is done.
fn question(command: &Command) -> Option<String> {
    let text = match command {
        Command::Freeze(options) if !options.status && options.run.is_empty() => "freeze the file systems of",
        Command::Time(options) if options.set.is_some() || options.sync || options.from_hardware => "set the clock of",
        Command::Cpus(options) if options.offline.is_some() => "switch processors off in",
        Command::Memory(options) if options.offline.is_some() => "switch memory off in",
        Command::Suspend(_) => "suspend",
        Command::Shutdown => "shut down",
        Command::Reboot => "reboot",
        Command::Halt => "halt",
        Command::Call(call) => return call.question(),
        Command::Raw(options) => return call::raw_question(options.message.as_deref()?),
        Command::SshKey(SshKey::Add { reset: true, .. }) => "remove all other keys of a user of",
        _ => return None,
    };
    Some(text.to_owned())
}
