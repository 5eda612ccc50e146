//! The question before something that cannot be taken back.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::exit_code::Code;
use crate::failure::{Failure, Result};
use crate::general_options::General;
use crate::output::{WARNING, styled};
use crate::target::{Selection, short_names};

/// Asks whether to do `act` (`shut down`) to all targets, unless `--yes` has said so.
pub fn confirm(act: &str, selection: &Selection, general: &General) -> Result<()> {
    if general.yes {
        return Ok(());
    }
    let names = short_names(&selection.targets).join(", ");
    if !io::stdin().is_terminal() {
        return Err(Failure::told(
            Code::Usage,
            format!("this would {act} {names}, and there is no terminal to ask on"),
            "Say --yes to do it without being asked.",
        ));
    }
    let mut stderr = anstream::stderr();
    let count = match selection.targets.len() {
        1 => String::new(),
        count => format!("{count} guests: "),
    };
    let _ = write!(stderr, "{} {act} {count}{names}? [y/N] ", styled(WARNING, "Really"));
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::host("read the answer", &error))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::told(Code::Failed, "nothing was done", ""))
}
