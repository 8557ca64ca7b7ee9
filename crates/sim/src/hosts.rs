//! Hosts as a whole: their agents, their power and its driver, and what is to be seen of them from outside.

use crate::cluster::{Cluster, NOTICE_CLOSED_MS, NOTICE_SILENT_MS, REPORT_MS};
use crate::fleet::Host;
use crate::load::Demand;
use crate::qemu::{Guest, Phase};
use crate::schedule::{Happening, QemuStep};
use crate::store::DiskFault;
use drover_control::interface::{Input, PowerOp, PowerStatus};
use drover_model::{Bytes, HostId, VmId};

const POWER_DRIVER_MS: (u64, u64) = (500, 5_000);
const BOOT_MS: (u64, u64) = (8_000, 40_000);

/// How a run of a power driver fails, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverFailure {
    /// It does what it was asked and says it did not.
    Unsaid,
    Undone,
}

impl Cluster {
    pub(crate) fn start_agent(&mut self, host: &HostId) {
        let Some(run) = self.fleet.start_agent(&mut self.around, host) else { return };
        self.around.witness.note(format!("the agent of {host} starts, run {run}"));
        let phase = self.around.dice.between(0, REPORT_MS);
        self.around.schedule.after(1, Happening::AgentDials { host: host.clone(), run });
        self.around.schedule.after(phase, Happening::AgentReports { host: host.clone(), run });
    }

    pub fn kill_agent(&mut self, host: &HostId, down_ms: u64) {
        if let Some(connection) = self.connection_of(host) {
            self.cut(connection, Some(NOTICE_CLOSED_MS), None);
        }
        self.fleet.kill_agent(host);
        self.around.schedule.after(down_ms, Happening::AgentStarts { host: host.clone() });
    }

    pub fn kill_qemu(&mut self, host: &HostId, vm: &VmId) {
        self.fleet.kill_qemu(&mut self.around, host, vm);
        self.look();
    }

    /// Ends and forgets all that is on a host, as a new installation does.
    pub(crate) fn wipe(&mut self, host: &HostId) {
        self.fleet.wipe(&mut self.around, host);
        self.kill_agent(host, 1_000);
    }

    pub(crate) fn power_off_guest(&mut self, host: &HostId, vm: &VmId) {
        if let Some(pid) = self.fleet.process(host, vm).map(|qemu| qemu.pid) {
            self.fleet.step(&mut self.around, host, vm, pid, QemuStep::PoweredDown);
        }
    }

    /// Sudden and total; it comes back by itself after a while.
    pub fn lose_host(&mut self, host: &HostId, down_ms: u64) {
        if let Some(connection) = self.connection_of(host) {
            self.cut(connection, Some(NOTICE_SILENT_MS), None);
        }
        self.fleet.power_off(&mut self.around, host);
        self.around.schedule.after(down_ms, Happening::HostStarts { host: host.clone() });
    }

    pub(crate) fn start_host(&mut self, host: &HostId) {
        let wait = self.around.dice.between(BOOT_MS.0, BOOT_MS.1);
        if let Some(row) = self.fleet.hosts.get_mut(host).filter(|host| !host.on) {
            row.on = true;
            row.boots += 1;
            if row.boot_broken {
                return;
            }
            self.around.schedule.after(wait, Happening::AgentStarts { host: host.clone() });
        }
    }

    pub(crate) fn ask_power_driver(&mut self, host: HostId, op: PowerOp) {
        let wait = self.around.dice.between(POWER_DRIVER_MS.0, POWER_DRIVER_MS.1);
        let fails = (self.faults.active && self.luck.chance(self.faults.driver_fails))
            .then(|| if self.luck.chance(0.5) { DriverFailure::Unsaid } else { DriverFailure::Undone });
        let broken = self.fleet.host(&host).is_some_and(|host| host.driver_broken);
        let fails = if broken { Some(DriverFailure::Undone) } else { fails };
        let run = self.shell.run;
        self.around.schedule.after(wait, Happening::PowerDriver { run, host, op, fails });
    }

    pub(crate) fn power_driver(&mut self, run: u64, host: &HostId, op: PowerOp, fails: Option<DriverFailure>) {
        self.around.witness.note(format!("the power driver of {host}: {op:?}, fails {fails:?}"));
        if fails != Some(DriverFailure::Undone) {
            match op {
                PowerOp::On => self.start_host(host),
                PowerOp::Off => self.driver_off(host),
                PowerOp::Status => {}
            }
        }
        if self.shell.run != run {
            return;
        }
        let on = self.fleet.host(host).is_some_and(|host| host.on);
        let result = match fails {
            Some(_) => Err("the management controller did not answer".to_owned()),
            None => Ok(if on { PowerStatus::On } else { PowerStatus::Off }),
        };
        self.step_server(Input::Power { host: host.clone(), op, result });
    }

    /// Its power driver fails from now on, whatever it is asked, or works again.
    pub fn break_driver(&mut self, host: &HostId, broken: bool) {
        if let Some(row) = self.fleet.hosts.get_mut(host) {
            row.driver_broken = broken;
        }
    }

    /// Switched on, it gets no further; or it is repaired, and goes on.
    pub fn break_boot(&mut self, host: &HostId, broken: bool) {
        let Some(row) = self.fleet.hosts.get_mut(host) else { return };
        row.boot_broken = broken;
        if !broken && row.on && row.agent.is_none() {
            self.around.schedule.after(1, Happening::AgentStarts { host: host.clone() });
        }
    }

    fn driver_off(&mut self, host: &HostId) {
        let Some(row) = self.fleet.host(host).filter(|host| host.on) else { return };
        let executing: Vec<VmId> =
            row.processes.iter().filter(|(_, qemu)| qemu.executes()).map(|(vm, _)| vm.clone()).collect();
        self.around.witness.powered_off(host, &executing);
        if let Some(connection) = self.connection_of(host) {
            self.cut(connection, Some(NOTICE_CLOSED_MS), None);
        }
        self.fleet.power_off(&mut self.around, host);
    }

    /// What a vm will want of its host from now on.
    pub fn set_demand(&mut self, vm: &VmId, demand: Demand) {
        self.fleet.demands.insert(vm.clone(), demand);
    }

    /// The network between the two ends of this vm's migration carries nothing for so long, and tells nobody.
    pub fn sever(&mut self, vm: &VmId, away_ms: u64) {
        if let Some(host) = self.sender(vm) {
            self.fleet.sever(&mut self.around, &host, vm, away_ms);
            self.look();
        }
    }

    fn sender(&self, vm: &VmId) -> Option<HostId> {
        let sends = |host: &&Host| host.processes.get(vm).is_some_and(|qemu| matches!(qemu.guest, Guest::Sending(_)));
        self.fleet.hosts.values().find(sends).map(|host| host.id.clone())
    }

    /// Migrations get this much of the network from now on, per second, and the guests of those that begin write so much.
    pub fn set_link(&mut self, link: Bytes, writes_faster: bool) {
        self.fleet.link = link;
        self.fleet.never_converge = if writes_faster { 1.0 } else { 0.0 };
    }

    /// What the source's qemu does at this moment, as nobody but the simulator knows it.
    pub fn sending(&self, vm: &VmId) -> Option<Phase> {
        let host = self.sender(vm)?;
        match &self.fleet.process(&host, vm)?.guest {
            Guest::Sending(sending) => Some(sending.phase),
            _ => None,
        }
    }

    /// What its migration sends at, per second, while it copies.
    pub fn sending_rate(&self, vm: &VmId) -> Option<Bytes> {
        let host = self.sender(vm)?;
        match &self.fleet.process(&host, vm)?.guest {
            Guest::Sending(sending) if sending.phase == Phase::PreCopy => Some(sending.rate()),
            _ => None,
        }
    }

    /// Where the guest of this vm executes.
    pub fn executing(&self, vm: &VmId) -> Vec<HostId> {
        self.fleet.executing(vm).into_iter().cloned().collect()
    }

    /// Which of its memories the guest of this vm has; a new one begins at each boot.
    pub fn incarnation(&self, vm: &VmId) -> Option<u64> {
        let host = self.fleet.executing(vm).first().copied().cloned()?;
        self.fleet.process(&host, vm)?.memory.map(|memory| memory.incarnation)
    }

    pub fn is_on(&self, host: &HostId) -> bool {
        self.fleet.host(host).is_some_and(|host| host.on)
    }

    /// The next commit finds the disk full.
    pub fn fill_disk(&mut self) {
        self.shell.store.break_next(DiskFault::Full);
    }

    /// The server dies just after its next commit is durable, before anything else of that step leaves.
    pub fn kill_server_after_commit(&mut self) {
        self.shell.die_at_commit(true);
    }

    /// What happened last, for whoever looks for a cause.
    pub fn trace(&self) -> Vec<String> {
        self.around.witness.trace().cloned().collect()
    }
}
