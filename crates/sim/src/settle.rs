//! The end of a run: faults stop, people stop, load stands still; then the cluster must come to rest, and stay there.

use crate::cluster::{Broken, Cluster};
use crate::qemu::{Guest, Qemu};
use drover_control::Control;
use drover_control::interface::Action;
use drover_model::intent::{PowerIntent, RunIntent, Vm};
use drover_model::plan::PlanState;
use drover_model::{HostId, MigrationId, Millis, VmId};
use drover_planner as planner;

/// For everything to be where it should be.
const SETTLE_MAX: Millis = Millis::secs(15 * 60);
/// For the planner to find nothing more to do.
const QUIET_MAX: Millis = Millis::secs(40 * 60);
/// How long nothing may move.
const QUIET_FOR: Millis = Millis::secs(10 * 60);
const LOOK_EVERY: Millis = Millis::secs(10);

impl Cluster {
    /// Stops everything that disturbs, and demands that the cluster comes to rest.
    pub fn settle(&mut self) -> Result<(), Broken> {
        self.heal();
        self.wait_settled(SETTLE_MAX)?;
        let until = self.now().plus(QUIET_MAX);
        let since = self.now();
        loop {
            self.tend();
            self.pass(LOOK_EVERY)?;
            let last = self.around.witness.tally.last_move_began.map_or(since, |at| at.max(since));
            if self.now().since(last) >= QUIET_FOR {
                break;
            }
            if self.now() >= until {
                return Err(Broken::Liveness(format!(
                    "load stands still since {QUIET_MAX}, and vms still move: the last began {} ago",
                    self.now().since(last)
                )));
            }
        }
        self.wait_settled(SETTLE_MAX)
    }

    fn wait_settled(&mut self, within: Millis) -> Result<(), Broken> {
        let until = self.now().plus(within);
        loop {
            self.tend();
            self.pass(LOOK_EVERY)?;
            match self.unsettled() {
                None => return Ok(()),
                Some(what) if self.now() >= until => return Err(Broken::Liveness(what)),
                Some(_) => {}
            }
        }
    }

    fn heal(&mut self) {
        self.around.witness.note("faults end".to_owned());
        self.faults.active = false;
        self.operator.retire();
        self.fleet.flaky = false;
        self.fleet.frozen_at = Some(self.now());
        self.shell.heal();
        for host in self.fleet.hosts.values_mut() {
            host.reachable = true;
            host.dies_in_command = false;
        }
    }

    /// What a person does whom drover has told to act: gives hosts back, switches on what should be on, starts what failed.
    fn tend(&mut self) {
        let hosts: Vec<HostId> = self.fleet.hosts.keys().cloned().collect();
        for host in &hosts {
            let Some(row) = self.around.witness.host(host).cloned() else {
                self.join(host);
                continue;
            };
            if row.maintenance {
                let _given_back = self.ask(Action::UndrainHost { host: host.clone() });
            }
            if row.power == PowerIntent::Off {
                let _on = self.ask(Action::PowerHost { host: host.clone(), on: true });
            }
            if row.power == PowerIntent::On && !self.is_on(host) && !self.is_waking(host) {
                self.start_host(host);
            }
        }
        let held =
            |control: &Control| control.migrations().filter(|m| m.paused && !m.phase.is_over()).map(|m| m.id).collect();
        let held: Vec<MigrationId> = self.control().map(held).unwrap_or_default();
        for id in held {
            let _goes_on = self.ask(Action::HoldMigration { id, held: false });
        }
        let failed: Vec<VmId> =
            self.around.witness.vms().filter(|vm| self.has_failed(vm)).map(|vm| vm.id.clone()).collect();
        for vm in failed {
            let _started = self.ask(Action::SetRun { vm, run: RunIntent::Running });
        }
    }

    fn is_waking(&self, host: &HostId) -> bool {
        let state = self.control().map(|control| control.host_status(host).state);
        state == Some(drover_model::world::HostState::Waking)
    }

    fn has_failed(&self, vm: &Vm) -> bool {
        let phase = self.control().map(|control| control.vm_status(&vm.id).phase);
        vm.run == RunIntent::Running && !vm.deleting && phase == Some("failed")
    }

    /// What is not as it should be; `None`: everything is.
    pub fn unsettled(&self) -> Option<String> {
        let Some(control) = self.control() else { return Some("the server is down".to_owned()) };
        if let Some(open) = control.migrations().find(|m| !m.phase.is_over()) {
            return Some(format!("migration {} of {} is open: {:?}", open.id, open.vm, open.phase));
        }
        let under_way = |state: &PlanState| matches!(state, PlanState::Running | PlanState::Settling);
        if let Some(plan) = control.plans().find(|plan| under_way(&plan.state)) {
            return Some(format!("plan {} is {:?}: {:?}", plan.id, plan.state, plan.steps));
        }
        let vm = self.around.witness.vms().find_map(|vm| self.vm_unsettled(control, vm));
        vm.or_else(|| self.stray()).or_else(|| self.network_unsettled(control))
    }

    fn vm_unsettled(&self, control: &Control, vm: &Vm) -> Option<String> {
        let name = &vm.spec.name;
        let executing = self.fleet.executing(&vm.id);
        let status = control.vm_status(&vm.id);
        let told = format!("{} {:?}", status.phase, status.why);
        if vm.deleting {
            return Some(format!("{name} is not gone yet: {told}"));
        }
        let Some(host) = vm.host.as_ref().filter(|_| vm.run == RunIntent::Running) else {
            let rests = vm.run == RunIntent::Stopped || self.has_no_room(control, vm);
            return (!rests || !executing.is_empty()).then(|| format!("{name} is {told}, executes on {executing:?}"));
        };
        let at_generation = self.fleet.host(host).and_then(|host| host.records.get(&vm.id)).map(|r| r.generation);
        let runs = |qemu: &Qemu| matches!(qemu.guest, Guest::Running);
        let well = executing == [host]
            && at_generation == Some(vm.generation)
            && self.fleet.process(host, &vm.id).is_some_and(runs);
        (!well).then(|| {
            format!(
                "{name} should run on {host} at {}, executes on {executing:?} at {at_generation:?}: {told}",
                vm.generation
            )
        })
    }

    /// A vm that fits nowhere waits, and that is all it can do.
    fn has_no_room(&self, control: &Control, vm: &Vm) -> bool {
        vm.host.is_none()
            && matches!(
                planner::place(&control.world(self.now()), &vm.id),
                Err(planner::Refusal::NoRoom { .. } | planner::Refusal::NeverFits { .. })
            )
    }

    /// What a host that is on holds of a vm that is not its own.
    fn stray(&self) -> Option<String> {
        for host in self.fleet.hosts.values().filter(|host| host.on) {
            let held = host.records.keys().chain(host.processes.keys());
            for vm in held {
                match self.around.witness.vm(vm) {
                    None => return Some(format!("{} still holds {vm}, which is gone", host.id)),
                    Some(row) if row.host.as_ref() != Some(&host.id) => {
                        return Some(format!("{} still holds {}, which is {:?}'s", host.id, row.spec.name, row.host));
                    }
                    Some(_) => {}
                }
            }
        }
        None
    }
}
