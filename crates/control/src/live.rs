//! What is observed and never stored: connections, inventories, load, commands under way.

use crate::interface::{AgentMessage, ConnectionId, Effect, NetworkReport, Object};
use crate::membership::Heartbeat;
use crate::shared::SharedMap;
use crate::tables::Change;
use drover_model::command::{Command, CommandOutcome, CommandRefusal, MigrationUpdate};
use drover_model::inventory::{HostFacts, OutgoingPhase, VmInventory, VmState};
use drover_model::load::{HostSample, VmSample, Window};
use drover_model::world::HostState;
use drover_model::{CommandId, HostId, MigrationId, Millis, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Commands that one agent may have open at once. One that passes it waits for the next turn of its loop.
const PENDING_MAX: usize = 512;
/// Two quartz clocks drift apart by 1 ms in no less than this (500 ppm); NTP slews by at most as much.
const CLOCK_DRIFTS_1_MS_IN: Millis = Millis(2_000);
/// How far a host's time on the server's clock may be off: the quickest delivery seen is taken for none.
const CLOCK_ERROR_MAX: Millis = Millis(500);

/// One host as it was last seen.
#[derive(Debug, Clone)]
pub struct HostLive {
    pub connection: Option<ConnectionId>,
    pub facts: Option<HostFacts>,
    /// `None`: unknown since the server started.
    pub vms: Option<Arc<BTreeMap<VmId, VmInventory>>>,
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
    pub clock: HostClock,
}

/// What is known of a host's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock {
    /// By how much the server's clock is ahead of it, in ms, and when that was estimated.
    ahead: Option<(i64, TimeMs)>,
}

impl HostClock {
    /// A message made at `made_at` by the host's clock arrives. The smallest difference seen is the offset plus the quickest
    /// delivery; it is let grow with time by as much as the clocks may have drifted apart.
    fn learn(&mut self, now: TimeMs, made_at: TimeMs) {
        let seen = now.0 as i64 - made_at.0 as i64;
        self.ahead = Some(match self.ahead {
            Some((before, at)) => {
                let drifted = now.since(at).0 / CLOCK_DRIFTS_1_MS_IN.0;
                let ahead = before.saturating_add_unsigned(drifted);
                if seen <= ahead { (seen, now) } else { (ahead, at.plus(Millis(drifted * CLOCK_DRIFTS_1_MS_IN.0))) }
            }
            None => (seen, now),
        });
    }

    /// A time on the host's clock, on the server's.
    fn to_server(self, at: TimeMs) -> TimeMs {
        TimeMs(at.0.saturating_add_signed(self.ahead.map_or(0, |(ahead, _)| ahead)))
    }
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
            clock: HostClock::default(),
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
        self.clock.to_server(at)
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

#[derive(Debug, Clone, Default)]
pub struct Live {
    pub hosts: SharedMap<HostId, HostLive>,
    pub vm_load: SharedMap<VmId, Window<VmSample>>,
    pending: BTreeMap<CommandId, Pending>,
    pending_of: BTreeMap<HostId, BTreeSet<CommandId>>,
    /// Vms of which a host said something else than before, or that a command to it was answered for: not looked at yet.
    pub news: BTreeSet<(HostId, VmId)>,
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
        self.hosts.get_or_insert_with(host, || HostLive::new(now))
    }

    pub fn is_connected(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(|live| live.connection.is_some())
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
        if self.pending_at(host).any(|pending| *pending == command) {
            return false;
        }
        if self.pending_of.get(host).map_or(0, BTreeSet::len) >= PENDING_MAX {
            return false;
        }
        self.next_command = self.next_command.next();
        let id = self.next_command;
        self.pending.insert(id, Pending { host: host.clone(), command: command.clone() });
        self.pending_of.entry(host.clone()).or_default().insert(id);
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
        self.pending_at(host).filter(move |command| command.vm() == vm)
    }

    /// Commands to this host that have not been answered.
    fn pending_at<'a>(&'a self, host: &HostId) -> impl Iterator<Item = &'a Command> + use<'a> {
        let ids = self.pending_of.get(host).into_iter().flatten();
        ids.filter_map(|id| self.pending.get(id)).map(|pending| &pending.command)
    }

    /// It is answered, or never will be.
    fn take_pending(&mut self, id: CommandId) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        if let Some(open) = self.pending_of.get_mut(&pending.host) {
            open.remove(&id);
            if open.is_empty() {
                self.pending_of.remove(&pending.host);
            }
        }
        Some(pending)
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
            live.reported_at = Some(now);
            live.made_at = None;
            live.network = None;
            live.clock = HostClock::default();
            // Nothing is known of the time between: all of it is news.
            live.vms = None;
            self.take_inventory(now, host, vms);
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
                live.reported_at = Some(now);
                live.clock.learn(now, *at);
                live.made_at = Some(live.to_server_clock(*at));
                if let Some((sample, vm_samples)) = load {
                    live.load.push(now, *sample);
                    for (vm, sample) in vm_samples {
                        self.vm_load.get_or_insert_with(vm, Window::default).push(now, *sample);
                    }
                }
                self.take_inventory(now, host, vms);
                Reception::Fresh
            }
            AgentMessage::Answer { id, answer } => match self.take_pending(*id) {
                Some(pending) => {
                    if !pending.command.only_looks() {
                        self.host(host, now).answered.insert(pending.command.vm().clone());
                        self.news.insert((host.clone(), pending.command.vm().clone()));
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
                if let Some(seen) = live.vms.as_mut().and_then(|vms| Arc::make_mut(vms).get_mut(vm))
                    && seen.state.migration() == Some(*migration)
                    && let Some(state) = state_after(&seen.state, *migration, update)
                {
                    seen.state = state;
                }
                self.news.insert((host.clone(), vm.clone()));
                Reception::Fresh
            }
            AgentMessage::Connected { .. } => Reception::Fresh,
        }
    }

    /// The step changed this object: what was measured of a vm goes with it.
    pub fn changed(&mut self, change: Change<'_>) {
        if let (Some(Object::Vm(vm)), None) = (change.before, change.after) {
            self.vm_load.remove(&vm.id);
        }
    }

    fn forget_pending(&mut self, host: &HostId) {
        for id in self.pending_of.remove(host).unwrap_or_default() {
            if let Some(pending) = self.pending.remove(&id) {
                self.news.insert((host.clone(), pending.command.vm().clone()));
            }
        }
    }

    /// Takes in an inventory, and marks the vms of which it says something new.
    fn take_inventory(&mut self, now: TimeMs, host: &HostId, vms: &[VmInventory]) {
        let live = self.host(host, now);
        let taken: BTreeMap<VmId, VmInventory> = vms.iter().map(|vm| (vm.vm.clone(), vm.clone())).collect();
        let before = live.vms.replace(Arc::new(taken));
        let answered = std::mem::take(&mut live.answered);
        let after = live.vms.clone().unwrap_or_default();
        let before = before.unwrap_or_default();
        let came_or_changed = after.iter().filter(|(vm, seen)| before.get(*vm) != Some(seen)).map(|(vm, _)| vm);
        let went = before.keys().filter(|vm| !after.contains_key(*vm));
        let changed: Vec<VmId> = came_or_changed.chain(went).chain(&answered).cloned().collect();
        self.news.extend(changed.into_iter().map(|vm| (host.clone(), vm)));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// How far a report of the host is dated off, in ms: each second one arrives, made by a clock that drifts by `ppm`.
    fn errors(ppm: i64, delay: impl Fn(u64) -> u64) -> Vec<i64> {
        let mut clock = HostClock::default();
        let mut errors = Vec::new();
        for second in 0..36_000_u64 {
            let made = TimeMs(1_000_000 + second * 1_000);
            let by_host = TimeMs(made.0.saturating_add_signed(7_000 + (second as i64 * ppm) / 1_000));
            clock.learn(made.plus(Millis(delay(second))), by_host);
            errors.push(clock.to_server(by_host).0 as i64 - made.0 as i64);
        }
        errors
    }

    #[test]
    fn a_hosts_clock_that_drifts_for_ten_hours_is_still_known() {
        for ppm in [-400, -50, 0, 50, 400] {
            let errors = errors(ppm, |second| 2 + second % 7);
            let off = errors.iter().map(|error| error.abs()).max().unwrap();
            assert!(off <= 20, "at {ppm} ppm a report is dated {off} ms off");
        }
    }

    #[test]
    fn deliveries_that_are_slow_for_a_minute_do_not_move_the_hosts_clock() {
        let errors = errors(0, |second| if (600..660).contains(&second) { 5_000 } else { 3 });
        let off = errors.iter().map(|error| error.abs()).max().unwrap();
        assert!(off <= 70, "a report is dated {off} ms off");
    }
}
