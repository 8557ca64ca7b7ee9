//! Hosts as they would be after what a round has decided so far.

use super::super::kinds::HostKind;
use super::super::share::{Claim, Way, share};
use super::super::world::{Vm, VmIx, World};
use super::detector::HISTORY;

#[derive(Debug, Clone, Default)]
pub struct Sketched {
    pub vms: Vec<VmIx>,
    pub mips: f64,
    /// MIPS all vms ask for.
    pub requested: f64,
    /// MIPS they get, and what is left.
    pub given: f64,
    pub left: f64,
    /// The load of the vms now on it at each of the last rounds, 0 to 1 of the host, the newest first.
    pub history: [f64; HISTORY],
}

impl Sketched {
    pub fn new(kind: &HostKind, vms: Vec<VmIx>, world: &World<'_>) -> Self {
        let mut host = Sketched { vms, mips: kind.mips, ..Self::default() };
        host.recount(kind, world);
        host
    }

    pub fn add(&mut self, ix: VmIx, kind: &HostKind, world: &World<'_>) {
        self.vms.push(ix);
        self.recount(kind, world);
    }

    pub fn remove(&mut self, ix: VmIx, kind: &HostKind, world: &World<'_>) {
        self.vms.retain(|on| *on != ix);
        self.recount(kind, world);
    }

    /// The loads with one vm more. What vms get stays as it was.
    pub fn load_with(&self, vm: &Vm) -> Sketched {
        let mut with = Sketched { vms: Vec::new(), ..*self };
        with.count_load(vm);
        with
    }

    fn recount(&mut self, kind: &HostKind, world: &World<'_>) {
        (self.requested, self.history) = (0.0, [0.0; HISTORY]);
        let vms = std::mem::take(&mut self.vms);
        for ix in &vms {
            self.count_load(&world.vms[ix.0]);
        }
        let claim = |ix: &VmIx| Claim { demand: world.vms[ix.0].demand, way: Way::Staying };
        let shares = share(kind, &vms.iter().map(claim).collect::<Vec<_>>());
        (self.given, self.left) = (shares.each.iter().sum(), shares.left);
        self.vms = vms;
    }

    fn count_load(&mut self, vm: &Vm) {
        self.requested += vm.demand;
        for (sum, value) in self.history.iter_mut().zip(vm.history.iter().rev()) {
            *sum += value * vm.kind.mips / self.mips;
        }
    }
}
