//! What came of each cell, for people and as JSON.

use drover_lab::faults::{Cell, CellReport, Memory};
use serde::Serialize;
use std::fmt;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub bench: &'static str,
    /// How many were carried out.
    pub cells: usize,
    /// Of them, those in which the vm ran exactly once: one copy at every moment, and one at the end.
    pub exactly_once: usize,
    /// Those in which anything was not as it has to be.
    pub failures: Vec<Failure>,
    pub memory_intact: usize,
    /// Those in which the vm was started anew; it is a failure where another place still had the memory.
    pub memory_lost: usize,
    /// Longest silence of all cells.
    pub run_again_ms_max: u64,
    pub rows: Vec<CellReport>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    pub cell: Cell,
    pub why: Vec<String>,
    /// A command that carries out this cell alone.
    pub replay: String,
}

impl Report {
    pub fn new(rows: Vec<CellReport>) -> Self {
        let count = |holds: fn(&CellReport) -> bool| rows.iter().filter(|row| holds(row)).count();
        let failed = rows.iter().filter(|row| !row.passed());
        Self {
            bench: "migration-faults",
            cells: rows.len(),
            exactly_once: count(|row| row.exactly_once),
            failures: failed
                .map(|row| Failure { cell: row.cell.clone(), why: row.failures.clone(), replay: replay(&row.cell) })
                .collect(),
            memory_intact: count(|row| row.memory == Some(Memory::Intact)),
            memory_lost: count(|row| row.memory == Some(Memory::Lost)),
            run_again_ms_max: rows.iter().map(|row| row.run_again_ms).max().unwrap_or(0),
            rows,
        }
    }
}

fn replay(cell: &Cell) -> String {
    format!("cargo xtask bench migration-faults --cell {cell}")
}

/// One cell in one line.
pub fn line(row: &CellReport) -> String {
    let outcome = row.outcome.map(|outcome| word(&outcome)).unwrap_or_default();
    let memory = row.memory.map(|memory| word(&memory)).unwrap_or_default();
    let again = format!("{:.1} s from the {}", row.run_again_ms as f64 / 1_000.0, row.counted_from);
    let started = row.started_ms.map(|ms| format!(", new qemu after {:.1} s", ms as f64 / 1_000.0)).unwrap_or_default();
    let verdict = if row.passed() { "ok".to_owned() } else { format!("FAILED: {}", row.failures.join("; ")) };
    format!(
        "{:<31} {:<10} {:<10} {:<8} {:<22} {:>5.1} s  load {:>4.1}  {verdict}{started}",
        row.cell.to_string(),
        outcome,
        row.migration.as_deref().unwrap_or_default(),
        memory,
        again,
        row.took_s,
        row.load_average
    )
}

/// As it is in JSON.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<31} {:<10} {:<10} {:<8} {:<22} {:>7}",
            "victim/phase", "vm", "migration", "memory", "longest silence", "cell"
        )?;
        for row in &self.rows {
            writeln!(f, "{}", line(row))?;
        }
        writeln!(
            f,
            "In {} of {} cells the vm ran exactly once; memory intact in {}, lost in {}. \
             The vm was never silent for longer than {:.1} s.",
            self.exactly_once,
            self.cells,
            self.memory_intact,
            self.memory_lost,
            self.run_again_ms_max as f64 / 1_000.0
        )?;
        if self.failures.is_empty() {
            return writeln!(f, "All {} cells passed.", self.cells);
        }
        writeln!(f, "{} FAILED:", self.failures.len())?;
        for failure in &self.failures {
            writeln!(f, "  {}: {}\n    {}", failure.cell, failure.why.join("; "), failure.replay)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_lab::faults::Outcome;

    fn row(cell: &str, failures: &[&str]) -> CellReport {
        CellReport {
            cell: cell.parse().unwrap(),
            exactly_once: failures.is_empty(),
            outcome: Some(Outcome::TakenBack),
            migration: Some("taken-back".to_owned()),
            memory: Some(Memory::Intact),
            boots: 1,
            run_again_ms: 2_340,
            counted_from: "return",
            started_ms: None,
            load_average: 1.5,
            took_s: 12.0,
            failures: failures.iter().map(|&why| why.to_owned()).collect(),
            said: Vec::new(),
        }
    }

    #[test]
    fn a_cell_that_fails_is_counted_and_comes_with_the_command_that_repeats_it() {
        let report = Report::new(vec![row("server/commit", &[]), row("link/pre-copy", &["the vm ran twice"])]);
        assert_eq!((report.cells, report.exactly_once, report.failures.len()), (2, 1, 1));
        let text = report.to_string();
        assert!(text.contains("cargo xtask bench migration-faults --cell link/pre-copy"), "{text}");
        assert!(text.contains("2.3 s from the return"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["failures"][0]["cell"], "link/pre-copy");
        assert_eq!(json["rows"][0]["outcome"], "taken-back");
    }
}
