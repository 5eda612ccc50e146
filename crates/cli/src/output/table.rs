//! Tables: aligned, coloured and in handy units for people; tabs and exact numbers in a pipe.

use anstyle::Style;

use super::text::{fit, printable, printable_line, width};
use super::{FAINT, Page, styled, units};
use crate::failure::Result;

/// One cell, in both its forms.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    shown: String,
    plain: String,
    style: Style,
    is_number: bool,
}

impl Cell {
    /// A text, from the guest perhaps.
    pub fn text(text: impl AsRef<str>) -> Self {
        let shown = printable(text.as_ref());
        Self { plain: shown.clone(), shown, ..Self::default() }
    }

    /// A number, set to the right.
    pub fn number(number: i64) -> Self {
        Self { is_number: true, ..Self::text(number.to_string()) }
    }

    /// A size: `1.5 GiB` for people, exact otherwise.
    pub fn bytes(count: u64) -> Self {
        Self { shown: units::bytes(count), plain: count.to_string(), is_number: true, ..Self::default() }
    }

    /// Different texts for people and for a pipe. `shown` may hold styles.
    pub fn both(shown: impl Into<String>, plain: impl Into<String>) -> Self {
        Self { shown: printable_line(&shown.into()), plain: printable(&plain.into()), ..Self::default() }
    }

    pub fn or_dash<T>(value: Option<T>, cell: impl FnOnce(T) -> Self) -> Self {
        value
            .map_or_else(|| Self { shown: "-".to_owned(), plain: "-".to_owned(), style: FAINT, is_number: false }, cell)
    }

    /// The cell of a row that goes on: empty for people, who see the one above, and whole for programs.
    #[must_use]
    pub fn only_plain(self) -> Self {
        Self { shown: String::new(), ..self }
    }

    #[must_use]
    pub fn in_style(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

/// A table with a header.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Writes it: with a header for people, without one in a pipe.
    pub fn show(&self, page: &mut Page) -> Result<()> {
        let lines = if page.is_for_people() { self.within(page.columns()) } else { self.tabbed() };
        lines.into_iter().try_for_each(|line| page.line(line))
    }

    fn tabbed(&self) -> Vec<String> {
        let line = |row: &Vec<Cell>| row.iter().map(|cell| cell.plain.as_str()).collect::<Vec<_>>().join("\t");
        self.rows.iter().map(line).collect()
    }

    /// The lines for people, in so many columns of a terminal if they can be: the longest texts are cut off, numbers and
    /// bars never.
    pub fn within(&self, columns: usize) -> Vec<String> {
        const SHORTEST: usize = 8;
        let mut widths = self.widths();
        let is_text = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.clone().all(|cell| !cell.is_number && !cell.shown.contains('\x1b'))
        };
        let texts: Vec<usize> = (0..widths.len()).filter(|&column| is_text(column)).collect();
        while widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1) > columns {
            let Some(&longest) = texts.iter().max_by_key(|&&column| widths[column]) else { break };
            if widths[longest] <= SHORTEST {
                break;
            }
            widths[longest] -= 1;
        }
        let cut = |(column, cell): (usize, &Cell)| match widths.get(column) {
            Some(&most) if texts.contains(&column) => Cell { shown: fit(&cell.shown, most), ..cell.clone() },
            _ => cell.clone(),
        };
        let rows = self.rows.iter().map(|row| row.iter().enumerate().map(cut).collect()).collect();
        Self { header: self.header.clone(), rows }.aligned()
    }

    fn widths(&self) -> Vec<usize> {
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| visible_width(&cell.shown));
            cells.chain([width(self.header[column])]).max().unwrap_or(0)
        };
        (0..self.header.len()).map(widest).collect()
    }

    /// The lines for people.
    pub fn aligned(&self) -> Vec<String> {
        let columns = self.header.len();
        let widths = self.widths();
        let is_number = |column: usize| self.rows.iter().any(|row| row.get(column).is_some_and(|cell| cell.is_number));
        let header = self.header.iter().enumerate().map(|(column, title)| {
            let cell = Cell { is_number: is_number(column), style: FAINT, ..Cell::text(title) };
            padded(&cell, widths[column], column + 1 == columns)
        });
        let mut lines = Vec::new();
        if self.header.iter().any(|title| !title.is_empty()) {
            lines.push(header.collect::<Vec<_>>().join("  ").trim_end().to_owned());
        }
        for row in &self.rows {
            let cells =
                row.iter().enumerate().map(|(column, cell)| padded(cell, widths[column], column + 1 == columns));
            lines.push(cells.collect::<Vec<_>>().join("  ").trim_end().to_owned());
        }
        lines
    }
}

fn padded(cell: &Cell, columns: usize, is_last: bool) -> String {
    let space = " ".repeat(columns.saturating_sub(visible_width(&cell.shown)));
    let text = if cell.style == Style::new() || cell.shown.is_empty() {
        cell.shown.clone()
    } else {
        styled(cell.style, &cell.shown)
    };
    match (cell.is_number, is_last) {
        (true, _) => format!("{space}{text}"),
        (false, true) => text,
        (false, false) => format!("{text}{space}"),
    }
}

/// Columns without the styles.
pub fn visible_width(text: &str) -> usize {
    if text.contains('\x1b') { width(&anstream::adapter::strip_str(text).to_string()) } else { width(text) }
}

#[cfg(test)]
mod tests {
    use super::super::GOOD;
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_style() {
        let mut table = Table::new(&["name", "size", "what"]);
        table.row(vec![Cell::text("日本"), Cell::bytes(2048), Cell::text("x").in_style(GOOD)]);
        table.row(vec![Cell::both(styled(GOOD, "ab"), "ab"), Cell::bytes(5), Cell::or_dash(None::<&str>, Cell::text)]);
        let lines: Vec<String> =
            table.aligned().iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        assert_eq!(lines, ["name     size  what", "日本  2.0 KiB  x", "ab        5 B  -"]);
        assert_eq!(table.tabbed(), ["日本\t2048\tx", "ab\t5\t-"]);
    }

    #[test]
    fn a_table_fits_the_terminal_and_keeps_its_numbers() {
        let mut table = Table::new(&["name", "size"]);
        table.row(vec![Cell::text("a".repeat(100)), Cell::bytes(2048)]);
        let lines: Vec<String> =
            table.within(30).iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        assert_eq!(lines[1], format!("{}…  2.0 KiB", "a".repeat(20)));
        assert_eq!(visible_width(&table.within(200)[1]), 109);
        assert_eq!(table.tabbed(), [format!("{}\t2048", "a".repeat(100))]);
    }

    #[test]
    fn a_guests_text_cannot_break_the_table() {
        let mut table = Table::new(&["name"]);
        table.row(vec![Cell::text("a\nb\tc")]);
        assert_eq!(table.tabbed(), ["a\\nb\\tc"]);
    }
}
