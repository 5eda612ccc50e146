//! What was promised, as a picture: how many times better ours is, as bars on a logarithmic axis, with the numbers beside.
//! The whole table has more rows than anybody looks at.
//!
//! Plain SVG with two sets of colours, so that it can be read on light and on dark pages.

use std::fmt::Write as _;

use super::table::Row;

const WIDTH: f64 = 900.0;
const LINE: f64 = 24.0;
const TOP: f64 = 76.0;
/// The bars' part of the width.
const LEFT: f64 = 460.0;
const RIGHT: f64 = 790.0;

/// Draws the rows that have a promise and can be compared.
pub fn draw(rows: &[Row]) -> String {
    let is_drawn = |row: &&Row| row.met().is_some() && (row.gain().is_some() || row.original.is_none());
    let rows: Vec<&Row> = rows.iter().filter(is_drawn).collect();
    let gains: Vec<f64> = rows.iter().filter_map(|row| row.gain()).collect();
    // Whole decades around what there is, at least from a half to two.
    let lowest = gains.iter().copied().fold(0.5, f64::min).log10().max(-3.0) - 0.05;
    let highest = gains.iter().copied().fold(2.0, f64::max).log10().min(4.0) + 0.05;
    let at = |gain: f64| LEFT + (gain.log10().clamp(lowest, highest) - lowest) / (highest - lowest) * (RIGHT - LEFT);
    let bottom = TOP + rows.len() as f64 * LINE;
    let height = bottom + 34.0;

    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"Our agent compared with the original\">\n{STYLE}\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n\
         <text class=\"title\" x=\"16\" y=\"28\">Our agent beside the original, measured in turns in one run</text>\n\
         <text class=\"head\" x=\"16\" y=\"58\">what</text>\n\
         <text class=\"head number\" x=\"348\" y=\"58\">original</text>\n\
         <text class=\"head number\" x=\"440\" y=\"58\">ours</text>\n\
         <text class=\"head\" x=\"{LEFT}\" y=\"58\">times better than the original (bars to the right of 1)</text>\n"
    );
    for gain in [0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0_f64] {
        if gain.log10() < lowest || gain.log10() > highest {
            continue;
        }
        let x = at(gain);
        let class = if (gain - 1.0).abs() < 1e-9 { "one" } else { "grid" };
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP:.1}\" y2=\"{bottom:.1}\"/>\n\
             <text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\">{gain}</text>\n",
            bottom + 18.0
        );
    }
    for (index, row) in rows.iter().enumerate() {
        let y = TOP + index as f64 * LINE;
        let text_y = y + 16.0;
        let (original, ours) = (row.format(row.original), row.format(row.ours));
        let _ = write!(
            svg,
            "<text x=\"16\" y=\"{text_y:.1}\">{}</text>\n\
             <text class=\"number\" x=\"348\" y=\"{text_y:.1}\">{original}</text>\n\
             <text class=\"number\" x=\"440\" y=\"{text_y:.1}\">{ours}</text>\n",
            escape(&row.name)
        );
        if let Some(gain) = row.gain() {
            let (one, end) = (at(1.0), at(gain));
            let (x, width) = (one.min(end), (end - one).abs().max(1.5));
            let class = match gain {
                0.95..1.05 => "even",
                1.05.. => "better",
                _ => "worse",
            };
            let label_x = one.max(end) + 6.0;
            let label = if gain >= 10.0 { format!("{gain:.0}x") } else { format!("{gain:.2}x") };
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" rx=\"2\"/>\n\
                 <text class=\"label\" x=\"{label_x:.1}\" y=\"{text_y:.1}\">{label}</text>\n",
                y + 5.0
            );
        } else if row.original.is_none() && row.ours.is_some() {
            let _ = writeln!(
                svg,
                "<text class=\"label\" x=\"{:.1}\" y=\"{text_y:.1}\">the original does not answer</text>",
                at(1.0) + 6.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

const STYLE: &str = "<style>
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .page { fill: #ffffff } .title { font-weight: 600; font-size: 16px } .head { fill: #59636e; font-size: 12px }
  .number { text-anchor: end; font-variant-numeric: tabular-nums } .axis { text-anchor: middle; fill: #59636e; font-size: 11px }
  .label { font-size: 12px; font-variant-numeric: tabular-nums }
  .grid { stroke: #d1d9e0 } .one { stroke: #59636e; stroke-width: 1.5 } .even { fill: #9198a1 } .better { fill: #2da44e } .worse { fill: #cf222e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .head, .axis { fill: #9198a1 } .grid { stroke: #3d444d }
    .one { stroke: #9198a1 } .better { fill: #3fb950 } .worse { fill: #f85149 }
  }
</style>";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::{Target, Unit};

    #[test]
    fn better_rows_reach_to_the_right_of_one_and_worse_ones_to_the_left() {
        let row = |name: &str, original, ours, target| Row {
            name: name.to_owned(),
            unit: Unit::Seconds,
            original,
            ours: Some(ours),
            target,
        };
        let promised = Target::RatioAtMost(0.5);
        let svg = draw(&[
            row("fast & good", Some(1.0), 0.1, promised),
            row("slow", Some(1.0), 2.0, promised),
            row("deaf", None, 0.1, Target::AtMost(0.5)),
            row("beside", Some(1.0), 0.1, Target::None),
        ]);
        assert_eq!(svg.matches("class=\"better\"").count(), 1);
        assert_eq!(svg.matches("class=\"worse\"").count(), 1);
        assert!(svg.contains("fast &amp; good") && svg.contains("the original does not answer"));
        assert!(!svg.contains("beside<"), "nothing was promised of it");
    }
}
