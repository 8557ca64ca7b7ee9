//! The figures for people.

use super::Report;
use super::bars::{Bar, Verdict};
use super::moves::{Cell, Spread};
use std::fmt;

const HEADS: [&str; 17] = [
    "workload",
    "link",
    "side",
    "done",
    "total s",
    "(from-to)",
    "down ms",
    "max",
    "gap ms",
    "max",
    "cold",
    "own",
    "lost",
    "twice",
    "reset",
    "bytes/use",
    "intact",
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 17]> = self.cells.iter().map(row).collect();
        let heads = HEADS.map(str::to_owned);
        let mut widths = heads.clone().map(|head| head.len());
        for row in &rows {
            for (width, text) in widths.iter_mut().zip(row) {
                *width = text.len().max(*width);
            }
        }
        for row in std::iter::once(&heads).chain(&rows) {
            let cells: Vec<String> = row.iter().zip(widths).map(|(text, width)| format!("{text:>width$}")).collect();
            writeln!(f, "{}", cells.join("  "))?;
        }
        writeln!(f)?;
        for cell in self.cells.iter().filter(|cell| !cell.strategies.is_empty()) {
            writeln!(
                f,
                "{} {}: {}; measured by predicted: total {}, downtime {}",
                cell.workload,
                cell.link,
                cell.strategies.join(", "),
                median(cell.total_by_predicted, 2),
                median(cell.downtime_by_predicted, 2)
            )?;
        }
        writeln!(f)?;
        for bar in &self.bars {
            let Bar { of, asked, measured, verdict } = bar;
            let verdict = match verdict {
                Verdict::Met => "met",
                Verdict::Missed => "MISSED",
                Verdict::NotMeasured => "not measured",
            };
            writeln!(f, "{of:<16} {asked}: {measured}: {verdict}")?;
        }
        let count = |verdict| self.bars.iter().filter(|bar| bar.verdict == verdict).count();
        writeln!(
            f,
            "\n{} bars met, {} MISSED, {} not measured.",
            count(Verdict::Met),
            count(Verdict::Missed),
            count(Verdict::NotMeasured)
        )?;
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

fn row(cell: &Cell) -> [String; 17] {
    let seconds = cell.total_ms.map(|s| Spread { min: s.min / 1e3, median: s.median / 1e3, max: s.max / 1e3, ..s });
    [
        cell.workload.to_string(),
        cell.link.to_string(),
        cell.side.to_string(),
        format!("{}/{}", cell.completed, cell.moves),
        median(seconds, 2),
        seconds.map_or("-".to_owned(), |s| format!("{:.1}-{:.1}", s.min, s.max)),
        median(cell.downtime_ms, 0),
        max(cell.downtime_ms),
        median(cell.gap_ms, 0),
        max(cell.gap_ms),
        median(cell.cold_beyond_ms, 0),
        cell.own_share_ms.map_or("-".to_owned(), |share| format!("{share:.0}")),
        cell.packets_lost.to_string(),
        cell.packets_duplicated.to_string(),
        (cell.connections_reset + cell.requests_unanswered).to_string(),
        median(cell.bytes_per_in_use, 2),
        format!("{}/{}", cell.intact, cell.moves),
    ]
}

fn median(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or("-".to_owned(), |spread| format!("{:.decimals$}", spread.median))
}

fn max(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |spread| format!("{:.0}", spread.max))
}
