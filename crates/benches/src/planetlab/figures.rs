//! The table, and the figures as JSON.

use super::checks::{Check, check};
use super::day::Day;
use super::policy::Driven;
use serde::Serialize;
use std::fmt;

/// The baseline that others are held against: that with least SLAV among those that know what waking a host costs.
pub const PEER: &str = "B LR-MMT-1.3";

/// What a policy made of a day.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub policy: String,
    pub day: String,
    pub vms: usize,
    pub kwh: f64,
    pub lower_bound_kwh: f64,
    pub ratio_to_bound: f64,
    pub slatah: f64,
    pub pdm: f64,
    pub slav: f64,
    pub esv: f64,
    pub migrations: usize,
    pub wake_ups: usize,
    /// The part of what vms asked for that they did not get, for whatever reason. SLAV does not know it.
    pub missing: f64,
    pub decision_ms_median: f64,
    pub decision_ms_max: f64,
}

impl Row {
    pub fn new(policy: String, day: &Day, lower_bound_kwh: f64, driven: Driven<'_>) -> Self {
        let tally = driven.world.tally();
        let mut decisions_ms = driven.decisions_ms;
        decisions_ms.sort_by(f64::total_cmp);
        Self {
            policy,
            day: day.name.clone(),
            vms: day.loads.len(),
            kwh: tally.energy_kwh(),
            lower_bound_kwh,
            ratio_to_bound: tally.energy_kwh() / lower_bound_kwh,
            slatah: tally.slatah(),
            pdm: tally.pdm(),
            slav: tally.slav(),
            esv: tally.esv(),
            migrations: tally.migrations,
            wake_ups: tally.wake_ups,
            missing: tally.missing(),
            decision_ms_median: decisions_ms[decisions_ms.len() / 2],
            decision_ms_max: decisions_ms[decisions_ms.len() - 1],
        }
    }
}

/// Of a policy, over the days.
#[derive(Debug, Serialize)]
pub struct Medians {
    pub policy: String,
    pub days: usize,
    pub kwh: f64,
    pub ratio_to_bound: f64,
    pub slatah: f64,
    pub pdm: f64,
    pub slav: f64,
    pub esv: f64,
    pub migrations: f64,
    pub wake_ups: f64,
    pub missing: f64,
    /// As parts of the [`PEER`]'s on the same day.
    pub slav_to_peer: f64,
    pub migrations_to_peer: f64,
    /// The median of the rounds' medians, and the longest round of all.
    pub decision_ms_median: f64,
    pub decision_ms_max: f64,
}

#[derive(Debug, Serialize)]
pub struct Figures {
    bench: &'static str,
    peer: &'static str,
    rows: Vec<Row>,
    medians: Vec<Medians>,
    checks: Vec<Check>,
    /// `None`: nothing is known of these days.
    checks_met: Option<bool>,
}

impl Figures {
    pub fn new(rows: Vec<Row>) -> Self {
        let mut policies: Vec<&str> = Vec::new();
        for row in &rows {
            if !policies.contains(&row.policy.as_str()) {
                policies.push(&row.policy);
            }
        }
        let medians = policies.iter().map(|policy| medians(policy, &rows)).collect();
        let checks = check(&rows);
        let checks_met = (!checks.is_empty()).then(|| checks.iter().all(|check| check.met));
        Self { bench: "planetlab", peer: PEER, rows, medians, checks, checks_met }
    }
}

fn medians(policy: &str, rows: &[Row]) -> Medians {
    let of: Vec<&Row> = rows.iter().filter(|row| row.policy == policy).collect();
    let figure = |figure: &dyn Fn(&Row) -> f64| median(of.iter().map(|row| figure(row)).collect());
    let to_peer = |figure: &dyn Fn(&Row) -> f64| {
        let peer = |row: &&Row| rows.iter().find(|peer| peer.day == row.day && peer.policy == PEER).map(figure);
        median(of.iter().filter_map(|row| peer(row).map(|peer| figure(row) / peer)).collect())
    };
    Medians {
        policy: policy.to_owned(),
        days: of.len(),
        kwh: figure(&|row| row.kwh),
        ratio_to_bound: figure(&|row| row.ratio_to_bound),
        slatah: figure(&|row| row.slatah),
        pdm: figure(&|row| row.pdm),
        slav: figure(&|row| row.slav),
        esv: figure(&|row| row.esv),
        migrations: figure(&|row| row.migrations as f64),
        wake_ups: figure(&|row| row.wake_ups as f64),
        missing: figure(&|row| row.missing),
        slav_to_peer: to_peer(&|row| row.slav),
        migrations_to_peer: to_peer(&|row| row.migrations as f64),
        decision_ms_median: figure(&|row| row.decision_ms_median),
        decision_ms_max: of.iter().map(|row| row.decision_ms_max).fold(0.0, f64::max),
    }
}

/// That of an even count lies between the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even.is_multiple_of(2) => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:<9} {:>7} {:>7} {:>7} {:>9} {:>9} {:>9} {:>10} {:>8} {:>9} {:>18}",
            "policy",
            "day",
            "kWh",
            "/ bound",
            "SLATAH",
            "PDM",
            "SLAV",
            "ESV",
            "migrations",
            "wake-ups",
            "missing",
            "decision ms, max"
        )?;
        for row in &self.rows {
            line(f, &row.day, &medians(&row.policy, std::slice::from_ref(row)))?;
        }
        for row in &self.medians {
            line(f, "median", row)?;
        }
        writeln!(f, "\nmedians beside {PEER} of the same day:")?;
        for row in &self.medians {
            let (slav, migrations) = (row.slav_to_peer, row.migrations_to_peer);
            writeln!(f, "{:<14} SLAV x {slav:<8.3} migrations x {migrations:.3}", row.policy)?;
        }
        match self.checks_met {
            None => writeln!(f, "\nnothing is known of these days: no check"),
            Some(met) => {
                writeln!(f, "\nchecks against the simulator:")?;
                for check in &self.checks {
                    let word = if check.met { "met" } else { "MISSED" };
                    let Check { day, policy, figure, expected, got, .. } = check;
                    writeln!(f, "{day:<9} {policy:<14} {figure:<10} expected {expected:<18} got {got:<22} {word}")?;
                }
                writeln!(f, "checks met: {}", if met { "all" } else { "NOT all" })
            }
        }
    }
}

fn line(f: &mut fmt::Formatter<'_>, day: &str, row: &Medians) -> fmt::Result {
    writeln!(
        f,
        "{:<14} {day:<9} {:>7.2} {:>7.3} {:>7.4} {:>9.2e} {:>9.2e} {:>9.2e} {:>10} {:>8} {:>9.2e} {:>9.2} {:>8.2}",
        row.policy,
        row.kwh,
        row.ratio_to_bound,
        row.slatah,
        row.pdm,
        row.slav,
        row.esv,
        row.migrations,
        row.wake_ups,
        row.missing,
        row.decision_ms_median,
        row.decision_ms_max
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(policy: &str, day: &str, kwh: f64, migrations: usize) -> Row {
        Row {
            policy: policy.to_owned(),
            day: day.to_owned(),
            vms: 4,
            kwh,
            lower_bound_kwh: 50.0,
            ratio_to_bound: kwh / 50.0,
            slatah: 0.0,
            pdm: 0.0,
            slav: 0.0,
            esv: 0.0,
            migrations,
            wake_ups: 0,
            missing: 0.0,
            decision_ms_median: 1.0,
            decision_ms_max: 2.0,
        }
    }

    #[test]
    fn medians_are_over_days_and_the_peer_is_that_of_the_same_day() {
        let rows = [("p", 30), (PEER, 100), ("p", 50), (PEER, 200), ("p", 10), (PEER, 10)];
        let rows =
            rows.iter().enumerate().map(|(ix, (policy, moves))| row(policy, &format!("d{}", ix / 2), 60.0, *moves));
        let figures = Figures::new(rows.collect());
        let ours = &figures.medians[0];
        assert_eq!((ours.days, ours.migrations, ours.migrations_to_peer, ours.ratio_to_bound), (3, 30.0, 0.3, 1.2));
        assert_eq!(figures.checks_met, None);
    }

    #[test]
    fn a_figure_that_is_off_by_more_than_a_hundredth_is_missed() {
        let checks_met = |kwh: f64| {
            let figures = Figures::new(vec![row("no migration", "20110303", kwh, 0)]);
            assert!(figures.to_string().contains("checks met"));
            figures.checks_met
        };
        assert_eq!((checks_met(802.75), checks_met(795.0), checks_met(794.0)), (Some(true), Some(true), Some(false)));
    }
}
