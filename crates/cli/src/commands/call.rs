//! `qga call`: every command of the protocol, its arguments as options. Names, types and help come from the protocol's
//! own list.

use std::io::Read;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, Subcommand};
use qga_client::AnyAgent;
use qga_protocol::command::{Argument, Info, Type};
use serde_json::{Map, Value};

use crate::exit_code::{self, Code};
use crate::failure::{Failure, Result};
use crate::visit::Visit;

/// How long an error of a command whose success is not answered is waited for.
pub const UNANSWERED_PATIENCE: Duration = Duration::from_secs(5);

/// The argument that is a secret wherever it stands.
const SECRET: &str = "password";

/// A command with its arguments as they were written.
#[derive(Debug, Clone)]
pub struct Call {
    info: &'static Info,
    values: Vec<(&'static Argument, Vec<String>)>,
}

impl FromArgMatches for Call {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let missing = || clap::Error::new(clap::error::ErrorKind::MissingSubcommand);
        let (name, matches) = matches.subcommand().ok_or_else(missing)?;
        let info = qga_protocol::commands().find(|info| info.name == name).ok_or_else(missing)?;
        let values = info.arguments.iter().filter_map(|argument| {
            let values = matches.get_many::<String>(argument.field)?;
            Some((argument, values.cloned().collect()))
        });
        Ok(Self { info, values: values.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for Call {
    fn augment_subcommands(command: Command) -> Command {
        let command = command
            .subcommand_required(true)
            .subcommand_help_heading("Commands of the protocol")
            .subcommand_value_name("NAME");
        command.subcommands(qga_protocol::commands().map(subcommand))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        qga_protocol::commands().any(|info| info.name == name)
    }
}

fn subcommand(info: &'static Info) -> Command {
    let long = format!("{}\n\nIn agents since {}. Returns {}.", paragraphs(info.doc), info.since, info.reply);
    Command::new(info.name).about(first_sentence(info.doc)).long_about(long).args(info.arguments.iter().map(option))
}

fn option(argument: &'static Argument) -> Arg {
    let (type_, is_optional) = match argument.type_ {
        Type::Optional(inner) => (*inner, true),
        type_ => (type_, false),
    };
    let name = argument.name().into_owned();
    let mut help = paragraphs(argument.doc);
    if let Some(values) = values_of(type_) {
        help.push_str(&format!("\n\nValues: {values}."));
    }
    match type_ {
        _ if name == SECRET => {
            help.push_str("\n\nA secret: only as @FILE, or @- for standard input. It is encoded here.");
        }
        Type::Base64 => {
            help.push_str("\n\nBase64 as it is, or @FILE (@- for standard input) whose content is encoded here.");
        }
        Type::List(_) => help.push_str("\n\nOnce for each element, or all as a JSON array."),
        _ => {}
    }
    let arg = Arg::new(argument.field)
        .long(name)
        .value_name(type_.to_string())
        .required(!is_optional)
        .allow_hyphen_values(true)
        .help(first_sentence(argument.doc))
        .long_help(help);
    match type_ {
        Type::List(_) => arg.action(ArgAction::Append),
        Type::Boolean => arg.value_parser(["true", "false"]).hide_possible_values(true),
        _ => arg,
    }
}

/// What can be written for a type, where its name does not say it.
fn values_of(type_: Type) -> Option<&'static str> {
    Some(match type_ {
        Type::Integer => "a whole number",
        Type::Unsigned => "a whole number from 0 up",
        Type::Number => "a number",
        Type::Boolean => "true, false",
        Type::Named("GuestFileWhence") => "set, cur, end, or the numbers 0, 1, 2 for them",
        Type::Named("GuestExecCaptureOutput") => "true, false, none, stdout, stderr, separated, merged",
        Type::List(Type::Named("GuestLogicalProcessor")) => r#"objects such as {"logical-id": 1, "online": false}"#,
        Type::List(Type::Named("GuestMemoryBlock")) => r#"objects such as {"phys-index": 32, "online": false}"#,
        Type::Named(_) => "a word, or JSON",
        _ => return None,
    })
}

impl Call {
    /// What a person is asked before it is done.
    pub fn question(&self) -> Option<String> {
        question(self.info)
    }

    /// Reads the values that stand in files or on standard input, once for all targets.
    pub fn prepare(&self) -> Result<Prepared> {
        let from_input = self.values.iter().flat_map(|(_, values)| values).filter(|value| value.as_str() == "@-");
        if from_input.count() > 1 {
            return Err(Failure::usage(
                "@- stands for standard input, which can be read once, and is named more than once",
            ));
        }
        Ok(Prepared { info: self.info, arguments: self.arguments()? })
    }

    fn arguments(&self) -> Result<Value> {
        if self.values.is_empty() {
            return Ok(Value::Null);
        }
        let mut arguments = Map::new();
        for (argument, values) in &self.values {
            let name = argument.name();
            let value = value(argument.type_, values, name == SECRET)
                .map_err(|problem| Failure::usage(format!("--{name}: {problem}")))?;
            arguments.insert(name.into_owned(), value);
        }
        Ok(Value::Object(arguments))
    }
}

/// A call with the values of its arguments.
#[derive(Debug)]
pub struct Prepared {
    info: &'static Info,
    arguments: Value,
}

impl Prepared {
    pub fn run(&self, visit: &mut Visit<'_>) -> Result<()> {
        let mut agent = visit.connect()?;
        if !self.info.rules.success_response {
            let patience = UNANSWERED_PATIENCE.min(visit.general.timeout);
            agent.call_unanswered(self.info.name, self.arguments.clone(), patience)?;
            return if visit.page.is_json() { visit.page.json(&Value::Null) } else { Ok(()) };
        }
        visit.page.document(agent.call_text(self.info.name, self.arguments.clone())?.get(), false)
    }
}

fn value(type_: Type, values: &[String], is_secret: bool) -> std::result::Result<Value, String> {
    let text = values.last().map_or("", String::as_str);
    if is_secret && !text.starts_with('@') {
        return Err(
            "a secret is not written on the command line, where others can read it; write @FILE or @-".to_owned()
        );
    }
    match type_ {
        Type::Optional(inner) => value(*inner, values, is_secret),
        Type::Integer => text.parse::<i64>().map(Value::from).map_err(|_| format!("{text:?} is no whole number")),
        Type::Unsigned => text.parse::<u64>().map(Value::from).map_err(|_| format!("{text:?} is no number from 0 up")),
        Type::Number => text.parse::<f64>().map(Value::from).map_err(|_| format!("{text:?} is no number")),
        Type::Boolean => {
            text.parse::<bool>().map(Value::from).map_err(|_| format!("{text:?} is neither true nor false"))
        }
        Type::Base64 => match text.strip_prefix('@') {
            Some(path) => content(path, is_secret).map(|bytes| base64_simd::STANDARD.encode_to_string(bytes).into()),
            None => Ok(text.into()),
        },
        Type::List(_) if values.len() == 1 && text.trim_start().starts_with('[') => {
            serde_json::from_str(text).map_err(|error| format!("this is no JSON array: {error}"))
        }
        Type::List(element) => values
            .iter()
            .map(|text| value(*element, std::slice::from_ref(text), false))
            .collect::<std::result::Result<_, _>>()
            .map(Value::Array),
        Type::Named(_) => Ok(serde_json::from_str(text).unwrap_or_else(|_| text.into())),
        Type::Text | Type::Nothing => Ok(text.into()),
    }
}

/// A file's content, without its last line end if it is a secret: editors and `echo` add one.
fn content(path: &str, is_secret: bool) -> std::result::Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = if path == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(path).map(|read| bytes = read)
    };
    read.map_err(|error| format!("cannot read {path}: {error}"))?;
    if is_secret && bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if is_secret && bytes.is_empty() {
        let place = if path == "-" { "standard input" } else { path };
        return Err(format!("there is nothing in {place}, and an empty secret opens the account to everybody"));
    }
    Ok(bytes)
}

/// The documentation as running text, without the marks of links.
fn paragraphs(doc: &[&str]) -> String {
    let mut text = String::new();
    for line in doc.iter().map(|line| line.trim().replace("[`", "").replace("`]", "")) {
        if line.is_empty() {
            text.push_str("\n\n");
        } else {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push(' ');
            }
            text.push_str(&line);
        }
    }
    text
}

fn first_sentence(doc: &[&str]) -> String {
    let text = paragraphs(doc);
    let first = text.split("\n\n").next().unwrap_or_default();
    let end = first.find(". ").unwrap_or(first.len());
    first[..end].trim_end_matches('.').to_owned()
}

/// What a person is asked before a command is called that changes the guest.
fn question(info: &Info) -> Option<String> {
    (info.rules.exclusive || !info.rules.success_response).then(|| format!("call {} on", info.name))
}

/// What a person is asked before a message is sent. One that is wrong is told of later.
pub fn raw_question(message: &str) -> Option<String> {
    let message = Message::parse(message).ok()?;
    question(qga_protocol::commands().find(|info| info.name == message.command)?)
}

/// Where the messages of `qga raw` come from.
#[derive(Debug)]
pub enum Messages<'a> {
    /// These, which were read once for all targets.
    Known(Vec<String>),
    /// Standard input, line by line: somebody may be writing them.
    Lines,
    /// The only one.
    One(&'a str),
}

impl<'a> Messages<'a> {
    /// For so many targets.
    pub fn new(message: Option<&'a str>, targets: usize) -> Result<Self> {
        const MOST_BYTES: u64 = 128 << 20;
        if let Some(message) = message {
            return Ok(Self::One(message));
        }
        if targets < 2 {
            return Ok(Self::Lines);
        }
        let mut text = String::new();
        let read = std::io::stdin().lock().take(MOST_BYTES).read_to_string(&mut text);
        let size = read.map_err(|error| Failure::host("read standard input", &error))?;
        if size as u64 == MOST_BYTES {
            return Err(Failure::usage(format!("more than {} MiB of messages for several targets", MOST_BYTES >> 20)));
        }
        Ok(Self::Known(text.lines().map(str::to_owned).collect()))
    }
}

/// `qga raw`: messages as they are, and the replies as they are. An error in a reply is the reply, and the exit code says so.
pub fn raw(messages: &Messages<'_>, visit: &mut Visit<'_>) -> Result<()> {
    let mut agent = visit.connect()?;
    let mut failed = None;
    let mut send = |message: &str, visit: &mut Visit<'_>| -> Result<()> {
        if let Some(code) = send(&mut agent, &Message::parse(message)?, visit)? {
            failed.get_or_insert(code);
        }
        Ok(())
    };
    match messages {
        Messages::One(message) => send(message, visit)?,
        Messages::Known(lines) => lines.iter().try_for_each(|line| send_asked(line, visit, &mut send))?,
        Messages::Lines => {
            for line in std::io::stdin().lines() {
                let line = line.map_err(|error| Failure::host("read standard input", &error))?;
                send_asked(&line, visit, &mut send)?;
            }
        }
    }
    failed.map_or(Ok(()), |code| Err(Failure::Silent(code)))
}

/// Sends a line of standard input, from which nobody can be asked.
fn send_asked(
    line: &str,
    visit: &mut Visit<'_>,
    send: &mut impl FnMut(&str, &mut Visit<'_>) -> Result<()>,
) -> Result<()> {
    if line.trim().is_empty() {
        return Ok(());
    }
    if let (false, Some(act)) = (visit.general.yes, raw_question(line)) {
        return Err(Failure::told(
            Code::Usage,
            format!("this would {act} {}, and standard input has the messages", visit.target),
            "Say --yes to do it without being asked.",
        ));
    }
    send(line, visit)
}

/// Sends one message and prints its reply. For an error reply its exit code is returned.
fn send(agent: &mut AnyAgent, message: &Message, visit: &mut Visit<'_>) -> Result<Option<u8>> {
    let id = message.id.as_ref().map(|id| format!(",\"id\":{id}")).unwrap_or_default();
    let known = qga_protocol::commands().find(|info| info.name == message.command);
    let answered = if known.is_some_and(|info| !info.rules.success_response) {
        let patience = UNANSWERED_PATIENCE.min(visit.general.timeout);
        // A success is not answered.
        agent.call_unanswered(&message.command, message.arguments.clone(), patience).map(|_| None)
    } else {
        agent
            .call_text(&message.command, message.arguments.clone())
            .map(|reply| Some(format!("{{\"return\":{reply}{id}}}")))
    };
    let (reply, code) = match answered {
        Ok(reply) => (reply, None),
        Err(error) => {
            let Some(said) = error.agent() else { return Err(error.into()) };
            let said = serde_json::json!({ "class": said.class, "desc": said.desc });
            (Some(format!("{{\"error\":{said}{id}}}")), Some(exit_code::of_kind(error.kind())))
        }
    };
    // Other messages may follow one that is not answered.
    agent.set_deadline(None);
    agent.set_silence(visit.general.timeout)?;
    if let Some(reply) = reply {
        visit.page.document(&reply, !visit.page.is_json())?;
    }
    Ok(code)
}

/// A message as it is written by hand.
#[derive(Debug)]
struct Message {
    command: String,
    arguments: Value,
    id: Option<Value>,
}

impl Message {
    fn parse(text: &str) -> Result<Self> {
        let wrong =
            |problem: String| Failure::told(Code::Usage, problem, "Write for example '{\"execute\": \"guest-ping\"}'.");
        let message: Value =
            serde_json::from_str(text).map_err(|error| wrong(format!("the message is no JSON: {error}")))?;
        let Value::Object(mut members) = message else { return Err(wrong("the message is no JSON object".to_owned())) };
        let Some(Value::String(command)) = members.remove("execute") else {
            return Err(wrong("the message has no \"execute\"".to_owned()));
        };
        let arguments = members.remove("arguments").unwrap_or(Value::Null);
        let id = members.remove("id");
        match members.keys().next() {
            None => Ok(Self { command, arguments, id }),
            Some(other) => {
                Err(wrong(format!("a message has no member {other:?}, only \"execute\", \"arguments\", \"id\"")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(arguments: &[&str]) -> std::result::Result<Call, clap::Error> {
        let command = Call::augment_subcommands(Command::new("call").no_binary_name(true));
        command.try_get_matches_from(arguments).and_then(|matches| Call::from_arg_matches(&matches))
    }

    fn check(arguments: &[&str], expected: &Value) {
        assert_eq!(parsed(arguments).unwrap().arguments().unwrap(), *expected, "{arguments:?}");
    }

    #[test]
    fn options_become_arguments_of_the_right_type() {
        check(&["guest-ping"], &Value::Null);
        check(&["guest-sync", "--id", "-7"], &json!({ "id": -7 }));
        check(&["guest-file-open", "--path", "-", "--mode", "r"], &json!({ "path": "-", "mode": "r" }));
        check(
            &["guest-exec", "--path", "ls", "--arg", "-l", "--arg", "/", "--capture-output", "true"],
            &json!({ "path": "ls", "arg": ["-l", "/"], "capture-output": true }),
        );
        check(
            &["guest-file-seek", "--handle", "1", "--offset", "0", "--whence", "end"],
            &json!({ "handle": 1, "offset": 0, "whence": "end" }),
        );
        check(
            &["guest-set-vcpus", "--vcpus", "[{\"logical-id\": 1, \"online\": false}]"],
            &json!({ "vcpus": [{ "logical-id": 1, "online": false }] }),
        );
    }

    #[test]
    fn what_is_wrong_is_told_before_anything_is_sent() {
        assert!(parsed(&["guest-sync"]).is_err());
        assert!(parsed(&["guest-nothing"]).is_err());
        let failure = parsed(&["guest-sync", "--id", "x"]).unwrap().arguments().unwrap_err();
        assert_eq!(failure.text().unwrap(), "--id: \"x\" is no whole number");
    }

    #[test]
    fn a_password_is_not_taken_from_the_command_line() {
        let call = |password: &str| {
            parsed(&["guest-set-user-password", "--username", "u", "--password", password, "--crypted", "false"])
                .unwrap()
        };
        let failure = call("c2VjcmV0").arguments().unwrap_err();
        assert!(failure.text().unwrap().contains("a secret is not written"), "{failure:?}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let arguments = call(&format!("@{}", file.path().display())).arguments().unwrap();
        assert_eq!(arguments["password"], "c2VjcmV0");
    }

    #[test]
    fn every_command_and_every_argument_has_its_help() {
        for info in qga_protocol::commands() {
            assert!(!first_sentence(info.doc).is_empty(), "{}", info.name);
            let help = subcommand(info).render_long_help().to_string();
            assert!(!help.contains("[`"), "{help}");
            for argument in info.arguments {
                let type_ = if let Type::Optional(inner) = argument.type_ { *inner } else { argument.type_ };
                let known = values_of(type_).is_some_and(|values| values != "a word, or JSON");
                let is_plain = matches!(type_, Type::Text | Type::Base64 | Type::List(Type::Text));
                assert!(known || is_plain, "{}: nothing says what {} takes", info.name, argument.name());
            }
        }
    }
}
