//! What must hold at every moment, whatever breaks. The witness sees what really happens (no agent's word, no
//! report) and what was made durable, and holds one against the other.
//!
//! 1. A vm's guest executes on at most one host.
//! 2. No memory is lost, or replaced by an older copy, unless a fault took it or its owner ended it; and then it is said.
//! 3. What was acknowledged is durable, and a server that comes back knows it.
//! 4. A generation never decreases, and a vm changes hosts under a new one only.
//! 5. No command has an effect at a generation older than the store's.
//! 6. Nothing is placed or moved where it may not go, as things stood at the decision.
//! 7. Every event says something, and none tells of a defect.
//! 8. Everything that queues is bounded.

use crate::qemu::Memory;
use drover_control::Control;
use drover_control::interface::{Action, Commit, Effect, Object, Write};
use drover_model::command::Command;
use drover_model::event::Event;
use drover_model::intent::{Host, RunIntent, Vm};
use drover_model::inventory::Capacity;
use drover_model::kind::Kind;
use drover_model::migration::{MigrationPhase, MigrationRecord};
use drover_model::policy::Policy;
use drover_model::world::HostState;
use drover_model::{Bytes, Generation, HostId, MigrationId, Millis, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Effects of one step.
const EFFECTS_MAX: usize = 2_000;
/// Plans kept: the retention's figure and those of one round.
const PLANS_MAX: usize = 510;
/// Lines of what happened before a failure.
const TRACE_MAX: usize = 400;
/// Events that only a defect causes.
const DEFECT_EVENTS: [&str; 3] = ["plan-unsound", "store-older-than-cluster", "vm-unknown"];
/// Events that tell an owner of lost memory, or that the owner itself started a vm that had failed.
const LOSS_EVENTS: [&str; 5] = ["vm-restarted", "migration-failed", GIVEN_UP_EVENT, "vm-failed", "vm-start"];
const GIVEN_UP_EVENT: &str = "vm-memory-lost";

#[derive(Debug, Default)]
pub struct Witness {
    pub now: TimeMs,
    violation: Option<String>,
    trace: VecDeque<String>,
    pub capacities: BTreeMap<HostId, Capacity>,
    vms: BTreeMap<VmId, Vm>,
    hosts: BTreeMap<HostId, Host>,
    moving: BTreeMap<MigrationId, MigrationRecord>,
    policy: Option<Policy>,
    /// Migrations whose cancellation was acknowledged.
    cancelled: BTreeSet<MigrationId>,
    memory: BTreeMap<VmId, Truth>,
    incarnations: u64,
    pub tally: Tally,
}

/// Migrations by how they ended, and the like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub migrations: BTreeMap<&'static str, u64>,
    pub commits: u64,
    pub events: u64,
    pub guests_booted: u64,
    pub memories_lost: u64,
    pub recovered: u64,
    pub last_move_began: Option<TimeMs>,
}

/// The newest memory of a vm's guest: every other copy of it is old.
#[derive(Debug)]
struct Truth {
    newest: Memory,
    /// It ended by its own request or its owner's: nothing is lost with it.
    ended: bool,
    /// When a fault last hit a qemu of this vm, since the guest was last well.
    hit_at: Option<TimeMs>,
    said_lost_at: Option<TimeMs>,
    /// It was said that it is started anew: what is left of the old memory is nobody's.
    given_up: bool,
}

impl Witness {
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub fn trace(&self) -> impl Iterator<Item = &String> {
        self.trace.iter()
    }

    pub fn note(&mut self, what: String) {
        if self.trace.len() == TRACE_MAX {
            self.trace.pop_front();
        }
        let since = self.now.since(crate::schedule::EPOCH);
        self.trace.push_back(format!("{:>9.3} {what}", since.as_secs()));
    }

    /// The first one counts: what follows may be its consequence.
    pub fn broken(&mut self, what: String) {
        self.note(format!("BROKEN {what}"));
        self.violation.get_or_insert(what);
    }

    pub fn vm(&self, vm: &VmId) -> Option<&Vm> {
        self.vms.get(vm)
    }

    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values()
    }

    pub fn host(&self, host: &HostId) -> Option<&Host> {
        self.hosts.get(host)
    }
}

/// Invariants 4, 6 and 7: what is decided.
impl Witness {
    /// `control` as it was when it decided.
    pub fn committed(&mut self, commit: &Commit, control: &Control) {
        self.tally.commits += 1;
        for event in &commit.events {
            self.told(event);
        }
        let mut arrivals = Vec::new();
        // Vms first: why one changes hosts is in the migrations as they were before.
        for write in &commit.writes {
            if let Write::Put { object: Object::Vm(vm), .. } = write {
                arrivals.extend(self.vm_changes(vm.clone()));
            }
        }
        for write in &commit.writes {
            match write {
                Write::Put { object: Object::Migration(record), .. } => arrivals.extend(self.moves(record)),
                Write::Put { object: Object::Host(host), .. } => {
                    self.hosts.insert(host.id.clone(), host.clone());
                }
                Write::Put { object: Object::Policy(policy), .. } => self.policy = Some(policy.clone()),
                Write::Put { .. } => {}
                Write::Delete { key, .. } => self.deleted(&key.kind, &key.id),
            }
        }
        for (vm, host) in arrivals {
            self.may_go(&vm, &host, control);
        }
    }

    fn told(&mut self, event: &Event) {
        self.tally.events += 1;
        self.note(format!("event {} {} {}", event.object, event.kind, event.text));
        if event.text.trim().is_empty() || event.kind.is_empty() || event.object.is_empty() {
            self.broken(format!("event {} says nothing: {event:?}", event.seq));
        }
        if DEFECT_EVENTS.contains(&event.kind.as_str()) {
            self.broken(format!("{} tells of a defect: {}", event.kind, event.text));
        }
        if LOSS_EVENTS.contains(&event.kind.as_str())
            && let Some(vm) = event.object.strip_prefix("vm/").and_then(|id| id.parse::<VmId>().ok())
            && let Some(truth) = self.memory.get_mut(&vm)
        {
            truth.said_lost_at = Some(event.at);
            truth.given_up |= event.kind == GIVEN_UP_EVENT;
        }
    }

    /// The host it goes to, if that is a decision to check.
    fn vm_changes(&mut self, vm: Vm) -> Option<(VmId, HostId)> {
        let before = self.vms.insert(vm.id.clone(), vm.clone());
        let (generation, host) = before.map_or((Generation(0), None), |before| (before.generation, before.host));
        if vm.generation < generation {
            self.broken(format!("{} falls from generation {generation} to {}", vm.id, vm.generation));
        }
        let to = vm.host.clone()?;
        if host.as_ref() == Some(&to) {
            return None;
        }
        if vm.generation <= generation {
            self.broken(format!("{} goes from {host:?} to {to} without a new generation", vm.id));
        }
        // Going where its migration comes from or goes to was decided when that began.
        let decided = self.moving.values().any(|m| m.vm == vm.id && (m.to == to || m.from == to));
        (!decided).then_some((vm.id, to))
    }

    fn moves(&mut self, record: &MigrationRecord) -> Option<(VmId, HostId)> {
        if record.phase.is_over() {
            self.moving.remove(&record.id);
            *self.tally.migrations.entry(record.phase.word()).or_default() += 1;
            return None;
        }
        if record.phase == MigrationPhase::Committed && self.cancelled.contains(&record.id) {
            self.broken(format!("migration {} is committed after its cancellation was acknowledged", record.id));
        }
        let known = self.moving.insert(record.id, record.clone());
        if let Some(known) = known {
            if known.phase == MigrationPhase::Committed && record.phase != MigrationPhase::Committed {
                self.broken(format!("migration {} falls back from its commit", record.id));
            }
            return None;
        }
        self.tally.last_move_began = Some(self.now);
        Some((record.vm.clone(), record.to.clone()))
    }

    fn deleted(&mut self, kind: &str, id: &str) {
        match kind {
            "vm" => {
                let gone = id.parse::<VmId>().ok().and_then(|id| self.vms.remove(&id));
                if gone.is_none_or(|vm| !vm.deleting) {
                    self.broken(format!("{id} is removed and nobody asked for it"));
                }
            }
            "host" => {
                if let Ok(host) = id.parse::<HostId>() {
                    self.hosts.remove(&host);
                }
            }
            _ => {}
        }
    }

    fn may_go(&mut self, vm: &VmId, to: &HostId, control: &Control) {
        let Some(row) = self.vms.get(vm).cloned() else { return };
        let name = &row.spec.name;
        let state = control.host_status(to).state;
        if state != HostState::Up {
            self.broken(format!("{name} is sent to {to}, which is {state:?}"));
        }
        if self.hosts.get(to).is_none_or(|host| host.maintenance) {
            self.broken(format!("{name} is sent to {to}, which is in maintenance or gone"));
        }
        if !row.spec.pinned_to.is_empty() && !row.spec.pinned_to.contains(to) {
            self.broken(format!("{name} is sent to {to} and pinned to {:?}", row.spec.pinned_to));
        }
        let beside: Vec<&Vm> = self.vms.values().filter(|other| other.id != *vm && self.counts_at(other, to)).collect();
        let same_group = |other: &&&Vm| {
            row.spec.anti_affinity.is_some()
                && other.spec.anti_affinity == row.spec.anti_affinity
                && other.spec.tenant == row.spec.tenant
        };
        let rival = beside.iter().find(same_group).map(|other| other.spec.name.clone());
        let memory: Bytes = beside.iter().map(|other| other.spec.memory).sum();
        if let Some(rival) = rival {
            self.broken(format!("{name} is sent to {to} beside {rival} of its anti-affinity group"));
        }
        let capacity = self.capacities.get(to).map_or(Bytes::ZERO, |capacity| capacity.memory);
        if memory + row.spec.memory > capacity {
            self.broken(format!("{name} is sent to {to}: {memory} of {capacity} are spoken for"));
        }
    }

    /// Whether a vm takes room on a host: it has the right to run there, or moves there or away.
    fn counts_at(&self, vm: &Vm, host: &HostId) -> bool {
        let lives = vm.run == RunIntent::Running && !vm.deleting;
        let moves = || self.moving.values().any(|m| m.vm == vm.id && (m.to == *host || m.from == *host));
        lives && (vm.host.as_ref() == Some(host) || moves())
    }
}

/// Invariant 3: what is acknowledged; and 8: what is bounded.
impl Witness {
    pub fn acknowledged(&mut self, ask: &Action) {
        let kept = match ask {
            Action::CreateVm { id, .. } => self.vms.contains_key(id),
            Action::SetRun { vm, run } => self.vms.get(vm).is_some_and(|row| row.run == *run),
            Action::RemoveVm { vm } => self.vms.get(vm).is_none_or(|row| row.deleting),
            Action::MigrateVm { vm, .. } => self.vms.get(vm).is_some_and(|row| row.migration.is_some()),
            Action::DrainHost { host } => self.hosts.get(host).is_some_and(|row| row.maintenance),
            Action::UndrainHost { host } => self.hosts.get(host).is_some_and(|row| !row.maintenance),
            Action::Remove { key } if key.kind == Host::NAME => !self.hosts.keys().any(|host| host.as_str() == key.id),
            Action::Join { host, .. } => self.hosts.contains_key(host),
            Action::CancelMigration { id } => {
                self.cancelled.insert(*id);
                true
            }
            Action::SetPolicy { policy } => self.policy.as_ref() == Some(policy),
            _ => true,
        };
        if !kept {
            self.broken(format!("acknowledged and not durable: {ask:?}"));
        }
    }

    pub fn reloaded(&mut self, control: &Control) {
        if !control.vms().eq(self.vms.values()) || !control.hosts().eq(self.hosts.values()) {
            self.broken("a server that came back does not know what its predecessor made durable".to_owned());
        }
        if self.policy.as_ref().is_some_and(|policy| control.policy() != policy) {
            self.broken("a server that came back has another policy".to_owned());
        }
    }

    pub fn stepped(&mut self, effects: &[Effect], control: &Control) {
        if effects.len() > EFFECTS_MAX {
            self.broken(format!("one step has {} effects", effects.len()));
        }
        let plans = control.plans().count();
        if plans > PLANS_MAX {
            self.broken(format!("{plans} plans are kept"));
        }
    }

    pub fn bounded(&mut self, what: &str, length: usize, most: usize) {
        if length > most {
            self.broken(format!("{what} holds {length}, more than {most}"));
        }
    }
}

/// Invariants 1, 2 and 5: what really happens.
impl Witness {
    pub fn executes(&mut self, vm: &VmId, hosts: &[&HostId]) {
        if hosts.len() > 1 {
            self.broken(format!("{vm} executes on {hosts:?} at once"));
        }
    }

    /// A guest begins with empty memory. `copies`: how many processes still hold its newest memory.
    pub fn boots(&mut self, vm: &VmId, copies: usize) -> Memory {
        self.tally.guests_booted += 1;
        self.incarnations += 1;
        let newest = Memory { incarnation: self.incarnations, epoch: 1 };
        let fresh = Truth { newest, ended: false, hit_at: None, said_lost_at: None, given_up: false };
        let Some(before) = self.memory.insert(vm.clone(), fresh) else { return newest };
        if before.ended {
            return newest;
        }
        self.tally.memories_lost += 1;
        match before.hit_at {
            None if copies > 0 => self.broken(format!("{vm} is started anew while its memory is intact")),
            None => self.broken(format!("{vm} is started anew, and no fault took its memory")),
            Some(hit) if before.said_lost_at.is_none_or(|said| said < hit) => {
                self.broken(format!("{vm} lost its memory and nobody said so"));
            }
            Some(_) => {}
        }
        newest
    }

    /// A guest that stood still, or has just arrived, executes: on its newest memory, or time runs backwards for it.
    pub fn resumes(&mut self, vm: &VmId, memory: Memory) -> Memory {
        let Some(truth) = self.memory.get_mut(vm) else { return memory };
        if truth.newest != memory {
            let text = format!("{vm} goes on with old memory: {memory:?}, the newest is {:?}", truth.newest);
            self.broken(text);
            return memory;
        }
        truth.newest.epoch += 1;
        truth.newest
    }

    pub fn is_newest(&self, vm: &VmId, memory: Memory) -> bool {
        self.memory.get(vm).is_some_and(|truth| truth.newest == memory && !truth.ended)
    }

    /// The guest switched itself off, asked or not.
    pub fn ends(&mut self, vm: &VmId) {
        if let Some(truth) = self.memory.get_mut(vm) {
            truth.ended = true;
        }
    }

    /// A fault took a qemu of this vm. `left`: whether its newest memory was still there, in that one or another.
    pub fn hit(&mut self, vm: &VmId, left: bool) {
        self.hit_at(vm, left, self.now);
    }

    fn hit_at(&mut self, vm: &VmId, left: bool, at: TimeMs) {
        let wanted = self.vms.get(vm).is_some_and(|row| row.run == RunIntent::Running && !row.deleting);
        if let Some(truth) = self.memory.get_mut(vm) {
            // What was lost before, and perhaps said, is not lost again.
            if (left && !truth.given_up) || truth.hit_at.is_none() {
                truth.hit_at = Some(at);
            }
            truth.ended |= !wanted;
        }
    }

    /// A guest is ended that has waited this long for memory it could still get. Giving up is the policy's right, and not
    /// before its time.
    pub fn stalled(&mut self, vm: &VmId, waited: Millis) {
        let patience = self.policy.as_ref().map(|policy| policy.migration).unwrap_or_default();
        if waited >= patience.source_silence_max.min(patience.recovery_max) {
            self.hit_at(vm, true, TimeMs(self.now.0 - waited.0));
        }
    }

    /// It runs where it should and does not move: the next loss has a cause of its own.
    pub fn well(&mut self, vm: &VmId) {
        if let Some(truth) = self.memory.get_mut(vm) {
            truth.hit_at = None;
        }
    }

    /// The last copy of a guest's newest memory is destroyed by command.
    pub fn destroys(&mut self, vm: &VmId, command: &str) {
        let wanted = self.vms.get(vm).is_some_and(|row| row.run == RunIntent::Running && !row.deleting);
        let excused = self.memory.get(vm).is_none_or(|truth| truth.ended || truth.hit_at.is_some());
        if wanted && !excused {
            self.broken(format!("{command} destroys the only memory of {vm}"));
        } else if !wanted {
            self.ends(vm);
        }
    }

    /// A command is about to change something.
    pub fn takes_effect(&mut self, host: &HostId, command: &Command) {
        let generation = match command {
            Command::Run { generation, .. }
            | Command::PrepareIncoming { generation, .. }
            | Command::MigrateOut { generation, .. }
            | Command::CommitSwitchOver { generation, .. }
            | Command::RecoverIncoming { generation, .. }
            | Command::RecoverOutgoing { generation, .. }
            | Command::TakeBack { generation, .. } => *generation,
            Command::Stop { .. }
            | Command::Release { .. }
            | Command::CancelMigration { .. }
            | Command::AdjustMigration { .. }
            | Command::MeasureDirtyRate { .. } => return,
        };
        match self.vms.get(command.vm()).map(|row| row.generation) {
            Some(newest) if generation < newest => {
                self.broken(format!("{host} carries out {command:?} while the store is at generation {newest}"));
            }
            None => self.broken(format!("{host} carries out {command:?} for a vm that is gone")),
            Some(_) => {}
        }
    }

    pub fn powered_off(&mut self, host: &HostId, executing: &[VmId]) {
        let owned = |vm: &&VmId| self.vms.get(*vm).is_some_and(|row| row.host.as_ref() == Some(host));
        if let Some(vm) = executing.iter().find(owned) {
            self.broken(format!("{host} is powered off while {vm} runs there"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> VmId {
        "vm-a".parse().unwrap()
    }

    fn check(what: impl FnOnce(&mut Witness), says: Option<&str>) {
        let mut witness = Witness::default();
        what(&mut witness);
        match (witness.violation(), says) {
            (None, None) => {}
            (Some(violation), Some(says)) if violation.contains(says) => {}
            (violation, says) => panic!("{violation:?}, expected {says:?}"),
        }
    }

    #[test]
    fn a_guest_on_two_hosts_is_seen() {
        let (a, b): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
        check(|witness| witness.executes(&vm(), &[&a]), None);
        check(|witness| witness.executes(&vm(), &[&a, &b]), Some("at once"));
    }

    #[test]
    fn old_memory_that_runs_again_is_seen() {
        let run_on = |older: bool| {
            move |witness: &mut Witness| {
                let handed_over = witness.boots(&vm(), 0);
                let arrived = witness.resumes(&vm(), handed_over);
                witness.resumes(&vm(), if older { handed_over } else { arrived });
            }
        };
        check(run_on(false), None);
        check(run_on(true), Some("old memory"));
    }

    #[test]
    fn a_fresh_start_needs_a_reason_and_the_owner_is_told() {
        let again = |before: fn(&mut Witness)| {
            move |witness: &mut Witness| {
                witness.boots(&vm(), 0);
                before(witness);
                witness.boots(&vm(), 0);
            }
        };
        check(again(|_| {}), Some("no fault took its memory"));
        check(again(|witness| witness.ends(&vm())), None);
        // It is not in the store as running: its owner ended it.
        check(again(|witness| witness.hit(&vm(), true)), None);
    }

    #[test]
    fn a_command_for_a_vm_that_is_gone_is_seen() {
        let command = Command::CommitSwitchOver { vm: vm(), generation: Generation(1), migration: MigrationId(1) };
        check(|witness| witness.takes_effect(&"h1".parse().unwrap(), &command), Some("for a vm that is gone"));
    }
}
