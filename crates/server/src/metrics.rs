//! What Prometheus sees (text exposition format, OpenMetrics 1.0).
//!
//! Counters and histograms follow the commits; gauges are read from the state machine when asked for.

use crate::hub::Hub;
use drover_control::Control;
use drover_control::interface::{Commit, Object, Stored, Write};
use drover_model::migration::{MigrationPhase, MigrationRecord};
use drover_model::plan::PlanRecord;
use drover_model::world::HostState;
use drover_model::{MigrationId, Millis, PlanId};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Media type of what [`Metrics::render`] gives.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Of `utime` and `stime` in /proc/PID/stat: USER_HZ is 100 on every architecture drover runs on (proc(5), time(7)).
const TICKS_PER_SECOND: f64 = 100.0;

type Labels = Vec<(&'static str, String)>;
type FloatGauge = Gauge<f64, AtomicU64>;

/// The objects whose end is counted, so that writing one again counts nothing.
#[derive(Debug, Default)]
struct Seen {
    migrations: Unfinished<MigrationId>,
    plans: Unfinished<PlanId>,
}

#[derive(Debug)]
struct Unfinished<Id> {
    open: BTreeSet<Id>,
    last: Option<Id>,
}

impl<Id> Default for Unfinished<Id> {
    fn default() -> Self {
        Self { open: BTreeSet::new(), last: None }
    }
}

impl<Id: Ord + Copy> Unfinished<Id> {
    /// Whether this is the first time that the object is seen finished.
    fn ends(&mut self, id: Id, finished: bool) -> bool {
        let new = self.last.is_none_or(|last| id > last);
        self.last = self.last.max(Some(id));
        if finished {
            self.open.remove(&id) || new
        } else {
            self.open.insert(id);
            false
        }
    }
}

impl Seen {
    /// Whether this is the first time that this migration or plan is seen finished.
    fn ends(&mut self, object: &Object) -> bool {
        match object {
            Object::Migration(migration) => self.migrations.ends(migration.id, migration.phase.is_over()),
            Object::Plan(plan) => self.plans.ends(plan.id, plan.finished_at.is_some()),
            Object::Tenant(_)
            | Object::ApiToken(_)
            | Object::JoinToken(_)
            | Object::Host(_)
            | Object::Image(_)
            | Object::Vm(_)
            | Object::Policy(_)
            | Object::Idempotency(_)
            | Object::Network(_)
            | Object::SecurityGroup(_)
            | Object::Port(_)
            | Object::PlacementRule(_) => false,
        }
    }
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    seen: Mutex<Seen>,
    /// Gauges are cleared and set again: one reader at a time.
    reading: Mutex<()>,
    hosts: Family<Labels, Gauge>,
    vms: Family<Labels, Gauge>,
    scenario: Family<Labels, Gauge>,
    agents: Gauge,
    migrations: Family<Labels, Counter>,
    downtime: Histogram,
    migration_time: Histogram,
    plan_time: Histogram,
    commit_time: Histogram,
    agent_message_time: Histogram,
    store_failures: Counter,
    resident: Gauge,
    cpu: FloatGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("drover");
        let metrics = Self {
            seen: Mutex::default(),
            reading: Mutex::default(),
            hosts: Family::default(),
            vms: Family::default(),
            scenario: Family::default(),
            agents: Gauge::default(),
            migrations: Family::default(),
            // 1 ms to 16 s, 0.1 s to 27 min, 1 s to 4.5 h, 0.25 ms to 8 s.
            downtime: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            migration_time: Histogram::new(exponential_buckets(0.1, 2.0, 15)),
            plan_time: Histogram::new(exponential_buckets(1.0, 2.0, 15)),
            commit_time: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            // 0.1 ms to 18 s, two buckets per doubling.
            agent_message_time: Histogram::new(exponential_buckets(0.000_1, std::f64::consts::SQRT_2, 36)),
            store_failures: Counter::default(),
            resident: Gauge::default(),
            cpu: FloatGauge::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        registry.register("hosts", "Hosts, by state", m.hosts.clone());
        registry.register("vms", "Virtual servers, by phase", m.vms.clone());
        registry.register("scenario", "1 for the scenario that the pool is in", m.scenario.clone());
        registry.register("agents_connected", "Agent connections", m.agents.clone());
        registry.register("migrations", "Migrations that ended, by outcome", m.migrations.clone());
        let seconds = Unit::Seconds;
        let d = &m.downtime;
        registry.register_with_unit("migration_downtime", "How long vms stood still", seconds.clone(), d.clone());
        let t = &m.migration_time;
        registry.register_with_unit("migration_duration", "Start to end of migrations", seconds.clone(), t.clone());
        let p = &m.plan_time;
        registry.register_with_unit("plan_duration", "From a plan's making to its end", seconds.clone(), p.clone());
        let c = &m.commit_time;
        registry.register_with_unit(
            "store_commit_duration",
            "Time to make a change durable",
            seconds.clone(),
            c.clone(),
        );
        let a = &m.agent_message_time;
        let help = "From the arrival of an agent's message to its end in the state machine";
        registry.register_with_unit("agent_message_duration", help, seconds, a.clone());
        registry.register("store_failures", "Changes that could not be stored", m.store_failures.clone());
        let r = &m.resident;
        registry.register_with_unit("process_resident_memory", "Of the server", Unit::Bytes, r.clone());
        registry.register("process_cpu_seconds", "Processor time the server has used", m.cpu.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// The store was read: what is over in it was counted by an earlier run.
    pub fn loaded(&self, objects: &[Stored]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for stored in objects {
            seen.ends(&stored.object);
        }
    }

    pub fn committed(&self, commit: &Commit, took: Duration) {
        self.commit_time.observe(took.as_secs_f64());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for write in &commit.writes {
            let Write::Put { object, .. } = write else { continue };
            if !seen.ends(object) {
                continue;
            }
            if let Object::Migration(migration) = object {
                self.migration_ended(migration);
            } else if let Object::Plan(plan) = object {
                self.plan_ended(plan);
            }
        }
    }

    /// A message of an agent was handled `took` after its frame was read from the connection.
    pub fn agent_message_handled(&self, took: Duration) {
        self.agent_message_time.observe(took.as_secs_f64());
    }

    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    fn migration_ended(&self, migration: &MigrationRecord) {
        self.migrations.get_or_create(&vec![("outcome", migration.phase.word().to_owned())]).inc();
        if let Some(finished_at) = migration.finished_at {
            self.migration_time.observe(finished_at.since(migration.started_at).as_secs());
        }
        if let (MigrationPhase::Done, Some(report)) = (&migration.phase, &migration.report) {
            self.downtime.observe(report.downtime.as_secs());
        }
    }

    fn plan_ended(&self, plan: &PlanRecord) {
        let took = plan.finished_at.map_or(Millis(0), |at| at.since(plan.plan.made_at));
        self.plan_time.observe(took.as_secs());
    }

    /// The whole page. `now` is what [`Now::read`] found.
    pub fn render(&self, now: &Now, hub: &Hub) -> Result<String, std::fmt::Error> {
        let _one_reader = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, label, counts) in [
            (&self.hosts, "state", &now.hosts),
            (&self.vms, "phase", &now.vms),
            (&self.scenario, "scenario", &now.scenario),
        ] {
            family.clear();
            for (word, count) in counts {
                family.get_or_create(&vec![(label, word.clone())]).set(*count);
            }
        }
        self.agents.set(hub.connected() as i64);
        if let Some((resident, cpu)) = process() {
            self.resident.set(resident);
            self.cpu.set(cpu);
        }
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

/// The state machine's gauges at one moment.
#[derive(Debug, Default)]
pub struct Now {
    hosts: BTreeMap<String, i64>,
    vms: BTreeMap<String, i64>,
    scenario: BTreeMap<String, i64>,
}

impl Now {
    pub fn read(control: &Control) -> Self {
        let mut now = Self::default();
        for host in control.hosts() {
            *now.hosts.entry(state_word(control.host_status(&host.id).state).to_owned()).or_default() += 1;
        }
        for vm in control.vms() {
            *now.vms.entry(control.vm_status(&vm.id).phase.to_owned()).or_default() += 1;
        }
        if let Some(findings) = control.findings() {
            let mut word = String::new();
            // Writing to a string does not fail.
            let _written = write!(word, "{}", findings.scenario);
            now.scenario.insert(word, 1);
        }
        now
    }
}

fn state_word(state: HostState) -> &'static str {
    match state {
        HostState::Unknown => "unknown",
        HostState::Up => "up",
        HostState::Suspect => "suspect",
        HostState::Down => "down",
        HostState::Asleep => "asleep",
        HostState::Waking => "waking",
        HostState::FallingAsleep => "falling-asleep",
    }
}

/// Resident bytes and processor seconds of this process, from proc(5).
fn process() -> Option<(i64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let resident: i64 = resident.trim().trim_end_matches("kB").trim().parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields from the third on follow the command's closing parenthesis; utime and stime are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some((resident * 1024, ticks / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_model::migration::{MigrationReport, Priority, Strategy};
    use drover_model::{Generation, Revision, TimeMs};

    fn put(id: u64, phase: MigrationPhase) -> Commit {
        let over = phase.is_over();
        let migration = MigrationRecord {
            id: MigrationId(id),
            vm: "vm-a".parse().unwrap(),
            from: "h1".parse().unwrap(),
            to: "h2".parse().unwrap(),
            generation: Generation(1),
            plan: None,
            reason: "it was asked for".to_owned(),
            started_at: TimeMs(1_000),
            phase,
            strategy: Strategy::PRE_COPY,
            prediction: None,
            priority: Priority::Normal,
            paused: false,
            cancelled_by: None,
            finished_at: over.then_some(TimeMs(4_000)),
            report: over.then_some(MigrationReport { downtime: Millis(40), ..Default::default() }),
        };
        let writes = vec![Write::Put { object: Object::Migration(migration), expected: None }];
        Commit { revision: Revision(1), writes, ..Commit::default() }
    }

    #[test]
    fn each_migration_is_counted_once_when_it_ends() {
        let metrics = Metrics::default();
        for commit in [
            put(1, MigrationPhase::Reserved),
            put(1, MigrationPhase::PreCopy),
            put(1, MigrationPhase::Done),
            put(1, MigrationPhase::Done),
            put(2, MigrationPhase::Failed { why: "x".to_owned() }),
        ] {
            metrics.committed(&commit, Duration::from_millis(1));
        }
        let page = metrics.render(&Now::default(), &Hub::new(1)).unwrap();
        for line in [
            "drover_migrations_total{outcome=\"done\"} 1",
            "drover_migrations_total{outcome=\"failed\"} 1",
            "drover_migration_downtime_seconds_count 1",
            "drover_store_commit_duration_seconds_count 5",
            "# EOF",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn the_time_that_an_agents_message_took_is_shown() {
        let metrics = Metrics::default();
        metrics.agent_message_handled(Duration::from_millis(3));
        let page = metrics.render(&Now::default(), &Hub::new(1)).unwrap();
        assert!(page.contains("drover_agent_message_duration_seconds_count 1"), "{page}");
        assert!(page.contains("drover_agent_message_duration_seconds_sum 0.003"), "{page}");
    }

    #[test]
    fn the_process_is_measured() {
        let (resident, cpu) = process().unwrap();
        assert!(resident > 1 << 20, "{resident}");
        assert!(cpu >= 0.0);
    }
}
