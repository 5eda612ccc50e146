//! The way through libvirt: one run of `virsh qemu-agent-command` for each call. libvirt itself keeps the agent's
//! channel, and synchronises it before each command.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::conversation::Ticket;
use crate::error::{AgentError, Error};
use crate::kind::Kind;
use crate::transport::{Arguments, Capacity, Transport};

/// The transport through `virsh`.
#[derive(Debug)]
pub struct Virsh {
    program: OsString,
    uri: Option<String>,
    domain: String,
    silence: Duration,
    request: Option<String>,
    reply: Vec<u8>,
}

impl Virsh {
    /// The way to a domain's agent. `silence` is how long libvirt waits for the agent, in whole seconds.
    ///
    /// The program is `virsh` from `PATH`, or what the environment's `QGA_VIRSH` names.
    #[must_use]
    pub fn new(uri: Option<&str>, domain: &str, silence: Duration) -> Self {
        Self {
            program: program(),
            uri: uri.map(str::to_owned),
            domain: domain.to_owned(),
            silence,
            request: None,
            reply: Vec::new(),
        }
    }

    /// Takes another program than `virsh`.
    #[must_use]
    pub fn with_program(mut self, program: impl Into<OsString>) -> Self {
        self.program = program.into();
        self
    }

    fn target(&self) -> String {
        let uri = self.uri.as_ref().map(|uri| format!("+{uri}")).unwrap_or_default();
        format!("libvirt{uri}:{}", self.domain)
    }

    fn exchange(&mut self, command: &str) -> Result<(), Error> {
        let request = self.request.take().unwrap_or_default();
        let seconds = self.silence.as_secs().max(1).to_string();
        let arguments = ["qemu-agent-command", "--timeout", &seconds, "--domain", &self.domain, &request];
        self.reply = run(&self.program, self.uri.as_deref(), &arguments).map_err(|failure| match failure {
            Failure::NotStarted(source) => not_started(self.target(), &source),
            Failure::Said(text) => explain(command, &self.target(), &text, self.silence),
        })?;
        while self.reply.last().is_some_and(u8::is_ascii_whitespace) {
            self.reply.pop();
        }
        Ok(())
    }
}

impl Transport for Virsh {
    fn sync(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn start(&mut self, command: &str, arguments: Option<Arguments<'_>>) -> Result<Ticket, Error> {
        let mut text = format!("{{\"execute\":\"{command}\"").into_bytes();
        if let Some(write) = arguments {
            text.extend_from_slice(b",\"arguments\":");
            write(&mut text).map_err(|source| Error::Request { command: command.to_owned(), source })?;
        }
        text.push(b'}');
        self.request = Some(String::from_utf8_lossy(&text).into_owned());
        Ok(Ticket::ONLY)
    }

    fn receive(&mut self, command: &str, _ticket: Option<Ticket>) -> Result<&[u8], Error> {
        self.exchange(command)?;
        Ok(&self.reply)
    }

    fn set_silence(&mut self, silence: Duration) -> Result<(), Error> {
        self.silence = silence;
        Ok(())
    }

    fn capacity(&self) -> Capacity {
        // Linux takes 128 KiB as one argument of a program; libvirt passes texts of 4 MiB.
        Capacity { requests_in_flight: 1, read_bytes: 2 << 20, write_bytes: 64 << 10 }
    }
}

/// The names of the running domains.
pub(crate) fn running_domains(uri: Option<&str>) -> Result<Vec<String>, Error> {
    let target = || format!("libvirt{}", uri.map(|uri| format!("+{uri}")).unwrap_or_default());
    let listed = run(&program(), uri, &["list", "--name", "--state-running"]).map_err(|failure| match failure {
        Failure::NotStarted(source) => not_started(target(), &source),
        Failure::Said(text) => explain("list", &target(), &text, Duration::ZERO),
    })?;
    let names = String::from_utf8_lossy(&listed);
    Ok(names.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn program() -> OsString {
    std::env::var_os("QGA_VIRSH").filter(|program| !program.is_empty()).unwrap_or_else(|| "virsh".into())
}

enum Failure {
    NotStarted(io::Error),
    Said(String),
}

fn run(program: &OsString, uri: Option<&str>, arguments: &[&str]) -> Result<Vec<u8>, Failure> {
    let mut command = Command::new(program);
    // Its messages are told apart by their words.
    command.env("LC_ALL", "C").stdin(Stdio::null()).arg("--quiet");
    if let Some(uri) = uri {
        command.args(["--connect", uri]);
    }
    let output = command.args(arguments).output().map_err(Failure::NotStarted)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let mut said =
        text.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line)).fold(String::new(), |mut said, line| {
            if !line.trim().is_empty() {
                let _ = write!(said, "{}{}", if said.is_empty() { "" } else { ": " }, line.trim());
            }
            said
        });
    if said.is_empty() {
        said = format!("virsh ended with {} and said nothing", output.status);
    }
    Err(Failure::Said(said))
}

fn not_started(target: String, source: &io::Error) -> Error {
    let kind = if source.kind() == io::ErrorKind::NotFound { Kind::NoTool } else { Kind::NoManager };
    Error::Unreachable { target, kind, cause: format!("virsh cannot be started: {source}") }
}

/// What libvirt's words mean. They have been the same for years and are part of no interface, so what is not known is
/// passed on as it is.
fn explain(command: &str, target: &str, text: &str, silence: Duration) -> Error {
    const AGENT_SAID: &str = "unable to execute QEMU agent command";
    if let Some((_, rest)) = text.split_once(AGENT_SAID) {
        // unable to execute QEMU agent command 'guest-x': what the agent said
        let desc = rest.split_once("': ").map_or(rest, |(_, desc)| desc).trim().to_owned();
        let is_missing = desc.contains("has been disabled") || desc.contains("has not been found");
        let class = if is_missing { "CommandNotFound" } else { "GenericError" }.to_owned();
        return Error::Agent { command: command.to_owned(), error: AgentError { class, desc } };
    }
    let has = |words: &str| text.contains(words);
    let kind = if has("Domain not found") || has("failed to get domain") {
        Kind::NoSuchDomain
    } else if has("domain is not running") || has("is not running") {
        Kind::NotRunning
    } else if has("QEMU guest agent is not configured") {
        Kind::NoAgentPort
    } else if has("QEMU guest agent is not connected") || has("not available due to an error") {
        Kind::NoAgent
    } else if has("agent disappeared") || has("agent channel") {
        return Error::Closed { command: command.to_owned() };
    } else if has("Guest agent is not responding") || has("guest agent command timed out") || has("agent not available")
    {
        return Error::TimedOut { command: command.to_owned(), after: silence };
    } else if has("Permission denied") || has("access denied") || has("authentication") {
        Kind::NotPermitted
    } else {
        Kind::NoManager
    };
    Error::Unreachable { target: target.to_owned(), kind, cause: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirts_words_are_told_apart() {
        let check = |text: &str, kind| {
            let error = explain("guest-ping", "libvirt:web", text, Duration::from_secs(5));
            assert_eq!(error.kind(), kind, "{error}");
        };
        let no_domain = "failed to get domain 'web': Domain not found: no domain with matching name 'web'";
        check(no_domain, Kind::NoSuchDomain);
        check("Requested operation is not valid: domain is not running", Kind::NotRunning);
        check("argument unsupported: QEMU guest agent is not configured", Kind::NoAgentPort);
        check("Guest agent is not responding: QEMU guest agent is not connected", Kind::NoAgent);
        check("Guest agent is not responding: Guest agent not available for now", Kind::NoAnswer);
        check("Guest agent is not responding: Guest agent disappeared while executing command", Kind::ConnectionLost);
        let no_daemon = "failed to connect to the hypervisor: Failed to connect socket to \
                         '/var/run/libvirt/libvirt-sock': No such file or directory";
        check(no_daemon, Kind::NoManager);
        let not_permitted = "failed to connect to the hypervisor: Failed to connect socket to \
                             '/var/run/libvirt/libvirt-sock': Permission denied";
        check(not_permitted, Kind::NotPermitted);
        let disabled = "internal error: unable to execute QEMU agent command 'guest-exec': Command guest-exec has \
                        been disabled: the command is not allowed";
        check(disabled, Kind::CommandRefused);
        let unknown = "internal error: unable to execute QEMU agent command 'guest-x': The command guest-x has not \
                       been found";
        check(unknown, Kind::NoSuchCommand);
        let failed = "internal error: unable to execute QEMU agent command 'guest-file-open': failed to open file \
                      '/x' (mode: 'r'): No such file or directory";
        check(failed, Kind::NoSuchFile);
    }
}
