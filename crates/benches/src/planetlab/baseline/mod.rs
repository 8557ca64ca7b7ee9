//! The policies of Beloglazov and Buyya (2012), as their simulator has them: relieve what a [`Detector`] takes for
//! overloaded, put each vm where it adds least power, and empty the least used hosts as long as their vms fit elsewhere.

mod detector;
mod first;
mod sketch;

pub use detector::Detector;
pub use first::{first_fit, least_power};

use super::kinds::HostKind;
use super::policy::Policy;
use super::world::{HostIx, Move, VmIx, World};
use sketch::Sketched;

/// Which vm leaves an overloaded host first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// MMT: that with the least memory.
    MinimumMigrationTime,
    /// MU: that which uses the smallest part of its processor.
    MinimumUtilisation,
}

/// What a placement is held to cost in power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// As published: a host that is off is taken to draw its idle power already, so that waking it looks free, and what this
    /// round has placed is not counted.
    AsShipped,
    /// Waking a host costs all of its power, and this round's placements count.
    WakingCosts,
}

impl Variant {
    pub fn letter(self) -> char {
        match self {
            Variant::AsShipped => 'A',
            Variant::WakingCosts => 'B',
        }
    }

    /// Watts before a vm is added to a host: by the MIPS given at its last update, or those given now.
    fn power_before(self, kind: &HostKind, last_update: f64, given: f64) -> f64 {
        match self {
            Variant::AsShipped => kind.power(last_update),
            Variant::WakingCosts if given == 0.0 => 0.0,
            Variant::WakingCosts => kind.power(given / kind.mips),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    pub detector: Detector,
    pub selection: Selection,
    pub variant: Variant,
}

impl Policy for Baseline {
    fn name(&self) -> String {
        let (detector, scale) = self.detector.name();
        let selection = match self.selection {
            Selection::MinimumMigrationTime => "MMT",
            Selection::MinimumUtilisation => "MU",
        };
        format!("{} {detector}-{selection}-{scale}", self.variant.letter())
    }

    fn round(&mut self, world: &World<'_>) -> Vec<Move> {
        let mut round = Round::new(*self, world);
        let mut moves = round.relieve();
        moves.extend(round.consolidate());
        moves
    }
}

struct Round<'a> {
    policy: Baseline,
    world: &'a World<'a>,
    hosts: Vec<Sketched>,
    overloaded: Vec<bool>,
}

impl<'a> Round<'a> {
    fn new(policy: Baseline, world: &'a World<'a>) -> Self {
        let hosts = world.hosts.iter().map(|host| Sketched::new(host.kind, host.vms.clone(), world));
        let hosts: Vec<Sketched> = hosts.collect();
        let overloaded = hosts.iter().map(|host| policy.detector.overloaded(host)).collect();
        Self { policy, world, hosts, overloaded }
    }

    fn relieve(&mut self) -> Vec<Move> {
        let mut leaving = Vec::new();
        for ix in (0..self.hosts.len()).filter(|ix| self.overloaded[*ix]).collect::<Vec<_>>() {
            while let Some(vm) = self.select(&self.hosts[ix].vms) {
                leaving.push(vm);
                self.hosts[ix].remove(vm, self.world.hosts[ix].kind, self.world);
                if !self.policy.detector.overloaded(&self.hosts[ix]) {
                    break;
                }
            }
        }
        self.largest_first(&mut leaving);
        let excluded = self.overloaded.clone();
        leaving.into_iter().filter_map(|vm| self.place(vm, &excluded)).collect()
    }

    /// Empties the least used hosts. One that has been given a vm by [`Self::relieve`] in the same round may be among
    /// them, as published.
    fn consolidate(&mut self) -> Vec<Move> {
        let mut keep = self.overloaded.clone();
        for (keep, host) in keep.iter_mut().zip(&self.world.hosts) {
            *keep |= host.utilisation() == 0.0;
        }
        let mut no_target = keep.clone();
        let mut moves = Vec::new();
        while let Some(least) = self.least_used(&keep) {
            (keep[least], no_target[least]) = (true, true);
            let mut leaving = self.hosts[least].vms.clone();
            self.largest_first(&mut leaving);
            let Some(placed) = self.place_all(&leaving, &no_target) else { continue };
            placed.iter().for_each(|step| keep[step.to.0] = true);
            moves.extend(placed);
        }
        moves
    }

    fn least_used(&self, keep: &[bool]) -> Option<usize> {
        let used = |ix: &usize| self.world.hosts[*ix].utilisation();
        let open = (0..self.hosts.len()).filter(|ix| !keep[*ix] && !self.hosts[*ix].vms.is_empty() && used(ix) < 1.0);
        open.min_by(|a, b| used(a).total_cmp(&used(b)))
    }

    fn place_all(&mut self, leaving: &[VmIx], excluded: &[bool]) -> Option<Vec<Move>> {
        let mut placed: Vec<Move> = Vec::new();
        for vm in leaving {
            match self.place(*vm, excluded) {
                Some(step) => placed.push(step),
                None => {
                    for Move { vm, to } in placed {
                        self.hosts[to.0].remove(vm, self.world.hosts[to.0].kind, self.world);
                    }
                    return None;
                }
            }
        }
        Some(placed)
    }

    fn place(&mut self, vm: VmIx, excluded: &[bool]) -> Option<Move> {
        let to = self.find(vm, excluded)?;
        self.hosts[to].add(vm, self.world.hosts[to].kind, self.world);
        Some(Move { vm, to: HostIx(to) })
    }

    /// The host that a vm adds least power to, the first of equal ones.
    fn find(&self, vm: VmIx, excluded: &[bool]) -> Option<usize> {
        let vm = &self.world.vms[vm.0];
        let mut best: Option<(f64, usize)> = None;
        for (ix, (host, sketched)) in self.world.hosts.iter().zip(&self.hosts).enumerate() {
            if excluded[ix] || host.kind.core_mips < vm.demand || sketched.left < vm.demand {
                continue;
            }
            let after = host.kind.power((sketched.given + vm.demand) / host.kind.mips);
            let more = after - self.policy.variant.power_before(host.kind, host.utilisation(), sketched.given);
            if best.is_some_and(|(least, _)| more >= least) {
                continue;
            }
            if sketched.given == 0.0 || !self.policy.detector.overloaded(&sketched.load_with(vm)) {
                best = Some((more, ix));
            }
        }
        best.map(|(_, ix)| ix)
    }

    fn select(&self, vms: &[VmIx]) -> Option<VmIx> {
        let cost = |vm: &VmIx| {
            let vm = &self.world.vms[vm.0];
            match self.policy.selection {
                Selection::MinimumMigrationTime => f64::from(vm.kind.ram_mb),
                Selection::MinimumUtilisation => vm.demand / vm.kind.mips,
            }
        };
        vms.iter().copied().min_by(|a, b| cost(a).total_cmp(&cost(b)))
    }

    fn largest_first(&self, vms: &mut [VmIx]) {
        let demand = |vm: &VmIx| self.world.vms[vm.0].demand;
        vms.sort_by(|a, b| demand(b).total_cmp(&demand(a)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::day::tests::steady;
    use super::*;

    const RELIEVER: Baseline = Baseline {
        detector: Detector::Threshold(0.8),
        selection: Selection::MinimumMigrationTime,
        variant: Variant::WakingCosts,
    };

    const OVERLOADING: [u8; 4] = [90, 90, 50, 100];

    fn first_round(policy: Baseline, percentages: &[u8], hosts: &[usize]) -> Vec<Move> {
        let day = steady(percentages);
        let hosts: Vec<HostIx> = hosts.iter().copied().map(HostIx).collect();
        let mut world = World::new(&day, &hosts);
        world.advance();
        Policy::round(&mut { policy }, &world)
    }

    #[test]
    fn an_overloaded_host_gives_its_smallest_memory_away_and_to_a_host_that_is_on() {
        // Of vms of 2500, 2000, 1000 and 500 MIPS; 2250 + 1800 + 500 of 5320 are more than 0.8.
        let moves = first_round(RELIEVER, &OVERLOADING, &[1, 1, 3, 1]);
        assert_eq!(moves, [Move { vm: VmIx(3), to: HostIx(3) }]);
    }

    #[test]
    fn as_shipped_waking_a_host_looks_free() {
        // 500 MIPS add 3.5 W to the host that is on, and 3.1 W to one taken to draw its idle power already.
        let shipped = Baseline { variant: Variant::AsShipped, ..RELIEVER };
        let moves = first_round(shipped, &OVERLOADING, &[1, 1, 3, 1]);
        assert_ne!(moves[0].to, HostIx(3));
    }

    #[test]
    fn the_least_used_host_is_emptied_if_all_its_vms_fit_elsewhere_and_else_left_alone() {
        let moves = first_round(RELIEVER, &[40, 40, 40, 40], &[1, 1, 3, 3]);
        assert_eq!(moves, [Move { vm: VmIx(2), to: HostIx(1) }, Move { vm: VmIx(3), to: HostIx(1) }]);
        // 2500 + 1000 and 2000 + 500 MIPS: together more than 0.8 of either host.
        assert_eq!(first_round(RELIEVER, &[100, 100, 100, 100], &[1, 3, 1, 3]), []);
    }

    #[test]
    fn vms_begin_where_they_fit_by_memory_and_cores() {
        let placement = first_fit(8).unwrap();
        // Kinds 0 and 1 ask for more than a core of the even hosts has; 4096 MB are two vms of 1740 MB and one of 613.
        assert_eq!(placement.iter().map(|host| host.0).collect::<Vec<_>>(), [1, 1, 3, 3, 0, 0, 0, 2]);
        assert!(least_power(5000, Variant::AsShipped).is_err());
    }
}
