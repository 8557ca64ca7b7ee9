//! The loop of design section 2: detect, plan, execute, verify.
//!
//! ```text
//!  round (1/s): detect ─▶ plan ─▶ check ─┬─ observe: said, nothing kept
//!                                        ├─ propose: Proposed ──approve──┐
//!                                        └─ act:                         ▼
//!                                                  Running ─▶ Settling ─▶ Done (verified)
//!                                                     └─▶ Failed      (a step failed; those after it are skipped)
//! ```
//!
//! One plan is carried out at a time. The planner judges, the checker must find nothing, and execution
//! leaves no choice: a step that no longer fits the cluster as it is fails, and the next round plans anew.

use crate::Control;
use crate::interface::{Refusal, Reply};
use crate::migrate::{self, MigrationRequest};
use crate::power;
use crate::tables::Tables;
use drover_model::event::Severity;
use drover_model::intent::PowerIntent;
use drover_model::migration::{MigrationPhase, MigrationRecord, Priority};
use drover_model::plan::{Action, Findings, Heat, Plan, PlanRecord, PlanState, Scenario, Step, StepState};
use drover_model::policy::Mode;
use drover_model::world::HostState;
use drover_model::{HostId, MigrationId, Millis, PlanId, TimeMs};
use drover_planner as planner;
use std::collections::BTreeSet;

const ROUND_EVERY: Millis = Millis(1_000);
const ROUND_APART_PER_THOUSAND_VMS: Millis = Millis(100);
/// A proposal nobody has answered is looked at again this often, and replaced if the cluster has changed.
const PROPOSAL_REVIEW_EVERY: Millis = Millis::secs(30);
/// After a failed plan the next one waits this long, so that a persistent cause can't spin the loop.
const AFTER_FAILURE: Millis = Millis::secs(10);

#[derive(Debug, Default)]
pub struct Planning {
    round_at: Option<TimeMs>,
    findings: Option<Findings>,
    /// The last plan that found nothing worth doing: the answer to "why did nothing move?".
    idle: Option<Plan>,
    /// The one plan that is Running or Settling.
    current: Option<PlanId>,
    settles_at: Option<TimeMs>,
    not_before: Option<TimeMs>,
    reviewed_at: Option<TimeMs>,
}

impl Planning {
    pub fn resume(tables: &Tables) -> Self {
        let under_way = |record: &&PlanRecord| matches!(record.state, PlanState::Running | PlanState::Settling);
        Self { current: tables.all::<PlanRecord>().find(under_way).map(|record| record.id), ..Self::default() }
    }

    pub fn findings(&self) -> Option<&Findings> {
        self.findings.as_ref()
    }

    /// A plan is being carried out, or settles.
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    pub fn idle(&self) -> Option<&Plan> {
        self.idle.as_ref()
    }
}

pub fn turn(control: &mut Control, now: TimeMs) {
    if let Some(id) = control.planning.current {
        carry_on(control, now, id);
    }
    // A round looks at every host and vm, in the task that hears the agents: the larger the cluster, the rarer it is.
    let apart = Millis(ROUND_EVERY.0.max(control.tables.vms.len() as u64 * ROUND_APART_PER_THOUSAND_VMS.0 / 1_000));
    if control.planning.round_at.is_some_and(|at| now.since(at) < apart) {
        return;
    }
    control.planning.round_at = Some(now);
    let world = control.world(now);
    let findings = planner::detect(&world);
    tell_changes(control, now, &findings);
    control.planning.findings = Some(findings.clone());
    if held_back(control, now).is_some() {
        return;
    }
    let plan = planner::plan(&world, &findings, control.transfers.predictor());
    if plan.steps.is_empty() {
        supersede_proposals(control, now, "nothing is worth doing any more");
        control.planning.idle = Some(plan);
        return;
    }
    if let Some(plan) = checked(control, now, &world, plan) {
        take(control, now, findings, plan);
    }
}

/// Why nothing is planned at the moment, completing "because ..."; `None` if plans are made. Nothing is planned while
/// something moves or settles: load would be counted twice.
pub fn held_back(control: &Control, now: TimeMs) -> Option<String> {
    if control.policy().mode == Mode::Observe {
        return Some("the policy's mode is observe".to_owned());
    }
    if control.brake {
        return Some("most hosts went quiet at once".to_owned());
    }
    if let Some(id) = control.planning.current {
        return Some(format!("plan {id} is being carried out, or its effect settles"));
    }
    if control.migrations_open() > 0 {
        return Some("a migration is under way".to_owned());
    }
    let wait = control.planning.not_before.filter(|at| now < *at)?;
    Some(format!("the last plan came to nothing, and the next is made in {}", wait.since(now)))
}

/// The plan, if the independent checker finds nothing wrong with it.
fn checked(control: &mut Control, now: TimeMs, world: &drover_model::world::World, plan: Plan) -> Option<Plan> {
    let violations = planner::check(world, &plan);
    let Some(first) = violations.first() else { return Some(plan) };
    let text = format!(
        "a plan was thrown away, because the checker objects: {first}. This is a defect of the planner: report it"
    );
    control.planning.not_before = Some(now.plus(AFTER_FAILURE));
    control.tables.event(now, Severity::Escalation, "cluster", None, "plan-unsound", text);
    None
}

fn take(control: &mut Control, now: TimeMs, findings: Findings, plan: Plan) {
    let mode = control.policy().mode;
    if mode == Mode::Propose {
        let same = |record: &PlanRecord| {
            record.state == PlanState::Proposed
                && record.plan.steps.iter().map(|s| &s.action).eq(plan.steps.iter().map(|s| &s.action))
        };
        let recent = control.planning.reviewed_at.is_some_and(|at| now.since(at) < PROPOSAL_REVIEW_EVERY);
        let open = control.plans().any(|record| record.state == PlanState::Proposed);
        if control.plans().any(same) || (open && recent) {
            return;
        }
        control.planning.reviewed_at = Some(now);
        supersede_proposals(control, now, "the cluster has changed; a newer plan takes its place");
    }
    record(control, now, findings, plan, mode == Mode::Act);
}

fn record(control: &mut Control, now: TimeMs, findings: Findings, plan: Plan, run: bool) -> PlanId {
    let id = control.tables.next_plan();
    let steps = vec![StepState::Waiting; plan.steps.len()];
    let state = if run { PlanState::Running } else { PlanState::Proposed };
    let text = format!("{}: {} ({} steps, gains {})", plan.scenario, plan.why, steps.len(), plan.predicted.gain);
    control.tables.put(PlanRecord { id, plan, findings, state, steps, finished_at: None, verification: None });
    let kind = if run { "plan-started" } else { "plan-proposed" };
    control.tables.event(now, Severity::Info, format!("plan/{id}"), None, kind, text);
    if run {
        control.planning.current = Some(id);
        control.planning.settles_at = None;
        carry_on(control, now, id);
    }
    id
}

fn supersede_proposals(control: &mut Control, now: TimeMs, why: &str) {
    let open: Vec<PlanId> =
        control.plans().filter(|record| record.state == PlanState::Proposed).map(|record| record.id).collect();
    for id in open {
        finish(control, now, id, PlanState::Superseded { why: why.to_owned() });
    }
}

/// Tells when the scenario changes, and which hosts became hot.
fn tell_changes(control: &mut Control, now: TimeMs, findings: &Findings) {
    let hot = |findings: &Findings| -> BTreeSet<HostId> {
        findings.hosts.iter().filter(|(_, f)| f.heat == Heat::Hot).map(|(host, _)| host.clone()).collect()
    };
    let before = control.planning.findings.as_ref().map(hot).unwrap_or_default();
    for host in hot(findings).difference(&before) {
        let Some(evidence) = findings.hosts.get(host).and_then(|finding| finding.evidence.as_ref()) else { continue };
        let text = format!(
            "{host} is hot: {} of its {} is wanted, above {} in {} of the last {} samples, and {} is forecast",
            evidence.last, evidence.resource, evidence.threshold, evidence.hits, evidence.needed.n, evidence.forecast
        );
        control.tables.event(now, Severity::Warning, format!("host/{host}"), None, "host-hot", text);
    }
    if control.planning.findings.as_ref().map(|f| f.scenario) != Some(findings.scenario) {
        let severity = match findings.scenario {
            Scenario::Balanced | Scenario::Underused => Severity::Info,
            Scenario::Hotspot | Scenario::Saturated | Scenario::Mixed | Scenario::Degraded => Severity::Warning,
        };
        let text = format!("{}: {}", findings.scenario, findings.why);
        control.tables.event(now, severity, "cluster", None, "scenario", text);
    }
}

/// Carries the plan under way as far as it goes now.
fn carry_on(control: &mut Control, now: TimeMs, id: PlanId) {
    let Some(mut record) = control.plan(id).cloned() else {
        control.planning.current = None;
        return;
    };
    match record.state {
        PlanState::Running => {}
        PlanState::Settling => return settle(control, now, record),
        _ => {
            control.planning.current = None;
            return;
        }
    }
    let before = record.steps.clone();
    for index in 0..record.steps.len() {
        record.steps[index] = advance(control, now, &record, index);
    }
    if record.steps != before {
        control.tables.change::<PlanRecord>(&id, |row| row.steps.clone_from(&record.steps));
    }
    let open = |state: &StepState| matches!(state, StepState::Waiting | StepState::Running { .. });
    if record.steps.iter().any(open) {
        return;
    }
    let failure = record.steps.iter().find_map(|state| match state {
        StepState::Failed { why, .. } => Some(why.clone()),
        _ => None,
    });
    match failure {
        Some(why) => {
            control.planning.not_before = Some(now.plus(AFTER_FAILURE));
            finish(control, now, id, PlanState::Failed { why });
        }
        None => {
            let settles_at = now.plus(control.policy().settle);
            control.planning.settles_at = Some(settles_at);
            control.tables.change::<PlanRecord>(&id, |row| row.state = PlanState::Settling);
        }
    }
}

/// The next state of one step.
fn advance(control: &mut Control, now: TimeMs, record: &PlanRecord, index: usize) -> StepState {
    let step = &record.plan.steps[index];
    match &record.steps[index] {
        state @ (StepState::Done { .. } | StepState::Failed { .. } | StepState::Skipped) => state.clone(),
        StepState::Running { since, migration } => watch(control, now, step, *since, *migration),
        StepState::Waiting => {
            let of = |wanted: fn(&StepState) -> bool| step.after.iter().map(|&i| &record.steps[i]).any(wanted);
            if of(|s| matches!(s, StepState::Failed { .. } | StepState::Skipped)) {
                StepState::Skipped
            } else if of(|s| matches!(s, StepState::Waiting | StepState::Running { .. })) {
                StepState::Waiting
            } else {
                start(control, now, record.id, step)
            }
        }
    }
}

fn start(control: &mut Control, now: TimeMs, plan: PlanId, step: &Step) -> StepState {
    let running = |migration| StepState::Running { since: now, migration };
    let failed = |why: String| StepState::Failed { at: now, migration: None, why };
    match &step.action {
        Action::Migrate { vm, generation, from, to } => {
            let holds =
                control.vm(vm).is_some_and(|row| row.generation == *generation && row.host.as_ref() == Some(from));
            if !holds {
                return failed(
                    control.with_names(&format!("{vm} is no longer on {from} as it was when this was planned")),
                );
            }
            let priority = control.plan(plan).map_or(Priority::Normal, |record| priority(record.plan.scenario));
            let (vm, to, reason) = (vm.clone(), to.clone(), step.reason.clone());
            let request = MigrationRequest { vm: vm.clone(), to, plan: Some(plan), reason, priority, method: None };
            match migrate::ask(control, now, request) {
                Ok(id) => running(Some(id)),
                Err(refusal) => {
                    control.transfers.cooling_mut().failed(now, &vm, &refusal.detail);
                    failed(refusal.detail)
                }
            }
        }
        Action::PowerOn { host } => {
            power::wake(control, now, host, &step.reason);
            running(None)
        }
        Action::PowerOff { host } => match power::switch_off(control, now, host, PowerIntent::Asleep, &step.reason) {
            Ok(()) => running(None),
            Err(refusal) => failed(refusal.detail),
        },
    }
}

/// Relief and evacuation go before what merely saves.
fn priority(scenario: Scenario) -> Priority {
    match scenario {
        Scenario::Hotspot | Scenario::Saturated | Scenario::Mixed | Scenario::Degraded => Priority::High,
        Scenario::Balanced => Priority::Normal,
        Scenario::Underused => Priority::Low,
    }
}

fn watch(control: &Control, now: TimeMs, step: &Step, since: TimeMs, migration: Option<MigrationId>) -> StepState {
    // A second try takes the place of the first.
    let current = migration.and_then(|id| control.migration(id)).map(|record| migrate::continued(control, record));
    let migration = current.map(|record| record.id).or(migration);
    let running = StepState::Running { since, migration };
    let done = StepState::Done { at: now, migration };
    let failed = |why: String| StepState::Failed { at: now, migration, why };
    match &step.action {
        Action::Migrate { vm, .. } => match current.map(|m| &m.phase) {
            None => failed(format!("the migration of {vm} is gone from the store")),
            Some(
                MigrationPhase::Queued | MigrationPhase::Reserved | MigrationPhase::PreCopy | MigrationPhase::Committed,
            ) => running,
            Some(MigrationPhase::Done) => done,
            Some(MigrationPhase::Cancelled { by }) => failed(format!("cancelled by {by}")),
            Some(
                MigrationPhase::Failed { why } | MigrationPhase::TakenBack { why } | MigrationPhase::Restarted { why },
            ) => failed(why.clone()),
        },
        Action::PowerOn { host } => match control.live.state(host) {
            HostState::Up => done,
            HostState::Waking | HostState::Unknown | HostState::Asleep | HostState::FallingAsleep => running,
            HostState::Down | HostState::Suspect if control.power.is_waking(host) => running,
            HostState::Down | HostState::Suspect => failed(format!("{host} did not wake")),
        },
        Action::PowerOff { host } => match control.live.state(host) {
            HostState::Asleep => done,
            HostState::FallingAsleep => running,
            _ if control.power.is_switching_off(host) => running,
            state => failed(format!("{host} did not go to sleep: it is {state:?}")),
        },
    }
}

/// The effect has had time to show: hold it against the prediction.
fn settle(control: &mut Control, now: TimeMs, record: PlanRecord) {
    let settles_at = *control.planning.settles_at.get_or_insert(now.plus(control.policy().settle));
    if now < settles_at {
        return;
    }
    let verification = planner::verify(&record.plan, &control.world(now));
    let (severity, kind) =
        if verification.kept { (Severity::Info, "plan-kept") } else { (Severity::Warning, "plan-missed") };
    let text = verification.summary.clone();
    control.tables.change::<PlanRecord>(&record.id, |row| row.verification = Some(verification));
    control.tables.event(now, severity, format!("plan/{}", record.id), None, kind, text);
    finish(control, now, record.id, PlanState::Done);
}

fn finish(control: &mut Control, now: TimeMs, id: PlanId, state: PlanState) {
    if control.planning.current == Some(id) {
        control.planning.current = None;
    }
    let (severity, kind, text) = match &state {
        PlanState::Done => (Severity::Info, "plan-done", format!("plan {id} is done")),
        PlanState::Failed { why } => {
            (Severity::Warning, "plan-failed", format!("plan {id} was not carried out whole: {why}; a new one is made"))
        }
        PlanState::Rejected { by } => (Severity::Info, "plan-rejected", format!("plan {id} was rejected by {by}")),
        PlanState::Superseded { why } => (Severity::Info, "plan-superseded", format!("plan {id}: {why}")),
        PlanState::Proposed | PlanState::Running | PlanState::Settling => return,
    };
    control.tables.change::<PlanRecord>(&id, |row| {
        row.state = state;
        row.finished_at = Some(now);
    });
    control.tables.event(now, severity, format!("plan/{id}"), None, kind, text);
}

/// On command, whatever the loop's timing: in mode act it is carried out, else proposed.
pub fn plan_now(control: &mut Control, now: TimeMs) -> Result<Reply, Refusal> {
    if let Some(id) = control.planning.current {
        return Err(Refusal::conflict(format!("plan {id} is being carried out; `drover plan show {id}`")));
    }
    if control.brake {
        return Err(Refusal::unavailable("most hosts are silent; nothing is planned until they answer".to_owned()));
    }
    if control.migrations_open() > 0 {
        return Err(Refusal::conflict("a migration is under way: plan when it is over".to_owned()));
    }
    let world = control.world(now);
    let findings = planner::detect(&world);
    let plan = planner::plan(&world, &findings, control.transfers.predictor());
    if plan.steps.is_empty() {
        let why = plan.why.clone();
        control.planning.idle = Some(plan);
        return Ok(Reply::NoPlan(why));
    }
    let Some(plan) = checked(control, now, &world, plan) else {
        return Err(Refusal::unavailable("the plan that was made is not sound; see `drover events`".to_owned()));
    };
    supersede_proposals(control, now, "a newer plan takes its place");
    let act = control.policy().mode == Mode::Act;
    Ok(Reply::Plan(record(control, now, findings, plan, act)))
}

/// A person says yes. The plan must still hold for the cluster as it is now.
pub fn approve(control: &mut Control, now: TimeMs, id: PlanId) -> Result<Reply, Refusal> {
    let record = control.require::<PlanRecord>(&id)?.clone();
    if record.state != PlanState::Proposed {
        return Err(Refusal::conflict(format!("plan {id} is not waiting for approval; `drover plan show {id}`")));
    }
    if let Some(current) = control.planning.current {
        return Err(Refusal::conflict(format!("plan {current} is being carried out: approve this one after it")));
    }
    let violations = planner::check(&control.world(now), &record.plan);
    if let Some(first) = violations.first() {
        return Err(Refusal::conflict(format!(
            "the cluster has changed since: {first}. `drover plan now` makes a new one"
        )));
    }
    control.tables.change::<PlanRecord>(&id, |row| row.state = PlanState::Running);
    control.tables.event(
        now,
        Severity::Info,
        format!("plan/{id}"),
        None,
        "plan-started",
        format!("plan {id} was approved"),
    );
    control.planning.current = Some(id);
    control.planning.settles_at = None;
    carry_on(control, now, id);
    Ok(Reply::Plan(id))
}

/// A person says no. A running plan stops where it is: steps under way end, the others are skipped.
pub fn reject(control: &mut Control, now: TimeMs, id: PlanId, by: &str) -> Result<Reply, Refusal> {
    let record = control.require::<PlanRecord>(&id)?;
    match record.state {
        PlanState::Proposed => {
            finish(control, now, id, PlanState::Rejected { by: by.to_owned() });
            control.planning.reviewed_at = Some(now);
            Ok(Reply::Plan(id))
        }
        PlanState::Running => {
            control.tables.change::<PlanRecord>(&id, |row| {
                for step in row.steps.iter_mut().filter(|step| **step == StepState::Waiting) {
                    *step = StepState::Skipped;
                }
            });
            let queued = |m: &&MigrationRecord| m.plan == Some(id) && m.phase == MigrationPhase::Queued;
            for queued in control.migrations().filter(queued).map(|m| m.id).collect::<Vec<MigrationId>>() {
                migrate::cancel(control, now, queued, by)?;
            }
            finish(control, now, id, PlanState::Rejected { by: by.to_owned() });
            control.planning.not_before = Some(now.plus(AFTER_FAILURE));
            Ok(Reply::Plan(id))
        }
        _ => Err(Refusal::conflict(format!("plan {id} is over; `drover plan show {id}`"))),
    }
}
