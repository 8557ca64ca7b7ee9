//! Made-up load: a curve of the day, noise that lasts, noise that vms of a group share, and bursts.

use crate::random::Random;
use crate::worlds::{START, id};
use drover_model::{Bytes, CpuMillis, Millis};
use drover_sim::replay::{Point, Recording};

/// Vms that share what their noise has in common.
const GROUP_VMS: usize = 20;
/// Of the noise from one minute to the next (first-order autoregression).
const LASTS: f64 = 0.95;
/// Standard deviations, as shares of a vm's virtual processors: of its own noise, and of its group's.
const OWN_NOISE: f64 = 0.04;
const GROUP_NOISE: f64 = 0.03;
/// Bursts a vm has in a day, on average; how long they last, in minutes; how much they add, in percent of its processors.
const BURSTS_A_DAY: f64 = 2.0;
const BURST_MINUTES: (u64, u64) = (3, 60);
const BURST_PERCENT: (u64, u64) = (20, 60);

/// Virtual processors of the `n`th vm.
pub fn vcpus(n: usize) -> u32 {
    [1, 2, 2, 4][n % 4]
}

/// One vm, or what a group has in common.
struct Noise {
    now: f64,
    deviation: f64,
}

struct Vm {
    vcpus: f64,
    memory: Bytes,
    /// Share of its processors at night, and what the day adds.
    base: f64,
    day: f64,
    /// When its day is highest, in minutes from midnight.
    noon: f64,
    noise: Noise,
    burst_left: u64,
    burst: f64,
}

/// `steps` points of each vm.
pub fn week(seed: u64, vms: usize, steps: usize, step: Millis) -> Recording {
    let mut random = Random(seed);
    let mut groups: Vec<Noise> =
        (0..vms.div_ceil(GROUP_VMS)).map(|_| Noise { now: 0.0, deviation: GROUP_NOISE }).collect();
    let mut made: Vec<(Vm, Vec<Option<Point>>)> =
        (0..vms).map(|n| (Vm::new(&mut random, n), Vec::with_capacity(steps))).collect();
    let burst_chance = BURSTS_A_DAY * step.0 as f64 / 86_400_000.0;
    for at in 0..steps {
        let minute = ((START.0 + at as u64 * step.0) / 60_000 % 1_440) as f64;
        groups.iter_mut().for_each(|group| group.pass(&mut random));
        for (n, (vm, points)) in made.iter_mut().enumerate() {
            let share = vm.pass(&mut random, minute, groups[n / GROUP_VMS].now, burst_chance);
            let cpu = CpuMillis((share * vm.vcpus * 1000.0) as u64);
            points.push(Some(Point { cpu, memory: vm.memory }));
        }
    }
    let vms = made.into_iter().enumerate().map(|(n, (_, points))| (id("vm-", n), points)).collect();
    Recording { start: START, step, vms }
}

impl Vm {
    fn new(random: &mut Random, n: usize) -> Self {
        let mut percent = |low: u64, high: u64| (low + random.below(high - low)) as f64 / 100.0;
        // Every fifth knows no day.
        let day = if n % 5 == 4 { 0.0 } else { percent(10, 45) };
        Self {
            vcpus: f64::from(vcpus(n)),
            memory: Bytes::GIB.scale(f64::from(2 << (n % 3)) * 0.7),
            base: percent(3, 20),
            day,
            noon: 60.0 * (13.0 + percent(0, 400) - 2.0),
            noise: Noise { now: 0.0, deviation: OWN_NOISE },
            burst_left: 0,
            burst: 0.0,
        }
    }

    /// Share of its processors that it wants in this minute of the day.
    fn pass(&mut self, random: &mut Random, minute: f64, group: f64, burst_chance: f64) -> f64 {
        let angle = (minute - self.noon) / 1_440.0 * std::f64::consts::TAU;
        let day = self.day * ((1.0 + angle.cos()) / 2.0).powi(2);
        self.noise.pass(random);
        if self.burst_left > 0 {
            self.burst_left -= 1;
        } else if unit(random) < burst_chance {
            let (short, long) = BURST_MINUTES;
            self.burst_left = short + random.below(long - short);
            let (low, high) = BURST_PERCENT;
            self.burst = (low + random.below(high - low)) as f64 / 100.0;
        }
        let burst = if self.burst_left > 0 { self.burst } else { 0.0 };
        (self.base + day + self.noise.now + group + burst).clamp(0.01, 1.0)
    }
}

impl Noise {
    fn pass(&mut self, random: &mut Random) {
        // Twelve even draws are normal enough (Irwin and Hall).
        let normal = (0..12).map(|_| unit(random)).sum::<f64>() - 6.0;
        self.now = LASTS * self.now + (1.0 - LASTS * LASTS).sqrt() * self.deviation * normal;
    }
}

/// Even between 0 and 1.
fn unit(random: &mut Random) -> f64 {
    random.below(1 << 32) as f64 / (1_u64 << 32) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_the_same_for_a_seed_has_a_day_and_stays_in_its_bounds() {
        let day = week(3, 40, 1_440, Millis::secs(60));
        assert_eq!(day, week(3, 40, 1_440, Millis::secs(60)));
        let demand = |from: usize| -> u64 {
            day.vms.values().flat_map(|points| &points[from..from + 120]).flatten().map(|point| point.cpu.0).sum()
        };
        // From START, which is at 8:00: noon, and three in the morning.
        assert!(demand(4 * 60) > 2 * demand(19 * 60), "{} {}", demand(4 * 60), demand(19 * 60));
        for (n, points) in day.vms.values().enumerate() {
            assert!(points.iter().flatten().all(|p| (10..=u64::from(vcpus(n)) * 1000).contains(&p.cpu.0)));
        }
    }
}
