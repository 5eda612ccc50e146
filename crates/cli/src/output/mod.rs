//! What is said: tables and colours for people, plain text in a pipe, JSON where it is asked for.

pub mod bar;
mod json;
mod page;
pub mod table;
pub mod text;
pub mod units;

pub use page::{Page, Show, terminal_columns};

use anstyle::{AnsiColor, Style};

pub const BOLD: Style = Style::new().bold();
pub const FAINT: Style = Style::new().dimmed();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const WARNING: Style = AnsiColor::Yellow.on_default();
pub const BAD: Style = AnsiColor::Red.on_default();
pub const NAME: Style = AnsiColor::Cyan.on_default();

/// Text in a style. Where colours are not wanted they are taken out on the way to the terminal.
pub fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}
