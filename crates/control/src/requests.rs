//! What people action for: who may, whether it makes sense now, and the change it makes.
//!
//! A refusal changes nothing. A tenant sees and changes its own things only; another tenant's are not found.

use crate::interface::{Action, Actor, Idempotency, ObjectKey, Refusal, RefusalKind, Reply, Request};
use crate::kinds::{self, Context, Wanted};
use crate::live::Seen;
use crate::{Control, access, lifecycle, lost, migrate, network, planning, power};
use drover_model::command::Command;
use drover_model::event::Severity;
use drover_model::intent::{Host, Image, JoinToken, PowerIntent, Role, RunIntent, Vm, VmSpec};
use drover_model::inventory::VmState;
use drover_model::kind::Owner;
use drover_model::load::DailyPattern;
use drover_model::migration::MigrationRecord;
use drover_model::plan::{PlanRecord, PlanState};
use drover_model::policy::{Policy, TheOne};
use drover_model::world::{HostState, Movable, VmView};
use drover_model::{Bytes, CpuMillis, HostId, MigrationId, Millis, PlanId, TimeMs, TokenId, VmId};
use drover_planner as planner;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// Answers to requests with an idempotency key are remembered this long, and at most this many.
const REMEMBER_FOR: Millis = Millis::secs(24 * 3600);
const REMEMBER_MAX: usize = 10_000;
/// Finished plans and migrations are kept at most this many; the oldest go first.
const PLANS_MAX: usize = 500;
const MIGRATIONS_MAX: usize = 2_000;
const VMS_MAX: usize = 100_000;
const KEY_LENGTH_MAX: usize = 128;

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, detail: String) -> Self {
        Self { kind, field: None, detail }
    }

    pub(crate) fn invalid(field: impl Into<Cow<'static, str>>, detail: String) -> Self {
        Self::new(RefusalKind::Invalid, detail).at(field)
    }

    pub(crate) fn not_found(detail: String) -> Self {
        Self::new(RefusalKind::NotFound, detail)
    }

    pub(crate) fn conflict(detail: String) -> Self {
        Self::new(RefusalKind::Conflict, detail)
    }

    pub(crate) fn unavailable(detail: String) -> Self {
        Self::new(RefusalKind::Unavailable, detail)
    }

    /// The same, with the request's field it is about.
    pub(crate) fn at(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        self.field = Some(field.into());
        self
    }
}

pub fn handle(control: &mut Control, now: TimeMs, request: Request) -> Result<Reply, Refusal> {
    let Request { actor, idempotency_key, if_match, fresh, action, .. } = request;
    let remembered = match idempotency_key {
        Some(key) => match recall(control, &actor, &key, &action)? {
            Recall::Answered(reply) => return Ok(reply),
            Recall::New { key, fingerprint } => Some((key, fingerprint)),
        },
        None => None,
    };
    if let Some(expected) = if_match {
        let unchanged = object_of(&action).is_none_or(|key| control.revision_of(&key) == Some(expected));
        if !unchanged {
            let detail = "it has changed since you read it: read it again and decide anew".to_owned();
            return Err(Refusal::new(RefusalKind::Precondition, detail));
        }
    }
    control.tables.actor = Some((&actor).into());
    let reply = dispatch(control, now, &actor, &fresh, action);
    control.tables.actor = None;
    let reply = reply?;
    if let Some((key, fingerprint)) = remembered {
        control.tables.put(Idempotency { key, fingerprint, reply: reply.clone(), at: now });
    }
    Ok(reply)
}

enum Recall {
    Answered(Reply),
    New { key: String, fingerprint: String },
}

fn recall(control: &Control, actor: &Actor, key: &str, action: &Action) -> Result<Recall, Refusal> {
    if key.is_empty() || key.len() > KEY_LENGTH_MAX || !key.bytes().all(|b| b.is_ascii_graphic()) {
        let detail = format!("an idempotency key is 1 to {KEY_LENGTH_MAX} printable ASCII characters without spaces");
        return Err(Refusal::invalid("Idempotency-Key", detail));
    }
    let key = format!("{}/{key}", actor.name);
    let fingerprint = fingerprint(action);
    match control.tables.get::<Idempotency>(&key) {
        Some(known) if known.fingerprint == fingerprint => Ok(Recall::Answered(known.reply.clone())),
        Some(_) => Err(Refusal::invalid(
            "Idempotency-Key",
            "this idempotency key was used for another request: use a fresh one".to_owned(),
        )),
        None => Ok(Recall::New { key, fingerprint }),
    }
}

/// SHA-256 of the request without what the server itself made fresh for it, in lower-case hexadecimal.
fn fingerprint(action: &Action) -> String {
    // All of an action serialises: it is made of what JSON brought.
    let mut value = serde_json::to_value(action).unwrap_or_else(|error| format!("{action:?}: {error}").into());
    let fresh: &[&str] = match action {
        Action::CreateVm { .. } => &["/id", "/spec/nic/mac"],
        // The secret was shown once; a repetition is told so by the shell, which can't show it again.
        Action::CreateToken { .. } | Action::CreateJoinToken { .. } => {
            &["/token/id", "/token/secret_sha256", "/token/created_at", "/token/expires_at"]
        }
        Action::CreateImage { .. } => &["/image/created_at"],
        Action::Create(_)
        | Action::Patch { .. }
        | Action::Remove { .. }
        | Action::Join { .. }
        | Action::DrainHost { .. }
        | Action::UndrainHost { .. }
        | Action::DeclareHostLost { .. }
        | Action::PowerHost { .. }
        | Action::SetRun { .. }
        | Action::RemoveVm { .. }
        | Action::MigrateVm { .. }
        | Action::CancelMigration { .. }
        | Action::HoldMigration { .. }
        | Action::PrioritiseMigration { .. }
        | Action::MeasureVm { .. }
        | Action::SetSecurityGroups { .. }
        | Action::PlanNow
        | Action::ApprovePlan { .. }
        | Action::RejectPlan { .. }
        | Action::SetPolicy { .. } => &[],
    };
    for path in fresh {
        if let Some(field) = value.pointer_mut(path) {
            *field = serde_json::Value::Null;
        }
    }
    Sha256::digest(value.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The object a precondition speaks of.
fn object_of(action: &Action) -> Option<ObjectKey> {
    match action {
        Action::Patch { key, .. } | Action::Remove { key } => Some(key.clone()),
        Action::DrainHost { host }
        | Action::UndrainHost { host }
        | Action::DeclareHostLost { host }
        | Action::PowerHost { host, .. } => Some(ObjectKey::of::<Host>(host)),
        Action::SetRun { vm, .. }
        | Action::RemoveVm { vm }
        | Action::MigrateVm { vm, .. }
        | Action::MeasureVm { vm, .. }
        | Action::SetSecurityGroups { vm, .. } => Some(ObjectKey::of::<Vm>(vm)),
        Action::CancelMigration { id } | Action::HoldMigration { id, .. } | Action::PrioritiseMigration { id, .. } => {
            Some(ObjectKey::of::<MigrationRecord>(id))
        }
        Action::ApprovePlan { id } | Action::RejectPlan { id } => Some(ObjectKey::of::<PlanRecord>(id)),
        Action::SetPolicy { .. } => Some(ObjectKey::of::<Policy>(&TheOne)),
        Action::Create(_)
        | Action::CreateToken { .. }
        | Action::CreateJoinToken { .. }
        | Action::Join { .. }
        | Action::CreateImage { .. }
        | Action::CreateVm { .. }
        | Action::PlanNow => None,
    }
}

fn dispatch(control: &mut Control, now: TimeMs, actor: &Actor, fresh: &str, action: Action) -> Result<Reply, Refusal> {
    access::authorize(actor, &action)?;
    let by = &actor.name;
    match action {
        Action::Create(draft) => kinds::create(&mut Context { control, now, actor, fresh }, draft),
        Action::Patch { key, patch } => kinds::patch(&mut Context { control, now, actor, fresh }, &key, &patch),
        Action::Remove { key } => kinds::remove(&mut Context { control, now, actor, fresh }, &key),
        Action::CreateToken { token } => kinds::create_token(&mut Context { control, now, actor, fresh }, token),
        Action::CreateImage { image } => kinds::create_image(&mut Context { control, now, actor, fresh }, image),
        Action::CreateVm { id, spec } => create_vm(&mut Context { control, now, actor, fresh }, id, spec),
        Action::Join { host, token, secret_sha256 } => access::join(control, now, &host, &token, &secret_sha256),
        Action::SetRun { vm, run } => set_run(control, now, actor, &vm, run),
        Action::RemoveVm { vm } => remove_vm(control, now, actor, &vm),
        Action::MeasureVm { vm, span } => measure_vm(control, actor, &vm, span),
        Action::SetSecurityGroups { vm, groups } => {
            let vm = own_vm(control, actor, &vm)?;
            network::set_groups(control, now, actor, &vm, groups)
        }
        Action::CreateJoinToken { token } => access::create_join_token(control, token),
        Action::DrainHost { host } => drain(control, now, &host, true, by),
        Action::UndrainHost { host } => drain(control, now, &host, false, by),
        Action::DeclareHostLost { host } => lost::declare(control, now, &host, by),
        Action::PowerHost { host, on } => power_host(control, now, &host, on, by),
        Action::MigrateVm { vm, to, method } => {
            migrate::by_hand(control, now, &vm, to, method, by).map(Reply::Migration)
        }
        Action::CancelMigration { id } => migrate::cancel(control, now, id, by).map(|()| Reply::Migration(id)),
        Action::HoldMigration { id, held } => migrate::hold(control, now, id, held, by).map(|()| Reply::Migration(id)),
        Action::PrioritiseMigration { id, priority } => {
            migrate::prioritise(control, now, id, priority, by).map(|()| Reply::Migration(id))
        }
        Action::PlanNow => planning::plan_now(control, now),
        Action::ApprovePlan { id } => planning::approve(control, now, id),
        Action::RejectPlan { id } => planning::reject(control, now, id, by),
        Action::SetPolicy { policy } => set_policy(control, now, *policy, by),
    }
}

fn drain(control: &mut Control, now: TimeMs, host: &HostId, maintenance: bool, by: &str) -> Result<Reply, Refusal> {
    let row = control.require::<Host>(host)?;
    if !maintenance && row.lost.is_some() {
        lost::may_be_used_again(control, host)?;
        control.tables.change::<Host>(host, |row| row.lost = None);
    }
    let row = control.require::<Host>(host)?;
    if row.maintenance != maintenance {
        control.tables.change::<Host>(host, |row| {
            row.maintenance = maintenance;
            row.drained_at = maintenance.then_some(now);
        });
        let (kind, text) = if maintenance {
            ("host-drained", format!("{by} drains {host} for maintenance"))
        } else {
            ("host-undrained", format!("{by} gives {host} back"))
        };
        control.tables.event(now, Severity::Info, format!("host/{host}"), None, kind, text);
    }
    Ok(Reply::Host(host.clone()))
}

fn power_host(control: &mut Control, now: TimeMs, host: &HostId, on: bool, by: &str) -> Result<Reply, Refusal> {
    let row = control.require::<Host>(host)?;
    let power = row.power;
    if !on {
        if power == PowerIntent::Asleep {
            // Already off: from now on only a person switches it on.
            control.tables.change::<Host>(host, |row| row.power = PowerIntent::Off);
        } else if power == PowerIntent::On {
            power::switch_off(control, now, host, PowerIntent::Off, &format!("{by} asked for it"))?;
        }
        return Ok(Reply::Host(host.clone()));
    }
    if !control.settings.power_managed.contains(host) {
        return Err(Refusal::conflict(format!(
            "{host} has no power driver: switch it on by hand, or configure [hosts.{host}.power]"
        )));
    }
    if power == PowerIntent::On && control.live.state(host) == HostState::Down {
        // It should be on and is silent: let the driver try.
        control.tables.change::<Host>(host, |row| row.power = PowerIntent::Asleep);
    }
    power::wake(control, now, host, &format!("{by} asked for it"));
    Ok(Reply::Host(host.clone()))
}

fn create_vm(context: &mut Context, id: VmId, mut spec: VmSpec) -> Result<Reply, Refusal> {
    let (now, actor) = (context.now, context.actor);
    if actor.role.tenant().is_some_and(|tenant| *tenant != spec.tenant) {
        let detail = "a tenant makes vms for itself only".to_owned();
        return Err(Refusal::new(RefusalKind::Forbidden, detail).at("tenant"));
    }
    context.within_quota(
        &spec.tenant,
        Wanted { vms: 1, vcpus: u64::from(spec.vcpus), memory_mib: spec.memory.0 >> 20, ..Wanted::default() },
    )?;
    let control = &mut *context.control;
    control.require::<Image>(&spec.image).map_err(|refusal| refusal.at("image"))?;
    if let Some(host) = spec.pinned_to.iter().find(|host| control.host(host).is_none()) {
        return Err(Refusal::invalid("pinned_to", format!("there is no host {host}")));
    }
    if looks_like_an_id(spec.name.as_str()) {
        let detail = "a name must not look like an id (vm- and 12 letters or digits): choose another".to_owned();
        return Err(Refusal::invalid("name", detail));
    }
    let owner = Owner::Tenant(&spec.tenant);
    if control.tables.vms.of_owner(owner, spec.name.as_str()).is_some() {
        let detail = format!("{} has a vm {} already: choose another name", spec.tenant, spec.name);
        return Err(Refusal::conflict(detail).at("name"));
    }
    let vcpus = CpuMillis(u64::from(spec.vcpus) * 1_000);
    if spec.cpu_reserved > vcpus {
        let detail =
            format!("{} can't be reserved for a vm of {} vcpus: at most {vcpus}", spec.cpu_reserved, spec.vcpus);
        return Err(Refusal::invalid("cpu_reserved_millis", detail));
    }
    if control.tables.vms.len() >= VMS_MAX {
        return Err(Refusal::conflict(format!("the cluster has {VMS_MAX} vms, its limit")));
    }
    spec.nic = spec.nic.take().map(|nic| network::card(control, actor, &spec.tenant, nic)).transpose()?;
    fits_somewhere(control, now, &id, &spec)?;
    let vm = Vm {
        id: id.clone(),
        spec,
        created_at: control.to_wall(now),
        run: RunIntent::Running,
        host: None,
        generation: drover_model::Generation(0),
        migration: None,
        left: Vec::new(),
        deleting: false,
        remains_on: Default::default(),
        gave_up: None,
    };
    let text = format!("{} made {} from image {}", actor.name, vm.spec.name, vm.spec.image);
    lifecycle::vm_event(control, now, &vm, Severity::Info, "vm-created", text);
    control.tables.put(vm);
    Ok(Reply::Vm(id))
}

/// A name that could be taken for another vm's id.
fn looks_like_an_id(name: &str) -> bool {
    name.strip_prefix("vm-").is_some_and(|rest| rest.len() == 12 && !rest.contains('-'))
}

/// A vm that no host could ever run is refused at once; one that has to wait for room is taken.
fn fits_somewhere(control: &Control, now: TimeMs, id: &VmId, spec: &VmSpec) -> Result<(), Refusal> {
    let mut world = control.world(now);
    if world.hosts.values().all(|host| host.capacity.is_none()) {
        return Err(Refusal::unavailable(
            "no host has joined yet: `drover host token HOST` makes the token for one".to_owned(),
        ));
    }
    let view = VmView {
        name: spec.name.clone(),
        tenant: spec.tenant.clone(),
        generation: drover_model::Generation(0),
        vcpus: spec.vcpus,
        memory: spec.memory,
        network: control.reach_needed(spec),
        anti_affinity: spec.anti_affinity.clone(),
        pinned_to: spec.pinned_to.clone(),
        host: None,
        movable: Movable::No { why: "it has no host yet".to_owned() },
        left: Vec::new(),
        pattern: DailyPattern::default(),
        disk: Bytes::ZERO,
        pool: None,
        cpu_reserved: spec.cpu_reserved,
        load: Default::default(),
    };
    world.vms.insert(id.clone(), view);
    match planner::place(&world, id) {
        Err(planner::Refusal::NeverFits { why }) => Err(Refusal::new(RefusalKind::Invalid, why)),
        Ok(_) | Err(planner::Refusal::WakeFirst { .. } | planner::Refusal::NoRoom { .. }) => Ok(()),
    }
}

/// The vm, if the caller may touch it.
fn own_vm(control: &Control, actor: &Actor, id: &VmId) -> Result<Vm, Refusal> {
    let vm = control.require::<Vm>(id)?;
    match &actor.role {
        Role::Tenant { tenant } if *tenant != vm.spec.tenant => Err(Refusal::not_found(format!("there is no vm {id}"))),
        Role::Tenant { .. } | Role::Operator => Ok(vm.clone()),
    }
}

fn set_run(control: &mut Control, now: TimeMs, actor: &Actor, id: &VmId, run: RunIntent) -> Result<Reply, Refusal> {
    let vm = own_vm(control, actor, id)?;
    let name = &vm.spec.name;
    if vm.deleting {
        return Err(Refusal::conflict(format!("{name} is being removed")));
    }
    let failed = control.vm_status(id).phase == "failed";
    if vm.run == run && !failed {
        return Ok(Reply::Vm(id.clone()));
    }
    control.yield_to_owner(now, &vm, run, &actor.name)?;
    match run {
        RunIntent::Stopped => control.tables.change::<Vm>(id, |vm| {
            vm.run = run;
            vm.gave_up = None;
        }),
        RunIntent::Running => {
            if let Some(host) = &vm.host {
                match control.live.sees(host, id) {
                    // What it was told a moment ago may start it there.
                    _ if control.live.is_unsure(host, id) => {
                        return Err(Refusal::unavailable(format!("{host} is busy with {name}: try again in a second")));
                    }
                    Seen::Unknown if control.live.state(host) != HostState::Asleep && !control.is_lost(host) => {
                        return Err(Refusal::unavailable(format!(
                            "{host}, where {name} was, does not answer: try again later"
                        )));
                    }
                    Seen::There(seen) if seen.state.runs_guest() => {
                        return Err(Refusal::conflict(format!(
                            "{name} is still stopping: start it when it has stopped"
                        )));
                    }
                    _ => {}
                }
            }
            // It is placed anew; what its last host still knows of it is released as a stray.
            control.tables.change::<Vm>(id, |vm| {
                vm.run = run;
                vm.gave_up = None;
                vm.remains_on.extend(vm.host.take());
            });
        }
    }
    control.lifecycle.reset(id);
    let (kind, verb) = match run {
        RunIntent::Running => ("vm-start", "starts"),
        RunIntent::Stopped => ("vm-stop", "stops"),
    };
    lifecycle::vm_event(control, now, &vm, Severity::Info, kind, format!("{} {verb} {name}", actor.name));
    Ok(Reply::Vm(id.clone()))
}

fn remove_vm(control: &mut Control, now: TimeMs, actor: &Actor, id: &VmId) -> Result<Reply, Refusal> {
    let vm = own_vm(control, actor, id)?;
    if !vm.deleting {
        control.yield_to_owner(now, &vm, RunIntent::Stopped, &actor.name)?;
        control.tables.change::<Vm>(id, |vm| vm.deleting = true);
        control.lifecycle.reset(id);
        let text = format!("{} removes {}", actor.name, vm.spec.name);
        lifecycle::vm_event(control, now, &vm, Severity::Info, "vm-removing", text);
    }
    Ok(Reply::Vm(id.clone()))
}

fn measure_vm(control: &mut Control, actor: &Actor, id: &VmId, span: Millis) -> Result<Reply, Refusal> {
    let vm = own_vm(control, actor, id)?;
    let name = &vm.spec.name;
    let (min, max) = (Command::MEASURE_SPAN_MIN, Command::MEASURE_SPAN_MAX);
    if !(min..=max).contains(&span) {
        let detail = format!("must lie between {} and {}", min.as_secs(), max.as_secs());
        return Err(Refusal::invalid("seconds", detail));
    }
    if vm.migration.is_some() {
        return Err(Refusal::conflict(format!("{name} is being moved: measure it once that is over")));
    }
    let not_running = || Refusal::conflict(format!("{name} is not running, and only a running vm can be measured"));
    let host = vm.host.as_ref().filter(|_| vm.run == RunIntent::Running && !vm.deleting).ok_or_else(not_running)?;
    match control.live.sees(host, id) {
        Seen::There(seen) if seen.state == VmState::Running => {}
        Seen::There(_) | Seen::Absent => return Err(not_running()),
        Seen::Unknown => {
            return Err(Refusal::unavailable(format!("{host}, where {name} runs, does not answer: try again later")));
        }
    }
    let command = Command::MeasureDirtyRate { vm: id.clone(), generation: vm.generation, span };
    if !control.live.is_asked_to_measure(host, id) && !control.live.send(host, command) {
        return Err(Refusal::unavailable(format!("{host} has too much to do: try again in a second")));
    }
    Ok(Reply::Vm(id.clone()))
}

fn set_policy(control: &mut Control, now: TimeMs, policy: Policy, by: &str) -> Result<Reply, Refusal> {
    policy.check().map_err(|bad| Refusal::invalid(bad.field, bad.to_string()))?;
    control.tables.put(policy);
    control.tables.event(now, Severity::Info, "cluster", None, "policy-set", format!("{by} changed the policy"));
    Ok(Reply::Policy)
}

/// Keeps what only grows within bounds.
pub fn retain(control: &mut Control, now: TimeMs) {
    let tables = &mut control.tables;
    let stale: Vec<String> = tables
        .idempotency
        .values()
        .filter(|row| now.since(row.at) >= REMEMBER_FOR)
        .map(|row| row.key.clone())
        .collect();
    for key in stale {
        tables.remove::<Idempotency>(&key);
    }
    while tables.idempotency.len() > REMEMBER_MAX {
        let oldest = tables.idempotency.values().min_by_key(|row| row.at).map(|row| row.key.clone());
        let Some(key) = oldest else { break };
        tables.remove::<Idempotency>(&key);
    }
    let wall = tables.wall_offset.to_wall(now);
    let expired: Vec<TokenId> =
        tables.join_tokens.values().filter(|row| wall >= row.expires_at).map(|row| row.id.clone()).collect();
    for id in expired {
        tables.remove::<JoinToken>(&id);
    }
    let surplus = tables.plans.len().saturating_sub(PLANS_MAX);
    let over = |state: &PlanState| !matches!(state, PlanState::Running | PlanState::Settling | PlanState::Proposed);
    let old: Vec<PlanId> =
        tables.plans.values().filter(|plan| over(&plan.state)).take(surplus).map(|plan| plan.id).collect();
    for id in old {
        tables.remove::<PlanRecord>(&id);
    }
    let surplus = tables.migrations.len().saturating_sub(MIGRATIONS_MAX);
    let old: Vec<MigrationId> = tables
        .migrations
        .values()
        .filter(|record| record.phase.is_over())
        .take(surplus)
        .map(|record| record.id)
        .collect();
    for id in old {
        tables.remove::<MigrationRecord>(&id);
    }
}
