//! Whole requests: parsing the arguments of every command never panics, and every answer that follows from it is one
//! line of JSON that an independent reader takes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qga_protocol::command::Command;
use qga_protocol::message::{self, ErrorClass, Request};
use qga_protocol::stream::{Decoder, Event};
use qga_protocol::{
    accounts, cpu, devices, exec, file, fsfreeze, identity, memory, network, power, session, storage, time,
};

/// Tries a request's arguments as those of a command.
type Attempt = (&'static str, fn(&Request));

macro_rules! attempts {
    ($($command:ty),+ $(,)?) => {
        &[$((<$command as Command>::INFO.name, |request| attempt(request.arguments::<$command>(), request))),+]
    };
}

/// Types cannot be taken from the protocol's list of commands; that none is missing is checked below.
const ATTEMPTS: &[Attempt] = attempts![
    session::SyncDelimited,
    session::Sync,
    session::Ping,
    session::GetInfo,
    file::Open,
    file::Close,
    file::Read,
    file::Write<'_>,
    file::Seek,
    file::Flush,
    exec::Exec<'_>,
    exec::Status,
    fsfreeze::Status,
    fsfreeze::Freeze,
    fsfreeze::FreezeList,
    fsfreeze::Thaw,
    storage::Trim,
    storage::GetFsInfo,
    storage::GetDisks,
    storage::GetDiskStats,
    network::GetInterfaces,
    network::GetRoute,
    cpu::GetVcpus,
    cpu::SetVcpus,
    cpu::GetCpuStats,
    cpu::GetLoad,
    memory::GetMemoryBlocks,
    memory::SetMemoryBlocks,
    memory::GetMemoryBlockInfo,
    power::Shutdown,
    power::SuspendDisk,
    power::SuspendRam,
    power::SuspendHybrid,
    time::GetTime,
    time::SetTime,
    time::GetTimezone,
    identity::GetOsInfo,
    identity::GetHostName,
    identity::GetUsers,
    accounts::SetUserPassword<'_>,
    accounts::GetAuthorizedKeys,
    accounts::AddAuthorizedKeys,
    accounts::RemoveAuthorizedKeys,
    devices::GetDevices,
];

fuzz_target!(
    init: {
        for info in qga_protocol::commands() {
            assert!(ATTEMPTS.iter().any(|(name, _)| *name == info.name), "{} is missing here", info.name);
        }
    },
    |input: &[u8]| {
        let mut rest = input;
        let mut decoder = Decoder::default();
        while let Some(event) = decoder.next(&mut rest) {
            let Event::Request(request) = event else { continue };
            let mut line = Vec::new();
            let result = serde_json::json!({ "name": request.name() });
            message::write_success(&mut line, &result, request.id()).expect("memory takes it");
            check(&line);
            let name = request.name();
            let mut named = ATTEMPTS.iter().filter(|(known, _)| *known == name).peekable();
            // Arguments of an unknown command are tried as everybody's.
            let is_known = named.peek().is_some();
            for (_, attempt) in ATTEMPTS.iter().filter(|(known, _)| !is_known || *known == name) {
                attempt(&request);
            }
        }
    }
);

fn attempt<C: Command>(parsed: Result<C, qga_protocol::args::Error>, request: &Request) {
    match parsed {
        // What was understood can be said again.
        Ok(command) => drop(serde_json::to_string(&command).expect("a command can be written")),
        Err(error) => {
            let mut line = Vec::new();
            let desc = error.to_string();
            message::write_error(&mut line, ErrorClass::GenericError, &desc, request.id()).expect("memory takes it");
            check(&line);
        }
    }
}

fn check(line: &[u8]) {
    assert!(line.is_ascii(), "a reply must be ASCII");
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "a reply must be one line");
    let value: serde_json::Value = serde_json::from_slice(line).expect("a reply must be JSON");
    assert!(value.get("return").is_some() != value.get("error").is_some());
}
