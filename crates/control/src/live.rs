//! What is observed and never stored: connections, inventories, load, commands under way.

use crate::interface::{AgentMessage, ConnectionId, Effect, NetworkReport};
use crate::membership::Heartbeat;
use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationUpdate};
use drover_model::inventory::{HostFacts, OutgoingPhase, VmInventory, VmState};
use drover_model::load::{HostSample, VmSample, Window};
use drover_model::world::HostState;
use drover_model::{CommandId, HostId, MigrationId, Millis, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// Commands that one agent may have open at once. One that passes it waits for the next turn of its loop.
const PENDING_MAX: usize = 512;
/// How far a host's time on the server's clock may be off: the quickest delivery seen is taken for none.
const CLOCK_ERROR_MAX: Millis = Millis(500);

/// One host as it was last seen.
#[derive(Debug)]
pub struct HostLive {
    pub connection: Option<ConnectionId>,
    pub facts: Option<HostFacts>,
    /// `None`: unknown since the server started.
    pub vms: Option<BTreeMap<VmId, VmInventory>>,
    pub reported_at: Option<TimeMs>,
    /// When the last report was made, by the host's clock, on the server's: not when it arrived.
    pub made_at: Option<TimeMs>,
    /// Vms that a command was answered for which may have changed them, and that no report shows since.
    pub answered: BTreeSet<VmId>,
    pub heartbeat: Heartbeat,
    pub state: HostState,
    pub since: TimeMs,
    pub load: Window<HostSample>,
    /// `None` until its agent first reported on this connection.
    pub network: Option<NetworkReport>,
    /// Smallest difference seen between the server's clock and the host's, in ms: clock offset plus the quickest delivery.
    pub clock_ahead_ms: Option<i64>,
}

impl HostLive {
    fn new(now: TimeMs) -> Self {
        Self {
            connection: None,
            facts: None,
            vms: None,
            reported_at: None,
            made_at: None,
            answered: BTreeSet::new(),
            heartbeat: Heartbeat::default(),
            state: HostState::Unknown,
            since: now,
            load: Window::default(),
            network: None,
            clock_ahead_ms: None,
        }
    }

    /// What the host says of the vm *now*. Only a connected host's word counts.
    pub fn sees(&self, vm: &VmId) -> Seen<'_> {
        match (&self.connection, &self.vms) {
            (Some(_), Some(vms)) => vms.get(vm).map_or(Seen::Absent, Seen::There),
            _ => Seen::Unknown,
        }
    }

    /// A time on the host's clock, on the server's.
    pub fn to_server_clock(&self, at: TimeMs) -> TimeMs {
        TimeMs((at.0 as i64 + self.clock_ahead_ms.unwrap_or(0)).max(0) as u64)
    }
}

/// Absent, unknown and known are three things.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Seen<'a> {
    Unknown,
    Absent,
    There(&'a VmInventory),
}

/// A command that has not been answered.
#[derive(Debug, Clone)]
struct Pending {
    host: HostId,
    command: Command,
}

#[derive(Debug, Default)]
pub struct Live {
    pub hosts: BTreeMap<HostId, HostLive>,
    pub vm_load: BTreeMap<VmId, Window<VmSample>>,
    pending: BTreeMap<CommandId, Pending>,
    next_command: CommandId,
    /// Sends of the step under way, after its commit.
    pub effects: Vec<Effect>,
}

/// An answer, with the command it belongs to.
#[derive(Debug)]
pub struct Answered {
    pub command: Command,
    pub answer: Result<CommandOutcome, CommandRefusal>,
}

impl Live {
    pub fn host(&mut self, host: &HostId, now: TimeMs) -> &mut HostLive {
        self.hosts.entry(host.clone()).or_insert_with(|| HostLive::new(now))
    }

    pub fn sees(&self, host: &HostId, vm: &VmId) -> Seen<'_> {
        self.hosts.get(host).map_or(Seen::Unknown, |live| live.sees(vm))
    }

    pub fn state(&self, host: &HostId) -> HostState {
        self.hosts.get(host).map_or(HostState::Unknown, |live| live.state)
    }

    /// Sends a command once the step is durable. `false` if the host can't be reached now, or the same
    /// command is still unanswered: the loops look again at their next turn.
    pub fn send(&mut self, host: &HostId, command: Command) -> bool {
        let Some(connection) = self.hosts.get(host).and_then(|live| live.connection) else {
            return false;
        };
        let mut open = 0;
        for pending in self.pending.values().filter(|pending| pending.host == *host) {
            if pending.command == command {
                return false;
            }
            open += 1;
        }
        if open >= PENDING_MAX {
            return false;
        }
        self.next_command = self.next_command.next();
        let id = self.next_command;
        self.pending.insert(id, Pending { host: host.clone(), command: command.clone() });
        self.effects.push(Effect::Send { host: host.clone(), connection, id, command });
        true
    }

    /// Whether a command that may change this vm on this host is unanswered.
    pub fn is_asked(&self, host: &HostId, vm: &VmId) -> bool {
        self.asked(host, vm).any(|command| !command.only_looks())
    }

    /// Whether this host has yet to answer that it measures this vm.
    pub fn is_asked_to_measure(&self, host: &HostId, vm: &VmId) -> bool {
        self.asked(host, vm).any(|command| matches!(command, Command::MeasureDirtyRate { .. }))
    }

    fn asked<'a>(&'a self, host: &'a HostId, vm: &'a VmId) -> impl Iterator<Item = &'a Command> {
        let to_host = self.pending.values().filter(move |pending| pending.host == *host);
        to_host.map(|pending| &pending.command).filter(move |command| command.vm() == vm)
    }

    /// Whether what the host says of this vm may be older than what it was told about it.
    pub fn is_unsure(&self, host: &HostId, vm: &VmId) -> bool {
        self.is_asked(host, vm) || self.hosts.get(host).is_some_and(|live| live.answered.contains(vm))
    }

    /// Whether the host is known to hold nothing of this vm, and will not by what it was told.
    pub fn is_rid_of(&self, host: &HostId, vm: &VmId) -> bool {
        self.sees(host, vm) == Seen::Absent && !self.is_unsure(host, vm)
    }

    /// Whether the host's last report was made after `at`. Messages can be late, so that one arrived later proves nothing.
    pub fn has_spoken_since(&self, host: &HostId, at: TimeMs) -> bool {
        let made_at = self.hosts.get(host).filter(|live| live.connection.is_some()).and_then(|live| live.made_at);
        made_at.is_some_and(|made_at| made_at > at.plus(CLOCK_ERROR_MAX))
    }

    /// Takes in what an agent says, if it speaks on the host's present connection. An answer is returned with its command.
    pub fn hear(&mut self, now: TimeMs, host: &HostId, connection: ConnectionId, message: &AgentMessage) -> Reception {
        let live = self.host(host, now);
        if let AgentMessage::Connected { facts, vms } = message {
            let before = live.connection.replace(connection);
            live.heartbeat = Heartbeat::default();
            live.heartbeat.arrived(now);
            live.facts = Some(facts.clone());
            live.vms = Some(vms.iter().map(|vm| (vm.vm.clone(), vm.clone())).collect());
            live.reported_at = Some(now);
            live.made_at = None;
            live.answered.clear();
            live.network = None;
            live.clock_ahead_ms = None;
            self.forget_pending(host);
            if let Some(old) = before.filter(|old| *old != connection) {
                let why = "a newer connection of this host took its place".to_owned();
                self.effects.push(Effect::Disconnect { host: host.clone(), connection: old, why });
            }
            return Reception::Fresh;
        }
        if live.connection != Some(connection) {
            return Reception::Stale;
        }
        live.heartbeat.arrived(now);
        match message {
            AgentMessage::Report { at, vms, load, network } => {
                live.network = Some(network.clone());
                live.vms = Some(vms.iter().map(|vm| (vm.vm.clone(), vm.clone())).collect());
                live.reported_at = Some(now);
                let ahead = now.0 as i64 - at.0 as i64;
                live.clock_ahead_ms = Some(live.clock_ahead_ms.map_or(ahead, |before| before.min(ahead)));
                live.made_at = Some(live.to_server_clock(*at));
                live.answered.clear();
                if let Some((sample, vm_samples)) = load {
                    live.load.push(now, *sample);
                    for (vm, sample) in vm_samples {
                        self.vm_load.entry(vm.clone()).or_default().push(now, *sample);
                    }
                }
                Reception::Fresh
            }
            AgentMessage::Answer { id, answer } => match self.pending.remove(id) {
                Some(pending) => {
                    if !pending.command.only_looks() {
                        self.host(host, now).answered.insert(pending.command.vm().clone());
                    }
                    Reception::Answer(Box::new(Answered { command: pending.command, answer: answer.clone() }))
                }
                None => Reception::Stale,
            },
            AgentMessage::Disconnected => {
                live.connection = None;
                self.forget_pending(host);
                Reception::Fresh
            }
            AgentMessage::Migration { vm, migration, update } => {
                if let Some(seen) = live.vms.as_mut().and_then(|vms| vms.get_mut(vm))
                    && seen.state.migration() == Some(*migration)
                    && let Some(state) = state_after(&seen.state, *migration, update)
                {
                    seen.state = state;
                }
                Reception::Fresh
            }
            AgentMessage::Connected { .. } => Reception::Fresh,
        }
    }

    fn forget_pending(&mut self, host: &HostId) {
        self.pending.retain(|_, pending| pending.host != *host);
    }
}

/// An update is a report of one vm, ahead of the host's next.
fn state_after(before: &VmState, migration: MigrationId, update: &MigrationUpdate) -> Option<VmState> {
    match update {
        MigrationUpdate::Progress { .. } => None,
        MigrationUpdate::AtSwitchOver { .. } => {
            Some(VmState::Outgoing { migration, phase: OutgoingPhase::AtSwitchOver })
        }
        MigrationUpdate::HandedOver { .. } => Some(VmState::HandedOver { migration }),
        MigrationUpdate::SourceResumed { .. }
        | MigrationUpdate::WillNotConverge { .. }
        | MigrationUpdate::Running { .. } => Some(VmState::Running),
        MigrationUpdate::Stalled { .. } => match before {
            VmState::Completing { .. } => Some(VmState::Completing { migration, stalled: true }),
            VmState::Outgoing { .. } => Some(VmState::Outgoing { migration, phase: OutgoingPhase::PostCopyPaused }),
            _ => None,
        },
        MigrationUpdate::IncomingFailed { why } => Some(VmState::IncomingFailed { migration, why: why.clone() }),
    }
}

#[derive(Debug)]
pub enum Reception {
    Fresh,
    Answer(Box<Answered>),
    /// Of an older connection, or an answer nobody waits for.
    Stale,
}
