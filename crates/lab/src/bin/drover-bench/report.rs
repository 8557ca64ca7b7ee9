//! The figures beside the bars.

use crate::usage::Cost;
use serde::Serialize;
use std::fmt;

/// What a process may cost at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// Of one core.
    pub cpu_percent: f64,
    pub rss_mib: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub bench: &'static str,
    pub seconds: u64,
    /// Of all cores, by everything that ran on the machine, the guests included.
    pub machine_busy_percent: f64,
    pub rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub process: String,
    /// Of one core.
    pub cpu_percent: f64,
    pub rss_mib: f64,
    /// Most memory since the process began.
    pub hwm_mib: f64,
    pub bar_cpu_percent: f64,
    pub bar_rss_mib: f64,
    pub kept: bool,
}

impl Row {
    pub fn new(process: String, cost: Cost, bar: Bar) -> Self {
        Self {
            process,
            cpu_percent: cost.cpu_percent,
            rss_mib: cost.rss_mib,
            hwm_mib: cost.hwm_mib,
            bar_cpu_percent: bar.cpu_percent,
            bar_rss_mib: bar.rss_mib,
            kept: cost.cpu_percent < bar.cpu_percent && cost.rss_mib < bar.rss_mib,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>10} {:>7} {:>10} {:>7} {:>10}", "process", "cpu", "bar", "memory", "bar", "peak")?;
        for row in &self.rows {
            writeln!(
                f,
                "{:<20} {:>8.2} % {:>5.1} % {:>6.1} MiB {:>3} MiB {:>6.1} MiB  {}",
                row.process,
                row.cpu_percent,
                row.bar_cpu_percent,
                row.rss_mib,
                row.bar_rss_mib,
                row.hwm_mib,
                if row.kept { "kept" } else { "MISSED" }
            )?;
        }
        writeln!(
            f,
            "Over {} s, in percent of one core. The whole machine was {:.0} % busy.",
            self.seconds, self.machine_busy_percent
        )?;
        match self.rows.iter().filter(|row| !row.kept).count() {
            0 => writeln!(f, "All bars are kept."),
            missed => writeln!(f, "{missed} of {} MISSED their bar.", self.rows.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAR: Bar = Bar { cpu_percent: 1.0, rss_mib: 30.0 };

    fn row(cpu_percent: f64, rss_mib: f64) -> Row {
        Row::new("agent h1, 10 vms".to_owned(), Cost { cpu_percent, rss_mib, hwm_mib: 40.0 }, BAR)
    }

    #[test]
    fn a_bar_is_kept_only_below_it_in_both_and_whatever_the_peak_was() {
        assert!(row(0.99, 29.9).kept);
        assert!(!row(1.0, 29.9).kept);
        assert!(!row(0.99, 30.0).kept);
    }

    #[test]
    fn the_table_says_which_bar_is_missed() {
        let report = |rows| Report { bench: "footprint", seconds: 60, machine_busy_percent: 41.6, rows };
        let said = report(vec![row(0.5, 20.0), row(1.5, 20.0)]).to_string();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[1].ends_with("40.0 MiB  kept"), "{said}");
        assert!(lines[2].contains("1.50 %") && lines[2].ends_with("MISSED"), "{said}");
        assert!(lines[3].contains("42 % busy") && lines[4] == "1 of 2 MISSED their bar.", "{said}");
        assert!(report(vec![row(0.5, 20.0)]).to_string().ends_with("All bars are kept.\n"));
    }
}
