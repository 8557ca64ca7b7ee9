//! The planner as a whole: scenarios with their expected findings and plans, and properties over random worlds.

mod checks;
mod cluster;
mod explain;
mod predict;
mod properties;

mod scenarios;
mod schedule;
mod verification;
