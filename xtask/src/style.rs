//! How the commands print: colours on a terminal only, durations and sizes for people.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

/// Whether colours are wanted. `NO_COLOR` is the usual way to say no.
pub fn colours() -> bool {
    static COLOURS: OnceLock<bool> = OnceLock::new();
    *COLOURS.get_or_init(|| std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
}

fn coloured(code: &str, text: &str) -> String {
    if colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A heading.
pub fn heading(text: &str) -> String {
    coloured("1;36", text)
}

/// Something that stands out.
pub fn bold(text: &str) -> String {
    coloured("1", text)
}

/// Something in the background.
pub fn faint(text: &str) -> String {
    coloured("2", text)
}

/// Good news.
pub fn good(text: &str) -> String {
    coloured("1;32", text)
}

/// Bad news.
pub fn bad(text: &str) -> String {
    coloured("1;31", text)
}

/// Neither: something was left out.
pub fn warning(text: &str) -> String {
    coloured("1;33", text)
}

/// `0.4 ms`, `3.2 s`, `4 min 10 s`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1e-3 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", duration.as_secs() / 60, duration.as_secs() % 60)
    }
}

/// `512 B`, `64 kB`, `8.0 MB`: powers of ten.
pub fn bytes(count: f64) -> String {
    if count < 1e3 {
        format!("{count:.0} B")
    } else if count < 1e6 {
        format!("{:.0} kB", count / 1e3)
    } else if count < 1e9 {
        format!("{:.1} MB", count / 1e6)
    } else {
        format!("{:.2} GB", count / 1e9)
    }
}
