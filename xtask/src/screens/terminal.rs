//! A terminal to drive, and its screen as SVG.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A tmux server of our own with one window.
pub struct Terminal {
    socket: tempfile::TempDir,
}

impl Terminal {
    /// Opens a window of this size, in which `program` is found by its name.
    pub fn open(program: &Path, columns: u16, rows: u16) -> Result<Self> {
        let socket = tempfile::Builder::new().prefix("qga-tmux-").tempdir()?;
        let terminal = Self { socket };
        let folder = program.parent().context("the program has no folder")?;
        let size = [columns.to_string(), rows.to_string()];
        let path = format!("PATH={}:/usr/bin:/bin", folder.display());
        let arguments = ["-f", "/dev/null", "new-session", "-d", "-x", &size[0], "-y", &size[1], "-s", "screen"];
        let shell = ["env", "-i", &path, "TERM=tmux-256color", "LC_ALL=C.UTF-8", "PS1=$ ", "sh"];
        terminal.tmux(&[&arguments[..], &shell[..]].concat())?;
        Ok(terminal)
    }

    /// Types a line and waits until the shell has done it.
    pub fn say(&mut self, line: &str) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(120);
        let mark = self.socket.path().join("done");
        // It may be there from the last time.
        let _ = std::fs::remove_file(&mark);
        self.type_line(&format!("{line}; touch {}", mark.display()))?;
        let started = Instant::now();
        while !mark.exists() {
            ensure!(started.elapsed() < PATIENCE, "the shell does not come to an end of: {line}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.tmux(&["send-keys", "-t", "screen", "-l", line])?;
        self.press("Enter")
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", "-t", "screen", key]).map(drop)
    }

    /// Empties the screen.
    pub fn clear(&mut self) -> Result<()> {
        self.say("clear")?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    /// What is on it, with its colours as escape sequences.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-t", "screen", "-e", "-p"])
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.socket.path().join("socket");
        let mut command = Command::new("tmux");
        let output = command.arg("-S").arg(socket).args(arguments).output().context("cannot start tmux")?;
        if !output.status.success() {
            bail!("tmux {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended with its shell.
        let _ = self.tmux(&["kill-server"]);
    }
}

const CELL_WIDTH: f64 = 8.4;
const CELL_HEIGHT: f64 = 17.0;
const MARGIN: f64 = 14.0;
const TITLE_HEIGHT: f64 = 30.0;

/// How a character looks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Look {
    /// One of the terminal's sixteen colours.
    colour: Option<usize>,
    is_bold: bool,
    is_faint: bool,
}

/// Colours for a dark ground, in the terminal's order; the second eight are the bright ones.
const COLOURS: [&str; 16] = [
    "#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4", "#6e7681", "#ffa198",
    "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff",
];

/// Draws a screen. Characters that fill their cell in part are drawn as what they mean, for fonts leave gaps.
pub fn draw(screen: &str, columns: usize, title: &str) -> String {
    let lines: Vec<&str> = screen.trim_end().lines().collect();
    let width = columns as f64 * CELL_WIDTH + 2.0 * MARGIN;
    let height = lines.len() as f64 * CELL_HEIGHT + 2.0 * MARGIN + TITLE_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" xml:space=\"preserve\" role=\"img\" aria-label=\"{0}\">\n{STYLE}\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#0d1117\"/>\n\
         <g fill=\"#484f58\"><circle cx=\"20\" cy=\"17\" r=\"5\"/><circle cx=\"38\" cy=\"17\" r=\"5\"/>\
         <circle cx=\"56\" cy=\"17\" r=\"5\"/></g>\n\
         <text class=\"title\" x=\"{1}\" y=\"21\">{0}</text>\n",
        escape(title),
        width / 2.0
    );
    let mut look = Look::default();
    for (row, line) in lines.iter().enumerate() {
        let top = row as f64 * CELL_HEIGHT + MARGIN + TITLE_HEIGHT;
        let mut column = 0;
        for (look, text) in runs(line, &mut look) {
            draw_run(&mut svg, look, &text, column, top);
            column += text.chars().count();
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_run(svg: &mut String, look: Look, text: &str, column: usize, top: f64) {
    let fill = look.colour.map_or("#e6edf3", |colour| COLOURS[colour]);
    let opacity = if look.is_faint { " opacity=\"0.6\"" } else { "" };
    // The letters keep their places.
    let letters: String =
        text.chars().map(|character| if block(character).is_some() { ' ' } else { character }).collect();
    let characters: Vec<char> = text.chars().collect();
    let mut index = 0;
    for same in characters.chunk_by(|a, b| a == b) {
        let x = (column + index) as f64 * CELL_WIDTH + MARGIN;
        index += same.len();
        let Some(Block { width, upper, shade }) = block(same[0]) else { continue };
        // A bar is one shape; its pieces would show where they meet.
        let cells = (same.len() - 1) as f64 + width;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\" opacity=\"{:.2}\"/>",
            top + upper * CELL_HEIGHT,
            cells * CELL_WIDTH,
            if same[0] == '─' { 1.0 } else { (1.0 - upper) * CELL_HEIGHT },
            shade * if look.is_faint { 0.6 } else { 1.0 }
        );
    }
    if letters.trim().is_empty() {
        return;
    }
    let weight = if look.is_bold { " font-weight=\"700\"" } else { "" };
    let start = letters.len() - letters.trim_start().len();
    let x = (column + start) as f64 * CELL_WIDTH + MARGIN;
    let shown = letters.trim();
    let length = shown.chars().count() as f64 * CELL_WIDTH;
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\" fill=\"{fill}\"{weight}{opacity}>{}</text>",
        top + 13.0,
        escape(shown)
    );
}

/// The part of its cell that a character fills: its width from the left, and from where down, both from 0 to 1; and how
/// densely.
struct Block {
    width: f64,
    upper: f64,
    shade: f64,
}

fn block(character: char) -> Option<Block> {
    let eighths = |from: char| f64::from(u32::from(character) - u32::from(from) + 1) / 8.0;
    let (width, upper, shade) = match character {
        '▁'..='▇' => (1.0, 1.0 - eighths('▁'), 1.0),
        '█' => (1.0, 0.0, 1.0),
        '▉'..='▏' => (1.0 - eighths('▉'), 0.0, 1.0),
        '░' => (1.0, 0.0, 0.22),
        '─' => (1.0, 0.5, 1.0),
        _ => return None,
    };
    Some(Block { width, upper, shade })
}

/// A line's texts, each with its look, which goes on from one line to the next.
fn runs(line: &str, look: &mut Look) -> Vec<(Look, String)> {
    let mut runs: Vec<(Look, String)> = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find("\x1b[") {
        push(&mut runs, *look, &rest[..start]);
        let sequence = &rest[start + 2..];
        let end = sequence.find(|character: char| character.is_ascii_alphabetic()).unwrap_or(sequence.len());
        if sequence[end..].starts_with('m') {
            *look = after(*look, &sequence[..end]);
        }
        rest = sequence.get(end + 1..).unwrap_or_default();
    }
    push(&mut runs, *look, rest);
    runs
}

fn push(runs: &mut Vec<(Look, String)>, look: Look, text: &str) {
    // tmux switches character sets for lines, which UTF-8 has no need of.
    let text: String = text.chars().filter(|character| !character.is_control()).collect();
    if !text.is_empty() {
        runs.push((look, text));
    }
}

fn after(mut look: Look, codes: &str) -> Look {
    let mut codes = codes.split(';').map(|code| code.parse::<usize>().unwrap_or(0));
    while let Some(code) = codes.next() {
        match code {
            // 38;5;N: a colour of the larger table, whose first sixteen are these.
            38 | 48 => {
                let number = codes.nth(1);
                if code == 38 {
                    look.colour = number.filter(|&number| number < COLOURS.len());
                }
            }
            0 => look = Look::default(),
            1 => look.is_bold = true,
            2 => look.is_faint = true,
            22 => (look.is_bold, look.is_faint) = (false, false),
            30..=37 => look.colour = Some(code - 30),
            39 => look.colour = None,
            90..=97 => look.colour = Some(code - 82),
            _ => {}
        }
    }
    look
}

const STYLE: &str = "<style>text { font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; \
                     white-space: pre } .title { font: 12px system-ui, sans-serif; fill: #9198a1; text-anchor: middle }</style>";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_bars_become_shapes() {
        let svg = draw("\x1b[1;32mgo & see\x1b[0m \x1b[2m░█\x1b[39m\n", 20, "a screen");
        assert!(svg.contains("fill=\"#3fb950\" font-weight=\"700\">go &amp; see</text>"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 3, "{svg}");
    }

    #[test]
    fn a_look_lasts_until_it_is_ended() {
        let look = |codes| after(Look::default(), codes);
        assert_eq!(look("1;36"), Look { colour: Some(6), is_bold: true, is_faint: false });
        assert_eq!(after(look("1;36"), "22"), Look { colour: Some(6), ..Look::default() });
        assert_eq!(look("91").colour, Some(9));
        assert_eq!(look("38;5;2"), Look { colour: Some(2), ..Look::default() });
        assert_eq!(after(look("91"), ""), Look::default());
        let mut look = Look::default();
        assert_eq!(runs("a\x1b[31mb", &mut look).len(), 2);
        assert_eq!(runs("c\x1b[0m", &mut look)[0].0.colour, Some(1));
        assert_eq!(look, Look::default());
    }
}
