//! The hosts: their processes, what happens to these by themselves and by faults, and the streams between them.
//! What agents make of it is in [`crate::agent`].

use crate::agent::{Agent, Notice, Record};
use crate::dice::Dice;
use crate::invariants::Witness;
use crate::load::{self, Demand};
use crate::postcopy::STALL_NOTICED_MS;
use crate::qemu::{Completing, Guest, Phase, Qemu, Sending};
use crate::schedule::{Happening, QemuStep, Schedule};
use drover_control::interface::AgentMessage;
use drover_model::inventory::Capacity;
use drover_model::migration::Method;
use drover_model::network::HostNetwork;
use drover_model::{Bytes, HostId, MigrationId, Millis, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How often a copy's progress is worked out, and told.
pub const COPY_STEP_MS: u64 = 500;
/// How soon the other end of a stream learns that a process died.
const BREAK_MS: (u64, u64) = (1, 50);
/// The same when a whole host went without a word.
const SILENT_BREAK_MS: (u64, u64) = (1_000, 60_000);
/// Share of streams whose receiving end never learns of that.
const SILENT_FOREVER: f64 = 0.4;
/// Share of broken switch-overs after which qemu leaves the source's guest paused.
const STANDS_STILL: f64 = 0.15;

/// What a step of the fleet may touch besides itself.
#[derive(Debug)]
pub struct Around {
    pub schedule: Schedule,
    pub dice: Dice,
    pub witness: Witness,
}

#[derive(Debug)]
pub struct Host {
    pub id: HostId,
    pub address: IpAddr,
    pub capacity: Capacity,
    /// Its clock is ahead of the server's by this.
    pub clock_ahead_ms: u64,
    pub on: bool,
    pub boots: u64,
    /// It has power and gets no further.
    pub boot_broken: bool,
    /// Its power driver fails whatever it is asked.
    pub driver_broken: bool,
    pub agent: Option<Agent>,
    pub agent_runs: u64,
    /// The network to the server works.
    pub reachable: bool,
    /// The agent dies in its next command, between writing it down and doing it.
    pub dies_in_command: bool,
    /// As its kernel has it: outlives the agent, not the power.
    pub network: HostNetwork,
    pub records: BTreeMap<VmId, Record>,
    pub processes: BTreeMap<VmId, Qemu>,
}

#[derive(Debug)]
pub struct Fleet {
    pub hosts: BTreeMap<HostId, Host>,
    pub demands: BTreeMap<VmId, Demand>,
    /// Demand stands still from this time on.
    pub frozen_at: Option<TimeMs>,
    /// Things go wrong on hosts by themselves.
    pub flaky: bool,
    /// Share of migrations whose guest writes faster than the network carries.
    pub never_converge: f64,
    /// What one migration gets of the network, per second.
    pub link: Bytes,
    pub outbox: Vec<(HostId, AgentMessage)>,
    /// Hosts whose inventory has changed, and vms whose processes have, since the last look.
    pub changed: BTreeSet<HostId>,
    pub touched: BTreeSet<VmId>,
    pids: u32,
}

/// Why a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Command(&'static str),
    /// The guest switched itself off, or was told to.
    VmRequest,
    /// It received, and the stream broke.
    Broken,
    Killed,
    HostLost,
}

impl Host {
    pub fn new(id: HostId, index: usize, capacity: Capacity) -> Self {
        Self {
            id,
            address: IpAddr::from([10, 0, (index / 250) as u8, (index % 250) as u8 + 1]),
            capacity,
            clock_ahead_ms: 0,
            on: true,
            boots: 1,
            boot_broken: false,
            driver_broken: false,
            agent: None,
            agent_runs: 0,
            reachable: true,
            dies_in_command: false,
            network: HostNetwork::default(),
            records: BTreeMap::new(),
            processes: BTreeMap::new(),
        }
    }
}

/// A fast link: a small guest goes over it in seconds.
const LINK: Bytes = Bytes::mib(200);

impl Default for Fleet {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            demands: BTreeMap::new(),
            frozen_at: None,
            flaky: false,
            never_converge: 0.0,
            link: LINK,
            outbox: Vec::new(),
            changed: BTreeSet::new(),
            touched: BTreeSet::new(),
            pids: 0,
        }
    }
}

impl Fleet {
    pub fn host(&self, host: &HostId) -> Option<&Host> {
        self.hosts.get(host)
    }

    pub fn process(&self, host: &HostId, vm: &VmId) -> Option<&Qemu> {
        self.hosts.get(host)?.processes.get(vm)
    }

    pub fn process_mut(&mut self, host: &HostId, vm: &VmId) -> Option<&mut Qemu> {
        self.hosts.get_mut(host)?.processes.get_mut(vm)
    }

    /// Where the vm's guest executes now.
    pub fn executing(&self, vm: &VmId) -> Vec<&HostId> {
        let here = |host: &&Host| host.processes.get(vm).is_some_and(Qemu::executes);
        self.hosts.values().filter(here).map(|host| &host.id).collect()
    }

    /// Processes that hold the newest memory of the vm.
    fn copies(&self, witness: &Witness, vm: &VmId) -> usize {
        let memories = self.hosts.values().filter_map(|host| host.processes.get(vm)?.memory);
        memories.filter(|memory| witness.is_newest(vm, *memory)).count()
    }

    pub fn launch(&mut self, around: &mut Around, host: &HostId, vm: &VmId, size: Bytes, guest: Guest) -> u32 {
        let memory = match guest {
            Guest::Starting => {
                let copies = self.copies(&around.witness, vm);
                Some(around.witness.boots(vm, copies))
            }
            _ => None,
        };
        self.pids += 1;
        let pid = self.pids;
        if let Some(host) = self.hosts.get_mut(host) {
            host.processes.insert(vm.clone(), Qemu { pid, guest, memory, size });
        }
        self.note_change(host, vm);
        pid
    }

    pub fn note_change(&mut self, host: &HostId, vm: &VmId) {
        self.changed.insert(host.clone());
        self.touched.insert(vm.clone());
    }

    /// The guest goes on, from standing still.
    pub fn resume(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        if let Some(qemu) = self.process_mut(host, vm) {
            qemu.guest = Guest::Running;
            qemu.memory = qemu.memory.map(|memory| around.witness.resumes(vm, memory));
        }
        self.note_change(host, vm);
    }

    /// The process is gone from here on; the other end of its stream learns of it later.
    pub fn end_process(&mut self, around: &mut Around, host: &HostId, vm: &VmId, end: End) {
        let Some(qemu) = self.hosts.get_mut(host).and_then(|host| host.processes.remove(vm)) else { return };
        let newest = qemu.memory.is_some_and(|memory| around.witness.is_newest(vm, memory));
        let copies = self.copies(&around.witness, vm);
        if let (End::Command(word), Some(missing_at)) = (end, self.needed_by(vm, &qemu)) {
            around.witness.destroys(vm, &format!("{word}, while {missing_at} still needs it,"));
        }
        if let Guest::Completing(Completing { stalled_at: Some(at), .. }) = &qemu.guest {
            around.witness.stalled(vm, around.schedule.now.since(*at));
        }
        match end {
            End::Killed | End::HostLost => around.witness.hit(vm, newest || copies > 0),
            End::VmRequest => around.witness.ends(vm),
            End::Command(word) if newest && copies == 0 => around.witness.destroys(vm, word),
            End::Command(_) | End::Broken => {}
        }
        match qemu.guest {
            Guest::Sending(sending) => {
                let to = (sending.to, sending.to_pid);
                self.break_later(around, &to, vm, sending.migration, end, SILENT_FOREVER);
            }
            Guest::Receiving { migration, from: Some(from) } => {
                self.break_later(around, &from, vm, migration, end, 0.0);
            }
            Guest::Completing(Completing { migration, from, .. }) => {
                self.break_later(around, &from, vm, migration, end, 0.0);
            }
            Guest::Receiving { from: None, .. }
            | Guest::Starting
            | Guest::Running
            | Guest::PoweringDown
            | Guest::Sent
            | Guest::Received => {}
        }
        self.note_change(host, vm);
    }

    fn break_later(
        &self,
        around: &mut Around,
        (host, pid): &(HostId, u32),
        vm: &VmId,
        migration: MigrationId,
        end: End,
        never: f64,
    ) {
        let (low, high) = if end == End::HostLost {
            if around.dice.chance(never) {
                return;
            }
            SILENT_BREAK_MS
        } else {
            BREAK_MS
        };
        let wait = around.dice.between(low, high);
        let step = QemuStep::StreamBroken { migration };
        around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid: *pid, step });
    }

    /// The destination whose guest still needs memory of this process.
    fn needed_by(&self, vm: &VmId, qemu: &Qemu) -> Option<HostId> {
        let Guest::Sending(sending) = &qemu.guest else { return None };
        let receiver = self.process(&sending.to, vm).filter(|receiver| receiver.pid == sending.to_pid)?;
        matches!(receiver.guest, Guest::Completing(_)).then(|| sending.to.clone())
    }

    /// A stream is given up by the source: the other end sees it end.
    pub fn stop_sending(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        let Some(sending) = self.process_mut(host, vm).and_then(Qemu::sending) else { return };
        let (to, migration) = ((sending.to.clone(), sending.to_pid), sending.migration);
        // What runs elsewhere is not called back.
        if matches!(sending.phase, Phase::PostCopy | Phase::PostCopyPaused) {
            return;
        }
        let stood = sending.phase != Phase::PreCopy;
        self.break_later(around, &to, vm, migration, End::Broken, 0.0);
        if stood {
            self.resume(around, host, vm);
        } else if let Some(qemu) = self.process_mut(host, vm) {
            qemu.guest = Guest::Running;
        }
        self.note_change(host, vm);
    }

    /// Begins to send to whatever listens there.
    pub fn start_sending(&mut self, around: &mut Around, host: &HostId, vm: &VmId, sending: Sending) {
        let (migration, to, to_pid) = (sending.migration, sending.to.clone(), sending.to_pid);
        let Some(pid) = self.process(host, vm).map(|qemu| qemu.pid) else { return };
        let listens = match self.process_mut(&to, vm).filter(|qemu| qemu.pid == to_pid).map(|qemu| &mut qemu.guest) {
            Some(Guest::Receiving { migration: awaited, from: from @ None }) if *awaited == migration => {
                *from = Some((host.clone(), pid));
                true
            }
            _ => false,
        };
        if let Some(qemu) = self.process_mut(host, vm) {
            qemu.guest = Guest::Sending(Box::new(sending));
        }
        let step = if listens { QemuStep::Copied { migration } } else { QemuStep::StreamBroken { migration } };
        let wait = if listens { COPY_STEP_MS } else { BREAK_MS.1 };
        around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
        self.note_change(host, vm);
    }

    /// The commit has reached qemu: the rest goes over.
    pub fn switch_over(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        let now = around.schedule.now;
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let pid = qemu.pid;
        let Some(sending) = qemu.sending() else { return };
        sending.phase = Phase::SwitchingOver;
        sending.committed_at = now;
        let migration = sending.migration;
        let (step, left) = match sending.strategy.method {
            Method::PostCopy => (QemuStep::PostCopyStarts { migration }, Bytes::ZERO),
            Method::PreCopy => (QemuStep::LastByte { migration }, Bytes::ZERO),
            Method::StopAndCopy => (QemuStep::LastByte { migration }, sending.remaining),
        };
        let wait = around.dice.between(10, 250) + left.0 * 1000 / sending.rate().0.max(1);
        around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
        self.note_change(host, vm);
    }
}

/// What processes do by themselves.
impl Fleet {
    pub fn step(&mut self, around: &mut Around, host: &HostId, vm: &VmId, pid: u32, step: QemuStep) {
        let Some(qemu) = self.process_mut(host, vm).filter(|qemu| qemu.pid == pid) else { return };
        match (step, &mut qemu.guest) {
            (QemuStep::Started, guest @ Guest::Starting) => {
                *guest = Guest::Running;
                self.note_change(host, vm);
            }
            (QemuStep::Copied { migration }, Guest::Sending(sending))
                if sending.migration == migration && sending.phase == Phase::PreCopy =>
            {
                self.copied(around, host, vm, pid);
            }
            (QemuStep::LastByte { migration }, Guest::Sending(sending))
                if sending.migration == migration && sending.phase == Phase::SwitchingOver =>
            {
                self.last_byte(around, host, vm, pid);
            }
            (QemuStep::PostCopyStarts { migration }, Guest::Sending(sending))
                if sending.migration == migration && sending.phase == Phase::SwitchingOver =>
            {
                self.post_copy_starts(around, host, vm, pid);
            }
            (QemuStep::PagesCame { migration }, Guest::Sending(sending))
                if sending.migration == migration && sending.phase == Phase::PostCopy =>
            {
                self.pages_came(around, host, vm, pid);
            }
            (QemuStep::Reconnected { migration }, Guest::Sending(sending))
                if sending.migration == migration && sending.phase == Phase::PostCopyPaused =>
            {
                self.reconnected(around, host, vm, pid);
            }
            (QemuStep::StreamBroken { migration }, Guest::Completing(completing))
                if completing.migration == migration =>
            {
                self.stalls(around, host, vm);
            }
            (QemuStep::Resumed, Guest::Received) => {
                self.resume(around, host, vm);
                self.noticed(around, host, vm, Notice::Arrived);
            }
            (QemuStep::StreamBroken { migration }, Guest::Sending(sending)) if sending.migration == migration => {
                self.send_broken(around, host, vm);
            }
            (QemuStep::StreamBroken { migration }, Guest::Receiving { migration: awaited, .. })
                if *awaited == migration =>
            {
                self.end_process(around, host, vm, End::Broken);
                self.noticed(around, host, vm, Notice::IncomingBroken);
            }
            (QemuStep::PoweredDown, Guest::Starting | Guest::Running | Guest::PoweringDown) => {
                self.end_process(around, host, vm, End::VmRequest);
                self.noticed(around, host, vm, Notice::Ended { by_wish: true });
            }
            // Meant for an earlier state of this process.
            _ => {}
        }
    }

    fn copied(&mut self, around: &mut Around, host: &HostId, vm: &VmId, pid: u32) {
        let now = around.schedule.now;
        let Some(sending) = self.process_mut(host, vm).and_then(Qemu::sending) else { return };
        let (to, to_pid) = (sending.to.clone(), sending.to_pid);
        // Without anybody who takes it, the connection fills up and nothing more is sent.
        let taken = self.process(&to, vm).is_some_and(|qemu| qemu.pid == to_pid);
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let size = qemu.size;
        let Some(sending) = qemu.sending() else { return };
        if !sending.severed && taken {
            let rate = sending.rate();
            let sent = sending.per_step().min(sending.remaining);
            let dirtied = sending.dirty_rate.scale(COPY_STEP_MS as f64 / 1000.0).min(size);
            let rounds = |sent: Bytes| 1 + sent.0 / size.0.max(1);
            sending.transferred += sent;
            sending.rounds = rounds(sending.transferred);
            sending.remaining = (sending.remaining.saturating_sub(sent) + dirtied).min(size);
            let fits = sending.remaining <= rate.scale(sending.limits.downtime_max.as_secs());
            let switches = match sending.strategy.method {
                Method::PreCopy => fits,
                // One pass, then the guest goes over whatever is left.
                Method::PostCopy => sending.transferred >= size,
                Method::StopAndCopy => true,
            };
            if !switches && sending.is_hopeless(size) {
                self.stop_sending(around, host, vm);
                return self.noticed(around, host, vm, Notice::WillNotConverge);
            }
            if switches {
                sending.phase = Phase::AtSwitchOver;
                sending.paused_at = now;
                self.note_change(host, vm);
                return self.noticed(around, host, vm, Notice::AtSwitchOver);
            }
        }
        let step = QemuStep::Copied { migration: sending.migration };
        around.schedule.after(COPY_STEP_MS, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
        let throughput = sending.rate();
        self.noticed(around, host, vm, Notice::Progress { throughput });
    }

    fn last_byte(&mut self, around: &mut Around, host: &HostId, vm: &VmId, pid: u32) {
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let memory = qemu.memory;
        let Some(sending) = qemu.sending() else { return };
        let (migration, to, to_pid, severed) = (sending.migration, sending.to.clone(), sending.to_pid, sending.severed);
        let peer_on = self.host(&to).is_some_and(|host| host.on);
        let receiver = self.process_mut(&to, vm).filter(|qemu| qemu.pid == to_pid);
        match receiver {
            Some(receiver) if !severed && matches!(receiver.guest, Guest::Receiving { .. }) => {
                receiver.guest = Guest::Received;
                receiver.memory = memory;
                let wait = around.dice.between(5, 120);
                let step = QemuStep::Resumed;
                around.schedule.after(wait, Happening::Qemu { host: to.clone(), vm: vm.clone(), pid: to_pid, step });
                self.note_change(&to, vm);
                self.sent(around, host, vm);
            }
            // Nobody says no: the last bytes may lie in a buffer for ever, and the source takes them for sent.
            _ if (severed || !peer_on) && around.dice.chance(0.5) => self.sent(around, host, vm),
            _ => {
                let (low, high) = if severed || !peer_on { SILENT_BREAK_MS } else { BREAK_MS };
                let wait = around.dice.between(low, high);
                let step = QemuStep::StreamBroken { migration };
                around.schedule.after(wait, Happening::Qemu { host: host.clone(), vm: vm.clone(), pid, step });
            }
        }
    }

    pub fn sent(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let Some(sending) = qemu.sending() else { return };
        let notice = Notice::HandedOver {
            transferred: sending.transferred,
            post_copied: sending.post_copied,
            throughput: sending.rate(),
            dirty_rate: sending.dirty_rate,
            rounds: sending.rounds,
            commit: sending.committed_at.since(sending.paused_at),
            copy: around.schedule.now.since(sending.committed_at),
        };
        qemu.guest = Guest::Sent;
        self.note_change(host, vm);
        self.noticed(around, host, vm, notice);
    }

    /// The source finds its stream broken. What was not sent whole never ran elsewhere.
    fn send_broken(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        let stays = around.dice.chance(STANDS_STILL);
        let Some(sending) = self.process_mut(host, vm).and_then(Qemu::sending) else { return };
        match sending.phase {
            // Nothing flows while it waits: it is noticed when it goes on.
            Phase::AtSwitchOver => sending.severed = true,
            Phase::StandsStill | Phase::PostCopyPaused => {}
            Phase::PostCopy => self.stalls(around, host, vm),
            // It broke while the last state was written out: qemu lets the guest go on, or leaves it paused.
            Phase::SwitchingOver if stays => {
                sending.phase = Phase::StandsStill;
                self.note_change(host, vm);
            }
            Phase::PreCopy | Phase::SwitchingOver => {
                self.stop_sending(around, host, vm);
                self.noticed(around, host, vm, Notice::SourceBack { why: "the stream to the destination broke" });
            }
        }
    }
}

/// Faults of the fleet.
impl Fleet {
    pub fn kill_qemu(&mut self, around: &mut Around, host: &HostId, vm: &VmId) {
        let Some(qemu) = self.process(host, vm) else { return };
        let received = matches!(qemu.guest, Guest::Receiving { .. } | Guest::Received);
        around.witness.note(format!("fault: the qemu of {vm} on {host} is killed as {:?}", qemu.guest));
        self.end_process(around, host, vm, End::Killed);
        let notice = if received { Notice::IncomingBroken } else { Notice::Ended { by_wish: false } };
        self.noticed(around, host, vm, notice);
    }

    pub fn kill_agent(&mut self, host: &HostId) {
        if let Some(host) = self.hosts.get_mut(host) {
            host.agent = None;
        }
    }

    /// Everything on the host stops; its disk stays.
    pub fn power_off(&mut self, around: &mut Around, host: &HostId) {
        let Some(row) = self.hosts.get_mut(host).filter(|host| host.on) else { return };
        row.on = false;
        row.agent = None;
        row.network = HostNetwork::default();
        let vms: Vec<VmId> = row.processes.keys().cloned().collect();
        for vm in vms {
            self.end_process(around, host, &vm, End::HostLost);
        }
    }

    pub fn wipe(&mut self, around: &mut Around, host: &HostId) {
        let Some(row) = self.hosts.get_mut(host) else { return };
        row.records.clear();
        row.network = HostNetwork::default();
        let vms: Vec<VmId> = row.processes.keys().cloned().collect();
        for vm in vms {
            self.end_process(around, host, &vm, End::Killed);
        }
    }

    /// The network between two hosts loses a stream's connection without a word to either, and carries nothing for a
    /// while.
    pub fn sever(&mut self, around: &mut Around, host: &HostId, vm: &VmId, away_ms: u64) {
        let Some(qemu) = self.process_mut(host, vm) else { return };
        let pid = qemu.pid;
        let Some(sending) = qemu.sending() else { return };
        sending.severed = true;
        sending.away_until = around.schedule.now.plus(Millis(away_ms));
        let (migration, to) = (sending.migration, (sending.to.clone(), sending.to_pid));
        if matches!(sending.phase, Phase::PostCopy | Phase::PostCopyPaused) {
            for (host, pid) in [(host.clone(), pid), to] {
                let wait = around.dice.between(STALL_NOTICED_MS.0, STALL_NOTICED_MS.1);
                let step = QemuStep::StreamBroken { migration };
                around.schedule.after(wait, Happening::Qemu { host, vm: vm.clone(), pid, step });
            }
            return;
        }
        self.break_later(around, &(host.clone(), pid), vm, migration, End::HostLost, 0.0);
        self.break_later(around, &to, vm, migration, End::HostLost, SILENT_FOREVER);
    }

    /// One second of load, as an agent would measure it.
    pub fn load(
        &self,
        host: &Host,
        now: TimeMs,
    ) -> (drover_model::load::HostSample, BTreeMap<VmId, drover_model::load::VmSample>) {
        let guests = host.processes.iter().filter_map(|(vm, qemu)| Some((vm, self.demands.get(vm)?, qemu.executes())));
        load::sample(host.capacity.cpu, guests, self.frozen_at.unwrap_or(now), now)
    }
}
