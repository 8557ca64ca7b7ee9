//! What is asked of a migration before it begins: whether it may be, how it would be done, and what it would take.
//!
//! Asked for, it is [`MigrationPhase::Queued`]: [`crate::transfers`] says when its turn has come.

use super::MigrationRequest;
use crate::Control;
use crate::interface::Refusal;
use crate::lifecycle::vm_event;
use crate::live::Seen;
use drover_model::event::Severity;
use drover_model::intent::{Host, Vm};
use drover_model::inventory::{MigrationFeature, VmState};
use drover_model::migration::{Method, MigrationPhase, MigrationRecord, Priority};
use drover_model::world::{HostState, World};
use drover_model::{HostId, MigrationId, TimeMs, VmId};
use drover_planner as planner;
use planner::predict::{Allowed, Choice, Features};
use planner::schedule::Work;
use std::collections::BTreeSet;

/// What a move would be, and what speaks against it. Nothing was changed for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    pub vm: VmId,
    pub from: HostId,
    pub to: HostId,
    pub choice: Choice,
    /// Each would make the request be refused as things stand now.
    pub forbidden: Vec<String>,
    /// Why it would not begin at once.
    pub waits_for: Option<String>,
}

/// Takes the request into the queue. The caller has judged by load; here the rules that hold whatever the load are looked at
/// once more.
pub fn ask(control: &mut Control, now: TimeMs, request: MigrationRequest) -> Result<MigrationId, Refusal> {
    let row = control.require::<Vm>(&request.vm)?.clone();
    let world = control.world_of(now, &row);
    let from = may_begin(control, &row, &request.to)?;
    if let Some(why) = control.forbids_method(&from, &request.to, request.method) {
        return Err(Refusal::conflict(why));
    }
    let choice = choose(control, &world, &row, &from, &request.to, request.method);
    let id = control.tables.next_migration();
    let MigrationRequest { vm, to, plan, reason, priority, .. } = request;
    let name = &row.spec.name;
    let text = format!(
        "{name} is to move from {from} to {to}, because {reason}; by {}, because {}; about {} are expected, the guest \
         standing still for {}",
        choice.strategy.method.word(),
        choice.why,
        choice.prediction.total.expected,
        choice.prediction.downtime.expected
    );
    control.tables.put(MigrationRecord {
        id,
        vm: vm.clone(),
        from,
        to,
        generation: row.generation,
        plan,
        reason,
        started_at: now,
        phase: MigrationPhase::Queued,
        strategy: choice.strategy,
        prediction: Some(choice.prediction),
        priority,
        paused: false,
        cancelled_by: None,
        finished_at: None,
        report: None,
    });
    control.tables.change::<Vm>(&vm, |vm| vm.migration = Some(id));
    vm_event(control, now, &row, Severity::Info, "migration-asked", text);
    control.transfers.changed();
    Ok(id)
}

/// Where it runs now, if it could leave for `to` this moment.
pub fn may_begin(control: &Control, row: &Vm, to: &HostId) -> Result<HostId, Refusal> {
    let name = &row.spec.name;
    let from = match (&row.host, row.migration, row.deleting) {
        (_, _, true) => return Err(Refusal::conflict(format!("{name} is being removed"))),
        (_, Some(id), _) => return Err(Refusal::conflict(format!("{name} is already being moved by migration {id}"))),
        (None, _, _) => return Err(Refusal::conflict(format!("{name} has no host yet"))),
        (Some(host), None, false) => host.clone(),
    };
    if from == *to {
        return Err(Refusal::conflict(format!("{name} already runs on {to}")));
    }
    may_go_on(control, row, &from, to).map_err(Refusal::conflict)?;
    Ok(from)
}

/// What must hold when it is asked for, and again when its turn has come.
pub fn may_go_on(control: &Control, row: &Vm, from: &HostId, to: &HostId) -> Result<(), String> {
    let name = &row.spec.name;
    for host in [from, to] {
        if control.live.state(host) != HostState::Up {
            return Err(format!("{host} is not up"));
        }
    }
    match control.live.sees(from, &row.id) {
        Seen::There(seen) if seen.state == VmState::Running && seen.generation == row.generation => {}
        _ => return Err(format!("{name} is not running: only a running vm can be moved")),
    }
    match control.keeps_out(row, to) {
        Some(why) => Err(why),
        None if control.image(&row.spec.image).is_none() => Err(format!("the image of {name} is gone")),
        None => Ok(()),
    }
}

fn features(world: &World, row: &Vm, from: &HostId, to: &HostId) -> Features {
    Features::of(world, &row.id, to).unwrap_or_else(|| Features {
        vm: row.id.clone(),
        from: from.clone(),
        to: to.clone(),
        in_use: row.spec.memory,
        writing: None,
        bandwidth: None,
    })
}

fn choose(control: &Control, world: &World, row: &Vm, from: &HostId, to: &HostId, method: Option<Method>) -> Choice {
    let policy = &world.policy.migration;
    let features = features(world, row, from, to);
    let allowed = Allowed { method, ..Allowed::by(policy) }.between(&control.abilities(from), &control.abilities(to));
    control.transfers.predictor().choose(&features, &allowed)
}

/// The destination a person meant: the one they named, or the one the planner would take.
pub fn destination(control: &Control, world: &World, row: &Vm, to: Option<HostId>) -> Result<HostId, Refusal> {
    let name = &row.spec.name;
    let Some(from) = row.host.clone() else {
        return Err(Refusal::conflict(format!("{name} has no host yet")));
    };
    let to = match to {
        Some(to) => {
            control.require::<Host>(&to).map_err(|refusal| refusal.at("to"))?;
            to
        }
        None => {
            let mut without = world.clone();
            if let Some(view) = without.vms.get_mut(&row.id) {
                view.host = None;
            }
            // Anywhere but where it is.
            if let Some(host) = without.hosts.get_mut(&from) {
                host.maintenance = true;
            }
            planner::place(&without, &row.id)
                .map_err(|refusal| Refusal::conflict(control.with_names(&format!("{name} can't move: {refusal}"))))?
                .host
        }
    };
    if to == from {
        return Err(Refusal::conflict(format!("{name} already runs on {to}")).at("to"));
    }
    Ok(to)
}

/// Moves one vm on a person's word. `to` `None`: where the planner would place it.
pub fn by_hand(
    control: &mut Control,
    now: TimeMs,
    vm: &VmId,
    to: Option<HostId>,
    method: Option<Method>,
    by: &str,
) -> Result<MigrationId, Refusal> {
    let row = control.require::<Vm>(vm)?.clone();
    let world = control.world_for_hand(now, &row);
    let to = destination(control, &world, &row, to)?;
    if let Some(objection) = planner::objection(&world, vm, &to) {
        let text = format!("{} can't move to {to}: {objection}", row.spec.name);
        return Err(Refusal::conflict(control.with_names(&text)));
    }
    if let Some(why) = control.parts(&row, &to) {
        return Err(Refusal::conflict(format!("{} can't move to {to}: {why}", row.spec.name)));
    }
    let reason = format!("{by} asked for it");
    let request = MigrationRequest { vm: vm.clone(), to, plan: None, reason, priority: Priority::Normal, method };
    ask(control, now, request)
}

impl Control {
    /// What `drover vm migrate --dry-run` says: as [`by_hand`] would have it, and nothing is changed.
    pub fn forecast_migration(
        &self,
        now: TimeMs,
        vm: &VmId,
        to: Option<HostId>,
        method: Option<Method>,
    ) -> Result<Forecast, Refusal> {
        let row = self.require::<Vm>(vm)?;
        let world = self.world_for_hand(now, row);
        let to = destination(self, &world, row, to)?;
        let from = row.host.clone().unwrap_or_else(|| to.clone());
        let mut forbidden = BTreeSet::new();
        forbidden.extend(planner::objection(&world, vm, &to).map(|objection| self.with_names(&objection.to_string())));
        forbidden.extend(self.parts(row, &to));
        forbidden.extend(may_begin(self, row, &to).err().map(|refusal| refusal.detail));
        forbidden.extend(self.forbids_method(&from, &to, method));
        let choice = choose(self, &world, row, &from, &to, method);
        let features = features(&world, row, &from, &to);
        let waits_for = self.would_wait(&from, &to, Work::of(&features, &choice.prediction));
        Ok(Forecast { vm: vm.clone(), from, to, choice, forbidden: forbidden.into_iter().collect(), waits_for })
    }

    /// A person may move what the planner leaves alone for a while.
    fn world_for_hand(&self, now: TimeMs, row: &Vm) -> World {
        let mut world = self.world(now);
        if let Some(view) = world.vms.get_mut(&row.id) {
            view.movable = self.movable(row, row.host.as_ref().map(|host| self.live.sees(host, &row.id)));
        }
        world
    }

    /// Ways to migrate that the host has said it can be asked for.
    fn abilities(&self, host: &HostId) -> BTreeSet<MigrationFeature> {
        let facts = self.live.hosts.get(host).and_then(|live| live.facts.as_ref());
        facts.map(|facts| facts.migration_features.clone()).unwrap_or_default()
    }

    /// Why the move can't be made in the way that is asked for, or that the policy demands.
    fn forbids_method(&self, from: &HostId, to: &HostId, method: Option<Method>) -> Option<String> {
        let policy = &self.policy().migration;
        let without = |feature| [from, to].into_iter().find(|host| !self.abilities(host).contains(&feature));
        if policy.tls
            && let Some(host) = without(MigrationFeature::Tls)
        {
            return Some(format!(
                "the QEMU of {host} can't encrypt a migration, which the policy demands: give it a QEMU with TLS and \
                 restart its agent, or, on a network nobody else is on, `drover policy set migration_tls=false`"
            ));
        }
        if method != Some(Method::PostCopy) {
            return None;
        }
        if !policy.post_copy {
            return Some(
                "the policy does not allow post-copy: `drover policy set migration_post_copy=true`".to_owned(),
            );
        }
        without(MigrationFeature::PostCopy).map(|host| {
            format!(
                "{host} can't do post-copy: its kernel must have userfaultfd, and let QEMU use it \
                 (sysctl vm.unprivileged_userfaultfd=1)"
            )
        })
    }

    /// Whether a guest that pre-copy can't move may be moved by post-copy between these two.
    pub(super) fn allows_post_copy(&self, from: &HostId, to: &HostId) -> bool {
        self.forbids_method(from, to, Some(Method::PostCopy)).is_none()
    }
}
