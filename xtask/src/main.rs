//! The project's own commands, `cargo xtask ...`: to try the agent, test it, measure it.
//!
//! Each command is a module of its own. Adding one: the module, its line in [`COMMANDS`].

mod bench;
mod build;
mod demo;
mod fuzz;
mod launch;
mod lease;
mod original;
mod packages;
mod record;
mod screens;
mod stall;
mod style;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// A command's name, what it takes, what it is for, and the function that does it.
type Command = (&'static str, &'static str, &'static str, fn(&[String]) -> Result<()>);

const COMMANDS: &[Command] = &[
    ("demo", "[--vm]", "builds the agent and shows a host's work with it; in a real guest with --vm", demo::main),
    ("test", "[--no-vm] [--level NAME]...", "every proof, level by level, with one table at the end", test::main),
    ("vm", "[NAME]... [--shell] [--keep]", "the virtual machine level alone, or its cases by name", vm::main),
    (
        "bench",
        "[--quick] [--only WORD] [--save] [--ours PATH]",
        "measures our agent beside the original in one run",
        bench::main,
    ),
    (
        "fuzz",
        "[--seconds N] [--list] [TARGET]...",
        "feeds random input to every reader of what comes from outside, N seconds to each",
        fuzz::main,
    ),
    (
        "record",
        "[NAME] [--keep-names] [--from DIR] [--to DIR] [--script]",
        "records this machine's files for the tests, without what tells whose it is",
        record::main,
    ),
    ("stall", "[--save]", "measures and draws how long a freeze stops a program, under both agents", stall::main),
    ("build", "", "builds the agent as it is shipped, static, and prints where it is", build::main),
    ("screens", "", "draws what the command line shows of a real guest, for the documents (needs tmux)", screens::main),
    ("docs-check", "", "checks that the links between the documents lead somewhere", test::check_links),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", style::bad("error:"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        print!("{}", help());
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") || rest.iter().any(|word| word == "--help" || word == "-h") {
        print!("{}", help());
        return Ok(());
    }
    let Some(command) = COMMANDS.iter().find(|command| command.0 == name) else {
        let known: Vec<&str> = COMMANDS.iter().map(|command| command.0).collect();
        bail!("there is no command {name:?}; there are: {}", known.join(", "))
    };
    (command.3)(rest)
}

fn help() -> String {
    use std::fmt::Write as _;
    let mut text = String::from("cargo xtask COMMAND\n\n");
    for (name, arguments, purpose, _) in COMMANDS {
        let _ = writeln!(text, "  {:<52} {purpose}", format!("{name} {arguments}"));
    }
    text.push_str("\nQGA_OURS=PATH takes an agent that is built already instead of building one.\n");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_unknown_command_is_an_error_that_names_the_known_ones() {
        let error = super::run(&["tset".to_owned()]).expect_err("there is none of that name").to_string();
        assert!(error.contains("\"tset\"") && error.contains("test, vm"), "{error}");
    }
}
