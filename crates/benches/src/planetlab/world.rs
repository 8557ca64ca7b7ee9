//! The benchmark's data centre (Beloglazov and Buyya, CCPE 24(13), 2012, doi 10.1002/cpe.1867), as its simulator computes it.
//!
//! ```text
//!  t = 0: vms placed ─▶ round at 300.1 ─▶ migrations end, each RAM / 62.5 MB/s later ─▶ round at 600.1 ─▶ ... 86100.1
//!                        │ loads, shares, energy, empty vms leave; then the policy moves vms
//! ```
//!
//! - Between two updates a host draws the mean of the power before and after. One without load draws nothing, and so
//!   waking one costs all of its power.
//! - A vm on its way has 90 % of its share at its source, and weighs 10 % at its target, which counts as short of
//!   processor for as long as that lasts.
//! - Memory and bandwidth bind when vms are placed at the beginning, and never again.
//! - A vm that asks for exactly nothing is over and leaves for good.

use super::day::{Day, SPAN_S};
use super::kinds::{HOSTS, HostKind, VmKind};
use super::metrics::{HostRecord, Tally, VmRecord};
use super::share::{Claim, LEAVING_SHARE, Way, share};

/// Rounds of a day.
pub const ROUNDS: usize = 287;
/// When the vms' tasks begin; rounds are whole spans after it.
const BEGIN_S: f64 = 0.1;

/// When a round is, counted from 0.
pub fn round_s(round: usize) -> f64 {
    BEGIN_S + SPAN_S * (round + 1) as f64
}

/// A vm, by its place in the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmIx(pub usize);

/// A host, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostIx(pub usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub vm: VmIx,
    pub to: HostIx,
}

/// Why a move can't be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    #[error("there is no host {0}")]
    NoSuchHost(usize),
    #[error("vm {0} is over, or there is none")]
    NoSuchVm(usize),
    #[error("vm {0} is in migration")]
    InMigration(usize),
    #[error("vm {0} is on host {1} already, or on its way there")]
    ThereAlready(usize, usize),
}

#[derive(Debug)]
pub struct Vm {
    pub kind: &'static VmKind,
    /// Where it runs; `None`: it is over.
    pub host: Option<HostIx>,
    pub in_migration: bool,
    /// MIPS asked for now.
    pub demand: f64,
    /// 0 to 1 of its processor, asked for at each round up to now.
    pub history: Vec<f64>,
    record: Option<VmRecord>,
}

#[derive(Debug)]
pub struct Host {
    pub kind: &'static HostKind,
    /// In the order in which they came, those on their way here among them.
    pub vms: Vec<VmIx>,
    /// Those on their way here.
    pub arriving: Vec<VmIx>,
    /// MIPS given to its vms at the last update, and at the one before.
    given: f64,
    given_before: f64,
    record: Option<HostRecord>,
}

impl Host {
    fn empty(kind: &'static HostKind) -> Self {
        Self { kind, vms: Vec::new(), arriving: Vec::new(), given: 0.0, given_before: 0.0, record: None }
    }

    /// 0 to 1, at the last update. 0: it is off.
    pub fn utilisation(&self) -> f64 {
        (self.given / self.kind.mips).min(1.0)
    }

    fn utilisation_before(&self) -> f64 {
        (self.given_before / self.kind.mips).min(1.0)
    }
}

#[derive(Debug)]
struct Arrival {
    at_s: f64,
    vm: VmIx,
    to: HostIx,
}

pub struct World<'a> {
    day: &'a Day,
    now_s: f64,
    pub vms: Vec<Vm>,
    pub hosts: Vec<Host>,
    /// In the order in which they began.
    arrivals: Vec<Arrival>,
    tally: Tally,
}

impl<'a> World<'a> {
    /// The vms of a day, each on the host that `placement` names for it.
    pub fn new(day: &'a Day, placement: &[HostIx]) -> Self {
        let count = day.loads.len();
        assert_eq!(placement.len(), count, "each vm has a host at first");
        let mut hosts: Vec<Host> = (0..HOSTS).map(|host| Host::empty(HostKind::of(host))).collect();
        for (ix, host) in placement.iter().enumerate() {
            hosts[host.0].vms.push(VmIx(ix));
        }
        let vms = placement.iter().enumerate().map(|(ix, host)| Vm::new(VmKind::of(ix, count), *host)).collect();
        Self { day, now_s: BEGIN_S, vms, hosts, arrivals: Vec::new(), tally: Tally::default() }
    }

    /// Whether the day has another round, and if so goes on to it.
    pub fn advance(&mut self) -> bool {
        let rounds_before = self.tally.rounds;
        if rounds_before == ROUNDS {
            self.land();
            return false;
        }
        self.land();
        self.update(round_s(rounds_before));
        for (vm, load) in self.vms.iter_mut().zip(&self.day.loads) {
            if vm.host.is_some() {
                vm.history.push(load.at(self.now_s));
            }
        }
        self.tally.rounds += 1;
        true
    }

    /// Begins these moves. A vm may be named twice: it then goes on from the first host to the second. If one of
    /// them can't be, none begins.
    pub fn begin(&mut self, moves: &[Move]) -> Result<(), Illegal> {
        for (ix, step) in moves.iter().enumerate() {
            self.check(*step, &moves[..ix])?;
        }
        for step in moves {
            let vm = &mut self.vms[step.vm.0];
            vm.in_migration = true;
            let source = vm.host.expect("a vm that is over does not move");
            self.arrivals.push(Arrival { at_s: self.now_s + vm.kind.migration_s(), vm: step.vm, to: step.to });
            let target = &mut self.hosts[step.to.0];
            target.arriving.push(step.vm);
            target.vms.push(step.vm);
            self.refresh(step.to);
            self.refresh(source);
            self.tally.migrations += 1;
        }
        Ok(())
    }

    fn check(&self, step: Move, before: &[Move]) -> Result<(), Illegal> {
        let (vm, to) = (step.vm.0, step.to.0);
        if to >= self.hosts.len() {
            return Err(Illegal::NoSuchHost(to));
        }
        let Some(host) = self.vms.get(vm).and_then(|vm| vm.host) else { return Err(Illegal::NoSuchVm(vm)) };
        if self.vms[vm].in_migration {
            return Err(Illegal::InMigration(vm));
        }
        if host == step.to || before.contains(&step) {
            return Err(Illegal::ThereAlready(vm, to));
        }
        Ok(())
    }

    /// What the day has come to so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Ends every migration, those that end at one time together. All do before the next round.
    fn land(&mut self) {
        self.arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        let arrivals = std::mem::take(&mut self.arrivals);
        for together in arrivals.chunk_by(|a, b| a.at_s == b.at_s) {
            self.update(together[0].at_s);
            for arrival in together {
                self.arrive(arrival);
            }
            self.update(together[0].at_s);
        }
    }

    fn arrive(&mut self, arrival: &Arrival) {
        let vm = &mut self.vms[arrival.vm.0];
        vm.in_migration = false;
        let source = vm.host.replace(arrival.to).expect("a vm in migration is not over");
        self.hosts[source.0].vms.retain(|on| *on != arrival.vm);
        let target = &mut self.hosts[arrival.to.0];
        target.arriving.retain(|on| *on != arrival.vm);
        target.vms.retain(|on| *on != arrival.vm);
        target.vms.push(arrival.vm);
    }

    /// Loads, shares and records as of now, the energy up to now, and vms that ask for nothing leave.
    fn update(&mut self, now_s: f64) {
        let span_s = now_s - self.now_s;
        self.now_s = now_s;
        for (vm, load) in self.vms.iter_mut().zip(&self.day.loads) {
            vm.demand = if vm.host.is_some() { load.at(now_s) * vm.kind.mips } else { 0.0 };
        }
        let mut joules = 0.0;
        for ix in 0..self.hosts.len() {
            self.refresh(HostIx(ix));
            let host = &self.hosts[ix];
            if span_s > 0.0 && host.given_before > 0.0 {
                let power = |utilisation| host.kind.power(utilisation);
                joules += (power(host.utilisation_before()) + power(host.utilisation())) / 2.0 * span_s;
            }
        }
        self.tally.joules += joules;
        let vms = &mut self.vms;
        for host in self.hosts.iter_mut() {
            host.vms.retain(|ix| {
                let vm = &mut vms[ix.0];
                let over = vm.demand == 0.0 && !vm.in_migration;
                if over {
                    vm.host = None;
                }
                !over
            });
        }
    }

    /// Shares a host's processors anew and records who got what.
    fn refresh(&mut self, ix: HostIx) {
        let host = &mut self.hosts[ix.0];
        let claims = host.vms.iter().map(|vm| {
            let (demand, in_migration) = (self.vms[vm.0].demand, self.vms[vm.0].in_migration);
            let arriving = in_migration && host.arriving.contains(vm);
            Claim { demand, way: Way::of(in_migration, arriving) }
        });
        let claims: Vec<Claim> = claims.collect();
        let shares = share(host.kind, &claims);
        let (mut given, mut asked) = (0.0, 0.0);
        for ((vm, claim), share) in host.vms.iter().zip(&claims).zip(&shares.each) {
            if claim.way != Way::Arriving {
                let record = VmRecord {
                    at_s: self.now_s,
                    given: *share,
                    asked: claim.demand,
                    in_migration: claim.way == Way::Leaving,
                };
                self.tally.vm(&mut self.vms[vm.0].record, record);
            }
            given += if claim.way == Way::Leaving { share / LEAVING_SHARE } else { *share };
            asked += claim.demand;
        }
        host.given_before = std::mem::replace(&mut host.given, given);
        self.tally.host(&mut host.record, HostRecord { at_s: self.now_s, given, asked });
    }
}

impl Vm {
    fn new(kind: &'static VmKind, host: HostIx) -> Self {
        let history = Vec::with_capacity(ROUNDS);
        Self { kind, host: Some(host), in_migration: false, demand: 0.0, history, record: None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::day::tests::{made_up, steady};
    use super::*;

    fn to(vm: usize, host: usize) -> Move {
        Move { vm: VmIx(vm), to: HostIx(host) }
    }

    /// Four vms, one of each kind.
    fn placed(hosts: [usize; 4]) -> Vec<HostIx> {
        hosts.into_iter().map(HostIx).collect()
    }

    #[test]
    fn energy_begins_with_the_first_round_and_an_empty_host_draws_nothing() {
        let day = steady(&[40, 0, 0, 0]);
        let mut world = World::new(&day, &placed([1, 1, 2, 3]));
        while world.advance() {}
        let watts = world.hosts[1].kind.power(1000.0 / 5320.0);
        assert!((world.tally().joules - watts * 286.0 * 300.0).abs() < 1e-3);
        assert_eq!(world.hosts[1].vms, [VmIx(0)], "what asks for nothing is over");
        assert_eq!(world.begin(&[to(1, 5)]), Err(Illegal::NoSuchVm(1)));
    }

    #[test]
    fn a_move_takes_its_time_costs_a_tenth_and_leaves_its_source_off() {
        let day = steady(&[40, 50, 0, 0]);
        let mut world = World::new(&day, &placed([1, 3, 5, 7]));
        world.advance();
        world.begin(&[to(0, 3)]).unwrap();
        assert_eq!(world.begin(&[to(0, 5)]), Err(Illegal::InMigration(0)));
        world.advance();
        assert_eq!((world.hosts[1].vms.len(), world.hosts[1].utilisation()), (0, 0.0));
        assert_eq!(
            (world.hosts[3].vms.as_slice(), world.vms[0].host),
            ([VmIx(1), VmIx(0)].as_slice(), Some(HostIx(3)))
        );
        let tally = world.tally();
        // Both vms over a span; the moving one misses a tenth for 870 MB / 62.5 MB/s, and for as long its target is short.
        assert!((tally.pdm() - 0.1 * 1000.0 * 13.92 / (2000.0 * 300.0)).abs() < 1e-9, "{tally:?}");
        assert!((tally.slatah() - 13.92 / (300.0 + 13.92)).abs() < 1e-9, "{tally:?}");
        let power = |mips: f64| world.hosts[1].kind.power(mips / 5320.0);
        let moving = (power(1000.0) + power(1000.0) + power(1100.0) + power(1000.0)) / 2.0;
        let wanted = moving * 13.92 + power(2000.0) * (300.0 - 13.92);
        // The span in which the target's load goes from 1100 to 2000 MIPS ends with the arrival.
        assert!((tally.joules / wanted - 1.0).abs() < 0.01, "{} {wanted}", tally.joules);
        assert_eq!((tally.migrations, tally.wake_ups), (1, 0));
    }

    #[test]
    fn a_wake_up_is_counted_and_illegal_moves_change_nothing() {
        let day = steady(&[40, 50, 10, 10]);
        let mut world = World::new(&day, &placed([1, 1, 1, 1]));
        world.advance();
        assert_eq!(world.begin(&[to(0, 2), to(1, 1)]), Err(Illegal::ThereAlready(1, 1)));
        assert_eq!(world.begin(&[to(0, 2), to(0, 2)]), Err(Illegal::ThereAlready(0, 2)));
        assert_eq!(world.begin(&[to(0, 2), to(0, HOSTS)]), Err(Illegal::NoSuchHost(HOSTS)));
        assert_eq!((world.tally().migrations, world.vms[0].in_migration), (0, false));
        world.begin(&[to(0, 2), to(0, 3)]).unwrap();
        world.advance();
        assert_eq!((world.tally().migrations, world.tally().wake_ups), (2, 2));
        assert_eq!((world.vms[0].host, world.hosts[2].vms.len()), (Some(HostIx(3)), 0));
    }

    #[test]
    fn a_policy_knows_each_round_up_to_now_and_none_beyond() {
        let day = made_up(4, |_, sample| sample.min(100) as u8);
        let mut world = World::new(&day, &placed([1, 1, 1, 1]));
        for round in 0..3 {
            assert!(world.advance());
            assert_eq!(world.vms[0].history.len(), round + 1);
        }
        let tenth_second = 0.01 * 0.1 / 300.0;
        assert!((world.vms[0].history[2] - (0.03 + tenth_second)).abs() < 1e-12);
        assert!((world.vms[0].demand - world.vms[0].history[2] * 2500.0).abs() < 1e-9);
        assert_eq!((3..).take_while(|_| world.advance()).count() + 3, ROUNDS);
    }
}
