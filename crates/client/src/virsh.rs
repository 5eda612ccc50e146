//! The way through libvirt: one run of `virsh qemu-agent-command` for each call. libvirt itself keeps the agent's
//! channel, and synchronises it before each command.
//!
//! `virsh` takes the request from its standard input: what is on a command line can be read by all users of the host,
//! and a request may hold a password or a file. It then acts as it does for a person at a terminal, with a prompt and an
//! echo around the reply.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::conversation::Ticket;
use crate::error::{AgentError, Error};
use crate::kind::Kind;
use crate::patience::Patience;
use crate::transport::{Arguments, Capacity, Transport};

/// Longest output that is taken. libvirt takes no reply over 10 MiB; the echo of the request comes with it.
const LONGEST_OUTPUT_BYTES: u64 = 32 << 20;

/// The transport through `virsh`.
#[derive(Debug)]
pub struct Virsh {
    program: OsString,
    uri: Option<String>,
    domain: String,
    silence: Duration,
    /// What it may take beside.
    own_time: Duration,
    deadline: Option<Instant>,
    /// Says that nobody waits any longer.
    is_over: Option<fn() -> bool>,
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
            own_time: Patience::default().virsh,
            deadline: None,
            is_over: None,
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
        if self.domain.contains(char::is_control) {
            let problem = "a domain's name has no control characters".to_owned();
            return Err(Error::Target { text: self.domain.clone(), problem });
        }
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Error::Late { command: command.to_owned() });
        }
        let silence = left.map_or(self.silence, |left| self.silence.min(left));
        let seconds = silence.as_secs().max(1);
        let line = format!(
            "qemu-agent-command --timeout {seconds} --domain {} '{}'\n",
            quoted(&self.domain),
            unambiguous(&request)
        );
        let wait = self.wait(silence.saturating_add(self.own_time));
        let output = run(&self.program, self.uri.as_deref(), &[], line.into_bytes(), wait)
            .map_err(|failure| self.failed(command, failure))?;
        match reply_in(&output.stdout) {
            Some(reply) => self.reply = reply.to_vec(),
            None => return Err(self.with_state(self.failed(command, output.failure()))),
        }
        Ok(())
    }

    /// A wait that ends with the deadline at the latest.
    fn wait(&self, limit: Duration) -> Wait {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Wait { limit: left.map_or(limit, |left| limit.min(left)), is_over: self.is_over }
    }

    /// libvirt says the same of all domains that do not run; what they do instead it tells when asked.
    fn with_state(&self, error: Error) -> Error {
        let Error::Unreachable { target, kind: Kind::NotRunning, cause } = error else { return error };
        let line = format!("domstate --domain {}\n", quoted(&self.domain));
        let asked = run(&self.program, self.uri.as_deref(), &[], line.into_bytes(), self.wait(self.own_time));
        let output = asked.map_or_else(|_| Vec::new(), |ran| ran.stdout);
        let (kind, state) = state_in(&output);
        let cause = if state.is_empty() { cause } else { format!("{cause}, but {state}") };
        Error::Unreachable { target, kind, cause }
    }

    fn failed(&self, command: &str, failure: Failure) -> Error {
        match failure {
            Failure::NotStarted(source) => not_started(self.target(), &source),
            Failure::Late(_) if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                Error::Late { command: command.to_owned() }
            }
            Failure::Late(after) => Error::TimedOut { command: command.to_owned(), after },
            Failure::GivenUp => Error::GivenUp { command: command.to_owned() },
            Failure::Said(text) => explain(command, &self.target(), &text, self.silence),
        }
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

    fn silence(&self) -> Option<Duration> {
        Some(self.silence)
    }

    fn set_silence(&mut self, silence: Duration) -> Result<(), Error> {
        self.silence = silence;
        Ok(())
    }

    fn give_up_when(&mut self, is_over: Option<fn() -> bool>) {
        self.is_over = is_over;
    }

    fn set_patience(&mut self, patience: &Patience) {
        self.own_time = patience.virsh;
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    fn capacity(&self) -> Capacity {
        // libvirt passes texts of 4 MiB, but virsh echoes each character of a request.
        Capacity { requests_in_flight: 1, read_bytes: 2 << 20, write_bytes: 64 << 10 }
    }
}

/// The names of the running domains.
pub(crate) fn running_domains(uri: Option<&str>) -> Result<Vec<String>, Error> {
    let target = || format!("libvirt{}", uri.map(|uri| format!("+{uri}")).unwrap_or_default());
    let failed = |failure| match failure {
        Failure::NotStarted(source) => not_started(target(), &source),
        Failure::Late(after) => {
            let cause = format!("virsh did not end within {} s", after.as_secs());
            Error::Unreachable { target: target(), kind: Kind::NoManager, cause }
        }
        Failure::GivenUp => Error::GivenUp { command: "list".to_owned() },
        Failure::Said(text) => explain("list", &target(), &text, Duration::ZERO),
    };
    let arguments = ["list", "--name", "--state-running"];
    let listed = run(&program(), uri, &arguments, Vec::new(), Wait { limit: Patience::default().virsh, is_over: None })
        .map_err(failed)?;
    if !listed.is_good {
        return Err(failed(listed.failure()));
    }
    let names = String::from_utf8_lossy(&listed.stdout);
    Ok(names.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn program() -> OsString {
    std::env::var_os("QGA_VIRSH").filter(|program| !program.is_empty()).unwrap_or_else(|| "virsh".into())
}

enum Failure {
    NotStarted(io::Error),
    /// It had not ended after this time, and was killed.
    Late(Duration),
    /// Nobody waits any longer for it, and it was killed.
    GivenUp,
    Said(String),
}

/// What a run of `virsh` that came to its end has left.
struct Ran {
    is_good: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ran {
    /// Its error messages in one line.
    fn failure(&self) -> Failure {
        let text = String::from_utf8_lossy(&self.stderr);
        let mut said = text.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line)).fold(
            String::new(),
            |mut said, line| {
                if !line.trim().is_empty() {
                    let _ = write!(said, "{}{}", if said.is_empty() { "" } else { ": " }, line.trim());
                }
                said
            },
        );
        if said.is_empty() {
            "virsh gave no answer and said nothing".clone_into(&mut said);
        }
        Failure::Said(said)
    }
}

/// How long a run of `virsh` is waited for.
#[derive(Clone, Copy)]
struct Wait {
    limit: Duration,
    is_over: Option<fn() -> bool>,
}

impl Wait {
    /// Tries until there is something. A try waits for as long as it is told, which is never long.
    fn until<T>(
        self,
        started: Instant,
        mut attempt: impl FnMut(Duration) -> Option<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        const LOOK: Duration = Duration::from_millis(100);
        loop {
            let left = self.limit.saturating_sub(started.elapsed());
            if let Some(done) = attempt(left.min(LOOK)) {
                return done;
            }
            if self.is_over.is_some_and(|is_over| is_over()) {
                return Err(Failure::GivenUp);
            }
            if left.is_zero() {
                return Err(Failure::Late(self.limit));
            }
        }
    }
}

/// Runs `virsh` to its end. One that is not waited for any longer is killed.
fn run(program: &OsString, uri: Option<&str>, arguments: &[&str], input: Vec<u8>, wait: Wait) -> Result<Ran, Failure> {
    let started = Instant::now();
    let mut command = Command::new(program);
    // Its messages are told apart by their words. The others keep its line editor plain, and secrets out of its history.
    command.envs([("LC_ALL", "C"), ("TERM", "dumb"), ("INPUTRC", "/dev/null"), ("VIRSH_HISTSIZE", "0")]).arg("--quiet");
    if let Some(uri) = uri {
        command.args(["--connect", uri]);
    }
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // This thread stays until it has ended; if the whole process is killed, nobody is left to end one that hangs.
    qga_sys::child::end_with_parent(&mut command);
    let mut child = command.spawn().map_err(Failure::NotStarted)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it ends before it has read all, its messages say why.
        thread::spawn(move || stdin.write_all(&input));
    }
    let outputs = [child.stdout.take().map(gather), child.stderr.take().map(gather)];
    let ran = collect(&mut child, outputs, started, wait);
    if ran.is_err() {
        kill(&mut child);
    }
    ran
}

type Gathered = Option<mpsc::Receiver<Vec<u8>>>;

fn collect(child: &mut Child, outputs: [Gathered; 2], started: Instant, wait: Wait) -> Result<Ran, Failure> {
    let take = |output: Gathered| {
        let Some(output) = output else { return Ok(Vec::new()) };
        wait.until(started, |pause| match output.recv_timeout(pause) {
            Ok(bytes) => Some(Ok(bytes)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Ok(Vec::new())),
        })
    };
    let [stdout, stderr] = outputs;
    let (stdout, stderr) = (take(stdout)?, take(stderr)?);
    // It may have closed its outputs and go on.
    let status = wait.until(started, |pause| match child.try_wait() {
        Ok(Some(status)) => Some(Ok(status)),
        Ok(None) => {
            thread::sleep(pause.min(Duration::from_millis(2)));
            None
        }
        Err(error) => Some(Err(Failure::NotStarted(error))),
    })?;
    Ok(Ran { is_good: status.success(), stdout, stderr })
}

/// One that waits for a dead disk may not even end then; it is not waited for.
fn kill(child: &mut Child) {
    const LONGEST: Duration = Duration::from_secs(2);
    let asked = Instant::now();
    // It may have ended just now.
    let _ = child.kill();
    while matches!(child.try_wait(), Ok(None)) && asked.elapsed() < LONGEST {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Reads to the end in a thread of its own.
fn gather(output: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error may explain it. Nobody listens any more after the deadline.
        let _ = output.take(LONGEST_OUTPUT_BYTES).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// The reply between the echo of the request and the next prompt. A `virsh` without a line editor echoes nothing.
fn reply_in(output: &[u8]) -> Option<&[u8]> {
    let mut lines = output.split(|&byte| byte == b'\n').map(|line| without_prompt(line.trim_ascii()));
    let first = lines.next().filter(|line| line.starts_with(b"{"));
    first.or_else(|| lines.find(|line| !line.is_empty()))
}

/// What the answer to `domstate` means, and its words.
fn state_in(output: &[u8]) -> (Kind, String) {
    const STATES: [(&str, Kind); 6] = [
        ("shut off", Kind::NotRunning),
        ("in shutdown", Kind::NotRunning),
        ("paused", Kind::Paused),
        ("pmsuspended", Kind::Suspended),
        ("crashed", Kind::Crashed),
        // It was resumed or started meanwhile.
        ("running", Kind::NoAnswer),
    ];
    let lines = output.split(|&byte| byte == b'\n').map(|line| without_prompt(line.trim_ascii()));
    let known = |line: &[u8]| STATES.into_iter().find(|(state, _)| line == state.as_bytes());
    lines
        .filter_map(known)
        .next_back()
        .map_or((Kind::NotRunning, String::new()), |(state, kind)| (kind, state.to_owned()))
}

fn without_prompt(line: &[u8]) -> &[u8] {
    let after = [b"virsh #".as_slice(), b"virsh >"].into_iter().find_map(|prompt| line.strip_prefix(prompt));
    after.unwrap_or(line).trim_ascii_start()
}

/// The text as one word of a `virsh` command.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The same JSON without characters that mean something to a line editor or to quotes.
fn unambiguous(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, character| {
        match character {
            ' '..='~' if character != '\'' => text.push(character),
            // Between the members; those in texts are escaped already.
            '\n' | '\t' | '\r' => text.push(' '),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
        text
    })
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
    fn a_virsh_that_hangs_is_ended() {
        let hang =
            |limit, is_over| run(&"tail".into(), None, &["--follow", "/dev/null"], Vec::new(), Wait { limit, is_over });
        let limit = Duration::from_millis(100);
        assert!(matches!(hang(limit, None), Err(Failure::Late(after)) if after == limit));
        assert!(matches!(hang(Duration::MAX, Some(|| true)), Err(Failure::GivenUp)));
    }

    #[test]
    fn a_request_survives_the_quotes_of_virsh() {
        let value = serde_json::json!({ "a": "it's \u{7f} grün 😀 \"x\" \\ \n" });
        let text = unambiguous(&value.to_string());
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'\''), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        assert_eq!(quoted("my 'web'"), r"'my '\''web'\'''");
    }

    #[test]
    fn the_reply_is_found_between_prompts() {
        let check = |output: &str, reply: Option<&str>| {
            assert_eq!(reply_in(output.as_bytes()), reply.map(str::as_bytes), "{output:?}");
        };
        check("virsh # qemu-agent-command --x '{}'\n{\"return\":{}}\n\nvirsh # \n", Some("{\"return\":{}}"));
        check("virsh # \r<command '{\"execute\":1}'\n{\"return\":{}}\n\nvirsh # \n", Some("{\"return\":{}}"));
        check("virsh > {\"return\":{}}\nvirsh > \n", Some("{\"return\":{}}"));
        check("virsh # qemu-agent-command --x '{}'\nvirsh # \n", None);
        check("", None);
    }

    #[test]
    fn a_domain_that_does_not_run_says_what_it_does() {
        let check = |output: &str, kind, state: &str| assert_eq!(state_in(output.as_bytes()), (kind, state.to_owned()));
        check("virsh # domstate --domain 'web'\npaused\n\nvirsh # \n", Kind::Paused, "paused");
        check("shut off\n\n", Kind::NotRunning, "shut off");
        check("virsh > pmsuspended\nvirsh > \n", Kind::Suspended, "pmsuspended");
        check("crashed\n", Kind::Crashed, "crashed");
        check("virsh # domstate --domain 'paused'\nvirsh # \n", Kind::NotRunning, "");
        check("", Kind::NotRunning, "");
    }

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
