//! A whole cluster in virtual time: fleet, network, server and faults around the real control plane. One happening at
//! a time; after each the witness looks.

use crate::Options;
use crate::dice::Dice;
use crate::faults::Faults;
use crate::fleet::{Around, Fleet, Host};
use crate::invariants::Witness;
use crate::link::{Link, ToAgent, UNDER_WAY_MAX};
use crate::qemu::Guest;
use crate::schedule::{HAPPENINGS_MAX, Happening, Schedule};
use crate::shell::{DiesAt, Shell};
use crate::store::CommitError;
use crate::workload::Operator;
use drover_control::interface::{
    Action, Actor, AgentMessage, Commit, ConnectionId, Effect, Input, Refusal, RefusalKind, Reply, Request, RequestId,
};
use drover_control::{Control, Settings};
use drover_model::intent::Role;
use drover_model::inventory::{Capacity, OutgoingPhase};
use drover_model::{Bytes, HostId, Millis, TimeMs, VmId};
use std::collections::{BTreeMap, BTreeSet};

const TICK_MS: u64 = 200;
pub(crate) const REPORT_MS: u64 = 1_000;
/// After a failed commit the store is tried again.
const STORE_RETRY_MS: u64 = 500;
/// How late each end notices a connection that was cut without a word.
pub(crate) const NOTICE_SILENT_MS: u64 = 15_000;
/// The same when the other end closed it, or died and its kernel did.
pub(crate) const NOTICE_CLOSED_MS: u64 = 300;
const DIAL_MS: (u64, u64) = (200, 3_000);
/// What a migration gets of the network, per second.
const LINKS: [Bytes; 3] = [Bytes::mib(200), Bytes::mib(200), Bytes::mib(25)];

/// Why a run ends before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("an invariant broke: {0}")]
    Invariant(String),
    #[error("it did not converge: {0}")]
    Liveness(String),
}

#[derive(Debug)]
pub struct Cluster {
    pub(crate) around: Around,
    pub(crate) fleet: Fleet,
    pub(crate) shell: Shell,
    pub(crate) faults: Faults,
    /// For faults; the fleet's own dice are in `around`.
    pub(crate) luck: Dice,
    pub(crate) operator: Operator,
    links: BTreeMap<ConnectionId, Link>,
    /// Time that hosts were powered, summed over them.
    pub(crate) powered: Millis,
}

/// Making one, and letting time pass.
impl Cluster {
    /// Hosts of these capacities, joined and running; no vms, no faults. The first `managed` of them have a
    /// power driver.
    pub fn new(seed: u64, hosts: &[Capacity], managed: usize) -> Result<Self, Broken> {
        let mut fleet = Fleet::default();
        let mut power_managed = BTreeSet::new();
        let mut witness = Witness::default();
        for (index, capacity) in hosts.iter().enumerate() {
            let id = host_id(index);
            if index < managed {
                power_managed.insert(id.clone());
            }
            witness.capacities.insert(id.clone(), *capacity);
            fleet.hosts.insert(id.clone(), Host::new(id, index, *capacity));
        }
        let settings = Settings { power_managed, ..Settings::default() };
        let mut cluster = Self {
            around: Around { schedule: Schedule::new(), dice: Dice::new(seed, 1), witness },
            fleet,
            shell: Shell::new(settings),
            faults: Faults::none(),
            luck: Dice::new(seed, 2),
            operator: Operator::new(Dice::new(seed, 3)),
            links: BTreeMap::new(),
            powered: Millis::ZERO,
        };
        cluster.around.schedule.after(0, Happening::ServerStarts);
        cluster.pass(Millis(1))?;
        cluster.set_up();
        Ok(cluster)
    }

    /// As the options say, with the seed's choice of everything else, and armed faults.
    pub fn random(options: &Options) -> Result<Self, Broken> {
        let mut dice = Dice::new(options.seed, 4);
        let hosts: Vec<Capacity> = (0..options.hosts)
            .map(|_| Capacity {
                cpu: drover_model::CpuMillis(dice.between(2, 6) * 1_000),
                memory: drover_model::Bytes::mib(dice.between(2, 6) * 1_024),
            })
            .collect();
        let mut cluster = Self::new(options.seed, &hosts, dice.between(0, options.hosts as u64) as usize)?;
        for host in cluster.fleet.hosts.values_mut() {
            host.clock_ahead_ms = dice.between(0, 3_000);
        }
        cluster.fleet.flaky = dice.chance(0.3);
        cluster.fleet.never_converge = if dice.chance(0.5) { 0.15 } else { 0.0 };
        // On a slow link there is time for much to happen in the middle of a move.
        cluster.fleet.link = dice.pick(&LINKS).copied().unwrap_or(cluster.fleet.link);
        cluster.operator.begin(&mut dice, options);
        cluster.pass(Millis::secs(10))?;
        cluster.populate(options.vms);
        cluster.faults = Faults::new(&mut dice);
        for (wait, fault) in cluster.faults.arm(&mut dice) {
            cluster.around.schedule.after(wait, Happening::Fault(fault));
        }
        cluster.around.schedule.after(10_000, Happening::Operator);
        Ok(cluster)
    }

    pub fn now(&self) -> TimeMs {
        self.around.schedule.now
    }

    /// Lets virtual time pass.
    pub fn pass(&mut self, span: Millis) -> Result<(), Broken> {
        let until = self.now().plus(span);
        while let Some(happening) = self.around.schedule.next(until) {
            self.happen(happening)?;
        }
        Ok(())
    }

    /// Lets time pass until it holds, at most `within`; looks after everything that happens.
    pub fn wait_for(&mut self, what: &str, within: Millis, mut holds: impl FnMut(&Self) -> bool) -> Result<(), Broken> {
        let until = self.now().plus(within);
        while !holds(self) {
            match self.around.schedule.next(until) {
                Some(happening) => self.happen(happening)?,
                None => return Err(Broken::Liveness(format!("{what}: not within {within}"))),
            }
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        self.around.witness.now = self.now();
        self.dispatch(happening);
        self.look();
        match self.around.witness.violation() {
            Some(violation) => Err(Broken::Invariant(violation.to_owned())),
            None => Ok(()),
        }
    }

    fn dispatch(&mut self, happening: Happening) {
        let around = &mut self.around;
        match happening {
            Happening::Tick { run } => self.tick(run),
            Happening::ServerStarts => self.start_server(),
            Happening::StoreRetried { run } => {
                if self.shell.control.is_none() && self.shell.run == run {
                    self.start_server();
                }
            }
            Happening::ToServer { connection } => self.arrives_at_server(connection),
            Happening::ToAgent { connection } => self.arrives_at_agent(connection),
            Happening::ServerNotices { connection } => self.server_notices(connection),
            Happening::AgentNotices { connection } => self.agent_notices(connection),
            Happening::AgentDials { host, run } => self.dial(&host, run),
            Happening::AgentReports { host, run } => self.report(&host, run),
            Happening::AgentStarts { host } => self.start_agent(&host),
            Happening::HostStarts { host } => self.start_host(&host),
            Happening::HostReachable { host } => {
                if let Some(host) = self.fleet.hosts.get_mut(&host) {
                    host.reachable = true;
                }
            }
            Happening::CommitWaitOver { host, run, vm, migration } => {
                self.fleet.gives_up(around, &host, run, &vm, migration, OutgoingPhase::AtSwitchOver);
            }
            Happening::CopyTooLong { host, run, vm, migration } => {
                self.fleet.gives_up(around, &host, run, &vm, migration, OutgoingPhase::PreCopy);
            }
            Happening::StopGraceOver { host, run, vm, pid } => {
                self.fleet.stop_grace_over(around, &host, run, &vm, pid);
            }
            Happening::Qemu { host, vm, pid, step } => self.fleet.step(around, &host, &vm, pid, step),
            Happening::PowerDriver { run, host, op, fails } => self.power_driver(run, &host, op, fails),
            Happening::Fault(fault) => self.fault_due(fault),
            Happening::Operator => self.operate(),
        }
    }

    /// Sends what hosts have to say, and lets the witness see what they do.
    pub(crate) fn look(&mut self) {
        let agents_first = self.around.dice.chance(0.5);
        if agents_first {
            self.send_outbox();
        }
        for host in std::mem::take(&mut self.fleet.changed) {
            self.send_report(&host, false);
        }
        self.send_outbox();
        for vm in std::mem::take(&mut self.fleet.touched) {
            self.around.witness.executes(&vm, &self.fleet.executing(&vm));
        }
    }
}

/// The server.
impl Cluster {
    /// `None` while the server is down or its store broken.
    pub fn control(&self) -> Option<&Control> {
        self.shell.control.as_ref()
    }

    /// Asks as an operator; it is answered within the step, or not at all.
    pub fn ask(&mut self, ask: Action) -> Result<Reply, Refusal> {
        self.ask_as(Actor { name: "operator".to_owned(), role: Role::Operator }, ask)
    }

    pub(crate) fn ask_as(&mut self, actor: Actor, ask: Action) -> Result<Reply, Refusal> {
        self.shell.next_request += 1;
        let id = RequestId(self.shell.next_request);
        self.around.witness.now = self.now();
        self.around.witness.note(format!("{} asks {ask:?}", actor.name));
        let fresh = format!("{:012}", id.0);
        let request = Request { id, actor, idempotency_key: None, if_match: None, fresh, action: ask };
        let answer = self.step_server(Input::Request(request));
        let unanswered = || Refusal {
            kind: RefusalKind::Unavailable,
            field: None,
            detail: "the server is down: ask again".to_owned(),
        };
        let answer = answer.unwrap_or_else(|| Err(unanswered()));
        if let Err(refusal) = &answer {
            self.around.witness.note(format!("refused: {refusal}"));
        }
        answer
    }

    fn tick(&mut self, run: u64) {
        if self.shell.run != run || self.shell.control.is_none() {
            return;
        }
        self.step_server(Input::Tick);
        if self.shell.run == run && self.shell.control.is_some() {
            self.around.schedule.after(TICK_MS, Happening::Tick { run });
        }
        let on = self.fleet.hosts.values().filter(|host| host.on).count() as u64;
        self.powered += Millis(on * TICK_MS);
        self.excuse_no_longer();
        let longest = self.links.values().map(Link::longest).max().unwrap_or(0);
        self.around.witness.bounded("a connection", longest, UNDER_WAY_MAX);
        self.around.witness.bounded("the schedule", self.around.schedule.len(), HAPPENINGS_MAX);
    }

    /// Vms that run as they should: what happens to them next has a cause of its own.
    fn excuse_no_longer(&mut self) {
        let witness = &self.around.witness;
        let runs = |vm: &VmId, host: &HostId| {
            self.fleet.process(host, vm).is_some_and(|qemu| {
                matches!(qemu.guest, Guest::Running) && qemu.memory.is_some_and(|m| witness.is_newest(vm, m))
            })
        };
        let well: Vec<VmId> = witness
            .vms()
            .filter(|vm| vm.migration.is_none() && vm.host.as_ref().is_some_and(|host| runs(&vm.id, host)))
            .map(|vm| vm.id.clone())
            .collect();
        for vm in &well {
            self.around.witness.well(vm);
        }
    }

    pub(crate) fn step_server(&mut self, input: Input) -> Option<Result<Reply, Refusal>> {
        let now = self.now();
        let ask = match &input {
            Input::Request(request) => Some(request.action.clone()),
            Input::Tick | Input::Agent { .. } | Input::Power { .. } => None,
        };
        if input == Input::Tick
            && self.shell.control.is_some()
            && let Err(error) = self.shell.store.maintain(self.shell.epoch, now)
        {
            self.around.witness.broken(error.to_string());
        }
        let control = self.shell.control.as_mut()?;
        let effects = control.step(now, input);
        self.around.witness.stepped(&effects, control);
        let mut answer = None;
        for effect in effects {
            match effect {
                Effect::Commit(commit) => {
                    if let Some(refusal) = self.commit(&commit) {
                        return ask.map(|_| Err(refusal));
                    }
                    // It may have died of it.
                    self.shell.control.as_ref()?;
                }
                Effect::Send { host: _, connection, id, command } => {
                    self.send_to_agent(connection, ToAgent::Command(id, Box::new(command)));
                }
                Effect::Network { host: _, connection, network } => {
                    self.send_to_agent(connection, ToAgent::Network(network));
                }
                Effect::StorePatterns(patterns) => {
                    if let Err(error) = self.shell.store.keep(self.shell.epoch, &patterns) {
                        self.around.witness.broken(error.to_string());
                    }
                }
                Effect::Power { host, op } => self.ask_power_driver(host, op),
                Effect::Reply { request: _, result } => {
                    if let (Ok(_), Some(ask)) = (&result, &ask) {
                        self.acknowledged(ask);
                    }
                    answer = Some(result);
                }
                Effect::Disconnect { host: _, connection, why: _ } => {
                    self.cut(connection, None, Some(NOTICE_CLOSED_MS));
                }
            }
        }
        answer
    }

    fn acknowledged(&mut self, ask: &Action) {
        let durable = self.shell.store.revision();
        if self.shell.control.as_ref().is_some_and(|control| control.revision() != durable) {
            self.around.witness.broken(format!("{ask:?} is acknowledged while the store is at {durable}"));
        }
        self.around.witness.acknowledged(ask);
    }

    /// `Some`: it failed, and why; without a state machine left: the server died of it.
    fn commit(&mut self, commit: &Commit) -> Option<Refusal> {
        if self.shell.dies_at == Some(DiesAt::BeforeCommit) {
            self.die_in_commit();
            return None;
        }
        let result = self.shell.store.commit(self.shell.epoch, self.now(), commit);
        let durable = matches!(result, Ok(()) | Err(CommitError::Unconfirmed));
        if durable && let Some(control) = &self.shell.control {
            self.around.witness.committed(commit, control);
        }
        match result {
            Ok(()) => {
                if self.shell.dies_at == Some(DiesAt::AfterCommit) {
                    self.die_in_commit();
                }
                None
            }
            Err(error) => {
                if matches!(error, CommitError::Contract { .. }) {
                    self.around.witness.broken(error.to_string());
                }
                self.around.witness.note(format!("a commit failed: {error}"));
                self.shell.control = None;
                self.drop_connections();
                let run = self.shell.run;
                self.around.schedule.after(STORE_RETRY_MS, Happening::StoreRetried { run });
                let detail = format!("{error}: ask again");
                Some(Refusal { kind: RefusalKind::Unavailable, field: None, detail })
            }
        }
    }

    fn die_in_commit(&mut self) {
        self.around.witness.note(format!("fault: the server dies {:?}", self.shell.dies_at));
        self.shell.dies_at = None;
        let wait = self.luck.wait_ms(3_000);
        self.kill_server(wait);
    }

    fn start_server(&mut self) {
        if self.shell.control.is_some() {
            return;
        }
        if let Err(error) = self.shell.load(self.now()) {
            return self.around.witness.broken(format!("the store can't be read: {error}"));
        }
        self.around.witness.note(format!("the server starts, run {}", self.shell.run));
        if let Some(control) = &self.shell.control {
            self.around.witness.reloaded(control);
        }
        self.around.schedule.after(1, Happening::Tick { run: self.shell.run });
    }

    pub fn kill_server(&mut self, down_ms: u64) {
        if self.shell.control.take().is_some() {
            self.drop_connections();
            self.around.schedule.after(down_ms, Happening::ServerStarts);
        }
    }

    fn drop_connections(&mut self) {
        let open: Vec<ConnectionId> = self.links.keys().copied().collect();
        for connection in open {
            self.cut(connection, None, Some(NOTICE_CLOSED_MS));
        }
        self.links.retain(|_, link| link.server_run != self.shell.run);
    }
}

/// Connections.
impl Cluster {
    /// Cut, and who notices within what time. `None`: not that side.
    pub(crate) fn cut(&mut self, connection: ConnectionId, server_ms: Option<u64>, agent_ms: Option<u64>) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        link.cut();
        if let Some(most) = server_ms {
            let wait = self.around.dice.between(1, most);
            self.around.schedule.after(wait, Happening::ServerNotices { connection });
        }
        if let Some(most) = agent_ms {
            let wait = self.around.dice.between(1, most);
            self.around.schedule.after(wait, Happening::AgentNotices { connection });
        }
    }

    pub(crate) fn connection_of(&self, host: &HostId) -> Option<ConnectionId> {
        self.fleet.host(host)?.agent.as_ref()?.connection
    }

    pub fn cut_connection(&mut self, host: &HostId) {
        if let Some(connection) = self.connection_of(host) {
            self.cut(connection, Some(NOTICE_SILENT_MS), Some(NOTICE_SILENT_MS));
        }
    }

    pub fn stall_connection(&mut self, host: &HostId, stalled_ms: u64) {
        let until = self.now().plus(Millis(stalled_ms));
        if let Some(link) = self.connection_of(host).and_then(|connection| self.links.get_mut(&connection)) {
            link.stall(until);
        }
    }

    /// The host and the server lose sight of each other for a while.
    pub fn make_unreachable(&mut self, host: &HostId, span_ms: u64) {
        self.cut_connection(host);
        if let Some(row) = self.fleet.hosts.get_mut(host) {
            row.reachable = false;
            self.around.schedule.after(span_ms, Happening::HostReachable { host: host.clone() });
        }
    }

    fn dial(&mut self, host: &HostId, run: u64) {
        let wait = self.around.dice.between(DIAL_MS.0, DIAL_MS.1);
        let Some(row) = self.fleet.hosts.get_mut(host) else { return };
        let reachable = row.reachable;
        let (facts, vms) = (row.facts(), row.inventory());
        let Some(agent) = row.agent.as_mut().filter(|agent| agent.run == run && agent.connection.is_none()) else {
            return;
        };
        let known = self.shell.control.as_ref().is_some_and(|control| control.host(host).is_some());
        if !known || !reachable {
            return self.around.schedule.after(wait, Happening::AgentDials { host: host.clone(), run });
        }
        self.shell.next_connection += 1;
        let connection = ConnectionId(self.shell.next_connection);
        agent.connection = Some(connection);
        self.links.insert(connection, Link::new(host.clone(), run, self.shell.run));
        self.send_to_server(connection, AgentMessage::Connected { facts, vms });
    }

    fn send_to_server(&mut self, connection: ConnectionId, message: AgentMessage) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&connection) else { return };
        if let Some(at) = link.send_to_server(message, now, &mut self.around.dice) {
            self.around.schedule.at(at, Happening::ToServer { connection });
        }
    }

    fn send_to_agent(&mut self, connection: ConnectionId, message: ToAgent) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&connection) else { return };
        if let Some(at) = link.send_to_agent(message, now, &mut self.around.dice) {
            self.around.schedule.at(at, Happening::ToAgent { connection });
        }
    }

    fn arrives_at_server(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection).filter(|link| link.server_run == self.shell.run) else {
            return;
        };
        let Some(message) = link.next_to_server() else { return };
        let host = link.host.clone();
        self.step_server(Input::Agent { host, connection, message });
    }

    fn arrives_at_agent(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        let Some(message) = link.next_to_agent() else { return };
        let (host, run) = (link.host.clone(), link.agent_run);
        let agent = self.fleet.host(&host).and_then(|host| host.agent.as_ref());
        if agent.is_some_and(|agent| agent.run == run && agent.connection == Some(connection)) {
            match message {
                ToAgent::Command(id, command) => self.fleet.command(&mut self.around, &host, id, &command),
                ToAgent::Network(network) => {
                    if let Some(row) = self.fleet.hosts.get_mut(&host) {
                        row.take_network(network);
                    }
                }
            }
            if self.fleet.host(&host).is_some_and(|host| host.agent.is_none()) {
                self.cut(connection, Some(NOTICE_CLOSED_MS), None);
            }
        }
    }

    fn server_notices(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get(&connection).filter(|link| link.server_run == self.shell.run) else { return };
        let host = link.host.clone();
        self.links.remove(&connection);
        self.step_server(Input::Agent { host, connection, message: AgentMessage::Disconnected });
    }

    fn agent_notices(&mut self, connection: ConnectionId) {
        let wait = self.around.dice.between(1, DIAL_MS.0);
        for host in self.fleet.hosts.values_mut() {
            if let Some(agent) = host.agent.as_mut().filter(|agent| agent.connection == Some(connection)) {
                agent.connection = None;
                let (host, run) = (host.id.clone(), agent.run);
                self.around.schedule.after(wait, Happening::AgentDials { host, run });
            }
        }
    }

    fn send_outbox(&mut self) {
        for (host, message) in std::mem::take(&mut self.fleet.outbox) {
            if let Some(connection) = self.connection_of(&host) {
                self.send_to_server(connection, message);
            }
        }
    }

    fn send_report(&mut self, host: &HostId, with_load: bool) {
        let now = self.now();
        let Some(connection) = self.connection_of(host) else { return };
        let Some(row) = self.fleet.host(host) else { return };
        let load = with_load.then(|| self.fleet.load(row, now));
        let (at, vms, network) = (row.clock(now), row.inventory(), row.network_report());
        let message = AgentMessage::Report { at, vms, load, network };
        self.send_to_server(connection, message);
    }

    fn report(&mut self, host: &HostId, run: u64) {
        if self.fleet.host(host).and_then(|host| host.agent.as_ref()).is_some_and(|agent| agent.run == run) {
            self.send_report(host, true);
            self.around.schedule.after(REPORT_MS, Happening::AgentReports { host: host.clone(), run });
        }
    }
}

pub fn host_id(index: usize) -> HostId {
    format!("h{}", index + 1).parse().expect("a letter and a number make a name")
}
