//! The command line: its commands and their options. Help, completions and manual pages are made from this.

#![allow(clippy::doc_markdown)] // these comments are the help, where backticks would show

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::commands::call::Call;
use crate::exit_code;
use crate::general_options::{General, parse_wait};
use crate::output::units::{parse_duration, parse_moment};

/// Talks to the guest agents of virtual machines.
///
/// It works with every agent that speaks QEMU's guest agent protocol, QEMU's own among them. Where there is one agent on
/// this host it is found; otherwise --target names it.
#[derive(Debug, Parser)]
#[command(name = "qga", version, after_long_help = exit_code::list(), propagate_version = false, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    pub general: General,
    #[command(subcommand)]
    pub command: Command,
}

/// The name of the command that the process runs.
pub const WATCHER: &str = "thaw-when-input-ends";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask whether the agent answers, and how fast.
    Ping(Ping),
    /// Show a guest on one screen.
    Info,
    /// Run a program in the guest: its output as it comes, its exit code.
    Exec(Exec),
    /// Copy files and directories to and from the guest.
    Cp(Copy),
    /// Print files of the guest.
    Cat(Paths),
    /// List a directory of the guest.
    Ls(List),
    /// Open a shell in the guest.
    Shell(Shell),
    /// List the guest's file systems.
    Fs,
    /// List the guest's disks.
    Disks,
    /// List the guest's addresses, that of the default route first.
    Ip(Ip),
    /// List who is logged in.
    Users,
    /// Show the guest's clock, or set it.
    Time(Time),
    /// List the guest's processors, or switch them on and off.
    Cpus(Switch),
    /// Show the guest's memory, or switch blocks of it on and off.
    Memory(Switch),
    /// Set a user's password.
    Passwd(Password),
    /// Manage the SSH keys that log a user in.
    #[command(subcommand)]
    SshKey(SshKey),
    /// Watch a guest: processors, memory, disks, network.
    Top(Top),
    /// Print measurements for Prometheus, or serve them.
    Metrics(Metrics),
    /// Find out why an agent does not answer.
    Doctor(Doctor),
    /// List the agents that are found on this host.
    Targets,
    /// Freeze the guest's file systems, for the time of a command or until thaw.
    Freeze(Freeze),
    /// Thaw the guest's file systems.
    Thaw,
    /// Give free space of the guest's disks back to the host.
    Trim(Trim),
    /// Suspend the guest.
    Suspend(Suspend),
    /// Shut the guest down and turn it off.
    Shutdown,
    /// Start the guest anew.
    Reboot,
    /// Stop the guest without turning it off.
    Halt,
    /// Call any command of the protocol.
    #[command(subcommand)]
    Call(Call),
    /// Send messages as they are and print the replies as they come.
    Raw(Raw),
    /// Print completions for a shell.
    Completions(Completions),
    /// Write manual pages into a directory.
    Man(Manual),
    #[command(name = WATCHER, hide = true)]
    WatchFreeze(WatchFreeze),
}

/// `qga ping`.
#[derive(Debug, Args)]
pub struct Ping {
    /// How often to ask.
    #[arg(short, long, value_name = "NUMBER", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// The time between two questions.
    #[arg(short, long, value_name = "TIME", default_value = "1", value_parser = parse_wait)]
    pub interval: Duration,
}

/// `qga exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Pass this side's standard input on to the program. Together with -t for what is worked with by hand: -it.
    #[arg(short = 'i', long, visible_alias = "interactive")]
    pub stdin: bool,
    /// Run the program on a terminal of its own, as large as this one. With -i, Ctrl-] ends it (exit code 130). Behind
    /// exec, -t means this, as it does for docker; a target is named before exec, or with --target.
    #[arg(short = 't', long, conflicts_with_all = ["detach", "at_end"])]
    pub tty: bool,
    /// Set a variable in the program's environment; may be given several times. NAME alone passes on the value that it
    /// has here, which keeps a secret off the command line.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    pub env: Vec<String>,
    /// Start from an empty environment.
    #[arg(long)]
    pub clear_env: bool,
    /// Run the program as this user of the guest, with the user's HOME, USER, LOGNAME, SHELL and groups: a name or a
    /// number.
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The directory of the guest to start in.
    #[arg(short = 'w', visible_short_alias = 'C', long, visible_alias = "workdir", value_name = "DIRECTORY")]
    pub directory: Option<String>,
    /// Run the words as one line of the guest's shell.
    #[arg(short, long)]
    pub shell: bool,
    /// End the program after this time, with exit code 124.
    #[arg(short = 'l', long, value_name = "TIME", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
    /// Take the output when the program has ended, at most 16 MiB of it. A short program takes a fraction of the time: no
    /// shell is started in front of it, and nothing is written to the guest's disk. One that leaves another in the
    /// background with its output counts as running until that ends.
    #[arg(long, conflicts_with = "stdin")]
    pub at_end: bool,
    /// Start the program, print its process id and leave it running.
    #[arg(short, long, conflicts_with_all = ["stdin", "time_limit", "at_end"])]
    pub detach: bool,
    /// The program and its arguments. Options of exec stand before it.
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
    /// Where the agent is: the general option without its short form.
    #[arg(id = "targets", long = "target", value_name = "TARGET", help_heading = "General")]
    pub targets_behind: Vec<String>,
}

fn parse_variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        None if !text.is_empty() => match std::env::var(text) {
            Ok(value) => Ok(format!("{text}={value}")),
            Err(error) => Err(format!("{error} here; write NAME=VALUE, or NAME of a variable that is set")),
        },
        _ => Err("write NAME=VALUE or NAME".to_owned()),
    }
}

/// `qga cp`.
#[derive(Debug, Args)]
pub struct Copy {
    /// Keep everything, as cp -a does: owner, mode, times, links, hard links, extended attributes, holes. Both sides need tar.
    #[arg(short, long, conflicts_with_all = ["resume", "checksum", "no_mode"])]
    pub archive: bool,
    /// Go on with copies that were broken off, and leave what can be gone on with if this one is.
    #[arg(long)]
    pub resume: bool,
    /// Compare checksums of both sides at the end.
    #[arg(short, long)]
    pub checksum: bool,
    /// Give new files the permissions of any new file instead of those of the original less the umask.
    #[arg(long)]
    pub no_mode: bool,
    /// Directories are always copied with all that is in them; this is for the habit.
    #[arg(short, long, hide = true)]
    pub recursive: bool,
    /// What to copy, and where to at the end. A path in the guest has a colon in front: qga cp notes.txt :/root/; - is a
    /// standard stream.
    #[arg(required = true, num_args = 2.., value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<String>,
}

/// Paths in the guest.
#[derive(Debug, Args)]
pub struct Paths {
    /// Files of the guest, with a colon in front as in cp or without.
    #[arg(required = true, value_name = "FILE")]
    pub paths: Vec<String>,
}

/// `qga ls`.
#[derive(Debug, Args)]
pub struct List {
    /// Show names alone, one a line.
    #[arg(short = '1', long, conflicts_with = "long")]
    pub names: bool,
    /// Show names that begin with a dot as well.
    #[arg(short, long)]
    pub all_names: bool,
    /// Show mode, owner, size and time as well, as is done without.
    #[arg(short, long, hide_short_help = true)]
    pub long: bool,
    /// Directories or files of the guest, with a colon in front as in cp or without.
    #[arg(default_value = "/", value_name = "PATH")]
    pub paths: Vec<String>,
}

/// `qga shell`.
#[derive(Debug, Args)]
pub struct Shell {
    /// The program to run on the terminal, or a line of shell with its arguments; the user's login shell without.
    #[arg(short, long, value_name = "PROGRAM")]
    pub shell: Option<String>,
    /// Whose shell: a user of the guest, by name or number; that of the agent's user without.
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
}

/// `qga ip`.
#[derive(Debug, Args)]
pub struct Ip {
    /// Print nothing but the address to reach the guest by.
    #[arg(short = '1', long)]
    pub first: bool,
}

/// `qga time`.
#[derive(Debug, Args)]
pub struct Time {
    /// Set the clock: @SECONDS since 1970, or 2026-05-01T12:00:00+02:00.
    #[arg(long, value_name = "MOMENT", value_parser = parse_moment, allow_hyphen_values = true)]
    pub set: Option<i64>,
    /// Set the clock to this host's time.
    #[arg(long, conflicts_with = "set")]
    pub sync: bool,
    /// Set the clock from the guest's hardware clock.
    #[arg(long, conflicts_with_all = ["set", "sync"])]
    pub from_hardware: bool,
}

/// What is to be switched on and off.
#[derive(Debug, Args)]
pub struct Switch {
    /// Switch these on: numbers and ranges, 1,4-7.
    #[arg(long, value_name = "NUMBERS", value_parser = parse_numbers)]
    pub online: Option<Numbers>,
    /// Switch these off.
    #[arg(long, value_name = "NUMBERS", value_parser = parse_numbers)]
    pub offline: Option<Numbers>,
}

impl Switch {
    pub fn is_change(&self) -> bool {
        self.online.is_some() || self.offline.is_some()
    }

    /// Each number with whether it is to be on.
    pub fn changes(&self) -> impl Iterator<Item = (u64, bool)> {
        let of = |numbers: &Option<Numbers>, online| {
            numbers
                .iter()
                .flat_map(|Numbers(numbers)| numbers.clone())
                .map(move |number| (number, online))
                .collect::<Vec<_>>()
        };
        of(&self.online, true).into_iter().chain(of(&self.offline, false))
    }
}

/// Numbers of a list with ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers(pub Vec<u64>);

fn parse_numbers(text: &str) -> Result<Numbers, String> {
    const MOST: u64 = 65_536;
    let wrong = |part: &str| format!("{part:?} is no number or range");
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) =
            first.trim().parse().ok().zip(last.trim().parse().ok()).ok_or_else(|| wrong(part))?;
        if first > last || last - first >= MOST {
            return Err(wrong(part));
        }
        numbers.extend(first..=last);
    }
    Ok(Numbers(numbers))
}

/// `qga passwd`.
#[derive(Debug, Args)]
pub struct Password {
    /// Whose password.
    pub user: String,
    /// Read the password from standard input instead of asking on the terminal.
    #[arg(long)]
    pub stdin: bool,
    /// It is encrypted already, as crypt(3) does.
    #[arg(long)]
    pub crypted: bool,
}

/// `qga ssh-key`.
#[derive(Debug, Subcommand)]
pub enum SshKey {
    /// List a user's keys.
    Ls {
        /// Whose keys.
        user: String,
    },
    /// Let keys log a user in.
    Add {
        /// Whose keys.
        user: String,
        /// Public keys: their text, a file, or - for standard input.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// Remove all others.
        #[arg(long)]
        reset: bool,
    },
    /// Remove keys of a user.
    Rm {
        /// Whose keys.
        user: String,
        /// Public keys: their text, a file, - for standard input, or a part that only one key has, as its comment.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

/// `qga top`.
#[derive(Debug, Args)]
pub struct Top {
    /// The time between two looks.
    #[arg(short, long, value_name = "TIME", default_value = "2", value_parser = parse_wait)]
    pub interval: Duration,
    /// End after so many looks.
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub count: Option<u64>,
}

/// `qga metrics`.
#[derive(Debug, Args)]
pub struct Metrics {
    /// Serve them over HTTP at this address, under /metrics: 127.0.0.1:9180.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
}

/// `qga doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Look at this machine as a guest: its port, the agent that holds it, the configuration.
    #[arg(long, conflicts_with_all = ["targets", "all"])]
    pub inside: bool,
}

/// `qga trim`.
#[derive(Debug, Args)]
pub struct Trim {
    /// Leave free pieces alone that are smaller, in bytes.
    #[arg(long, value_name = "BYTES")]
    pub minimum: Option<i64>,
}

/// `qga suspend`.
#[derive(Debug, Args)]
pub struct Suspend {
    /// What holds the guest's memory meanwhile.
    #[arg(default_value = "ram")]
    pub to: SuspendTo,
}

/// Where the memory is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SuspendTo {
    /// The memory itself: sleep.
    Ram,
    /// The guest's disk: hibernation.
    Disk,
    /// Both.
    Hybrid,
}

/// `qga raw`.
#[derive(Debug, Args)]
pub struct Raw {
    /// The message: '{"execute": "guest-ping"}'. Without it, one for each line of standard input.
    pub message: Option<String>,
}

/// `qga completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// Which shell; for example: qga completions bash > /etc/bash_completion.d/qga
    pub shell: clap_complete::Shell,
}

/// `qga freeze`.
#[derive(Debug, Args)]
pub struct Freeze {
    /// Freeze this mount point alone; may be given several times.
    #[arg(short, long, value_name = "MOUNTPOINT")]
    pub mount: Vec<String>,
    /// Show whether the file systems are frozen, and do nothing.
    #[arg(long, conflicts_with_all = ["mount", "run", "time_limit"])]
    pub status: bool,
    /// Run a command on this host while they are frozen, and thaw when it ends, whatever happens to it or to qga.
    ///
    /// Everything behind it is the command. A single word with blanks is a line for the shell.
    #[arg(short, long, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    pub run: Vec<String>,
    /// End the command after this time, and thaw.
    #[arg(short = 'l', long, value_name = "TIME", value_parser = parse_duration, requires = "run")]
    pub time_limit: Option<Duration>,
}

/// The process that thaws when the one that froze is gone.
#[derive(Debug, Args)]
pub struct WatchFreeze {
    /// How long it tries.
    #[arg(long, value_parser = parse_duration)]
    pub patience: Duration,
}

/// `qga man`.
#[derive(Debug, Args)]
pub struct Manual {
    /// The directory for the pages.
    #[arg(value_hint = ValueHint::DirPath)]
    pub directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn numbers_are_read_with_ranges() {
        assert_eq!(parse_numbers("1,4-6").unwrap(), Numbers(vec![1, 4, 5, 6]));
        for wrong in ["", "x", "3-1", "1-", "0-99999999"] {
            assert!(parse_numbers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_follows_a_program_belongs_to_it() {
        let parsed = Arguments::try_parse_from(["qga", "exec", "-i", "ls", "-l", "--json", "-t", "x"]).unwrap();
        let Command::Exec(exec) = parsed.command else { panic!("exec") };
        assert_eq!(exec.program, ["ls", "-l", "--json", "-t", "x"]);
        assert!(exec.stdin && !exec.tty && !parsed.general.json && parsed.general.targets.is_empty());
        for wrong in [["-x", "ls"], ["--nonsense", "ls"], ["-z", "--"]] {
            assert!(Arguments::try_parse_from(["qga", "exec"].into_iter().chain(wrong)).is_err(), "{wrong:?}");
        }
        let parsed =
            Arguments::try_parse_from(["qga", "freeze", "-m", "/", "--run", "snapshot", "--all", "-x"]).unwrap();
        let Command::Freeze(freeze) = parsed.command else { panic!("freeze") };
        assert_eq!(freeze.run, ["snapshot", "--all", "-x"]);
    }

    #[test]
    fn behind_exec_it_means_what_docker_means_and_a_target_stands_before() {
        for words in ["-it bash -c x", "-i -t bash -c x", "-ti -- bash -c x", "--interactive --tty bash -c x"] {
            let words = ["qga", "-t", "a", "exec"].into_iter().chain(words.split(' '));
            let parsed = Arguments::try_parse_from(words).unwrap();
            assert_eq!(parsed.general.targets, ["a"]);
            let Command::Exec(exec) = parsed.command else { panic!("exec") };
            assert!(exec.stdin && exec.tty);
            assert_eq!(exec.program, ["bash", "-c", "x"]);
        }
        let parsed = Arguments::try_parse_from(["qga", "exec", "--target", "b", "-u", "me", "-w", "/", "ls"]).unwrap();
        assert_eq!(parsed.general.targets, ["b"]);
        let parsed = Arguments::try_parse_from(["qga", "ping", "-t", "c"]).unwrap();
        assert_eq!(parsed.general.targets, ["c"]);
    }
}
