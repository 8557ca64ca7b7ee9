//! What was found, what was decided, and why.

use crate::policy::KOfN;
use crate::{
    Bytes, CpuMillis, Generation, HostId, MicroMoney, MicroMoneyPerHour, MigrationId, Millis, PlanId, Ratio, Revision,
    RuleId, TimeMs, VmId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The pool's pattern, recognised from the load of all its hosts, and the reaction to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Nobody hot, no room to save: nothing to do.
    Balanced,
    /// Some hot, and others have room: balance.
    Hotspot,
    /// Hot (or about to be), and nobody awake has room: wake a host, or tell the operator.
    Saturated,
    /// Cold hosts whose vms fit elsewhere: consolidate, power off.
    Underused,
    /// Some hot, some cold, and no one-way move fits: exchange.
    Mixed,
    /// A host is drained, suspect or down: evacuate what can be evacuated, save no power meanwhile.
    Degraded,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Balanced => "balanced",
            Self::Hotspot => "hotspot",
            Self::Saturated => "saturated",
            Self::Underused => "underused",
            Self::Mixed => "mixed",
            Self::Degraded => "degraded",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    Cpu,
    Memory,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heat {
    Hot,
    Warm,
    Cold,
    /// Too little or too old telemetry to say, or not a host that runs vms now.
    Unknown,
}

/// Why a host was called hot or cold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub resource: Resource,
    pub threshold: Ratio,
    /// How many of the last `needed.n` samples passed the threshold.
    pub hits: u32,
    pub needed: KOfN,
    pub last: Ratio,
    /// Demand over capacity, [`crate::policy::Policy::forecast_ahead`] from now, at the policy's quantile.
    pub forecast: Ratio,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFinding {
    pub heat: Heat,
    /// For hot and cold; for warm the resource nearest to hot, if known.
    pub evidence: Option<Evidence>,
    /// Forecast demand at the policy's quantile; `None` if unknown.
    pub cpu_forecast: Option<CpuMillis>,
    pub memory_forecast: Option<Bytes>,
}

/// The outcome of detection. Made anew each round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    pub at: TimeMs,
    pub scenario: Scenario,
    /// One sentence a person understands.
    pub why: String,
    pub hosts: BTreeMap<HostId, HostFinding>,
}

/// An ordered set of steps. Every intermediate state that its order allows keeps every hard rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub parent: Revision,
    pub made_at: TimeMs,
    pub scenario: Scenario,
    /// One sentence: what for, or why nothing is done.
    pub why: String,
    /// In an order in which they may be carried out one by one. Empty: nothing is worth doing.
    pub steps: Vec<Step>,
    pub predicted: Prediction,
    /// What was considered and lost, most promising first; at most [`Plan::REJECTED_MAX`].
    pub rejected: Vec<Rejected>,
    #[serde(default)]
    pub timing: Timing,
}

/// When the plan ends, and how near that is to the earliest end any order could reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Predicted time from the first step's start to the last one's end.
    pub makespan: Millis,
    /// No order of these steps ends earlier: the busiest link, the longest chain.
    pub bound: Millis,
}

impl Plan {
    pub const REJECTED_MAX: usize = 64;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Indices into the plan's steps, all smaller than this one's, that must have succeeded before this one starts.
    pub after: Vec<usize>,
    pub action: Action,
    /// Completes "because ...".
    pub reason: String,
    /// Of this step alone, given the ones before it. Negative where a step only makes another possible.
    pub gain: MicroMoney,
    /// Already subtracted from `gain`.
    pub cost: MicroMoney,
    /// Predicted.
    pub duration: Millis,
    /// Predicted start, counted from the plan's.
    #[serde(default)]
    pub start: Millis,
    /// Bytes per second that the schedule gives a migration; 0 where it gives none.
    #[serde(default)]
    pub bandwidth: Bytes,
    /// What else could have been done for the same end, and lost: best first, at most [`Step::ALTERNATIVES_MAX`].
    #[serde(default)]
    pub alternatives: Vec<Rejected>,
}

impl Step {
    pub const ALTERNATIVES_MAX: usize = 4;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    /// Valid only while the vm is still at this generation on `from`.
    Migrate {
        vm: VmId,
        generation: Generation,
        from: HostId,
        to: HostId,
    },
    PowerOn {
        host: HostId,
    },
    /// The host must be empty by then.
    PowerOff {
        host: HostId,
    },
}

/// What the plan says will be; verification holds it against what is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    pub rate_before: MicroMoneyPerHour,
    pub rate_after: MicroMoneyPerHour,
    pub moving_cost: MicroMoney,
    /// horizon x (rate before - rate after) - cost of moving.
    pub gain: MicroMoney,
    /// No placement that keeps the hard rules costs less than this per hour: how far from optimal the result can be.
    /// `None` if it was not worked out.
    #[serde(default)]
    pub rate_bound: Option<MicroMoneyPerHour>,
    /// Of each host a step touches: demand over capacity before and after.
    pub hosts: BTreeMap<HostId, HostPrediction>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostPrediction {
    pub cpu_before: Ratio,
    pub cpu_after: Ratio,
    pub memory_before: Ratio,
    pub memory_after: Ratio,
}

/// An alternative that lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    pub action: Action,
    pub because: Objection,
}

/// A hard rule that forbade an action, or the money that was missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "rule")]
pub enum Objection {
    /// Demand (forecast, at the quantile) would pass what the host may be filled to.
    Cpu {
        host: HostId,
        demand: CpuMillis,
        room_for: CpuMillis,
    },
    /// The vms' full memory would pass the host's.
    Memory {
        host: HostId,
        demand: Bytes,
        room_for: Bytes,
    },
    AntiAffinity {
        host: HostId,
        with: VmId,
    },
    Pinned {
        vm: VmId,
        to: Vec<HostId>,
    },
    /// A rule of placement forbids it; `why` completes "because ...".
    PlacementRule {
        name: RuleId,
        why: String,
    },
    /// The disks on the host itself would not fit.
    Disk {
        host: HostId,
        demand: Bytes,
        room_for: Bytes,
    },
    /// The link would carry more than it can, per second.
    Link {
        host: HostId,
        demand: Bytes,
        room_for: Bytes,
    },
    /// The host would promise more processor than it has.
    Reserved {
        host: HostId,
        demand: CpuMillis,
        room_for: CpuMillis,
    },
    /// The hosts left up would not hold what the pools are promised.
    PoolReservation {
        why: String,
    },
    /// It left that host within [`crate::policy::Policy::return_after`].
    Return {
        vm: VmId,
        host: HostId,
        left: Millis,
    },
    /// As many moves as the policy allows in an hour or a plan.
    MovesMax {
        why: String,
    },
    Maintenance {
        host: HostId,
    },
    HostNotUsable {
        host: HostId,
        state: crate::world::HostState,
    },
    Network {
        host: HostId,
        network: crate::NetworkId,
    },
    /// The vm can't go on running there: the processor, the machine types or QEMU differ.
    Unlike {
        host: HostId,
        vm: VmId,
    },
    NotMovable {
        vm: VmId,
        why: String,
    },
    /// It moved recently and its host is neither hot, lost nor drained.
    Cooldown {
        vm: VmId,
        left: Millis,
    },
    SpareHost {
        why: String,
    },
    /// The hosts left up would together be asked for so much that one would soon be woken again.
    Pool {
        demand: CpuMillis,
        room_for: CpuMillis,
    },
    /// Would still leave the policy's minimum unmet.
    HostsUpMin {
        up: u32,
        min: u32,
    },
    /// It gains less than the best, or than it costs.
    Money {
        gain: MicroMoney,
        needed: MicroMoney,
    },
    /// Load is not known well enough.
    UnknownLoad {
        host: HostId,
    },
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { host, demand, room_for } => {
                write!(f, "{host} would be asked for {demand} and is filled to {room_for} at most")
            }
            Self::Memory { host, demand, room_for } => write!(f, "{host} would need {demand} and has {room_for}"),
            Self::AntiAffinity { host, with } => {
                write!(f, "{host} already runs {with} of the same anti-affinity group")
            }
            Self::Pinned { vm, to } => {
                let to: Vec<_> = to.iter().map(HostId::as_str).collect();
                write!(f, "{vm} is pinned to {}", to.join(", "))
            }
            Self::PlacementRule { name, why } => write!(f, "rule {name} forbids it because {why}"),
            Self::Disk { host, demand, room_for } => {
                write!(f, "{host} would need {demand} of disk and has {room_for}")
            }
            Self::Link { host, demand, room_for } => {
                write!(f, "the link of {host} would carry {demand}/s and is filled to {room_for}/s at most")
            }
            Self::Reserved { host, demand, room_for } => {
                write!(f, "{host} would promise {demand} of its processor and has {room_for}")
            }
            Self::PoolReservation { why } => write!(f, "pools would not have what they are promised: {why}"),
            Self::Return { vm, host, left } => {
                write!(f, "{vm} left {host} recently and does not return for another {left}")
            }
            Self::MovesMax { why } => write!(f, "enough has moved for now: {why}"),
            Self::Maintenance { host } => write!(f, "{host} is in maintenance"),
            Self::HostNotUsable { host, state } => {
                write!(f, "{host} is {}", format!("{state:?}").to_lowercase())
            }
            Self::Network { host, network } => write!(f, "{host} is not attached to network {network}"),
            Self::Unlike { host, vm } => {
                write!(f, "{vm} can't go on running on {host}: its processor, machine types or QEMU are others")
            }
            Self::NotMovable { vm, why } => write!(f, "{vm} can't be moved because {why}"),
            Self::Cooldown { vm, left } => write!(f, "{vm} moved recently and rests another {left}"),
            Self::SpareHost { why } => write!(f, "no host could be lost any more: {why}"),
            Self::Pool { demand, room_for } => {
                write!(f, "the hosts left would be asked for {demand} and a host is woken near {room_for}")
            }
            Self::HostsUpMin { up, min } => write!(f, "{up} hosts are up and at least {min} must stay up"),
            Self::Money { gain, needed } => write!(f, "it gains {gain} and would have to gain {needed}"),
            Self::UnknownLoad { host } => write!(f, "the load of {host} is not known"),
        }
    }
}

/// A plan in the store, with what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanRecord {
    pub id: PlanId,
    pub plan: Plan,
    pub findings: Findings,
    pub state: PlanState,
    /// As many as the plan has.
    pub steps: Vec<StepState>,
    pub finished_at: Option<TimeMs>,
    pub verification: Option<Verification>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum PlanState {
    /// Waits for a person (mode propose).
    Proposed,
    Running,
    /// All steps done; the effect settles.
    Settling,
    /// All steps done and verified.
    Done,
    /// Some step could not be carried out; the steps that depended on it were not tried.
    Failed {
        why: String,
    },
    /// A person said no.
    Rejected {
        by: String,
    },
    /// The cluster changed before it was approved or finished.
    Superseded {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum StepState {
    Waiting,
    Running {
        since: TimeMs,
        migration: Option<MigrationId>,
    },
    Done {
        at: TimeMs,
        migration: Option<MigrationId>,
    },
    Failed {
        at: TimeMs,
        migration: Option<MigrationId>,
        why: String,
    },
    /// A step before it failed, or the plan was stopped.
    Skipped,
}

/// Measured against predicted, once the effect has settled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    pub at: TimeMs,
    /// All hosts that were hot are not any more, and every host is within [`Verification::TOLERANCE`] of its prediction.
    pub kept: bool,
    pub hosts: BTreeMap<HostId, HostOutcome>,
    /// One sentence.
    pub summary: String,
}

impl Verification {
    /// In shares of the host's capacity: the load itself moves meanwhile.
    pub const TOLERANCE: Ratio = Ratio(0.20);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostOutcome {
    pub cpu_predicted: Ratio,
    pub cpu_measured: Ratio,
}
