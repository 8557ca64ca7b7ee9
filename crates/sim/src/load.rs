//! What vms want of their hosts: functions of time, made from the seed. A base, steps, a slow wave and noise.

use crate::dice::Dice;
use drover_model::load::{HostSample, VmSample};
use drover_model::{Bytes, CpuMillis, Ratio, TimeMs, VmId};
use std::collections::BTreeMap;

/// Steps of demand over a run.
const STEPS: usize = 4;
/// Noise, as a share of the demand, each way.
const NOISE: f64 = 0.05;

/// One vm's demand.
#[derive(Debug, Clone)]
pub struct Demand {
    vcpus: u32,
    memory: Bytes,
    base: f64,
    /// From this time on, this share of its vcpus more (or less).
    steps: Vec<(TimeMs, f64)>,
    wave: f64,
    period_ms: u64,
    phase_ms: u64,
    noise: u64,
}

impl Demand {
    pub fn new(dice: &mut Dice, vcpus: u32, memory: Bytes, from: TimeMs, span_ms: u64) -> Self {
        let share = |dice: &mut Dice, most: u64| dice.between(0, most) as f64 / 100.0;
        let steps = (0..STEPS)
            .map(|_| {
                let at = TimeMs(from.0 + dice.between(0, span_ms.max(1)));
                (at, share(dice, 90) - 0.4)
            })
            .collect();
        Self {
            vcpus,
            memory,
            base: 0.1 + share(dice, 50),
            steps,
            wave: share(dice, 30),
            period_ms: dice.between(240_000, 1_200_000),
            phase_ms: dice.between(0, 1_200_000),
            noise: dice.between(0, u64::MAX),
        }
    }

    /// A demand that never changes, as a share of the vcpus.
    pub fn constant(vcpus: u32, memory: Bytes, share: f64) -> Self {
        Self { vcpus, memory, base: share, steps: Vec::new(), wave: 0.0, period_ms: 1, phase_ms: 0, noise: 0 }
    }

    /// `at`: when the demand is taken, which stands still once load is frozen; `now` moves the noise on.
    pub fn cpu(&self, at: TimeMs, now: TimeMs) -> CpuMillis {
        let step: f64 = self.steps.iter().filter(|(from, _)| at >= *from).map(|(_, share)| share).sum();
        let angle = (at.0 + self.phase_ms) as f64 / self.period_ms as f64 * std::f64::consts::TAU;
        let share = (self.base + step + self.wave * angle.sin()).clamp(0.02, 1.0);
        let noise = 1.0 + NOISE * spread(self.noise ^ (now.0 / 1000));
        CpuMillis((share * noise * f64::from(self.vcpus) * 1000.0) as u64).min(CpuMillis(u64::from(self.vcpus) * 1000))
    }
}

/// A number as a point from -1 to 1, by the finaliser of splitmix64.
fn spread(number: u64) -> f64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// One second of a host: what its guests want, and what they get of its processor.
pub fn sample<'a>(
    capacity: CpuMillis,
    guests: impl Iterator<Item = (&'a VmId, &'a Demand, bool)>,
    at: TimeMs,
    now: TimeMs,
) -> (HostSample, BTreeMap<VmId, VmSample>) {
    let wants: Vec<(&VmId, &Demand, CpuMillis)> = guests
        .map(|(vm, demand, executes)| (vm, demand, if executes { demand.cpu(at, now) } else { CpuMillis::ZERO }))
        .collect();
    let wanted: CpuMillis = wants.iter().map(|(_, _, cpu)| *cpu).sum();
    let got = if wanted > capacity { capacity.ratio_of(wanted).0 } else { 1.0 };
    let of_vm = |demand: &Demand, cpu: CpuMillis| VmSample {
        cpu_used: cpu.scale(got),
        cpu_wanted: cpu,
        memory_used: demand.memory.scale(0.8),
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
        dirty_rate: None,
    };
    let vms: BTreeMap<VmId, VmSample> =
        wants.iter().map(|(vm, demand, cpu)| ((*vm).clone(), of_vm(demand, *cpu))).collect();
    let host = HostSample {
        cpu_used: wanted.scale(got),
        cpu_wanted: wanted,
        memory_used: vms.values().map(|sample| sample.memory_used).sum(),
        memory_pressure: Ratio(0.0),
        net_rx: Bytes::ZERO,
        net_tx: Bytes::ZERO,
        disk_latency_us: 0,
    };
    (host, vms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_host_gives_each_guest_its_share_and_reports_what_was_wanted() {
        let (a, b): (VmId, VmId) = ("vm-a".parse().unwrap(), "vm-b".parse().unwrap());
        let busy = Demand::constant(2, Bytes::mib(100), 1.0);
        let guests = [(&a, &busy, true), (&b, &busy, true)];
        let (host, vms) = sample(CpuMillis(2_000), guests.into_iter(), TimeMs(0), TimeMs(0));
        assert!(host.cpu_wanted > CpuMillis(3_700) && host.cpu_used <= CpuMillis(2_001), "{host:?}");
        assert!(vms[&a].cpu_used < vms[&a].cpu_wanted, "{vms:?}");
    }
}
