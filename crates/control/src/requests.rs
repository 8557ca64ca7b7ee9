//! What people action for: who may, whether it makes sense now, and the change it makes.
//!
//! A refusal changes nothing. A tenant sees and changes its own things only; another tenant's are not found.

use crate::interface::{Action, Actor, Idempotency, ObjectKey, Refusal, RefusalKind, Reply, Request};
use crate::live::Seen;
use crate::{Control, access, lifecycle, migrate, network, planning, power, rules};
use drover_model::command::Command;
use drover_model::event::Severity;
use drover_model::intent::{Host, HostAttributes, Image, JoinToken, PowerIntent, Role, RunIntent, Tenant, Vm, VmSpec};
use drover_model::inventory::VmState;
use drover_model::load::DailyPattern;
use drover_model::migration::MigrationRecord;
use drover_model::plan::{PlanRecord, PlanState};
use drover_model::policy::Policy;
use drover_model::world::{HostState, Movable, VmView};
use drover_model::{Bytes, CpuMillis, HostId, MigrationId, Millis, PlanId, TimeMs, TokenId, VmId};
use drover_planner as planner;
use std::fmt;

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

    pub(crate) fn invalid(field: &'static str, detail: String) -> Self {
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
    pub(crate) fn at(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }
}

pub fn handle(control: &mut Control, now: TimeMs, request: Request) -> Result<Reply, Refusal> {
    let Request { actor, idempotency_key, if_match, action, .. } = request;
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
    let reply = dispatch(control, now, &actor, action);
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

/// The request without what the server itself made fresh for it.
fn fingerprint(action: &Action) -> String {
    let mut value = serde_json::to_value(action).unwrap_or_default();
    let fresh: &[&str] = match action {
        Action::CreateVm { .. } => &["/id", "/spec/nic/mac"],
        // The secret was shown once; a repetition is told so by the shell, which can't show it again.
        Action::CreateToken { .. } | Action::CreateJoinToken { .. } => {
            &["/token/id", "/token/secret_sha256", "/token/created_at", "/token/expires_at"]
        }
        Action::CreateImage { .. } => &["/image/created_at"],
        Action::CreateNetwork { .. } => &["/id"],
        Action::CreateSecurityGroup { .. } => &["/group/created_at"],
        _ => &[],
    };
    for path in fresh {
        if let Some(field) = value.pointer_mut(path) {
            *field = serde_json::Value::Null;
        }
    }
    value.to_string()
}

/// The object a precondition speaks of.
fn object_of(action: &Action) -> Option<ObjectKey> {
    let key = |kind, id: &dyn fmt::Display| Some(ObjectKey { kind, id: id.to_string() });
    match action {
        Action::RemoveTenant { id } => key("tenant", id),
        Action::RemoveToken { id } => key("api-token", id),
        Action::RemoveHost { host }
        | Action::DrainHost { host }
        | Action::UndrainHost { host }
        | Action::PowerHost { host, .. }
        | Action::SetHostAttributes { host, .. } => key("host", host),
        Action::RemoveImage { id } => key("image", id),
        Action::SetRun { vm, .. }
        | Action::RemoveVm { vm }
        | Action::MigrateVm { vm, .. }
        | Action::MeasureVm { vm, .. } => key("vm", vm),
        Action::CancelMigration { id } | Action::HoldMigration { id, .. } | Action::PrioritiseMigration { id, .. } => {
            key("migration", id)
        }
        Action::ApprovePlan { id } | Action::RejectPlan { id } => key("plan", id),
        Action::SetPolicy { .. } => key("policy", &"cluster"),
        Action::RemoveNetwork { id } => key("network", id),
        Action::SetSecurityRules { tenant, id, .. } | Action::RemoveSecurityGroup { tenant, id } => {
            key("security-group", &format!("{tenant}/{id}"))
        }
        Action::SetSecurityGroups { vm, .. } => key("vm", vm),
        Action::RemovePort { id } => key("port", id),
        Action::RemoveRule { id } => key("placement-rule", id),
        Action::CreateTenant { .. }
        | Action::CreateToken { .. }
        | Action::CreateJoinToken { .. }
        | Action::Join { .. }
        | Action::CreateImage { .. }
        | Action::CreateVm { .. }
        | Action::CreateNetwork { .. }
        | Action::CreateSecurityGroup { .. }
        | Action::CreatePort { .. }
        | Action::CreateRule { .. }
        | Action::PlanNow => None,
    }
}

fn dispatch(control: &mut Control, now: TimeMs, actor: &Actor, action: Action) -> Result<Reply, Refusal> {
    match action {
        // Its token is its credential.
        Action::Join { host, token, secret_sha256 } => access::join(control, now, &host, &token, &secret_sha256),
        Action::CreateVm { id, spec } => create_vm(control, now, actor, id, spec),
        Action::SetRun { vm, run } => set_run(control, now, actor, &vm, run),
        Action::RemoveVm { vm } => remove_vm(control, now, actor, &vm),
        Action::MeasureVm { vm, span } => measure_vm(control, actor, &vm, span),
        Action::CreateNetwork { id, spec } => network::create(control, now, actor, id, spec),
        Action::RemoveNetwork { id } => network::remove(control, now, actor, &id),
        Action::CreateSecurityGroup { group } => network::create_group(control, now, actor, group),
        Action::SetSecurityRules { tenant, id, rules } => network::set_rules(control, now, actor, tenant, id, rules),
        Action::RemoveSecurityGroup { tenant, id } => network::remove_group(control, now, actor, tenant, id),
        Action::SetSecurityGroups { vm, groups } => {
            let vm = own_vm(control, actor, &vm)?;
            network::set_groups(control, now, actor, &vm, groups)
        }
        action => {
            if actor.role != Role::Operator {
                return Err(Refusal::new(RefusalKind::Forbidden, "only an operator may do this".to_owned()));
            }
            as_operator(control, now, actor, action)
        }
    }
}

fn as_operator(control: &mut Control, now: TimeMs, actor: &Actor, action: Action) -> Result<Reply, Refusal> {
    let by = &actor.name;
    match action {
        Action::CreateTenant { id } => access::create_tenant(control, now, id),
        Action::RemoveTenant { id } => access::remove_tenant(control, now, &id),
        Action::CreateToken { token } => access::create_token(control, now, token),
        Action::RemoveToken { id } => access::remove_token(control, now, &id),
        Action::CreateJoinToken { token } => access::create_join_token(control, token),
        Action::RemoveHost { host } => remove_host(control, now, &host),
        Action::DrainHost { host } => drain(control, now, &host, true, by),
        Action::UndrainHost { host } => drain(control, now, &host, false, by),
        Action::PowerHost { host, on } => power_host(control, now, &host, on, by),
        Action::SetHostAttributes { host, attributes } => set_attributes(control, now, &host, attributes, by),
        Action::CreateImage { image } => create_image(control, now, image),
        Action::RemoveImage { id } => remove_image(control, now, &id),
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
        Action::CreatePort { spec } => network::create_port(control, now, actor, spec),
        Action::RemovePort { id } => network::remove_port(control, now, actor, &id),
        Action::CreateRule { rule } => rules::create(control, now, rule, by),
        Action::RemoveRule { id } => rules::remove(control, now, &id, by),
        Action::Join { .. }
        | Action::CreateVm { .. }
        | Action::SetRun { .. }
        | Action::RemoveVm { .. }
        | Action::MeasureVm { .. }
        | Action::CreateNetwork { .. }
        | Action::RemoveNetwork { .. }
        | Action::CreateSecurityGroup { .. }
        | Action::SetSecurityRules { .. }
        | Action::RemoveSecurityGroup { .. }
        | Action::SetSecurityGroups { .. } => {
            Err(Refusal::new(RefusalKind::Invalid, "this is not an operator's request".to_owned()))
        }
    }
}

fn remove_host(control: &mut Control, now: TimeMs, host: &HostId) -> Result<Reply, Refusal> {
    control.require::<Host>(host, "host")?;
    let vms = control.vms_on(host).count();
    if vms > 0 || control.holds_vms(host) > 0 {
        return Err(Refusal::conflict(format!("{host} still holds {vms} vms: `drover host drain {host}` first")));
    }
    if let Some(port) = control.ports().find(|port| port.host == *host) {
        let detail = format!("{host} has port {}: `drover port rm {}` first", port.id, port.id);
        return Err(Refusal::conflict(detail));
    }
    if let Some(rule) = control.rule_that_names(host) {
        let detail = format!("placement rule {rule} names {host}: `drover rule rm {rule}` first");
        return Err(Refusal::conflict(detail));
    }
    control.tables.remove::<Host>(host);
    control.tables.event(
        now,
        Severity::Info,
        format!("host/{host}"),
        None,
        "host-removed",
        format!("{host} was removed"),
    );
    if let Some(live) = control.live.hosts.remove(host)
        && let Some(connection) = live.connection
    {
        let why = "this host was removed from the cluster".to_owned();
        control.live.effects.push(crate::interface::Effect::Disconnect { host: host.clone(), connection, why });
    }
    Ok(Reply::Done)
}

fn drain(control: &mut Control, now: TimeMs, host: &HostId, maintenance: bool, by: &str) -> Result<Reply, Refusal> {
    let row = control.require::<Host>(host, "host")?;
    if row.maintenance != maintenance {
        control.tables.change::<Host>(host, |row| row.maintenance = maintenance);
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
    let row = control.require::<Host>(host, "host")?;
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

/// The most that anything is priced at, in millionths.
const PRICE_MAX: i64 = 1_000_000_000_000;

fn set_attributes(
    control: &mut Control,
    now: TimeMs,
    host: &HostId,
    attributes: HostAttributes,
    by: &str,
) -> Result<Reply, Refusal> {
    let row = control.require::<Host>(host, "host")?;
    if attributes.labels.len() > HostAttributes::LABELS_MAX {
        return Err(Refusal::invalid("labels", format!("at most {} are taken", HostAttributes::LABELS_MAX)));
    }
    if attributes.link == Some(Bytes::ZERO) {
        return Err(Refusal::invalid("link_bytes_s", "must be above 0; leave it out for no limit".to_owned()));
    }
    if attributes.power.is_some_and(|curve| !curve.is_sound()) {
        let detail = "must be eleven figures, at 0, 10, ... 100 % of the processor, none below the one before it,                       from 0 to 100000 watts";
        return Err(Refusal::invalid("power_curve_watts", detail.to_owned()));
    }
    if attributes.power_cycle_price.is_some_and(|price| !(0..=PRICE_MAX).contains(&price.0)) {
        let detail = format!("must lie between 0 and {PRICE_MAX} millionths");
        return Err(Refusal::invalid("power_cycle_price_micro", detail));
    }
    if row.attributes != attributes {
        control.tables.change::<Host>(host, |row| row.attributes = attributes);
        let text = format!("{by} changed what is said of {host}");
        control.tables.event(now, Severity::Info, format!("host/{host}"), None, "host-set", text);
    }
    Ok(Reply::Host(host.clone()))
}

fn create_image(control: &mut Control, now: TimeMs, image: Image) -> Result<Reply, Refusal> {
    if control.image(&image.id).is_some() {
        return Err(
            Refusal::conflict(format!("there is an image {} already: choose another name", image.id)).at("name")
        );
    }
    if image.kernel.is_none() && image.disk.is_none() {
        return Err(Refusal::invalid("files", "an image needs a kernel or a disk to boot from".to_owned()));
    }
    let id = image.id.clone();
    control.tables.put(image);
    control.tables.event(
        now,
        Severity::Info,
        format!("image/{id}"),
        None,
        "image-created",
        format!("image {id} was made"),
    );
    Ok(Reply::Image(id))
}

fn remove_image(control: &mut Control, now: TimeMs, id: &drover_model::ImageId) -> Result<Reply, Refusal> {
    control.require::<Image>(id, "image")?;
    let users = control.vms().filter(|vm| vm.spec.image == *id).count();
    if users > 0 {
        return Err(Refusal::conflict(format!("{users} vms use image {id}: remove them first")));
    }
    control.tables.remove::<Image>(id);
    control.tables.event(
        now,
        Severity::Info,
        format!("image/{id}"),
        None,
        "image-removed",
        format!("image {id} was removed"),
    );
    Ok(Reply::Done)
}

fn create_vm(control: &mut Control, now: TimeMs, actor: &Actor, id: VmId, mut spec: VmSpec) -> Result<Reply, Refusal> {
    if matches!(&actor.role, Role::Tenant { tenant } if *tenant != spec.tenant) {
        return Err(Refusal::new(RefusalKind::Forbidden, "a tenant makes vms for itself only".to_owned()).at("tenant"));
    }
    control.require::<Tenant>(&spec.tenant, "tenant").map_err(|refusal| refusal.at("tenant"))?;
    control.require::<Image>(&spec.image, "image").map_err(|refusal| refusal.at("image"))?;
    if let Some(host) = spec.pinned_to.iter().find(|host| control.host(host).is_none()) {
        return Err(Refusal::invalid("pinned_to", format!("there is no host {host}")));
    }
    if control.vms().any(|vm| vm.spec.tenant == spec.tenant && vm.spec.name == spec.name) {
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
    spec.nic = spec.nic.take().map(|nic| network::card(control, &spec.tenant, nic)).transpose()?;
    fits_somewhere(control, now, &id, &spec)?;
    let vm = Vm {
        id: id.clone(),
        spec,
        created_at: now,
        run: RunIntent::Running,
        host: None,
        generation: drover_model::Generation(0),
        migration: None,
        left: Vec::new(),
        deleting: false,
        remains_on: Default::default(),
    };
    let text = format!("{} made {} from image {}", actor.name, vm.spec.name, vm.spec.image);
    lifecycle::vm_event(control, now, &vm, Severity::Info, "vm-created", text);
    control.tables.put(vm);
    Ok(Reply::Vm(id))
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
    let vm = control.require::<Vm>(id, "vm")?;
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
        RunIntent::Stopped => control.tables.change::<Vm>(id, |vm| vm.run = run),
        RunIntent::Running => {
            if let Some(host) = &vm.host {
                match control.live.sees(host, id) {
                    // What it was told a moment ago may start it there.
                    _ if control.live.is_unsure(host, id) => {
                        return Err(Refusal::unavailable(format!("{host} is busy with {name}: try again in a second")));
                    }
                    Seen::Unknown if control.live.state(host) != HostState::Asleep => {
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
        .filter(|row| now.since(row.value.at) >= REMEMBER_FOR)
        .map(|row| row.value.key.clone())
        .collect();
    for key in stale {
        tables.remove::<Idempotency>(&key);
    }
    while tables.idempotency.len() > REMEMBER_MAX {
        let oldest = tables.idempotency.values().min_by_key(|row| row.value.at).map(|row| row.value.key.clone());
        let Some(key) = oldest else { break };
        tables.remove::<Idempotency>(&key);
    }
    let expired: Vec<TokenId> =
        tables.join_tokens.values().filter(|row| now >= row.value.expires_at).map(|row| row.value.id.clone()).collect();
    for id in expired {
        tables.remove::<JoinToken>(&id);
    }
    let surplus = tables.plans.len().saturating_sub(PLANS_MAX);
    let over = |state: &PlanState| !matches!(state, PlanState::Running | PlanState::Settling | PlanState::Proposed);
    let old: Vec<PlanId> =
        tables.plans.iter().filter(|(_, row)| over(&row.value.state)).take(surplus).map(|(id, _)| *id).collect();
    for id in old {
        tables.remove::<PlanRecord>(&id);
    }
    let surplus = tables.migrations.len().saturating_sub(MIGRATIONS_MAX);
    let old: Vec<MigrationId> = tables
        .migrations
        .iter()
        .filter(|(_, row)| row.value.phase.is_over())
        .take(surplus)
        .map(|(id, _)| *id)
        .collect();
    for id in old {
        tables.remove::<MigrationRecord>(&id);
    }
}
