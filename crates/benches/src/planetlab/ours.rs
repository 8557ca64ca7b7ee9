//! A policy that shows what can be reached with little: forecasts by level and spread, relief at once and by one vm
//! where one is enough, and hosts emptied only when all their vms fit elsewhere with room for their spread.

use super::kinds::G5;
use super::policy::Policy;
use super::world::{HostIx, Move, Vm, VmIx, World};

/// Rounds of a vm's past that its forecast is made of: two hours.
const WINDOW: usize = 24;
/// A vm that has no past yet is expected to use what vms use on average now, this much more or less (standard
/// deviation, 0 to 1 of its processor). That counts as one round of its past.
const SPREAD_AT_FIRST: f64 = 0.12;
/// A host takes vms as long as its level and this many of its standard deviations find room.
const DEVIATIONS: f64 = 0.95;
/// Where no host is left that does, one is relieved to where the level alone finds room, rather than to one just woken.
const DEVIATIONS_RELIEVING: [f64; 2] = [DEVIATIONS, 0.0];
/// And as long as what its vms ask for now is no more than this part of it.
const FULL: f64 = 0.97;
/// How many hosts in a row, the least used first, may turn out not to be emptied before the others are left alone.
const ATTEMPTS_MAX: usize = 3;

pub struct Ours;

impl Policy for Ours {
    fn name(&self) -> String {
        "ours".to_owned()
    }

    fn round(&mut self, world: &World<'_>) -> Vec<Move> {
        let mut round = Round::new(world);
        round.relieve();
        round.consolidate();
        round.moves
    }
}

/// MIPS that a vm, or all vms of a host, are expected to ask for in the next hours.
#[derive(Debug, Clone, Copy, Default)]
struct Forecast {
    level: f64,
    /// Of each round around the level. Vms are taken to be independent of each other.
    variance: f64,
}

impl Forecast {
    fn of(vm: &Vm, usual: f64) -> Self {
        let past = &vm.history[vm.history.len().saturating_sub(WINDOW)..];
        let count = (past.len() + 1) as f64;
        let level = (past.iter().sum::<f64>() + usual) / count;
        let squares: f64 = past.iter().map(|value| (value - level).powi(2)).sum();
        let variance = (squares + SPREAD_AT_FIRST.powi(2)) / count;
        Self { level: level * vm.kind.mips, variance: variance * vm.kind.mips.powi(2) }
    }

    fn with(self, other: Self) -> Self {
        Self { level: self.level + other.level, variance: self.variance + other.variance }
    }

    /// What is not exceeded but for chance.
    fn high(self, deviations: f64) -> f64 {
        self.level + deviations * self.variance.sqrt()
    }
}

/// A host after what this round has decided so far.
#[derive(Debug, Clone)]
struct Planned {
    vms: Vec<VmIx>,
    forecast: Forecast,
    /// MIPS asked for now.
    demand: f64,
}

struct Round<'a> {
    world: &'a World<'a>,
    forecasts: Vec<Forecast>,
    hosts: Vec<Planned>,
    moves: Vec<Move>,
    moved: Vec<bool>,
}

impl<'a> Round<'a> {
    fn new(world: &'a World<'a>) -> Self {
        let living: Vec<&Vm> = world.vms.iter().filter(|vm| vm.host.is_some()).collect();
        let usual = living.iter().map(|vm| vm.demand / vm.kind.mips).sum::<f64>() / living.len().max(1) as f64;
        let forecasts: Vec<Forecast> = world.vms.iter().map(|vm| Forecast::of(vm, usual)).collect();
        let planned = |vms: &Vec<VmIx>| Planned {
            vms: vms.clone(),
            forecast: sum(&forecasts, vms),
            demand: vms.iter().map(|vm| world.vms[vm.0].demand).sum(),
        };
        let hosts = world.hosts.iter().map(|host| planned(&host.vms)).collect();
        Self { world, hosts, moves: Vec::new(), moved: vec![false; forecasts.len()], forecasts }
    }

    /// Takes from each host that is short what it is short of.
    fn relieve(&mut self) {
        for ix in (0..self.hosts.len()).map(HostIx) {
            let mut short = self.hosts[ix.0].demand - self.world.hosts[ix.0].kind.mips;
            if short <= 0.0 {
                continue;
            }
            for vm in self.relief(ix, short) {
                let to = DEVIATIONS_RELIEVING.iter().find_map(|deviations| self.find(vm, ix, *deviations));
                if let Some(to) = to.filter(|_| short > 0.0) {
                    short -= self.demand(vm);
                    self.shift(vm, ix, to);
                }
            }
            let woken = (0..self.hosts.len()).map(HostIx).find(|host| self.is_off(*host) && self.is_better(*host));
            let Some(woken) = woken.filter(|_| short > 0.0) else { continue };
            for vm in self.relief(ix, short) {
                if short > 0.0 {
                    short -= self.demand(vm);
                    self.shift(vm, ix, woken);
                }
            }
        }
    }

    /// Vms to relieve a host of, the best first: of those that are enough alone the one that moves fastest, then the
    /// smallest; else the largest.
    fn relief(&self, host: HostIx, short: f64) -> Vec<VmIx> {
        let free = self.hosts[host.0].vms.iter().copied().filter(|vm| !self.moved[vm.0]);
        let (mut enough, mut others): (Vec<VmIx>, Vec<VmIx>) = free.partition(|vm| self.demand(*vm) >= short);
        let cost = |vm: &VmIx| (self.world.vms[vm.0].kind.ram_mb, self.demand(*vm));
        enough.sort_by(|a, b| cost(a).0.cmp(&cost(b).0).then(cost(a).1.total_cmp(&cost(b).1)));
        others.sort_by(|a, b| self.forecasts[b.0].level.total_cmp(&self.forecasts[a.0].level));
        enough.extend(others);
        enough
    }

    /// Empties the hosts of the worse kind, then the least used, as long as all of a host's vms fit elsewhere.
    fn consolidate(&mut self) {
        let mut order: Vec<HostIx> = (0..self.hosts.len()).map(HostIx).collect();
        order.retain(|ix| !self.hosts[ix.0].vms.is_empty());
        let level = |ix: &HostIx| self.hosts[ix.0].forecast.level;
        let worth = |ix: &HostIx| (self.is_better(*ix), level(ix));
        order.sort_by(|a, b| worth(a).0.cmp(&worth(b).0).then(worth(a).1.total_cmp(&worth(b).1)));
        let mut attempts = 0;
        for ix in order {
            if attempts == ATTEMPTS_MAX {
                break;
            }
            let is_target = self.hosts[ix.0].vms.iter().any(|vm| self.moved[vm.0]);
            if !is_target && !self.empty(ix) && self.is_better(ix) {
                attempts += 1;
            }
        }
    }

    /// All of a host's vms, or none.
    fn empty(&mut self, ix: HostIx) -> bool {
        let begun = self.moves.len();
        let mut vms = self.hosts[ix.0].vms.clone();
        vms.sort_by(|a, b| self.forecasts[b.0].level.total_cmp(&self.forecasts[a.0].level));
        for vm in vms {
            let Some(to) = self.find(vm, ix, DEVIATIONS) else {
                for Move { vm, to } in self.moves.split_off(begun).into_iter().rev() {
                    self.carry(vm, to, ix);
                    self.moved[vm.0] = false;
                }
                return false;
            };
            self.shift(vm, ix, to);
        }
        true
    }

    /// The host of the better kind that is on, has room and is fullest now.
    fn find(&self, vm: VmIx, from: HostIx, deviations: f64) -> Option<HostIx> {
        let has_room = |ix: &HostIx| {
            let (host, mips) = (&self.hosts[ix.0], self.world.hosts[ix.0].kind.mips);
            host.forecast.with(self.forecasts[vm.0]).high(deviations) <= mips
                && host.demand + self.demand(vm) <= FULL * mips
        };
        let open = (0..self.hosts.len()).map(HostIx).filter(|ix| *ix != from && !self.hosts[ix.0].vms.is_empty());
        let open = open.filter(|ix| self.is_better(*ix)).filter(has_room);
        open.max_by(|a, b| self.hosts[a.0].demand.total_cmp(&self.hosts[b.0].demand))
    }

    fn is_off(&self, ix: HostIx) -> bool {
        self.world.hosts[ix.0].vms.is_empty() && self.hosts[ix.0].vms.is_empty()
    }

    fn is_better(&self, ix: HostIx) -> bool {
        self.world.hosts[ix.0].kind == &G5
    }

    fn demand(&self, vm: VmIx) -> f64 {
        self.world.vms[vm.0].demand
    }

    fn shift(&mut self, vm: VmIx, from: HostIx, to: HostIx) {
        self.carry(vm, from, to);
        self.moved[vm.0] = true;
        self.moves.push(Move { vm, to });
    }

    fn carry(&mut self, vm: VmIx, from: HostIx, to: HostIx) {
        self.hosts[from.0].vms.retain(|on| *on != vm);
        self.hosts[to.0].vms.push(vm);
        for host in [from, to] {
            let planned = &mut self.hosts[host.0];
            planned.forecast = sum(&self.forecasts, &planned.vms);
            planned.demand = planned.vms.iter().map(|vm| self.world.vms[vm.0].demand).sum();
        }
    }
}

fn sum(forecasts: &[Forecast], vms: &[VmIx]) -> Forecast {
    vms.iter().fold(Forecast::default(), |sum, vm| sum.with(forecasts[vm.0]))
}

#[cfg(test)]
mod tests {
    use super::super::day::tests::{made_up, steady};
    use super::super::policy::drive;
    use super::*;

    fn hosts(hosts: &[usize]) -> Vec<HostIx> {
        hosts.iter().copied().map(HostIx).collect()
    }

    fn first_round(percentages: &[u8], placement: &[usize]) -> Vec<Move> {
        let day = steady(percentages);
        let mut world = World::new(&day, &hosts(placement));
        world.advance();
        Ours.round(&world)
    }

    #[test]
    fn hosts_of_the_worse_kind_and_little_used_ones_are_emptied() {
        let moves = first_round(&[20, 20, 20, 20], &[1, 1, 2, 3]);
        assert_eq!(moves, [Move { vm: VmIx(2), to: HostIx(1) }, Move { vm: VmIx(3), to: HostIx(1) }]);
    }

    #[test]
    fn a_host_that_is_short_gives_away_the_one_vm_that_is_enough_and_moves_fastest() {
        // Two vms of each kind; host 1 has 2500 + 2000 + 1000 + 500 of 5320 MIPS: 680 too many.
        let loads = [100, 60, 100, 1, 100, 1, 100, 1];
        let moves = first_round(&loads, &[1, 3, 1, 3, 1, 3, 1, 3]);
        assert_eq!(moves[0], Move { vm: VmIx(0), to: HostIx(3) });
        assert_eq!(moves.len(), 1);
    }

    #[test]
    fn one_that_no_other_has_room_for_is_woken() {
        let moves = first_round(&[100, 100, 100, 100, 100, 100, 100, 100], &[1, 3, 1, 3, 1, 3, 1, 3]);
        assert!(moves.contains(&Move { vm: VmIx(0), to: HostIx(5) }), "{moves:?}");
    }

    #[test]
    fn a_day_without_change_is_packed_once_and_then_left_alone() {
        let day = made_up(40, |vm, _| 10 + (vm % 5) as u8 * 10);
        let placement: Vec<HostIx> = (0..40).map(HostIx).collect();
        let driven = drive(&day, &placement, &mut Ours).unwrap();
        let tally = driven.world.tally();
        assert!(tally.migrations < 60 && tally.wake_ups <= 1, "{tally:?}");
        let on = driven.world.hosts.iter().filter(|host| !host.vms.is_empty()).count();
        let demand: f64 = driven.world.vms.iter().map(|vm| vm.demand).sum();
        assert!((on as f64) < demand / 5320.0 / 0.8 + 1.0, "{on} {demand}");
    }
}
