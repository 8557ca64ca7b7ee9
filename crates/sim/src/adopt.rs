//! An agent that starts takes over what it finds: its records say what was to be done, the processes what was.

use crate::agent::{Agent, Notice, Role, SendStep, set_step};
use crate::fleet::{Around, End, Fleet};
use crate::qemu::{Guest, Phase};
use crate::schedule::Happening;
use drover_model::{HostId, VmId};

impl Fleet {
    /// A new run of the agent: takes over what it finds.
    pub fn start_agent(&mut self, around: &mut Around, host: &HostId) -> Option<u64> {
        let row = self.hosts.get_mut(host).filter(|host| host.on && host.agent.is_none())?;
        row.agent_runs += 1;
        let run = row.agent_runs;
        row.agent = Some(Agent { run, connection: None });
        let vms: Vec<VmId> = row.records.keys().cloned().collect();
        for vm in &vms {
            self.adopt(around, host, run, vm);
        }
        Some(run)
    }

    fn adopt(&mut self, around: &mut Around, host: &HostId, run: u64, vm: &VmId) {
        let Some(row) = self.hosts.get(host) else { return };
        let Some(record) = row.records.get(vm).cloned() else { return };
        let Some(guest) = row.processes.get(vm).map(|qemu| &qemu.guest) else {
            let role = match record.role {
                Role::Stop { .. } | Role::Stopped => Role::Stopped,
                Role::Failed { .. } | Role::IncomingFailed { .. } => record.role,
                Role::Run | Role::Receive { .. } | Role::Send { .. } => {
                    Role::Failed { why: "it ended while no agent watched".to_owned() }
                }
            };
            return self.write(host, vm, |record| record.role = role);
        };
        match (record.role, guest) {
            (Role::Stop { grace }, _) => self.power_button(around, host, vm, grace),
            (Role::Run, Guest::Sent | Guest::Sending(_)) => self.run_on(around, host, vm),
            (Role::Receive { .. }, Guest::Starting | Guest::Running) => {
                self.noticed(around, host, vm, Notice::Arrived);
            }
            (Role::Send { .. }, Guest::Sent) => {
                self.write(host, vm, |record| set_step(record, SendStep::HandedOver));
            }
            (Role::Send { migration, step, .. }, Guest::Sending(sending)) => match (sending.phase, step) {
                (Phase::PreCopy, _) => {
                    let left = sending.time_left(around.schedule.now);
                    let too_long = Happening::CopyTooLong { host: host.clone(), run, vm: vm.clone(), migration };
                    around.schedule.after(left.0, too_long);
                }
                (Phase::AtSwitchOver, SendStep::Copying) => self.noticed(around, host, vm, Notice::AtSwitchOver),
                // The commit was written down, and perhaps not told to qemu.
                (Phase::AtSwitchOver, SendStep::Committed | SendStep::HandedOver) => self.switch_over(around, host, vm),
                (Phase::SwitchingOver | Phase::StandsStill | Phase::PostCopy | Phase::PostCopyPaused, _) => {}
            },
            (Role::Send { .. }, _) => {
                self.noticed(around, host, vm, Notice::SourceBack { why: "it ended while no agent watched" });
            }
            (Role::Stopped | Role::Failed { .. } | Role::IncomingFailed { .. }, _) => {
                self.end_process(around, host, vm, End::Command("an adoption"));
            }
            (Role::Run | Role::Receive { .. }, _) => {}
        }
    }
}
