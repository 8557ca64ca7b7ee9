//! Series as runs of equal values: `0.5`, or `0.1*50,0.9*10`.

use super::values::{cores, of_cores};
use super::{SAMPLES, hole};
use drover_model::load::{DailyPattern, HostSample, PatternSlot, VmSample, Window};
use drover_model::world::{HostState, World};
use drover_model::{Bytes, CpuMillis, HostId, Millis, Ratio, TimeMs};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const LOAD: &str =
    "cores wanted, for so many samples up to now, e.g. 0.5 or 0.1*50,0.9*10; at most 120 samples";
pub(super) const PATTERN: &str = "days, then mean~deviation in cores for each of the 96 quarters of an hour of the day, \
                                  e.g. 7:0.2~0.05*32,1.5~0.2*64";

/// The runs of a list, each with how often it counts; `alone` is the count of a list of one value without a count.
fn runs(text: &str, alone: usize) -> Option<Vec<(&str, usize)>> {
    let once = if text.contains(',') { 1 } else { alone };
    let run = |run| match str::split_once(run, '*') {
        // Read through a small type, so that no list gets long.
        Some((value, count)) => Some((value, usize::from(count.parse::<u16>().ok()?))),
        None => Some((run, once)),
    };
    text.split(',').map(run).collect()
}

fn of_runs<T: PartialEq>(values: &[T], show: impl Fn(&T) -> String) -> String {
    let runs = values.chunk_by(|a, b| a == b).map(|run| match run.len() {
        1 => show(&run[0]),
        count => format!("{}*{count}", show(&run[0])),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// Oldest first.
pub(super) fn load(text: &str) -> Option<Vec<CpuMillis>> {
    let mut values = Vec::new();
    for (value, count) in runs(text, SAMPLES)? {
        if values.len() + count > Window::<()>::SAMPLES_MAX {
            return None;
        }
        values.extend(std::iter::repeat_n(cores(value)?, count));
    }
    Some(values)
}

/// What [`load`] reads.
pub(super) fn of_load(values: &[CpuMillis]) -> String {
    // A value alone would be taken for many.
    if let [only] = values { format!("{}*1", of_cores(*only)) } else { of_runs(values, |value| of_cores(*value)) }
}

/// The newest samples without a hole between them and up to now, oldest first.
pub(super) fn recent<T>(window: &Window<T>, now: TimeMs, sample_every: Millis) -> Vec<&T> {
    let (mut after, hole) = (now, hole(sample_every));
    let joined = window.iter().rev().take_while(|(at, _)| {
        let joined = after.since(*at) <= hole;
        after = *at;
        joined
    });
    let mut samples: Vec<&T> = joined.map(|(_, sample)| sample).collect();
    samples.reverse();
    samples
}

/// What does not change from sample to sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub resident: Bytes,
    pub rx: Bytes,
    pub tx: Bytes,
    pub dirty: Option<Bytes>,
}

pub(super) fn window(values: &[CpuMillis], level: Level, now: TimeMs, sample_every: Millis) -> Window<VmSample> {
    let sample = |cpu: CpuMillis| VmSample {
        cpu_used: cpu,
        cpu_wanted: cpu,
        memory_used: level.resident,
        net_rx: level.rx,
        net_tx: level.tx,
        disk_latency_us: 0,
        dirty_rate: level.dirty,
    };
    let at = |n: usize| TimeMs(now.0.saturating_sub((values.len() - 1 - n) as u64 * sample_every.0));
    values.iter().enumerate().map(|(n, cpu)| (at(n), sample(*cpu))).collect()
}

/// As much all the time.
pub(in crate::text) fn level_load(
    cpu: CpuMillis,
    resident: Bytes,
    now: TimeMs,
    sample_every: Millis,
) -> Window<VmSample> {
    let level = Level { resident, rx: Bytes::ZERO, tx: Bytes::ZERO, dirty: None };
    window(&[cpu; SAMPLES], level, now, sample_every)
}

/// Gives each host that is up and not dark the sum over its vms, for as long as any vm is known.
pub(in crate::text) fn measure_hosts(world: &mut World, dark: &BTreeSet<HostId>) {
    let (now, every) = (world.now, world.sample_every);
    let longest = world.vms.values().map(|vm| vm.load.len()).max().unwrap_or(0).max(SAMPLES);
    let mut sums: BTreeMap<&HostId, Vec<HostSample>> = BTreeMap::new();
    for vm in world.vms.values() {
        let Some(host) = &vm.host else { continue };
        let sums = sums.entry(host).or_insert_with(|| vec![NOTHING; longest]);
        for (sum, (_, sample)) in sums.iter_mut().zip(vm.load.iter().rev()) {
            sum.cpu_wanted += sample.cpu_wanted;
            sum.memory_used += sample.memory_used;
            sum.net_rx += sample.net_rx;
            sum.net_tx += sample.net_tx;
        }
    }
    for (id, host) in &mut world.hosts {
        if host.state != HostState::Up || dark.contains(id) {
            continue;
        }
        let newest_first = sums.remove(id).unwrap_or_else(|| vec![NOTHING; longest]);
        let most = host.capacity.map(|capacity| capacity.cpu);
        let timed = newest_first.into_iter().enumerate().rev().map(|(ago, mut sample)| {
            sample.cpu_used = most.map_or(sample.cpu_wanted, |most| sample.cpu_wanted.min(most));
            (TimeMs(now.0.saturating_sub(ago as u64 * every.0)), sample)
        });
        host.load = timed.collect();
    }
}

const NOTHING: HostSample = HostSample {
    cpu_used: CpuMillis::ZERO,
    cpu_wanted: CpuMillis::ZERO,
    memory_used: Bytes::ZERO,
    memory_pressure: Ratio(0.0),
    net_rx: Bytes::ZERO,
    net_tx: Bytes::ZERO,
    disk_latency_us: 0,
};

pub(super) fn pattern(text: &str) -> Option<DailyPattern> {
    let (days, list) = text.split_once(':')?;
    let mut slots = Vec::with_capacity(DailyPattern::SLOTS);
    for (slot, count) in runs(list, 1)? {
        let (mean, deviation) = slot.split_once('~')?;
        let millis = |text| u32::try_from(cores(text)?.0).ok();
        let slot = PatternSlot { mean: millis(mean)?, deviation: millis(deviation)? };
        if slots.len() + count > DailyPattern::SLOTS {
            return None;
        }
        slots.extend(std::iter::repeat_n(slot, count));
    }
    let days = days.parse().ok().filter(|_| slots.len() == DailyPattern::SLOTS)?;
    Some(DailyPattern { days, slots })
}

/// What [`pattern`] reads; `None` for a pattern that has not seen a day.
pub(super) fn of_pattern(pattern: &DailyPattern) -> Option<String> {
    let millis = |count: u32| of_cores(CpuMillis(u64::from(count)));
    let slot = |slot: &PatternSlot| format!("{}~{}", millis(slot.mean), millis(slot.deviation));
    let whole = pattern.slots.len() == DailyPattern::SLOTS;
    whole.then(|| format!("{}:{}", pattern.days, of_runs(&pattern.slots, slot)))
}
