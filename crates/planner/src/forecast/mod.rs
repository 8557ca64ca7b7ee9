//! Short-horizon forecast of load, with its spread: `None` where too little is known to say anything.
//!
//! [`Outlook`] is what the samples of one series say; it is made once and asked for any time ahead. Sums of forecasts are
//! [`Total`]s. Everything counts in samples, not seconds: [`World::sample_every`] says how far apart they are.
//!
//! How honest the intervals are was measured on the PlanetLab traces (bench `forecast`), 5 to 60 minutes ahead from
//! samples five minutes apart: see [`series`] for the spread of one vm and [`Total`] for that of sums.

mod daily;
mod series;
mod total;

use drover_model::world::{HostView, VmView, World};
use drover_model::{CpuMillis, Millis};
pub use series::Outlook;
pub use total::{Total, normal_quantile};

/// Missed samples after which a series says nothing about now.
const MISSED_MAX: u64 = 3;
/// On its way here a sample may take this long on top.
const LATE_MAX: Millis = Millis::secs(7);

/// Expected value and spread of a series some time ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// In the unit of the series: thousandths of a core, bytes.
    pub mean: u64,
    /// Of what a sample will show then, in that unit squared.
    pub variance: u64,
    /// How many samples in a row it rests on, 3 to 30.
    pub samples: usize,
}

/// A series whose newest sample is older than this is unknown; a hole of this length begins it anew.
pub fn stale_after(world: &World) -> Millis {
    Millis(world.sample_every.0.saturating_mul(MISSED_MAX).saturating_add(LATE_MAX.0))
}

/// What the vm's samples and its daily pattern say of its processor demand, in thousandths of a core. `None` when too few
/// or too old samples exist.
pub fn vm_outlook<'a>(world: &World, view: &'a VmView) -> Option<Outlook<'a>> {
    let samples = view.load.iter().rev().map(|(at, sample)| (*at, sample.cpu_wanted.0));
    let ceiling = u64::from(view.vcpus) * CpuMillis::CORE.0;
    Some(Outlook::of(world.now, stale_after(world), samples)?.with_pattern(&view.pattern).with_ceiling(ceiling))
}

/// The vm's processor demand `ahead` from now.
pub fn vm_demand(world: &World, view: &VmView, ahead: Millis) -> Option<Forecast> {
    Some(vm_outlook(world, view)?.at(ahead))
}

/// What the host's vms will hold of its memory `ahead` from now, in bytes.
pub fn host_memory(world: &World, view: &HostView, ahead: Millis) -> Option<Forecast> {
    let samples = view.load.iter().rev().map(|(at, sample)| (*at, sample.memory_used.0));
    Some(Outlook::of(world.now, stale_after(world), samples)?.at(ahead))
}
