//! Plans: what was decided, why, what was rejected, and what became of it.

use super::{HostFindingView, schema};
use crate::kind::{Access, Exposed, Fixed, Kind, Owner};
use crate::plan::{Action, PlanRecord, PlanState, Prediction, Rejected, Scenario, Step, StepState, Verification};
use crate::{Bytes, Generation, HostId, MigrationId, PlanId, Revision, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    #[schema(value_type = u64)]
    pub id: PlanId,
    #[schema(value_type = u64)]
    pub revision: Revision,
    /// Of the intent it was made from.
    #[schema(value_type = u64)]
    pub parent_revision: Revision,
    pub made_at_ms: u64,
    pub finished_at_ms: Option<u64>,
    #[schema(schema_with = schema::scenario)]
    pub scenario: Scenario,
    /// One sentence: what for.
    pub why: String,
    #[schema(schema_with = schema::plan_state)]
    pub state: String,
    /// Why it failed or was superseded, who rejected it.
    pub state_why: Option<String>,
    pub steps: Vec<StepView>,
    pub predicted: PredictionView,
    /// Predicted time from the first step's start to the last one's end.
    #[serde(default)]
    pub makespan_ms: u64,
    /// No order of these steps would end earlier.
    #[serde(default)]
    pub makespan_bound_ms: u64,
    /// What was considered and lost, most promising first.
    pub rejected: Vec<RejectedView>,
    /// What was found of each host when it was made.
    #[schema(value_type = BTreeMap<String, HostFindingView>)]
    pub findings: BTreeMap<HostId, HostFindingView>,
    /// Once its effect has settled.
    pub verification: Option<VerificationView>,
}

impl Kind for PlanRecord {
    const NAME: &'static str = "plan";
    type Key = PlanId;

    fn key(&self) -> PlanId {
        self.id
    }

    fn owner(&self) -> Owner<'_> {
        Owner::Cluster
    }
}

impl Exposed for PlanRecord {
    const TITLE: &'static str = "plan";
    const PLURAL: &'static str = "plans";
    const TAG: &'static str = "plans";
    const ACCESS: Access = Access::OPERATORS;
    /// The planner makes them.
    type Create = Fixed;
    type View = PlanView;
    type Settings = Fixed;
    const NEWEST_FIRST: bool = true;
    const CREATABLE: bool = false;
    const PATCHABLE: bool = false;
    const REMOVABLE: bool = false;
    const STATES: &'static [&'static str] = schema::PLAN_STATES;
}

impl PlanView {
    pub fn new(record: &PlanRecord, revision: Revision) -> Self {
        let plan = &record.plan;
        let (state, state_why) = plan_state_words(&record.state);
        // A record holds one state per step; a step without one has not been touched.
        let states = record.steps.iter().chain(std::iter::repeat(&StepState::Waiting));
        let steps = plan.steps.iter().zip(states).map(|(step, state)| StepView::new(step, state)).collect();
        Self {
            id: record.id,
            revision,
            parent_revision: plan.parent,
            made_at_ms: plan.made_at.0,
            finished_at_ms: record.finished_at.map(|at| at.0),
            scenario: plan.scenario,
            why: plan.why.clone(),
            state: state.to_owned(),
            state_why,
            steps,
            predicted: PredictionView::from(&plan.predicted),
            makespan_ms: plan.timing.makespan.0,
            makespan_bound_ms: plan.timing.bound.0,
            rejected: plan.rejected.iter().map(RejectedView::from).collect(),
            findings: record.findings.hosts.iter().map(|(host, found)| (host.clone(), found.into())).collect(),
            verification: record.verification.as_ref().map(VerificationView::from),
        }
    }
}

/// The state's word, and its reason where it has one.
pub fn plan_state_words(state: &PlanState) -> (&'static str, Option<String>) {
    match state {
        PlanState::Proposed => ("proposed", None),
        PlanState::Running => ("running", None),
        PlanState::Settling => ("settling", None),
        PlanState::Done => ("done", None),
        PlanState::Failed { why } => ("failed", Some(why.clone())),
        PlanState::Rejected { by } => ("rejected", Some(format!("rejected by {by}"))),
        PlanState::Superseded { why } => ("superseded", Some(why.clone())),
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Indices, from 0, of the steps that must have succeeded before this one.
    pub after: Vec<usize>,
    pub action: ActionView,
    /// Completes "because ...".
    pub reason: String,
    /// Of this step alone, after its cost; negative where a step only makes another possible.
    pub gain_micro: i64,
    pub cost_micro: i64,
    /// Predicted, counted from the plan's start.
    #[serde(default)]
    pub start_ms: u64,
    /// Predicted.
    pub duration_ms: u64,
    /// What the schedule gives a migration; `null` where it gives none.
    #[serde(default)]
    pub bandwidth_bytes_s: Option<u64>,
    /// What else could have been done for the same end, and lost: best first.
    #[serde(default)]
    pub alternatives: Vec<RejectedView>,
    #[schema(schema_with = schema::step_state)]
    pub state: String,
    /// Since when it runs, or when it ended.
    pub state_at_ms: Option<u64>,
    #[schema(value_type = Option<u64>)]
    pub migration: Option<MigrationId>,
    /// Why it failed.
    pub state_why: Option<String>,
}

impl StepView {
    fn new(step: &Step, state: &StepState) -> Self {
        let (word, at, migration, why) = match state {
            StepState::Waiting => ("waiting", None, None, None),
            StepState::Running { since, migration } => ("running", Some(since.0), *migration, None),
            StepState::Done { at, migration } => ("done", Some(at.0), *migration, None),
            StepState::Failed { at, migration, why } => ("failed", Some(at.0), *migration, Some(why.clone())),
            StepState::Skipped => ("skipped", None, None, None),
        };
        Self {
            after: step.after.clone(),
            action: ActionView::from(&step.action),
            reason: step.reason.clone(),
            gain_micro: step.gain.0,
            cost_micro: step.cost.0,
            start_ms: step.start.0,
            duration_ms: step.duration.0,
            bandwidth_bytes_s: (step.bandwidth != Bytes::ZERO).then_some(step.bandwidth.0),
            alternatives: step.alternatives.iter().map(RejectedView::from).collect(),
            state: word.to_owned(),
            state_at_ms: at,
            migration,
            state_why: why,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum ActionView {
    Migrate {
        vm: VmId,
        #[schema(value_type = u64)]
        generation: Generation,
        from: HostId,
        to: HostId,
    },
    PowerOn {
        host: HostId,
    },
    PowerOff {
        host: HostId,
    },
}

impl From<&Action> for ActionView {
    fn from(action: &Action) -> Self {
        match action.clone() {
            Action::Migrate { vm, generation, from, to } => Self::Migrate { vm, generation, from, to },
            Action::PowerOn { host } => Self::PowerOn { host },
            Action::PowerOff { host } => Self::PowerOff { host },
        }
    }
}

/// Rates are money per hour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PredictionView {
    pub rate_before_micro_h: i64,
    pub rate_after_micro_h: i64,
    pub moving_cost_micro: i64,
    /// horizon x (rate before - rate after) - cost of moving.
    pub gain_micro: i64,
    /// No placement that keeps the hard rules costs less: how far from the best the result can be. `null`: not worked out.
    #[serde(default)]
    pub rate_bound_micro_h: Option<i64>,
    /// Of each host a step touches.
    #[schema(value_type = BTreeMap<String, HostPredictionView>)]
    pub hosts: BTreeMap<HostId, HostPredictionView>,
}

/// Demand over capacity; 1.0 is the whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostPredictionView {
    pub cpu_before: f64,
    pub cpu_after: f64,
    pub memory_before: f64,
    pub memory_after: f64,
}

impl From<&Prediction> for PredictionView {
    fn from(prediction: &Prediction) -> Self {
        let hosts = prediction.hosts.iter().map(|(host, p)| {
            let view = HostPredictionView {
                cpu_before: p.cpu_before.0,
                cpu_after: p.cpu_after.0,
                memory_before: p.memory_before.0,
                memory_after: p.memory_after.0,
            };
            (host.clone(), view)
        });
        Self {
            rate_before_micro_h: prediction.rate_before.0,
            rate_after_micro_h: prediction.rate_after.0,
            moving_cost_micro: prediction.moving_cost.0,
            gain_micro: prediction.gain.0,
            rate_bound_micro_h: prediction.rate_bound.map(|rate| rate.0),
            hosts: hosts.collect(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RejectedView {
    pub action: ActionView,
    /// The rule or price that forbade it, as a sentence.
    pub because: String,
}

impl From<&Rejected> for RejectedView {
    fn from(rejected: &Rejected) -> Self {
        Self { action: ActionView::from(&rejected.action), because: rejected.because.to_string() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VerificationView {
    pub at_ms: u64,
    /// The effect was as predicted.
    pub kept: bool,
    pub summary: String,
    #[schema(value_type = BTreeMap<String, HostOutcomeView>)]
    pub hosts: BTreeMap<HostId, HostOutcomeView>,
}

/// Demand over capacity; 1.0 is the whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostOutcomeView {
    pub cpu_predicted: f64,
    pub cpu_measured: f64,
}

impl From<&Verification> for VerificationView {
    fn from(verification: &Verification) -> Self {
        let hosts = verification.hosts.iter().map(|(host, outcome)| {
            let view = HostOutcomeView { cpu_predicted: outcome.cpu_predicted.0, cpu_measured: outcome.cpu_measured.0 };
            (host.clone(), view)
        });
        Self {
            at_ms: verification.at.0,
            kept: verification.kept,
            summary: verification.summary.clone(),
            hosts: hosts.collect(),
        }
    }
}

/// The answer to a plan made on demand: a plan, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanNow {
    pub plan: Option<PlanView>,
    pub why_none: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Findings, Heat, HostFinding, Objection, Plan};
    use crate::{CpuMillis, MicroMoney, MicroMoneyPerHour, Millis, TimeMs};

    fn record() -> PlanRecord {
        let host = |name: &str| name.parse::<HostId>().unwrap();
        let migrate = Action::Migrate {
            vm: "vm-abcdefghijkl".parse().unwrap(),
            generation: Generation(2),
            from: host("h1"),
            to: host("h2"),
        };
        let step = |action, after| Step {
            after,
            action,
            reason: "h1 is hot".to_owned(),
            gain: MicroMoney(900),
            cost: MicroMoney(40),
            duration: Millis(3000),
            start: Millis::ZERO,
            bandwidth: Bytes::ZERO,
            alternatives: Vec::new(),
        };
        let finding =
            HostFinding { heat: Heat::Hot, evidence: None, cpu_forecast: Some(CpuMillis(1500)), memory_forecast: None };
        PlanRecord {
            id: PlanId(4),
            plan: Plan {
                parent: Revision(11),
                made_at: TimeMs(1000),
                scenario: Scenario::Hotspot,
                why: "h1 is hot and h2 has room".to_owned(),
                steps: vec![step(Action::PowerOn { host: host("h2") }, vec![]), step(migrate.clone(), vec![0])],
                predicted: Prediction {
                    rate_before: MicroMoneyPerHour(10),
                    rate_after: MicroMoneyPerHour(5),
                    moving_cost: MicroMoney(40),
                    gain: MicroMoney(900),
                    rate_bound: None,
                    hosts: BTreeMap::new(),
                },
                rejected: vec![Rejected {
                    action: migrate,
                    because: Objection::Cpu { host: host("h3"), demand: CpuMillis(1900), room_for: CpuMillis(1500) },
                }],
                timing: Default::default(),
            },
            findings: Findings {
                at: TimeMs(900),
                scenario: Scenario::Hotspot,
                why: "h1 is hot".to_owned(),
                hosts: BTreeMap::from([(host("h1"), finding)]),
            },
            state: PlanState::Running,
            steps: vec![StepState::Done { at: TimeMs(1500), migration: None }],
            finished_at: None,
            verification: None,
        }
    }

    #[test]
    fn a_plan_is_told_with_the_state_of_each_step_and_sentences_for_the_rejected() {
        let view = PlanView::new(&record(), Revision(12));
        let states: Vec<&str> = view.steps.iter().map(|step| step.state.as_str()).collect();
        assert_eq!(states, ["done", "waiting"]);
        assert_eq!(view.rejected[0].because, "h3 would be asked for 1.90 cores and is filled to 1.50 cores at most");
        let wire = serde_json::to_value(&view).unwrap();
        assert_eq!(wire["steps"][1]["action"]["action"], "migrate");
        assert_eq!(wire["findings"]["h1"]["heat"], "hot");
        assert_eq!(serde_json::from_value::<PlanView>(wire).unwrap(), view);
    }

    #[test]
    fn the_schema_knows_every_state() {
        let plan = [
            PlanState::Proposed,
            PlanState::Running,
            PlanState::Settling,
            PlanState::Done,
            PlanState::Failed { why: String::new() },
            PlanState::Rejected { by: String::new() },
            PlanState::Superseded { why: String::new() },
        ];
        assert_eq!(plan.map(|state| plan_state_words(&state).0), schema::PLAN_STATES);
        let (at, migration) = (TimeMs(1), None);
        let steps = [
            StepState::Waiting,
            StepState::Running { since: at, migration },
            StepState::Done { at, migration },
            StepState::Failed { at, migration, why: String::new() },
            StepState::Skipped,
        ];
        let step = &record().plan.steps[0];
        assert_eq!(steps.map(|state| StepView::new(step, &state).state), schema::STEP_STATES);
    }
}
