//! A virtual agent: the rules of generations, the durable record of each vm, and adoption after a restart, as
//! `drover agent` has them. It decides nothing.
//!
//! The record is written before anything is done, so an agent that dies in between finds on its return what it was
//! about to do. What ended while no agent watched is reported as failed, never as "did not arrive": nobody saw that.

use crate::fleet::{Around, End, Fleet, Host};
use crate::qemu::{Guest, Phase, Qemu, Sending};
use crate::schedule::{Happening, QemuStep};
use drover_control::interface::{AgentMessage, ConnectionId};
use drover_model::admission::{Admission, Known, admit};
use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationTarget, MigrationUpdate, VmRun};
use drover_model::inventory::{Accelerator, HostFacts, MigrationFeature, OutgoingPhase, VmInventory, VmState};
use drover_model::migration::{DowntimePhases, MigrationProgress, MigrationReport, Strategy};
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, CommandId, Generation, HostId, MigrationId, Millis, TimeMs, VmId};

/// Share of starts and of preparations that fail on a flaky host.
const LAUNCH_FAILS: f64 = 0.02;
/// Share of guests that do not heed the power button.
const IGNORES_BUTTON: f64 = 0.1;

/// One run of the agent.
#[derive(Debug)]
pub struct Agent {
    pub run: u64,
    pub connection: Option<ConnectionId>,
}

/// What an agent keeps on its disk of one vm.
#[derive(Debug, Clone)]
pub struct Record {
    pub run: VmRun,
    pub generation: Generation,
    pub role: Role,
    pub arrived_by: Option<MigrationId>,
}

#[derive(Debug, Clone)]
pub enum Role {
    Run,
    Stop {
        grace: Millis,
    },
    Receive {
        migration: MigrationId,
        /// When the guest began to run here by post-copy, on the host's clock.
        since: Option<TimeMs>,
    },
    Send {
        migration: MigrationId,
        limits: MigrationPolicy,
        step: SendStep,
    },
    Stopped,
    Failed {
        why: String,
    },
    IncomingFailed {
        migration: MigrationId,
        why: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendStep {
    Copying,
    Committed,
    HandedOver,
}

/// What an agent sees its processes do.
#[derive(Debug, Clone)]
pub enum Notice {
    Progress {
        throughput: Bytes,
    },
    AtSwitchOver,
    HandedOver {
        transferred: Bytes,
        post_copied: Bytes,
        throughput: Bytes,
        dirty_rate: Bytes,
        rounds: u64,
        commit: Millis,
        copy: Millis,
    },
    WillNotConverge,
    Stalled,
    /// The guest runs here, with part of its memory elsewhere.
    Completes,
    SourceBack {
        why: &'static str,
    },
    Arrived,
    IncomingBroken,
    Ended {
        by_wish: bool,
    },
}

type Answer = Result<CommandOutcome, CommandRefusal>;

/// What the agent would report of a vm.
fn state_of(record: &Record, process: Option<&Qemu>) -> VmState {
    match &record.role {
        Role::Run => match process.map(|qemu| &qemu.guest) {
            Some(Guest::Starting) => VmState::Starting,
            Some(_) => VmState::Running,
            None => VmState::Failed { why: "its qemu is gone".to_owned() },
        },
        Role::Stop { .. } => VmState::Stopping,
        Role::Receive { migration, .. } => match process.map(|qemu| &qemu.guest) {
            Some(Guest::Completing(completing)) => {
                VmState::Completing { migration: *migration, stalled: completing.stalled_at.is_some() }
            }
            _ => VmState::Incoming { migration: *migration },
        },
        Role::Send { migration, step: SendStep::HandedOver, .. } => VmState::HandedOver { migration: *migration },
        Role::Send { migration, step, .. } => {
            let phase = match process.map(|qemu| &qemu.guest) {
                Some(Guest::Sending(sending)) => match sending.phase {
                    Phase::PreCopy => OutgoingPhase::PreCopy,
                    Phase::AtSwitchOver if *step == SendStep::Copying => OutgoingPhase::AtSwitchOver,
                    Phase::AtSwitchOver | Phase::SwitchingOver | Phase::StandsStill => OutgoingPhase::SwitchingOver,
                    Phase::PostCopy => OutgoingPhase::PostCopy,
                    Phase::PostCopyPaused => OutgoingPhase::PostCopyPaused,
                },
                _ => OutgoingPhase::PreCopy,
            };
            VmState::Outgoing { migration: *migration, phase }
        }
        Role::Stopped => VmState::Stopped,
        Role::Failed { why } => VmState::Failed { why: why.clone() },
        Role::IncomingFailed { migration, why } => VmState::IncomingFailed { migration: *migration, why: why.clone() },
    }
}

impl Host {
    pub fn inventory(&self) -> Vec<VmInventory> {
        let vms = self.records.iter().map(|(vm, record)| {
            let process = self.processes.get(vm);
            VmInventory {
                vm: vm.clone(),
                generation: record.generation,
                state: state_of(record, process),
                pid: process.map(|qemu| qemu.pid),
            }
        });
        vms.collect()
    }

    pub fn facts(&self) -> HostFacts {
        HostFacts {
            agent_version: "sim".to_owned(),
            qemu_version: "sim".to_owned(),
            kernel: "sim".to_owned(),
            accelerator: Accelerator::Tcg,
            accelerator_why: "simulated".to_owned(),
            cpu_model: "sim".to_owned(),
            capacity: self.capacity,
            networks: ["net0"].iter().filter_map(|name| name.parse().ok()).collect(),
            overlay_address: Some(self.address),
            machine_types: ["q35".to_owned()].into(),
            cpu_features: Default::default(),
            migration_features: [MigrationFeature::PostCopy, MigrationFeature::Multifd, MigrationFeature::Tls].into(),
            boot_id: format!("{}-boot-{}", self.id, self.boots),
            agent_run: format!("{}-agent-{}", self.id, self.agent_runs),
        }
    }

    pub fn clock(&self, now: TimeMs) -> TimeMs {
        TimeMs(now.0 + self.clock_ahead_ms)
    }
}

/// Commands.
impl Fleet {
    /// The answer goes out with the host's other messages; none if the agent died over it.
    pub fn command(&mut self, around: &mut Around, host: &HostId, id: CommandId, command: &Command) {
        let Some(row) = self.hosts.get(host) else { return };
        let vm = command.vm();
        let state = row.records.get(vm).map(|record| state_of(record, row.processes.get(vm)));
        let known = row.records.get(vm).zip(state.as_ref()).map(|(record, state)| Known {
            run: &record.run,
            generation: record.generation,
            state,
            arrived_by: record.arrived_by,
        });
        let admission = admit(known, command);
        around.witness.note(format!("{host} takes {} of {vm}: {admission:?}", word(command)));
        let answer = match admission {
            Admission::Act => {
                around.witness.takes_effect(host, command);
                if let Some(lack) = self.host(host).and_then(|host| host.lacks_network(command)) {
                    around.witness.broken(lack);
                }
                self.act(around, host, command)
            }
            Admission::Repeat => Some(self.repeat(host, command)),
            Admission::Refuse(refusal) => Some(Err(refusal)),
        };
        if let Some(answer) = answer {
            self.outbox.push((host.clone(), AgentMessage::Answer { id, answer }));
        }
    }

    fn repeat(&self, host: &HostId, command: &Command) -> Answer {
        match command {
            Command::PrepareIncoming { run, .. } => self.listening(host, &run.vm),
            Command::Run { .. }
            | Command::Stop { .. }
            | Command::Release { .. }
            | Command::MigrateOut { .. }
            | Command::CommitSwitchOver { .. }
            | Command::CancelMigration { .. }
            | Command::TakeBack { .. }
            | Command::AdjustMigration { .. }
            | Command::RecoverIncoming { .. }
            | Command::RecoverOutgoing { .. }
            | Command::MeasureDirtyRate { .. } => Ok(CommandOutcome::Done),
        }
    }

    fn listening(&self, host: &HostId, vm: &VmId) -> Answer {
        let target = self.host(host).zip(self.process(host, vm)).map(|(host, qemu)| MigrationTarget {
            host: host.id.clone(),
            address: host.address,
            port: port_of(qemu.pid),
            relay: None,
        });
        target.map(|target| CommandOutcome::Listening { target }).ok_or(CommandRefusal::UnknownVm)
    }

    /// `None`: the agent died between writing it down and doing it.
    fn act(&mut self, around: &mut Around, host: &HostId, command: &Command) -> Option<Answer> {
        match command {
            Command::Run { run, generation } => self.run(around, host, run, *generation),
            Command::Stop { vm, generation, grace } => Some(self.stop(around, host, vm, *generation, *grace)),
            Command::Release { vm, .. } => {
                self.end_process(around, host, vm, End::Command("a release"));
                if self.dies_in_command(around, host) {
                    return None;
                }
                self.forget(host, vm);
                Some(Ok(CommandOutcome::Done))
            }
            Command::PrepareIncoming { run, generation, migration, .. } => {
                self.prepare(around, host, run, *generation, *migration)
            }
            Command::MigrateOut { vm, migration, target, limits, strategy, .. } => {
                self.migrate_out(around, host, vm, *migration, target, (*limits, *strategy))
            }
            Command::CommitSwitchOver { vm, .. } => {
                self.write(host, vm, |record| set_step(record, SendStep::Committed));
                if self.dies_in_command(around, host) {
                    return None;
                }
                self.switch_over(around, host, vm);
                Some(Ok(CommandOutcome::Done))
            }
            Command::CancelMigration { vm, .. } => Some(self.cancel(around, host, vm)),
            Command::TakeBack { vm, generation, .. } => self.take_back(around, host, vm, *generation),
            Command::AdjustMigration { vm, pace, .. } => {
                if let Some(sending) = self.process_mut(host, vm).and_then(Qemu::sending) {
                    sending.set_pace(around.schedule.now, *pace);
                }
                Some(Ok(CommandOutcome::Done))
            }
            Command::RecoverIncoming { vm, .. } => {
                if self.dies_in_command(around, host) {
                    return None;
                }
                Some(if self.listen_anew(host, vm) {
                    self.listening(host, vm)
                } else {
                    Err(CommandRefusal::Failed { why: "its memory is on its way again".to_owned() })
                })
            }
            Command::RecoverOutgoing { vm, .. } => {
                if self.dies_in_command(around, host) {
                    return None;
                }
                self.connect_anew(around, host, vm);
                Some(Ok(CommandOutcome::Done))
            }
            // Its guests write as fast as their demand says: there is nothing to measure.
            Command::MeasureDirtyRate { .. } => Some(Ok(CommandOutcome::Done)),
        }
    }

    fn run(&mut self, around: &mut Around, host: &HostId, run: &VmRun, generation: Generation) -> Option<Answer> {
        let vm = &run.vm;
        if self.process(host, vm).is_some_and(|qemu| matches!(qemu.guest, Guest::Starting | Guest::Running)) {
            self.write(host, vm, |record| record.generation = generation);
            return Some(Ok(CommandOutcome::Done));
        }
        self.end_process(around, host, vm, End::Command("a start"));
        self.put(host, Record { run: run.clone(), generation, role: Role::Run, arrived_by: None });
        if self.dies_in_command(around, host) {
            return None;
        }
        if self.flaky && around.dice.chance(LAUNCH_FAILS) {
            let why = "no memory for it".to_owned();
            self.write(host, vm, |record| record.role = Role::Failed { why: why.clone() });
            return Some(Err(CommandRefusal::Failed { why }));
        }
        let pid = self.launch(around, host, vm, run.memory, Guest::Starting);
        let wait = around.dice.between(100, 2_000);
        let step = QemuStep::Started;
        around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
        Some(Ok(CommandOutcome::Done))
    }

    fn stop(&mut self, around: &mut Around, host: &HostId, vm: &VmId, generation: Generation, grace: Millis) -> Answer {
        let role = if self.process(host, vm).is_some() { Role::Stop { grace } } else { Role::Stopped };
        self.write(host, vm, |record| {
            record.generation = generation;
            record.role = role;
        });
        self.power_button(around, host, vm, grace);
        Ok(CommandOutcome::Done)
    }

    pub fn power_button(&mut self, around: &mut Around, host: &HostId, vm: &VmId, grace: Millis) {
        let Some(run) = self.host(host).and_then(|host| host.agent.as_ref()).map(|agent| agent.run) else { return };
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let (pid, heeded) = (qemu.pid, matches!(qemu.guest, Guest::PoweringDown));
        if !heeded {
            qemu.guest = Guest::PoweringDown;
            if !around.dice.chance(IGNORES_BUTTON) {
                let wait = around.dice.between(300, 6_000);
                let step = QemuStep::PoweredDown;
                around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
            }
        }
        let (host, vm) = (host.clone(), vm.clone());
        around.schedule.after(grace.0, Happening::StopGraceOver { host, run, vm, pid });
    }

    fn prepare(
        &mut self,
        around: &mut Around,
        host: &HostId,
        run: &VmRun,
        generation: Generation,
        migration: MigrationId,
    ) -> Option<Answer> {
        let vm = &run.vm;
        self.end_process(around, host, vm, End::Command("a preparation"));
        let role = Role::Receive { migration, since: None };
        self.put(host, Record { run: run.clone(), generation, role, arrived_by: None });
        if self.dies_in_command(around, host) {
            return None;
        }
        if self.flaky && around.dice.chance(LAUNCH_FAILS) {
            self.forget(host, vm);
            return Some(Err(CommandRefusal::Failed { why: "no memory for it".to_owned() }));
        }
        self.launch(around, host, vm, run.memory, Guest::Receiving { migration, from: None });
        Some(self.listening(host, vm))
    }

    fn migrate_out(
        &mut self,
        around: &mut Around,
        host: &HostId,
        vm: &VmId,
        migration: MigrationId,
        target: &MigrationTarget,
        (limits, strategy): (MigrationPolicy, Strategy),
    ) -> Option<Answer> {
        let run = self.host(host)?.agent.as_ref()?.run;
        let size = self.process(host, vm)?.size;
        let step = SendStep::Copying;
        self.write(host, vm, |record| record.role = Role::Send { migration, limits, step });
        if self.dies_in_command(around, host) {
            return None;
        }
        let peer = self.hosts.values().find(|peer| peer.address == target.address);
        let listener =
            |peer: &Host| peer.processes.get(vm).filter(|qemu| port_of(qemu.pid) == target.port).map(|q| q.pid);
        let (to, to_pid) = (peer.map(|peer| peer.id.clone())?, peer.and_then(listener).unwrap_or_default());
        let now = around.schedule.now;
        // Some guests write faster than the network carries; those never converge.
        let hopeless = around.dice.chance(self.never_converge);
        let dirty_rate = self.link.scale(if hopeless { 2.0 } else { around.dice.between(0, 60) as f64 / 100.0 });
        let sending = Sending {
            migration,
            to,
            to_pid,
            phase: Phase::PreCopy,
            severed: false,
            away_until: now,
            remaining: size,
            transferred: Bytes::ZERO,
            rounds: 0,
            dirty_rate,
            post_copied: Bytes::ZERO,
            link: self.link,
            strategy,
            pace: strategy.pace,
            limits,
            began_at: now,
            held_since: None,
            held: Millis::ZERO,
            paused_at: now,
            committed_at: now,
        };
        self.start_sending(around, host, vm, sending);
        let too_long = Happening::CopyTooLong { host: host.clone(), run, vm: vm.clone(), migration };
        around.schedule.after(limits.total_max.0, too_long);
        Some(Ok(CommandOutcome::Done))
    }

    fn cancel(&mut self, around: &mut Around, host: &HostId, vm: &VmId) -> Answer {
        let receives = self
            .host(host)
            .and_then(|host| host.records.get(vm))
            .is_some_and(|record| matches!(record.role, Role::Receive { .. } | Role::IncomingFailed { .. }));
        if receives {
            // The real one forbids qemu to run on before it looks a last time: what completed meanwhile is not ended.
            if self.process(host, vm).is_some_and(|qemu| matches!(qemu.guest, Guest::Received)) {
                return Err(CommandRefusal::WrongState { state: "running".to_owned() });
            }
            self.end_process(around, host, vm, End::Command("a cancel"));
            self.forget(host, vm);
        } else {
            self.back_at_source(around, host, vm, "cancelled");
        }
        Ok(CommandOutcome::Done)
    }

    fn take_back(&mut self, around: &mut Around, host: &HostId, vm: &VmId, generation: Generation) -> Option<Answer> {
        if self.process(host, vm).is_none() {
            return Some(Err(CommandRefusal::Failed { why: "its qemu is gone".to_owned() }));
        }
        self.write(host, vm, |record| {
            record.generation = generation;
            record.role = Role::Run;
        });
        if self.dies_in_command(around, host) {
            return None;
        }
        self.run_on(around, host, vm);
        Some(Ok(CommandOutcome::Done))
    }

    /// Lets a guest that was sent, or was being sent, run here again.
    pub fn run_on(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        match self.process(host, vm).map(|qemu| &qemu.guest) {
            Some(Guest::Sending(_)) => self.stop_sending(around, host, vm),
            Some(Guest::Sent) => self.resume(around, host, vm),
            _ => {}
        }
    }

    fn back_at_source(&mut self, around: &mut Around, host: &HostId, vm: &VmId, why: &'static str) {
        self.stop_sending(around, host, vm);
        self.noticed(around, host, vm, Notice::SourceBack { why });
    }

    fn dies_in_command(&mut self, around: &mut Around, host: &HostId) -> bool {
        let Some(row) = self.hosts.get_mut(host) else { return true };
        let dies = std::mem::take(&mut row.dies_in_command);
        if dies {
            around.witness.note(format!("fault: the agent of {host} dies in the middle of a command"));
            self.kill_agent(host);
            let wait = around.dice.between(200, 10_000);
            around.schedule.after(wait, Happening::AgentStarts { host: host.clone() });
        }
        dies
    }

    fn put(&mut self, host: &HostId, record: Record) {
        let vm = record.run.vm.clone();
        if let Some(host) = self.hosts.get_mut(host) {
            host.records.insert(vm.clone(), record);
        }
        self.note_change(host, &vm);
    }

    pub fn write(&mut self, host: &HostId, vm: &VmId, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.hosts.get_mut(host).and_then(|host| host.records.get_mut(vm)) {
            change(record);
        }
        self.note_change(host, vm);
    }

    fn forget(&mut self, host: &HostId, vm: &VmId) {
        if let Some(host) = self.hosts.get_mut(host) {
            host.records.remove(vm);
        }
        self.note_change(host, vm);
    }
}

/// What the agent sees, and its clocks.
impl Fleet {
    /// Nobody notices while the agent is down; adoption finds out.
    pub fn noticed(&mut self, around: &mut Around, host: &HostId, vm: &VmId, notice: Notice) {
        let now = around.schedule.now;
        let Some(row) = self.hosts.get(host) else { return };
        let (Some(agent), Some(record)) = (&row.agent, row.records.get(vm)) else { return };
        let (run, clock, role) = (agent.run, row.clock(now), record.role.clone());
        match (notice, role) {
            (Notice::Progress { throughput }, Role::Send { migration, .. }) => {
                self.tell_progress(host, vm, migration, throughput);
            }
            (Notice::AtSwitchOver, Role::Send { migration, limits, .. }) => {
                let over = Happening::CommitWaitOver { host: host.clone(), run, vm: vm.clone(), migration };
                around.schedule.after(limits.commit_wait_max.0, over);
                self.tell(host, vm, migration, MigrationUpdate::AtSwitchOver { stopped_at: clock });
            }
            (
                Notice::HandedOver { transferred, post_copied, throughput, dirty_rate, rounds, commit, copy },
                Role::Send { migration, .. },
            ) => {
                self.write(host, vm, |record| set_step(record, SendStep::HandedOver));
                let downtime_phases = DowntimePhases { commit, copy, resume: Millis::ZERO };
                let in_use = self.process(host, vm).map(|qemu| qemu.size).unwrap_or_default();
                let report = MigrationReport {
                    transferred,
                    post_copied,
                    throughput,
                    dirty_rate,
                    in_use,
                    rounds,
                    downtime_phases,
                    ..MigrationReport::default()
                };
                self.tell(host, vm, migration, MigrationUpdate::HandedOver { report });
            }
            (Notice::SourceBack { why }, Role::Send { migration, .. }) => {
                self.write(host, vm, |record| record.role = Role::Run);
                self.tell(host, vm, migration, MigrationUpdate::SourceResumed { why: why.to_owned() });
            }
            (Notice::WillNotConverge, Role::Send { migration, .. }) => {
                self.write(host, vm, |record| record.role = Role::Run);
                let why = "the guest writes faster than it can be sent".to_owned();
                self.tell(host, vm, migration, MigrationUpdate::WillNotConverge { why });
            }
            (Notice::Stalled, Role::Send { migration, .. } | Role::Receive { migration, .. }) => {
                let why = "the connection broke".to_owned();
                self.tell(host, vm, migration, MigrationUpdate::Stalled { why });
            }
            (Notice::Completes, Role::Receive { migration, .. }) => {
                self.write(host, vm, |record| record.role = Role::Receive { migration, since: Some(clock) });
            }
            (Notice::Ended { .. }, Role::Receive { .. }) => {
                let why = "qemu was killed while its memory was arriving".to_owned();
                self.write(host, vm, |record| record.role = Role::Failed { why });
            }
            (Notice::Arrived, Role::Receive { migration, since }) => {
                self.write(host, vm, |record| {
                    record.role = Role::Run;
                    record.arrived_by = Some(migration);
                });
                self.tell(host, vm, migration, MigrationUpdate::Running { at: since.unwrap_or(clock) });
            }
            (Notice::IncomingBroken, Role::Receive { migration, .. }) => {
                let why = "the stream broke".to_owned();
                self.write(host, vm, |record| record.role = Role::IncomingFailed { migration, why: why.clone() });
                self.tell(host, vm, migration, MigrationUpdate::IncomingFailed { why });
            }
            (Notice::Ended { .. }, Role::Stop { .. }) => self.write(host, vm, |record| record.role = Role::Stopped),
            (Notice::Ended { by_wish: true }, Role::Run | Role::Send { .. }) => {
                self.write(host, vm, |record| record.role = Role::Stopped);
            }
            (Notice::Ended { by_wish: false }, Role::Run | Role::Send { .. }) => {
                let why = "qemu was killed".to_owned();
                self.write(host, vm, |record| record.role = Role::Failed { why });
            }
            // About something the record no longer speaks of.
            _ => {}
        }
    }

    fn tell(&mut self, host: &HostId, vm: &VmId, migration: MigrationId, update: MigrationUpdate) {
        self.outbox.push((host.clone(), AgentMessage::Migration { vm: vm.clone(), migration, update }));
    }

    fn tell_progress(&mut self, host: &HostId, vm: &VmId, migration: MigrationId, throughput: Bytes) {
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let total = qemu.size;
        let Some(sending) = qemu.sending() else { return };
        let progress = MigrationProgress {
            transferred: sending.transferred,
            remaining: sending.remaining,
            total,
            rounds: sending.rounds,
            dirty_rate: sending.dirty_rate,
            throughput,
            throttled: 0,
        };
        self.tell(host, vm, migration, MigrationUpdate::Progress { progress });
    }

    /// No commit within the limit, or no convergence: the source takes the guest back, unless the commit was received.
    pub fn gives_up(
        &mut self,
        around: &mut Around,
        host: &HostId,
        run: u64,
        vm: &VmId,
        migration: MigrationId,
        at: OutgoingPhase,
    ) {
        let Some(row) = self.hosts.get(host) else { return };
        let same_agent = row.agent.as_ref().is_some_and(|agent| agent.run == run);
        let state = row.records.get(vm).map(|record| state_of(record, row.processes.get(vm)));
        let left = match row.processes.get(vm).map(|qemu| &qemu.guest) {
            Some(Guest::Sending(sending)) if at == OutgoingPhase::PreCopy => sending.time_left(around.schedule.now),
            _ => Millis::ZERO,
        };
        if left > Millis::ZERO && same_agent {
            let too_long = Happening::CopyTooLong { host: host.clone(), run, vm: vm.clone(), migration };
            return around.schedule.after(left.0, too_long);
        }
        if same_agent && state == Some(VmState::Outgoing { migration, phase: at }) {
            let why = match at {
                OutgoingPhase::PreCopy => "the copy did not converge",
                OutgoingPhase::AtSwitchOver | OutgoingPhase::SwitchingOver => "no commit came in time",
                OutgoingPhase::PostCopy | OutgoingPhase::PostCopyPaused => return,
            };
            self.back_at_source(around, host, vm, why);
        }
    }

    pub fn stop_grace_over(&mut self, around: &mut Around, host: &HostId, run: u64, vm: &VmId, pid: u32) {
        let same_agent = self.host(host).and_then(|host| host.agent.as_ref()).is_some_and(|agent| agent.run == run);
        if same_agent && self.process(host, vm).is_some_and(|qemu| qemu.pid == pid) {
            self.end_process(around, host, vm, End::VmRequest);
            self.noticed(around, host, vm, Notice::Ended { by_wish: false });
        }
    }
}

pub fn set_step(record: &mut Record, to: SendStep) {
    if let Role::Send { step, .. } = &mut record.role {
        *step = to;
    }
}

fn port_of(pid: u32) -> u16 {
    (pid % u32::from(u16::MAX)) as u16
}

fn word(command: &Command) -> String {
    match command {
        Command::Run { generation, .. } => format!("run at {generation}"),
        Command::Stop { generation, .. } => format!("stop at {generation}"),
        Command::Release { generation, .. } => format!("release at {generation}"),
        Command::PrepareIncoming { generation, migration, .. } => format!("prepare {migration} at {generation}"),
        Command::MigrateOut { generation, migration, strategy, .. } => {
            format!("send {migration} at {generation} by {strategy:?}")
        }
        Command::CommitSwitchOver { generation, migration, .. } => format!("commit {migration} at {generation}"),
        Command::CancelMigration { migration, .. } => format!("cancel {migration}"),
        Command::AdjustMigration { migration, pace, .. } => format!("adjust {migration} to {pace:?}"),
        Command::RecoverIncoming { migration, .. } => format!("receive the rest of {migration}"),
        Command::RecoverOutgoing { migration, .. } => format!("send the rest of {migration}"),
        Command::TakeBack { generation, migration, .. } => format!("take back {migration} at {generation}"),
        Command::MeasureDirtyRate { span, .. } => format!("measure for {span}"),
    }
}
