//! `planetlab`: a data centre of 800 hosts lives through days of recorded load, once for each policy that says which
//! vm moves where (Beloglazov and Buyya, CCPE 24(13), 2012, doi 10.1002/cpe.1867).
//!
//! The baselines are that paper's, as its simulator has them, and are held to the figures of that simulator
//! ([`checks`]). In variant A they are as published; in variant B they know that waking a host costs its power.
//! Energy alone says nothing, nor does SLAV: without any migration it is 0. They are read together, with the
//! migrations, and with the processor that vms missed for whatever reason.

mod baseline;
mod bound;
mod checks;
pub mod day;
mod figures;
mod kinds;
mod metrics;
mod ours;
mod policy;
mod share;
mod world;

use crate::io;
use anyhow::Result;
use baseline::{Baseline, Detector, Selection, Variant, first_fit, least_power};
use day::Day;
use figures::{Figures, Row};
use ours::Ours;
use policy::{Policy, Stay, drive};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Days: files, or folders of DAY.csv.gz. A line is the name of a vm and 288 percentages.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How vms are placed before the day begins.
#[derive(Debug, Clone, Copy)]
enum First {
    Fit,
    LeastPower(Variant),
}

pub fn run(args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    for day in day::read(&args.input)? {
        rows.extend(rows_of(&day)?);
    }
    let figures = Figures::new(rows);
    print!("{figures}");
    io::write_json(args.json.as_deref(), &figures)
}

fn rows_of(day: &Day) -> Result<Vec<Row>> {
    let bound_kwh = bound::lower_bound_kwh(day);
    let row = |(first, mut policy): (First, Box<dyn Policy>)| {
        let vms = day.loads.len();
        let placement = match first {
            First::Fit => first_fit(vms)?,
            First::LeastPower(variant) => least_power(vms, variant)?,
        };
        Ok(Row::new(policy.name(), day, bound_kwh, drive(day, &placement, &mut *policy)?))
    };
    policies().into_iter().map(row).collect()
}

fn policies() -> Vec<(First, Box<dyn Policy>)> {
    use Detector::{InterquartileRange, MedianDeviation, Regression, Threshold};
    use Selection::{MinimumMigrationTime, MinimumUtilisation};
    let mut all: Vec<(First, Box<dyn Policy>)> = vec![(First::Fit, Box::new(Stay))];
    for variant in [Variant::AsShipped, Variant::WakingCosts] {
        for (detector, selection) in [
            (Threshold(0.8), MinimumMigrationTime),
            (InterquartileRange(1.5), MinimumMigrationTime),
            (MedianDeviation(2.5), MinimumMigrationTime),
            (Regression(1.2), MinimumUtilisation),
            (Regression(1.2), MinimumMigrationTime),
            (Regression(1.3), MinimumMigrationTime),
        ] {
            all.push((First::LeastPower(variant), Box::new(Baseline { detector, selection, variant })));
        }
    }
    all.push((First::LeastPower(Variant::WakingCosts), Box::new(Ours)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_a_name_of_its_own_and_every_check_a_policy() {
        let mut names: Vec<String> = policies().iter().map(|(_, policy)| policy.name()).collect();
        assert!(checks::policies().all(|policy| names.iter().any(|name| name == policy)));
        assert!(names.iter().any(|name| name == figures::PEER));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), policies().len());
    }
}
