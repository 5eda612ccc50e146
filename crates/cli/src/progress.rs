//! How far a copy is, on the terminal, for what takes longer than a moment.

use std::io::{self, IsTerminal};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bars of all targets, one below the other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// What takes less is over before it could be read.
const MOMENT: Duration = Duration::from_millis(500);

/// A bar with rate and time left, on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    is_wanted: bool,
    is_shown: bool,
    /// What stands in front of the file's name: the target, where there are several.
    label: String,
    current: String,
    /// Bytes of the file that is copied now, as last heard.
    file_bytes: u64,
}

impl Progress {
    /// A bar that appears after a moment, if `is_wanted` and if standard error is a terminal. `target` is the name in front
    /// of it, where there are several.
    pub fn new(is_wanted: bool, target: Option<&str>) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self {
            bar,
            started: Instant::now(),
            is_wanted: is_wanted && io::stderr().is_terminal(),
            is_shown: false,
            label: target.map(|target| format!("{target}  ")).unwrap_or_default(),
            current: String::new(),
            file_bytes: 0,
        }
    }

    /// Hears how far the copy of a file is.
    pub fn file(&mut self, path: &str, copied_bytes: u64, total_bytes: u64) {
        if !self.is_wanted {
            return;
        }
        if path != self.current {
            path.clone_into(&mut self.current);
            self.bar.set_length(total_bytes);
            self.bar.reset();
            // What an earlier try has copied does not count for the rate.
            self.bar.set_position(copied_bytes);
            self.bar.reset_eta();
            self.bar.set_message(format!("{}{}", self.label, crate::output::text::printable(path)));
        }
        if self.file_bytes != copied_bytes {
            self.file_bytes = copied_bytes;
            self.bar.set_position(copied_bytes);
        }
        if !self.is_shown && self.started.elapsed() >= MOMENT {
            self.is_shown = true;
            self.bar.set_style(style());
            // A bar of its own would be drawn over those of the other targets.
            BARS.add(self.bar.clone());
            self.bar.tick();
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        if self.is_shown {
            BARS.remove(&self.bar);
        }
    }

    /// Writes something while the bars of other targets are out of the way.
    pub fn aside<R>(write: impl FnOnce() -> R) -> R {
        BARS.suspend(write)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn style() -> ProgressStyle {
    let template =
        "{wide_msg} {bar:30.green/8} {percent:>3} %  {binary_bytes:>10}  {binary_bytes_per_sec:>12}  {eta:>4}";
    ProgressStyle::with_template(template)
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("█▉▊▋▌▍▎▏░"))
}
