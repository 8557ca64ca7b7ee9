//! The cluster as a whole: what was found, and why things are as they are.

use super::{EventView, schema};
use drover_model::plan::{Evidence, Heat, HostFinding, Resource, Scenario};
use drover_model::policy::Mode;
use drover_model::{HostId, Revision};
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
}
