//! `cargo xtask stall`: measures how long a freeze stops a program under both agents, and draws it.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::build;
use crate::vm::guest::{Boot, Guest};
use crate::vm::machine::Hardware;
use crate::vm::stall::{Stall, measure};

const DATA: &str = "docs/bench/freeze-stall.json";
const PICTURE: &str = "docs/pictures/freeze-stall.svg";

/// The command: prints the figures; with `--save` keeps them and their picture in `docs/`.
pub fn main(arguments: &[String]) -> Result<()> {
    let save = match arguments {
        [] => false,
        [option] if option == "--save" => true,
        other => bail!("cargo xtask stall takes --save and nothing else, not {}", other.join(" ")),
    };
    let boot = Boot { our_agent: build::agent_binary()?, hardware: Hardware::default() };
    let mut guest = Guest::boot(&boot)?;
    let [original, ours] = measure(&mut guest)?;
    for (name, stall) in [("original", &original), ("ours", &ours)] {
        println!(
            "{name:>8}: the freeze took {:.2} s, the program stood still for {:.2} s",
            stall.freeze_seconds,
            stall.longest_seconds()
        );
    }
    if save {
        let data = |stall: &Stall| {
            json!({"freeze-seconds": stall.freeze_seconds, "longest-stall-seconds": stall.longest_seconds(),
                   "written-at-seconds": stall.written_at})
        };
        let report = json!({"original": data(&original), "ours": data(&ours)});
        let folder = build::workspace();
        fs::write(folder.join(DATA), format!("{report}\n")).with_context(|| format!("cannot write {DATA}"))?;
        fs::write(folder.join(PICTURE), draw(&original, &ours)).with_context(|| format!("cannot write {PICTURE}"))?;
        println!("saved: {DATA}, {PICTURE}");
    }
    Ok(())
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 96.0;
const RIGHT: f64 = 884.0;
const ROW: f64 = 120.0;
const TOP: f64 = 60.0;
/// Width of a bar in time.
const BIN_SECONDS: f64 = 0.1;

/// Writes per tenth of a second, under the original above and under ours below, on one axis of time.
fn draw(original: &Stall, ours: &Stall) -> String {
    let end = [original, ours].iter().filter_map(|stall| stall.written_at.last()).fold(1.0_f64, |a, b| a.max(*b));
    let at = |seconds: f64| LEFT + seconds / end * (RIGHT - LEFT);
    let height = TOP + 2.0 * ROW + 40.0;
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"Writes of a program during a freeze, under both agents\">\n{STYLE}\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n\
         <text class=\"title\" x=\"16\" y=\"28\">A program that writes and syncs all the time, while the host freezes the guest</text>\n\
         <text class=\"head\" x=\"16\" y=\"48\">writes done in each tenth of a second; another, slow disk has 120 MB to write when the freeze comes</text>\n"
    );
    for (index, (name, class, stall)) in
        [("original", "worse", original), ("ours", "better", ours)].into_iter().enumerate()
    {
        let bottom = TOP + ROW * (index as f64 + 1.0) - 8.0;
        let mut bins = vec![0_u32; (end / BIN_SECONDS) as usize + 1];
        for moment in &stall.written_at {
            bins[(moment / BIN_SECONDS) as usize] += 1;
        }
        let most = f64::from(bins.iter().copied().max().unwrap_or(1).max(1));
        let _ = write!(
            svg,
            "<text x=\"16\" y=\"{:.1}\">{name}</text>\n<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\n",
            bottom - 40.0
        );
        for (bin, count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
            let bar = f64::from(*count) / most * (ROW - 40.0);
            let width = (BIN_SECONDS / end * (RIGHT - LEFT) - 0.8).max(0.6);
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{bar:.1}\"/>",
                at(bin as f64 * BIN_SECONDS),
                bottom - bar
            );
        }
        let pairs = stall.written_at.windows(2).map(|pair| (pair[0], pair[1]));
        if let Some((from, to)) = pairs.max_by(|a, b| (a.1 - a.0).total_cmp(&(b.1 - b.0))) {
            let _ = writeln!(
                svg,
                "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">stands still for {:.2} s</text>",
                at(f64::midpoint(from, to)),
                bottom - ROW + 34.0,
                to - from
            );
        }
    }
    let axis = TOP + 2.0 * ROW + 14.0;
    for second in 0..=end as u32 {
        let _ =
            writeln!(svg, "<text class=\"axis\" x=\"{:.1}\" y=\"{axis:.1}\">{second} s</text>", at(f64::from(second)));
    }
    svg.push_str("</svg>\n");
    svg
}

const STYLE: &str = "<style>
  text { font: 13px system-ui, sans-serif; fill: #1f2328 } .page { fill: #ffffff }
  .title { font-weight: 600; font-size: 16px } .head { fill: #59636e; font-size: 12px }
  .axis { text-anchor: middle; fill: #59636e; font-size: 11px } .label { text-anchor: middle; font-size: 12px }
  .grid { stroke: #d1d9e0 } .better { fill: #2da44e } .worse { fill: #cf222e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .head, .axis { fill: #9198a1 } .grid { stroke: #3d444d }
    .better { fill: #3fb950 } .worse { fill: #f85149 }
  }
</style>";

#[cfg(test)]
mod tests {
    use super::{Stall, draw};

    #[test]
    fn the_longest_gap_of_each_is_named() {
        let original = Stall { written_at: vec![0.1, 0.2, 6.2, 6.3], freeze_seconds: 6.0 };
        let ours = Stall { written_at: vec![0.1, 0.25, 0.5, 0.6], freeze_seconds: 6.0 };
        let svg = draw(&original, &ours);
        assert!(svg.contains("stands still for 6.00 s") && svg.contains("stands still for 0.25 s"), "{svg}");
        assert!(svg.contains("class=\"worse\"") && svg.contains("class=\"better\""));
    }
}
