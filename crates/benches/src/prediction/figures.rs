//! How far off: ours, and side by side what others make of the same rows.

use super::data::Row;
use drover_model::Millis;
use drover_model::migration::Interval;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Mean absolute percentage error that is aimed at, and the most that is accepted.
const AIM: f64 = 10.0;
const BAR: f64 = 12.0;

/// A row and what was predicted for it.
#[derive(Debug)]
pub struct Outcome {
    pub row: Row,
    pub predicted: Interval<Millis>,
    /// By a predictor that has learned nothing.
    pub untaught: Millis,
}

impl Outcome {
    fn share(&self, predicted_s: f64) -> f64 {
        (predicted_s - self.row.actual_s) / self.row.actual_s
    }

    /// Predicted over measured, less one.
    pub fn error(&self) -> f64 {
        self.share(self.predicted.expected.as_secs())
    }

    fn covered(&self) -> bool {
        (self.predicted.low.as_secs()..=self.predicted.high.as_secs()).contains(&self.row.actual_s)
    }
}

/// Rules by others. Their units are taken at face value: megabytes of 10^6 bytes and the nominal speed of the link.
type Rule = (&'static str, fn(&Row) -> f64);
const OTHERS: [Rule; 4] = [
    ("CloudSim: RAM / half the bandwidth", |row| row.memory_mib * 8.0 / (row.bandwidth_mbit / 2.0)),
    ("RAM / bandwidth", |row| row.memory_mib * 8.0 / row.bandwidth_mbit),
    ("RAM / (bandwidth - dirty rate) + hot set / bandwidth", |row| {
        let bandwidth = row.bandwidth_mbit / 8.0;
        row.memory_mib / (bandwidth - row.dirty_rate_mib_s) + row.hot_mib / bandwidth
    }),
    ("the recording's own planner", |row| row.planned_s),
];

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    pub method: &'static str,
    /// Mean absolute error, in percent of what was measured.
    pub mape: f64,
    /// Mean error; above 0 is predicted too long.
    pub bias: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassFigures {
    pub memory_mib: u64,
    pub bandwidth_mbit: u64,
    pub rows: usize,
    pub mape: f64,
    pub bias: f64,
    pub coverage_80: f64,
    /// Standard deviation of what was measured, in percent of its mean: features that are equal can't tell it apart.
    pub spread: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    pub bench: &'static str,
    pub rows: usize,
    pub instances: usize,
    pub folds: usize,
    pub mape_total: f64,
    pub bias_total: f64,
    /// Half of the errors are smaller than this, in percent.
    pub median_error: f64,
    /// Share of rows within their 80 % interval.
    pub coverage_80: f64,
    /// Mean width of the interval, in percent of the expected time.
    pub interval_width: f64,
    pub untaught: Accuracy,
    pub others: Vec<Accuracy>,
    pub classes: Vec<ClassFigures>,
    pub aim: f64,
    pub bar: f64,
    pub kept: bool,
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count == 0.0 { 0.0 } else { sum / count }
}

/// In percent.
pub fn mape(errors: impl Iterator<Item = f64>) -> f64 {
    100.0 * mean(errors.map(f64::abs))
}

fn accuracy(method: &'static str, outcomes: &[Outcome], predicted_s: impl Fn(&Outcome) -> f64) -> Accuracy {
    let errors = || outcomes.iter().map(|outcome| outcome.share(predicted_s(outcome)));
    Accuracy { method, mape: mape(errors()), bias: 100.0 * mean(errors()) }
}

fn coverage<'o>(outcomes: impl Iterator<Item = &'o Outcome>) -> f64 {
    mean(outcomes.map(|outcome| f64::from(u8::from(outcome.covered()))))
}

impl Figures {
    pub fn new(outcomes: &[Outcome]) -> Self {
        let mut errors: Vec<f64> = outcomes.iter().map(|outcome| 100.0 * outcome.error().abs()).collect();
        errors.sort_by(f64::total_cmp);
        let mut instances: Vec<u64> = outcomes.iter().map(|outcome| outcome.row.instance).collect();
        instances.sort_unstable();
        instances.dedup();
        let mut classes: BTreeMap<(u64, u64), Vec<&Outcome>> = BTreeMap::new();
        for outcome in outcomes {
            let class = (outcome.row.memory_mib as u64, outcome.row.bandwidth_mbit as u64);
            classes.entry(class).or_default().push(outcome);
        }
        let ours = accuracy("drover", outcomes, |outcome| outcome.predicted.expected.as_secs());
        let width = |outcome: &Outcome| {
            let Interval { low, expected, high } = outcome.predicted;
            100.0 * (high.as_secs() - low.as_secs()) / expected.as_secs()
        };
        Self {
            bench: "prediction",
            rows: outcomes.len(),
            instances: instances.len(),
            folds: super::FOLDS,
            mape_total: ours.mape,
            bias_total: ours.bias,
            median_error: errors.get(errors.len() / 2).copied().unwrap_or_default(),
            coverage_80: coverage(outcomes.iter()),
            interval_width: mean(outcomes.iter().map(width)),
            untaught: accuracy("drover, having learned nothing", outcomes, |outcome| outcome.untaught.as_secs()),
            others: OTHERS.iter().map(|(name, rule)| accuracy(name, outcomes, |outcome| rule(&outcome.row))).collect(),
            classes: classes.into_iter().map(|(class, outcomes)| class_figures(class, &outcomes)).collect(),
            aim: AIM,
            bar: BAR,
            kept: ours.mape <= BAR,
        }
    }
}

fn class_figures((memory_mib, bandwidth_mbit): (u64, u64), outcomes: &[&Outcome]) -> ClassFigures {
    let errors = || outcomes.iter().map(|outcome| outcome.error());
    let middle = mean(outcomes.iter().map(|outcome| outcome.row.actual_s));
    let variance = mean(outcomes.iter().map(|outcome| (outcome.row.actual_s - middle).powi(2)));
    ClassFigures {
        memory_mib,
        bandwidth_mbit,
        rows: outcomes.len(),
        mape: mape(errors()),
        bias: 100.0 * mean(errors()),
        coverage_80: coverage(outcomes.iter().copied()),
        spread: 100.0 * variance.sqrt() / middle,
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} migrations of {} instances, {} folds by instance", self.rows, self.instances, self.folds)?;
        writeln!(f, "\n{:<54} {:>8} {:>8}", "total time", "MAPE", "bias")?;
        let ours = Accuracy { method: "drover", mape: self.mape_total, bias: self.bias_total };
        for row in [&ours, &self.untaught].into_iter().chain(&self.others) {
            writeln!(f, "{:<54} {:>6.1} % {:>+6.1} %", row.method, row.mape, row.bias)?;
        }
        writeln!(
            f,
            "\n{:>7} {:>9} {:>5} {:>8} {:>8} {:>9} {:>12}",
            "memory", "bandwidth", "rows", "MAPE", "bias", "covered", "sd measured"
        )?;
        for class in &self.classes {
            writeln!(
                f,
                "{:>3} MiB {:>4} Mbit {:>5} {:>6.1} % {:>+6.1} % {:>7.0} % {:>10.1} %",
                class.memory_mib,
                class.bandwidth_mbit,
                class.rows,
                class.mape,
                class.bias,
                100.0 * class.coverage_80,
                class.spread
            )?;
        }
        writeln!(
            f,
            "\nmape_total {:.2} %, median {:.2} %; {:.0} % lie within their 80 % interval, which is {:.0} % wide.",
            self.mape_total,
            self.median_error,
            100.0 * self.coverage_80,
            self.interval_width
        )?;
        let verdict = if self.mape_total <= AIM {
            "The aim is kept"
        } else if self.kept {
            "The bar is kept, the aim is MISSED"
        } else {
            "The bar is MISSED"
        };
        writeln!(f, "{verdict} (aim {AIM} %, bar {BAR} %).")
    }
}
