//! The screen of `qga top`, drawn from its state alone.

use std::collections::VecDeque;

use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline};
use ratatui::{Frame, Terminal};

use super::state::{Busy, State, Traffic};
use crate::output::text::{fit, printable};
use crate::output::units;

const BAR_COLUMNS: usize = 24;
const NAME_COLUMNS: usize = 12;

pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let columns = usize::from(frame.area().width);
    let processors = processor_lines(state, columns.saturating_sub(2));
    let memory = memory_lines(state);
    let disks =
        traffic_lines(&state.disks, ("read", "write"), columns.saturating_sub(2), "the guest tells of no disks");
    let network =
        traffic_lines(&state.interfaces, ("in", "out"), columns.saturating_sub(2), "the guest tells of no interfaces");
    let file_systems = file_system_lines(state);
    let height =
        |lines: &[Line<'_>]| Constraint::Length(u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(1));
    let past_height = if state.processors.is_empty() { 0 } else { 4 };
    let areas: [Rect; 8] = Layout::vertical([
        Constraint::Length(1),
        height(&processors),
        Constraint::Length(past_height),
        height(&memory),
        height(&disks),
        height(&network),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(head(state, columns), areas[0]);
    section(frame, areas[1], "processors", processors);
    past(frame, areas[2], &state.busy_past);
    section(frame, areas[3], "memory", memory);
    section(frame, areas[4], "disks", disks);
    section(frame, areas[5], "network", network);
    section(frame, areas[6], "file systems", file_systems);
    frame.render_widget(foot(state, columns), areas[7]);
}

fn head(state: &State, columns: usize) -> Line<'static> {
    let sample = state.latest.as_ref();
    let mut right = String::new();
    if let Some(load) = sample.and_then(|sample| sample.load.as_ref()) {
        right.push_str(&format!("load {:.2} {:.2} {:.2}", load.load1m, load.load5m, load.load15m));
    }
    if let Some(uptime) = sample.and_then(|sample| sample.uptime_seconds) {
        right.push_str(&format!("  up {}", units::span(uptime as u64)));
    }
    let left = fit(&printable(&state.title), columns.saturating_sub(right.chars().count() + 2));
    let space = columns.saturating_sub(left.chars().count() + right.chars().count());
    Line::from(vec![left.cyan().bold(), " ".repeat(space).into(), right.into()])
}

fn foot(state: &State, columns: usize) -> Line<'static> {
    if let Some(problem) = &state.problem {
        return Line::from(fit(&printable(problem), columns)).red();
    }
    let pause = if state.is_paused { "paused, space goes on" } else { "space pauses" };
    Line::from(format!("q quits, {pause}, every {} s", state.interval.as_secs_f64())).dim()
}

fn section(frame: &mut Frame<'_>, area: Rect, title: &'static str, lines: Vec<Line<'_>>) {
    let block = Block::new().borders(Borders::TOP).border_style(Style::new().dim()).title(format!(" {title} ").bold());
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// The processors' past, all together; the newest value stands at the right.
fn past(frame: &mut Frame<'_>, area: Rect, values: &VecDeque<u64>) {
    let columns = usize::from(area.width);
    let shown = values.iter().skip(values.len().saturating_sub(columns)).copied();
    let mut data = vec![0; columns.saturating_sub(values.len())];
    data.extend(shown);
    frame.render_widget(Sparkline::default().data(data).max(1000).style(Style::new().fg(Color::Green)), area);
}

/// A bar for each processor, in as many columns as there is room for; at most eight lines.
fn processor_lines(state: &State, columns: usize) -> Vec<Line<'static>> {
    const LINES_MAX: usize = 8;
    if state.processors.is_empty() {
        return vec![absent("the guest does not tell how its processors are used")];
    }
    let column_width = BAR_COLUMNS + 14;
    let side_by_side = (columns / column_width).max(1);
    let mut lines = vec![total_line(state)];
    let rows = state.processors.len().div_ceil(side_by_side);
    for row in 0..rows.min(LINES_MAX) {
        let mut spans = Vec::new();
        for processor in state.processors.iter().skip(row).step_by(rows).take(side_by_side) {
            spans.push(Span::from(format!(" {:>4} ", processor.number)).dim());
            spans.extend(busy_bar(processor));
            spans.push(Span::from(format!(" {:>3.0} %  ", processor.all() * 100.0)));
        }
        lines.push(Line::from(spans));
    }
    if rows > LINES_MAX {
        lines.push(absent("and more"));
    }
    lines
}

fn total_line(state: &State) -> Line<'static> {
    let count = state.processors.len().max(1) as f64;
    let mean = |part: fn(&Busy) -> f64| state.processors.iter().map(part).sum::<f64>() / count * 100.0;
    let text = format!(
        " all  user {:.0} %  system {:.0} %  waiting for disks {:.0} %  taken by the host {:.0} %",
        mean(|busy| busy.user),
        mean(|busy| busy.system),
        mean(|busy| busy.waiting),
        mean(|busy| busy.stolen)
    );
    Line::from(text)
}

/// User, system and stolen time in colours of their own.
fn busy_bar(busy: &Busy) -> Vec<Span<'static>> {
    let cells = |part: f64| (part * BAR_COLUMNS as f64).round() as usize;
    let (user, system, stolen) = (cells(busy.user), cells(busy.system), cells(busy.stolen));
    let user = user.min(BAR_COLUMNS);
    let system = system.min(BAR_COLUMNS - user);
    let stolen = stolen.min(BAR_COLUMNS - user - system);
    vec![
        "█".repeat(user).green(),
        "█".repeat(system).yellow(),
        "█".repeat(stolen).red(),
        "░".repeat(BAR_COLUMNS - user - system - stolen).dim(),
    ]
}

fn memory_lines(state: &State) -> Vec<Line<'static>> {
    let Some(memory) = state.latest.as_ref().and_then(|sample| sample.memory) else {
        return vec![absent("the guest does not tell how its memory is used")];
    };
    let mut lines = vec![gauge("used", memory.used_bytes(), memory.total_bytes)];
    if memory.swap_total_bytes > 0 {
        lines.push(gauge("swap", memory.swap_used_bytes(), memory.swap_total_bytes));
    }
    lines
}

fn gauge(name: &str, used: u64, total: u64) -> Line<'static> {
    let part = if total == 0 { 0.0 } else { (used as f64 / total as f64).clamp(0.0, 1.0) };
    let filled = (part * BAR_COLUMNS as f64).round() as usize;
    let colour = match part {
        0.9.. => Color::Red,
        0.75.. => Color::Yellow,
        _ => Color::Green,
    };
    Line::from(vec![
        Span::from(format!(" {:<NAME_COLUMNS$} ", fit(&printable(name), NAME_COLUMNS))),
        "█".repeat(filled).fg(colour),
        "░".repeat(BAR_COLUMNS - filled).dim(),
        format!(" {:>3.0} %  {} of {}", part * 100.0, units::bytes(used), units::bytes(total)).into(),
    ])
}

fn traffic_lines(all: &[Traffic], names: (&str, &str), columns: usize, nothing: &'static str) -> Vec<Line<'static>> {
    const LINES_MAX: usize = 6;
    if all.is_empty() {
        return vec![absent(nothing)];
    }
    let mut busiest: Vec<&Traffic> = all.iter().collect();
    // The order must not jump with every look, so it is that of the whole past.
    busiest.sort_by_key(|traffic| std::cmp::Reverse(traffic.past.iter().sum::<u64>()));
    let numbers = NAME_COLUMNS + 4 + 2 * (6 + 12);
    busiest.truncate(LINES_MAX);
    busiest
        .into_iter()
        .map(|traffic| {
            let past = spark(&traffic.past, columns.saturating_sub(numbers));
            Line::from(vec![
                Span::from(format!(" {:<NAME_COLUMNS$} ", fit(&printable(&traffic.name), NAME_COLUMNS))),
                Span::from(format!("{:>5} ", names.0)).dim(),
                Span::from(format!("{:>10}/s ", units::bytes(traffic.inward as u64))),
                Span::from(format!("{:>5} ", names.1)).dim(),
                Span::from(format!("{:>10}/s  ", units::bytes(traffic.outward as u64))),
                past.cyan(),
            ])
        })
        .collect()
}

/// The past as small bars, the highest of them as high as they go.
fn spark(past: &VecDeque<u64>, columns: usize) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = past.iter().rev().take(columns).copied().max().unwrap_or(0).max(1);
    let shown = past.iter().skip(past.len().saturating_sub(columns));
    shown
        .map(|&value| {
            let height = (value as f64 / highest as f64 * 8.0).ceil() as usize;
            BARS[height.min(8)]
        })
        .collect()
}

fn file_system_lines(state: &State) -> Vec<Line<'static>> {
    let file_systems = state.latest.as_ref().and_then(|sample| sample.file_systems.as_ref());
    let Some(file_systems) = file_systems else { return vec![absent("the guest does not tell of its file systems")] };
    let mut sorted: Vec<_> = file_systems.iter().collect();
    sorted.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    let sized = sorted.into_iter().filter_map(|file_system| {
        let (used, total) = (file_system.used_bytes?, file_system.total_bytes?);
        Some(gauge(&file_system.mountpoint, used, total))
    });
    sized.collect()
}

fn absent(text: &'static str) -> Line<'static> {
    Line::from(format!(" {text}")).dim()
}

/// The screen as lines of text, without the empty ones at its end.
pub fn text(state: &State, columns: u16, rows: u16) -> Vec<String> {
    let area = Rect::new(0, 0, columns.max(20), rows);
    let mut terminal = match Terminal::new(TestBackend::new(area.width, area.height)) {
        Ok(terminal) => terminal,
        Err(never) => match never {},
    };
    match terminal.draw(|frame| draw(frame, state)) {
        Ok(_) => {}
        Err(never) => match never {},
    }
    let buffer = terminal.backend().buffer();
    let line = |y| (0..area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    let mut lines: Vec<String> = (0..area.height).map(line).collect();
    // What is said of the keyboard stands at the bottom, and there is none here.
    lines.pop();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;
    use crate::commands::guest::Memory;
    use crate::commands::sample::Sample;

    fn screen(state: &State, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y: u16| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..rows).map(row).collect::<Vec<_>>().join("\n")
    }

    fn check(state: &State, columns: u16, rows: u16, expected: &Expect) {
        expected.assert_eq(&screen(state, columns, rows));
    }

    fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn empty(taken: Instant) -> Sample {
        Sample {
            taken,
            uptime_seconds: None,
            load: None,
            processors: None,
            memory: None,
            disks: None,
            interfaces: None,
            file_systems: None,
        }
    }

    fn sample(taken: Instant, step: u64) -> Sample {
        let processor = |number: i64, busy: u64| {
            from(
                json!({ "cpu": number, "user": step * busy, "nice": 0, "system": step * 10, "idle": step * (90 - busy), "steal": 0 }),
            )
        };
        Sample {
            uptime_seconds: Some(93_784.0),
            load: Some(from(json!({ "load1m": 0.5, "load5m": 0.25, "load15m": 0.125 }))),
            processors: Some(vec![processor(0, 40), processor(1, 0)]),
            memory: Some(Memory {
                total_bytes: 4 << 30,
                available_bytes: 1 << 30,
                swap_total_bytes: 0,
                swap_free_bytes: 0,
            }),
            disks: Some(from(json!([
                { "name": "vda", "major": 1, "minor": 0, "stats": { "read-sectors": step * 2048, "write-sectors": 0 } },
                { "name": "vda1", "major": 1, "minor": 1, "stats": { "read-sectors": step * 2048, "write-sectors": 0 } },
            ]))),
            interfaces: Some(from(json!([
                { "name": "lo" },
                { "name": "eth0", "statistics": { "rx-bytes": step * 1000, "rx-packets": 0, "rx-errs": 0, "rx-dropped": 0, "tx-bytes": step * step * 100_000, "tx-packets": 0, "tx-errs": 0, "tx-dropped": 0 } },
            ]))),
            file_systems: Some(from(json!([
                { "name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 19_u64 << 30, "total-bytes": 20_u64 << 30, "disk": [] },
            ]))),
            ..empty(taken)
        }
    }

    #[test]
    fn a_guest_is_shown_with_its_rates_and_their_past() {
        let mut state = State::new("web-1 · Debian".to_owned(), Duration::from_secs(2));
        let start = Instant::now();
        for step in 0..6 {
            state.hear(sample(start + Duration::from_secs(step), step));
        }
        check(
            &state,
            90,
            22,
            &expect![[r"
            web-1 · Debian                                             load 0.50 0.25 0.12  up 1 d 2 h
             processors ──────────────────────────────────────────────────────────────────────────────
             all  user 20 %  system 10 %  waiting for disks 0 %  taken by the host 0 %
                0 ████████████░░░░░░░░░░░░  50 %      1 ██░░░░░░░░░░░░░░░░░░░░░░  10 %


                                                                                                 ▁▁▁▁▁
                                                                                                 █████
             memory ──────────────────────────────────────────────────────────────────────────────────
             used         ██████████████████░░░░░░  75 %  3.0 GiB of 4.0 GiB
             disks ───────────────────────────────────────────────────────────────────────────────────
             vda           read    1.0 MiB/s write        0 B/s  █████
             network ─────────────────────────────────────────────────────────────────────────────────
             eth0            in     1000 B/s   out    879 KiB/s  ▁▃▅▇█
             file systems ────────────────────────────────────────────────────────────────────────────
             /            ███████████████████████░  95 %  19 GiB of 20 GiB





            q quits, space pauses, every 2 s"]],
        );
    }

    #[test]
    fn what_a_guest_does_not_tell_is_said() {
        let mut state = State::new("windows".to_owned(), Duration::from_millis(500));
        state.hear(empty(Instant::now()));
        state.problem = Some("no answer to guest-get-load".to_owned());
        check(
            &state,
            60,
            14,
            &expect![[r"
            windows
             processors ────────────────────────────────────────────────
             the guest does not tell how its processors are used
             memory ────────────────────────────────────────────────────
             the guest does not tell how its memory is used
             disks ─────────────────────────────────────────────────────
             the guest tells of no disks
             network ───────────────────────────────────────────────────
             the guest tells of no interfaces
             file systems ──────────────────────────────────────────────
             the guest does not tell of its file systems


            no answer to guest-get-load"]],
        );
    }

    #[test]
    fn no_size_of_the_terminal_is_too_small() {
        let mut state = State::new("x".repeat(200), Duration::from_secs(2));
        let start = Instant::now();
        for step in 0..3 {
            state.hear(sample(start + Duration::from_secs(step), step));
        }
        for (columns, rows) in [(1, 1), (5, 3), (20, 5), (400, 100)] {
            assert!(!screen(&state, columns, rows).is_empty());
        }
    }
}
