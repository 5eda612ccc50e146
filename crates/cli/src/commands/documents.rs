//! Completions and manual pages, from the definition of the command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Args, Command, CommandFactory};

use crate::arguments::Arguments;
use crate::failure::{Failure, Result};
use crate::general_options::General;

/// The command line as people use it, without what the program says to itself alone: completions offer hidden commands too.
fn for_people() -> Command {
    let whole = Arguments::command();
    let visible = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let mut shown = General::augment_args(Command::new("qga")).subcommands(visible.collect::<Vec<_>>());
    if let Some(version) = whole.get_version() {
        shown = shown.version(version.to_owned());
    }
    if let Some(about) = whole.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(about) = whole.get_long_about() {
        shown = shown.long_about(about.clone());
    }
    if let Some(after) = whole.get_after_long_help() {
        shown = shown.after_long_help(after.clone());
    }
    shown
}

pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut for_people(), "qga", &mut text);
    io::Write::write_all(&mut io::stdout(), &text).map_err(|error| Failure::host("write the completions", &error))
}

/// Writes `qga.1` and a page for each command.
pub fn manual(directory: &Path) -> Result<()> {
    let act = format!("write manual pages into {}", directory.display());
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(for_people().disable_help_subcommand(true), directory))
        .and_then(|()| name_the_last_section(&directory.join("qga.1")))
        .map_err(|error| Failure::host(&act, &error))
}

/// What stands behind the options is called EXTRA by the library, whatever it is.
fn name_the_last_section(page: &Path) -> io::Result<()> {
    let text = fs::read_to_string(page)?;
    fs::write(page, text.replace(".SH EXTRA\n", ".SH \"EXIT STATUS\"\n"))
}
