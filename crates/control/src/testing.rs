//! A small cluster for tests: the state machine as the server drives it, and hosts that do at once what they are told.

use crate::interface::{
    Action, Actor, AgentMessage, Commit, ConnectionId, Draft, Effect, Input, NetworkReport, Object, PersistedState,
    Refusal, Reply, Request, RequestId, Stored, Write,
};
use crate::{Control, Now, Settings};
use drover_model::command::{Command, CommandOutcome, CommandRefusal};
use drover_model::event::Event;
use drover_model::intent::{Image, ImageFile, JoinToken, Role, RunIntent, Vm, VmSpec};
use drover_model::inventory::{Accelerator, Capacity, HostFacts, VmInventory, VmState};
use drover_model::policy::{Mode, Policy};
use drover_model::v1::CreateTenant;
use drover_model::world::HostState;
use drover_model::{Bytes, CpuMillis, Generation, HostId, Millis, Revision, TimeMs, VmId};
use std::collections::BTreeMap;

pub const TICK: Millis = Millis(200);
const REPORT: Millis = Millis(1_000);

/// A host as it really is.
#[derive(Debug, Default)]
pub struct TestHost {
    pub connection: Option<ConnectionId>,
    pub vms: BTreeMap<VmId, (Generation, VmState)>,
    /// Refuses to start any vm.
    pub refuses: bool,
    /// Reports nothing, though it is connected.
    pub silent: bool,
    pub runs_asked: u32,
}

pub struct Site {
    pub control: Control,
    pub settings: Settings,
    pub at: TimeMs,
    /// The wall clock is ahead by so much, in ms.
    pub wall_ahead_ms: i64,
    pub hosts: BTreeMap<HostId, TestHost>,
    /// All that was made durable.
    pub events: Vec<Event>,
    pub commits: Vec<Commit>,
    next: u64,
}

pub fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

pub fn operator() -> Actor {
    Actor { name: "operator".to_owned(), role: Role::Operator }
}

/// 1 vcpu, 128 MiB, no network card.
pub fn small_vm(tenant: &str, name: &str) -> VmSpec {
    VmSpec {
        name: name.parse().unwrap(),
        tenant: tenant.parse().unwrap(),
        image: "tiny".parse().unwrap(),
        vcpus: 1,
        memory: Bytes::mib(128),
        nic: None,
        anti_affinity: None,
        pinned_to: Default::default(),
        cpu_reserved: Default::default(),
        guest_args: BTreeMap::new(),
        labels: Default::default(),
    }
}

impl Site {
    /// Tenant blue and hosts h1 to h`count`, up.
    pub fn new(count: u64) -> Self {
        let initial_policy = Policy { mode: Mode::Observe, ..Policy::default() };
        let settings = Settings { initial_policy, ..Settings::default() };
        let at = TimeMs(1_790_000_000_000);
        let control = Control::load(PersistedState::default(), settings.clone(), at);
        let (hosts, events, commits) = Default::default();
        let mut site = Self { control, settings, at, wall_ahead_ms: 0, hosts, events, commits, next: 0 };
        site.create_tenant("blue");
        let kernel = Some(ImageFile { size: Bytes(1), sha256: String::new() });
        let (id, created_at) = ("tiny".parse().unwrap(), TimeMs(1));
        let (cmdline, labels) = (String::new(), Default::default());
        let image = Image { id, created_at, kernel, initrd: None, disk: None, cmdline, labels };
        site.ask(Action::CreateImage { image }).unwrap();
        for n in 1..=count {
            let id = host(&format!("h{n}"));
            site.join(&id);
            site.hosts.insert(id.clone(), TestHost::default());
            site.connect(&id);
        }
        site.pass(Millis::secs(30));
        site
    }

    pub fn join(&mut self, host: &HostId) {
        let id: drover_model::TokenId = format!("join-{host}").parse().unwrap();
        let token = JoinToken {
            id: id.clone(),
            secret_sha256: String::new(),
            host: host.clone(),
            created_at: TimeMs(1),
            expires_at: TimeMs(u64::MAX),
        };
        self.ask(Action::CreateJoinToken { token }).unwrap();
        self.ask(Action::Join { host: host.clone(), token: id, secret_sha256: String::new() }).unwrap();
    }

    pub fn connect(&mut self, host: &HostId) {
        self.next += 1;
        let connection = ConnectionId(self.next);
        self.hosts.get_mut(host).unwrap().connection = Some(connection);
        let facts = HostFacts {
            agent_version: String::new(),
            qemu_version: String::new(),
            kernel: String::new(),
            accelerator: Accelerator::Tcg,
            accelerator_why: String::new(),
            cpu_model: String::new(),
            capacity: Capacity { cpu: CpuMillis(8_000), memory: Bytes::GIB },
            networks: Default::default(),
            overlay_address: None,
            machine_types: ["q35".to_owned()].into(),
            cpu_features: Default::default(),
            migration_features: Default::default(),
            boot_id: String::new(),
            agent_run: format!("{}", self.next),
        };
        let vms = self.inventory(host);
        self.hear(host, AgentMessage::Connected { facts, vms });
    }

    pub fn disconnect(&mut self, host: &HostId) {
        self.hear(host, AgentMessage::Disconnected);
        self.hosts.get_mut(host).unwrap().connection = None;
    }

    fn inventory(&self, host: &HostId) -> Vec<VmInventory> {
        let seen = |(vm, (generation, state)): (&VmId, &(Generation, VmState))| VmInventory {
            vm: vm.clone(),
            generation: *generation,
            state: state.clone(),
            pid: None,
        };
        self.hosts[host].vms.iter().map(seen).collect()
    }

    pub fn report(&mut self, host: &HostId) {
        let (at, vms, network) = (self.at, self.inventory(host), NetworkReport::default());
        self.hear(host, AgentMessage::Report { at, vms, load: None, network });
    }

    pub fn hear(&mut self, host: &HostId, message: AgentMessage) {
        let Some(connection) = self.hosts[host].connection else { return };
        self.step(Input::Agent { host: host.clone(), connection, message });
    }

    pub fn create_tenant(&mut self, name: &str) {
        let (name, labels, quota) = (name.parse().unwrap(), Default::default(), Default::default());
        self.ask(Action::Create(Draft::Tenant(CreateTenant { labels, quota, ..CreateTenant::named(name) }))).unwrap();
    }

    pub fn ask(&mut self, action: Action) -> Result<Reply, Refusal> {
        self.ask_with(operator(), None, None, action)
    }

    /// By anybody; perhaps with an idempotency key, or with a revision that the object must still be at.
    pub fn ask_with(
        &mut self,
        actor: Actor,
        key: Option<&str>,
        if_match: Option<Revision>,
        action: Action,
    ) -> Result<Reply, Refusal> {
        self.next += 1;
        let (fresh, idempotency_key) = (format!("{:012}", self.next), key.map(str::to_owned));
        let request = Request { id: RequestId(1), actor, idempotency_key, if_match, fresh, action };
        let effects = self.step(Input::Request(request));
        let reply = |effect| if let Effect::Reply { result, .. } = effect { Some(result) } else { None };
        effects.into_iter().find_map(reply).expect("each request is answered within its step")
    }

    pub fn create_vm(&mut self, name: &str) -> VmId {
        let id: VmId = format!("vm-{name}").parse().unwrap();
        self.ask(Action::CreateVm { id: id.clone(), spec: small_vm("blue", name) }).unwrap();
        id
    }

    pub fn set_run(&mut self, vm: &VmId, run: RunIntent) -> Result<Reply, Refusal> {
        self.ask(Action::SetRun { vm: vm.clone(), run })
    }

    /// One step; hosts answer and report what comes of it.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        let now = Now { at: self.at, wall: TimeMs(self.at.0.saturating_add_signed(self.wall_ahead_ms)) };
        let effects = self.control.step(now, input);
        for effect in &effects {
            match effect {
                Effect::Commit(commit) => {
                    self.events.extend(commit.events.iter().cloned());
                    self.commits.push(commit.clone());
                }
                Effect::Send { host, connection, id, command } if self.hosts[host].connection == Some(*connection) => {
                    let answer = self.hosts.get_mut(host).unwrap().command(command);
                    self.hear(host, AgentMessage::Answer { id: *id, answer });
                    self.report(host);
                }
                Effect::Send { .. }
                | Effect::Network { .. }
                | Effect::Power { .. }
                | Effect::Reply { .. }
                | Effect::StorePatterns { .. }
                | Effect::Disconnect { .. } => {}
            }
        }
        effects
    }

    /// Time passes; hosts that are connected report once a second, and the server ticks.
    pub fn pass(&mut self, span: Millis) {
        let until = self.at.plus(span);
        while self.at < until {
            self.at = self.at.plus(TICK);
            if self.at.0.is_multiple_of(REPORT.0) {
                let speaking = self.hosts.iter().filter(|(_, row)| row.connection.is_some() && !row.silent);
                let speaking: Vec<HostId> = speaking.map(|(id, _)| id.clone()).collect();
                for host in &speaking {
                    self.report(host);
                }
            }
            self.step(Input::Tick);
        }
    }

    /// The server dies and another goes on from the store after `down`; agents connect anew.
    pub fn restart_server(&mut self, down: Millis) {
        let mut objects = BTreeMap::new();
        for commit in &self.commits {
            for write in &commit.writes {
                match write {
                    Write::Put { object, .. } => {
                        objects.insert(object.key(), Stored { revision: commit.revision, object: object.clone() });
                    }
                    Write::Delete { key, .. } => drop(objects.remove(key)),
                }
            }
        }
        let revision = self.commits.last().map(|commit| commit.revision).unwrap_or_default();
        let objects: Vec<Stored> = objects.into_values().collect();
        let text = |object: &Object| serde_json::to_string(object).unwrap();
        assert!(objects.iter().all(|stored| serde_json::from_str::<Object>(&text(&stored.object)).is_ok()));
        let kept = PersistedState { objects, events: self.events.clone(), revision, patterns: Vec::new() };
        self.at = self.at.plus(down);
        self.control = Control::load(kept, self.settings.clone(), self.at);
        let connected = self.hosts.iter().filter(|(_, row)| row.connection.is_some());
        for host in connected.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.connect(&host);
        }
    }

    pub fn state(&self, name: &str) -> HostState {
        self.control.host_status(&host(name)).state
    }

    pub fn vm(&self, id: &VmId) -> &Vm {
        self.control.vm(id).unwrap()
    }

    pub fn phase(&self, id: &VmId) -> &'static str {
        self.control.vm_status(id).phase
    }

    pub fn events_of(&self, kind: &str) -> Vec<&Event> {
        self.events.iter().filter(|event| event.kind == kind).collect()
    }

    /// Where its guest runs.
    pub fn runs_on(&self, vm: &VmId) -> Vec<&str> {
        let runs = |row: &TestHost| row.vms.get(vm).is_some_and(|(_, state)| state.runs_guest());
        self.hosts.iter().filter(|(_, row)| runs(row)).map(|(id, _)| id.as_str()).collect()
    }

    /// Its qemu dies.
    pub fn kill(&mut self, vm: &VmId) {
        let hosts: Vec<HostId> = self.runs_on(vm).into_iter().map(host).collect();
        for host in hosts {
            let (_, state) = self.hosts.get_mut(&host).unwrap().vms.get_mut(vm).unwrap();
            *state = VmState::Failed { why: "its QEMU was killed".to_owned() };
            self.report(&host);
        }
    }
}

impl TestHost {
    fn command(&mut self, command: &Command) -> Result<CommandOutcome, CommandRefusal> {
        match command {
            Command::Run { run, generation } => {
                self.runs_asked += 1;
                if self.refuses {
                    return Err(CommandRefusal::Failed { why: "no memory for it".to_owned() });
                }
                self.vms.insert(run.vm.clone(), (*generation, VmState::Running));
            }
            Command::Stop { vm, generation, .. } => {
                self.vms.insert(vm.clone(), (*generation, VmState::Stopped));
            }
            Command::Release { vm, .. } => drop(self.vms.remove(vm)),
            Command::PrepareIncoming { .. }
            | Command::MigrateOut { .. }
            | Command::CommitSwitchOver { .. }
            | Command::CancelMigration { .. }
            | Command::TakeBack { .. }
            | Command::AdjustMigration { .. }
            | Command::RecoverIncoming { .. }
            | Command::RecoverOutgoing { .. }
            | Command::MeasureDirtyRate { .. } => {
                return Err(CommandRefusal::Failed { why: "hosts of tests move nothing".to_owned() });
            }
        }
        Ok(CommandOutcome::Done)
    }
}
