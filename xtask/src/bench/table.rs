//! The results: rows of two numbers, their ratio and the target; printed, and written as JSON.

use serde::Serialize;

use crate::style;

/// What a row's numbers count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Seconds; less is better.
    Seconds,
    /// Bytes of memory; less is better.
    Bytes,
    /// Bytes per second; more is better.
    BytesPerSecond,
    /// Seconds of processor time for 10^9 bytes; less is better.
    SecondsPerGigabyte,
    /// A number of things; less is better.
    Count,
    /// So many times something else; less is better.
    Times,
}

/// What was promised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Ours divided by the original's is at most this.
    RatioAtMost(f64),
    /// Ours divided by the original's is at least this.
    RatioAtLeast(f64),
    /// Ours is at most this, whatever the original's.
    AtMost(f64),
    /// Ours is at least the first, or divided by the original's at least the second.
    AtLeastOrRatio(f64, f64),
    /// Nothing: for information.
    None,
}

/// One result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// What the numbers count.
    pub unit: Unit,
    /// The original's; absent if it gave no answer in the time allowed.
    pub original: Option<f64>,
    /// Ours; absent likewise.
    pub ours: Option<f64>,
    /// What was promised.
    pub target: Target,
}

impl Row {
    /// Ours divided by the original's.
    pub fn ratio(&self) -> Option<f64> {
        let (original, ours) = (self.original?, self.ours?);
        // Where a number itself is promised, as that of growth, its ratio to another's says nothing.
        let is_compared = !matches!(self.target, Target::AtMost(_));
        (is_compared && original > 0.0 && ours > 0.0).then(|| ours / original)
    }

    /// How many times better ours is; below 1 if it is worse.
    pub fn gain(&self) -> Option<f64> {
        self.ratio().map(|ratio| if self.unit == Unit::BytesPerSecond { ratio } else { 1.0 / ratio })
    }

    /// Whether the promise is kept; `None` if there is none.
    pub fn met(&self) -> Option<bool> {
        match self.target {
            Target::RatioAtMost(most) => Some(self.ratio().is_some_and(|ratio| ratio <= most)),
            Target::RatioAtLeast(least) => Some(self.ratio().is_some_and(|ratio| ratio >= least)),
            Target::AtMost(most) => Some(self.ours.is_some_and(|ours| ours <= most)),
            Target::AtLeastOrRatio(least, ratio) => Some(
                self.ours.is_some_and(|ours| ours >= least) || self.ratio().is_some_and(|reached| reached >= ratio),
            ),
            Target::None => None,
        }
    }

    /// A number of this row as people read it.
    pub fn format(&self, value: Option<f64>) -> String {
        let Some(value) = value else { return "no answer".to_owned() };
        match self.unit {
            Unit::Seconds if value < 1e-3 => format!("{:.1} µs", value * 1e6),
            Unit::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Bytes => style::bytes(value),
            Unit::BytesPerSecond => format!("{}/s", style::bytes(value)),
            Unit::SecondsPerGigabyte => format!("{value:.3} s/GB"),
            Unit::Count => format!("{value:.0}"),
            Unit::Times => format!("{value:.2}x"),
        }
    }

    /// The promise in words.
    pub fn target_text(&self) -> String {
        match self.target {
            Target::RatioAtMost(most) => format!("≤ {most}x"),
            Target::RatioAtLeast(least) => format!("≥ {least}x"),
            Target::AtMost(most) => format!("≤ {}", self.format(Some(most)).replace(".00", "").replace(".0 ", " ")),
            Target::AtLeastOrRatio(least, ratio) => {
                format!("≥ {} or {ratio}x", self.format(Some(least)).replace(".0 ", " "))
            }
            Target::None => String::new(),
        }
    }

    /// The ratio in words.
    pub fn ratio_text(&self) -> String {
        self.ratio().map_or_else(String::new, |ratio| {
            if ratio >= 10.0 {
                format!("{ratio:.1}x")
            } else if ratio >= 0.1 {
                format!("{ratio:.2}x")
            } else {
                format!("{ratio:.3}x")
            }
        })
    }
}

/// The table for a terminal.
pub fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let head = format!("{:<width$}  {:>12}  {:>12}  {:>9}  {:>9}", "", "original", "ours", "ratio", "target");
    println!("{}", style::bold(&head));
    for row in rows {
        let mark = match row.met() {
            Some(true) => style::good("met"),
            Some(false) => style::bad("NOT MET"),
            None => String::new(),
        };
        println!(
            "{:<width$}  {:>12}  {:>12}  {:>9}  {:>9}  {mark}",
            row.name,
            row.format(row.original),
            row.format(row.ours),
            row.ratio_text(),
            row.target_text(),
        );
    }
    let promised = rows.iter().filter(|row| row.met().is_some()).count();
    let met = rows.iter().filter(|row| row.met() == Some(true)).count();
    println!("{met} of {promised} targets met");
}

/// The middle value.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, original: f64, ours: f64, target: Target) -> Row {
        Row { name: "x".to_owned(), unit, original: Some(original), ours: Some(ours), target }
    }

    #[test]
    fn promises_are_judged_by_ratio_or_by_value() {
        assert_eq!(row(Unit::Seconds, 2.0, 1.0, Target::RatioAtMost(0.5)).met(), Some(true));
        assert_eq!(row(Unit::Seconds, 2.0, 1.1, Target::RatioAtMost(0.5)).met(), Some(false));
        assert_eq!(row(Unit::BytesPerSecond, 1.0, 10.0, Target::RatioAtLeast(10.0)).met(), Some(true));
        assert_eq!(row(Unit::Seconds, 1.0, 0.06, Target::AtMost(0.05)).met(), Some(false));
        let either = Target::AtLeastOrRatio(10.0, 5.0);
        assert_eq!(row(Unit::BytesPerSecond, 9.0, 10.0, either).met(), Some(true));
        assert_eq!(row(Unit::BytesPerSecond, 1.0, 5.0, either).met(), Some(true));
        assert_eq!(row(Unit::BytesPerSecond, 2.0, 9.0, either).met(), Some(false));
        assert_eq!(row(Unit::Bytes, 1.0, 9.0, Target::None).met(), None);
    }

    #[test]
    fn gain_is_above_one_where_ours_is_better() {
        assert_eq!(row(Unit::Seconds, 4.0, 1.0, Target::None).gain(), Some(4.0));
        assert_eq!(row(Unit::BytesPerSecond, 1.0, 4.0, Target::None).gain(), Some(4.0));
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut []), None);
    }
}
