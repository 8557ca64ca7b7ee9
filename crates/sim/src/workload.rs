//! What people ask of the cluster: an operator and two tenants, by the seed.

use crate::Options;
use crate::cluster::Cluster;
use crate::dice::Dice;
use crate::load::Demand;
use crate::schedule::Happening;
use drover_control::interface::{Action, Actor, Draft, ObjectKey, Refusal};
use drover_model::intent::{Host, Image, ImageFile, JoinToken, PowerIntent, Role, RunIntent, Vm, VmSpec};
use drover_model::migration::{Method, MigrationRecord, Priority};
use drover_model::plan::PlanState;
use drover_model::policy::{Aim, MigrationPolicy, Mode, Policy};
use drover_model::v1::CreateTenant;
use drover_model::{Bytes, HostId, Millis, TenantName, TimeMs, VmId};
use std::collections::BTreeMap;

const TENANTS: [&str; 2] = ["blue", "green"];
const IMAGE: &str = "tiny";
const SECRET: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const METHODS: [Option<Method>; 6] =
    [None, None, None, Some(Method::PostCopy), Some(Method::PreCopy), Some(Method::StopAndCopy)];
const PRIORITIES: [Priority; 3] = [Priority::Low, Priority::Normal, Priority::High];
/// Hosts that people drain or switch off at one time.
const HOSTS_AWAY_MAX: usize = 1;

#[derive(Debug)]
pub struct Operator {
    dice: Dice,
    active: bool,
    every_ms: u64,
    vms_max: usize,
    next_vm: u64,
    span_ms: u64,
}

/// What a vm of the workload asks for.
#[derive(Debug, Clone, Default)]
pub struct VmRequest {
    pub vcpus: u32,
    pub memory: Bytes,
    pub anti_affinity: Option<&'static str>,
    pub pinned_to: Vec<HostId>,
}

impl Operator {
    pub fn new(dice: Dice) -> Self {
        Self { dice, active: false, every_ms: 10_000, vms_max: 0, next_vm: 0, span_ms: 1 }
    }

    pub fn begin(&mut self, dice: &mut Dice, options: &Options) {
        self.active = true;
        self.every_ms = dice.between(3_000, 20_000);
        self.vms_max = options.vms * 3 / 2;
        self.span_ms = options.minutes * 60_000;
    }

    pub fn retire(&mut self) {
        self.active = false;
    }

    fn request(&mut self, hosts: &[HostId]) -> VmRequest {
        let dice = &mut self.dice;
        let group = dice.pick(&["a", "b"]).copied();
        VmRequest {
            vcpus: dice.between(1, 2) as u32,
            memory: Bytes::mib(dice.between(1, 6) * 128),
            anti_affinity: group.filter(|_| dice.chance(0.2)),
            pinned_to: dice.pick(hosts).filter(|_| hosts.len() > 1).cloned().into_iter().collect::<Vec<_>>(),
        }
    }

    fn policy(&mut self) -> Policy {
        let dice = &mut self.dice;
        let default = Policy::default();
        Policy {
            mode: dice
                .pick(&[Mode::Act, Mode::Act, Mode::Act, Mode::Propose, Mode::Observe])
                .copied()
                .unwrap_or(Mode::Act),
            aim: if dice.chance(0.5) { Aim::Auto } else { Aim::Balance },
            spare_hosts: u32::from(dice.chance(0.3)),
            hosts_up_min: dice.between(1, 2) as u32,
            vm_cooldown: Millis::secs(dice.between(1, 5) * 60),
            settle: Millis::secs(dice.between(3, 20)),
            migrations_at_once_max: dice.between(1, 4) as u32,
            migration: MigrationPolicy {
                post_copy: dice.chance(0.7),
                per_host_max: dice.between(1, 3) as u32,
                host_bandwidth_max: dice.pick(&[Bytes::ZERO, Bytes::mib(150)]).copied().unwrap_or_default(),
                recovery_max: Millis::secs(dice.between(10, 120)),
                ..default.migration
            },
            ..default
        }
    }
}

fn tenant(index: usize) -> TenantName {
    TENANTS[index % TENANTS.len()].parse().expect("the tenants' names are labels")
}

/// Without faults: what every run begins with, and what tests build on.
impl Cluster {
    pub(crate) fn set_up(&mut self) {
        for index in 0..TENANTS.len() {
            let draft = CreateTenant::named(tenant(index));
            let _made = self.ask(Action::Create(Draft::Tenant(draft)));
            self.make_network(tenant(index));
        }
        let kernel = Some(ImageFile { size: Bytes::mib(8), sha256: SECRET.to_owned() });
        let id = IMAGE.parse().expect("the image's name is a label");
        let created_at = self.now();
        let image = Image {
            id,
            created_at,
            kernel,
            initrd: None,
            disk: None,
            cmdline: String::new(),
            labels: Default::default(),
        };
        let _made = self.ask(Action::CreateImage { image });
        let hosts: Vec<HostId> = self.fleet.hosts.keys().cloned().collect();
        for host in &hosts {
            self.join(host);
            self.start_agent(host);
        }
    }

    pub(crate) fn join(&mut self, host: &HostId) {
        let now = self.now();
        let id: drover_model::TokenId = format!("join-{host}").parse().expect("two labels make one");
        let expires_at = TimeMs(now.0 + 600_000);
        let secret_sha256 = SECRET.to_owned();
        let token = JoinToken {
            id: id.clone(),
            secret_sha256: secret_sha256.clone(),
            host: host.clone(),
            created_at: now,
            expires_at,
        };
        if self.ask(Action::CreateJoinToken { token }).is_ok() {
            let _joined = self.ask(Action::Join { host: host.clone(), token: id, secret_sha256 });
        }
    }

    /// As its tenant would.
    pub fn create_vm(&mut self, request: &VmRequest) -> Result<VmId, Refusal> {
        self.operator.next_vm += 1;
        let number = self.operator.next_vm;
        let id: VmId = format!("vm-{number:012}").parse().expect("letters and digits make a name");
        let tenant = tenant(number as usize);
        let spec = VmSpec {
            name: format!("v{number}").parse().expect("a letter and a number make a name"),
            tenant: tenant.clone(),
            image: IMAGE.parse().expect("the image's name is a label"),
            vcpus: request.vcpus,
            memory: request.memory,
            nic: crate::network::card(number, &id),
            anti_affinity: request.anti_affinity.map(|group| group.parse().expect("the groups' names are labels")),
            pinned_to: request.pinned_to.iter().cloned().collect(),
            cpu_reserved: Default::default(),
            guest_args: BTreeMap::new(),
            labels: Default::default(),
        };
        let (now, span_ms) = (self.now(), self.operator.span_ms);
        let demand = Demand::new(&mut self.operator.dice, request.vcpus, request.memory, now, span_ms);
        self.set_demand(&id, demand);
        let actor = Actor { name: tenant.to_string(), role: Role::Tenant { tenant } };
        self.ask_as(actor, Action::CreateVm { id: id.clone(), spec }).map(|_| id)
    }

    pub(crate) fn populate(&mut self, vms: usize) {
        let policy = Box::new(self.operator.policy());
        let _set = self.ask(Action::SetPolicy { policy });
        for _ in 0..vms {
            let request = self.operator.request(&[]);
            let _made = self.create_vm(&request);
        }
    }
}

/// One request after the other. What is refused is forgotten, as people do.
impl Cluster {
    pub(crate) fn operate(&mut self) {
        if !self.operator.active {
            return;
        }
        let wait = self.operator.dice.wait_ms(self.operator.every_ms);
        self.around.schedule.after(wait, Happening::Operator);
        match self.operator.dice.between(0, 17) {
            0 | 1 => self.wish_vm(),
            2 => self.wish_run(RunIntent::Stopped),
            3 | 4 => self.wish_run(RunIntent::Running),
            5 => self.wish_removal(),
            6 => self.wish_drain(),
            7 => self.wish_undrain(),
            8..=10 => self.wish_migration(),
            11 => self.wish_cancel(),
            12 => self.wish_policy(),
            13 => self.wish_judgement(),
            14 => self.wish_power(),
            15 => self.wish_hold(),
            16 => self.wish_priority(),
            _ => self.wish_other_hosts(),
        }
    }

    fn any_vm(&mut self, fits: impl Fn(&Vm) -> bool) -> Option<Vm> {
        let vms: Vec<Vm> = self.around.witness.vms().filter(|vm| fits(vm)).cloned().collect();
        self.operator.dice.pick(&vms).cloned()
    }

    fn any_host(&mut self) -> Option<HostId> {
        let hosts: Vec<HostId> = self.fleet.hosts.keys().cloned().collect();
        self.operator.dice.pick(&hosts).cloned()
    }

    fn wish_vm(&mut self) {
        if self.around.witness.vms().count() < self.operator.vms_max {
            let hosts: Vec<HostId> = self.fleet.hosts.keys().cloned().collect();
            let pinned = self.operator.dice.chance(0.1);
            let request = self.operator.request(if pinned { &hosts } else { &[] });
            let _made = self.create_vm(&request);
        }
    }

    /// Now and then somebody changes their mind at once.
    fn wish_run(&mut self, run: RunIntent) {
        let Some(vm) = self.any_vm(|vm| vm.run != run) else { return };
        let _set = self.ask(Action::SetRun { vm: vm.id.clone(), run });
        if self.operator.dice.chance(0.3) {
            let _set = self.ask(Action::SetRun { vm: vm.id, run: vm.run });
        }
    }

    fn wish_removal(&mut self) {
        if let Some(vm) = self.any_vm(|_| true) {
            let _removed = self.ask(Action::RemoveVm { vm: vm.id });
        }
    }

    fn away(&self) -> usize {
        let rows = self.fleet.hosts.keys().filter_map(|host| self.around.witness.host(host));
        rows.filter(|row| row.maintenance || row.power == PowerIntent::Off).count()
    }

    fn wish_drain(&mut self) {
        if self.away() < HOSTS_AWAY_MAX
            && let Some(host) = self.any_host()
        {
            let _drained = self.ask(Action::DrainHost { host });
        }
    }

    fn wish_undrain(&mut self) {
        let hosts: Vec<HostId> = self.fleet.hosts.keys().cloned().collect();
        for host in hosts {
            if self.around.witness.host(&host).is_some_and(|row| row.maintenance) {
                let _given_back = self.ask(Action::UndrainHost { host });
            }
        }
    }

    fn wish_migration(&mut self) {
        let to = self.any_host().filter(|_| self.operator.dice.chance(0.7));
        if let Some(vm) = self.any_vm(|vm| vm.run == RunIntent::Running && vm.migration.is_none()) {
            let method = self.operator.dice.pick(&METHODS).copied().flatten();
            let _moves = self.ask(Action::MigrateVm { vm: vm.id, to, method });
        }
    }

    fn wish_cancel(&mut self) {
        let open = self.control().and_then(|control| control.migrations().find(|m| !m.phase.is_over()));
        if let Some(MigrationRecord { id, .. }) = open.cloned() {
            let _cancelled = self.ask(Action::CancelMigration { id });
        }
    }

    fn any_open(&mut self) -> Option<MigrationRecord> {
        let open = |control: &drover_control::Control| {
            control.migrations().filter(|m| !m.phase.is_over()).cloned().collect::<Vec<MigrationRecord>>()
        };
        let open = self.control().map(open)?;
        self.operator.dice.pick(&open).cloned()
    }

    /// What is held is let go on sooner or later.
    fn wish_hold(&mut self) {
        if let Some(record) = self.any_open() {
            let _held = self.ask(Action::HoldMigration { id: record.id, held: !record.paused });
        }
    }

    fn wish_priority(&mut self) {
        if let Some(MigrationRecord { id, .. }) = self.any_open() {
            let priority = self.operator.dice.pick(&PRIORITIES).copied().unwrap_or_default();
            let _given = self.ask(Action::PrioritiseMigration { id, priority });
        }
    }

    fn wish_policy(&mut self) {
        let policy = Box::new(self.operator.policy());
        let _set = self.ask(Action::SetPolicy { policy });
    }

    fn wish_judgement(&mut self) {
        let proposed = |control: &drover_control::Control| {
            let plan = control.plans().find(|plan| plan.state == PlanState::Proposed);
            plan.or_else(|| control.plans().find(|plan| plan.state == PlanState::Running)).map(|plan| plan.id)
        };
        match self.control().and_then(proposed) {
            Some(id) if self.operator.dice.chance(0.7) => drop(self.ask(Action::ApprovePlan { id })),
            Some(id) => drop(self.ask(Action::RejectPlan { id })),
            None => drop(self.ask(Action::PlanNow)),
        }
    }

    fn wish_power(&mut self) {
        let Some(host) = self.any_host() else { return };
        let on = self.away() >= HOSTS_AWAY_MAX || self.operator.dice.chance(0.5);
        let _switched = self.ask(Action::PowerHost { host, on });
    }

    /// Removes a host, or lets a removed one join again.
    fn wish_other_hosts(&mut self) {
        let Some(host) = self.any_host() else { return };
        if self.around.witness.host(&host).is_none() {
            self.join(&host);
        } else if self.away() < HOSTS_AWAY_MAX && self.operator.dice.chance(0.3) {
            let removed = self.ask(Action::Remove { key: ObjectKey::of::<Host>(&host) });
            if removed.is_ok() {
                // Whoever takes a host out of a cluster empties it before it comes back.
                self.wipe(&host);
            }
        }
    }
}
