//! `forecast`: whether the intervals of forecasts hold what comes, on recorded days.
//!
//! Every 15 minutes each vm is forecast from its last 30 samples, and held against what it did then. Vms that did nothing
//! in those samples say nothing and are left out. Hosts are fifteen vms dealt as cards are, the pool is all of them. An
//! interval is honest if as much lies in it as its name says; `deviation` is the root mean square of the misses over
//! the deviation forecast, at best 1.

use crate::io;
use crate::planetlab::day::{self, Day, SAMPLES, SPAN_S};
use anyhow::Result;
use drover_model::{Millis, TimeMs};
use drover_planner::forecast::{Outlook, Total, normal_quantile};
use serde::Serialize;
use std::path::PathBuf;

const WINDOW: usize = 30;
/// Samples between two forecasts, and how many ahead they are made for.
const EVERY: usize = 3;
const AHEAD: [usize; 4] = [1, 6, 12, 60];
const HOST_VMS: usize = 15;
/// Vms are dealt by this stride, a prime: neighbours in a file are alike.
const STRIDE: usize = 397;
const INTERVALS: [f64; 3] = [0.80, 0.90, 0.95];
const SPAN_MS: u64 = SPAN_S as u64 * 1000;
const STALE_AFTER: Millis = Millis(3 * SPAN_MS);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Days: files, or folders of DAY.csv.gz. A line is the name of a vm and 288 percentages.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    day: String,
    what: &'static str,
    ahead_min: usize,
    forecasts: u64,
    /// Share of what came that lay in the 80, 90 and 95 % intervals.
    in_80: f64,
    in_90: f64,
    in_95: f64,
    /// Share that lay below the upper end of the 80 % interval, which planning goes by: 0.9 at best.
    below_90: f64,
    /// Mean of what came less what was forecast, in percent of what came.
    bias_percent: f64,
    deviation: f64,
}

/// Forecasts held against what came.
#[derive(Debug, Default)]
struct Tally {
    count: u64,
    inside: [u64; 3],
    below: u64,
    came: f64,
    missed: f64,
    squares: f64,
}

impl Tally {
    fn take(&mut self, forecast: &Total, came: u64) {
        let (off, deviation) = (came as f64 - forecast.mean as f64, forecast.deviation());
        self.count += 1;
        for (inside, interval) in self.inside.iter_mut().zip(INTERVALS) {
            *inside += u64::from(off.abs() <= normal_quantile((1.0 + interval) / 2.0) * deviation);
        }
        self.below += u64::from(off <= normal_quantile(0.9) * deviation);
        self.came += came as f64;
        self.missed += off;
        self.squares += (off / deviation.max(1.0)).powi(2);
    }

    fn row(&self, day: &Day, what: &'static str, ahead: usize) -> Row {
        let share = |part: u64| part as f64 / self.count.max(1) as f64;
        Row {
            day: day.name.clone(),
            what,
            ahead_min: ahead * SPAN_MS as usize / 60_000,
            forecasts: self.count,
            in_80: share(self.inside[0]),
            in_90: share(self.inside[1]),
            in_95: share(self.inside[2]),
            below_90: share(self.below),
            bias_percent: 100.0 * self.missed / self.came.max(1.0),
            deviation: (self.squares / self.count.max(1) as f64).sqrt(),
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    println!(
        "{:>10} {:>5} {:>8} {:>10} {:>7} {:>7} {:>7} {:>9} {:>8} {:>10}",
        "day", "what", "ahead", "forecasts", "in 80 %", "in 90 %", "in 95 %", "below 90", "bias", "deviation"
    );
    let mut rows = Vec::new();
    for day in day::read(&args.input)? {
        for ahead in AHEAD {
            rows.extend(rows_of(&day, ahead));
        }
    }
    for row in &rows {
        println!(
            "{:>10} {:>5} {:>4} min {:>10} {:>7.3} {:>7.3} {:>7.3} {:>9.3} {:>6.1} % {:>10.2}",
            row.day,
            row.what,
            row.ahead_min,
            row.forecasts,
            row.in_80,
            row.in_90,
            row.in_95,
            row.below_90,
            row.bias_percent,
            row.deviation
        );
    }
    io::write_json(args.json.as_deref(), &Figures { bench: "forecast", rows })
}

fn rows_of(day: &Day, ahead: usize) -> [Row; 3] {
    // Thousandths of one core.
    let load = |vm: usize, sample: usize| (day.loads[vm].at(sample as f64 * SPAN_S) * 1000.0).round() as u64;
    let stride = if day.loads.len().is_multiple_of(STRIDE) { 1 } else { STRIDE };
    let (mut vms, mut hosts, mut pools) = (Tally::default(), Tally::default(), Tally::default());
    for last in (WINDOW - 1..SAMPLES - ahead).step_by(EVERY) {
        let now = TimeMs(last as u64 * SPAN_MS);
        let (mut pool, mut host, mut dealt) = ((Total::default(), 0), (Total::default(), 0), 0);
        for vm in (0..day.loads.len()).map(|n| n * stride % day.loads.len()) {
            let samples = || (0..WINDOW).map(|age| (TimeMs(now.0 - age as u64 * SPAN_MS), load(vm, last - age)));
            if samples().all(|(_, value)| value == 0) {
                continue;
            }
            let Some(outlook) = Outlook::of(now, STALE_AFTER, samples()) else { continue };
            let forecast = outlook.with_ceiling(1000).at(Millis(ahead as u64 * SPAN_MS));
            let came = load(vm, last + ahead);
            vms.take(&Total::from_iter([&forecast]), came);
            for (total, sum) in [&mut pool, &mut host] {
                total.add(&forecast);
                *sum += came;
            }
            dealt += 1;
            if dealt % HOST_VMS == 0 {
                hosts.take(&host.0, host.1);
                host = (Total::default(), 0);
            }
        }
        pools.take(&pool.0, pool.1);
    }
    [vms.row(day, "vm", ahead), hosts.row(day, "host", ahead), pools.row(day, "pool", ahead)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_hold_their_share_of_plain_noise() {
        let mut random = crate::random::Random(9);
        let mut vm = |n: usize| {
            let mut normal = || 40.0 + (0..12).map(|_| random.below(1000) as f64 / 250.0).sum::<f64>() - 24.0;
            let values: Vec<String> = (0..SAMPLES).map(|_| format!("{:.0}", normal())).collect();
            format!("vm{n},{}", values.join(","))
        };
        let text: Vec<String> = (0..30).map(&mut vm).collect();
        let day = day::parse("made up", &text.join("\n")).unwrap();
        for row in rows_of(&day, 1) {
            assert!(row.forecasts > 0 && row.in_90 > 0.88 && row.bias_percent.abs() < 2.0, "{row:?}");
        }
    }
}
