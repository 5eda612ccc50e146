//! Completions and manual pages, from the definition of the command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;

use crate::arguments::Arguments;
use crate::failure::{Failure, Result};

pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "qga", &mut text);
    io::Write::write_all(&mut io::stdout(), &text).map_err(|error| Failure::host("write the completions", &error))
}

/// Writes `qga.1` and a page for each command.
pub fn manual(directory: &Path) -> Result<()> {
    let act = format!("write manual pages into {}", directory.display());
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::command().disable_help_subcommand(true), directory))
        .map_err(|error| Failure::host(&act, &error))
}
