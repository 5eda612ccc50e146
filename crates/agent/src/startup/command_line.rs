//! The command line: one table of options that parsing and `--help` (and whatever else describes them) are made from.
//!
//! The habits are those of GNU `getopt_long`: `-dvr` bundles, `--path=x` and `--path x`, unambiguous beginnings of long
//! names, `--` ends the options, positional arguments are ignored. The line is understood in two passes as by the
//! original: first which configuration file to read, then everything from left to right, acting at once on `--version`,
//! `--help`, `--block-rpcs help` and on what is wrong.

use crate::startup::config::{
    Configuration, DEFAULT_CONFIG_PATH, DEFAULT_FSFREEZE_HOOK, DEFAULT_PIDFILE, DEFAULT_STATEDIR, Given, Key, Method,
    Origin, Settings,
};
use crate::startup::policy;
pub use crate::system::error::StartFailure;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Whether an option takes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// It takes none.
    None,
    /// It needs one; the word stands for it in texts.
    Required(&'static str),
    /// It takes one that is attached: `-F/x`, `--fsfreeze-hook=/x`.
    Attached(&'static str),
}

/// What an option does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Sets a key of the configuration.
    Set(Key),
    /// Names the configuration file.
    Config,
    /// Prints the version.
    Version,
    /// Prints the configuration.
    Dump,
    /// Prints the help.
    Help,
    /// None on this system.
    Ignored,
}

/// An option.
#[derive(Debug, Clone, Copy)]
pub struct OptionInfo {
    /// `m` of `-m`. The original's options have one, those that it lacks have none: its next version may take it.
    pub short: Option<char>,
    /// `method` of `--method`.
    pub long: Option<&'static str>,
    /// Its value.
    pub argument: Argument,
    /// What it does.
    pub effect: Effect,
    /// The value if the option is not given.
    pub default: Option<&'static str>,
    /// What it is for, one line an element; without any, it is not shown.
    pub help: &'static [&'static str],
}

/// All options, in the order of the help.
pub const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        short: Some('c'),
        long: Some("config"),
        argument: Argument::Required("PATH"),
        effect: Effect::Config,
        default: Some(DEFAULT_CONFIG_PATH),
        help: &["read the configuration from PATH; without it from the file that", "the variable QGA_CONF names"],
    },
    OptionInfo {
        short: Some('m'),
        long: Some("method"),
        argument: Argument::Required("METHOD"),
        effect: Effect::Set(Key::Method),
        default: Some(Method::VirtioSerial.name()),
        help: &["how the host is reached: virtio-serial, isa-serial, unix-listen", "or vsock-listen"],
    },
    OptionInfo {
        short: Some('p'),
        long: Some("path"),
        argument: Argument::Required("PATH"),
        effect: Effect::Set(Key::Path),
        default: None,
        help: &[
            "the device, socket or, for vsock-listen, <cid>:<port>",
            "(default for virtio-serial: /dev/virtio-ports/org.qemu.guest_agent.0,",
            "for isa-serial: /dev/ttyS0)",
        ],
    },
    OptionInfo {
        short: Some('l'),
        long: Some("logfile"),
        argument: Argument::Required("PATH"),
        effect: Effect::Set(Key::Logfile),
        default: None,
        help: &["append the log to PATH instead of writing it to stderr"],
    },
    OptionInfo {
        short: Some('f'),
        long: Some("pidfile"),
        argument: Argument::Required("PATH"),
        effect: Effect::Set(Key::Pidfile),
        default: Some(DEFAULT_PIDFILE),
        help: &["where the daemon writes its process id"],
    },
    OptionInfo {
        short: Some('F'),
        long: Some("fsfreeze-hook"),
        argument: Argument::Attached("PATH"),
        effect: Effect::Set(Key::FsfreezeHook),
        default: None,
        help: &[
            "run PATH with 'freeze' before and with 'thaw' after file systems are",
            "frozen (without a value: /etc/qemu/fsfreeze-hook); write the value",
            "directly behind the option: -F/path or --fsfreeze-hook=/path",
        ],
    },
    OptionInfo {
        short: None,
        long: Some("fsfreeze-hook-dir"),
        argument: Argument::Required("DIRECTORY"),
        effect: Effect::Set(Key::FsfreezeHookDir),
        default: Some("/etc/qemu/fsfreeze-hook.d, if --fsfreeze-hook is not given"),
        help: &[
            "run every program in DIRECTORY with 'freeze' before and, in reverse",
            "order, with 'thaw' after file systems are frozen; an empty value: none",
        ],
    },
    OptionInfo {
        short: None,
        long: Some("fsfreeze-hook-timeout"),
        argument: Argument::Required("SECONDS"),
        effect: Effect::Set(Key::FsfreezeHookTimeout),
        default: Some("60"),
        help: &["kill such a program, and fail the freeze, when it takes longer"],
    },
    OptionInfo {
        short: None,
        long: Some("fsfreeze-timeout"),
        argument: Argument::Required("SECONDS"),
        effect: Effect::Set(Key::FsfreezeTimeout),
        default: Some("3600"),
        help: &["thaw without being asked when the freeze lasts longer; 0: never"],
    },
    OptionInfo {
        short: None,
        long: Some("vsock-peers"),
        argument: Argument::Required("CIDS"),
        effect: Effect::Set(Key::VsockPeers),
        default: Some("2, the host"),
        help: &[
            "who may connect with vsock-listen: context ids separated by commas,",
            "or 'any', which is every user of the guest too",
        ],
    },
    OptionInfo {
        short: Some('t'),
        long: Some("statedir"),
        argument: Argument::Required("DIRECTORY"),
        effect: Effect::Set(Key::Statedir),
        default: Some(DEFAULT_STATEDIR),
        help: &["where the agent keeps what outlives it"],
    },
    OptionInfo {
        short: Some('v'),
        long: Some("verbose"),
        argument: Argument::None,
        effect: Effect::Set(Key::Verbose),
        default: None,
        help: &["log everything, not only warnings and errors"],
    },
    OptionInfo {
        short: Some('V'),
        long: Some("version"),
        argument: Argument::None,
        effect: Effect::Version,
        default: None,
        help: &["print the version and exit"],
    },
    OptionInfo {
        short: Some('d'),
        long: Some("daemonize"),
        argument: Argument::None,
        effect: Effect::Set(Key::Daemon),
        default: None,
        help: &["go to the background once everything is open"],
    },
    OptionInfo {
        short: Some('b'),
        long: Some("block-rpcs"),
        argument: Argument::Required("NAMES"),
        effect: Effect::Set(Key::BlockRpcs),
        default: None,
        help: &["refuse these commands, separated by commas ('help' lists them all)"],
    },
    OptionInfo {
        short: Some('a'),
        long: Some("allow-rpcs"),
        argument: Argument::Required("NAMES"),
        effect: Effect::Set(Key::AllowRpcs),
        default: None,
        help: &[
            "refuse all other commands, separated by commas ('help' lists them",
            "all); an empty list refuses none",
        ],
    },
    OptionInfo {
        short: Some('D'),
        long: Some("dump-conf"),
        argument: Argument::None,
        effect: Effect::Dump,
        default: None,
        help: &["print the configuration, as it would be used, as a file and exit"],
    },
    OptionInfo {
        short: Some('r'),
        long: Some("retry-path"),
        argument: Argument::None,
        effect: Effect::Set(Key::RetryPath),
        default: None,
        help: &["wait for the device when it is missing or fails, and try again"],
    },
    OptionInfo {
        short: Some('h'),
        long: Some("help"),
        argument: Argument::None,
        effect: Effect::Help,
        default: None,
        help: &["print this help and exit"],
    },
    // Installs a service on Windows; scripts for both systems may pass it here.
    OptionInfo {
        short: Some('s'),
        long: None,
        argument: Argument::Required("COMMAND"),
        effect: Effect::Ignored,
        default: None,
        help: &[],
    },
];

/// What the process was given besides its arguments. A value, so that tests can give something else.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `QGA_CONF`.
    pub config_path: Option<OsString>,
    /// `LISTEN_PID`.
    pub listen_pid: Option<OsString>,
    /// `LISTEN_FDS`.
    pub listen_fds: Option<OsString>,
    /// This process.
    pub own_pid: u32,
    /// The directory that relative paths are meant from.
    pub directory: PathBuf,
    /// Looks at the socket handed over, if there is one: the method that serves it.
    pub activated_method: fn() -> io::Result<Option<Method>>,
}

impl Environment {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            config_path: std::env::var_os("QGA_CONF"),
            listen_pid: std::env::var_os("LISTEN_PID"),
            listen_fds: std::env::var_os("LISTEN_FDS"),
            own_pid: std::process::id(),
            // A directory that was removed has no name; `/` is where a daemon would be.
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            activated_method,
        }
    }

    /// The method of the socket that the service manager handed over, if it did so to this very process.
    fn activated(&self) -> Result<Option<Method>, StartFailure> {
        let number = |text: &Option<OsString>| text.as_ref()?.to_str()?.parse::<u32>().ok();
        if number(&self.listen_pid) != Some(self.own_pid) {
            return Ok(None);
        }
        match number(&self.listen_fds) {
            None | Some(0) => Ok(None),
            Some(1) => match (self.activated_method)() {
                Ok(Some(method)) => Ok(Some(method)),
                Ok(None) => Err(StartFailure::new(
                    "socket activation: descriptor 3 is not a listening unix or vsock socket, the only ones served",
                )),
                Err(error) => {
                    Err(StartFailure::of("socket activation: descriptor 3 is not a socket to listen on", &error))
                }
            },
            Some(count) => Err(StartFailure::new(format!(
                "socket activation: LISTEN_FDS is {count}, but the agent listens on one socket only"
            ))),
        }
    }
}

fn activated_method() -> io::Result<Option<Method>> {
    use rustix::net::{AddressFamily, sockopt};
    let socket = qga_sys::daemon::activated_socket()?;
    if !sockopt::socket_acceptconn(&socket)? {
        return Ok(None);
    }
    Ok(match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => Some(Method::UnixListen),
        AddressFamily::VSOCK => Some(Method::VsockListen),
        _ => None,
    })
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Serve the host.
    Run(Box<Configuration>),
    /// Write this to stdout and exit with 0.
    Print(String),
}

impl Action {
    /// Understands the arguments, without the program's own name. `commands` are the names that `--block-rpcs help`
    /// lists.
    pub fn from_arguments(
        arguments: impl Iterator<Item = OsString>,
        environment: &Environment,
        commands: &[&str],
    ) -> Result<Self, StartFailure> {
        let given = split(arguments);
        let named = given.iter().rev().flatten().find(|given| given.option.effect == Effect::Config);
        let mut settings = match (named.and_then(|given| given.value.as_ref()), &environment.config_path) {
            (Some(path), _) => Settings::of_file(Path::new(path), true)?,
            (None, Some(path)) => Settings::of_file(Path::new(path), false)?,
            (None, None) => Settings::of_file(Path::new(DEFAULT_CONFIG_PATH), false)?,
        };
        let mut dump = false;
        for given in given {
            let GivenOption { option, typed, value } = given?;
            let key = match option.effect {
                Effect::Version => return Ok(Self::Print(format!("{}\n", version()))),
                Effect::Help => return Ok(Self::Print(help())),
                Effect::Dump => {
                    dump = true;
                    continue;
                }
                Effect::Config | Effect::Ignored => continue,
                Effect::Set(key) => key,
            };
            let origin = Origin::Option(typed);
            match value {
                Some(value) => {
                    let lists = matches!(key, Key::BlockRpcs | Key::AllowRpcs);
                    if lists && (value == "help" || value == "?") {
                        return Ok(Self::Print(commands.join("\n") + "\n"));
                    }
                    let text = value.into_string().map_err(|value| {
                        StartFailure::new(format!(
                            "{origin}: the value '{}' is not UTF-8",
                            value.to_string_lossy().escape_debug()
                        ))
                    })?;
                    settings.set(key, Given { text, origin });
                }
                None if option.argument == Argument::None => settings.switch_on(key),
                None => settings.set(key, Given { text: DEFAULT_FSFREEZE_HOOK.to_owned(), origin }),
            }
        }
        let activated = environment.activated()?;
        if dump {
            return settings.dumped(activated).map(Self::Print);
        }
        settings.resolved(environment, activated).map(|configuration| Self::Run(Box::new(configuration)))
    }
}

/// One option of the line, with its value.
#[derive(Debug)]
struct GivenOption {
    option: &'static OptionInfo,
    /// As it was written: `-p` or `--pa`.
    typed: String,
    value: Option<OsString>,
}

/// The line as options; what is wrong stands where it was found, as what is left of it still counts.
fn split(arguments: impl Iterator<Item = OsString>) -> Vec<Result<GivenOption, StartFailure>> {
    let mut parser = lexopt::Parser::from_args(arguments);
    parser.set_short_equals(false);
    let mut all = Vec::new();
    loop {
        // Lexopt's own errors are about values nobody asked for, which are asked for below.
        let argument = match parser.next() {
            Ok(Some(argument)) => argument,
            Ok(None) => return all,
            Err(error) => {
                all.push(Err(StartFailure::new(error.to_string())));
                continue;
            }
        };
        let (found, typed, is_long) = match argument {
            lexopt::Arg::Value(_) => continue,
            lexopt::Arg::Short(letter) => (short_option(letter), format!("-{letter}"), false),
            lexopt::Arg::Long(name) => (long_option(name), format!("--{name}"), true),
        };
        let attached = |parser: &mut lexopt::Parser| if is_long { parser.optional_value() } else { None };
        let option = match found {
            Ok(option) => option,
            Err(problem) => {
                attached(&mut parser);
                all.push(Err(with_hint(&problem)));
                continue;
            }
        };
        all.push(match option.argument {
            Argument::None => match attached(&mut parser) {
                None => Ok(GivenOption { option, typed, value: None }),
                Some(value) => Err(with_hint(&format!(
                    "option '{typed}' takes no value, but '{}' is given",
                    value.to_string_lossy().escape_debug()
                ))),
            },
            Argument::Attached(_) => Ok(GivenOption { option, typed, value: parser.optional_value() }),
            Argument::Required(word) => match parser.value() {
                Ok(value) => Ok(GivenOption { option, typed, value: Some(value) }),
                Err(_) => Err(with_hint(&format!("option '{typed}' needs a value ({word})"))),
            },
        });
    }
}

fn with_hint(problem: &str) -> StartFailure {
    // After a question ("did you mean ...?") as well as after a statement.
    let separator = if problem.ends_with('?') { "" } else { ";" };
    StartFailure::new(format!("{problem}{separator} try 'qemu-ga --help'"))
}

fn short_option(letter: char) -> Result<&'static OptionInfo, String> {
    OPTIONS
        .iter()
        .find(|option| option.short == Some(letter))
        .ok_or_else(|| format!("unknown option '-{}'", letter.escape_debug()))
}

fn long_option(name: &str) -> Result<&'static OptionInfo, String> {
    let long = |option: &'static OptionInfo| option.long.map(|long| (long, option));
    let mut matching: Vec<_> = OPTIONS.iter().filter_map(long).filter(|(long, _)| long.starts_with(name)).collect();
    if let Some((_, option)) = matching.iter().find(|(long, _)| *long == name) {
        return Ok(option);
    }
    // A beginning that the original understands means the same here, whatever was added.
    if matching.iter().any(|(_, option)| option.short.is_some()) {
        matching.retain(|(_, option)| option.short.is_some());
    }
    match matching.as_slice() {
        [(_, option)] => Ok(option),
        [] => {
            let old_names = [("blacklist", "block-rpcs"), ("whitelist", "allow-rpcs")];
            let near = old_names.iter().find(|(old, _)| *old == name).map(|(_, new)| *new);
            let near = near.or_else(|| policy::nearest(name, OPTIONS.iter().filter_map(|option| option.long)));
            let hint = near.map_or(String::new(), |near| format!(": did you mean '--{near}'?"));
            Err(format!("unknown option '--{}'{hint}", name.escape_debug()))
        }
        several => {
            let names: Vec<_> = several.iter().map(|(long, _)| format!("'--{long}'")).collect();
            Err(format!("option '--{}' is ambiguous: it could be {}", name.escape_debug(), names.join(" or ")))
        }
    }
}

/// The line of `--version`.
#[must_use]
pub fn version() -> String {
    format!("QEMU Guest Agent {}", env!("CARGO_PKG_VERSION"))
}

/// The text of `--help`.
#[must_use]
pub fn help() -> String {
    let mut text = format!(
        "Usage: qemu-ga [-m METHOD -p PATH] [OPTIONS]\n{}\nAnswers the host of a virtual machine by the QEMU guest agent protocol.\n\n",
        version()
    );
    for option in OPTIONS.iter().filter(|option| !option.help.is_empty()) {
        let value = match (option.argument, option.long.is_some()) {
            (Argument::None, _) => String::new(),
            (Argument::Required(word), true) => format!("={word}"),
            (Argument::Required(word), false) => format!(" {word}"),
            (Argument::Attached(word), _) => format!("[={word}]"),
        };
        let names = match (option.short, option.long) {
            (Some(short), Some(long)) => format!("-{short}, --{long}"),
            (Some(short), None) => format!("-{short}"),
            (None, long) => format!("--{}", long.unwrap_or_default()),
        };
        let default = option.default.map(|default| format!("(default: {default})"));
        let lines = option.help.iter().copied().chain(default.as_deref());
        let _ = writeln!(text, "  {names}{value}");
        for line in lines {
            let _ = writeln!(text, "        {line}");
        }
    }
    text
}

#[cfg(test)]
#[path = "command_line_tests.rs"]
mod tests;
