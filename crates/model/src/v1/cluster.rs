//! The cluster as a whole: what was found, and why things are as they are.

use super::{EventView, schema};
use crate::plan::{Evidence, Heat, HostFinding, Resource, Scenario};
use crate::policy::Mode;
use crate::{HostId, Revision, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    /// Of the server.
    pub version: String,
    /// The server's clock.
    pub now_ms: u64,
    #[schema(value_type = u64)]
    pub revision: Revision,
    #[schema(schema_with = schema::mode)]
    pub mode: Mode,
    /// The pool's pattern; `null` until the first round of detection.
    #[schema(schema_with = schema::optional_scenario)]
    pub scenario: Option<Scenario>,
    /// Why that scenario, in one sentence.
    pub why: Option<String>,
    /// When it was found.
    pub found_at_ms: Option<u64>,
    /// What was found of each host.
    #[schema(value_type = BTreeMap<String, HostFindingView>)]
    pub hosts: BTreeMap<HostId, HostFindingView>,
    pub counts: Counts,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    pub tenants: u64,
    pub hosts: u64,
    pub hosts_up: u64,
    pub vms: u64,
    pub vms_running: u64,
    pub migrations_running: u64,
    /// Waiting for approval.
    pub plans_proposed: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostFindingView {
    #[schema(schema_with = schema::heat)]
    pub heat: Heat,
    pub evidence: Option<EvidenceView>,
    /// Forecast demand at the policy's quantile; `null` if unknown.
    pub cpu_forecast_millis: Option<u64>,
    pub memory_forecast_mib: Option<u64>,
}

impl From<&HostFinding> for HostFindingView {
    fn from(finding: &HostFinding) -> Self {
        Self {
            heat: finding.heat,
            evidence: finding.evidence.as_ref().map(EvidenceView::from),
            cpu_forecast_millis: finding.cpu_forecast.map(|cpu| cpu.0),
            memory_forecast_mib: finding.memory_forecast.map(|memory| memory.0 >> 20),
        }
    }
}

/// Why a host was called hot or cold. Shares of capacity are 1.0 for the whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvidenceView {
    #[schema(schema_with = schema::resource)]
    pub resource: Resource,
    pub threshold: f64,
    /// How many of the last `of` samples passed the threshold; `needed` had to.
    pub hits: u32,
    pub needed: u32,
    pub of: u32,
    pub last: f64,
    pub forecast: f64,
}

impl From<&Evidence> for EvidenceView {
    fn from(evidence: &Evidence) -> Self {
        Self {
            resource: evidence.resource,
            threshold: evidence.threshold.0,
            hits: evidence.hits,
            needed: evidence.needed.k,
            of: evidence.needed.n,
            last: evidence.last.0,
            forecast: evidence.forecast.0,
        }
    }
}

/// Why something is as it is, and why not otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// `vm/vm-..`, `plan/42`, `host/h1`, `migration/7`, `cluster`.
    pub object: String,
    /// One paragraph.
    pub answer: String,
    /// The facts it rests on.
    pub because: Vec<String>,
    /// What was considered and lost, and to which rule or price.
    pub rejected: Vec<String>,
    /// What happened to it, oldest first.
    pub history: Vec<EventView>,
    /// What the planner answers at the moment: of a host that is up or asleep, and to operators of a vm that nothing
    /// moves. `null` else.
    #[serde(default)]
    pub why: Option<WhyView>,
}

/// The planner's answer, worked out when it is asked for. Money is in millionths and over the policy's horizon; ratios are
/// demand over capacity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "question")]
pub enum WhyView {
    /// Why a host is on.
    HostOn {
        host: HostId,
        sentence: String,
        /// Rules that keep it on, most fundamental first, as sentences.
        rules: Vec<String>,
        /// Its vms that could go nowhere, at most 16.
        stuck: Vec<StuckView>,
        /// What its sleep would save. `null`: it can't be emptied.
        saved_micro: Option<i64>,
        /// What emptying and switching it would cost. `null`: it can't be emptied.
        cost_micro: Option<i64>,
    },
    /// Why a host sleeps.
    HostOff {
        host: HostId,
        sentence: String,
        /// Of the hosts that are up, forecast for when this one could be there.
        asked: f64,
        /// Above this a host is woken.
        wake_above: f64,
        /// To have it on and idle.
        cost_micro: i64,
    },
    /// Why a vm stays where it is.
    VmStays {
        vm: VmId,
        host: Option<HostId>,
        sentence: String,
        /// What keeps it from moving at all, as a sentence; `null`: nothing does.
        rests: Option<String>,
        /// The best host that could take it; `null`: none could.
        best: Option<ElsewhereView>,
        /// Hosts that could not, at most 16.
        forbidden: Vec<ForbiddenView>,
    },
}

/// A vm that keeps a host from being emptied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StuckView {
    pub vm: VmId,
    /// The rule that forbids the host nearest to taking it, as a sentence.
    pub because: String,
}

/// Where a vm could be instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ElsewhereView {
    pub host: HostId,
    /// After the cost of moving.
    pub gain_micro: i64,
    /// What a move that nothing forces must gain.
    pub needed_micro: i64,
}

/// A host that can't take a vm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForbiddenView {
    pub host: HostId,
    /// As a sentence.
    pub because: String,
}
