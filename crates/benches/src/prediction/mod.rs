//! `prediction`: the predictor on recorded migrations of real guests.
//!
//! Instances are dealt into folds. For each fold a fresh predictor is taken through the migrations of all others as
//! the product would be, predicting each and then learning from its record, and must then predict those of the fold,
//! from what was known before they began. So no instance is on both sides, and nothing is fitted that the product does
//! not fit.

mod data;
mod figures;

use crate::io;
use anyhow::{Context, Result, bail};
use data::Row;
use drover_model::migration::Strategy;
use drover_planner::predict::Predictor;
use figures::{Figures, Outcome};
use std::path::PathBuf;

const FOLDS: usize = 5;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Recorded migrations: a CSV file with the columns run, instance, vm, mem_mb, dirty_rate_mb_s, hot_dirty_mb,
    /// hot_dirty_s, bw_mbit, start_s, actual_s, plan_start_s and plan_end_s.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let text =
        String::from_utf8(io::read(&args.input)?).with_context(|| format!("{} is not text", args.input.display()))?;
    let rows = data::parse(&text).with_context(|| format!("can't use {}", args.input.display()))?;
    let figures = Figures::new(&evaluate(&rows)?);
    print!("{figures}");
    io::write_json(args.json.as_deref(), &figures)
}

/// Every row, predicted by a predictor that never saw its instance.
fn evaluate(rows: &[Row]) -> Result<Vec<Outcome>> {
    let mut instances: Vec<u64> = rows.iter().map(|row| row.instance).collect();
    instances.sort_unstable();
    instances.dedup();
    if instances.len() < FOLDS {
        bail!("{} instances can't be dealt into {FOLDS} folds: give a file with more", instances.len());
    }
    let fold_of = |row: &Row| instances.binary_search(&row.instance).unwrap_or_default() % FOLDS;
    let mut outcomes = Vec::with_capacity(rows.len());
    for fold in 0..FOLDS {
        let mut predictor = Predictor::new();
        for row in rows.iter().filter(|row| fold_of(row) != fold) {
            let prediction = predictor.predict(&row.features(), &Strategy::PRE_COPY, row.downtime_max());
            predictor.learn(&row.record(prediction));
        }
        let untaught = Predictor::new();
        for row in rows.iter().filter(|row| fold_of(row) == fold) {
            let (features, downtime_max) = (row.features(), row.downtime_max());
            outcomes.push(Outcome {
                row: row.clone(),
                predicted: predictor.predict(&features, &Strategy::PRE_COPY, downtime_max).total,
                untaught: untaught.predict(&features, &Strategy::PRE_COPY, downtime_max).total.expected,
            });
        }
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twenty instances of four migrations each, all of which take `slower` times what RAM over bandwidth gives.
    fn made_up(slower: f64) -> Vec<Row> {
        let mut text = data::HEADER.to_owned();
        for instance in 0..20 {
            for vm in 0..4 {
                let (memory, bandwidth) = (1000 * (1 + vm % 2), 500 * (1 + vm / 2));
                let actual = slower * f64::from(memory) * 8.4 / f64::from(bandwidth);
                let start = 100 * instance;
                text += &format!("\n1,{instance},{vm},{memory},1,10,1,{bandwidth},{start},0,{actual:.3},0,0");
            }
        }
        data::parse(&text).unwrap()
    }

    #[test]
    fn what_is_regular_is_learned_and_the_physics_alone_does_not_know_it() {
        let figures = Figures::new(&evaluate(&made_up(2.0)).unwrap());
        assert!(figures.mape_total < 2.0, "{figures}");
        assert!(figures.untaught.mape > 30.0, "{figures}");
        assert!(figures.coverage_80 > 0.8, "{figures}");
    }

    #[test]
    fn an_instance_that_behaves_like_no_other_is_not_seen_before_it_is_judged() {
        let mut rows = made_up(1.2);
        for row in rows.iter_mut().filter(|row| row.instance == 3) {
            row.actual_s *= 3.0;
        }
        let outcomes = evaluate(&rows).unwrap();
        let odd: Vec<_> = outcomes.into_iter().filter(|outcome| outcome.row.instance == 3).collect();
        assert!(figures::mape(odd.iter().map(Outcome::error)) > 50.0);
    }

    #[test]
    fn too_few_instances_are_refused() {
        let rows: Vec<Row> = made_up(1.0).into_iter().filter(|row| row.instance < 3).collect();
        assert!(evaluate(&rows).unwrap_err().to_string().contains("3 instances"));
    }
}
