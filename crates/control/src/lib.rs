//! The loops of the control plane as one state machine without I/O: `step(now, Input) -> Effects`.
//!
//! ```text
//!   Input ─▶ hear (live)  or  requests ─▶ membership ─▶ power ─▶ migrate ─▶ lifecycle ─▶ planning ─▶ Effects
//! ```
//!
//! One module per mechanism; this file only dispatches. The loops are level-triggered: at each turn they compare
//! intent ([`tables`]) with what is observed ([`live`]) and say what is missing, so a lost message, a
//! restart of the server or of an agent needs no special case. What one step changes becomes one
//! transaction, which is durable before any command of that step leaves.

mod access;
mod compatibility;
mod explain;
pub mod interface;
pub mod journal;
pub mod kinds;
mod lifecycle;
mod live;
mod lost;
mod membership;
mod migrate;
mod network;
mod patterns;
mod planning;
mod power;
mod requests;
mod rules;
mod shared;
mod tables;
#[cfg(test)]
mod testing;
mod time;
mod transfers;
mod world;

pub use explain::{Explanation, Why};
pub use migrate::Forecast;
pub use network::NetworkStanding;
pub use tables::{EVENTS_MAX, Row, Table};
pub use time::{Now, Waits};
pub use transfers::{Evacuation, Outlook};
pub use world::VmStatus;

use drover_model::event::Event;
use drover_model::intent::{ApiToken, Host, Image, Tenant, Vm};
use drover_model::inventory::HostFacts;
use drover_model::load::HostSample;
use drover_model::migration::{MigrationProgress, MigrationRecord};
use drover_model::plan::{Findings, PlanRecord, Scenario};
use drover_model::policy::{Policy, TheOne};
use drover_model::world::HostState;
use drover_model::{EventSeq, HostId, ImageId, MigrationId, PlanId, Revision, TenantName, TimeMs, VmId};
use interface::{AgentMessage, Effect, Input, ObjectKey, PersistedState, Refusal};
use live::{Live, Reception};
use std::collections::BTreeSet;
use tables::Tables;

/// What the configuration says and the store does not.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Hosts with a power driver.
    pub power_managed: BTreeSet<HostId>,
    /// Taken when the store holds no policy yet.
    pub initial_policy: Policy,
    pub waits: Waits,
}

/// The control plane's state machine.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    started_at: TimeMs,
    /// Of the last step, by the cluster clock.
    now: TimeMs,
    /// From when hosts are given time for their first message.
    first_messages_from: TimeMs,
    /// Until when the server is known to have looked after its hosts in time.
    attended: TimeMs,
    tables: Tables,
    live: Live,
    power: power::Power,
    lifecycle: lifecycle::Lifecycle,
    migrate: migrate::Migrate,
    planning: planning::Planning,
    transfers: transfers::Transfers,
    fabric: network::Fabric,
    patterns: patterns::Patterns,
    /// Most hosts look dead at once: see [`membership`].
    brake: bool,
}

/// How a host stands, for those who read; times by the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct HostStatus<'a> {
    pub state: HostState,
    pub since: TimeMs,
    pub facts: Option<&'a HostFacts>,
    pub last_report: Option<TimeMs>,
    pub sample: Option<&'a HostSample>,
    pub power_managed: bool,
    /// Why drover does not count on being able to wake it, though it has a power driver.
    pub wake_problem: Option<&'a str>,
    pub connected: bool,
}

impl Control {
    /// From what the store holds. Live state starts unknown.
    pub fn load(kept: PersistedState, settings: Settings, now: impl Into<Now>) -> Self {
        let now: Now = now.into();
        let wall_offset = time::WallOffset::of(now);
        let now = now.at;
        let mut tables = Tables::load(kept.objects, kept.events, kept.revision);
        tables.wall_offset = wall_offset;
        let patterns = patterns::Patterns::load(kept.patterns, &tables);
        if tables.get::<Policy>(&TheOne).is_none() {
            tables.put(settings.initial_policy.clone());
        }
        let planning = planning::Planning::resume(&tables);
        let transfers = transfers::Transfers::resume(&tables, now);
        let fabric = network::Fabric::load(&tables, now);
        let power =
            power::Power::resume(now, tables.all::<Host>().filter(|host| settings.power_managed.contains(&host.id)));
        Self {
            settings,
            started_at: now,
            now,
            first_messages_from: now,
            attended: now,
            lifecycle: lifecycle::Lifecycle::load(&tables),
            tables,
            live: Live::default(),
            power,
            migrate: migrate::Migrate::default(),
            transfers,
            fabric,
            patterns,
            planning,
            brake: false,
        }
    }

    /// Takes one thing in; says what must be done about it, in order. `now` never goes back by the cluster clock.
    pub fn step(&mut self, now: impl Into<Now>, input: Input) -> Vec<Effect> {
        let now: Now = now.into();
        self.tables.wall_offset = time::WallOffset::of(now);
        let now = now.at;
        self.now = now;
        let mut reply = None;
        let is_tick = input == Input::Tick;
        self.excuse_silence(now, is_tick);
        match input {
            Input::Tick => self.turn(now),
            Input::Request(request) => {
                let id = request.id;
                reply = Some(Effect::Reply { request: id, result: requests::handle(self, now, request) });
            }
            Input::Agent { host, connection, message } => {
                let network_error = self.network_error(&host);
                let heard = self.live.hear(now, &host, connection, &message);
                if let (Reception::Fresh, AgentMessage::Report { load: Some((_, samples)), .. }) = (&heard, &message) {
                    for (vm, sample) in samples.iter().filter(|(vm, _)| self.tables.vms.contains_key(vm)) {
                        self.patterns.take(now, vm, sample.cpu_wanted);
                    }
                }
                self.hear(now, &host, heard, message);
                network::reported(self, now, &host, network_error.as_deref());
            }
            Input::Power { host, op, result } => power::finished(self, now, &host, op, result),
        }
        transfers::turn(self, now);
        for change in self.tables.changes() {
            self.fabric.changed(&self.tables, change);
            self.lifecycle.changed(change);
            self.live.changed(change);
        }
        let mut commit = self.tables.take_commit();
        // Only a tick's commit takes them along: others are waited for.
        if is_tick {
            match &mut commit {
                Some(commit) => commit.patterns = self.patterns.due(now),
                None => self.live.effects.extend(self.patterns.overdue(now)),
            }
        }
        let mut effects: Vec<Effect> = commit.map(Effect::Commit).into_iter().collect();
        effects.extend(self.fabric.ahead(&self.tables, &self.live));
        effects.append(&mut self.live.effects);
        // A commit of a migration waits for nobody: the rest is told with the next tick, and all of it at once.
        if is_tick {
            effects.extend(self.fabric.due(&self.tables, &self.live));
        }
        effects.extend(reply);
        effects
    }

    fn turn(&mut self, now: TimeMs) {
        membership::turn(self, now);
        power::turn(self, now);
        migrate::turn(self, now);
        lifecycle::turn(self, now);
        planning::turn(self, now);
        requests::retain(self, now);
    }

    /// A tick that comes late is the server's own stall. What hosts sent meanwhile waits to be read: the time does not count
    /// as their silence.
    fn excuse_silence(&mut self, now: TimeMs, is_tick: bool) {
        let unattended = now.since(self.attended);
        if unattended >= self.settings.waits.tick_late_after {
            membership::excuse(self, now, unattended);
            self.attended = now;
        } else if is_tick {
            self.attended = now;
        }
    }

    fn hear(&mut self, now: TimeMs, host: &HostId, heard: Reception, message: AgentMessage) {
        match (heard, message) {
            (Reception::Stale, _) => {}
            (Reception::Answer(answered), _) => {
                migrate::answered(self, now, host, &answered);
                lifecycle::answered(self, now, host, &answered);
            }
            (Reception::Fresh, AgentMessage::Connected { facts, .. }) => {
                self.note_facts(host, &facts);
                self.fabric.connected(host);
                power::connected(self, now, host);
                // Its vms and migrations follow with the next tick: a thousand hosts that connect at once must not cost a
                // thousand turns.
                membership::connected(self, now, host);
            }
            (Reception::Fresh, AgentMessage::Migration { vm, migration, update }) => {
                migrate::updated(self, now, host, &vm, migration, update);
            }
            (
                Reception::Fresh,
                AgentMessage::Disconnected | AgentMessage::Report { .. } | AgentMessage::Answer { .. },
            ) => {}
        }
    }

    /// What the host can give is kept in the store: it is still needed while the host sleeps.
    fn note_facts(&mut self, host: &HostId, facts: &HostFacts) {
        let known = |row: &Host| {
            row.capacity == Some(facts.capacity)
                && row.networks == facts.networks
                && row.overlay_address == facts.overlay_address
        };
        if self.tables.get::<Host>(host).is_some_and(|row| !known(row)) {
            self.tables.change::<Host>(host, |row| {
                row.capacity = Some(facts.capacity);
                row.networks = facts.networks.clone();
                row.overlay_address = facts.overlay_address;
            });
        }
    }

    /// The vms that have the right to run on this host.
    fn vms_on<'a>(&'a self, host: &HostId) -> impl Iterator<Item = &'a Vm> + use<'a> {
        self.tables.vms.referring_to(&ObjectKey::of::<Host>(host))
    }
}

/// Reading. Nothing here changes anything.
impl Control {
    /// When the last step was made, by the cluster clock: what readers of the state reckon with.
    pub fn now(&self) -> TimeMs {
        self.now
    }

    /// A time on the cluster clock, as people read it.
    pub fn to_wall(&self, at: TimeMs) -> TimeMs {
        self.tables.wall_offset.to_wall(at)
    }

    pub fn revision(&self) -> Revision {
        self.tables.revision
    }

    /// When the object was last changed; `None` if there is none.
    pub fn revision_of(&self, key: &ObjectKey) -> Option<Revision> {
        self.tables.revision_of(key)
    }

    pub fn policy(&self) -> &Policy {
        self.tables.get::<Policy>(&TheOne).unwrap_or(&self.settings.initial_policy)
    }

    /// Of the last round of detection; `None` before the first.
    pub fn findings(&self) -> Option<&Findings> {
        self.planning.findings()
    }

    /// Whether the cluster-wide brake is on: most hosts went quiet at once.
    pub fn brake(&self) -> bool {
        self.brake
    }

    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tables.all()
    }

    pub fn tenant(&self, id: &TenantName) -> Option<&Tenant> {
        self.tables.get(id)
    }

    pub fn api_tokens(&self) -> impl Iterator<Item = &ApiToken> {
        self.tables.all()
    }

    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.tables.all()
    }

    pub fn image(&self, id: &ImageId) -> Option<&Image> {
        self.tables.get(id)
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.tables.all()
    }

    pub fn host(&self, id: &HostId) -> Option<&Host> {
        self.tables.get(id)
    }

    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.tables.all()
    }

    pub fn vm(&self, id: &VmId) -> Option<&Vm> {
        self.tables.get(id)
    }

    pub fn migrations(&self) -> impl DoubleEndedIterator<Item = &MigrationRecord> {
        self.tables.all()
    }

    pub fn migration(&self, id: MigrationId) -> Option<&MigrationRecord> {
        self.tables.get(&id)
    }

    pub fn migration_progress(&self, id: MigrationId) -> Option<&MigrationProgress> {
        self.migrate.progress(id)
    }

    pub fn plans(&self) -> impl DoubleEndedIterator<Item = &PlanRecord> {
        self.tables.all()
    }

    pub fn plan(&self, id: PlanId) -> Option<&PlanRecord> {
        self.tables.get(&id)
    }

    pub fn host_status(&self, id: &HostId) -> HostStatus<'_> {
        let live = self.live.hosts.get(id);
        HostStatus {
            state: self.live.state(id),
            since: self.to_wall(live.map_or(self.started_at, |live| live.since)),
            facts: live.and_then(|live| live.facts.as_ref()),
            last_report: live.and_then(|live| live.reported_at).map(|at| self.to_wall(at)),
            sample: live.and_then(|live| live.load.last()).map(|(_, sample)| sample),
            power_managed: self.settings.power_managed.contains(id),
            wake_problem: self.host(id).and_then(|host| self.wake_problem(host)),
            connected: live.is_some_and(|live| live.connection.is_some()),
        }
    }

    /// When a plan is being carried out, or a vm moves, or hosts have gone quiet, nothing is tried out.
    fn is_calm(&self) -> bool {
        let scenario = self.findings().map(|findings| findings.scenario);
        !self.brake
            && !self.planning.is_busy()
            && self.migrations_open() == 0
            && matches!(scenario, Some(Scenario::Balanced | Scenario::Underused))
    }

    /// Entries after `after`, oldest first, at most `limit`. Those older than the newest [`EVENTS_MAX`] are gone.
    pub fn events(&self, after: EventSeq, limit: usize) -> Vec<&Event> {
        let first = self.tables.events.partition_point(|event| event.seq <= after);
        self.tables.events.iter().skip(first).take(limit).collect()
    }

    fn require<K: kinds::Resource>(&self, key: &K::Key) -> Result<&K, Refusal> {
        self.tables.get::<K>(key).ok_or_else(|| Refusal::not_found(format!("there is no {} {key}", K::TITLE)))
    }
}
