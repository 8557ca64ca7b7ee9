//! Judgement: `World -> Findings -> Plan`, and the checker that trusts none of it.
//!
//! Pure, synchronous and deterministic: no I/O, no clock, no state between calls; equal worlds give equal plans, with
//! ties broken by id. Everything is compared in money (`cost`), hard rules are never traded (`rules`).
//!
//! ```text
//!   World ──▶ detect ──▶ Findings ──▶ plan ──▶ Plan ──▶ check ──▶ must be empty
//!               │                      │        └─────▶ apply ──▶ the World predicted
//!               └── problem, forecast ─┤
//!                                      └── search: repair, evacuate, relieve, exchange, wake, consolidate, improve
//! ```
//! `predict` says what each move takes and learns from reports; `schedule` plans many at once. Both serve `control`, too.
//! `checker` uses nothing of the other modules, and none of them uses it.

mod apply;
mod bound;
mod checker;
mod cost;
mod detect;
mod forecast;
mod place;
mod plan;
pub mod predict;
mod problem;
mod rules;
pub mod schedule;
mod search;
pub mod text;
mod verify;

pub use apply::apply;
pub use checker::{Violation, check};
pub use detect::detect;
pub use place::{Placement, Refusal, objection, place};
pub use plan::{Effort, plan, plan_within};
pub use verify::verify;
