//! drover's own text format: a cluster as the planner sees it, one object a line, made to be read, written by hand and
//! compared. `docs/planner.md` has it in full, with an example.
//!
//! ```text
//! # what follows the sign is a comment; a value with blanks in it stands in quotes: fixed="it has a host device"
//! cluster now=2026-11-21T20:47:44Z        also: revision, sample (seconds between samples)
//! policy  aim=auto spare_hosts=1          keys of `drover policy show`; any number of such lines
//! pool    web cpu-limit=8                 also: parent, cpu-reserved, mem-reserved, mem-limit
//! host    h1 cpu=4 mem=8192               cores and MiB (or 8G); [`read::HOST`] lists the rest
//! vm      web-1 vcpus=2 mem=1024 on=h1 load=0.1*50,0.9*10         cores wanted, so many samples of each
//! rule    apart-1 apart within=rack vms=web-1,web-2
//! ```
//! Order does not matter. What a host measures is the sum of what its vms do.
//!
//! Load is written without what no decision rests on: how late a sample came, what was used of what was wanted, disk
//! latencies, and all but the newest of network traffic, resident memory and dirty rate. Everything else is read as it
//! was written.

mod policy;
mod read;
mod series;
mod values;
mod words;
mod write;

pub use policy::{policy_keys, set_policy};
pub use read::parse;
pub(super) use series::{level_load, measure_hosts};
pub use write::write;

use drover_model::{Millis, TimeMs};

/// The moment of a cluster that names none.
pub const NOW: TimeMs = TimeMs(10_000_000);
/// A vm's load is of so many samples where only one figure is given, and a host is known for as long at least.
const SAMPLES: usize = 60;
/// Samples of a series that are further apart than so many intervals belong to different times; the planner sees a hole
/// of this length, too.
const HOLE_SAMPLES: u64 = 10;

fn hole(sample_every: Millis) -> Millis {
    Millis(sample_every.0 * HOLE_SAMPLES)
}

#[cfg(test)]
mod tests;
