//! Many migrations at once: whose turn it is, how fast each may send, when each will be done.
//!
//! ```text
//!  asked for ─▶ queue ──schedule: a place at both hosts, a fair part of their links──▶ migrate::start
//!                 ▲                                                                        │ Pace
//!      priority, then age                    others begin, end, are held ──▶ AdjustMigration ◀──┘
//! ```
//! Nothing here is stored but what is in the migrations' records: a server that comes back schedules what it finds, and
//! learns again from the reports that are kept what its predecessor had learned.

mod cooling;
mod evacuation;

pub use cooling::Cooling;
pub use evacuation::Evacuation;

use crate::Control;
use crate::live::Seen;
use crate::migrate;
use crate::tables::Tables;
use drover_model::command::Command;
use drover_model::inventory::{OutgoingPhase, VmState};
use drover_model::migration::{Method, MigrationPhase, MigrationRecord, Pace, Priority};
use drover_model::plan::{Action, PlanState, StepState};
use drover_model::policy::MigrationPolicy;
use drover_model::{Bytes, HostId, MigrationId, Millis, TimeMs, VmId};
use drover_planner::predict::{Features, Predictor};
use drover_planner::schedule::{Limits, Link, Links, Move, Schedule, Slot, Standing, Work, schedule};
use std::collections::BTreeMap;

/// Without a change, what goes on is looked at this often.
const LOOK_EVERY: Millis = Millis::secs(1);
/// A rate is sent_pace anew when it differs by this share.
const TELLING_CHANGE: f64 = 0.1;
/// As far as progress alone shows, a migration under way is never quite done.
const DONE_MAX: f64 = 0.98;

#[derive(Debug)]
pub struct Transfers {
    predictor: Predictor,
    cooling: Cooling,
    evacuations: BTreeMap<HostId, Evacuation>,
    outlook: BTreeMap<MigrationId, Outlook>,
    sent_pace: BTreeMap<MigrationId, SentPace>,
    looked_at: Option<TimeMs>,
    changed: bool,
}

/// When an open migration is expected to begin and to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outlook {
    /// `None`: not while things stay as they are.
    pub start_at: Option<TimeMs>,
    pub finish_at: Option<TimeMs>,
    /// Why it has not begun; completes "because ...".
    pub waits_for: Option<String>,
}

/// The last pace that a source was given, in this run of its agent.
#[derive(Debug)]
struct SentPace {
    pace: Pace,
    agent_run: Option<String>,
}

/// A migration, or a step of the plan under way that will become one.
struct Entry {
    vm: Option<VmId>,
    record: Option<MigrationRecord>,
    step: Move,
}

impl Entry {
    /// A step that is not begun.
    fn is_step_of(&self, vm: &VmId) -> bool {
        self.record.is_none() && self.vm.as_ref() == Some(vm)
    }
}

impl Transfers {
    /// Learns from what the store has kept; it keeps a bounded number.
    pub fn resume(tables: &Tables, now: TimeMs) -> Self {
        let mut over: Vec<&MigrationRecord> =
            tables.all::<MigrationRecord>().filter(|record| record.finished_at.is_some()).collect();
        over.sort_by_key(|record| (record.finished_at, record.id));
        let mut predictor = Predictor::new();
        predictor.learn_all(over.iter().copied());
        let mut cooling = Cooling::default();
        for record in over {
            cooling.ended(record.finished_at.unwrap_or(now), record);
        }
        Self {
            predictor,
            cooling,
            evacuations: BTreeMap::new(),
            outlook: BTreeMap::new(),
            sent_pace: BTreeMap::new(),
            looked_at: None,
            changed: true,
        }
    }

    pub fn predictor(&self) -> &Predictor {
        &self.predictor
    }

    pub fn cooling(&self) -> &Cooling {
        &self.cooling
    }

    pub fn cooling_mut(&mut self) -> &mut Cooling {
        &mut self.cooling
    }

    pub fn outlook(&self, id: MigrationId) -> Option<&Outlook> {
        self.outlook.get(&id)
    }

    pub fn evacuation(&self, host: &HostId) -> Option<&Evacuation> {
        self.evacuations.get(host)
    }

    /// Something began, ended, or was asked for: it is looked at before the step under way ends.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// A migration is over: what it took is learned.
    pub fn ended(&mut self, now: TimeMs, record: &MigrationRecord) {
        self.predictor.learn(record);
        self.cooling.ended(now, record);
        self.outlook.remove(&record.id);
        self.sent_pace.remove(&record.id);
        self.changed = true;
    }

    /// A source did not take its new pace: it goes at the one it began with.
    pub fn was_not_told(&mut self, id: MigrationId) {
        self.sent_pace.remove(&id);
    }
}

/// Starts what may start, and shares the links anew, if anything has changed or it is time.
pub fn turn(control: &mut Control, now: TimeMs) {
    let transfers = &mut control.transfers;
    let due = transfers.looked_at.is_none_or(|at| now.since(at) >= LOOK_EVERY);
    if !transfers.changed && !due {
        return;
    }
    transfers.changed = false;
    transfers.looked_at = Some(now);
    transfers.cooling.forget_old(now);
    let entries = entries(control);
    let (links, limits) = links(control, &entries);
    let schedule = plan(&entries, &links, &limits);
    let rates = rates(&entries, &schedule, &links);
    let mut outlook = BTreeMap::new();
    for ((entry, slot), rate) in entries.iter().zip(&schedule.slots).zip(rates) {
        let Some(record) = &entry.record else { continue };
        let at = |span: Option<Millis>| span.map(|span| now.plus(span));
        let waits_for = slot.waits_for.as_ref().map(|wait| wait.to_string());
        let (start_at, finish_at) = (at(slot.start), at(slot.finish));
        outlook.insert(record.id, Outlook { start_at, finish_at, waits_for });
        let pace = pace(control, &entries, record, rate);
        if record.phase != MigrationPhase::Queued {
            adjust(control, record, pace);
        } else if slot.starts_now() && !control.brake {
            migrate::start(control, now, record, pace);
        }
    }
    for held in control.migrations().filter(|record| !record.phase.is_over() && is_held_in_queue(record)) {
        let waits_for = Some("somebody holds it".to_owned());
        outlook.insert(held.id, Outlook { waits_for, ..Outlook::default() });
    }
    control.transfers.outlook = outlook;
    evacuation::turn(control, now, &entries, &schedule);
}

fn is_held_in_queue(record: &MigrationRecord) -> bool {
    record.paused && record.phase == MigrationPhase::Queued
}

/// Open migrations by age, then the steps of the plan under way that wait for others.
fn entries(control: &Control) -> Vec<Entry> {
    let open = control.migrations().filter(|record| !record.phase.is_over() && !is_held_in_queue(record));
    let mut entries: Vec<Entry> = open
        .map(|record| {
            let done = done(control, record);
            let standing = match record.phase {
                MigrationPhase::Queued => Standing::Waiting,
                _ if record.paused => Standing::Paused { done },
                _ => Standing::Running { done },
            };
            let step = Move {
                from: record.from.clone(),
                to: record.to.clone(),
                work: work(record),
                priority: record.priority,
                after: Vec::new(),
                standing,
            };
            Entry { vm: Some(record.vm.clone()), record: Some(record.clone()), step }
        })
        .collect();
    let Some(record) = control.plans().find(|record| record.state == PlanState::Running) else { return entries };
    let mut place_of_step = BTreeMap::new();
    for (index, (step, state)) in record.plan.steps.iter().zip(&record.steps).enumerate() {
        let Action::Migrate { vm, from, to, .. } = &step.action else { continue };
        match state {
            StepState::Running { migration: Some(id), .. } => {
                let place = entries.iter().position(|entry| entry.record.as_ref().is_some_and(|m| m.id == *id));
                place_of_step.extend(place.map(|place| (index, place)));
            }
            StepState::Waiting => {
                place_of_step.insert(index, entries.len());
                let after = step.after.iter().filter_map(|before| place_of_step.get(before).copied()).collect();
                let work = Work { fixed: step.duration, bytes: Bytes::ZERO, dirtied: Bytes::ZERO };
                let (from, to) = (from.clone(), to.clone());
                let standing = Standing::Waiting;
                let step = Move { from, to, work, priority: Priority::Low, after, standing };
                entries.push(Entry { vm: Some(vm.clone()), record: None, step });
            }
            StepState::Running { .. } | StepState::Done { .. } | StepState::Failed { .. } | StepState::Skipped => {}
        }
    }
    entries
}

fn work(record: &MigrationRecord) -> Work {
    let prediction = record.prediction.unwrap_or_default();
    let features = Features {
        vm: record.vm.clone(),
        from: record.from.clone(),
        to: record.to.clone(),
        in_use: prediction.basis.in_use,
        writing: prediction.basis.writing,
        bandwidth: Some(prediction.basis.bandwidth),
    };
    Work::of(&features, &prediction)
}

/// Share of the work that is done, as far as bytes tell.
fn done(control: &Control, record: &MigrationRecord) -> f64 {
    let Some(progress) = control.migrate.progress(record.id) else { return 0.0 };
    let expected = record.prediction.map_or(0.0, |prediction| prediction.transferred.expected.0 as f64);
    if expected == 0.0 || progress.total == Bytes::ZERO {
        return 0.0;
    }
    // What takes longer than expected is not nearly done for that.
    let sent = progress.transferred.0 as f64 / expected;
    let not_left = 1.0 - progress.remaining.0 as f64 / expected;
    sent.min(not_left).clamp(0.0, DONE_MAX)
}

fn links(control: &Control, entries: &[Entry]) -> (Links, Limits) {
    let policy = control.policy();
    let limits = Limits {
        per_host: policy.migration.per_host_max,
        at_once: policy.migrations_at_once_max,
        rate_max: policy.migration.bandwidth_max,
    };
    let mut hosts: BTreeMap<HostId, Link> = BTreeMap::new();
    for Entry { step, .. } in entries {
        let carries = match policy.migration.host_bandwidth_max {
            Bytes::ZERO => control.transfers.predictor.link_speed(&step.from, &step.to),
            max => max,
        };
        for host in [&step.from, &step.to] {
            let link = hosts.entry(host.clone()).or_insert(Link { out: Bytes::ZERO, into: Bytes::ZERO });
            (link.out, link.into) = (link.out.max(carries), link.into.max(carries));
        }
    }
    let none = Link { out: Bytes::ZERO, into: Bytes::ZERO };
    (Links { hosts, default: none }, limits)
}

fn plan(entries: &[Entry], links: &Links, limits: &Limits) -> Schedule {
    let moves: Vec<Move> = entries.iter().map(|entry| entry.step.clone()).collect();
    schedule(&moves, links, limits)
}

/// What each may send at from now on. The schedule counts on the one before to end when it was expected to; until it has,
/// what is sent over a link together keeps to what the link carries.
fn rates(entries: &[Entry], schedule: &Schedule, links: &Links) -> Vec<Bytes> {
    let mut out: BTreeMap<&HostId, f64> = BTreeMap::new();
    let mut into: BTreeMap<&HostId, f64> = BTreeMap::new();
    let sends = |entry: &Entry, slot: &Slot| match entry.step.standing {
        Standing::Running { .. } => true,
        Standing::Waiting => entry.record.is_some() && slot.starts_now(),
        Standing::Paused { .. } => false,
    };
    for (entry, slot) in entries.iter().zip(&schedule.slots).filter(|(entry, slot)| sends(entry, slot)) {
        *out.entry(&entry.step.from).or_default() += slot.rate().0 as f64;
        *into.entry(&entry.step.to).or_default() += slot.rate().0 as f64;
    }
    let share = |sum: Option<&f64>, carries: Bytes| match sum {
        Some(sum) if *sum > carries.0 as f64 => carries.0 as f64 / sum,
        Some(_) | None => 1.0,
    };
    let rate = |(entry, slot): (&Entry, &Slot)| {
        let link = |host: &HostId| links.hosts.get(host).copied().unwrap_or(links.default);
        let (from, to) = (&entry.step.from, &entry.step.to);
        slot.rate().scale(share(out.get(from), link(from).out).min(share(into.get(to), link(to).into)))
    };
    entries.iter().zip(&schedule.slots).map(rate).collect()
}

/// How fast it may send. Alone on links that the policy does not bound it may send as fast as they carry, and so shows how
/// fast that is.
fn pace(control: &Control, entries: &[Entry], record: &MigrationRecord, rate: Bytes) -> Pace {
    let MigrationPolicy { bandwidth_max, host_bandwidth_max, .. } = control.policy().migration;
    let shares = |other: &&Entry| {
        let at = [&other.step.from, &other.step.to];
        let sends = matches!(other.step.standing, Standing::Running { .. });
        let other_one = other.record.as_ref().is_some_and(|m| m.id != record.id);
        sends && other_one && (at.contains(&&record.from) || at.contains(&&record.to))
    };
    let bounded = bandwidth_max > Bytes::ZERO || host_bandwidth_max > Bytes::ZERO;
    let max = if bounded || entries.iter().any(|other| shares(&other)) { rate } else { Bytes::ZERO };
    let begins_at = record.strategy.pace.min;
    let min = match (record.strategy.method, max) {
        (Method::StopAndCopy, max) => max,
        (_, Bytes::ZERO) => begins_at,
        (_, max) => begins_at.min(max),
    };
    Pace { min, max, paused: record.paused }
}

/// Tells the source of a migration under way when its share has changed.
fn adjust(control: &mut Control, record: &MigrationRecord, pace: Pace) {
    let Seen::There(seen) = control.live.sees(&record.from, &record.vm) else { return };
    let VmState::Outgoing { migration, phase } = &seen.state else { return };
    let sends = match phase {
        OutgoingPhase::PreCopy | OutgoingPhase::PostCopy => *migration == record.id,
        OutgoingPhase::AtSwitchOver | OutgoingPhase::SwitchingOver | OutgoingPhase::PostCopyPaused => false,
    };
    let agent_run = control.agent_run(&record.from);
    let sent_pace = control.transfers.sent_pace.get(&record.id).filter(|sent_pace| sent_pace.agent_run == agent_run);
    let before = sent_pace.map_or(Pace { paused: false, ..record.strategy.pace }, |sent_pace| sent_pace.pace);
    if !sends || !differs(before, pace) || control.live.is_asked(&record.from, &record.vm) {
        return;
    }
    let command = Command::AdjustMigration { vm: record.vm.clone(), migration: record.id, pace };
    if control.live.send(&record.from, command) {
        control.transfers.sent_pace.insert(record.id, SentPace { pace, agent_run });
    }
}

fn differs(a: Pace, b: Pace) -> bool {
    let (low, high) = (a.max.min(b.max).0 as f64, a.max.max(b.max).0 as f64);
    let limits_differ = if low == 0.0 { high > 0.0 } else { high / low > 1.0 + TELLING_CHANGE };
    a.paused != b.paused || limits_differ
}

impl Control {
    /// When an open migration is expected to begin and to end, and what it waits for.
    pub fn migration_outlook(&self, id: MigrationId) -> Option<&Outlook> {
        self.transfers.outlook(id)
    }

    /// How far a host that is drained is from being empty; `None` for one that is not.
    pub fn evacuation(&self, host: &HostId) -> Option<&Evacuation> {
        self.transfers.evacuation(host)
    }

    /// Why a migration that was asked for now would not begin at once.
    pub(crate) fn would_wait(&self, from: &HostId, to: &HostId, work: Work) -> Option<String> {
        if self.brake {
            return Some("most hosts are silent, and nothing is moved until they answer".to_owned());
        }
        let mut entries = entries(self);
        let (from, to) = (from.clone(), to.clone());
        let (priority, after, standing) = (Priority::Normal, Vec::new(), Standing::Waiting);
        entries.push(Entry { vm: None, record: None, step: Move { from, to, work, priority, after, standing } });
        let (links, limits) = links(self, &entries);
        let slot = plan(&entries, &links, &limits).slots.pop()?;
        slot.waits_for.filter(|_| slot.start != Some(Millis::ZERO)).map(|wait| wait.to_string())
    }
}
