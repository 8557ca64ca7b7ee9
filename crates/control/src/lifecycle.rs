//! Brings every vm to where its owner wants it: placed, running, stopped or gone.
//!
//! Each turn compares a vm's intent with what its host sees and asks for what is missing. A vm with a
//! migration under way belongs to [`crate::migrate`]; here it is left alone. What a host holds without having the
//! right to is released; what the store has never heard of is reported and never touched, since a store
//! restored from an old copy must not kill what runs.

mod attention;

use crate::interface::Object;
use crate::live::{Answered, Seen};
use crate::tables::{Change, Tables};
use crate::{Control, rules};
use attention::Attention;
use drover_model::command::{Command, VmRun};
use drover_model::event::Severity;
use drover_model::intent::{RunIntent, Vm};
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::migration::MigrationPhase;
use drover_model::world::HostState;
use drover_model::{HostId, MigrationId, Millis, TimeMs, VmId};
use drover_planner as planner;
use std::collections::{BTreeMap, BTreeSet};

/// A command whose effect is not seen is repeated this often; commands are idempotent.
const ASK_EVERY: Millis = Millis(5_000);
/// How long a guest may take to power itself down.
const STOP_GRACE: Millis = Millis(20_000);

#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    pub(crate) attention: Attention,
    vms: BTreeMap<VmId, Supervision>,
    /// Vms on hosts that the store does not know; told of once.
    strangers: BTreeSet<(HostId, VmId)>,
}

/// What is remembered of one vm between turns. Losing it (a restart of the server) costs a repeated question.
#[derive(Debug, Clone, Default)]
struct Supervision {
    asked: Option<TimeMs>,
    restarts: Vec<TimeMs>,
    /// Hosts that refused to start it, since it last ran.
    refused: BTreeMap<HostId, Refused>,
    /// Why it is not where it should be; for people.
    trouble: Option<String>,
}

/// How often in a row a host has refused to start a vm.
#[derive(Debug, Clone, Copy, Default)]
struct Refused {
    times: u32,
    /// Until then another host is preferred.
    avoided_until: Option<TimeMs>,
}

impl Lifecycle {
    pub fn load(tables: &Tables) -> Self {
        Self { attention: Attention::begin(tables.vms.values()), ..Self::default() }
    }

    pub fn trouble(&self, vm: &VmId) -> Option<&str> {
        self.vms.get(vm)?.trouble.as_deref()
    }

    fn supervision(&mut self, vm: &VmId) -> &mut Supervision {
        self.vms.entry(vm.clone()).or_default()
    }

    /// The vm's owner asked for something new: start over.
    pub fn reset(&mut self, vm: &VmId) {
        self.vms.remove(vm);
        self.attention.look_at(vm);
    }

    /// Nothing has to be done for this vm until something changes.
    fn settled(&mut self, vm: &VmId) {
        self.attention.settled(vm);
        if self
            .vms
            .get(vm)
            .is_some_and(|known| known.restarts.is_empty() && known.refused.is_empty() && known.trouble.is_none())
        {
            self.vms.remove(vm);
        }
    }

    /// The step changed this object.
    pub fn changed(&mut self, change: Change<'_>) {
        if let (Some(Object::Vm(vm)), None) = (change.before, change.after) {
            self.vms.remove(&vm.id);
        }
        self.attention.changed(change);
    }
}

pub fn turn(control: &mut Control, now: TimeMs) {
    for (host, vm) in std::mem::take(&mut control.live.news) {
        if control.is_stray(&host, &vm) {
            control.lifecycle.attention.add_stray(host, vm.clone());
        }
        control.lifecycle.attention.look_at(&vm);
    }
    let mut new = Vec::new();
    for id in control.lifecycle.attention.take_due() {
        let Some(mut vm) = control.vm(&id).cloned() else {
            control.lifecycle.settled(&id);
            continue;
        };
        if vm.migration.is_some() {
            continue;
        }
        forget_remains(control, &mut vm);
        match (vm.deleting, vm.run) {
            (true, _) => remove(control, now, &vm),
            (false, RunIntent::Running) if vm.host.is_none() => new.push(id.clone()),
            (false, RunIntent::Running) => run(control, now, &vm),
            (false, RunIntent::Stopped) => stop(control, now, &vm),
        }
        if control.vm(&id).is_none_or(|vm| control.rests(vm)) {
            control.lifecycle.settled(&id);
        }
    }
    place(control, now, new);
    release_strays(control, now);
}

fn run(control: &mut Control, now: TimeMs, vm: &Vm) {
    let Some(host) = &vm.host else { return };
    if control.is_lost(host) {
        return abandon(control, now, vm, host);
    }
    let state = match control.live.sees(host, &vm.id) {
        Seen::Unknown => return,
        Seen::Absent if vm.gave_up.is_some() => return,
        Seen::Absent if avoids(control, now, vm, host) => return look_elsewhere(control, now, vm, host),
        Seen::Absent => return ask_run(control, now, vm, host),
        Seen::There(seen) if seen.generation > vm.generation => {
            let text = format!(
                "{host} holds generation {} of {} and the store only {}: the store is older than the cluster. Stop the \
                 server and restore a newer copy of its data directory",
                seen.generation, vm.spec.name, vm.generation
            );
            return trouble(control, now, vm, Severity::Escalation, "store-older-than-cluster", text);
        }
        Seen::There(seen) if seen.generation < vm.generation => {
            let state = seen.state.clone();
            return renew(control, now, vm, host, &state);
        }
        Seen::There(seen) => seen.state.clone(),
    };
    match state {
        VmState::Running => {
            let supervision = control.lifecycle.supervision(&vm.id);
            supervision.trouble = None;
            supervision.refused.clear();
        }
        VmState::Starting | VmState::Stopping => {}
        VmState::Stopped => {
            // At this very generation: the guest switched itself off, as its owner may do from inside.
            control.tables.change::<Vm>(&vm.id, |vm| vm.run = RunIntent::Stopped);
            let text = format!("{} powered itself off", vm.spec.name);
            vm_event(control, now, vm, Severity::Info, "vm-powered-off", text);
        }
        VmState::Failed { why } => restart(control, now, vm, host, &why),
        // Left behind by a migration that is over.
        VmState::Outgoing { migration, .. } => {
            ask(control, now, vm, host, Command::CancelMigration { vm: vm.id.clone(), migration });
        }
        VmState::HandedOver { migration } => {
            let generation = vm.generation.next();
            control.tables.change::<Vm>(&vm.id, |vm| vm.generation = generation);
            let command = Command::TakeBack { vm: vm.id.clone(), generation, migration };
            ask(control, now, vm, host, command);
        }
        // Its memory is on its way, or was given up at a newer generation than this.
        VmState::Completing { .. } => {}
        // Left by a migration that never got here: makes room for the start.
        VmState::Incoming { migration } | VmState::IncomingFailed { migration, .. } => {
            ask(control, now, vm, host, Command::CancelMigration { vm: vm.id.clone(), migration });
        }
    }
}

/// The right to run is this host's at a newer generation than it knows of.
fn renew(control: &mut Control, now: TimeMs, vm: &Vm, host: &HostId, state: &VmState) {
    match state {
        VmState::HandedOver { migration } | VmState::Outgoing { migration, phase: OutgoingPhase::SwitchingOver }
            if came_back(control, vm, host, *migration) =>
        {
            let command = Command::TakeBack { vm: vm.id.clone(), generation: vm.generation, migration: *migration };
            ask(control, now, vm, host, command);
        }
        // Memory of an earlier life: the vm was started anew since.
        VmState::HandedOver { .. }
        | VmState::Outgoing {
            phase: OutgoingPhase::SwitchingOver | OutgoingPhase::PostCopy | OutgoingPhase::PostCopyPaused,
            ..
        } => {
            let (id, generation) = (vm.id.clone(), vm.generation);
            ask(control, now, vm, host, Command::Release { vm: id, generation, delete_disk: false });
        }
        VmState::Incoming { migration }
        | VmState::Outgoing { migration, phase: OutgoingPhase::PreCopy | OutgoingPhase::AtSwitchOver } => {
            ask(control, now, vm, host, Command::CancelMigration { vm: vm.id.clone(), migration: *migration });
        }
        VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed { .. }
        | VmState::Completing { .. }
        | VmState::IncomingFailed { .. } => ask_run(control, now, vm, host),
    }
}

/// Whether the right to run came back to this host from this migration, and has not moved since: see [`crate::migrate`].
fn came_back(control: &Control, vm: &Vm, host: &HostId, migration: MigrationId) -> bool {
    control.migration(migration).is_some_and(|record| {
        matches!(record.phase, MigrationPhase::TakenBack { .. })
            && record.from == *host
            && record.generation.next().next() == vm.generation
    })
}

/// Finds hosts for the vms that are new, and for those that wait and whose time has come. One look at the cluster serves all.
fn place(control: &mut Control, now: TimeMs, new: Vec<VmId>) {
    if control.brake {
        return;
    }
    let vms = control.tables.vms.len();
    let round = control.lifecycle.attention.take_to_place(now, new, vms);
    if round.is_empty() {
        return;
    }
    let mut world = control.world(now);
    for id in round {
        let Some(vm) = control.vm(&id).cloned() else { continue };
        // Hosts that could not start it are no choice for a while.
        let avoided: BTreeSet<HostId> =
            world.hosts.keys().filter(|host| avoids(control, now, &vm, host)).cloned().collect();
        if let Some(view) = world.vms.get_mut(&id).filter(|_| !avoided.is_empty()) {
            let choice = world.hosts.keys().filter(|host| view.pinned_to.is_empty() || view.pinned_to.contains(*host));
            let choice: BTreeSet<HostId> = choice.filter(|host| !avoided.contains(*host)).cloned().collect();
            if choice.is_empty() {
                control.lifecycle.attention.waits(now, &id);
                let text = format!("{} waits: every host that it may run on has failed to start it", vm.spec.name);
                trouble(control, now, &vm, Severity::Escalation, "vm-waits", text);
                continue;
            }
            view.pinned_to = choice;
        }
        match planner::place(&world, &id) {
            Ok(placement) => {
                let host = placement.host;
                let generation = vm.generation.next();
                control.tables.change::<Vm>(&id, |vm| {
                    vm.remains_on.remove(&host);
                    vm.host = Some(host.clone());
                    vm.generation = generation;
                });
                control.lifecycle.attention.settled(&id);
                control.lifecycle.attention.look_at(&id);
                let text = format!("{} goes to {host}, because {}", vm.spec.name, placement.why);
                vm_event(control, now, &vm, Severity::Info, "vm-placed", text);
                if let Some(vm) = control.vm(&id).cloned() {
                    ask_run(control, now, &vm, &host);
                }
                if let Some(view) = world.vms.get_mut(&id) {
                    view.host = Some(host);
                    view.generation = generation;
                }
            }
            Err(refusal) => {
                if let planner::Refusal::WakeFirst { host } = &refusal {
                    let host = host.clone();
                    crate::power::wake(control, now, &host, &format!("{} needs room", vm.spec.name));
                }
                control.lifecycle.attention.waits(now, &id);
                let text = control.with_names(&format!("{} waits: {refusal}", vm.spec.name));
                trouble(control, now, &vm, Severity::Warning, "vm-waits", text);
            }
        }
    }
}

fn ask_run(control: &mut Control, now: TimeMs, vm: &Vm, host: &HostId) {
    let Some(image) = control.image(&vm.spec.image) else {
        let text = format!("{} can't start: its image {} is gone", vm.spec.name, vm.spec.image);
        return trouble(control, now, vm, Severity::Escalation, "vm-image-gone", text);
    };
    let run = VmRun::new(&vm.id, &vm.spec, image);
    ask(control, now, vm, host, Command::Run { run, generation: vm.generation });
}

/// Whether this host has refused to start the vm so often that another is looked for.
fn avoids(control: &Control, now: TimeMs, vm: &Vm, host: &HostId) -> bool {
    let refused = control.lifecycle.vms.get(&vm.id).and_then(|known| known.refused.get(host));
    refused.is_some_and(|refused| refused.avoided_until.is_some_and(|until| now < until))
}

/// The right to run is taken from a host that can't start the vm. It has been seen without it.
fn look_elsewhere(control: &mut Control, now: TimeMs, vm: &Vm, host: &HostId) {
    if control.live.is_unsure(host, &vm.id) {
        return;
    }
    let times = control.settings.waits.start_failures_max;
    let why = control.lifecycle.trouble(&vm.id).unwrap_or("it gave no reason").to_owned();
    control.tables.change::<Vm>(&vm.id, |row| row.remains_on.extend(row.host.take()));
    control.lifecycle.supervision(&vm.id).asked = None;
    let text =
        format!("{host} could not start {} {times} times in a row; another host is looked for ({why})", vm.spec.name);
    vm_event(control, now, vm, Severity::Warning, "vm-start-elsewhere", text);
}

/// A person has declared the vm's host lost: it is placed anew, under a newer generation.
fn abandon(control: &mut Control, now: TimeMs, vm: &Vm, host: &HostId) {
    control.tables.change::<Vm>(&vm.id, |row| row.host = None);
    control.lifecycle.reset(&vm.id);
    let text =
        format!("{host} was declared lost; {} is started elsewhere, without what was in its memory", vm.spec.name);
    vm_event(control, now, vm, Severity::Escalation, "vm-memory-lost", text);
}

/// The qemu process is gone and nobody asked for it: a new start, under a new generation.
fn restart(control: &mut Control, now: TimeMs, vm: &Vm, host: &HostId, why: &str) {
    if vm.gave_up.is_some() {
        return;
    }
    let (most, within) = (control.settings.waits.restarts_max, control.settings.waits.restarts_within);
    let supervision = control.lifecycle.supervision(&vm.id);
    supervision.restarts.retain(|at| now.since(*at) < within);
    if supervision.restarts.len() >= most as usize {
        control.tables.change::<Vm>(&vm.id, |row| row.gave_up = Some(why.to_owned()));
        let text = format!(
            "{} failed {most} times within {within} and is not started again: {why}. Look at `drover vm console`, then \
             `drover vm start` it",
            vm.spec.name
        );
        return trouble(control, now, vm, Severity::Escalation, "vm-failed", text);
    }
    supervision.restarts.push(now);
    supervision.asked = None;
    let generation = vm.generation.next();
    control.tables.change::<Vm>(&vm.id, |vm| vm.generation = generation);
    let text = format!("{} failed on {host} and is started again: {why}", vm.spec.name);
    vm_event(control, now, vm, Severity::Warning, "vm-restarted", text);
    if let Some(vm) = control.vm(&vm.id).cloned() {
        ask_run(control, now, &vm, host);
    }
}

fn stop(control: &mut Control, now: TimeMs, vm: &Vm) {
    let Some(host) = &vm.host else { return };
    if let Seen::There(seen) = control.live.sees(host, &vm.id)
        && seen.state.runs_guest()
        && seen.state != VmState::Stopping
    {
        let generation = vm.generation;
        ask(control, now, vm, host, Command::Stop { vm: vm.id.clone(), generation, grace: STOP_GRACE });
    }
}

/// Strikes hosts off that have let go of it, or have left the cluster.
fn forget_remains(control: &mut Control, vm: &mut Vm) {
    let before = vm.remains_on.len();
    vm.remains_on.retain(|host| {
        control.host(host).is_some_and(|row| row.lost.is_none()) && !control.live.is_rid_of(host, &vm.id)
    });
    if vm.remains_on.len() < before {
        control.tables.change::<Vm>(&vm.id, |row| row.remains_on.clone_from(&vm.remains_on));
    }
}

/// A vm is gone once every host has let go of it; one that sleeps or is silent is waited for.
fn remove(control: &mut Control, now: TimeMs, vm: &Vm) {
    if let Some(host) = vm.host.as_ref().filter(|host| !control.is_lost(host)) {
        match control.live.sees(host, &vm.id) {
            Seen::Unknown => {
                let text = format!("{} is removed once {host} answers", vm.spec.name);
                return trouble(control, now, vm, Severity::Warning, "vm-removal-waits", text);
            }
            Seen::There(seen) => {
                let generation = vm.generation.max(seen.generation);
                let command = Command::Release { vm: vm.id.clone(), generation, delete_disk: true };
                return ask(control, now, vm, host, command);
            }
            Seen::Absent if control.live.is_unsure(host, &vm.id) => return,
            Seen::Absent => {}
        }
    }
    if let Some(host) = vm.remains_on.first() {
        let text = format!("{} is removed once {host} is seen without it", vm.spec.name);
        return trouble(control, now, vm, Severity::Warning, "vm-removal-waits", text);
    }
    control.tables.remove::<Vm>(&vm.id);
    rules::forget(control, now, &vm.id);
    control.patterns.forget(&vm.id);
    vm_event(control, now, vm, Severity::Info, "vm-removed", format!("{} is gone", vm.spec.name));
}

/// What a host holds of a vm that another host has the right to run.
fn release_strays(control: &mut Control, now: TimeMs) {
    let mut strays = Vec::new();
    let mut strangers = Vec::new();
    for (host, id) in control.lifecycle.attention.strays() {
        let Seen::There(seen) = control.live.sees(&host, &id) else {
            // What a host that is away holds is looked at when it is back.
            control.lifecycle.attention.is_no_stray(&host, &id);
            continue;
        };
        if !control.is_stray(&host, &id) {
            control.lifecycle.attention.is_no_stray(&host, &id);
            continue;
        }
        match control.vm(&id) {
            None => match control.host(&host).and_then(|row| row.lost.as_ref()?.outdated.get(&id)) {
                // It was removed while its host was lost.
                Some(generation) => {
                    let generation = generation.next().max(seen.generation);
                    strays.push((host, Command::Release { vm: id, generation, delete_disk: true }));
                }
                None => strangers.push((host, id)),
            },
            Some(vm)
                if vm
                    .migration
                    .and_then(|id| control.migration(id))
                    .is_some_and(|m| m.from == host || m.to == host) => {}
            Some(vm) => {
                let generation = vm.generation.max(seen.generation);
                strays.push((host, Command::Release { vm: id, generation, delete_disk: false }));
            }
        }
    }
    for (host, command) in strays {
        control.live.send(&host, command);
    }
    control.lifecycle.strangers.retain(|stranger| strangers.contains(stranger));
    for (host, vm) in strangers {
        if control.lifecycle.strangers.insert((host.clone(), vm.clone())) {
            let text = format!(
                "{host} holds {vm}, which the store has never heard of; it is left alone. If the store was restored from an \
                 old copy, restore a newer one; else end it on {host} by hand"
            );
            control.tables.event(now, Severity::Escalation, format!("host/{host}"), None, "vm-unknown", text);
        }
    }
}

/// Sends, unless the same was asked a moment ago.
fn ask(control: &mut Control, now: TimeMs, vm: &Vm, host: &HostId, command: Command) {
    if control.live.state(host) == HostState::FallingAsleep || control.live.is_asked(host, &vm.id) {
        return;
    }
    let supervision = control.lifecycle.supervision(&vm.id);
    if supervision.asked.is_some_and(|at| now.since(at) < ASK_EVERY) {
        return;
    }
    supervision.asked = Some(now);
    control.live.send(host, command);
}

/// Takes in a refusal of what was asked here.
pub fn answered(control: &mut Control, now: TimeMs, host: &HostId, answered: &Answered) {
    let Err(refusal) = &answered.answer else { return };
    let Some(vm) = control.vm(answered.command.vm()).cloned() else { return };
    let verb = match &answered.command {
        Command::Run { .. } => {
            let waits = control.settings.waits;
            let refused = control.lifecycle.supervision(&vm.id).refused.entry(host.clone()).or_default();
            refused.times += 1;
            if refused.times >= waits.start_failures_max {
                *refused = Refused { times: 0, avoided_until: Some(now.plus(waits.avoid_host_for)) };
            }
            "start"
        }
        Command::Stop { .. } => "stop",
        Command::Release { .. } => "let go of",
        Command::TakeBack { .. } => "take back",
        // Of a migration: told of there.
        Command::PrepareIncoming { .. }
        | Command::MigrateOut { .. }
        | Command::CommitSwitchOver { .. }
        | Command::AdjustMigration { .. }
        | Command::RecoverIncoming { .. }
        | Command::RecoverOutgoing { .. }
        | Command::CancelMigration { .. } => return,
        // The vm is no worse for it.
        Command::MeasureDirtyRate { .. } => {
            let text = format!("{host} could not measure how fast {} writes: {refusal}", vm.spec.name);
            return vm_event(control, now, &vm, Severity::Warning, "vm-not-measured", text);
        }
    };
    let text = format!("{host} could not {verb} {}: {refusal}", vm.spec.name);
    trouble(control, now, &vm, Severity::Warning, "vm-trouble", text);
}

/// Notes why a vm is not where it should be; tells it once for as long as it stays the same.
fn trouble(control: &mut Control, now: TimeMs, vm: &Vm, severity: Severity, kind: &str, text: String) {
    let supervision = control.lifecycle.supervision(&vm.id);
    if supervision.trouble.as_ref() != Some(&text) {
        supervision.trouble = Some(text.clone());
        vm_event(control, now, vm, severity, kind, text);
    }
}

pub fn vm_event(control: &mut Control, now: TimeMs, vm: &Vm, severity: Severity, kind: &str, text: String) {
    control.tables.event(now, severity, format!("vm/{}", vm.id), Some(&vm.spec.tenant), kind, text);
}

#[cfg(test)]
mod tests;
