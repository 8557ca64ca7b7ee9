//! Recorded load under another policy: the real planner decides, moves and boots take the time they are predicted to,
//! and what it comes to is counted.
//!
//! ```text
//!  Recording ─a point each step─▶ vms' windows ─▶ hosts' windows ─▶ detect ─▶ plan ─▶ check
//!      ▲                                                                        │
//!  CSV, rows, made up            energy, core-hours missed ◀── time passes ◀── steps under way (moves, boots)
//! ```
//! No faults here, no agents and no `control`: that is the rest of this crate. One plan is carried out at a time, as
//! `control::planning` does it: a step starts when those before it are done and the policy's limits of moves allow; the
//! next plan is made at the first sample after the effect has settled. Nobody sees a point before its time.
//!
//! ```no_run
//! # use drover_sim::replay::{Recording, Replay, at_pace};
//! # let (world, recording): (drover_model::world::World, Recording) = unimplemented!();
//! let mut replay = Replay::new(&world, &recording);
//! while replay.step() {}
//! println!("{} kWh", replay.finish().energy_kwh);
//! ```

mod chart;
mod course;
mod recording;
mod report;

pub use chart::chart;
pub use course::Replay;
pub use recording::{BadRecording, HEADER, Point, Recording, Stranger};
pub use report::{Bill, Moment, Move, Report};

use drover_model::Millis;
use drover_model::policy::{KOfN, Policy};

/// Fewer samples than this are no evidence.
const EVIDENCE_MIN: u32 = 3;

/// `policy`, which counts in samples a second apart, for samples `step` apart: evidence spans the same time, but at least
/// three samples, and the forecast reaches the next sample.
pub fn at_pace(policy: &Policy, step: Millis) -> Policy {
    let paced = |KOfN { k, n }: KOfN| {
        let samples = (u64::from(n) * 1000).div_ceil(step.0.max(1000)) as u32;
        let samples = samples.clamp(EVIDENCE_MIN.min(n), n);
        KOfN { k: (k * samples).div_ceil(n), n: samples }
    };
    Policy {
        hot_evidence: paced(policy.hot_evidence),
        cold_evidence: paced(policy.cold_evidence),
        forecast_ahead: policy.forecast_ahead.max(step),
        ..policy.clone()
    }
}
