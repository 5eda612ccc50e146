//! `qga`: talks to the guest agents of virtual machines.
//!
//! [`arguments`] says what can be asked, [`target`] whom, [`fleet`] asks one or many, [`commands`] has a module for each
//! family of commands, [`output`] the forms of the answers, [`failure`] and [`exit_code`] what is said and returned when
//! there is none. What an agent can do is in the client library; nothing here knows bytes of the protocol.

#![allow(clippy::format_push_string)] // lines for people: short, and written once
#![allow(clippy::struct_field_names)] // a name carries its unit: total_bytes, used_bytes

mod arguments;
mod commands;
mod confirm;
mod exit_code;
mod failure;
mod fleet;
mod general_options;
mod interrupts;
mod output;
mod progress;
mod target;
mod visit;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;
use crate::exit_code::Code;
use crate::failure::Failure;
use crate::general_options::Colour;
use crate::output::{BAD, BOLD, FAINT, styled};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // There is nobody to tell if even this cannot be printed.
            let _ = error.print();
            let code = if error.use_stderr() { Code::Usage } else { Code::Success };
            return ExitCode::from(code.number());
        }
    };
    match arguments.general.color {
        Colour::Auto => {}
        Colour::Always => anstream::ColorChoice::Always.write_global(),
        Colour::Never => anstream::ColorChoice::Never.write_global(),
    }
    let json = arguments.general.json;
    match commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure, json);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn tell(failure: &Failure, json: bool) {
    let Some(text) = failure.text() else { return };
    let mut stderr = anstream::stderr().lock();
    // Standard error may be closed; the exit code says it all the same.
    if json {
        let _ = writeln!(stderr, "{}", serde_json::json!({ "error": failure.to_json() }));
        return;
    }
    let _ = writeln!(stderr, "{} {text}", styled(BAD, styled(BOLD, "qga:")));
    if !failure.advice().is_empty() {
        let indent = if std::io::stderr().is_terminal() { "     " } else { "qga: " };
        let _ = writeln!(stderr, "{indent}{}", styled(FAINT, failure.advice()));
    }
}
