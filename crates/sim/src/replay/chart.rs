//! Replays side by side as a picture: hosts that are on, and load, over time. SVG 1.1 by hand.

use super::report::{Moment, Report};
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 64.0;
const PANEL: f64 = 200.0;
const GAP: f64 = 56.0;
const BOTTOM: f64 = 48.0;
/// More points than pixels show nothing more.
const POINTS_MAX: usize = 800;
/// Okabe and Ito's colours, which people tell apart whatever they see of red and green, on light and dark.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#444}.title{font-size:15px;font-weight:600}\
    .grid{stroke:#888;stroke-opacity:.25}.axis{stroke:#888}.load{fill:#888;fill-opacity:.3}\
    .line{fill:none;stroke-width:1.8;stroke-linejoin:round}\
    @media(prefers-color-scheme:dark){text{fill:#ccc}}";

/// Runs over the same recording, each with its name.
pub fn chart(runs: &[(String, Report)]) -> String {
    let height = TOP + 2.0 * PANEL + GAP + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n<title>Hosts on and load over time, by policy</title>\n<style>{STYLE}</style>\n"
    );
    legend(&mut svg, runs);
    let lines = |value: fn(&Moment) -> f64| -> Vec<Vec<f64>> {
        runs.iter().map(|(_, report)| thinned(&report.timeline, value)).collect()
    };
    let span_h = runs.iter().map(|(_, report)| report.span.as_secs() / 3_600.0).fold(0.0, f64::max);
    let hosts = Panel { top: TOP, title: "Hosts on", lines: lines(|moment| moment.hosts_on), area: Vec::new() };
    hosts.draw(&mut svg, span_h);
    let wanted = runs.first().map(|(_, report)| thinned(&report.timeline, |moment| moment.wanted.cores()));
    let load = Panel {
        top: TOP + PANEL + GAP,
        title: "Cores: wanted (area), and of hosts that are up (lines)",
        lines: lines(|moment| moment.capacity.cores()),
        area: wanted.unwrap_or_default(),
    };
    load.draw(&mut svg, span_h);
    svg.push_str("</svg>\n");
    svg
}

/// Means over as many neighbours as leave few enough points.
fn thinned(timeline: &[Moment], value: fn(&Moment) -> f64) -> Vec<f64> {
    let each = timeline.len().div_ceil(POINTS_MAX).max(1);
    timeline.chunks(each).map(|some| some.iter().map(value).sum::<f64>() / some.len() as f64).collect()
}

fn legend(svg: &mut String, runs: &[(String, Report)]) {
    let mut x = LEFT;
    for (ix, (name, report)) in runs.iter().enumerate() {
        let colour = COLOURS[ix % COLOURS.len()];
        let text = format!("{name}: {:.1} kWh, {} moves", report.energy_kwh, report.moves.len());
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.0} 24h22\" class=\"line\" stroke=\"{colour}\"/><text x=\"{:.0}\" y=\"28\">{}</text>",
            x + 28.0,
            escaped(&text)
        );
        x += 52.0 + 7.2 * text.chars().count() as f64;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

struct Panel {
    top: f64,
    title: &'static str,
    lines: Vec<Vec<f64>>,
    area: Vec<f64>,
}

impl Panel {
    fn draw(&self, svg: &mut String, span_h: f64) {
        let (bottom, width) = (self.top + PANEL, WIDTH - LEFT - RIGHT);
        let largest = self.lines.iter().flatten().chain(&self.area).fold(0.0_f64, |most, value| most.max(*value));
        let (tick, most) = ticks(largest);
        let y = |value: f64| bottom - value / most * PANEL;
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.0}\" class=\"title\">{}</text>", self.top - 10.0, self.title);
        for n in 0..=(most / tick).round() as u32 {
            let (value, at) = (f64::from(n) * tick, y(f64::from(n) * tick));
            let class = if n == 0 { "axis" } else { "grid" };
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}h{width}\" class=\"{class}\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                LEFT - 8.0,
                at + 4.0
            );
        }
        self.time_axis(svg, span_h);
        // Each value holds for its whole step.
        let path = |values: &[f64]| {
            let step = width / values.len().max(1) as f64;
            let (mut path, mut x) = (String::new(), LEFT);
            for run in values.chunk_by(|a, b| a == b) {
                let _ = write!(path, "{}{x:.1} {:.1}", if path.is_empty() { 'M' } else { 'L' }, y(run[0]));
                x += run.len() as f64 * step;
                let _ = write!(path, "H{x:.1}");
            }
            path
        };
        if !self.area.is_empty() {
            let _ = writeln!(svg, "<path d=\"{}V{bottom}H{LEFT}Z\" class=\"load\"/>", path(&self.area));
        }
        for (ix, values) in self.lines.iter().enumerate() {
            let colour = COLOURS[ix % COLOURS.len()];
            let _ = writeln!(svg, "<path d=\"{}\" class=\"line\" stroke=\"{colour}\"/>", path(values));
        }
    }

    fn time_axis(&self, svg: &mut String, span_h: f64) {
        let (bottom, width) = (self.top + PANEL, WIDTH - LEFT - RIGHT);
        let (unit, span) = match span_h {
            0.0..2.0 => ("min", span_h * 60.0),
            2.0..100.0 => ("h", span_h),
            _ => ("days", span_h / 24.0),
        };
        let step = match unit {
            "h" => [1.0, 2.0, 3.0, 6.0, 12.0].into_iter().find(|step| span / step <= 12.0).unwrap_or(24.0),
            _ => ticks(span).0,
        };
        let mut at = 0.0;
        while span > 0.0 && at <= span {
            let x = LEFT + at / span * width;
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {bottom}v5\" class=\"axis\"/><text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
                bottom + 20.0,
                (at * 10.0).round() / 10.0
            );
            at += step;
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{unit}</text>",
            WIDTH - RIGHT,
            bottom + 36.0
        );
    }
}

/// A round distance of ticks, at most six of them, and the round figure at or above `largest` where the axis ends.
fn ticks(largest: f64) -> (f64, f64) {
    let rough = (largest / 5.0).max(0.2);
    let power = 10.0_f64.powf(rough.log10().floor());
    let tick = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|tick| *tick >= rough).unwrap_or(power * 10.0);
    (tick, (largest / tick).ceil().max(1.0) * tick)
}
