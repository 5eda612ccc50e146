//! Bars of block characters.

use anstyle::Style;

use super::{BAD, FAINT, GOOD, WARNING, styled};

/// A bar of so many columns, filled to the given part from 0 to 1. Its colour says how full it is.
pub fn bar(part: f64, columns: usize) -> String {
    let (filled, empty) = halves(part, columns);
    format!("{}{}", styled(style_of(part), filled), styled(FAINT, empty))
}

/// Green, yellow from three quarters on, red from nine tenths on.
pub fn style_of(part: f64) -> Style {
    match part {
        0.9.. => BAD,
        0.75.. => WARNING,
        _ => GOOD,
    }
}

fn halves(part: f64, columns: usize) -> (String, String) {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (part * columns as f64 * 8.0).round() as usize;
    let mut filled = "█".repeat(eighths / 8);
    filled.push_str(EIGHTHS[eighths % 8]);
    let used = eighths.div_ceil(8);
    (filled, "░".repeat(columns.saturating_sub(used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_always_as_wide_as_asked() {
        for (part, expected) in [
            (0.0, "░░░░"),
            (0.5, "██░░"),
            (0.53, "██▏░"),
            (1.0, "████"),
            (7.0, "████"),
            (-1.0, "░░░░"),
            (f64::NAN, "░░░░"),
        ] {
            let (filled, empty) = halves(part, 4);
            assert_eq!(format!("{filled}{empty}"), expected, "{part}");
        }
    }
}
