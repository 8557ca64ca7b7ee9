//! Load as it was measured: nothing is claimed of what nobody has measured.

use drover_model::load::Window;
use drover_model::policy::KOfN;
use drover_model::world::{HostState, HostView, VmView, World};
use drover_model::{Bytes, CpuMillis};

/// Older telemetry says nothing; a hole of this length begins a series anew. In times between samples.
const FRESH_SAMPLES: u64 = 10;
const SAMPLES_MIN: usize = 3;
const SAMPLES: usize = 5;

/// Samples in a row up to now, newest first.
fn fresh<'w, T>(world: &World, window: &'w Window<T>) -> impl Iterator<Item = &'w T> {
    let within = world.sample_every.0.saturating_mul(FRESH_SAMPLES);
    let mut next = world.now;
    let joined = move |(at, sample)| {
        let joined = next.since(at).0 <= within;
        next = at;
        joined.then_some(sample)
    };
    window.iter().rev().map(|(at, sample)| (*at, sample)).map_while(joined)
}

/// Of the last samples; 0 if there are too few.
fn median<T>(world: &World, window: &Window<T>, value: impl Fn(&T) -> u64) -> u64 {
    let (mut last, mut count) = ([0; SAMPLES], 0);
    for sample in fresh(world, window).take(SAMPLES) {
        last[count] = value(sample);
        count += 1;
    }
    last[..count].sort_unstable();
    if count < SAMPLES_MIN { 0 } else { last[count / 2] }
}

/// Thousandths of a core that the vm wants.
pub(super) fn cpu(world: &World, vm: &VmView) -> u64 {
    median(world, &vm.load, |sample| sample.cpu_wanted.0).min(u64::from(vm.vcpus) * CpuMillis::CORE.0)
}

/// Bytes per second that it receives, and that it sends.
pub(super) fn received(world: &World, vm: &VmView) -> u64 {
    median(world, &vm.load, |sample| sample.net_rx.0)
}

pub(super) fn sent(world: &World, vm: &VmView) -> u64 {
    median(world, &vm.load, |sample| sample.net_tx.0)
}

/// Of a host that is up; others carry nothing.
pub(super) fn is_known(world: &World, host: &HostView) -> bool {
    host.state != HostState::Up || fresh(world, &host.load).take(SAMPLES_MIN).count() == SAMPLES_MIN
}

/// Enough of the last samples above the line, by processor or by memory.
pub(super) fn is_hot(world: &World, host: &HostView) -> bool {
    let (Some(capacity), KOfN { k, n }) = (host.capacity, world.policy.hot_evidence) else { return false };
    let line = world.policy.hot_above;
    let (mut cpu, mut memory) = (0, 0);
    for sample in fresh(world, &host.load).take(n as usize) {
        cpu += u32::from(sample.cpu_wanted.ratio_of(capacity.cpu) > line);
        memory += u32::from(Bytes::ratio_of(sample.memory_used, capacity.memory) > line);
    }
    cpu.max(memory) >= k
}
