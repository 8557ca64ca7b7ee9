//! A small cluster without faults, and how to ask it things.

use drover_control::interface::{Action, Refusal, Reply};
use drover_model::inventory::Capacity;
use drover_model::migration::{Method, MigrationPhase};
use drover_model::policy::{Mode, Policy};
use drover_model::world::HostState;
use drover_model::{Bytes, CpuMillis, HostId, MigrationId, Millis, VmId};
use drover_sim::{Cluster, Demand, VmRequest};

pub const MINUTE: Millis = Millis::secs(60);
pub const MEMORY: Bytes = Bytes::mib(512);

pub struct Scene {
    pub cluster: Cluster,
}

impl Scene {
    /// Hosts of four cores and four gibibytes; the planner watches and does nothing.
    pub fn new(hosts: usize) -> Self {
        let capacity = Capacity { cpu: CpuMillis(4_000), memory: Bytes::mib(4_096) };
        let mut cluster = Cluster::new(1, &vec![capacity; hosts], hosts).unwrap();
        cluster.pass(Millis::secs(5)).unwrap();
        let mut scene = Self { cluster };
        scene.policy(|policy| policy.mode = Mode::Observe);
        scene
    }

    pub fn policy(&mut self, change: impl FnOnce(&mut Policy)) {
        let mut policy = Policy::default();
        change(&mut policy);
        self.ask(Action::SetPolicy { policy: Box::new(policy) }).unwrap();
    }

    pub fn ask(&mut self, ask: Action) -> Result<Reply, Refusal> {
        self.cluster.ask(ask)
    }

    pub fn wait(&mut self, what: &str, holds: impl FnMut(&Cluster) -> bool) {
        if let Err(broken) = self.cluster.wait_for(what, Millis(10 * MINUTE.0), holds) {
            panic!("{broken}\n{}", self.cluster.trace().join("\n"));
        }
    }

    pub fn settle(&mut self) {
        if let Err(broken) = self.cluster.settle() {
            panic!("{broken}\n{}", self.cluster.trace().join("\n"));
        }
    }

    /// A running vm with a steady demand, on this host.
    pub fn vm(&mut self, on: &HostId, demand: f64) -> VmId {
        let request = VmRequest { vcpus: 2, memory: MEMORY, anti_affinity: None, pinned_to: vec![on.clone()] };
        let vm = self.cluster.create_vm(&request).unwrap();
        self.load(&vm, demand);
        self.wait("the vm runs", |cluster| runs_on(cluster, &vm, on));
        vm
    }

    /// The same, free to go anywhere: wherever it was placed, it is moved to `on`.
    pub fn free_vm(&mut self, on: &HostId, demand: f64) -> VmId {
        let request = VmRequest { vcpus: 2, memory: MEMORY, ..VmRequest::default() };
        let vm = self.cluster.create_vm(&request).unwrap();
        self.load(&vm, demand);
        self.wait("the vm runs", |cluster| seen_running(cluster, &vm));
        if !runs_on(&self.cluster, &vm, on) {
            self.migrate(&vm, on);
            self.wait("the vm is where the test wants it", |cluster| runs_on(cluster, &vm, on) && all_over(cluster));
        }
        vm
    }

    pub fn load(&mut self, vm: &VmId, share: f64) {
        self.cluster.set_demand(vm, Demand::constant(2, MEMORY, share));
    }

    pub fn migrate(&mut self, vm: &VmId, to: &HostId) -> MigrationId {
        self.migrate_by(vm, to, None)
    }

    pub fn migrate_by(&mut self, vm: &VmId, to: &HostId, method: Option<Method>) -> MigrationId {
        match self.ask(Action::MigrateVm { vm: vm.clone(), to: Some(to.clone()), method }) {
            Ok(Reply::Migration(id)) => id,
            other => panic!("{vm} does not move to {to}: {other:?}"),
        }
    }

    pub fn phase(&self, id: MigrationId) -> Option<MigrationPhase> {
        phase(&self.cluster, id)
    }

    pub fn told(&self, kind: &str) -> bool {
        let control = self.cluster.control().unwrap();
        control.events(drover_model::EventSeq(0), usize::MAX).iter().any(|event| event.kind == kind)
    }
}

pub fn phase(cluster: &Cluster, id: MigrationId) -> Option<MigrationPhase> {
    Some(cluster.control()?.migration(id)?.phase.clone())
}

pub fn all_over(cluster: &Cluster) -> bool {
    cluster.control().is_some_and(|control| control.migrations().all(|m| m.phase.is_over()))
}

pub fn runs_on(cluster: &Cluster, vm: &VmId, host: &HostId) -> bool {
    cluster.executing(vm) == [host.clone()] && seen_running(cluster, vm)
}

pub fn seen_running(cluster: &Cluster, vm: &VmId) -> bool {
    cluster.control().is_some_and(|control| control.vm_status(vm).phase == "running")
}

pub fn state(cluster: &Cluster, host: &HostId) -> Option<HostState> {
    cluster.control().map(|control| control.host_status(host).state)
}
